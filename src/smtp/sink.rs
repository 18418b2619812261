//! What a session asks of whoever drives it: the connection, the simulator, a fuzzer, a transcript test.

use core::net::SocketAddr;

use super::parameter::Offered;
use super::reply::Reply;
use super::sasl::{Binding, BindingData};
use super::trace::Date;
use crate::clock::Instant;
use crate::users::Verifier;

/// A question the session can't answer from its own state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// A client connected; nothing was sent yet.
    Connect,
    /// HELO or EHLO with this name (as given).
    Helo(&'a [u8]),
    /// MAIL with this reverse-path (without brackets; empty for the null reverse-path) and declared SIZE in octets.
    Mail {
        /// Reverse-path without brackets.
        path: &'a [u8],
        /// Declared SIZE, octets (RFC 1870).
        size: Option<u64>,
    },
    /// RCPT with this forward-path (without brackets and source route).
    Rcpt {
        /// Forward-path.
        path: &'a [u8],
    },
    /// DATA or the first BDAT, `recipients` accepted.
    Data {
        /// Accepted recipients.
        recipients: u32,
    },
    /// ETRN for this node (RFC 1985), `@` or `#` in front included; outside a transaction.
    Etrn {
        /// Node, domain or queue.
        node: &'a [u8],
    },
    /// The whole message is here, `octets` long; not yet appended.
    EndOfData {
        /// Octets of the message.
        octets: u64,
    },
}

/// The answer to a [`Question`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Accept,
    /// Refuse with this reply; the session goes on.
    Refuse(Reply),
    /// Refuse with this reply and close.
    RefuseAndClose(Reply),
}

/// What became of a password that was to be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordVerdict {
    /// It is the user's.
    Right,
    /// It is not, or there is no such user.
    Wrong,
    /// It could not be checked now.
    Busy,
}

/// Why a session stopped taking input although there is some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The reply buffer has no room, or too many commits are pending.
    Replies,
    /// A verdict has to come first: call `Session::answer`, or `Session::password_checked`.
    Verdict,
    /// The message that ended has to be committed first: call `Session::completed`.
    Commit,
    /// The chunk pool has no room for message bytes.
    Pool,
    /// A command that acts only when no commit is pending: call `Session::receive` again then, with the input that
    /// was not consumed.
    Commits,
    /// STARTTLS got its 220: what comes now is a TLS handshake. Call `Session::secured` when it succeeded.
    Tls,
    /// The session is over; nothing more is read.
    Closed,
}

/// What became of a message whose last byte arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// It is queued, its 250 stands in the reply queue and leaves when it is due. The session goes on.
    Queued,
    /// It is too large to be queued at once; the session waits for `Session::completed`.
    Wait,
    /// It is refused; the session sends this reply.
    Refused(Reply),
}

/// Fields of a message's envelope that the session knows; see `crate::envelope` for their layout.
pub use crate::envelope::Field;

/// What the decoder learnt about a message's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentFacts {
    /// Octets of the message after transparency was undone.
    pub octets: u64,
    /// LF without CR before it.
    pub bare_lf: u32,
    /// CR without LF behind it.
    pub bare_cr: u32,
    /// NUL octets.
    pub nul: u32,
    /// Offset of the first of these three in the message octets as the client sent them, transparency undone.
    pub first_offset: Option<u64>,
}

/// What the session knows about a message that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageFacts {
    /// What the content holds.
    pub content: ContentFacts,
    /// `FLAG_*` bits of `crate::envelope`.
    pub flags: u8,
    /// One of the `BODY_*` values of `crate::envelope`.
    pub body: u8,
    /// Accepted recipients, at least 1.
    pub recipients: u32,
    /// Replies that the end of the message takes: 1, or one for each recipient with LMTP (RFC 2033 4.2). The sink
    /// sends the first; the session asks for the others. With more than 1 the session has to wait for the commit.
    pub answers: u32,
    /// Declared SIZE, octets (RFC 1870).
    pub declared_size: Option<u64>,
    /// When MAIL was accepted.
    pub transaction_started: Instant,
    /// When DATA or the first BDAT was accepted.
    pub data_started: Instant,
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// QUIT.
    Quit,
    /// The server refused to go on (421, policy, errors).
    Refused,
    /// A timer ran out.
    TimedOut,
}

/// The commands, for counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verb {
    /// HELO
    Helo,
    /// EHLO
    Ehlo,
    /// MAIL
    Mail,
    /// RCPT
    Rcpt,
    /// DATA
    Data,
    /// BDAT
    Bdat,
    /// RSET
    Rset,
    /// NOOP
    Noop,
    /// VRFY
    Vrfy,
    /// EXPN
    Expn,
    /// HELP
    Help,
    /// QUIT
    Quit,
    /// STARTTLS
    StartTls,
    /// AUTH
    Auth,
    /// LHLO
    Lhlo,
    /// ETRN
    Etrn,
    /// XCLIENT
    Xclient,
    /// XFORWARD
    Xforward,
    /// Anything else, malformed lines included.
    Other,
}

impl Verb {
    /// Whether it brings no mail: a client that sends nothing else wants something else.
    pub fn is_idle(self) -> bool {
        matches!(
            self,
            Verb::Helo
                | Verb::Ehlo
                | Verb::Rset
                | Verb::Noop
                | Verb::Vrfy
                | Verb::Expn
                | Verb::Help
        )
    }

    /// Number of variants.
    pub const COUNT: usize = 19;
    /// Names in the order of the variants, lower case.
    pub const NAMES: [&'static str; Verb::COUNT] = [
        "helo", "ehlo", "mail", "rcpt", "data", "bdat", "rset", "noop", "vrfy", "expn", "help",
        "quit", "starttls", "auth", "lhlo", "etrn", "xclient", "xforward", "other",
    ];
}

/// Receives what a session does. No call blocks.
///
/// The session calls `has_room` before each command and stops with [`Blocked::Replies`] when it is false; each
/// command then leads to at most one reply.
pub trait Sink {
    /// Whether one more reply of any kind, and one more pending commit, can be taken.
    fn has_room(&self) -> bool;
    /// Messages of this session that are queued and not yet durable.
    fn commits_pending(&self) -> u32;
    /// Errors of one session after which the next one ends it. May change while the session lasts.
    fn errors_max(&self) -> u32 {
        crate::limits::SESSION_ERRORS_MAX
    }
    /// Commands that bring no mail (NOOP, RSET, VRFY, EXPN, HELP, a second EHLO) between two messages after which the
    /// next one ends the session; `None`: no limit. May change while the session lasts.
    fn idle_commands_max(&self) -> Option<u32> {
        None
    }
    /// Why this client may not begin a TLS handshake now, though others may; `None`: it may, and it is counted.
    fn handshake_refusal(&mut self) -> Option<Reply> {
        None
    }
    /// A command line was recognised (or not: [`Verb::Other`]). For counters.
    fn command(&mut self, verb: Verb);
    /// Sends a fixed reply.
    fn reply(&mut self, reply: Reply);
    /// Sends a configured reply: `wire` is complete, CRLF included; `reply` names its row for counters.
    fn reply_configured(&mut self, reply: Reply, wire: &[u8]);
    /// What whoever takes the messages on has said that it keeps, out of `Offered::PROMISES`. A sink listener does not
    /// ask: it promises nothing.
    fn keeps(&self) -> Offered {
        Offered::PROMISES
    }
    /// What this client may say about another: some of `Offered::XCLIENT` and `Offered::XFORWARD`.
    fn trusts(&self) -> Offered {
        Offered::NONE
    }
    /// XCLIENT has said who the client is, and where it connected to; `None`: as before.
    fn client_is(&mut self, _client: Option<SocketAddr>, _listener: Option<SocketAddr>) {}
    /// The address of the client, with its port, and of the server, as they stand now.
    fn addresses(&self) -> (SocketAddr, SocketAddr) {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        (nowhere, nowhere)
    }
    /// The verifier of this user, or a decoy for a name that nobody has; `None` where no users are known.
    fn verifier(&mut self, user: &str) -> Option<Verifier>;
    /// Checks the password of this user; `None` means that the answer comes later through
    /// `Session::password_checked`. The password is to be wiped wherever it was copied to.
    fn check_password(&mut self, user: &str, password: &[u8]) -> Option<PasswordVerdict>;
    /// The client is a user from now on, or is none any more.
    fn user_is_known(&mut self, _is_known: bool) {}
    /// What binds the TLS channel; `None` where there is none, or it has no such binding.
    fn channel_binding(&mut self, binding: Binding) -> Option<BindingData>;
    /// Fresh random text for SCRAM: graphic ASCII without commas, at most `SERVER_NONCE_BYTES_MAX` octets.
    fn nonce(&mut self) -> Vec<u8>;
    /// Sends the 250 of the last message of this session once more, for its next recipient (LMTP).
    fn stored_again(&mut self) {
        self.reply(Reply::Stored);
    }
    /// STARTTLS is about to be accepted. False when no further handshake can be taken now: it gets 454.
    fn may_start_tls(&mut self) -> bool {
        true
    }
    /// Asks; `None` means that the answer comes later through `Session::answer`.
    fn ask(&mut self, question: Question<'_>) -> Option<Verdict>;
    /// Whether anything is kept of the messages: without, no envelope field and no trace field is made.
    fn stores(&self) -> bool {
        true
    }
    /// MAIL is about to be accepted: opens a message. False when there is no chunk for it.
    fn begin_message(&mut self) -> bool;
    /// Octets of envelope, field headers included, that the envelope may still grow by.
    fn envelope_room(&self) -> usize;
    /// Appends one envelope field, its value the concatenation of `parts`. False when the envelope is full;
    /// then nothing of it was appended.
    fn envelope_field(&mut self, field: Field, parts: &[&[u8]]) -> bool;
    /// Appends envelope fields, one after the other. False when the envelope is full; then some of them may have been
    /// appended, and the message can't go on.
    fn envelope_fields(&mut self, fields: &[(Field, &[u8])]) -> bool {
        fields
            .iter()
            .all(|(field, value)| self.envelope_field(*field, &[value]))
    }

    /// The date and time of `wall_ns`, nanoseconds since 1970, for trace fields. Whoever has many of them keeps it for
    /// a second.
    fn date(&mut self, wall_ns: u64) -> Date {
        Date::at(wall_ns)
    }
    /// The forward-path of the open message's first recipient, as it was given to [`Sink::envelope_field`]; `None`
    /// where nothing is kept. Asked only when there is one recipient.
    fn recipient(&self) -> Option<&[u8]> {
        None
    }
    /// The envelope is complete. `trace` is the Received field, CRLF included, with the message's id missing at
    /// offset `id_at`. False when there is no chunk for it; the session then refuses the command and the
    /// message stays open without a body.
    fn begin_body(&mut self, trace: &[u8], id_at: usize) -> bool;
    /// Octets of body that `body` can take now.
    fn body_room(&self) -> usize;
    /// Body octets, at most `body_room` of them.
    fn body(&mut self, bytes: &[u8]);
    /// The message is complete and accepted as far as the session knows. Whatever the result, the message is no
    /// longer open: [`Sink::abort_message`] does not follow.
    fn end_of_message(&mut self, facts: &MessageFacts) -> Completion;
    /// Drops the open message, if any (RSET, EHLO, refusal, oversize, connection lost).
    fn abort_message(&mut self);
    /// Drops the open message because its content can't be accepted; it gets its refusal at its end.
    fn refuse_message(&mut self) {
        self.abort_message();
    }
    /// Nothing more will be read; the connection closes when the queued replies have left.
    fn close(&mut self, reason: CloseReason);
}
