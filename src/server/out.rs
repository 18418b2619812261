//! What a session does to its connection: replies, questions, message bytes. The one place all replies leave
//! through.

use core::net::SocketAddr;

use super::auth::Accounts;
use super::storage::{Commit, Large, Pending, Queued};
use super::{Shared, urgency};
use crate::buffer::{Pool, Urgency};
use crate::clock::Instant;
use crate::conn::{Io, Token};
use crate::ctl::PROMISES;
use crate::envelope::{Facts, Field};
use crate::ip_prefix::IpPrefix;
use crate::message::{Front, ID_BYTES_MAX, Message};
use crate::metrics::{CloseCause, Phase};
use crate::policy::rules::Subject;
use crate::ringlog::backing::Backing;
use crate::ringlog::writer::{ReserveError, Slot};
use crate::smtp::extension;
use crate::smtp::parameter::Offered;
use crate::smtp::reply::Reply;
use crate::smtp::sasl::{Binding, BindingData};
use crate::smtp::sink::{
    CloseReason, Completion, MessageFacts, PasswordVerdict, Question, Sink, Verb, Verdict,
};
use crate::smtp::trace::Date;
use crate::tls;
use crate::users::Verifier;

/// The 250 of a server that throws messages away: it promises nothing.
const DISCARDED: &[u8] = b"250 2.0.0 Ok: discarded\r\n";

/// Whether a reply may wait for the one to the end of the message that its client has sent already. A refusal may not.
fn is_grouped(reply: Reply) -> bool {
    matches!(
        reply,
        Reply::MailOk | Reply::RcptOk | Reply::Rset | Reply::ChunkOk
    )
}

/// The sink of one session.
pub(super) struct Out<'a, B: Backing, C> {
    pub(super) io: &'a mut Io,
    pub(super) shared: &'a mut Shared<B, C>,
    pub(super) token: Token,
}

/// The numbers below 100 in two digits.
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[b'0'; 2]; 100];
    let mut number = 0;
    while number < 100 {
        pairs[number] = [b'0' + number as u8 / 10, b'0' + number as u8 % 10];
        number += 1;
    }
    pairs
};

/// Text of a number without allocation.
pub(super) struct Digits {
    bytes: [u8; 20],
    start: usize,
}

impl Digits {
    pub(super) fn new(mut value: u64) -> Digits {
        let mut digits = Digits {
            bytes: [0; 20],
            start: 20,
        };
        while value >= 100 {
            let [tens, ones] = PAIRS[(value % 100) as usize];
            digits.start -= 2;
            digits.bytes[digits.start] = tens;
            digits.bytes[digits.start + 1] = ones;
            value /= 100;
        }
        let [tens, ones] = PAIRS[value as usize];
        digits.start -= 1;
        digits.bytes[digits.start] = ones;
        if value >= 10 {
            digits.start -= 1;
            digits.bytes[digits.start] = tens;
        }
        digits
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// A message's id, `SHARD-NUMBER`, and the reply that promises it.
pub(super) struct Named {
    bytes: [u8; Named::PREFIX.len() + ID_BYTES_MAX + 2],
    len: usize,
}

impl Named {
    const PREFIX: &'static [u8] = b"250 2.0.0 Ok: stored as ";

    pub(super) fn new(shard: u16, number: u64) -> Named {
        let mut named = Named {
            bytes: [0; Named::PREFIX.len() + ID_BYTES_MAX + 2],
            len: 0,
        };
        let shard = Digits::new(u64::from(shard));
        let number = Digits::new(number);
        for part in [
            Named::PREFIX,
            shard.as_bytes(),
            b"-",
            number.as_bytes(),
            b"\r\n",
        ] {
            named.bytes[named.len..named.len + part.len()].copy_from_slice(part);
            named.len += part.len();
        }
        named
    }

    pub(super) fn id(&self) -> &[u8] {
        &self.bytes[Named::PREFIX.len()..self.len - 2]
    }

    pub(super) fn reply(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl<B: Backing, C> Out<'_, B, C> {
    pub(super) fn queue_to_flush(&mut self) {
        if !self.io.flags.queued_to_flush {
            self.io.flags.queued_to_flush = true;
            self.shared.flush.push(self.token);
        }
    }

    /// Queues the 250 of a message, held until it is as durable as promised, and the message for the next write.
    fn promise(&mut self, message: Message, slot: Slot, named: &Named, ended_at: Instant) {
        let shared = &mut *self.shared;
        let reply = self.io.push_grouped(&mut shared.pool, named.reply());
        // What stands between the last held reply of this session and this one leaves with that one.
        if self.io.commits_pending > 0 {
            let index = self.io.last_pending.wrapping_sub(shared.pending_settled) as usize;
            if let Some(last) = shared.pending.get_mut(index) {
                last.release_to = reply.0;
            }
        }
        self.io.last_pending = shared
            .pending_settled
            .wrapping_add(shared.pending.len() as u32);
        self.io.hold(reply.0);
        shared.pending.push_back(Pending {
            token: self.token,
            end: slot.end,
            reply,
            release_to: reply.1,
            large_number: None,
            ended_at,
            octets: message.octets(),
        });
        shared.batch.push(Queued { message, slot });
        self.queue_to_flush();
    }

    /// The open message, and the pool that its octets are in.
    fn message_and_pool(&mut self) -> Option<(&mut Message, &mut Pool)> {
        let key = self.io.message?;
        let message = self.shared.messages.get_mut(key.place())?;
        Some((message, &mut self.shared.pool))
    }

    /// Gives the open message back. Whether its content had begun.
    fn drop_message(&mut self) -> bool {
        self.shared.stop_growing(self.io, self.token.key);
        let Some(message) = self.shared.take_message(self.io) else {
            return false;
        };
        let had_begun = message.in_body();
        message.free(&mut self.shared.pool);
        had_begun
    }

    /// Asks everybody who has a say in a connection, those who count last.
    fn admit_connection(&mut self, question: &Question<'_>) -> Option<Verdict> {
        let verdict = self.decide(question);
        if verdict != Some(Verdict::Accept) {
            self.io.flags.is_turned_away = verdict.is_some();
            return verdict;
        }
        // Where a TLS handshake came first, the connection was counted before it.
        let is_admitted = std::mem::take(&mut self.io.flags.is_admitted);
        if !is_admitted && let Some(refusal) = self.shared.admit_client(self.io) {
            self.io.flags.is_turned_away = true;
            return Some(Verdict::RefuseAndClose(refusal));
        }
        let is_delayed = self.shared.delay_greeting(self.io, self.token);
        (!is_delayed).then_some(Verdict::Accept)
    }

    /// Asks the access rules and, when they have nothing against it, the policy.
    fn decide(&mut self, question: &Question<'_>) -> Option<Verdict> {
        let subject = Subject {
            client: self.io.client().ip(),
            role: self.shared.listeners[usize::from(self.io.listener)].role,
            is_user: self.io.flags.is_user,
        };
        match self.shared.rules.decide(&subject, question) {
            Verdict::Accept if self.io.flags.is_limited => {
                match self.shared.admit_question(self.io, question) {
                    None => (self.shared.policy)(question),
                    Some(refusal) => Some(Verdict::Refuse(refusal)),
                }
            }
            Verdict::Accept => (self.shared.policy)(question),
            refusal => Some(refusal),
        }
    }

    /// Urgency with which this connection may take chunks.
    pub(super) fn urgency(&self) -> Urgency {
        urgency(self.io, self.shared, self.token)
    }
}

impl<B: Backing, C> Sink for Out<'_, B, C> {
    fn has_room(&self) -> bool {
        self.io.has_room()
    }

    fn commits_pending(&self) -> u32 {
        u32::from(self.io.commits_pending) + u32::from(self.io.flags.large_pending)
    }

    fn may_start_tls(&mut self) -> bool {
        self.io.tls = self.shared.secure.announce();
        self.shared.metrics.tls.refused += u64::from(self.io.tls.is_none());
        self.io.tls.is_some()
    }

    fn errors_max(&self) -> u32 {
        self.shared.errors_max(self.io)
    }

    fn handshake_refusal(&mut self) -> Option<Reply> {
        self.shared.admit_handshake(self.io)
    }

    fn idle_commands_max(&self) -> Option<u32> {
        self.shared.idle_commands_max(self.io)
    }

    fn command(&mut self, verb: Verb) {
        self.shared.metrics.command(verb as usize);
    }

    fn reply(&mut self, reply: Reply) {
        let row = reply.row();
        self.shared.metrics.reply(reply as usize);
        if row.code >= 400 {
            self.shared.log_refusal(self.io, reply);
        }
        self.shared.turn_replies += 1;
        let (from, _) = if is_grouped(reply) {
            self.io.push_grouped(&mut self.shared.pool, row.wire)
        } else {
            self.io.push_reply(&mut self.shared.pool, row.wire)
        };
        if row.code >= 400 && self.io.flags.is_limited {
            self.shared.tarpit(self.io, from, self.token);
        }
        self.queue_to_flush();
    }

    fn reply_configured(&mut self, reply: Reply, wire: &[u8]) {
        self.shared.metrics.reply(reply as usize);
        self.shared.turn_replies += 1;
        self.io.push_reply(&mut self.shared.pool, wire);
        self.queue_to_flush();
    }

    fn ask(&mut self, question: Question<'_>) -> Option<Verdict> {
        Some(match question {
            Question::Connect if self.shared.draining => {
                Verdict::RefuseAndClose(Reply::ShuttingDown)
            }
            Question::Connect if self.shared.is_failed() => {
                Verdict::RefuseAndClose(Reply::StorageDownClose)
            }
            Question::Mail { .. } if self.shared.refuses_mail() => {
                Verdict::Refuse(Reply::StorageDown)
            }
            Question::Mail { size, .. } if !self.shared.admits(size.unwrap_or(0)) => {
                Verdict::Refuse(Reply::NoSpace)
            }
            // Nothing is queued here for a node, whoever asks: a consumer takes the mail when it is ready. RFC 1985 5.1
            // has 458 for that; 250 would say that something was started.
            Question::Etrn { .. } => Verdict::Refuse(Reply::EtrnUnable),
            Question::Connect => return self.admit_connection(&question),
            _ if self.io.flags.is_guarded => return self.decide(&question),
            _ => return (self.shared.policy)(&question),
        })
    }

    fn trusts(&self) -> Offered {
        // Who the socket says it is; what XCLIENT said of it counts for nothing here.
        let peer = self.io.peer.ip();
        let is_in = |networks: &[IpPrefix]| networks.iter().any(|network| network.contains(peer));
        let mut trusted = Offered::NONE;
        if is_in(&self.shared.xclient_from) {
            trusted = trusted.with(Offered::XCLIENT);
        }
        if is_in(&self.shared.xforward_from) {
            trusted = trusted.with(Offered::XFORWARD);
        }
        trusted
    }

    fn client_is(&mut self, client: Option<SocketAddr>, listener: Option<SocketAddr>) {
        let (old_client, old_listener) = self.addresses();
        self.io.be_seen_as(
            client.unwrap_or(old_client),
            listener.unwrap_or(old_listener),
        );
    }

    fn addresses(&self) -> (SocketAddr, SocketAddr) {
        let listener = self.shared.listeners[usize::from(self.io.listener)].address;
        let real = (self.io.peer, listener);
        self.io.seen_as().unwrap_or(real)
    }

    fn verifier(&mut self, user: &str) -> Option<Verifier> {
        match &self.shared.accounts {
            Accounts::Anybody => None,
            Accounts::Users(users) => Some(users.verifier(user)),
        }
    }

    fn check_password(&mut self, user: &str, password: &[u8]) -> Option<PasswordVerdict> {
        let Some(verifier) = self.verifier(user) else {
            return Some(PasswordVerdict::Right);
        };
        if self
            .shared
            .check_password(self.token, self.io, verifier, password)
        {
            None
        } else {
            Some(PasswordVerdict::Busy)
        }
    }

    fn user_is_known(&mut self, is_known: bool) {
        self.io.flags.is_user = is_known;
    }

    fn keeps(&self) -> Offered {
        let kept = self.shared.attachments.kept();
        let names = PROMISES.iter().enumerate();
        names
            .filter(|(at, _)| kept & 1 << at != 0)
            .filter_map(|(_, name)| extension::named(name))
            .fold(Offered::NONE, Offered::with)
    }

    fn channel_binding(&mut self, binding: Binding) -> Option<BindingData> {
        let bindings = self.io.tls.as_ref().and_then(|tls| tls.bindings())?;
        BindingData::new(match binding {
            Binding::Exporter => &bindings.exporter,
            Binding::ServerEndPoint => bindings.end_point.as_deref()?,
        })
    }

    fn nonce(&mut self) -> Vec<u8> {
        let mut octets = [0; 18];
        // Without random octets nothing is offered in the first place: the process does not start.
        let filled = crate::sys::file::random(&mut octets);
        debug_assert!(filled.is_ok());
        crate::base64::text(&octets).into_bytes()
    }

    fn stored_again(&mut self) {
        self.shared.metrics.reply(Reply::Stored as usize);
        if self.shared.storage.is_some() {
            let named = Named::new(self.shared.options.shard, self.io.stored_number());
            self.io.push_reply(&mut self.shared.pool, named.reply());
        } else {
            self.io.push_reply(&mut self.shared.pool, DISCARDED);
        }
        self.queue_to_flush();
    }

    fn stores(&self) -> bool {
        self.shared.storage.is_some()
    }

    fn begin_message(&mut self) -> bool {
        if self.shared.storage.is_none() {
            return true;
        }
        let (client, address) = self.addresses();
        let listener = usize::from(self.io.listener);
        let role = self.shared.listeners[listener].role.name();
        let front = &mut self.shared.fronts[listener];
        // XCLIENT may have named another address.
        if !front.is_of(address, role) {
            *front = Front::new(address, role);
        }
        let pool = &mut self.shared.pool;
        let Some(mut message) = Message::begin_at(pool, front, client) else {
            self.shared.metrics.pool_low_events += 1;
            return false;
        };
        let tls = self.io.tls.as_ref().and_then(|tls| tls.facts());
        let taken = tls.is_none_or(|facts| put_tls(&mut message, pool, facts));
        debug_assert!(taken, "a few short fields fit into a fresh chunk");
        self.shared.put_message(self.io, message);
        true
    }

    fn envelope_fields(&mut self, fields: &[(Field, &[u8])]) -> bool {
        match self.message_and_pool() {
            Some((message, pool)) => message.envelope_fields(pool, fields),
            None => true,
        }
    }

    fn date(&mut self, wall_ns: u64) -> Date {
        if !self.shared.trace_date.is_at(wall_ns) {
            self.shared.trace_date = Date::at(wall_ns);
        }
        self.shared.trace_date
    }

    fn envelope_field(&mut self, field: Field, parts: &[&[u8]]) -> bool {
        match self.message_and_pool() {
            Some((message, pool)) => message.envelope_field(pool, field, parts),
            None => true,
        }
    }

    fn envelope_room(&self) -> usize {
        match self.shared.message(self.io) {
            Some(message) => message.envelope_room(&self.shared.pool),
            None => usize::MAX,
        }
    }

    fn recipient(&self) -> Option<&[u8]> {
        let message = self.shared.message(self.io)?;
        message.find_field(&self.shared.pool, Field::ForwardPath)
    }

    fn begin_body(&mut self, trace: &[u8], id_at: usize) -> bool {
        self.io.phase_at = self.shared.now;
        match self.message_and_pool() {
            Some((message, pool)) => message.begin_body(pool, trace, id_at),
            None => true,
        }
    }

    fn body_room(&self) -> usize {
        match self.shared.message(self.io) {
            Some(message) if message.in_body() => {
                if super::may_grow(self.io, self.shared, self.token) {
                    message.body_room(&self.shared.pool, self.urgency())
                } else {
                    message.room(&self.shared.pool)
                }
            }
            _ => usize::MAX,
        }
    }

    fn body(&mut self, bytes: &[u8]) {
        let urgency = self.urgency();
        if let Some((message, pool)) = self.message_and_pool() {
            message.body(pool, bytes, urgency);
            if message.wants_direct_reads() {
                self.shared.start_growing(self.io, self.token.key);
            }
        }
    }

    fn end_of_message(&mut self, facts: &MessageFacts) -> Completion {
        let shared = &mut *self.shared;
        let ended_at = shared.now;
        shared.metrics.bare_lf += u64::from(facts.content.bare_lf);
        shared.metrics.bare_cr += u64::from(facts.content.bare_cr);
        shared.metrics.nul += u64::from(facts.content.nul);
        shared
            .metrics
            .record(Phase::Data, ended_at.since_ns(facts.data_started));
        shared.stop_growing(self.io, self.token.key);
        let Some(storage) = &mut shared.storage else {
            shared.metrics.messages_accepted += 1;
            shared.metrics.message_bytes_accepted += facts.content.octets;
            shared.note_answered(ended_at, Commit::Discarded);
            shared.metrics.reply(Reply::Stored as usize);
            self.io.push_reply(&mut shared.pool, DISCARDED);
            self.queue_to_flush();
            return Completion::Queued;
        };
        let key = self.io.message.take();
        let message = key.and_then(|key| shared.messages.try_remove(key.place()));
        let Some(mut message) = message else {
            shared.metrics.no_space_after_data += 1;
            shared.metrics.messages_refused += 1;
            return Completion::Refused(Reply::NoSpace);
        };
        if storage.log.failed().is_some() {
            message.free(&mut shared.pool);
            shared.metrics.messages_refused += 1;
            return Completion::Refused(Reply::StorageDown);
        }
        let stored_facts = stored_facts(facts, ended_at);
        // Behind one that waits for space everybody waits, or it would wait for ever.
        // So does one that takes several replies: they are sent as there is room, and only what is stored gets any.
        let mut wait = message.fragments() > 1 || shared.space_wanted || facts.answers > 1;
        let mut reserved = None;
        if !wait {
            match storage.log.reserve(message.payload_bytes()) {
                Ok(slot) => reserved = Some(slot),
                Err(ReserveError::Full { freeing: true }) => wait = true,
                Err(error) => {
                    message.free(&mut shared.pool);
                    shared.metrics.messages_refused += 1;
                    return Completion::Refused(shared.refusal_for(error));
                }
            }
        }
        let Some(slot) = reserved.filter(|_| !wait) else {
            self.io.flags.large_pending = true;
            self.io.phase_at = ended_at;
            shared.large.push_back(Large {
                message,
                facts: stored_facts,
                token: self.token,
                ended_at,
                progress: None,
            });
            return Completion::Wait;
        };
        let named = Named::new(shared.options.shard, slot.number);
        message.name(&mut shared.pool, named.id(), stored_facts);
        self.promise(message, slot, &named, ended_at);
        Completion::Queued
    }

    fn abort_message(&mut self) {
        if self.drop_message() {
            self.shared.metrics.messages_aborted += 1;
        }
    }

    fn refuse_message(&mut self) {
        self.drop_message();
        self.shared.metrics.messages_refused += 1;
    }

    fn close(&mut self, reason: CloseReason) {
        self.io.cause = match reason {
            CloseReason::Quit => CloseCause::Quit,
            CloseReason::Refused => CloseCause::Refused,
            CloseReason::TimedOut => CloseCause::TimedOut,
        };
        self.io.flags.closing = true;
        self.io.flags.quit = reason == CloseReason::Quit;
        self.io.phase_at = self.shared.now;
        self.queue_to_flush();
    }
}

/// Stores what is known of the client's TLS.
fn put_tls(message: &mut Message, pool: &mut Pool, facts: &tls::Facts) -> bool {
    let (version, cipher) = (facts.version.as_bytes(), facts.cipher.as_bytes());
    let name = facts.server_name.as_ref();
    message.envelope_field(pool, Field::Tls, &[version, b" ", cipher])
        && name.is_none_or(|name| {
            message.envelope_field(pool, Field::TlsServerName, &[name.as_bytes()])
        })
        && facts.client.as_ref().is_none_or(|client| {
            let text = client.to_string();
            message.envelope_field(pool, Field::TlsClient, &[text.as_bytes()])
        })
}

/// The facts as the envelope stores them.
fn stored_facts(facts: &MessageFacts, ended_at: Instant) -> Facts {
    let micros = |ns: u64| u32::try_from(ns / 1_000).unwrap_or(u32::MAX);
    Facts {
        flags: facts.flags,
        body: facts.body,
        trace_bytes: 0,
        recipients: facts.recipients,
        declared_size_plus_1: facts.declared_size.map_or(0, |size| size.saturating_add(1)),
        bare_lf: facts.content.bare_lf,
        bare_cr: facts.content.bare_cr,
        nul: facts.content.nul,
        transaction_us: micros(ended_at.since_ns(facts.transaction_started)),
        data_us: micros(ended_at.since_ns(facts.data_started)),
        reserved: 0,
        first_offset_plus_1: facts
            .content
            .first_offset
            .map_or(0, |at| at.saturating_add(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_names_the_message_as_the_trace_field_does() {
        let named = Named::new(0, 1);
        assert_eq!(named.id(), b"0-1");
        assert_eq!(named.reply(), b"250 2.0.0 Ok: stored as 0-1\r\n");
        let longest = Named::new(999, u64::MAX);
        assert_eq!(longest.id(), b"999-18446744073709551615");
        assert!(longest.id().len() <= ID_BYTES_MAX);
    }

    #[test]
    fn numbers_are_written_as_everywhere() {
        let powers = (0..20).map(|power| 10_u64.pow(power));
        let around = powers.flat_map(|power| [power - 1, power, power + 1]);
        for number in (0..1_100).chain(around).chain([u64::MAX - 1, u64::MAX]) {
            assert_eq!(
                Digits::new(number).as_bytes(),
                number.to_string().as_bytes()
            );
        }
    }
}
