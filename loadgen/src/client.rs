//! SMTP client session: turns a planned message and a server's replies into bytes to send.
//!
//! Promises: does no IO and reads no clock; accepts input cut at any byte; allocates nothing per
//! message once its buffers have grown; every transaction that begins ends in exactly one
//! `Events::finished`. Does not: decide what to send next, connect, or time out (see `worker`).

use crate::message::{self, Cursor, Stamp};
use crate::plan::{Pipelining, Plan, Protocol, Spec, TlsMode, Workload};
use crate::reply::{ReplyError, ReplyReader};

/// What a latency or a reply belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
pub enum Phase {
    /// TCP or UNIX connect.
    Connect,
    /// Connected to greeting.
    Greeting,
    /// EHLO, HELO or LHLO.
    Ehlo,
    /// STARTTLS command and TLS handshake.
    Tls,
    /// The AUTH exchange.
    Auth,
    /// XCLIENT.
    Xclient,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA to its 354.
    Data,
    /// First to last byte of the message written.
    Body,
    /// BDAT without LAST to its reply; pipelined, from the start of the group.
    Chunk,
    /// End of data written to the final reply.
    EndOfData,
    /// RSET.
    Rset,
    /// QUIT.
    Quit,
    /// First byte of a transaction to its final reply.
    Transaction,
    /// Planned start to final reply, open loop.
    Response,
}

/// Number of phases.
pub const PHASES: usize = 16;

impl Phase {
    /// All phases in order.
    pub const ALL: [Self; PHASES] = [
        Self::Connect,
        Self::Greeting,
        Self::Ehlo,
        Self::Tls,
        Self::Auth,
        Self::Xclient,
        Self::Mail,
        Self::Rcpt,
        Self::Data,
        Self::Body,
        Self::Chunk,
        Self::EndOfData,
        Self::Rset,
        Self::Quit,
        Self::Transaction,
        Self::Response,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Greeting => "greeting",
            Self::Ehlo => "ehlo",
            Self::Tls => "tls",
            Self::Auth => "auth",
            Self::Xclient => "xclient",
            Self::Mail => "mail",
            Self::Rcpt => "rcpt",
            Self::Data => "data-354",
            Self::Body => "body-written",
            Self::Chunk => "bdat-chunk",
            Self::EndOfData => "end-of-data",
            Self::Rset => "rset",
            Self::Quit => "quit",
            Self::Transaction => "transaction",
            Self::Response => "response",
        }
    }
}

/// Why a connection ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Connection refused.
    Refused,
    /// Connection reset.
    Reset,
    /// The server closed the connection.
    Closed,
    /// No reply in time.
    Timeout,
    /// Bytes that are no SMTP reply, or a reply that nothing asked for.
    Protocol,
    /// The TLS handshake or a TLS record failed.
    Tls,
    /// The server's answer makes going on useless (a refused greeting, AUTH, STARTTLS).
    Unusable,
    /// The host or network can't be reached.
    Unreachable,
    /// This process has no file descriptor left.
    OutOfDescriptors,
    /// This machine has no port left.
    OutOfPorts,
    /// Any other error of this machine.
    Local,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 11] = [
        Self::Refused,
        Self::Reset,
        Self::Closed,
        Self::Timeout,
        Self::Protocol,
        Self::Tls,
        Self::Unusable,
        Self::Unreachable,
        Self::OutOfDescriptors,
        Self::OutOfPorts,
        Self::Local,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Closed => "closed-by-target",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol-violation",
            Self::Tls => "tls-failure",
            Self::Unusable => "session-refused",
            Self::Unreachable => "unreachable",
            Self::OutOfDescriptors => "out-of-descriptors",
            Self::OutOfPorts => "out-of-ports",
            Self::Local => "local-error",
        }
    }

    /// Whether the cause is on this side.
    pub fn is_generator_side(self) -> bool {
        matches!(
            self,
            Self::OutOfDescriptors | Self::OutOfPorts | Self::Local
        )
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx after the end of data.
    Accepted,
    /// 4xx; the phase it came in.
    Deferred(Phase, u16),
    /// 5xx; the phase it came in.
    Rejected(Phase, u16),
    /// The connection failed; the phase it was in.
    Failed(Phase, Fault),
}

/// When the steps of one transaction were done, on the clock of `now`; 0 for what never came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// MAIL was answered.
    pub mail_ns: u64,
    /// The last RCPT was answered.
    pub rcpt_ns: u64,
    /// DATA was answered.
    pub data_ns: u64,
    /// The last byte of the message was written.
    pub written_ns: u64,
}

/// The end of one transaction.
#[derive(Clone, Copy, Debug)]
pub struct Finished<'a> {
    /// Which message.
    pub spec: Spec,
    /// What it said of itself; absent when it was never rendered, or comes from a corpus.
    pub stamp: Option<Stamp>,
    /// Its bytes, dots not doubled; 0 when it was never rendered.
    pub len: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Text of the reply that ended it.
    pub text: &'a [u8],
    /// When its first byte was sent.
    pub started_ns: u64,
    /// When it was planned to start; `started_ns` in a closed loop.
    pub intended_ns: u64,
    /// When it ended.
    pub now_ns: u64,
    /// When its steps were done.
    pub steps: Steps,
}

/// Receives what a session measures.
pub trait Events {
    /// A phase took this long.
    fn latency(&mut self, phase: Phase, ns: u64);
    /// A reply arrived.
    fn reply(&mut self, phase: Phase, code: u16, text: &[u8]);
    /// A transaction ended.
    fn finished(&mut self, finished: Finished<'_>);
}

/// What a session wants from its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// More input.
    Input,
    /// A message or a farewell.
    Work,
    /// A TLS handshake, then `tls_established`.
    Tls,
    /// The connection closed.
    Close(Close),
}

/// Why a session wants to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// QUIT was answered.
    Done,
    /// The server said 421: come back later.
    Later,
    /// Going on makes no sense.
    Fault(Fault),
}

/// What the session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The connection.
    Connecting,
    /// The greeting.
    Greeting,
    /// The reply to EHLO or LHLO.
    Ehlo,
    /// The reply to HELO.
    Helo,
    /// The reply to STARTTLS.
    StartTls,
    /// The TLS handshake.
    Handshake,
    /// A reply to AUTH; how many have come.
    Auth(u8),
    /// The reply to XCLIENT.
    Xclient,
    /// A message.
    Ready,
    /// The reply to MAIL.
    Mail,
    /// A reply to RCPT.
    Rcpt,
    /// The 354.
    Data,
    /// The final reply, or replies with LMTP.
    Final,
    /// The reply to RSET.
    Rset,
    /// The reply to QUIT.
    Quit,
    /// Nothing; the owner closes.
    Closing(Close),
}

/// The EHLO keywords that a session acts upon.
pub const EXTENSIONS: [&str; 8] = [
    "PIPELINING",
    "CHUNKING",
    "SIZE",
    "STARTTLS",
    "AUTH",
    "8BITMIME",
    "SMTPUTF8",
    "DSN",
];

/// What the server said it can do.
#[derive(Clone, Copy, Debug, Default)]
struct Offers {
    pipelining: bool,
    chunking: bool,
    size: bool,
    starttls: bool,
    auth: bool,
    eight_bit: bool,
    smtputf8: bool,
    dsn: bool,
}

/// The message in hand.
#[derive(Clone, Copy, Debug)]
struct Transaction {
    spec: Spec,
    stamp: Option<Stamp>,
    len: u64,
    intended_ns: u64,
    started_ns: u64,
    /// Replies to RCPT that have come.
    answered: u32,
    accepted: u32,
    /// The first reply that spoilt it.
    spoilt: Option<(Phase, u16)>,
    /// Final replies still to come.
    finals: u32,
    /// Replies to BDAT without LAST still to come.
    chunks: u32,
    /// One of them was a refusal.
    chunk_refused: bool,
    /// A body with its terminator was sent or is being sent.
    data_sent: bool,
    /// When its steps were done.
    steps: Steps,
}

/// Scratch for rendering; one for all sessions of a worker.
pub struct Desk {
    load: std::sync::Arc<Workload>,
    /// Whose addresses `from` and `to` are.
    seq: Option<u64>,
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Desk {
    /// Makes a desk for one worker.
    pub fn new(load: std::sync::Arc<Workload>) -> Self {
        Self {
            load,
            seq: None,
            from: Vec::new(),
            to: Vec::new(),
        }
    }

    /// Lays out sender and first recipient of message `seq`, unless they lie there already; `to` is the recipient if
    /// it is known.
    fn address(&mut self, seq: u64, to: Option<&[u8]>) {
        if self.seq != Some(seq) {
            self.seq = Some(seq);
            self.from.clear();
            self.to.clear();
            self.load.plan.sender(seq, &mut self.from);
            match to {
                Some(to) => self.to.extend_from_slice(to),
                None => self.load.plan.recipient(seq, 0, &mut self.to),
            }
        }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.load.plan
    }
}

/// Bodies up to this size are copied behind their commands, so that one send carries all.
const COPY_MAX: u64 = 16 << 10;
/// What follows the last line of a message that DATA announced (RFC 5321 4.1.1.4).
const END_OF_DATA: &[u8] = b".\r\n";
/// What follows a message that BDAT announced (RFC 3030 2).
const END_OF_BDAT: &[u8] = b"";

/// Bytes on their way to the socket: `head`, then the cursor's, then `tail`.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Commands, message heads, small bodies. Its owner may lend a larger buffer.
    pub head: Vec<u8>,
    head_at: usize,
    cursor: Cursor,
    tail: Vec<u8>,
    tail_at: usize,
}

impl Outgoing {
    /// Returns whether nothing is left to send.
    pub fn is_empty(&self) -> bool {
        self.head_at == self.head.len()
            && self.cursor.left() == 0
            && self.tail_at == self.tail.len()
    }

    fn clear(&mut self) {
        self.head.clear();
        self.head_at = 0;
        self.tail.clear();
        self.tail_at = 0;
        self.cursor = Cursor::default();
    }

    /// Returns all that is left to send when it is in one piece, as all but large messages are.
    pub fn only_slice(&self) -> Option<&[u8]> {
        (self.cursor.left() == 0 && self.tail.is_empty()).then(|| &self.head[self.head_at..])
    }

    /// Fills `slices` with the next bytes to send; returns how many slices were filled.
    pub fn slices<'a>(&'a self, desk: &'a Desk, slices: &mut [std::io::IoSlice<'a>]) -> usize {
        let mut used = 0;
        let mut put = |bytes: &'a [u8]| {
            if !bytes.is_empty() && used < slices.len() {
                slices[used] = std::io::IoSlice::new(bytes);
                used += 1;
            }
            used < slices.len()
        };
        put(&self.head[self.head_at..]);
        let mut cursor = self.cursor;
        while cursor.left() > 0 {
            let slice = desk.load.filler.slice(&desk.load.corpus, &cursor);
            desk.load
                .filler
                .advance(&desk.load.corpus, &mut cursor, slice.len());
            if !put(slice) {
                return used;
            }
        }
        put(&self.tail[self.tail_at..]);
        used
    }

    /// Forgets `len` bytes that were sent.
    pub fn advance(&mut self, desk: &Desk, mut len: usize) {
        let head = len.min(self.head.len() - self.head_at);
        self.head_at += head;
        len -= head;
        if self.head_at == self.head.len() && self.only_slice().is_some() {
            self.head.clear();
            self.head_at = 0;
            return;
        }
        while len > 0 && self.cursor.left() > 0 {
            let load = &desk.load;
            let part = len.min(load.filler.slice(&load.corpus, &self.cursor).len());
            load.filler.advance(&load.corpus, &mut self.cursor, part);
            len -= part;
        }
        self.tail_at += len;
        if self.is_empty() {
            self.clear();
        }
    }
}

/// One whole reply, as the session sees it.
#[derive(Clone, Copy)]
struct Reply<'a> {
    code: u16,
    /// What stands behind the code of its last line.
    text: &'a [u8],
    /// When it was read, ns.
    now: u64,
}

impl Reply<'_> {
    fn is_positive(self) -> bool {
        (200..300).contains(&self.code)
    }
}

/// One SMTP session.
pub struct Client {
    state: State,
    reader: ReplyReader,
    /// What is to be sent.
    pub out: Outgoing,
    offers: Offers,
    secured: bool,
    introduced: bool,
    transaction: Option<Transaction>,
    /// When the command whose reply is awaited was written.
    sent_ns: u64,
    /// When the last byte of the message was written; 0 while it is not.
    data_end_ns: u64,
    /// When the first byte of the message was queued.
    body_ns: u64,
    /// The message in hand and how much of it was queued, when it goes in several chunks.
    chunked: (Vec<u8>, usize),
    /// The phase in which it asked to be closed.
    closed_in: Phase,
    /// First recipient of the message in hand: rendered once, said in RCPT and in the message.
    recipient: Short,
    /// Raised with each reply; the owner's timers look at it.
    pub replies: u64,
}

/// A text of at most 63 octets, kept in place: an idle session owns no heap for it.
struct Short {
    len: u8,
    text: [u8; 63],
}

impl Short {
    fn set(&mut self, text: &[u8]) {
        self.len = u8::MAX;
        if let Some(room) = self.text.get_mut(..text.len()) {
            room.copy_from_slice(text);
            self.len = text.len() as u8;
        }
    }

    /// Returns the text last set, unless it was too long.
    fn as_slice(&self) -> Option<&[u8]> {
        self.text.get(..usize::from(self.len))
    }
}

impl Default for Client {
    fn default() -> Self {
        Self {
            state: State::Connecting,
            reader: ReplyReader::default(),
            out: Outgoing::default(),
            offers: Offers::default(),
            secured: false,
            introduced: false,
            transaction: None,
            sent_ns: 0,
            data_end_ns: 0,
            body_ns: 0,
            chunked: (Vec::new(), 0),
            closed_in: Phase::Quit,
            recipient: Short {
                len: 0,
                text: [0; 63],
            },
            replies: 0,
        }
    }
}

impl Client {
    /// Starts over for a new connection, keeping the buffers.
    pub fn reset(&mut self, now: u64) {
        assert!(
            self.transaction.is_none(),
            "invariant: transactions end before connections"
        );
        self.state = State::Connecting;
        self.reader.reset();
        self.out.clear();
        self.offers = Offers::default();
        self.secured = false;
        self.introduced = false;
        self.sent_ns = now;
    }

    /// The connection is there.
    pub fn connected(&mut self, now: u64, desk: &Desk, events: &mut impl Events) {
        events.latency(Phase::Connect, now.saturating_sub(self.sent_ns));
        self.sent_ns = now;
        self.state = match desk.plan().tls {
            TlsMode::Implicit => State::Handshake,
            _ => State::Greeting,
        };
    }

    /// The TLS handshake is done.
    pub fn tls_established(&mut self, now: u64, desk: &Desk, events: &mut impl Events) {
        events.latency(Phase::Tls, now.saturating_sub(self.sent_ns));
        self.secured = true;
        // RFC 3207 4.2: what was learnt before the handshake is forgotten.
        self.offers = Offers::default();
        self.reader.reset();
        if desk.plan().tls == TlsMode::Implicit {
            self.sent_ns = now;
            self.state = State::Greeting;
        } else {
            self.hello(now, desk);
        }
    }

    /// What the session needs now.
    pub fn want(&self) -> Want {
        match self.state {
            State::Ready => Want::Work,
            State::Handshake => Want::Tls,
            State::Closing(reason) => Want::Close(reason),
            _ => Want::Input,
        }
    }

    /// The phase whose end is awaited.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Connecting => Phase::Connect,
            State::Greeting => Phase::Greeting,
            State::Ehlo | State::Helo => Phase::Ehlo,
            State::StartTls | State::Handshake => Phase::Tls,
            State::Auth(_) => Phase::Auth,
            State::Xclient => Phase::Xclient,
            State::Ready | State::Mail => Phase::Mail,
            State::Rcpt => Phase::Rcpt,
            State::Data => Phase::Data,
            State::Final if self.transaction.is_some_and(|t| t.chunks > 0) => Phase::Chunk,
            State::Final if self.data_end_ns == 0 => Phase::Body,
            State::Final => Phase::EndOfData,
            State::Rset => Phase::Rset,
            State::Quit => Phase::Quit,
            State::Closing(_) => self.closed_in,
        }
    }

    /// Whether a transaction is in progress.
    pub fn is_busy(&self) -> bool {
        self.transaction.is_some()
    }

    /// Begins a message. The session must want work.
    pub fn begin(&mut self, spec: Spec, intended_ns: Option<u64>, now: u64, desk: &mut Desk) {
        assert_eq!(
            self.state,
            State::Ready,
            "invariant: begin follows Want::Work"
        );
        self.transaction = Some(Transaction {
            spec,
            stamp: None,
            len: 0,
            intended_ns: intended_ns.unwrap_or(now),
            started_ns: now,
            answered: 0,
            accepted: 0,
            spoilt: None,
            finals: 1,
            chunks: 0,
            chunk_refused: false,
            data_sent: false,
            steps: Steps::default(),
        });
        self.sent_ns = now;
        self.state = State::Mail;
        desk.address(spec.seq, None);
        self.recipient.set(&desk.to);
        let load = &*desk.load;
        let plan = &load.plan;
        let out = &mut self.out.head;
        out.extend_from_slice(b"MAIL FROM:<");
        out.extend_from_slice(&desk.from);
        out.extend_from_slice(b">");
        let real = load
            .corpus_index(spec.seq)
            .map(|index| &load.corpus.entries[index]);
        if self.offers.size {
            // RFC 1870 6.
            let len = match real {
                Some(entry) => entry.raw.len() as u64,
                None => message::length(spec.size, &desk.from, &desk.to),
            };
            out.extend_from_slice(b" SIZE=");
            message::push_decimal(len, 1, out);
        }
        if self.offers.eight_bit && real.is_some_and(|entry| entry.eight_bit) {
            // RFC 6152 3.
            out.extend_from_slice(b" BODY=8BITMIME");
        }
        if plan.smtputf8 && self.offers.smtputf8 {
            // RFC 6531 3.4.
            out.extend_from_slice(b" SMTPUTF8");
        }
        if let Some(dsn) = plan.dsn.as_ref().filter(|_| self.offers.dsn) {
            // RFC 3461 4.3 and 4.4.
            out.extend_from_slice(b" RET=");
            out.extend_from_slice(dsn.ret.as_bytes());
            out.extend_from_slice(b" ENVID=");
            message::push_hex(plan.run, out);
            out.push(b'.');
            message::push_decimal(spec.seq, 1, out);
        }
        out.extend_from_slice(b"\r\n");
        if self.is_pipelined(plan) {
            for index in 0..spec.recipients {
                self.push_recipient(desk, spec.seq, index);
            }
            if self.is_chunked(plan) {
                self.push_message(now, desk);
            } else {
                self.out.head.extend_from_slice(b"DATA\r\n");
            }
        }
    }

    /// Says goodbye. The session must want work.
    pub fn quit(&mut self, now: u64) {
        assert_eq!(
            self.state,
            State::Ready,
            "invariant: quit follows Want::Work"
        );
        self.out.head.extend_from_slice(b"QUIT\r\n");
        self.sent_ns = now;
        self.state = State::Quit;
    }

    /// Everything in `out` was written at `now`.
    pub fn flushed(&mut self, now: u64, events: &mut impl Events) {
        if let Some(transaction) = &mut self.transaction
            && self.data_end_ns == 0
            && transaction.data_sent
        {
            self.data_end_ns = now;
            transaction.steps.written_ns = now;
            events.latency(Phase::Body, now.saturating_sub(self.body_ns));
        }
    }

    /// Feeds bytes as they arrived.
    pub fn receive(&mut self, input: &[u8], now: u64, desk: &mut Desk, events: &mut impl Events) {
        let mut reader = std::mem::take(&mut self.reader);
        let mut input = input;
        while !input.is_empty() && !matches!(self.state, State::Closing(_) | State::Handshake) {
            let fed = reader.feed(input, |line| {
                if self.state == State::Ehlo {
                    self.learn(line.text, desk.plan());
                }
                if line.last {
                    self.replies += 1;
                    events.reply(self.phase(), line.code, line.text);
                    let (code, text) = (line.code, line.text);
                    self.answer(Reply { code, text, now }, desk, events);
                }
                !matches!(self.state, State::Closing(_) | State::Handshake)
            });
            match fed {
                Ok(used) => input = &input[used..],
                Err(error) => {
                    self.broken(error, now, events);
                    break;
                }
            }
        }
        if self.state == State::Handshake && !input.is_empty() {
            // RFC 3207 4.2: nothing may follow the reply to STARTTLS in the clear.
            self.close(Close::Fault(Fault::Protocol));
        }
        self.reader = reader;
    }

    /// The connection is lost; ends the transaction, if there is one.
    pub fn lost(&mut self, fault: Fault, now: u64, events: &mut impl Events) {
        let phase = self.phase();
        self.finish(Outcome::Failed(phase, fault), b"", now, events);
        self.out.clear();
        self.close(Close::Fault(fault));
        // The end of the transaction has forgotten how far it was.
        self.closed_in = phase;
    }

    fn note(&mut self, set: impl FnOnce(&mut Steps)) {
        if let Some(transaction) = &mut self.transaction {
            set(&mut transaction.steps);
        }
    }

    fn close(&mut self, reason: Close) {
        self.closed_in = self.phase();
        self.state = State::Closing(reason);
    }

    fn broken(&mut self, error: ReplyError, now: u64, events: &mut impl Events) {
        events.reply(self.phase(), 0, error.to_string().as_bytes());
        self.lost(Fault::Protocol, now, events);
    }

    /// Reads one line of the reply to EHLO. What the plan ignores was not offered.
    fn learn(&mut self, text: &[u8], plan: &Plan) {
        let word_end = text
            .iter()
            .position(|b| *b == b' ' || *b == b'=')
            .unwrap_or(text.len());
        let word = &text[..word_end];
        let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        if plan.ignored.iter().any(|name| is(name)) {
            return;
        }
        self.offers.pipelining |= is("PIPELINING");
        self.offers.chunking |= is("CHUNKING");
        self.offers.size |= is("SIZE");
        self.offers.starttls |= is("STARTTLS");
        self.offers.auth |= is("AUTH");
        self.offers.eight_bit |= is("8BITMIME");
        self.offers.smtputf8 |= is("SMTPUTF8");
        self.offers.dsn |= is("DSN");
    }

    fn hello(&mut self, now: u64, desk: &Desk) {
        let verb: &[u8] = match desk.plan().protocol {
            Protocol::Smtp => b"EHLO ",
            Protocol::Lmtp => b"LHLO ",
        };
        self.offers = Offers::default();
        self.state = State::Ehlo;
        self.command(verb, desk.plan().helo.as_bytes(), now);
    }

    fn command(&mut self, verb: &[u8], argument: &[u8], now: u64) {
        self.out.head.extend_from_slice(verb);
        self.out.head.extend_from_slice(argument);
        self.out.head.extend_from_slice(b"\r\n");
        self.sent_ns = now;
    }

    fn reset_transaction(&mut self, now: u64) {
        self.state = State::Rset;
        self.command(b"RSET", b"", now);
    }

    fn is_pipelined(&self, plan: &Plan) -> bool {
        plan.pipelining == Pipelining::Auto && self.offers.pipelining
    }

    fn is_chunked(&self, plan: &Plan) -> bool {
        plan.chunking && self.offers.chunking
    }

    /// Answers one whole reply.
    fn answer(&mut self, reply: Reply<'_>, desk: &mut Desk, events: &mut impl Events) {
        let Reply { code, text, now } = reply;
        let waited = now.saturating_sub(self.sent_ns);
        if code == 421 {
            // RFC 5321 3.8: the server is closing the channel, whatever was asked.
            let outcome = Outcome::Deferred(self.phase(), code);
            self.finish(outcome, text, now, events);
            return self.close(Close::Later);
        }
        let good = reply.is_positive();
        match self.state {
            State::Greeting => {
                events.latency(Phase::Greeting, waited);
                if code == 220 {
                    self.hello(now, desk);
                } else {
                    self.close(Close::Fault(Fault::Unusable));
                }
            }
            State::Ehlo if (500..505).contains(&code) && desk.plan().protocol == Protocol::Smtp => {
                // RFC 5321 3.2: a server without EHLO gets HELO.
                self.state = State::Helo;
                self.command(b"HELO ", desk.plan().helo.as_bytes(), now);
            }
            State::Ehlo | State::Helo => {
                events.latency(Phase::Ehlo, waited);
                if good {
                    self.introduce(now, desk);
                } else {
                    self.close(Close::Fault(Fault::Unusable));
                }
            }
            State::StartTls if code == 220 => self.state = State::Handshake,
            State::Auth(step) => self.auth_answer(step, code, now, desk, events),
            State::Xclient if good => {
                events.latency(Phase::Xclient, waited);
                self.introduced = true;
                // The server starts over with what it was told.
                self.hello(now, desk);
            }
            State::StartTls | State::Xclient => self.close(Close::Fault(Fault::Unusable)),
            State::Mail => {
                events.latency(Phase::Mail, waited);
                self.note(|steps| steps.mail_ns = now);
                self.mail_answer(reply, desk, events);
            }
            State::Rcpt => {
                events.latency(Phase::Rcpt, waited);
                self.note(|steps| steps.rcpt_ns = now);
                self.rcpt_answer(reply, desk, events);
            }
            State::Data => {
                events.latency(Phase::Data, waited);
                self.note(|steps| steps.data_ns = now);
                self.data_answer(reply, desk, events);
            }
            State::Final => self.final_answer(reply, desk, events),
            State::Rset => {
                events.latency(Phase::Rset, waited);
                self.state = State::Ready;
            }
            State::Quit => {
                events.latency(Phase::Quit, waited);
                self.close(Close::Done);
            }
            State::Ready | State::Connecting | State::Handshake | State::Closing(_) => {
                self.close(Close::Fault(Fault::Protocol));
            }
        }
    }

    /// EHLO was answered: TLS, XCLIENT, AUTH or work is next.
    fn introduce(&mut self, now: u64, desk: &Desk) {
        let plan = desk.plan();
        if plan.tls == TlsMode::StartTls && !self.secured {
            if !self.offers.starttls {
                return self.close(Close::Fault(Fault::Unusable));
            }
            self.state = State::StartTls;
            return self.command(b"STARTTLS", b"", now);
        }
        if let Some(attributes) = &plan.xclient
            && !self.introduced
        {
            self.state = State::Xclient;
            return self.command(b"XCLIENT ", attributes.as_bytes(), now);
        }
        if plan.smtputf8 && !self.offers.smtputf8 && !(plan.from.is_ascii() && plan.to.is_ascii()) {
            // RFC 6531 3.1: such an address must not be sent to a server that doesn't offer it.
            return self.close(Close::Fault(Fault::Unusable));
        }
        match &plan.auth {
            None => self.state = State::Ready,
            Some(_) if !self.offers.auth => self.close(Close::Fault(Fault::Unusable)),
            Some(auth) => {
                self.state = State::Auth(0);
                if auth.login {
                    self.command(b"AUTH LOGIN", b"", now);
                } else {
                    let secret = format!("\0{}\0{}", auth.user, auth.password);
                    let secret = crate::base64::encode(secret.as_bytes());
                    self.command(b"AUTH PLAIN ", secret.as_bytes(), now);
                }
            }
        }
    }

    fn auth_answer(
        &mut self,
        step: u8,
        code: u16,
        now: u64,
        desk: &Desk,
        events: &mut impl Events,
    ) {
        let Some(auth) = &desk.plan().auth else {
            return;
        };
        match code {
            235 => {
                events.latency(Phase::Auth, now.saturating_sub(self.sent_ns));
                self.state = State::Ready;
            }
            334 if auth.login && step < 2 => {
                let word = if step == 0 {
                    &auth.user
                } else {
                    &auth.password
                };
                let sent_ns = self.sent_ns;
                self.command(b"", crate::base64::encode(word.as_bytes()).as_bytes(), now);
                self.sent_ns = sent_ns;
                self.state = State::Auth(step + 1);
            }
            _ => self.close(Close::Fault(Fault::Unusable)),
        }
    }

    fn push_recipient(&mut self, desk: &Desk, seq: u64, index: u32) {
        let plan = &desk.load.plan;
        let out = &mut self.out.head;
        out.extend_from_slice(b"RCPT TO:<");
        match self.recipient.as_slice() {
            Some(first) if index == 0 => out.extend_from_slice(first),
            _ => plan.recipient(seq, index, out),
        }
        out.extend_from_slice(b">");
        if let Some(dsn) = plan.dsn.as_ref().filter(|_| self.offers.dsn) {
            // RFC 3461 4.1.
            out.extend_from_slice(b" NOTIFY=");
            out.extend_from_slice(dsn.notify.as_bytes());
            if dsn.orcpt {
                push_orcpt(plan, seq, index, out);
            }
        }
        out.extend_from_slice(b"\r\n");
    }

    fn mail_answer(&mut self, reply: Reply<'_>, desk: &mut Desk, events: &mut impl Events) {
        let Reply { code, text, now } = reply;
        let pipelined = self.is_pipelined(desk.plan());
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        self.state = State::Rcpt;
        if !reply.is_positive() {
            transaction.spoilt = Some((Phase::Mail, code));
            if !pipelined {
                self.state = State::Ready;
                self.finish(refusal(Phase::Mail, code), text, now, events);
            }
        } else if !pipelined {
            let seq = transaction.spec.seq;
            self.push_recipient(desk, seq, 0);
            self.sent_ns = now;
        }
    }

    fn rcpt_answer(&mut self, reply: Reply<'_>, desk: &mut Desk, events: &mut impl Events) {
        let Reply { code, text, now } = reply;
        let pipelined = self.is_pipelined(desk.plan());
        let chunked = self.is_chunked(desk.plan());
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        transaction.answered += 1;
        let refused = !reply.is_positive();
        if refused {
            transaction.spoilt.get_or_insert((Phase::Rcpt, code));
        } else {
            transaction.accepted += 1;
        }
        let (spec, answered) = (transaction.spec, transaction.answered);
        if answered < spec.recipients {
            if !pipelined {
                self.push_recipient(desk, spec.seq, answered);
                self.sent_ns = now;
            }
            return;
        }
        if transaction.accepted > 0 && transaction.spoilt.is_none_or(|(at, _)| at == Phase::Rcpt) {
            // Recipients that were refused are in the reply counts; the rest get the message.
            transaction.spoilt = None;
        }
        let spoilt = transaction.spoilt;
        if desk.plan().protocol == Protocol::Lmtp {
            transaction.finals = transaction.accepted.max(1);
        }
        self.state = if chunked { State::Final } else { State::Data };
        if pipelined {
            return;
        }
        if let Some((phase, code)) = spoilt {
            self.finish(refusal(phase, code), text, now, events);
            self.reset_transaction(now);
        } else if chunked {
            self.push_message(now, desk);
        } else {
            self.command(b"DATA", b"", now);
        }
    }

    fn data_answer(&mut self, reply: Reply<'_>, desk: &mut Desk, events: &mut impl Events) {
        let Reply { code, text, now } = reply;
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        if code != 354 {
            let (phase, code) = transaction.spoilt.unwrap_or((Phase::Data, code));
            self.finish(refusal(phase, code), text, now, events);
            return self.reset_transaction(now);
        }
        self.state = State::Final;
        if transaction.spoilt.is_some() {
            // RFC 2920 3.1: a server that says 354 with no recipient gets an empty message.
            transaction.data_sent = true;
            self.body_ns = now;
            self.data_end_ns = 0;
            self.out.head.extend_from_slice(END_OF_DATA);
        } else {
            self.push_message(now, desk);
        }
    }

    /// Queues the message, after BDAT or for DATA.
    fn push_message(&mut self, now: u64, desk: &mut Desk) {
        let Some(spec) = self.transaction.as_ref().map(|open| open.spec) else {
            return;
        };
        // Other sessions may have used the desk since this transaction began.
        desk.address(spec.seq, self.recipient.as_slice());
        self.body_ns = now;
        self.data_end_ns = 0;
        let chunked = self.is_chunked(desk.plan());
        if chunked && desk.plan().chunk > 0 {
            self.push_chunks(spec, now, desk);
        } else if let Some(index) = desk.load.corpus_index(spec.seq) {
            self.push_of_corpus(index, chunked, desk);
        } else {
            self.push_rendered(spec, chunked, desk);
        }
    }

    /// Queues the first chunk of a message in several, or all of them where the commands are pipelined.
    fn push_chunks(&mut self, spec: Spec, now: u64, desk: &Desk) {
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        let load = &*desk.load;
        let (whole, at) = &mut self.chunked;
        whole.clear();
        *at = 0;
        if let Some(index) = load.corpus_index(spec.seq) {
            whole.extend_from_slice(&load.corpus.entries[index].raw);
        } else {
            let (from, to) = (&desk.from, &desk.to);
            let run = load.plan.run;
            let stamp =
                message::whole_into(&load.filler, run, spec.seq, spec.size, from, to, whole);
            transaction.stamp = Some(stamp);
        }
        transaction.len = whole.len() as u64;
        let chunks = transaction.len.div_ceil(load.plan.chunk).max(1);
        // A size is at most 1e12 and a chunk at least 64 bytes, but memory ends before that.
        transaction.chunks = u32::try_from(chunks - 1).unwrap_or(u32::MAX);
        self.push_chunk(&load.plan);
        if self.is_pipelined(&load.plan) {
            while self.push_chunk(&load.plan) {}
        } else {
            self.sent_ns = now;
        }
    }

    /// Queues a message of the corpus: as it is behind BDAT, with its dots stuffed for DATA.
    fn push_of_corpus(&mut self, index: usize, chunked: bool, desk: &Desk) {
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        let entry = &desk.load.corpus.entries[index];
        transaction.len = entry.raw.len() as u64;
        transaction.data_sent = true;
        let out = &mut self.out.head;
        let (bytes, end) = match chunked {
            true => (&entry.raw, END_OF_BDAT),
            false => (&entry.stuffed, END_OF_DATA),
        };
        if chunked {
            push_bdat(transaction.len, true, out);
        }
        if bytes.len() as u64 <= COPY_MAX {
            out.extend_from_slice(bytes);
            out.extend_from_slice(end);
        } else {
            self.out.cursor = Cursor::of_corpus(index, bytes.len(), !chunked);
            self.out.tail.extend_from_slice(end);
        }
    }

    /// Queues a message that is made from its number and size.
    fn push_rendered(&mut self, spec: Spec, chunked: bool, desk: &Desk) {
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        let load = &*desk.load;
        let (from, to) = (&desk.from[..], &desk.to[..]);
        let out = &mut self.out.head;
        let end = if chunked { END_OF_BDAT } else { END_OF_DATA };
        if chunked {
            push_bdat(message::length(spec.size, from, to), true, out);
        }
        let run = load.plan.run;
        let rendered = message::render(&load.filler, run, spec.seq, spec.size, from, to, out);
        transaction.stamp = Some(rendered.stamp);
        transaction.len = rendered.stamp.len;
        transaction.data_sent = true;
        let mut cursor = load.filler.cursor(rendered.body, !chunked);
        if cursor.left() <= COPY_MAX {
            while cursor.left() > 0 {
                let slice = load.filler.slice(&load.corpus, &cursor);
                out.extend_from_slice(slice);
                load.filler.advance(&load.corpus, &mut cursor, slice.len());
            }
            message::render_tail(rendered.body, out);
            out.extend_from_slice(end);
        } else {
            self.out.cursor = cursor;
            message::render_tail(rendered.body, &mut self.out.tail);
            self.out.tail.extend_from_slice(end);
        }
    }

    /// Queues the next chunk of the message (RFC 3030 2); returns whether there was one.
    fn push_chunk(&mut self, plan: &Plan) -> bool {
        let Some(transaction) = self.transaction.as_mut().filter(|t| !t.data_sent) else {
            return false;
        };
        let (whole, at) = &mut self.chunked;
        let rest = &whole[*at..];
        let len = rest
            .len()
            .min(usize::try_from(plan.chunk).unwrap_or(usize::MAX));
        let last = len == rest.len();
        let out = &mut self.out.head;
        push_bdat(len as u64, last, out);
        out.extend_from_slice(&rest[..len]);
        *at += len;
        transaction.data_sent = last;
        true
    }

    /// A chunk that was not the last was answered.
    fn chunk_answer(&mut self, reply: Reply<'_>, desk: &mut Desk, events: &mut impl Events) {
        let Reply { code, text, now } = reply;
        let pipelined = self.is_pipelined(desk.plan());
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        transaction.chunks -= 1;
        events.latency(Phase::Chunk, now.saturating_sub(self.sent_ns));
        if reply.is_positive() {
            if !pipelined {
                self.push_chunk(desk.plan());
                self.sent_ns = now;
            }
            return;
        }
        let (phase, code) = *transaction.spoilt.get_or_insert((Phase::Chunk, code));
        transaction.chunk_refused = true;
        if !pipelined {
            // RFC 3030 2: after a refused chunk only RSET makes the state certain.
            self.finish(refusal(phase, code), text, now, events);
            self.reset_transaction(now);
        }
    }

    fn final_answer(&mut self, reply: Reply<'_>, desk: &mut Desk, events: &mut impl Events) {
        let Reply { code, text, now } = reply;
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        if transaction.chunks > 0 {
            return self.chunk_answer(reply, desk, events);
        }
        if self.data_end_ns == 0 && !self.out.is_empty() {
            // Answered before the message was sent: what follows would be read as commands.
            self.finish(refusal(Phase::Body, code), text, now, events);
            self.out.clear();
            return self.close(Close::Fault(Fault::Protocol));
        }
        events.latency(Phase::EndOfData, now.saturating_sub(self.data_end_ns));
        if !reply.is_positive() {
            transaction.spoilt.get_or_insert((Phase::EndOfData, code));
        }
        transaction.finals -= 1;
        if transaction.finals > 0 {
            return;
        }
        let outcome = match transaction.spoilt {
            None => Outcome::Accepted,
            Some((phase, code)) => refusal(phase, code),
        };
        self.state = State::Ready;
        let stale = matches!(transaction.spoilt, Some((Phase::Mail | Phase::Rcpt, _)))
            || transaction.chunk_refused;
        self.finish(outcome, text, now, events);
        if stale {
            // RFC 3030 2: after a refused BDAT the server may still hold the transaction.
            self.reset_transaction(now);
        }
    }

    fn finish(&mut self, outcome: Outcome, text: &[u8], now: u64, events: &mut impl Events) {
        let Some(transaction) = self.transaction.take() else {
            return;
        };
        self.data_end_ns = 0;
        events.finished(Finished {
            spec: transaction.spec,
            stamp: transaction.stamp,
            len: transaction.len,
            outcome,
            text,
            started_ns: transaction.started_ns,
            intended_ns: transaction.intended_ns,
            now_ns: now,
            steps: transaction.steps,
        });
    }
}

/// Appends the command in front of a chunk of this many octets (RFC 3030 2).
fn push_bdat(octets: u64, last: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(b"BDAT ");
    message::push_decimal(octets, 1, out);
    out.extend_from_slice(if last { b" LAST\r\n" } else { b"\r\n" });
}

/// Appends ORCPT (RFC 3461 4.2): the recipient as it is, whatever becomes of it on the way.
fn push_orcpt(plan: &Plan, seq: u64, index: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(b" ORCPT=");
    let kind_at = out.len();
    out.extend_from_slice(b"rfc822;");
    let from = out.len();
    plan.recipient(seq, index, out);
    let plain = |byte: u8| matches!(byte, b'!'..=b'*' | b','..=b'<' | b'>'..=b'~');
    if out[from..].iter().all(|byte| plain(*byte)) {
        return;
    }
    // Rare: patterns seldom hold `+`, `=` or letters beyond ASCII.
    let address = out.split_off(from);
    let wide = !address.is_ascii();
    if wide {
        // RFC 6533 3: such an address is sent only where SMTPUTF8 is offered, so it may stand as it is.
        out.truncate(kind_at);
        out.extend_from_slice(b"utf-8;");
    }
    for byte in address {
        match byte {
            128.. => out.push(byte),
            byte if plain(byte) && !(wide && byte == b'\\') => out.push(byte),
            byte if wide => out.extend_from_slice(format!("\\x{{{byte:02X}}}").as_bytes()),
            byte => out.extend_from_slice(format!("+{byte:02X}").as_bytes()),
        }
    }
}

fn refusal(phase: Phase, code: u16) -> Outcome {
    if (400..500).contains(&code) {
        Outcome::Deferred(phase, code)
    } else {
        Outcome::Rejected(phase, code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::plan;
    use crate::plan::{Addresses, Auth, Count, Dsn};
    use crate::rng::Rng;
    use std::sync::Arc;

    /// Notes what a session tells.
    #[derive(Default, Debug, PartialEq, Clone)]
    struct Notes {
        replies: Vec<(Phase, u16)>,
        ends: Vec<(u64, Outcome, String)>,
    }

    impl Events for Notes {
        fn latency(&mut self, _phase: Phase, _ns: u64) {}
        fn reply(&mut self, phase: Phase, code: u16, _text: &[u8]) {
            self.replies.push((phase, code));
        }
        fn finished(&mut self, done: Finished<'_>) {
            let text = String::from_utf8_lossy(done.text).into_owned();
            self.ends.push((done.spec.seq, done.outcome, text));
        }
    }

    /// Plays `script`: what the session sends is compared, what the server says is fed in pieces
    /// that `cut` decides. `C:` lines are complete sends without message text.
    fn play(plan: &Plan, script: &[&str], cut: &mut dyn FnMut(usize) -> usize) -> (Notes, Want) {
        let mut desk = Desk::new(Arc::new(Workload::new(plan.clone())));
        let mut client = Client::default();
        let mut notes = Notes::default();
        let mut seq = 0;
        client.reset(0);
        client.connected(1, &desk, &mut notes);
        for line in script {
            if let Some(said) = line.strip_prefix("S: ") {
                let said = said.as_bytes();
                let mut from = 0;
                while from < said.len() {
                    let len = cut(said.len() - from);
                    client.receive(&said[from..from + len], 2, &mut desk, &mut notes);
                    from += len;
                }
                continue;
            }
            if client.want() == Want::Work {
                if plan.messages.is_some_and(|messages| seq < messages) {
                    client.begin(plan.message(seq), None, 3, &mut desk);
                    seq += 1;
                } else {
                    client.quit(3);
                }
            }
            let mut sent = Vec::new();
            while !client.out.is_empty() {
                let mut slices = [std::io::IoSlice::new(&[]); 4];
                let used = client.out.slices(&desk, &mut slices);
                let len = cut(slices[..used].iter().map(|slice| slice.len()).sum());
                let all: Vec<u8> = slices[..used]
                    .iter()
                    .flat_map(|slice| slice.to_vec())
                    .collect();
                sent.extend_from_slice(&all[..len]);
                client.out.advance(&desk, len);
            }
            client.flushed(4, &mut notes);
            let sent = String::from_utf8(sent).unwrap();
            let expected = line.strip_prefix("C: ").unwrap();
            match expected.split_once("<message>") {
                Some((before, after)) => {
                    assert!(sent.starts_with(before), "{sent}");
                    assert!(sent.ends_with(after), "{sent}");
                    assert!(
                        sent[before.len()..].starts_with("X-Loadgen: v=1 "),
                        "{sent}"
                    );
                }
                None => assert_eq!(sent, expected),
            }
        }
        (notes, client.want())
    }

    /// Plays whole, byte by byte and at random cuts; the results must be equal.
    fn every_way(plan: &Plan, script: &[&str]) -> (Notes, Want) {
        let whole = play(plan, script, &mut |len| len);
        assert_eq!(whole, play(plan, script, &mut |_| 1));
        for round in 0..20 {
            let mut rng = Rng::keyed(round, 5, 0);
            let mut cut = |len: usize| 1 + rng.below(len as u64) as usize;
            assert_eq!(whole, play(plan, script, &mut cut));
        }
        whole
    }

    const FULL: &str = "S: 250-hi\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 SIZE 10000\r\n";

    fn fixed() -> Plan {
        let mut plan = plan();
        plan.to = Addresses::parse("user@test.example").unwrap();
        plan
    }

    #[test]
    fn a_pipelined_transaction_takes_two_round_trips() {
        let (notes, want) = every_way(
            &fixed(),
            &[
                "S: 220 hi\r\n",
                "C: EHLO loadgen.example\r\n",
                FULL,
                "C: MAIL FROM:<sender@loadgen.example> SIZE=1000\r\nRCPT TO:<user@test.example>\r\nDATA\r\n",
                "S: 250 ok\r\n250 ok\r\n354 go\r\n",
                "C: <message>\r\n.\r\n",
                "S: 250 2.0.0 stored as 0-17\r\n",
                "C: QUIT\r\n",
                "S: 221 bye\r\n",
            ],
        );
        assert_eq!(want, Want::Close(Close::Done));
        assert_eq!(
            notes.ends,
            [(0, Outcome::Accepted, "2.0.0 stored as 0-17".into())]
        );
    }

    #[test]
    fn lock_step_sends_one_command_for_each_reply() {
        let mut plan = fixed();
        plan.recipients = Count::Fixed(2);
        plan.pipelining = Pipelining::Off;
        let (notes, _) = every_way(
            &plan,
            &[
                "S: 220 hi\r\n",
                "C: EHLO loadgen.example\r\n",
                "S: 250-hi\r\n250 PIPELINING\r\n",
                "C: MAIL FROM:<sender@loadgen.example>\r\n",
                "S: 250 ok\r\n",
                "C: RCPT TO:<user@test.example>\r\n",
                "S: 450 4.2.1 full\r\n",
                "C: RCPT TO:<user@test.example>\r\n",
                "S: 250 ok\r\n",
                "C: DATA\r\n",
                "S: 354 go\r\n",
                "C: <message>\r\n.\r\n",
                "S: 250 ok\r\n",
                "C: QUIT\r\n",
            ],
        );
        // One recipient was refused; the other got the message.
        assert_eq!(notes.ends, [(0, Outcome::Accepted, "ok".into())]);
        assert!(notes.replies.contains(&(Phase::Rcpt, 450)));
    }

    #[test]
    fn ignored_extensions_count_as_not_offered() {
        let mut plan = fixed();
        plan.chunking = true;
        plan.ignored = ["SIZE", "CHUNKING", "PIPELINING"]
            .map(String::from)
            .to_vec();
        let (notes, want) = every_way(
            &plan,
            &[
                "S: 220 hi\r\n",
                "C: EHLO loadgen.example\r\n",
                FULL,
                "C: MAIL FROM:<sender@loadgen.example>\r\n",
                "S: 250 ok\r\n",
                "C: RCPT TO:<user@test.example>\r\n",
                "S: 250 ok\r\n",
                "C: DATA\r\n",
                "S: 354 go\r\n",
                "C: <message>\r\n.\r\n",
                "S: 250 ok\r\n",
                "C: QUIT\r\n",
                "S: 221 bye\r\n",
            ],
        );
        assert_eq!(want, Want::Close(Close::Done));
        assert_eq!(notes.ends, [(0, Outcome::Accepted, "ok".into())]);
    }

    #[test]
    fn bdat_carries_envelope_and_message_in_one_send() {
        let mut plan = fixed();
        plan.chunking = true;
        plan.messages = Some(2);
        let send = "C: MAIL FROM:<sender@loadgen.example> SIZE=1000\r\nRCPT TO:<user@test.example>\r\nBDAT 1000 LAST\r\n<message>\r\n";
        let (notes, _) = every_way(
            &plan,
            &[
                "S: 220 hi\r\n",
                "C: EHLO loadgen.example\r\n",
                FULL,
                send,
                "S: 250 ok\r\n250 ok\r\n250 done\r\n",
                send,
                "S: 250 ok\r\n550 5.1.1 nobody\r\n503 5.5.1 no recipient\r\n",
                "C: RSET\r\n",
                "S: 250 ok\r\n",
                "C: QUIT\r\n",
            ],
        );
        assert_eq!(notes.ends[0].1, Outcome::Accepted);
        assert_eq!(notes.ends[1].1, Outcome::Rejected(Phase::Rcpt, 550));
    }

    /// The message of `fixed` with number `seq`, cut into chunks of 400 bytes.
    fn chunks(plan: &Plan, seq: u64) -> Vec<String> {
        let load = Workload::new(plan.clone());
        let (from, to) = (b"sender@loadgen.example", b"user@test.example");
        let whole = message::whole(&load.filler, plan.run, seq, 1000, from, to);
        let text = |part: &[u8]| String::from_utf8(part.to_vec()).unwrap();
        vec![
            format!("BDAT 400\r\n{}", text(&whole[..400])),
            format!("BDAT 400\r\n{}", text(&whole[400..800])),
            format!("BDAT 200 LAST\r\n{}", text(&whole[800..])),
        ]
    }

    #[test]
    fn pipelined_chunks_leave_together_and_each_is_answered() {
        let mut plan = fixed();
        (plan.chunking, plan.chunk, plan.messages) = (true, 400, Some(3));
        let envelope =
            "MAIL FROM:<sender@loadgen.example> SIZE=1000\r\nRCPT TO:<user@test.example>\r\n";
        let sends: Vec<String> = (0..3)
            .map(|seq| format!("C: {envelope}{}", chunks(&plan, seq).concat()))
            .collect();
        let (notes, want) = every_way(
            &plan,
            &[
                "S: 220 hi\r\n",
                "C: EHLO loadgen.example\r\n",
                FULL,
                &sends[0],
                "S: 250 ok\r\n250 ok\r\n250 one\r\n250 two\r\n250 stored\r\n",
                &sends[1],
                "S: 250 ok\r\n250 ok\r\n250 one\r\n452 4.3.1 full\r\n503 5.5.1 what\r\n",
                "C: RSET\r\n",
                "S: 250 ok\r\n",
                &sends[2],
                "S: 250 ok\r\n550 no\r\n503 no\r\n503 no\r\n503 no\r\n",
                "C: RSET\r\n",
                "S: 250 ok\r\n",
                "C: QUIT\r\n",
                "S: 221 bye\r\n",
            ],
        );
        assert_eq!(want, Want::Close(Close::Done));
        let ends: Vec<Outcome> = notes.ends.iter().map(|end| end.1).collect();
        assert_eq!(
            ends,
            [
                Outcome::Accepted,
                Outcome::Deferred(Phase::Chunk, 452),
                Outcome::Rejected(Phase::Rcpt, 550)
            ]
        );
        assert_eq!(notes.ends[0].2, "stored");
        let last = notes.replies.iter().filter(|r| r.0 == Phase::EndOfData);
        assert_eq!(last.count(), 3);
    }

    #[test]
    fn lock_step_sends_a_chunk_for_each_reply_and_stops_at_a_refusal() {
        let mut plan = fixed();
        (plan.chunking, plan.chunk, plan.messages) = (true, 400, Some(2));
        plan.pipelining = Pipelining::Off;
        let parts = |seq| {
            chunks(&plan, seq)
                .into_iter()
                .map(|part| format!("C: {part}"))
        };
        let (one, two): (Vec<_>, Vec<_>) = (parts(0).collect(), parts(1).collect());
        let (notes, want) = every_way(
            &plan,
            &[
                "S: 220 hi\r\n",
                "C: EHLO loadgen.example\r\n",
                FULL,
                "C: MAIL FROM:<sender@loadgen.example> SIZE=1000\r\n",
                "S: 250 ok\r\n",
                "C: RCPT TO:<user@test.example>\r\n",
                "S: 250 ok\r\n",
                &one[0],
                "S: 250 ok\r\n",
                &one[1],
                "S: 250 ok\r\n",
                &one[2],
                "S: 250 stored\r\n",
                "C: MAIL FROM:<sender@loadgen.example> SIZE=1000\r\n",
                "S: 250 ok\r\n",
                "C: RCPT TO:<user@test.example>\r\n",
                "S: 250 ok\r\n",
                &two[0],
                "S: 552 5.3.4 too large\r\n",
                "C: RSET\r\n",
                "S: 250 ok\r\n",
                "C: QUIT\r\n",
            ],
        );
        assert_eq!(want, Want::Input);
        assert_eq!(
            notes.ends,
            [
                (0, Outcome::Accepted, "stored".into()),
                (
                    1,
                    Outcome::Rejected(Phase::Chunk, 552),
                    "5.3.4 too large".into()
                )
            ]
        );
    }

    #[test]
    fn dsn_and_smtputf8_are_asked_for_where_they_are_offered() {
        let mut plan = fixed();
        plan.smtputf8 = true;
        plan.dsn = Some(Dsn::parse("success,failure,full").unwrap());
        every_way(
            &plan,
            &[
                "S: 220 hi\r\n",
                "C: EHLO loadgen.example\r\n",
                "S: 250-hi\r\n250-PIPELINING\r\n250-SMTPUTF8\r\n250 DSN\r\n",
                "C: MAIL FROM:<sender@loadgen.example> SMTPUTF8 RET=FULL \
                 ENVID=0000000000000abc.0\r\n\
                 RCPT TO:<user@test.example> NOTIFY=SUCCESS,FAILURE\r\nDATA\r\n",
            ],
        );
        every_way(
            &plan,
            &[
                "S: 220 hi\r\n",
                "C: EHLO loadgen.example\r\n",
                "S: 250-hi\r\n250 PIPELINING\r\n",
                "C: MAIL FROM:<sender@loadgen.example>\r\nRCPT TO:<user@test.example>\r\nDATA\r\n",
            ],
        );
    }

    #[test]
    fn orcpt_states_the_recipient_in_the_form_that_its_letters_need() {
        for (to, orcpt) in [
            ("user@test.example", "rfc822;user@test.example"),
            ("a+b=c@test.example", "rfc822;a+2Bb+3Dc@test.example"),
            // RFC 6533 3: unitext where SMTPUTF8 is offered.
            (
                "us\u{e9}r+x=y\\z@test.example",
                "utf-8;us\u{e9}r\\x{2B}x\\x{3D}y\\x{5C}z@test.example",
            ),
        ] {
            let mut plan = fixed();
            plan.smtputf8 = !to.is_ascii();
            plan.to = Addresses::parse(to).unwrap();
            plan.dsn = Some(Dsn::parse("failure,orcpt").unwrap());
            let word = if plan.smtputf8 { " SMTPUTF8" } else { "" };
            let sent = format!(
                "C: MAIL FROM:<sender@loadgen.example>{word} RET=HDRS ENVID=0000000000000abc.0\r\n\
                 RCPT TO:<{to}> NOTIFY=FAILURE ORCPT={orcpt}\r\nDATA\r\n"
            );
            every_way(
                &plan,
                &[
                    "S: 220 hi\r\n",
                    "C: EHLO loadgen.example\r\n",
                    "S: 250-hi\r\n250-PIPELINING\r\n250-SMTPUTF8\r\n250 DSN\r\n",
                    &sent,
                ],
            );
        }
    }

    #[test]
    fn an_address_beyond_ascii_goes_only_where_smtputf8_is_offered() {
        let mut plan = fixed();
        plan.smtputf8 = true;
        plan.to = Addresses::parse("us\u{e9}r@test.example").unwrap();
        let begin = ["S: 220 hi\r\n", "C: EHLO loadgen.example\r\n"];
        let offered = [
            "S: 250-hi\r\n250 SMTPUTF8\r\n",
            "C: MAIL FROM:<sender@loadgen.example> SMTPUTF8\r\n",
            "S: 250 ok\r\n",
            "C: RCPT TO:<us\u{e9}r@test.example>\r\n",
        ];
        every_way(&plan, &[&begin[..], &offered].concat());
        let (notes, want) = every_way(&plan, &[&begin[..], &["S: 250 hi\r\n"]].concat());
        assert_eq!(want, Want::Close(Close::Fault(Fault::Unusable)));
        assert_eq!(notes.ends, []);
    }

    #[test]
    fn a_354_without_recipients_gets_an_empty_message() {
        let (notes, _) = every_way(
            &fixed(),
            &[
                "S: 220 hi\r\n",
                "C: EHLO loadgen.example\r\n",
                "S: 250 PIPELINING\r\n",
                "C: MAIL FROM:<sender@loadgen.example>\r\nRCPT TO:<user@test.example>\r\nDATA\r\n",
                "S: 250 ok\r\n451 4.7.1 later\r\n354 go\r\n",
                "C: .\r\n",
                "S: 554 no valid recipients\r\n",
                "C: RSET\r\n",
                "S: 250 ok\r\n",
                "C: QUIT\r\n",
            ],
        );
        assert_eq!(notes.ends.len(), 1);
        assert_eq!(notes.ends[0].1, Outcome::Deferred(Phase::Rcpt, 451));
    }

    #[test]
    fn helo_follows_a_refused_ehlo() {
        let (_, want) = every_way(
            &fixed(),
            &[
                "S: 220 hi\r\n",
                "C: EHLO loadgen.example\r\n",
                "S: 502 what\r\n",
                "C: HELO loadgen.example\r\n",
                "S: 250 hi\r\n",
            ],
        );
        assert_eq!(want, Want::Work);
    }

    #[test]
    fn lmtp_waits_for_a_reply_for_each_accepted_recipient() {
        let mut plan = fixed();
        plan.protocol = Protocol::Lmtp;
        plan.recipients = Count::Fixed(3);
        let rcpt = "RCPT TO:<user@test.example>\r\n".repeat(3);
        let send = format!("C: MAIL FROM:<sender@loadgen.example>\r\n{rcpt}DATA\r\n");
        let (notes, want) = every_way(
            &plan,
            &[
                "S: 220 hi\r\n",
                "C: LHLO loadgen.example\r\n",
                "S: 250 PIPELINING\r\n",
                &send,
                "S: 250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n",
                "C: <message>\r\n.\r\n",
                "S: 250 one\r\n",
                "C: ",
                "S: 452 4.2.2 full\r\n",
            ],
        );
        assert_eq!(want, Want::Work);
        assert_eq!(notes.ends[0].1, Outcome::Deferred(Phase::EndOfData, 452));
    }

    #[test]
    fn a_421_anywhere_ends_the_session() {
        for said in [
            "421 bye\r\n",
            "250 ok\r\n421 bye\r\n",
            "250 ok\r\n250 ok\r\n421 bye\r\n",
        ] {
            let said = format!("S: {said}");
            let (notes, want) = every_way(
                &fixed(),
                &[
                    "S: 220 hi\r\n",
                    "C: EHLO loadgen.example\r\n",
                    "S: 250 PIPELINING\r\n",
                    "C: MAIL FROM:<sender@loadgen.example>\r\nRCPT TO:<user@test.example>\r\nDATA\r\n",
                    &said,
                ],
            );
            assert_eq!(want, Want::Close(Close::Later));
            assert!(matches!(
                notes.ends[..],
                [(0, Outcome::Deferred(_, 421), _)]
            ));
        }
    }

    #[test]
    fn nonsense_and_unasked_replies_are_violations() {
        let begin = ["S: 220 hi\r\n", "C: EHLO loadgen.example\r\n"];
        for said in [
            "S: hello\r\n",
            "S: 250 hi\r\n250 again\r\n",
            "S: 250-a\r\n251 b\r\n",
        ] {
            let (_, want) = every_way(&fixed(), &[&begin[..], &[said]].concat());
            assert_eq!(want, Want::Close(Close::Fault(Fault::Protocol)), "{said}");
        }
    }

    #[test]
    fn auth_login_answers_each_prompt() {
        let mut plan = fixed();
        plan.auth = Some(Auth {
            login: true,
            user: "user".into(),
            password: "pass".into(),
        });
        let (_, want) = every_way(
            &plan,
            &[
                "S: 220 hi\r\n",
                "C: EHLO loadgen.example\r\n",
                "S: 250 AUTH PLAIN LOGIN\r\n",
                "C: AUTH LOGIN\r\n",
                "S: 334 VXNlcm5hbWU6\r\n",
                "C: dXNlcg==\r\n",
                "S: 334 UGFzc3dvcmQ6\r\n",
                "C: cGFzcw==\r\n",
                "S: 235 ok\r\n",
            ],
        );
        assert_eq!(want, Want::Work);
    }
}
