//! A connection in miniature: drives a session without sockets and records what it does.
//!
//! It can cut the input anywhere, answer verdicts and commits late, run out of room for replies and body, and
//! read content in place. None of that may change a reply or a stored message.

#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::net::SocketAddr;

use ringmx::clock::Instant;
use ringmx::limits::AUTH_LINE_BYTES_MAX;
use ringmx::smtp::parameter::Offered;
use ringmx::smtp::reply::{self, Reply};
use ringmx::smtp::sasl::{Binding, BindingData};
use ringmx::smtp::session::{Context, Phase, Session};
use ringmx::smtp::sink::{
    Blocked, CloseReason, Completion, Field, MessageFacts, PasswordVerdict, Question, Sink, Verb,
    Verdict,
};
use ringmx::users::{Users, Verifier};

/// Seconds since 1970 at which all messages arrive, in nanoseconds: 2026-11-23 01:02:03 UTC.
pub const WALL_NS: u64 = 1_795_395_723_000_000_000;

/// Small pseudo-random generator (xorshift64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A stored message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    pub fields: Vec<(u8, Vec<u8>)>,
    pub trace: Vec<u8>,
    pub id_at: usize,
    pub body: Vec<u8>,
    pub facts: Option<MessageFacts>,
}

/// How unkind the connection is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// Verdicts and commits come only after the session has stopped for them.
    pub late: bool,
    /// Room for replies and body is short now and then.
    pub tight: bool,
    /// Content is read in place where the session allows it.
    pub in_place: bool,
}

/// The sink that records.
#[derive(Debug)]
pub struct Recorder {
    pub wire: Vec<u8>,
    pub stored: Vec<Stored>,
    pub closed: Option<CloseReason>,
    pub verbs: [u32; Verb::COUNT],
    /// The question, and what it is answered with; everything else is accepted.
    pub policy: Vec<(String, Verdict)>,
    pub envelope_bytes_max: usize,
    pub has_storage: bool,
    /// What the consumers of mail have said that they keep.
    pub keeps: Offered,
    /// Fields after which the pool is dry though the envelope has room.
    pub fields_max: usize,
    /// Whether there is a chunk for the trace field.
    pub has_body_storage: bool,
    /// Commits that are pending until the session waits for them.
    pub commits_pending: u32,
    /// Whether a handshake can be taken now.
    pub takes_tls: bool,
    /// What is answered to each commit.
    pub commit: Result<(), Reply>,
    /// What the client may say of another.
    pub trusts: Offered,
    /// The client's address and the server's.
    pub addresses: (SocketAddr, SocketAddr),
    /// Users; without them every password is right, but for the user `busy`.
    pub users: Option<Users>,
    /// Name and password of the only user, where hashing passwords would take too long.
    pub only_user: Option<(&'static str, &'static [u8])>,
    /// What the channel is bound by.
    pub binding: Option<&'static [u8]>,
    password: Option<PasswordVerdict>,
    open: Option<Stored>,
    asked: Option<Verdict>,
    manner: Manner,
    random: Random,
    has_room: bool,
    pub body_room: usize,
}

impl Recorder {
    pub fn new(manner: Manner, seed: u64) -> Recorder {
        Recorder {
            wire: Vec::new(),
            stored: Vec::new(),
            closed: None,
            verbs: [0; Verb::COUNT],
            policy: Vec::new(),
            envelope_bytes_max: 1 << 20,
            has_storage: true,
            keeps: Offered::PROMISES,
            fields_max: usize::MAX,
            has_body_storage: true,
            commits_pending: 0,
            takes_tls: true,
            commit: Ok(()),
            trusts: Offered::NONE,
            addresses: (
                "192.0.2.1:1024".parse().expect("an address"),
                "192.0.2.2:25".parse().expect("an address"),
            ),
            users: None,
            only_user: None,
            binding: None,
            password: None,
            open: None,
            asked: None,
            manner,
            random: Random::new(seed),
            has_room: true,
            body_room: 1 << 20,
        }
    }

    /// Whether a message is open.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    fn tighten(&mut self) {
        if self.manner.tight {
            self.has_room = self.random.below(3) > 0;
            self.body_room = 1 + self.random.below(40);
        }
    }

    fn widen(&mut self) {
        self.has_room = true;
        self.body_room = if self.manner.tight { 64 } else { 1 << 20 };
    }

    fn open_mut(&mut self) -> &mut Stored {
        self.open.as_mut().expect("a message is open")
    }
}

impl Sink for Recorder {
    fn has_room(&self) -> bool {
        self.has_room
    }

    fn commits_pending(&self) -> u32 {
        self.commits_pending
    }

    fn may_start_tls(&mut self) -> bool {
        self.takes_tls
    }

    fn command(&mut self, verb: Verb) {
        self.verbs[verb as usize] += 1;
    }

    fn reply(&mut self, reply: Reply) {
        assert_eq!(self.closed, None, "no reply follows the close");
        self.wire.extend_from_slice(reply.row().wire);
        self.tighten();
    }

    fn reply_configured(&mut self, _: Reply, wire: &[u8]) {
        assert_eq!(self.closed, None, "no reply follows the close");
        self.wire.extend_from_slice(wire);
        self.tighten();
    }

    fn keeps(&self) -> Offered {
        self.keeps
    }

    fn trusts(&self) -> Offered {
        self.trusts
    }

    fn addresses(&self) -> (SocketAddr, SocketAddr) {
        self.addresses
    }

    fn client_is(&mut self, client: Option<SocketAddr>, listener: Option<SocketAddr>) {
        self.addresses.0 = client.unwrap_or(self.addresses.0);
        self.addresses.1 = listener.unwrap_or(self.addresses.1);
    }

    fn verifier(&mut self, user: &str) -> Option<Verifier> {
        self.users.as_ref().map(|users| users.verifier(user))
    }

    fn check_password(&mut self, user: &str, password: &[u8]) -> Option<PasswordVerdict> {
        assert_eq!(self.password, None, "one password at a time");
        let verdict = match &self.users {
            _ if user == "busy" => PasswordVerdict::Busy,
            _ if self.only_user == Some((user, password)) => PasswordVerdict::Right,
            _ if self.only_user.is_some() => PasswordVerdict::Wrong,
            Some(users) if users.verifier(user).matches(password) => PasswordVerdict::Right,
            Some(_) => PasswordVerdict::Wrong,
            None => PasswordVerdict::Right,
        };
        if self.manner.late {
            self.password = Some(verdict);
            return None;
        }
        Some(verdict)
    }

    fn channel_binding(&mut self, binding: Binding) -> Option<BindingData> {
        let data = self.binding.filter(|_| binding == Binding::Exporter)?;
        BindingData::new(data)
    }

    fn nonce(&mut self) -> Vec<u8> {
        b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".to_vec()
    }

    fn ask(&mut self, question: Question<'_>) -> Option<Verdict> {
        assert_eq!(self.asked, None, "one question at a time");
        let text = match question {
            Question::Connect => "connect".to_owned(),
            Question::Helo(name) => format!("helo {}", String::from_utf8_lossy(name)),
            Question::Mail { path, size: _ } => {
                format!("mail {}", String::from_utf8_lossy(path))
            }
            Question::Rcpt { path } => format!("rcpt {}", String::from_utf8_lossy(path)),
            Question::Data { recipients } => format!("data {recipients}"),
            Question::Etrn { node } => format!("etrn {}", String::from_utf8_lossy(node)),
            Question::EndOfData { octets } => format!("end {octets}"),
        };
        let verdict = self
            .policy
            .iter()
            .find(|(question, _)| *question == text)
            .map_or(Verdict::Accept, |(_, verdict)| *verdict);
        if self.manner.late {
            self.asked = Some(verdict);
            return None;
        }
        Some(verdict)
    }

    fn begin_message(&mut self) -> bool {
        assert!(self.open.is_none(), "one message at a time");
        if self.has_storage {
            self.open = Some(Stored::default());
        }
        self.has_storage
    }

    fn envelope_room(&self) -> usize {
        let used: usize = self.open.as_ref().map_or(0, |message| {
            message
                .fields
                .iter()
                .map(|(_, value)| 3 + value.len())
                .sum()
        });
        self.envelope_bytes_max.saturating_sub(used)
    }

    fn envelope_field(&mut self, field: Field, parts: &[&[u8]]) -> bool {
        let value = parts.concat();
        let fits = 3 + value.len() <= self.envelope_room()
            && self.open_mut().fields.len() < self.fields_max;
        if fits {
            self.open_mut().fields.push((field as u8, value));
        }
        fits
    }

    fn recipient(&self) -> Option<&[u8]> {
        let fields = &self.open.as_ref()?.fields;
        let is_path = |(number, _): &&(u8, Vec<u8>)| *number == Field::ForwardPath as u8;
        fields.iter().find(is_path).map(|(_, path)| path.as_slice())
    }

    fn begin_body(&mut self, trace: &[u8], id_at: usize) -> bool {
        if !self.has_body_storage {
            return false;
        }
        let message = self.open_mut();
        assert!(message.trace.is_empty(), "one trace field");
        message.trace = trace.to_vec();
        message.id_at = id_at;
        true
    }

    fn body_room(&self) -> usize {
        self.body_room
    }

    fn body(&mut self, bytes: &[u8]) {
        assert!(
            bytes.len() <= self.body_room,
            "more octets than there is room for"
        );
        self.body_room -= bytes.len();
        self.open_mut().body.extend_from_slice(bytes);
    }

    fn end_of_message(&mut self, facts: &MessageFacts) -> Completion {
        let mut message = self.open.take().expect("a message is open");
        message.facts = Some(*facts);
        // Several replies are owed only once the message is committed.
        if self.manner.late || facts.answers > 1 {
            if self.commit.is_ok() {
                self.stored.push(message);
            }
            return Completion::Wait;
        }
        match self.commit {
            Ok(()) => {
                self.stored.push(message);
                self.wire.extend_from_slice(Reply::Stored.row().wire);
                Completion::Queued
            }
            Err(reply) => Completion::Refused(reply),
        }
    }

    fn abort_message(&mut self) {
        assert!(self.open.take().is_some(), "a message is open");
    }

    fn close(&mut self, reason: CloseReason) {
        assert_eq!(self.closed, None, "closed once");
        self.closed = Some(reason);
    }
}

/// A session and its connection.
pub struct Connection<'a> {
    pub session: Session,
    pub out: Recorder,
    ctx: &'a Context,
    input: Vec<u8>,
}

impl<'a> Connection<'a> {
    /// Connects; the greeting is recorded.
    pub fn new(ctx: &'a Context, out: Recorder) -> Connection<'a> {
        let mut connection = Connection {
            session: Session::new("192.0.2.1".parse().expect("an address")),
            out,
            ctx,
            input: Vec::new(),
        };
        connection.session.start(ctx, &mut connection.out);
        connection.run();
        connection
    }

    /// Gives the session `bytes` as one read from the socket.
    pub fn read(&mut self, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        if self.out.manner.in_place && self.input.is_empty() {
            while !bytes.is_empty() && self.session.can_receive_in_place() {
                let taken = self.session.receive_in_place(self.ctx, &mut bytes);
                if taken.kept > 0 {
                    self.out
                        .open_mut()
                        .body
                        .extend_from_slice(&bytes[..taken.kept]);
                }
                bytes.drain(..taken.consumed);
                if taken.end {
                    self.session.end_in_place(self.ctx, &mut self.out);
                }
            }
        }
        self.input.extend_from_slice(&bytes);
        self.run();
    }

    /// The handshake that STARTTLS announced succeeds. What was not consumed before it was no part of the session.
    pub fn secure(&mut self) {
        assert_eq!(
            self.session.phase(),
            Phase::Handshake,
            "STARTTLS was accepted"
        );
        self.input.clear();
        self.session.secured(&"TLS_AES_128_GCM_SHA256");
        self.run();
    }

    /// Octets that the session has not consumed.
    pub fn unread(&self) -> usize {
        self.input.len()
    }

    fn run(&mut self) {
        loop {
            let progress =
                self.session
                    .receive(self.ctx, &self.input, Instant(1), WALL_NS, &mut self.out);
            self.input.drain(..progress.consumed);
            match progress.blocked {
                None | Some(Blocked::Closed) => return,
                Some(Blocked::Tls) => return,
                Some(Blocked::Replies | Blocked::Pool) => self.out.widen(),
                Some(Blocked::Commits) => self.out.commits_pending = 0,
                Some(Blocked::Verdict) => {
                    if let Some(verdict) = self.out.password.take() {
                        self.session.password_checked(verdict, &mut self.out);
                        continue;
                    }
                    let verdict = self.out.asked.take().expect("a question was asked");
                    self.session.answer(self.ctx, verdict, &mut self.out);
                }
                Some(Blocked::Commit) => {
                    if self.out.commit.is_ok() {
                        self.out.wire.extend_from_slice(Reply::Stored.row().wire);
                    }
                    self.session.completed(self.out.commit, &mut self.out);
                }
            }
        }
    }
}

/// How `input` is cut into reads.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    Whole,
    Octets,
    Random(u64),
}

/// The pieces of `input`.
pub fn pieces(input: &[u8], cut: Cut) -> Vec<&[u8]> {
    match cut {
        Cut::Whole => vec![input],
        Cut::Octets => input.chunks(1).collect(),
        Cut::Random(seed) => {
            let mut random = Random::new(seed);
            let mut rest = input;
            let mut pieces = Vec::new();
            while !rest.is_empty() {
                let longest = [3, 40, 4_096][random.below(3)];
                let (piece, behind) = rest.split_at(rest.len().min(1 + random.below(longest)));
                pieces.push(piece);
                rest = behind;
            }
            pieces
        }
    }
}

/// Gives the session `input`, cut so, and lets each handshake succeed that STARTTLS announced. The client waits behind
/// STARTTLS as RFC 3207 4 wants it, so that a piece always ends with such a line: what becomes of a client that does
/// not wait depends on the cut.
pub fn converse(connection: &mut Connection<'_>, input: &[u8], cut: Cut) {
    let mut rest = input;
    while !rest.is_empty() {
        let (part, behind) = rest.split_at(end_of_starttls(rest));
        for piece in pieces(part, cut) {
            connection.read(piece);
        }
        if connection.session.phase() == Phase::Handshake {
            connection.secure();
        }
        rest = behind;
    }
}

/// Everything about a session that must not depend on how it is driven.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Every octet of the replies.
    pub wire: Vec<u8>,
    pub stored: Vec<Stored>,
    pub closed: Option<CloseReason>,
    pub verbs: [u32; Verb::COUNT],
    pub unread: usize,
}

impl Outcome {
    /// Plays a dialogue to its end, at which the connection is lost.
    pub fn of(ctx: &Context, recorder: Recorder, input: &[u8], cut: Cut) -> Outcome {
        let mut connection = Connection::new(ctx, recorder);
        converse(&mut connection, input, cut);
        let unread = match connection.out.closed {
            // What follows the close is not read; how much of it was given depends on the cut.
            Some(_) => 0,
            None => connection.unread(),
        };
        assert!(unread < AUTH_LINE_BYTES_MAX, "a line that long is not kept");
        connection.session.connection_lost(&mut connection.out);
        assert!(!connection.out.is_open(), "a message outlived its session");
        let out = connection.out;
        Outcome {
            wire: out.wire,
            stored: out.stored,
            closed: out.closed,
            verbs: out.verbs,
            unread,
        }
    }
}

impl Outcome {
    /// Every octet sent belongs to a known reply, those of the context (`configured`), a row of the table or a
    /// challenge; a 250 stands for each stored message (and each of its recipients, with LMTP), and there are as many
    /// replies as commands and messages ask for.
    pub fn assert_replies_are_due(&self, configured: &[&[u8]], is_lmtp: bool) {
        let mut rest = &self.wire[..];
        let (mut replies, mut stored, mut more) = (0, 0, 0);
        while !rest.is_empty() {
            let end = rest.iter().position(|octet| *octet == b'\n');
            let line = &rest[..end.map_or(rest.len(), |at| at + 1)];
            let known = configured
                .iter()
                .copied()
                .chain(reply::ROWS.iter().map(|row| row.wire))
                .chain(is_challenge(line).then_some(line))
                .find(|wire| !wire.is_empty() && rest.starts_with(wire));
            let Some(known) = known else {
                panic!("no known reply: {}", line.escape_ascii());
            };
            replies += 1;
            stored += usize::from(known == Reply::Stored.row().wire);
            // A message's end gets a reply of its own, or one for each recipient; what follows a challenge too.
            more += u32::from(known == Reply::DataStart.row().wire || is_challenge(known));
            more += u32::from(is_lmtp && known == Reply::RcptOk.row().wire);
            rest = &rest[known.len()..];
        }
        let answers = self
            .stored
            .iter()
            .map(|message| message.facts.expect("facts").answers);
        assert_eq!(stored, answers.sum::<u32>() as usize);
        let commands: u32 = self.verbs.iter().sum();
        // The greeting, one for each command, one more for each DATA whose content ended and for each answer to a
        // challenge. A BDAT whose octets are still to come has none yet.
        assert!(replies <= 1 + commands + more, "{replies} replies");
        // RFC 2033 4.3: the end of a message that no recipient was accepted for gets none.
        assert!(replies >= commands || is_lmtp, "{replies} replies");
    }
}

impl Stored {
    pub fn has_user(&self) -> bool {
        let mut fields = self.fields.iter();
        fields.any(|(field, _)| *field == Field::User as u8)
    }

    pub fn came_under_tls(&self) -> bool {
        self.trace.windows(7).any(|part| part == b"\r\n\ttls ")
    }
}

/// The end of the first line that holds STARTTLS, or of all.
fn end_of_starttls(input: &[u8]) -> usize {
    let mut end = 0;
    for line in input.split_inclusive(|octet| *octet == b'\n') {
        end += line.len();
        let mut words = line.windows(b"STARTTLS".len());
        if words.any(|word| word.eq_ignore_ascii_case(b"STARTTLS")) {
            return end;
        }
    }
    end
}

/// Whether `line` is a challenge of AUTH: 334 and base64.
pub fn is_challenge(line: &[u8]) -> bool {
    let text = line
        .strip_prefix(b"334 ")
        .and_then(|rest| rest.strip_suffix(b"\r\n"));
    text.is_some_and(|text| ringmx::base64::decoded(text).is_some())
}

/// All manners, each with its seed.
pub fn manners() -> impl Iterator<Item = Manner> {
    (0..8).map(|bits| Manner {
        late: bits & 1 != 0,
        tight: bits & 2 != 0,
        in_place: bits & 4 != 0,
    })
}
