//! The state machine of one SMTP session (RFC 5321), without sockets, clocks or storage.
//!
//! Promises: exactly one reply to each command, in order; the same replies and the same message for the same
//! octets, wherever the input is cut; no panic, no unbounded work or memory on anything a client sends; only
//! CRLF ends a command (RFC 5321 2.3.8). A client can make it allocate only by a HELO name longer than
//! [`HELO_INLINE_BYTES`].
//! Does not: know sockets or timers, keep message octets or recipients (those go straight to the [`Sink`]), or
//! decide policy (it asks).

use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::ops::{Deref, DerefMut};

use memchr::memchr;

use super::command::{self, Command};
use super::data::{BareNewlines, Checker, ContentFacts, Decoder, InPlace, Piece};
use super::extension::{self, Composed, EhloLines, EhloNumbers};
use super::hops::Hops;
use super::parameter::{self, Body, Hold, MailParameters, Offered};
use super::path::{ForwardPath, ReversePath};
use super::reply::Reply;
use super::sasl::{
    Binding, BindingData, Exchange, Failure, Mechanism, Mechanisms, Next, ROOM_BYTES, Room,
    Surroundings,
};
use super::sink::{
    Blocked, CloseReason, Completion, Field, MessageFacts, PasswordVerdict, Question, Sink, Verb,
    Verdict,
};
use super::trace::{self, Protocol, ProtocolFacts, TraceArguments};
use super::xclient::{self, FORWARDED};
use crate::base64;
use crate::choice::choices;
use crate::clock::Instant;
use crate::envelope::{
    BODY_7BIT, BODY_8BITMIME, BODY_BINARYMIME, BODY_UNSTATED, DeliverBy, FIELD_HEADER_BYTES,
    FLAG_BDAT, FLAG_ESMTP, FLAG_NORMALIZED, FLAG_SMTPUTF8,
};
use crate::limits::{
    AUTH_FAILURES_MAX, AUTH_LINE_BYTES_MAX, COMMAND_LINE_BYTES_MAX, CONFIGURED_REPLY_BYTES_MAX,
    DOMAIN_BYTES_MAX, HOLD_S_DEFAULT, MESSAGE_BYTES_MAX_DEFAULT, MESSAGES_PER_SESSION_MAX_DEFAULT,
    RECIPIENTS_MAX_DEFAULT,
};
use crate::users::Verifier;
use zeroize::Zeroizing;

choices! {
    /// What a listener is for; the name is stored with each message.
    #[derive(Default)]
    Role {
        /// Takes every recipient.
        #[default]
        Sink = "sink",
        /// Takes mail for its own domains.
        Mx = "mx",
        /// Takes mail from authenticated users.
        Submission = "submission",
    }
}

/// What a [`Context`] is made of.
#[derive(Clone, Debug)]
pub struct ContextOptions {
    /// Domain or address literal of this server.
    pub server_name: String,
    /// What the listener is for.
    pub role: Role,
    /// Largest message, octets.
    pub message_bytes_max: u64,
    /// Most recipients of one message, at least 1.
    pub recipients_max: u32,
    /// Most MAIL commands that one session may succeed with, at least 1.
    pub messages_max: u32,
    /// What is done about bare LF, bare CR and NUL in content.
    pub bare_newlines: BareNewlines,
    /// Extensions to offer, as far as the state of the session allows each: STARTTLS is left out under TLS (RFC 3207
    /// 4.2), REQUIRETLS without it (RFC 8689 2).
    pub offered: Offered,
    /// Without TLS, everything but NOOP, EHLO, STARTTLS and QUIT gets 530 (RFC 3207 4).
    pub needs_tls: bool,
    /// Longest time that a message may be held, seconds (RFC 4865).
    pub hold_max_s: u32,
    /// Speaks LMTP (RFC 2033) instead of SMTP.
    pub lmtp: bool,
    /// Mechanisms of AUTH; none: AUTH is not known.
    pub mechanisms: Mechanisms,
    /// AUTH is offered without TLS too.
    pub auth_without_tls: bool,
    /// Most Received fields that a message may come with; `None`: any number.
    pub hops_max: Option<u16>,
}

impl Default for ContextOptions {
    fn default() -> ContextOptions {
        ContextOptions {
            server_name: "localhost".to_owned(),
            role: Role::Sink,
            message_bytes_max: MESSAGE_BYTES_MAX_DEFAULT,
            recipients_max: RECIPIENTS_MAX_DEFAULT,
            messages_max: MESSAGES_PER_SESSION_MAX_DEFAULT,
            bare_newlines: BareNewlines::Reject,
            offered: extension::ALL,
            needs_tls: false,
            hold_max_s: HOLD_S_DEFAULT,
            lmtp: false,
            mechanisms: Mechanisms::NONE,
            auth_without_tls: false,
            hops_max: None,
        }
    }
}

/// Why a [`Context`] can't be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextError {
    /// The server name is empty, longer than a domain may be, or not printable ASCII without spaces.
    ServerName,
    /// `recipients_max` or `messages_max` is 0.
    LimitIsZero,
}

impl fmt::Display for ContextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContextError::ServerName => write!(
                f,
                "the server name must be a domain or an address literal of at most \
                 {DOMAIN_BYTES_MAX} ASCII characters"
            ),
            ContextError::LimitIsZero => {
                f.write_str("recipients and messages must be limited to 1 or more")
            }
        }
    }
}

impl core::error::Error for ContextError {}

/// What all sessions of one listener share; built once at start.
#[derive(Clone, Debug)]
pub struct Context {
    /// Domain or address literal of this server.
    pub server_name: String,
    /// What the listener is for.
    pub role: Role,
    /// The 220 of a new session, CRLF included.
    pub greeting: Vec<u8>,
    /// The 250 to HELO, CRLF included.
    pub helo_reply: Vec<u8>,
    /// The lines of the 250 to EHLO.
    pub ehlo: EhloLines,
    /// The 214 to HELP without TLS, CRLF included.
    pub help_reply: Vec<u8>,
    /// The 214 to HELP under TLS, CRLF included.
    pub help_reply_tls: Vec<u8>,
    /// Largest message, octets.
    pub message_bytes_max: u64,
    /// Most recipients of one message.
    pub recipients_max: u32,
    /// Most MAIL commands that one session may succeed with.
    pub messages_max: u32,
    /// What is done about bare LF, bare CR and NUL in content.
    pub bare_newlines: BareNewlines,
    /// Extensions that may be offered after EHLO, see [`Context::services`].
    pub offered: Offered,
    /// Without TLS, everything but NOOP, EHLO, STARTTLS and QUIT gets 530 (RFC 3207 4).
    pub needs_tls: bool,
    /// Longest time that a message may be held, seconds.
    pub hold_max_s: u32,
    /// Speaks LMTP (RFC 2033) instead of SMTP.
    pub lmtp: bool,
    /// Mechanisms of AUTH; none: AUTH is not known.
    pub mechanisms: Mechanisms,
    /// AUTH is offered without TLS too.
    pub auth_without_tls: bool,
    /// Most Received fields that a message may come with; `None`: any number.
    pub hops_max: Option<u16>,
}

impl Context {
    /// Builds the replies that depend on configuration.
    ///
    /// # Errors
    /// When the server name can't stand in a reply line, or a limit is 0.
    pub fn new(options: ContextOptions) -> Result<Context, ContextError> {
        let ContextOptions {
            server_name,
            role,
            message_bytes_max,
            recipients_max,
            messages_max,
            bare_newlines,
            offered,
            needs_tls,
            hold_max_s,
            lmtp,
            mechanisms,
            auth_without_tls,
            hops_max,
        } = options;
        let offered = extension::consistent(offered);
        let name_fits = (1..=DOMAIN_BYTES_MAX).contains(&server_name.len());
        if !name_fits || !server_name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ContextError::ServerName);
        }
        if recipients_max == 0 || messages_max == 0 {
            return Err(ContextError::LimitIsZero);
        }
        let context = Context {
            greeting: format!(
                "220 {server_name} {} ringmx ready\r\n",
                if lmtp { "LMTP" } else { "ESMTP" }
            )
            .into_bytes(),
            helo_reply: format!("250 {server_name}\r\n").into_bytes(),
            ehlo: EhloLines::new(
                &server_name,
                EhloNumbers {
                    message_bytes_max,
                    recipients_max,
                    messages_max,
                    hold_max_s,
                },
            ),
            help_reply: Vec::new(),
            help_reply_tls: Vec::new(),
            server_name,
            role,
            message_bytes_max,
            recipients_max,
            messages_max,
            bare_newlines,
            offered,
            needs_tls,
            hold_max_s,
            lmtp,
            mechanisms,
            auth_without_tls,
            hops_max,
        };
        let commands = |tls| {
            let services = context.services(tls, Offered::PROMISES, true);
            extension::help_reply(services.offered, lmtp)
        };
        let (help_reply, help_reply_tls) = (commands(false), commands(true));
        let context = Context {
            help_reply,
            help_reply_tls,
            ..context
        };
        debug_assert!(context.ehlo.bytes_max() <= CONFIGURED_REPLY_BYTES_MAX);
        for reply in [
            &context.greeting,
            &context.helo_reply,
            &context.help_reply,
            &context.help_reply_tls,
        ] {
            debug_assert!(reply.len() <= CONFIGURED_REPLY_BYTES_MAX);
        }
        Ok(context)
    }

    /// What is offered to a client that says EHLO now. Sinks promise nothing, so they offer everything; elsewhere
    /// `keeps` is what those who take the messages on have said that they keep. `is_bound`: the TLS channel has
    /// something to bind SCRAM to.
    pub fn services(&self, tls: bool, keeps: Offered, is_bound: bool) -> Services {
        let mut offered = self.offered.without(match tls {
            true => Offered::STARTTLS,
            false => Offered::REQUIRETLS,
        });
        if self.role != Role::Sink {
            offered = offered
                .without(Offered::PROMISES.without(keeps))
                .without(Offered::ETRN);
        }
        let mut mechanisms = Mechanisms::NONE;
        if tls || self.auth_without_tls {
            mechanisms = self.mechanisms;
        }
        if !is_bound {
            mechanisms = mechanisms.without(Mechanism::ScramSha256Plus);
        }
        if !mechanisms.is_empty() {
            offered = offered.with(Offered::AUTH);
        }
        Services {
            offered,
            mechanisms,
        }
    }

    /// The 250 to EHLO that offers this, CRLF included.
    pub fn ehlo_reply(&self, services: Services, wall_ns: u64) -> Composed {
        let Services {
            offered,
            mechanisms,
        } = services;
        self.ehlo.compose(offered, mechanisms, wall_ns)
    }
}

/// What a session offers after EHLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Services {
    /// Extensions.
    pub offered: Offered,
    /// Mechanisms of AUTH.
    pub mechanisms: Mechanisms,
}

impl Services {
    /// Nothing: the client said HELO, or nothing yet.
    const NONE: Services = Services {
        offered: Offered::NONE,
        mechanisms: Mechanisms::NONE,
    };
}

/// What [`Session::receive`] did with its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Octets that are done with. Fewer than given and `blocked` `None`: the rest is the beginning of a command
    /// line, shorter than [`COMMAND_LINE_BYTES_MAX`], or than [`AUTH_LINE_BYTES_MAX`] in AUTH, and has to be presented
    /// again with what follows it.
    pub consumed: usize,
    /// Why the session takes no more input for now, even when all of this one was consumed: call again when
    /// the reason is gone, with what was not consumed, though that be nothing.
    pub blocked: Option<Blocked>,
}

/// What a session waits for; time-outs are chosen by it (RFC 5321 4.5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The greeting has not been sent.
    Greeting,
    /// A command, outside a transaction.
    Command,
    /// A command inside a transaction.
    Envelope,
    /// Content after DATA.
    Data,
    /// Octets of a BDAT chunk.
    Bdat,
    /// A verdict or a commit: not the client's turn.
    Waiting,
    /// Nothing; the session is over.
    Closed,
    /// The TLS handshake that STARTTLS announced.
    Handshake,
}

impl Phase {
    /// Number of variants.
    pub const COUNT: usize = 8;
    /// Names in the order of the variants.
    pub const NAMES: [&'static str; Phase::COUNT] = [
        "greeting",
        "command",
        "envelope",
        "data",
        "bdat",
        "waiting",
        "closed",
        "handshake",
    ];
}

/// One SMTP session.
#[derive(Debug)]
pub struct Session {
    client: IpAddr,
    state: State,
    helo: HeloName,
    /// EHLO or LHLO rather than HELO was last.
    esmtp: bool,
    /// The session runs under TLS, with this cipher suite.
    tls: Option<&'static &'static str>,
    /// What the last EHLO offered.
    services: Services,
    auth: Option<Box<Auth>>,
    /// Authentications that failed; at most [`AUTH_FAILURES_MAX`].
    auth_failures: u8,
    /// A part of an authentication exchange was consumed.
    took_secret: bool,
    /// What a trusted client said about another.
    proxied: Option<Box<Proxied>>,
    /// The answer to what the command line at the front of the input asked.
    verdict: Option<Verdict>,
    /// Commands that got a 5xx of the session's own.
    errors: u32,
    /// Commands since the last accepted message that brought none.
    idle_commands: u32,
    /// MAIL commands that succeeded.
    messages: u32,
    work: WorkPlace,
}

/// What a session keeps of the message under way. Most sessions have none at most times, so that it stands in memory of
/// its own, which [`Session::lend`] and [`Session::reclaim`] hand from session to session.
#[derive(Debug)]
struct Work {
    transaction: Transaction,
    content: Content,
    chunk: Chunk,
    answers: Answers,
}

impl Work {
    const NONE: Work = Work {
        transaction: Transaction::NONE,
        content: Content::None,
        chunk: Chunk {
            left: 0,
            is_last: false,
            is_kept: false,
            refusal: None,
        },
        answers: Answers {
            left: 0,
            reply: None,
        },
    };
}

/// Memory for messages under way that no session needs now.
#[derive(Debug)]
#[expect(clippy::vec_box, reason = "the memory itself goes from hand to hand")]
pub struct SpareWork(Vec<Box<Work>>);

impl SpareWork {
    /// None yet, with room to keep what so many sessions give back.
    pub fn with_capacity(sessions: usize) -> SpareWork {
        SpareWork(Vec::with_capacity(sessions))
    }
}

/// [`Work`], or nothing to be seen. Only a change takes memory: what was lent, or else memory of its own.
#[derive(Debug)]
struct WorkPlace(Option<Box<Work>>);

impl Deref for WorkPlace {
    type Target = Work;

    fn deref(&self) -> &Work {
        static NONE: Work = Work::NONE;
        self.0.as_deref().unwrap_or(&NONE)
    }
}

impl DerefMut for WorkPlace {
    fn deref_mut(&mut self) -> &mut Work {
        self.0.get_or_insert_with(|| Box::new(Work::NONE))
    }
}

/// The replies that the end of a message still owes its other recipients (RFC 2033 4.2).
#[derive(Debug)]
struct Answers {
    left: u32,
    /// `None`: the message was stored.
    reply: Option<Reply>,
}

/// Who the client is. Boxed, because few clients say it.
#[derive(Debug)]
enum Auth {
    /// AUTH is under way.
    Exchange(Exchange),
    /// The password of this user is being checked.
    Checking(Box<str>),
    /// This user.
    User(Box<str>),
}

/// What XCLIENT and XFORWARD said. Bounded by their command lines.
#[derive(Debug, Default)]
struct Proxied {
    name: Option<Box<[u8]>>,
    helo: Option<Box<[u8]>>,
    esmtp: bool,
    login: Option<Box<str>>,
    /// Values of `xclient::FORWARDED`, as given, for the next message.
    forwarded: [Option<Box<[u8]>>; FORWARDED.len()],
}

/// A HELO name up to this long is kept without an allocation, bytes.
pub const HELO_INLINE_BYTES: usize = 30;

/// What the session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// [`Session::start`], or the verdict on the client itself.
    Greeting,
    /// A command line.
    Command,
    /// The verdict on the command line at the front of the input, which was not consumed.
    CommandVerdict,
    /// The end of a command line that is too long.
    LongLine,
    /// The client's part of an authentication exchange.
    AuthResponse,
    /// The end of a line of such an exchange that is too long.
    LongAuthLine,
    /// Whether a password is right.
    PasswordVerdict,
    /// Content after DATA, up to CRLF "." CRLF.
    Data,
    /// The rest of a BDAT chunk, or its end when nothing is left of it.
    Chunk,
    /// The verdict on a message that is complete.
    MessageVerdict,
    /// The commit of a message that is complete.
    Commit,
    /// Room for the replies that the end of a message owes its other recipients.
    Answers,
    /// The end of the TLS handshake.
    Handshake,
    /// Nothing.
    Closed,
}

/// Domain or address literal of the client, as given.
#[derive(Debug)]
enum HeloName {
    /// Neither HELO nor EHLO yet.
    None,
    Inline {
        len: u8,
        bytes: [u8; HELO_INLINE_BYTES],
    },
    Long(Box<[u8]>),
}

impl HeloName {
    fn new(name: &[u8]) -> HeloName {
        let mut bytes = [0; HELO_INLINE_BYTES];
        match bytes.get_mut(..name.len()) {
            Some(front) => {
                front.copy_from_slice(name);
                HeloName::Inline {
                    len: name.len() as u8,
                    bytes,
                }
            }
            None => HeloName::Long(name.into()),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            HeloName::None => &[],
            HeloName::Inline { len, bytes } => &bytes[..usize::from(*len)],
            HeloName::Long(name) => name,
        }
    }
}

/// How far a transaction is (RFC 5321 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There is none; MAIL may follow.
    None,
    /// MAIL was accepted; RCPT, DATA or BDAT may follow.
    Envelope,
    /// A BDAT was accepted; only BDAT may follow.
    Chunks,
    /// It can't succeed any more: this reply answers everything but RSET, EHLO, HELO and QUIT.
    Failed(Reply),
}

/// What MAIL begins, and RSET, EHLO, HELO and the end of the message clear.
#[derive(Debug)]
struct Transaction {
    stage: Stage,
    /// The sink holds an open message.
    is_open: bool,
    /// The content can't be accepted any more; its octets are counted and dropped.
    is_discarding: bool,
    smtputf8: bool,
    /// MT-PRIORITY that the message has.
    priority: Option<i8>,
    /// One of `BODY_*`.
    body: u8,
    /// Received fields that it came with; counted only where their number is limited.
    hops: Hops,
    recipients: u32,
    /// Declared SIZE plus one, octets; 0 when none was declared. Saturates.
    declared_size_plus_1: u64,
    started: Instant,
    data_started: Instant,
}

impl Transaction {
    const NONE: Transaction = Transaction {
        stage: Stage::None,
        is_open: false,
        is_discarding: false,
        smtputf8: false,
        priority: None,
        body: BODY_UNSTATED,
        hops: Hops::NONE,
        recipients: 0,
        declared_size_plus_1: 0,
        started: Instant(0),
        data_started: Instant(0),
    };
}

/// The content of the message, as it comes.
#[derive(Debug)]
enum Content {
    /// There is none.
    None,
    /// By DATA.
    Data(Decoder),
    /// By BDAT, in lines.
    Text(Checker),
    /// By BDAT, any octets (BODY=BINARYMIME); their number.
    Binary(u64),
}

impl Content {
    fn facts(&self) -> ContentFacts {
        match self {
            Content::None => ContentFacts::default(),
            Content::Data(decoder) => decoder.facts(),
            Content::Text(checker) => checker.facts(),
            Content::Binary(octets) => ContentFacts {
                octets: *octets,
                ..ContentFacts::default()
            },
        }
    }
}

/// The BDAT chunk whose octets arrive.
#[derive(Debug)]
struct Chunk {
    /// Octets that are still to come.
    left: u64,
    /// LAST was given.
    is_last: bool,
    /// Nothing is inserted into text: the message octets are the octets that come.
    is_kept: bool,
    /// The reply that this BDAT gets once its octets have been dropped (RFC 3030 2: accept and discard).
    refusal: Option<Reply>,
}

/// How a command ends.
enum Outcome {
    /// With this reply, which counts as an error when it is a 5xx.
    Reply(Reply),
    /// With the reply of a verdict.
    Refused(Reply),
    /// With the reply of a verdict, and the session with it.
    RefusedAndClosed(Reply),
    /// With the 220 of STARTTLS; the handshake follows.
    Handshake,
    /// The reply has been sent, or follows the content.
    Done,
    /// Not yet: a verdict comes first, and the line is presented again.
    Awaits,
}

/// Octets consumed, or why none were.
enum Step {
    Took(usize),
    Partial,
    Blocked(Blocked),
}

impl Session {
    /// A session with this client; nothing is sent before [`Session::start`].
    pub fn new(client: IpAddr) -> Session {
        Session {
            client,
            state: State::Greeting,
            helo: HeloName::None,
            esmtp: false,
            tls: None,
            services: Services::NONE,
            auth: None,
            auth_failures: 0,
            took_secret: false,
            proxied: None,
            verdict: None,
            errors: 0,
            idle_commands: 0,
            messages: 0,
            work: WorkPlace(None),
        }
    }

    /// Lends memory that another session has given back, for the message that the next input may begin. A session to
    /// which nothing is lent takes memory of its own.
    pub fn lend(&mut self, spare: &mut SpareWork) {
        if self.work.0.is_none() {
            self.work.0 = spare.0.pop();
        }
    }

    /// Takes that memory back where no message is under way, nor replies to its end are owed.
    pub fn reclaim(&mut self, spare: &mut SpareWork) {
        let Some(work) = &mut self.work.0 else {
            return;
        };
        let is_at_rest = work.transaction.stage == Stage::None
            && work.answers.left == 0
            && !matches!(self.state, State::Chunk | State::Commit | State::Answers);
        if is_at_rest {
            **work = Work::NONE;
            spare.0.extend(self.work.0.take());
        }
    }

    /// Asks whether the client may connect, and greets it unless the answer comes later. Called once.
    pub fn start(&mut self, ctx: &Context, out: &mut impl Sink) {
        if let Some(verdict) = out.ask(Question::Connect) {
            self.greet(ctx, verdict, out);
        }
    }

    /// Takes input; may stop early, see [`Progress`]. Never blocks.
    ///
    /// `now` is the monotonic clock, `wall_ns` nanoseconds since 1970.
    /// **Bounds:** work is linear in `input.len()`.
    pub fn receive(
        &mut self,
        ctx: &Context,
        input: &[u8],
        now: Instant,
        wall_ns: u64,
        out: &mut impl Sink,
    ) -> Progress {
        let mut consumed = 0;
        loop {
            let rest = &input[consumed..];
            let step = match self.state {
                State::Greeting
                | State::CommandVerdict
                | State::MessageVerdict
                | State::PasswordVerdict => Step::Blocked(Blocked::Verdict),
                State::Commit => Step::Blocked(Blocked::Commit),
                State::Handshake => Step::Blocked(Blocked::Tls),
                State::Closed => Step::Blocked(Blocked::Closed),
                State::Chunk if self.work.chunk.left == 0 => self.finish_chunk(ctx, out),
                State::Answers => self.answer_next(out),
                _ if rest.is_empty() => Step::Partial,
                // Content is covered too: its end takes a reply.
                _ if !out.has_room() => Step::Blocked(Blocked::Replies),
                State::Command => self.receive_line(ctx, rest, now, wall_ns, out),
                State::LongLine | State::LongAuthLine => self.receive_long_line(rest, out),
                State::AuthResponse => self.receive_auth_line(rest, out),
                State::Data => self.receive_data(ctx, rest, out),
                State::Chunk => self.receive_chunk(ctx, rest, out),
            };
            let blocked = match step {
                Step::Took(octets) => {
                    consumed += octets;
                    continue;
                }
                Step::Partial => None,
                Step::Blocked(blocked) => Some(blocked),
            };
            return Progress { consumed, blocked };
        }
    }

    /// Whether the next octets are message content that may be read straight into the message's storage and
    /// given to [`Session::receive_in_place`]. False while content is dropped: it needs no storage then.
    ///
    /// The caller checks [`Sink::has_room`] as well, because the content's end takes a reply.
    pub fn can_receive_in_place(&self) -> bool {
        if self.is_discarding() || (self.state == State::Chunk && self.work.chunk.left == 0) {
            return false;
        }
        match (self.state, &self.work.content) {
            (State::Data, Content::Data(decoder)) => decoder.can_decode_in_place(),
            (State::Chunk, Content::Text(_)) => self.work.chunk.is_kept,
            (State::Chunk, Content::Binary(_)) => true,
            _ => false,
        }
    }

    /// Octets of content that are still to come, by what the client says (SIZE of RFC 1870, BDAT's length); 0 when it
    /// does not say. What has come of DATA is not subtracted.
    pub fn announced_octets(&self) -> u64 {
        match self.state {
            State::Data => self.work.transaction.declared_size_plus_1.saturating_sub(1),
            State::Chunk => self.work.chunk.left,
            _ => 0,
        }
    }

    /// Takes octets that were just read from the socket behind the message's storage: decodes them and moves
    /// the message octets to the front of `buf`. `kept` is 0 when the message is being dropped; then the sink
    /// hears of it at the next `receive` or `end_in_place`. `end`: call [`Session::end_in_place`] next.
    ///
    /// Takes nothing when [`Session::can_receive_in_place`] is false.
    pub fn receive_in_place(&mut self, ctx: &Context, buf: &mut [u8]) -> InPlace {
        let mut taken = InPlace {
            consumed: 0,
            kept: 0,
            end: false,
        };
        if !self.can_receive_in_place() {
            return taken;
        }
        if let Content::Data(decoder) = &mut self.work.content {
            taken = decoder.decode_in_place(buf);
        } else {
            let octets = self.chunk_part(buf.len());
            match &mut self.work.content {
                Content::Text(checker) => checker.check(&buf[..octets], |_| {}),
                Content::Binary(total) => *total = total.saturating_add(octets as u64),
                Content::None | Content::Data(_) => {}
            }
            self.work.chunk.left -= octets as u64;
            taken.consumed = octets;
            taken.kept = octets;
            taken.end = self.work.chunk.left == 0;
        }
        if ctx.hops_max.is_some() {
            self.work.transaction.hops.take(&buf[..taken.kept]);
        }
        if self.content_refusal(ctx).is_some() {
            self.work.transaction.is_discarding = true;
            taken.kept = 0;
        }
        taken
    }

    /// Ends the content or the chunk after `receive_in_place` said so, as `receive` would have.
    pub fn end_in_place(&mut self, ctx: &Context, out: &mut impl Sink) {
        match self.state {
            State::Data => self.end_of_data(ctx, out),
            State::Chunk if self.work.chunk.left == 0 => self.end_of_chunk(ctx, out),
            _ => {}
        }
    }

    /// Takes the answer after [`Blocked::Verdict`]. Call [`Session::receive`] next, with the input that was
    /// not consumed: a command that waited is executed when its line is presented again.
    pub fn answer(&mut self, ctx: &Context, verdict: Verdict, out: &mut impl Sink) {
        match self.state {
            State::Greeting => self.greet(ctx, verdict, out),
            State::CommandVerdict => {
                self.verdict = Some(verdict);
                self.state = State::Command;
            }
            State::MessageVerdict => self.conclude(ctx, verdict, out),
            // The session was closed meanwhile.
            _ => {}
        }
    }

    /// Whether [`Session::receive`] has something to do without input, as soon as there is room for a reply.
    pub fn owes_reply(&self) -> bool {
        match self.state {
            State::Chunk => self.work.chunk.left == 0,
            State::Answers => true,
            _ => false,
        }
    }

    /// Takes the result of a commit after [`Blocked::Commit`]. `Ok`: the caller has put the 250 into the reply
    /// queue itself, because it names the message. Call [`Session::receive`] next, with whatever input there is.
    pub fn completed(&mut self, result: Result<(), Reply>, out: &mut impl Sink) {
        if self.state == State::Commit {
            self.state = State::Command;
            if self.work.answers.left > 0 {
                self.work.answers.reply = result.err();
            }
            if let Err(reply) = result {
                out.reply(reply);
            }
            self.answer_others();
        }
    }

    /// The TLS handshake succeeded. What the client said before it is forgotten (RFC 3207 4.2), but not how many
    /// errors it made. Where TLS comes before the greeting (RFC 8314 3), call [`Session::start`] next; otherwise
    /// [`Session::receive`], with octets that came under TLS alone.
    ///
    /// `cipher` is the suite's registered name; it goes into trace fields (RFC 8314 4.3). A reference to it is half as
    /// large as the name, and sessions are many.
    pub fn secured(&mut self, cipher: &'static &'static str) {
        self.tls = Some(cipher);
        self.helo = HeloName::None;
        self.esmtp = false;
        self.services = Services::NONE;
        self.auth = None;
        self.proxied = None;
        self.verdict = None;
        if self.state == State::Handshake {
            self.state = State::Command;
        }
    }

    /// Whether the session runs under TLS.
    pub fn is_secured(&self) -> bool {
        self.tls.is_some()
    }

    /// Takes the answer to [`Sink::check_password`]. Call [`Session::receive`] next.
    pub fn password_checked(&mut self, verdict: PasswordVerdict, out: &mut impl Sink) {
        if self.state == State::PasswordVerdict {
            self.state = State::Command;
            self.conclude_password(verdict, out);
        }
    }

    /// Whether input that was consumed since the last call held secrets: its buffers are to be wiped.
    pub fn took_secret(&mut self) -> bool {
        core::mem::take(&mut self.took_secret)
    }

    /// The user that the client has authenticated as.
    pub fn user(&self) -> Option<&str> {
        match self.auth.as_deref() {
            Some(Auth::User(user)) => Some(user),
            _ => None,
        }
    }

    /// What the session waits for.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Greeting => Phase::Greeting,
            State::Command | State::LongLine | State::AuthResponse | State::LongAuthLine => {
                match self.work.transaction.stage {
                    Stage::None => Phase::Command,
                    _ => Phase::Envelope,
                }
            }
            State::Data => Phase::Data,
            State::Chunk => Phase::Bdat,
            State::CommandVerdict
            | State::MessageVerdict
            | State::PasswordVerdict
            | State::Commit => Phase::Waiting,
            State::Answers => Phase::Command,
            State::Handshake => Phase::Handshake,
            State::Closed => Phase::Closed,
        }
    }

    /// Octets of the content that has come so far, transparency undone; 0 outside of a message.
    pub fn content_octets(&self) -> u64 {
        self.work.content.facts().octets
    }

    /// Whether the message that arrives is dropped as it comes, because it can't be accepted any more.
    pub fn is_discarding(&self) -> bool {
        self.work.transaction.is_discarding || self.work.chunk.refusal.is_some()
    }

    /// Whether the octets that come are those of a command line that is too long, and dropped up to its end.
    pub fn is_within_long_line(&self) -> bool {
        self.state == State::LongLine
    }

    /// Client's address.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// Argument of the last HELO or EHLO, as given; empty before it.
    pub fn helo(&self) -> &[u8] {
        self.helo.as_bytes()
    }

    /// Ends the session for the server's own reason with this reply ([`Reply::TimedOut`], [`Reply::TooSlow`],
    /// [`Reply::ShuttingDown`], ...), wherever it stands. An open message is dropped; one that is being
    /// committed is not touched.
    pub fn timed_out(&mut self, reply: Reply, out: &mut impl Sink) {
        let reason = match reply {
            Reply::TimedOut | Reply::TooSlow => CloseReason::TimedOut,
            _ => CloseReason::Refused,
        };
        if self.state != State::Closed {
            self.close(reply, reason, out);
        }
    }

    /// The client is gone: drops the open message. Nothing is sent.
    pub fn connection_lost(&mut self, out: &mut impl Sink) {
        self.clear_transaction(out);
        self.auth = None;
        self.state = State::Closed;
    }

    fn greet(&mut self, ctx: &Context, verdict: Verdict, out: &mut impl Sink) {
        match verdict {
            Verdict::Accept => {
                out.reply_configured(Reply::Greeting, &ctx.greeting);
                self.state = State::Command;
            }
            // RFC 5321 3.1 lets a refused client stay until its QUIT; nothing is gained by that.
            Verdict::Refuse(reply) | Verdict::RefuseAndClose(reply) => {
                self.close(reply, CloseReason::Refused, out);
            }
        }
    }

    /// Takes one command line, if all of it is there.
    fn receive_line(
        &mut self,
        ctx: &Context,
        rest: &[u8],
        now: Instant,
        wall_ns: u64,
        out: &mut impl Sink,
    ) -> Step {
        let window = &rest[..rest.len().min(COMMAND_LINE_BYTES_MAX)];
        let is_auth = self.is_auth_line(rest);
        let window = if is_auth {
            &rest[..rest.len().min(AUTH_LINE_BYTES_MAX)]
        } else {
            window
        };
        let Some(at) = memchr(b'\n', window) else {
            let (bytes_max, long) = if is_auth {
                (AUTH_LINE_BYTES_MAX, State::LongAuthLine)
            } else {
                (COMMAND_LINE_BYTES_MAX, State::LongLine)
            };
            if window.len() < bytes_max {
                return Step::Partial;
            }
            self.state = long;
            return Step::Took(window.len());
        };
        // RFC 5321 2.3.8: LF alone ends no command. The line is refused at once all the same, so that someone
        // who types into a plain TCP client is told instead of left waiting.
        let Some(line) = window[..at].strip_suffix(b"\r") else {
            out.command(Verb::Other);
            self.reply(Reply::LineEndsInLf, out);
            return Step::Took(at + 1);
        };
        let parsed = command::parse(line);
        // TLS replaces the octet stream: no reply may be due in the old one when it begins.
        if matches!(parsed.command, Ok(Command::StartTls))
            && !self.is_secured()
            && ctx.offered.has(Offered::STARTTLS)
            && out.commits_pending() > 0
        {
            return Step::Blocked(Blocked::Commits);
        }
        let prior = self.verdict.take();
        if prior.is_none() {
            out.command(parsed.verb);
        }
        let is_first_helo =
            matches!(parsed.verb, Verb::Helo | Verb::Ehlo) && self.helo().is_empty();
        if parsed.verb.is_idle() && prior.is_none() && !is_first_helo {
            self.idle_commands = self.idle_commands.saturating_add(1);
            let most = out.idle_commands_max();
            if most.is_some_and(|most| self.idle_commands > most) {
                self.close(Reply::TooManyIdleCommands, CloseReason::Refused, out);
                return Step::Took(at + 1);
            }
        }
        let outcome = match parsed.command {
            Ok(command)
                if ctx.needs_tls && !self.is_secured() && !is_allowed_before_tls(&command) =>
            {
                self.refuse_without_tls(&command)
            }
            Ok(Command::StartTls) => self.start_tls(ctx, rest.len() > at + 1, out),
            Ok(command) => self.execute(ctx, command, prior, (now, wall_ns), out),
            Err(reply) => self.refuse_line(parsed.verb, reply),
        };
        match outcome {
            Outcome::Reply(reply) => self.reply(reply, out),
            Outcome::Refused(reply) => self.reply(reply, out),
            Outcome::RefusedAndClosed(reply) => self.close(reply, CloseReason::Refused, out),
            Outcome::Handshake => {
                self.clear_transaction(out);
                out.reply(Reply::StartTls);
                self.state = State::Handshake;
            }
            Outcome::Done => {}
            Outcome::Awaits => {
                self.state = State::CommandVerdict;
                return Step::Blocked(Blocked::Verdict);
            }
        }
        Step::Took(at + 1)
    }

    /// Drops octets up to the end of a line that is too long.
    fn receive_long_line(&mut self, rest: &[u8], out: &mut impl Sink) -> Step {
        let Some(at) = memchr(b'\n', rest) else {
            return Step::Took(rest.len());
        };
        let reply = match self.state {
            State::LongAuthLine => Reply::AuthLineTooLong,
            _ => Reply::LineTooLong,
        };
        self.state = State::Command;
        if matches!(self.auth.as_deref(), Some(Auth::Exchange(_))) {
            self.auth = None;
        } else {
            out.command(Verb::Other);
        }
        self.reply(reply, out);
        Step::Took(at + 1)
    }

    /// Whether `rest` begins as an AUTH command that may be longer than any other.
    fn is_auth_line(&self, rest: &[u8]) -> bool {
        self.services.offered.has(Offered::AUTH)
            && rest
                .get(..5)
                .is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH "))
    }

    /// Takes one line of an authentication exchange, if all of it is there.
    fn receive_auth_line(&mut self, rest: &[u8], out: &mut impl Sink) -> Step {
        let window = &rest[..rest.len().min(AUTH_LINE_BYTES_MAX)];
        let Some(at) = memchr(b'\n', window) else {
            if window.len() < AUTH_LINE_BYTES_MAX {
                return Step::Partial;
            }
            self.state = State::LongAuthLine;
            return Step::Took(window.len());
        };
        self.took_secret = true;
        self.state = State::Command;
        match window[..at].strip_suffix(b"\r") {
            None => self.end_exchange(Reply::LineEndsInLf, out),
            // RFC 4954 4: the client gives up.
            Some(b"*") => self.end_exchange(Reply::AuthCancelled, out),
            Some(line) => self.auth_message(line, out),
        }
        Step::Took(at + 1)
    }

    /// AUTH (RFC 4954 4).
    fn auth(&mut self, ctx: &Context, arguments: &[u8], out: &mut impl Sink) -> Outcome {
        self.took_secret = true;
        if ctx.mechanisms.is_empty() {
            return Outcome::Reply(Reply::NotImplemented);
        }
        if self.user().is_some() {
            return Outcome::Reply(Reply::AlreadyAuthenticated);
        }
        if self.work.transaction.stage != Stage::None {
            return Outcome::Reply(Reply::NotInTransaction);
        }
        if !self.is_secured() && !ctx.auth_without_tls {
            return Outcome::Reply(Reply::EncryptionRequired);
        }
        if !self.services.offered.has(Offered::AUTH) {
            // AUTH is an extension: it has to be offered first.
            return Outcome::Reply(if matches!(self.helo, HeloName::None) {
                Reply::NeedHelo
            } else {
                Reply::NotImplemented
            });
        }
        let mut words = arguments
            .split(|octet| matches!(octet, b' ' | b'\t'))
            .filter(|word| !word.is_empty());
        let (name, initial) = (words.next().unwrap_or_default(), words.next());
        if words.next().is_some() {
            return Outcome::Reply(Reply::AuthSyntax);
        }
        let offered = Mechanism::named(name).filter(|name| self.services.mechanisms.has(*name));
        let Some(mechanism) = offered else {
            return Outcome::Reply(Reply::MechanismUnknown);
        };
        let plus_offered = self.services.mechanisms.has(Mechanism::ScramSha256Plus);
        let exchange = Exchange::new(mechanism, plus_offered);
        match initial {
            None => {
                challenge(exchange.first_challenge(), out);
                self.auth = Some(Box::new(Auth::Exchange(exchange)));
                self.state = State::AuthResponse;
            }
            Some(initial) => {
                self.auth = Some(Box::new(Auth::Exchange(exchange)));
                // RFC 4954 4: a single "=" is an initial response without octets.
                self.auth_message(if initial == b"=" { b"" } else { initial }, out);
            }
        }
        Outcome::Done
    }

    /// Takes a message of the exchange, in base64.
    fn auth_message(&mut self, text: &[u8], out: &mut impl Sink) {
        let Some(Auth::Exchange(exchange)) = self.auth.as_deref_mut() else {
            return;
        };
        let mut room: Room = Zeroizing::new([0; ROOM_BYTES]);
        let Some(len) = base64::decode(text, &mut *room) else {
            return self.end_exchange(Reply::AuthMalformed, out);
        };
        let message = &room[..len];
        match exchange.step(message, &mut Around(out)) {
            Next::Challenge(bytes) => {
                challenge(&bytes, out);
                self.state = State::AuthResponse;
            }
            Next::Password { user, from } => {
                let verdict = out.check_password(&user, &message[from..]);
                self.auth = Some(Box::new(Auth::Checking(user)));
                match verdict {
                    Some(verdict) => self.conclude_password(verdict, out),
                    None => self.state = State::PasswordVerdict,
                }
            }
            Next::Success(user) => self.authenticated(user, out),
            Next::Failure(Failure::Malformed) => self.end_exchange(Reply::AuthMalformed, out),
            Next::Failure(Failure::Refused) => self.auth_failed(out),
        }
    }

    fn conclude_password(&mut self, verdict: PasswordVerdict, out: &mut impl Sink) {
        let user = match self.auth.take().map(|auth| *auth) {
            Some(Auth::Checking(user)) => Some(user),
            _ => None,
        };
        match (verdict, user) {
            (PasswordVerdict::Right, Some(user)) => self.authenticated(user, out),
            (PasswordVerdict::Busy, _) => out.reply(Reply::AuthBusy),
            _ => self.auth_failed(out),
        }
    }

    fn authenticated(&mut self, user: Box<str>, out: &mut impl Sink) {
        self.auth = Some(Box::new(Auth::User(user)));
        out.user_is_known(true);
        out.reply(Reply::AuthOk);
    }

    /// Ends an exchange that said nothing about the password.
    fn end_exchange(&mut self, reply: Reply, out: &mut impl Sink) {
        self.auth = None;
        self.reply(reply, out);
    }

    fn auth_failed(&mut self, out: &mut impl Sink) {
        self.auth = None;
        self.auth_failures = self.auth_failures.saturating_add(1);
        if u32::from(self.auth_failures) >= AUTH_FAILURES_MAX {
            return self.close(Reply::TooManyAuthFailures, CloseReason::Refused, out);
        }
        self.reply(Reply::AuthFailed, out);
    }

    /// Decides about a line that is no command.
    fn refuse_line(&mut self, verb: Verb, reply: Reply) -> Outcome {
        if reply == Reply::NotSmtp {
            // A browser that was tricked into posting here would have the body of its request executed.
            return Outcome::RefusedAndClosed(reply);
        }
        if verb == Verb::Bdat {
            // RFC 3030 2: the state after a failed BDAT is indeterminate until RSET.
            self.fail_transaction();
        }
        Outcome::Reply(reply)
    }

    /// Decides about a command that this listener takes under TLS alone (RFC 3207 4).
    fn refuse_without_tls(&mut self, command: &Command<'_>) -> Outcome {
        let Command::Bdat { size, last } = *command else {
            return Outcome::Reply(Reply::NeedTls);
        };
        // RFC 3030 2: the octets of a chunk that is refused are read all the same.
        self.work.chunk = Chunk {
            left: size,
            is_last: last,
            is_kept: true,
            refusal: Some(Reply::NeedTls),
        };
        self.state = State::Chunk;
        Outcome::Done
    }

    /// Decides about STARTTLS. `has_more`: octets stand behind its line.
    fn start_tls(&mut self, ctx: &Context, has_more: bool, out: &mut impl Sink) -> Outcome {
        if self.is_secured() {
            return Outcome::Reply(Reply::TlsActive);
        }
        if !ctx.offered.has(Offered::STARTTLS) {
            return Outcome::Reply(Reply::NotImplemented);
        }
        if self.work.transaction.stage == Stage::Chunks {
            return Outcome::Reply(Reply::BdatOpen);
        }
        // RFC 3207 4: STARTTLS is the last command of a group, and the handshake begins behind the 220. What stands
        // here was sent in the clear, by the client or by someone between: executed under TLS it would be taken for
        // the client's (CVE-2011-0411). Dropping it in silence would hide an attack from both sides and leave a client
        // that pipelines waiting, so that the session ends.
        if has_more {
            return Outcome::RefusedAndClosed(Reply::StartTlsPipelined);
        }
        if let Some(reply) = out.handshake_refusal() {
            return Outcome::Refused(reply);
        }
        if !out.may_start_tls() {
            return Outcome::Refused(Reply::TlsUnavailable);
        }
        Outcome::Handshake
    }

    fn execute(
        &mut self,
        ctx: &Context,
        command: Command<'_>,
        prior: Option<Verdict>,
        (now, wall_ns): (Instant, u64),
        out: &mut impl Sink,
    ) -> Outcome {
        match command {
            Command::Helo(_) | Command::Ehlo(_) if ctx.lmtp => Outcome::Reply(Reply::WrongProtocol),
            Command::Lhlo(_) if !ctx.lmtp => Outcome::Reply(Reply::WrongProtocol),
            Command::Helo(name) => self.helo_or_ehlo(ctx, name, false, prior, wall_ns, out),
            Command::Ehlo(name) | Command::Lhlo(name) => {
                self.helo_or_ehlo(ctx, name, true, prior, wall_ns, out)
            }
            Command::Mail { path, parameters } => {
                self.mail(ctx, path, parameters, prior, (now, wall_ns), out)
            }
            Command::Rcpt { path, parameters } => self.rcpt(ctx, path, parameters, prior, out),
            Command::Data => self.data(ctx, prior, (now, wall_ns), out),
            Command::Bdat { size, last } => self.bdat(ctx, size, last, prior, (now, wall_ns), out),
            Command::Rset => {
                self.clear_transaction(out);
                Outcome::Reply(Reply::Rset)
            }
            Command::Noop => Outcome::Reply(Reply::Noop),
            Command::Vrfy(_) => Outcome::Reply(Reply::VrfyUnverified),
            Command::Help(_) => {
                let commands = if self.is_secured() {
                    &ctx.help_reply_tls
                } else {
                    &ctx.help_reply
                };
                out.reply_configured(Reply::Help, commands);
                Outcome::Done
            }
            Command::Quit => {
                self.close(Reply::Quit, CloseReason::Quit, out);
                Outcome::Done
            }
            Command::Auth(arguments) => self.auth(ctx, arguments, out),
            // STARTTLS is decided about by `start_tls`.
            Command::StartTls => Outcome::Reply(Reply::NotImplemented),
            Command::Etrn(node) => self.etrn(node, prior, out),
            Command::Xclient(attributes) => self.xclient(ctx, attributes, out),
            Command::Xforward(attributes) => self.xforward(attributes),
            Command::Expn(_) | Command::NotImplemented => Outcome::Reply(Reply::NotImplemented),
        }
    }

    fn helo_or_ehlo(
        &mut self,
        ctx: &Context,
        name: &[u8],
        esmtp: bool,
        prior: Option<Verdict>,
        wall_ns: u64,
        out: &mut impl Sink,
    ) -> Outcome {
        match prior.or_else(|| out.ask(Question::Helo(name))) {
            None => return Outcome::Awaits,
            Some(Verdict::Refuse(reply)) => return Outcome::Refused(reply),
            Some(Verdict::RefuseAndClose(reply)) => return Outcome::RefusedAndClosed(reply),
            Some(Verdict::Accept) => {}
        }
        // RFC 5321 4.1.4: clears all buffers, as RSET does.
        self.clear_transaction(out);
        self.helo = HeloName::new(name);
        self.esmtp = esmtp;
        if esmtp {
            let is_bound = !ctx.mechanisms.is_empty() && is_bound(out);
            self.services = ctx.services(self.is_secured(), out.keeps(), is_bound);
            self.services.offered = self.services.offered.with(out.trusts());
            let reply = ctx.ehlo_reply(self.services, wall_ns);
            out.reply_configured(Reply::Ehlo, reply.as_bytes());
        } else {
            self.services = Services::NONE;
            out.reply_configured(Reply::Helo, &ctx.helo_reply);
        }
        Outcome::Done
    }

    /// XCLIENT: the session begins again, for the client that is named.
    fn xclient(&mut self, ctx: &Context, attributes: &[u8], out: &mut impl Sink) -> Outcome {
        if !self.services.offered.has(Offered::XCLIENT) {
            return Outcome::Reply(Reply::NotImplemented);
        }
        if self.work.transaction.stage != Stage::None {
            return Outcome::Reply(Reply::NotInTransaction);
        }
        let Some(said) = xclient::parse_client(attributes) else {
            return Outcome::Reply(Reply::AttributesMalformed);
        };
        // What an earlier XCLIENT said stands until it is said otherwise.
        let proxied = self.proxied.get_or_insert_default();
        if let Some(name) = said.name {
            proxied.name = name;
        }
        if let Some(helo) = said.helo {
            proxied.helo = helo;
        }
        if let Some(esmtp) = said.esmtp {
            proxied.esmtp = esmtp;
        }
        if let Some(login) = said.login {
            proxied.login = login;
        }
        let (client, listener) = out.addresses();
        let changed = |old: SocketAddr, ip: Option<Option<IpAddr>>, port: Option<Option<u16>>| {
            let unknown = IpAddr::from([0, 0, 0, 0]);
            let ip_is_new = ip.is_some();
            let ip = ip.map_or(old.ip(), |ip| ip.unwrap_or(unknown));
            // The port of another address says nothing.
            let old_port = if ip_is_new { 0 } else { old.port() };
            SocketAddr::new(ip, port.map_or(old_port, Option::unwrap_or_default))
        };
        let client = changed(client, said.address, said.port);
        let listener = (said.destination.is_some() || said.destination_port.is_some())
            .then(|| changed(listener, said.destination, said.destination_port));
        self.helo = proxied
            .helo
            .as_deref()
            .map_or(HeloName::None, HeloName::new);
        self.esmtp = proxied.esmtp;
        let user = proxied.login.clone();
        self.auth = user.map(|user| Box::new(Auth::User(user)));
        out.user_is_known(self.user().is_some());
        if said.address.is_some() || said.port.is_some() {
            self.client = client.ip();
            out.client_is(Some(client), listener);
        } else if listener.is_some() {
            out.client_is(None, listener);
        }
        self.services = Services::NONE;
        self.verdict = None;
        self.state = State::Greeting;
        self.start(ctx, out);
        Outcome::Done
    }

    /// XFORWARD: where the next message came from, for logs alone.
    fn xforward(&mut self, attributes: &[u8]) -> Outcome {
        if !self.services.offered.has(Offered::XFORWARD) {
            return Outcome::Reply(Reply::NotImplemented);
        }
        if self.work.transaction.stage != Stage::None {
            return Outcome::Reply(Reply::NotInTransaction);
        }
        let Some(said) = xclient::parse_forwarded(attributes) else {
            return Outcome::Reply(Reply::AttributesMalformed);
        };
        let proxied = self.proxied.get_or_insert_default();
        for (at, value) in said {
            if let Some(place) = proxied.forwarded.get_mut(usize::from(at)) {
                *place = Some(value.into());
            }
        }
        Outcome::Reply(Reply::XforwardOk)
    }

    /// Puts what XCLIENT and XFORWARD said into the envelope; false when it is full.
    fn store_proxied(&self, out: &mut impl Sink) -> bool {
        let Some(proxied) = &self.proxied else {
            return true;
        };
        let mut parts: Vec<&[u8]> = Vec::new();
        for (name, value) in FORWARDED.iter().zip(&proxied.forwarded) {
            if let Some(value) = value {
                let separator: &[u8] = if parts.is_empty() { b"" } else { b" " };
                parts.extend([separator, name.as_bytes(), b"=", value]);
            }
        }
        let named = proxied.name.as_deref();
        named.is_none_or(|name| out.envelope_field(Field::ClientName, &[name]))
            && (parts.is_empty() || out.envelope_field(Field::Forwarded, &parts))
    }

    /// RFC 1985 5.
    fn etrn(&mut self, node: &[u8], prior: Option<Verdict>, out: &mut impl Sink) -> Outcome {
        if !self.services.offered.has(Offered::ETRN) {
            return Outcome::Reply(Reply::NotImplemented);
        }
        if self.work.transaction.stage != Stage::None {
            return Outcome::Reply(Reply::NotInTransaction);
        }
        match prior.or_else(|| out.ask(Question::Etrn { node })) {
            None => Outcome::Awaits,
            Some(Verdict::Refuse(reply)) => Outcome::Refused(reply),
            Some(Verdict::RefuseAndClose(reply)) => Outcome::RefusedAndClosed(reply),
            Some(Verdict::Accept) => Outcome::Reply(Reply::EtrnStarted),
        }
    }

    fn mail(
        &mut self,
        ctx: &Context,
        path: ReversePath<'_>,
        parameters: &[u8],
        prior: Option<Verdict>,
        (now, wall_ns): (Instant, u64),
        out: &mut impl Sink,
    ) -> Outcome {
        if matches!(self.helo, HeloName::None) {
            return Outcome::Reply(Reply::NeedHelo);
        }
        if ctx.role == Role::Submission && self.user().is_none() {
            return Outcome::Reply(Reply::AuthRequired);
        }
        match self.work.transaction.stage {
            Stage::None => {}
            Stage::Envelope => return Outcome::Reply(Reply::NestedMail),
            Stage::Chunks => return Outcome::Reply(Reply::BdatOpen),
            Stage::Failed(reply) => return Outcome::Reply(reply),
        }
        let given = match parameter::parse_mail(parameters, self.services.offered) {
            Ok(given) => given,
            Err(reply) => return Outcome::Reply(reply),
        };
        if !path.ascii && !given.smtputf8 {
            return Outcome::Reply(Reply::SenderNeedsUtf8);
        }
        if given.size.is_some_and(|size| size > ctx.message_bytes_max) {
            return Outcome::Reply(Reply::TooBig);
        }
        let Some(times) = Times::of(&given, wall_ns, ctx.hold_max_s) else {
            return Outcome::Reply(Reply::ParameterMalformed);
        };
        if self.messages >= ctx.messages_max {
            return Outcome::Reply(Reply::TooManyMessages);
        }
        // RFC 6710 4.1: only who is trusted may raise a priority. A sink takes what it is given, and submission wants
        // AUTH before MAIL.
        let is_lowered =
            ctx.role == Role::Mx && given.priority.is_some_and(|priority| priority > 0);
        let priority = if is_lowered { Some(0) } else { given.priority };
        let question = Question::Mail {
            path: path.mailbox,
            size: given.size,
        };
        match prior.or_else(|| out.ask(question)) {
            None => return Outcome::Awaits,
            Some(Verdict::Refuse(reply)) => return Outcome::Refused(reply),
            Some(Verdict::RefuseAndClose(reply)) => return Outcome::RefusedAndClosed(reply),
            Some(Verdict::Accept) => {}
        }
        if !out.begin_message() {
            return Outcome::Reply(Reply::NoSpace);
        }
        let complete = !out.stores()
            || (self.store_sender(path.mailbox, parameters, out)
                && times.store(out)
                && priority.is_none_or(|priority| {
                    out.envelope_field(Field::Priority, &[&priority.to_le_bytes()])
                }));
        if !complete {
            out.abort_message();
            return Outcome::Reply(Reply::NoSpace);
        }
        self.messages += 1;
        self.work.transaction = Transaction {
            stage: Stage::Envelope,
            is_open: true,
            smtputf8: given.smtputf8,
            priority,
            body: match given.body {
                None => BODY_UNSTATED,
                Some(Body::SevenBit) => BODY_7BIT,
                Some(Body::EightBit) => BODY_8BITMIME,
                Some(Body::Binary) => BODY_BINARYMIME,
            },
            declared_size_plus_1: given.size.map_or(0, |size| size.saturating_add(1)),
            started: now,
            ..Transaction::NONE
        };
        Outcome::Reply(if is_lowered {
            Reply::PriorityLowered
        } else {
            Reply::MailOk
        })
    }

    /// Puts who sends, and what MAIL said of it, into the envelope; false when it is full.
    fn store_sender(&self, mailbox: &[u8], parameters: &[u8], out: &mut impl Sink) -> bool {
        let mut room = None;
        let helo = (Field::Helo, self.helo.as_bytes());
        let sender = [
            (Field::ReversePath, mailbox),
            (Field::MailParameters, Normalized::of(parameters, &mut room)),
        ];
        let sender = match parameters {
            [] => &sender[..1],
            _ => &sender[..],
        };
        if self.auth.is_none() && self.proxied.is_none() {
            return match *sender {
                [path, parameters] => out.envelope_fields(&[helo, path, parameters]),
                _ => out.envelope_fields(&[helo, sender[0]]),
            };
        }
        out.envelope_fields(&[helo])
            && self
                .user()
                .is_none_or(|user| out.envelope_field(Field::User, &[user.as_bytes()]))
            && self.store_proxied(out)
            && out.envelope_fields(sender)
    }

    fn rcpt(
        &mut self,
        ctx: &Context,
        path: ForwardPath<'_>,
        parameters: &[u8],
        prior: Option<Verdict>,
        out: &mut impl Sink,
    ) -> Outcome {
        match self.work.transaction.stage {
            Stage::None => return Outcome::Reply(Reply::NeedMail),
            Stage::Envelope => {}
            Stage::Chunks => return Outcome::Reply(Reply::BdatOpen),
            Stage::Failed(reply) => return Outcome::Reply(reply),
        }
        if let Err(reply) = parameter::parse_rcpt(parameters, self.services.offered) {
            return Outcome::Reply(reply);
        }
        if !path.ascii && !self.work.transaction.smtputf8 {
            return Outcome::Reply(Reply::RecipientNeedsUtf8);
        }
        if self.work.transaction.recipients >= ctx.recipients_max {
            return Outcome::Reply(Reply::TooManyRecipients);
        }
        let question = Question::Rcpt { path: path.mailbox };
        match prior.or_else(|| out.ask(question)) {
            None => return Outcome::Awaits,
            Some(Verdict::Refuse(reply)) => return Outcome::Refused(reply),
            Some(Verdict::RefuseAndClose(reply)) => return Outcome::RefusedAndClosed(reply),
            Some(Verdict::Accept) => {}
        }
        // Most recipients come without parameters: nothing is copied for them.
        let mut room = None;
        let is_kept = out.stores() && !parameters.is_empty();
        let normalized = is_kept.then(|| Normalized::of(parameters, &mut room));
        let mut needed = FIELD_HEADER_BYTES + path.mailbox.len();
        if let Some(normalized) = normalized {
            needed += FIELD_HEADER_BYTES + normalized.len();
        }
        if needed > out.envelope_room()
            || !out.envelope_fields(&[(Field::ForwardPath, path.mailbox)])
        {
            return Outcome::Reply(Reply::EnvelopeFull);
        }
        if let Some(normalized) = normalized
            && !out.envelope_field(Field::RcptParameters, &[normalized])
        {
            // The pool ran dry between the two fields: a recipient that the client was refused stands in the
            // envelope, so this message must not go on.
            self.drop_message(out);
            self.work.transaction.stage = Stage::Failed(Reply::NoSpace);
            return Outcome::Reply(Reply::NoSpace);
        }
        self.work.transaction.recipients += 1;
        Outcome::Reply(Reply::RcptOk)
    }

    fn data(
        &mut self,
        ctx: &Context,
        prior: Option<Verdict>,
        (now, wall_ns): (Instant, u64),
        out: &mut impl Sink,
    ) -> Outcome {
        match self.work.transaction.stage {
            Stage::None => return Outcome::Reply(Reply::NeedMail),
            Stage::Envelope => {}
            Stage::Chunks => return Outcome::Reply(Reply::BdatOpen),
            Stage::Failed(reply) => return Outcome::Reply(reply),
        }
        if self.work.transaction.body == BODY_BINARYMIME {
            return Outcome::Reply(Reply::BinaryNeedsBdat);
        }
        if self.work.transaction.recipients == 0 {
            return Outcome::Reply(Reply::NeedRcpt);
        }
        let recipients = self.work.transaction.recipients;
        match prior.or_else(|| out.ask(Question::Data { recipients })) {
            None => return Outcome::Awaits,
            Some(Verdict::Refuse(reply)) => return Outcome::Refused(reply),
            Some(Verdict::RefuseAndClose(reply)) => return Outcome::RefusedAndClosed(reply),
            Some(Verdict::Accept) => {}
        }
        if !self.begin_body(ctx, (now, wall_ns), out) {
            return Outcome::Reply(Reply::NoSpace);
        }
        self.work.content = Content::Data(Decoder::new(ctx.bare_newlines));
        self.state = State::Data;
        Outcome::Reply(Reply::DataStart)
    }

    fn bdat(
        &mut self,
        ctx: &Context,
        size: u64,
        last: bool,
        prior: Option<Verdict>,
        (now, wall_ns): (Instant, u64),
        out: &mut impl Sink,
    ) -> Outcome {
        if !ctx.offered.has(Offered::CHUNKING) {
            return Outcome::Reply(Reply::NotImplemented);
        }
        let mut refusal = match self.work.transaction.stage {
            Stage::None => Some(Reply::NeedMail),
            Stage::Failed(reply) => Some(reply),
            Stage::Envelope if self.work.transaction.recipients == 0 => Some(Reply::NeedRcpt),
            Stage::Envelope => {
                let recipients = self.work.transaction.recipients;
                match prior.or_else(|| out.ask(Question::Data { recipients })) {
                    None => return Outcome::Awaits,
                    Some(Verdict::Refuse(reply)) => Some(reply),
                    Some(Verdict::RefuseAndClose(reply)) => {
                        return Outcome::RefusedAndClosed(reply);
                    }
                    Some(Verdict::Accept) if self.begin_body(ctx, (now, wall_ns), out) => None,
                    Some(Verdict::Accept) => Some(Reply::NoSpace),
                }
            }
            Stage::Chunks => None,
        };
        if refusal.is_none() {
            if self.work.transaction.stage == Stage::Envelope {
                self.work.transaction.stage = Stage::Chunks;
                self.work.content = match self.work.transaction.body {
                    BODY_BINARYMIME => Content::Binary(0),
                    _ => Content::Text(Checker::new(ctx.bare_newlines)),
                };
            }
            let total = self.stored_octets(ctx).checked_add(size);
            if total.is_none_or(|total| total > ctx.message_bytes_max) {
                refusal = Some(Reply::TooBig);
            }
        }
        if refusal.is_some() {
            self.drop_message(out);
        }
        self.work.chunk = Chunk {
            left: size,
            is_last: last,
            is_kept: ctx.bare_newlines != BareNewlines::Normalize,
            refusal,
        };
        self.state = State::Chunk;
        Outcome::Done
    }

    /// Ends the envelope with the trace field (RFC 5321 4.4).
    fn begin_body(
        &mut self,
        ctx: &Context,
        (now, wall_ns): (Instant, u64),
        out: &mut impl Sink,
    ) -> bool {
        self.work.transaction.data_started = now;
        if !out.stores() {
            return out.begin_body(&[], 0);
        }
        let date = out.date(wall_ns);
        let protocol = Protocol::new(ProtocolFacts {
            esmtp: self.esmtp,
            lmtp: ctx.lmtp,
            smtputf8: self.work.transaction.smtputf8,
            tls: self.is_secured(),
            authenticated: self.user().is_some(),
        });
        // RFC 5321 7.2: with more than one recipient the clause would tell each of them of another.
        let recipient = match self.work.transaction.recipients {
            1 => out.recipient(),
            _ => None,
        };
        let trace = trace::build(&TraceArguments {
            helo: self.helo.as_bytes(),
            client: self.client,
            server_name: &ctx.server_name,
            protocol,
            recipient,
            priority: self.work.transaction.priority,
            tls_cipher: self.tls.copied(),
            date,
        });
        out.begin_body(trace.bytes(), trace.id_at())
    }

    /// Takes octets of DATA.
    fn receive_data(&mut self, ctx: &Context, rest: &[u8], out: &mut impl Sink) -> Step {
        let input = match self.body_part(ctx, rest, out) {
            [] => return Step::Blocked(Blocked::Pool),
            input => input,
        };
        let work = &mut *self.work;
        let discarding = work.transaction.is_discarding;
        // INVARIANT: the state Data comes with a decoder.
        let Content::Data(decoder) = &mut work.content else {
            return Step::Blocked(Blocked::Closed);
        };
        let mut hops = ctx.hops_max.map(|_| &mut work.transaction.hops);
        let decoded = decoder.decode(input, |piece| {
            if !discarding {
                emit(piece, input, hops.as_deref_mut(), out);
            }
        });
        self.discard_if_refused(ctx, out);
        if decoded.end {
            self.end_of_data(ctx, out);
        }
        Step::Took(decoded.consumed)
    }

    /// Takes octets of a BDAT chunk.
    fn receive_chunk(&mut self, ctx: &Context, rest: &[u8], out: &mut impl Sink) -> Step {
        let rest = &rest[..self.chunk_part(rest.len())];
        let input = match self.body_part(ctx, rest, out) {
            [] => return Step::Blocked(Blocked::Pool),
            input => input,
        };
        if self.work.chunk.refusal.is_none() {
            let work = &mut *self.work;
            let discarding = work.transaction.is_discarding;
            let mut hops = ctx.hops_max.map(|_| &mut work.transaction.hops);
            match &mut work.content {
                Content::Text(checker) => checker.check(input, |piece| {
                    if !discarding {
                        emit(piece, input, hops.as_deref_mut(), out);
                    }
                }),
                Content::Binary(octets) => {
                    *octets = octets.saturating_add(input.len() as u64);
                    if !discarding {
                        emit(Piece::Input(0..input.len()), input, hops, out);
                    }
                }
                Content::None | Content::Data(_) => {}
            }
        }
        self.discard_if_refused(ctx, out);
        self.work.chunk.left -= input.len() as u64;
        Step::Took(input.len())
    }

    /// Ends a chunk of which nothing is left.
    fn finish_chunk(&mut self, ctx: &Context, out: &mut impl Sink) -> Step {
        if !out.has_room() {
            return Step::Blocked(Blocked::Replies);
        }
        // The end of the last chunk may turn a CR into CRLF. After a chunk with octets there is room for that
        // one octet; after an empty one there may be none, and no input is left to wait with.
        let may_emit = self.work.chunk.is_last && !self.work.chunk.is_kept && !self.is_discarding();
        if may_emit && out.body_room() == 0 {
            self.work.chunk.refusal = Some(Reply::NoSpace);
            self.drop_message(out);
        }
        self.end_of_chunk(ctx, out);
        Step::Took(0)
    }

    /// How many of `available` octets belong to the chunk.
    fn chunk_part(&self, available: usize) -> usize {
        usize::try_from(self.work.chunk.left).map_or(available, |left| left.min(available))
    }

    /// The front of `rest` whose message octets the sink has room for.
    fn body_part<'a>(&self, ctx: &Context, rest: &'a [u8], out: &mut impl Sink) -> &'a [u8] {
        if self.is_discarding() {
            return rest;
        }
        // A CR may have been withheld from the input before.
        let room = out.body_room().saturating_sub(WITHHELD_BYTES_MAX);
        let octets = match ctx.bare_newlines {
            // At worst each octet is a bare newline that becomes CRLF.
            BareNewlines::Normalize => room / 2,
            BareNewlines::Reject | BareNewlines::Keep => room,
        };
        &rest[..rest.len().min(octets)]
    }

    /// Octets of the message as it is stored so far.
    fn stored_octets(&self, ctx: &Context) -> u64 {
        let facts = self.work.content.facts();
        let inserted = match ctx.bare_newlines {
            // Each bare newline became CRLF.
            BareNewlines::Normalize => u64::from(facts.bare_lf) + u64::from(facts.bare_cr),
            BareNewlines::Reject | BareNewlines::Keep => 0,
        };
        facts.octets.saturating_add(inserted)
    }

    /// Why the content so far can't be accepted.
    fn content_refusal(&self, ctx: &Context) -> Option<Reply> {
        let facts = self.work.content.facts();
        if self.stored_octets(ctx) > ctx.message_bytes_max {
            return Some(Reply::TooBig);
        }
        let is_bare = facts.bare_lf > 0 || facts.bare_cr > 0 || facts.nul > 0;
        if ctx.bare_newlines == BareNewlines::Reject && is_bare {
            return Some(Reply::BareNewline);
        }
        // RFC 5321 6.3. The reason that came first counts: once content is dropped its fields are not counted.
        let hops = self.work.transaction.hops.count();
        ctx.hops_max
            .is_some_and(|max| hops > max)
            .then_some(Reply::TooManyHops)
    }

    /// Gives the message's storage back as soon as it is clear that it will be refused.
    fn discard_if_refused(&mut self, ctx: &Context, out: &mut impl Sink) {
        if self.work.transaction.is_discarding || self.content_refusal(ctx).is_some() {
            self.drop_refused(out);
        }
    }

    fn end_of_data(&mut self, ctx: &Context, out: &mut impl Sink) {
        self.state = State::Command;
        match self.content_refusal(ctx) {
            Some(reply) => self.refuse_message(ctx, reply, out),
            None => self.ask_about_message(ctx, out),
        }
    }

    fn end_of_chunk(&mut self, ctx: &Context, out: &mut impl Sink) {
        self.state = State::Command;
        if let Some(reply) = self.work.chunk.refusal.take() {
            let was_begun = self.work.transaction.stage == Stage::Chunks;
            if was_begun && self.work.chunk.is_last {
                return self.refuse_message(ctx, reply, out);
            }
            // RFC 2033 4.3: the last chunk is answered once for each recipient, so never where there is none.
            let is_unanswered =
                ctx.lmtp && self.work.chunk.is_last && self.work.transaction.recipients == 0;
            self.fail_transaction();
            if is_unanswered {
                return;
            }
            return match reply {
                Reply::NeedMail | Reply::NeedRcpt | Reply::BdatFailed | Reply::NeedTls => {
                    self.reply(reply, out);
                }
                _ => out.reply(reply),
            };
        }
        if !self.work.chunk.is_last {
            return out.reply(Reply::ChunkOk);
        }
        let discarding = self.work.transaction.is_discarding;
        if let Content::Text(checker) = &mut self.work.content {
            checker.finish(|piece| {
                if !discarding {
                    // One LF behind the message: no trace field begins with it.
                    emit(piece, &[], None, out);
                }
            });
        }
        match self.content_refusal(ctx) {
            Some(reply) => self.refuse_message(ctx, reply, out),
            None => self.ask_about_message(ctx, out),
        }
    }

    fn ask_about_message(&mut self, ctx: &Context, out: &mut impl Sink) {
        let octets = self.stored_octets(ctx);
        match out.ask(Question::EndOfData { octets }) {
            Some(verdict) => self.conclude(ctx, verdict, out),
            None => self.state = State::MessageVerdict,
        }
    }

    /// Hands the complete message over, or drops it.
    fn conclude(&mut self, ctx: &Context, verdict: Verdict, out: &mut impl Sink) {
        self.state = State::Command;
        match verdict {
            Verdict::Accept => {
                let facts = self.message_facts(ctx);
                self.work.answers = Answers {
                    left: facts.answers - 1,
                    reply: None,
                };
                self.work.transaction.is_open = false;
                self.clear_transaction(out);
                self.idle_commands = 0;
                match out.end_of_message(&facts) {
                    Completion::Queued => self.answer_others(),
                    Completion::Wait => self.state = State::Commit,
                    Completion::Refused(reply) => {
                        self.work.answers.reply = Some(reply);
                        out.reply(reply);
                        self.answer_others();
                    }
                }
            }
            Verdict::Refuse(reply) => self.refuse_message(ctx, reply, out),
            Verdict::RefuseAndClose(reply) => self.close(reply, CloseReason::Refused, out),
        }
    }

    /// Refuses a message that is complete, or whose end has come, for each of its recipients.
    fn refuse_message(&mut self, ctx: &Context, reply: Reply, out: &mut impl Sink) {
        self.work.answers = Answers {
            left: self.answers_due(ctx) - 1,
            reply: Some(reply),
        };
        self.drop_refused(out);
        self.clear_transaction(out);
        out.reply(reply);
        self.answer_others();
    }

    /// Replies that the end of the message takes, at least 1.
    fn answers_due(&self, ctx: &Context) -> u32 {
        if ctx.lmtp {
            self.work.transaction.recipients.max(1)
        } else {
            1
        }
    }

    fn answer_others(&mut self) {
        if self.work.answers.left > 0 && self.state != State::Closed {
            self.state = State::Answers;
        }
    }

    /// Sends one of the replies that are owed to other recipients.
    fn answer_next(&mut self, out: &mut impl Sink) -> Step {
        if !out.has_room() {
            return Step::Blocked(Blocked::Replies);
        }
        match self.work.answers.reply {
            Some(reply) => out.reply(reply),
            None => out.stored_again(),
        }
        self.work.answers.left = self.work.answers.left.saturating_sub(1);
        if self.work.answers.left == 0 {
            self.state = State::Command;
        }
        Step::Took(0)
    }

    fn message_facts(&self, ctx: &Context) -> MessageFacts {
        let content = self.work.content.facts();
        let is_changed = ctx.bare_newlines == BareNewlines::Normalize
            && !matches!(self.work.content, Content::Binary(_))
            && (content.bare_lf > 0 || content.bare_cr > 0);
        let mut flags = 0;
        for (flag, is_set) in [
            (FLAG_ESMTP, self.esmtp),
            (FLAG_SMTPUTF8, self.work.transaction.smtputf8),
            (FLAG_BDAT, self.work.transaction.stage == Stage::Chunks),
            (FLAG_NORMALIZED, is_changed),
        ] {
            if is_set {
                flags |= flag;
            }
        }
        MessageFacts {
            content,
            flags,
            body: self.work.transaction.body,
            recipients: self.work.transaction.recipients,
            answers: self.answers_due(ctx),
            declared_size: self.work.transaction.declared_size_plus_1.checked_sub(1),
            transaction_started: self.work.transaction.started,
            data_started: self.work.transaction.data_started,
        }
    }

    /// Sends a reply to a command. A client that makes too many errors is sent away with the next one.
    fn reply(&mut self, reply: Reply, out: &mut impl Sink) {
        if reply.code() >= 500 {
            if self.errors >= out.errors_max() {
                return self.close(Reply::TooManyErrors, CloseReason::Refused, out);
            }
            self.errors += 1;
        }
        out.reply(reply);
    }

    fn close(&mut self, reply: Reply, reason: CloseReason, out: &mut impl Sink) {
        self.clear_transaction(out);
        out.reply(reply);
        out.close(reason);
        self.state = State::Closed;
    }

    /// Marks an open transaction as one that only RSET, EHLO or HELO can end.
    fn fail_transaction(&mut self) {
        if matches!(self.work.transaction.stage, Stage::Envelope | Stage::Chunks) {
            self.work.transaction.stage = Stage::Failed(Reply::BdatFailed);
        }
    }

    /// Drops what the sink holds of the message; the rest of its content is read and dropped as well.
    fn drop_message(&mut self, out: &mut impl Sink) {
        if self.work.transaction.stage != Stage::None {
            self.work.transaction.is_discarding = true;
        }
        if self.work.transaction.is_open {
            self.work.transaction.is_open = false;
            out.abort_message();
        }
    }

    /// As [`Session::drop_message`], because the content can't be accepted.
    fn drop_refused(&mut self, out: &mut impl Sink) {
        if self.work.transaction.is_open {
            self.work.transaction.is_open = false;
            out.refuse_message();
        }
        self.drop_message(out);
    }

    fn clear_transaction(&mut self, out: &mut impl Sink) {
        self.drop_message(out);
        if self.work.transaction.stage != Stage::None
            && let Some(proxied) = &mut self.proxied
        {
            // What XFORWARD said was about this message alone.
            proxied.forwarded = Default::default();
        }
        if let Some(work) = &mut self.work.0 {
            work.transaction = Transaction::NONE;
            work.content = Content::None;
        }
    }
}

/// Whether parameters stand as [`Normalized`] has them: one space between two, and keywords in upper case.
fn is_in_order(parameters: &[u8]) -> bool {
    let (mut begins, mut in_keyword) = (true, true);
    for &octet in parameters {
        match octet {
            b' ' if begins => return false,
            b' ' => in_keyword = true,
            b'=' => in_keyword = false,
            b'a'..=b'z' if in_keyword => return false,
            _ => {}
        }
        begins = octet == b' ';
    }
    !begins || parameters.is_empty()
}

/// RFC 3207 4: what is answered without TLS where TLS is required.
fn is_allowed_before_tls(command: &Command<'_>) -> bool {
    matches!(
        command,
        Command::Noop | Command::Ehlo(_) | Command::Lhlo(_) | Command::StartTls | Command::Quit
    )
}

/// The times that MAIL asks for, counted from 1970.
#[derive(Clone, Copy, Debug)]
struct Times {
    deliver_by: Option<DeliverBy>,
    hold_until: Option<i64>,
}

impl Times {
    /// The times that these parameters mean now; `None` when they can't be kept: a hold longer than `hold_max_s`
    /// (RFC 4865 4.2), or one that ends behind the time of delivery (RFC 4865 5.2.2).
    fn of(given: &MailParameters<'_>, wall_ns: u64, hold_max_s: u32) -> Option<Times> {
        let now = i64::try_from(wall_ns / 1_000_000_000).unwrap_or(i64::MAX / 2);
        let latest = now + i64::from(hold_max_s);
        let hold_until = match given.hold {
            None => None,
            Some(Hold::For(seconds)) => Some(now + i64::from(seconds)),
            Some(Hold::Until(until)) => Some(until),
        };
        let deliver_by = given.deliver_by.map(|by| DeliverBy {
            unix_seconds: now + i64::from(by.seconds),
            returns: by.returns,
            traces: by.traces,
        });
        let too_late = match (hold_until, deliver_by) {
            (Some(hold), _) if hold > latest => true,
            (Some(hold), Some(by)) => hold > by.unix_seconds,
            _ => false,
        };
        (!too_late).then_some(Times {
            deliver_by,
            hold_until,
        })
    }

    /// Puts the times into the envelope; false when it is full.
    fn store(self, out: &mut impl Sink) -> bool {
        let delivered = self.deliver_by.is_none_or(|by| {
            let mut room = [0; 10];
            out.envelope_field(Field::DeliverBy, &[by.encode(&mut room)])
        });
        delivered
            && self
                .hold_until
                .is_none_or(|until| out.envelope_field(Field::HoldUntil, &[&until.to_le_bytes()]))
    }
}

/// Octets that a decoder may have withheld from earlier input: a CR and a dot.
const WITHHELD_BYTES_MAX: usize = 4;

/// Lets an exchange ask the sink.
struct Around<'a, S>(&'a mut S);

impl<S: Sink> Surroundings for Around<'_, S> {
    fn verifier(&mut self, user: &str) -> Option<Verifier> {
        self.0.verifier(user)
    }

    fn binding(&mut self, binding: Binding) -> Option<BindingData> {
        self.0.channel_binding(binding)
    }

    fn nonce(&mut self) -> Vec<u8> {
        self.0.nonce()
    }
}

/// Whether the channel can be bound by anything.
fn is_bound(out: &mut impl Sink) -> bool {
    out.channel_binding(Binding::Exporter).is_some()
        || out.channel_binding(Binding::ServerEndPoint).is_some()
}

/// Sends a 334 with these octets (RFC 4954 4).
fn challenge(octets: &[u8], out: &mut impl Sink) {
    let mut wire = b"334 ".to_vec();
    base64::encode(octets, &mut wire);
    wire.extend_from_slice(b"\r\n");
    out.reply_configured(Reply::AuthChallenge, &wire);
}

/// Hands a piece of content to the sink, past the counter of trace fields.
fn emit(piece: Piece, input: &[u8], hops: Option<&mut Hops>, out: &mut impl Sink) {
    let octets = match piece {
        Piece::Input(range) => &input[range],
        Piece::Literal(octets) => octets,
    };
    if let Some(hops) = hops {
        hops.take(octets);
    }
    out.body(octets);
}

/// Parameters with single spaces between them and keywords in upper case, as the envelope stores them.
struct Normalized {
    len: usize,
    bytes: [u8; COMMAND_LINE_BYTES_MAX],
}

impl Normalized {
    /// Parameters as they are stored: the given ones where these are in order already, as most clients write
    /// them, otherwise what `room` is filled with.
    fn of<'a>(parameters: &'a [u8], room: &'a mut Option<Normalized>) -> &'a [u8] {
        if is_in_order(parameters) {
            return parameters;
        }
        room.insert(Normalized::new(parameters)).as_bytes()
    }

    /// Normalizes parameters that have been parsed, hence are shorter than a command line.
    fn new(parameters: &[u8]) -> Normalized {
        let mut normalized = Normalized {
            len: 0,
            bytes: [0; COMMAND_LINE_BYTES_MAX],
        };
        let words = parameters
            .split(|byte| *byte == b' ')
            .filter(|word| !word.is_empty());
        for (index, word) in words.enumerate() {
            if index > 0 {
                normalized.push(b" ");
            }
            let keyword_len = memchr(b'=', word).unwrap_or(word.len());
            let start = normalized.len;
            normalized.push(word);
            normalized.bytes[start..start + keyword_len].make_ascii_uppercase();
        }
        normalized
    }

    fn push(&mut self, bytes: &[u8]) {
        // INVARIANT: the result is never longer than the parameters, and those are part of a command line.
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
