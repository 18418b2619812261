//! TLS of one connection (RFC 8446, RFC 5246), without sockets: ciphertext in, plaintext out, and back.
//!
//! Promises: a connection that is open and idle holds what rustls holds and no buffer; ciphertext is decrypted in
//! the caller's buffer; what has to be kept of an unfinished record or of an unfinished send is kept in chunks of the
//! pool. "TLS ended" is terminal: after a close_notify or a failure nothing is read any more, and nothing is ever sent
//! in the clear. Only TLS 1.2 and 1.3 (RFC 8996), no early data, no renegotiation.
//! Does not: read or write sockets, look at files, or decide when a handshake may run.
//!
//! rustls copies the plaintext of each record into a vector of its own, one allocation for each record received and
//! one for each record sent. Its buffered interface does the same and keeps 4 KiB more for each idle connection.

pub mod binding;
pub mod credentials;
pub mod self_signed;

use core::fmt;
use std::sync::Arc;

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus, WriteTraffic,
};
use rustls::{Error, HandshakeKind, ProtocolVersion};

use self::binding::ChannelBindings;
use self::credentials::{Choice, Credentials};
use crate::buffer::{ChunkId, Pool, Urgency};
use crate::limits::{CHUNK_SMALL_BYTES, TLS_HANDSHAKE_BYTES_MAX, TLS_RECORD_BYTES_MAX};
pub use crate::metrics::TlsFailure as Failure;

/// Small chunks that hold the front of a record.
const PARKED_CHUNKS: usize = TLS_RECORD_BYTES_MAX.div_ceil(CHUNK_SMALL_BYTES);

/// What an error of rustls means for the counters.
fn failure_of(error: &Error) -> Failure {
    use rustls::PeerIncompatible as Peer;
    match error {
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => Failure::NotTls,
        Error::PeerSentOversizedRecord => Failure::TooLong,
        Error::PeerIncompatible(
            Peer::Tls12NotOffered
            | Peer::Tls12NotOfferedOrEnabled
            | Peer::SupportedVersionsExtensionRequired
            // Which came with 1.2 and is looked for before the version is.
            | Peer::SignatureAlgorithmsExtensionRequired
            | Peer::ServerTlsVersionIsDisabledByOurConfig,
        ) => Failure::Version,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Failure::NothingInCommon,
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented => Failure::ClientCertificate,
        Error::AlertReceived(_) => Failure::Alert,
        Error::InappropriateHandshakeMessage { .. }
        | Error::PeerMisbehaved(_)
        | Error::DecryptError => Failure::Misbehaved,
        _ => Failure::Internal,
    }
}

/// What is known of an open connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// Name of the cipher suite in the registry of IANA.
    pub cipher: &'static &'static str,
    /// The session was resumed.
    pub resumed: bool,
    /// Name the client asked for (RFC 6066 3): a DNS name, hence ASCII without blanks.
    pub server_name: Option<Box<str>>,
    /// The client's certificate.
    pub client: Option<Box<ClientCertificate>>,
}

/// A certificate that a client gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// SHA-256 of its DER.
    pub sha256: [u8; 32],
    /// Whether it leads to one of the authorities that were configured. Either way the client has its key.
    pub verified: bool,
}

impl fmt::Display for ClientCertificate {
    /// `sha256:HEX verified` or `sha256:HEX unverified`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        for byte in self.sha256 {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(if self.verified {
            " verified"
        } else {
            " unverified"
        })
    }
}

/// How a handshake stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// More octets of the client are needed.
    NeedsInput,
    /// It succeeded.
    Done,
    /// It failed; an alert may be due.
    Failed(Failure),
}

/// A handshake under way. It owns all it needs, so that it can go to another thread and come back.
pub struct Handshake {
    connection: UnbufferedServerConnection,
    choice: Arc<Choice>,
    credentials: Arc<Credentials>,
    /// Ciphertext that was not used yet.
    input: Vec<u8>,
    /// Ciphertext to be sent.
    output: Vec<u8>,
    /// Plaintext that came in one go with the end of the handshake.
    early: Vec<u8>,
    /// The answer to the client's first message was made: what comes behind it costs little.
    is_answered: bool,
}

impl Handshake {
    /// A handshake that nothing has come for.
    ///
    /// # Errors
    /// rustls refuses the settings.
    pub fn new(credentials: &Arc<Credentials>) -> Result<Handshake, Error> {
        let (config, choice) = credentials.for_one_connection();
        Ok(Handshake {
            connection: UnbufferedServerConnection::new(config)?,
            choice,
            credentials: Arc::clone(credentials),
            input: Vec::new(),
            output: Vec::new(),
            early: Vec::new(),
            is_answered: false,
        })
    }

    /// Octets that may be added now, at most.
    pub fn room(&self) -> usize {
        TLS_HANDSHAKE_BYTES_MAX.saturating_sub(self.input.len())
    }

    /// Takes octets of the client; at most [`Handshake::room`] of them.
    pub fn add(&mut self, ciphertext: &[u8]) {
        self.input.extend_from_slice(ciphertext);
    }

    /// Whether the next step makes a signature with a key that takes long, so that it belongs on the helper.
    pub fn is_costly(&self) -> bool {
        !self.is_answered && self.credentials.has_slow_key() && whole_record(&self.input)
    }

    /// Goes as far as the octets reach. Takes up to a millisecond where [`Handshake::is_costly`].
    ///
    /// **Bounds:** the octets added, and what rustls makes of them: one flight of ours.
    pub fn advance(&mut self) -> Step {
        loop {
            let UnbufferedStatus { discard, state, .. } =
                self.connection.process_tls_records(&mut self.input);
            let step = match state {
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    self.is_answered = true;
                    match encode(data, &mut self.output) {
                        Ok(()) => None,
                        Err(failure) => Some(Step::Failed(failure)),
                    }
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        self.early.extend_from_slice(record.payload);
                    }
                    None
                }
                Ok(ConnectionState::BlockedHandshake) => Some(Step::NeedsInput),
                Ok(ConnectionState::WriteTraffic(_)) => Some(Step::Done),
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    Some(Step::Failed(Failure::Closed))
                }
                // Early data is never offered.
                Ok(_) => Some(Step::Failed(Failure::Internal)),
                Err(error) => {
                    let failure = failure_of(&error);
                    drain_alert(&mut self.connection, &mut self.output);
                    return Step::Failed(failure);
                }
            };
            self.input.drain(..discard.min(self.input.len()));
            match step {
                Some(Step::NeedsInput) if self.room() == 0 => {
                    return Step::Failed(Failure::TooLong);
                }
                Some(Step::Done) if whole_record(&self.input) => {
                    return Step::Failed(Failure::TooLong);
                }
                Some(step) => return step,
                None => {}
            }
        }
    }

    fn facts(&self) -> Facts {
        let connection = &self.connection;
        let client = connection
            .peer_certificates()
            .and_then(|chain| self.credentials.judge(chain));
        Facts {
            version: match connection.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "TLSv1.3",
            },
            cipher: credentials::registered_name(connection.negotiated_cipher_suite()),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
            server_name: self.choice.server_name(),
            client: client.map(Box::new),
        }
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake")
            .field("input", &self.input.len())
            .field("output", &self.output.len())
            .finish_non_exhaustive()
    }
}

/// Whether a whole record stands in front. After the handshake rustls leaves one only when a message of its own is cut
/// across records. Nobody sends those, and rustls would have to be shown the same octets with every reply.
fn whole_record(input: &[u8]) -> bool {
    match input {
        // Type, version, length (RFC 8446 5.1).
        [_, _, _, high, low, rest @ ..] => {
            rest.len() >= usize::from(*high) << 8 | usize::from(*low)
        }
        _ => false,
    }
}

/// Appends what rustls wants to have sent.
fn encode<D>(mut data: EncodeTlsData<'_, D>, output: &mut Vec<u8>) -> Result<(), Failure> {
    let begin = output.len();
    match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(size)) => {
            output.resize(begin + size.required_size, 0);
            match data.encode(&mut output[begin..]) {
                Ok(_) => Ok(()),
                Err(_) => Err(Failure::Internal),
            }
        }
        Ok(_) => Ok(()),
        Err(EncodeError::AlreadyEncoded) => Err(Failure::Internal),
    }
}

/// Appends the alert that a failure has left behind.
///
/// Only while there is something to send: behind that rustls would look for messages it has seen in its input, and
/// panic, because none is shown to it.
fn drain_alert(connection: &mut UnbufferedServerConnection, output: &mut Vec<u8>) {
    while connection.wants_write() {
        match connection.process_tls_records(&mut []).state {
            Ok(ConnectionState::EncodeTlsData(data)) => {
                if encode(data, output).is_err() {
                    return;
                }
            }
            // Nothing of it can be answered any more.
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while traffic.next_record().is_some() {}
            }
            _ => return,
        }
    }
}

/// Why nothing more is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client sent close_notify: all it had to say came.
    CloseNotify,
    /// TLS failed; an alert may be due, and nothing else can be sent.
    Failed(Failure),
}

/// What [`Tls::receive`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Octets of plaintext.
    pub plaintext: usize,
    /// Octets of ciphertext that are done with.
    pub consumed: usize,
    /// Nothing more comes.
    pub end: Option<End>,
}

type Writer<'a> = WriteTraffic<'a, ServerConnectionData>;

enum State {
    /// STARTTLS got its 220, which has to leave in the clear first.
    Announced,
    /// The handshake waits for octets or for its turn.
    Handshake(Box<Handshake>),
    /// The helper has the handshake.
    Away,
    /// Open. `ended`: the client has sent its close_notify. `said_goodbye`: we have.
    Open {
        connection: Box<UnbufferedServerConnection>,
        /// The same that `connection` has.
        choice: Arc<Choice>,
        facts: Facts,
        ended: bool,
        said_goodbye: bool,
    },
    /// Failed: only the alert may still leave.
    Failed,
}

/// TLS of one connection.
pub struct Tls {
    state: State,
    credentials: Arc<Credentials>,
    /// The front of a record whose rest has not come.
    parked: [Option<ChunkId>; PARKED_CHUNKS],
    parked_len: u16,
    /// Ciphertext that the socket did not take.
    unsent: Option<ChunkId>,
    unsent_len: u32,
    /// Messages of the handshake, alerts and answers to key updates that were not sent yet.
    control: Vec<u8>,
    /// Plaintext that came with the end of the handshake, from `early_start` on.
    early: Vec<u8>,
    early_start: usize,
    /// `receive` has work without new octets.
    has_waiting: bool,
}

impl Tls {
    /// STARTTLS was accepted: the handshake begins when [`Tls::begin`] is called.
    pub fn announced(credentials: &Arc<Credentials>) -> Tls {
        Tls {
            state: State::Announced,
            credentials: Arc::clone(credentials),
            parked: [None; PARKED_CHUNKS],
            parked_len: 0,
            unsent: None,
            unsent_len: 0,
            control: Vec::new(),
            early: Vec::new(),
            early_start: 0,
            has_waiting: false,
        }
    }

    /// Begins the handshake: from now on nothing leaves in the clear.
    ///
    /// # Errors
    /// rustls refuses the settings.
    pub fn begin(&mut self) -> Result<(), Failure> {
        match Handshake::new(&self.credentials) {
            Ok(handshake) => {
                self.state = State::Handshake(Box::new(handshake));
                Ok(())
            }
            Err(_) => {
                self.state = State::Failed;
                Err(Failure::Internal)
            }
        }
    }

    /// Whether the handshake has been announced and not begun.
    pub fn is_announced(&self) -> bool {
        matches!(self.state, State::Announced)
    }

    /// Whether the handshake has not ended, nor failed.
    pub fn is_handshaking(&self) -> bool {
        matches!(
            self.state,
            State::Announced | State::Handshake(_) | State::Away
        )
    }

    /// Whether TLS failed.
    pub fn is_failed(&self) -> bool {
        matches!(self.state, State::Failed)
    }

    /// Whether the client has sent its close_notify.
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Open { ended: true, .. })
    }

    /// The handshake, when it is here.
    pub fn handshake_mut(&mut self) -> Option<&mut Handshake> {
        match &mut self.state {
            State::Handshake(handshake) => Some(handshake),
            _ => None,
        }
    }

    /// Gives the handshake away to be advanced elsewhere.
    pub fn send_away(&mut self) -> Option<Box<Handshake>> {
        if !matches!(self.state, State::Handshake(_)) {
            return None;
        }
        match core::mem::replace(&mut self.state, State::Away) {
            State::Handshake(handshake) => Some(handshake),
            _ => None,
        }
    }

    /// Takes the handshake back.
    pub fn take_back(&mut self, handshake: Box<Handshake>) {
        if matches!(self.state, State::Away) {
            self.state = State::Handshake(handshake);
        }
    }

    /// Takes over what [`Handshake::advance`] came to: its octets are to be sent, and when it is done the connection
    /// is open. Octets that came behind its end are kept for [`Tls::receive`].
    pub fn settle(&mut self, step: Step, pool: &mut Pool) -> Result<(), Failure> {
        let State::Handshake(handshake) = &mut self.state else {
            return Ok(());
        };
        self.control.append(&mut handshake.output);
        match step {
            Step::NeedsInput => Ok(()),
            Step::Failed(failure) => {
                self.fail();
                Err(failure)
            }
            Step::Done => {
                let facts = handshake.facts();
                let State::Handshake(handshake) =
                    core::mem::replace(&mut self.state, State::Failed)
                else {
                    return Ok(());
                };
                let Handshake {
                    connection,
                    choice,
                    input,
                    early,
                    ..
                } = *handshake;
                self.early = early;
                self.has_waiting = !self.early.is_empty();
                self.park(pool, &input)?;
                self.state = State::Open {
                    connection: Box::new(connection),
                    choice,
                    facts,
                    ended: false,
                    said_goodbye: false,
                };
                Ok(())
            }
        }
    }

    /// What is known of the open connection.
    pub fn facts(&self) -> Option<&Facts> {
        match &self.state {
            State::Open { facts, .. } => Some(facts),
            _ => None,
        }
    }

    /// What authentication can be bound to: TLS is open, and it is TLS 1.3.
    pub fn bindings(&self) -> Option<ChannelBindings> {
        match &self.state {
            State::Open { choice, .. } => choice.bindings(),
            _ => None,
        }
    }

    /// From now on nothing is read, and nothing is sent but what is queued.
    pub fn fail(&mut self) {
        self.state = State::Failed;
        self.early = Vec::new();
        self.early_start = 0;
        self.has_waiting = false;
    }

    /// Whether [`Tls::receive`] has plaintext without new octets.
    pub fn has_waiting(&self) -> bool {
        self.has_waiting
    }

    /// Decrypts what stands in `ciphertext`, in place, and copies the plaintext to `plaintext`, which is at least as
    /// long. What is not consumed has to be kept ([`Tls::park`]) and presented again in front of what follows it.
    pub fn receive(&mut self, ciphertext: &mut [u8], plaintext: &mut [u8]) -> Received {
        let mut received = Received {
            plaintext: self.take_early(plaintext),
            consumed: 0,
            end: None,
        };
        let State::Open {
            connection, ended, ..
        } = &mut self.state
        else {
            return received;
        };
        if *ended || self.has_waiting {
            return received;
        }
        let mut failure = None;
        loop {
            let rest = &mut ciphertext[received.consumed..];
            let UnbufferedStatus { discard, state, .. } = connection.process_tls_records(rest);
            let mut is_done = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        let room = &mut plaintext[received.plaintext..];
                        let fits = record.payload.len().min(room.len());
                        room[..fits].copy_from_slice(&record.payload[..fits]);
                        received.plaintext += fits;
                        // Plaintext is shorter than its ciphertext, which is no longer than the room.
                        self.early.extend_from_slice(&record.payload[fits..]);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    failure = encode(data, &mut self.control).err();
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    *ended = true;
                    received.end = Some(End::CloseNotify);
                }
                Ok(_) => is_done = true,
                Err(error) => {
                    drain_alert(connection, &mut self.control);
                    failure = Some(failure_of(&error));
                }
            }
            received.consumed += discard.min(ciphertext.len() - received.consumed);
            if is_done && whole_record(&ciphertext[received.consumed..]) {
                failure = Some(Failure::TooLong);
            }
            if let Some(failure) = failure {
                // Nothing that came before can be answered any more.
                received.end = Some(End::Failed(failure));
                self.fail();
                return received;
            }
            if is_done || received.end.is_some() {
                self.has_waiting = !self.early.is_empty();
                return received;
            }
        }
    }

    fn take_early(&mut self, plaintext: &mut [u8]) -> usize {
        if !self.has_waiting {
            return 0;
        }
        let rest = &self.early[self.early_start..];
        let taken = rest.len().min(plaintext.len());
        plaintext[..taken].copy_from_slice(&rest[..taken]);
        self.early_start += taken;
        if self.early_start == self.early.len() {
            self.early = Vec::new();
            self.early_start = 0;
            self.has_waiting = false;
        }
        taken
    }

    /// Keeps the front of a record, at most [`TLS_RECORD_BYTES_MAX`] octets.
    ///
    /// # Errors
    /// The pool has no chunk, or the record is longer than any may be; then TLS has failed.
    pub fn park(&mut self, pool: &mut Pool, ciphertext: &[u8]) -> Result<(), Failure> {
        if ciphertext.len() > TLS_RECORD_BYTES_MAX {
            self.fail();
            return Err(Failure::TooLong);
        }
        let parts = ciphertext.chunks(CHUNK_SMALL_BYTES);
        for (slot, part) in self.parked.iter_mut().zip(parts) {
            let Some(id) = pool.take_small(Urgency::Reserve) else {
                self.fail();
                return Err(Failure::Busy);
            };
            pool.bytes_mut(id)[..part.len()].copy_from_slice(part);
            *slot = Some(id);
        }
        self.parked_len = ciphertext.len() as u16;
        Ok(())
    }

    /// Copies what was parked to the front of `ciphertext` and gives its chunks back; returns its length.
    pub fn unpark(&mut self, pool: &mut Pool, ciphertext: &mut [u8]) -> usize {
        let len = usize::from(core::mem::take(&mut self.parked_len));
        for (slot, part) in self
            .parked
            .iter_mut()
            .zip(ciphertext[..len].chunks_mut(CHUNK_SMALL_BYTES))
        {
            if let Some(id) = slot.take() {
                part.copy_from_slice(&pool.bytes(id)[..part.len()]);
                pool.free(id);
            }
        }
        len
    }

    /// Octets that are parked.
    pub fn parked_len(&self) -> usize {
        usize::from(self.parked_len)
    }

    /// Whether ciphertext waits to be sent.
    pub fn has_output(&self) -> bool {
        self.unsent_len > 0 || !self.control.is_empty()
    }

    /// Whether our close_notify has not been made though one is due: TLS is open.
    pub fn owes_goodbye(&self) -> bool {
        matches!(
            self.state,
            State::Open {
                said_goodbye: false,
                ..
            }
        )
    }

    /// Moves what an earlier send has left to the front of `ciphertext`; returns its length.
    pub fn take_unsent(&mut self, pool: &mut Pool, ciphertext: &mut [u8]) -> usize {
        let Some(id) = self.unsent.take() else {
            return 0;
        };
        let len = core::mem::take(&mut self.unsent_len) as usize;
        ciphertext[..len].copy_from_slice(&pool.bytes(id)[..len]);
        pool.free(id);
        len
    }

    /// Appends what is to be sent next to the `len` octets at the front of `ciphertext`: messages of TLS itself, then
    /// `plaintext`, then close_notify when nothing follows it (`last`). Returns the octets that stand there then, and
    /// those of `plaintext` that are among them: all or none.
    pub fn fill(
        &mut self,
        plaintext: &[u8],
        last: bool,
        ciphertext: &mut [u8],
        mut len: usize,
    ) -> (usize, usize) {
        // What rustls has to say itself stands before what is encrypted from now on.
        let _ = self.write(|_| Some(0));
        let control = self.control.len().min(ciphertext.len() - len);
        ciphertext[len..len + control].copy_from_slice(&self.control[..control]);
        len += control;
        self.control.drain(..control);
        if self.control.is_empty() {
            self.control = Vec::new();
        }
        let mut taken = 0;
        if !plaintext.is_empty() {
            let room = &mut ciphertext[len..];
            if let Some(written) = self.write(|writer| writer.encrypt(plaintext, room).ok()) {
                len += written;
                taken = plaintext.len();
            }
        }
        if last && taken == plaintext.len() {
            let room = &mut ciphertext[len..];
            len += self
                .write(|writer| writer.queue_close_notify(room).ok())
                .unwrap_or(0);
            if let State::Open { said_goodbye, .. } = &mut self.state {
                *said_goodbye = true;
            }
        }
        (len, taken)
    }

    /// Keeps what the socket did not take.
    ///
    /// # Errors
    /// The pool has no chunk for it.
    pub fn unsent(&mut self, pool: &mut Pool, ciphertext: &[u8]) -> Result<(), Failure> {
        if ciphertext.is_empty() {
            return Ok(());
        }
        let taken = if ciphertext.len() <= CHUNK_SMALL_BYTES {
            pool.take_small(Urgency::Reserve)
        } else {
            pool.take_large(Urgency::Reserve)
        };
        let Some(id) = taken.filter(|id| ciphertext.len() <= id.capacity()) else {
            self.fail();
            return Err(Failure::Busy);
        };
        pool.bytes_mut(id)[..ciphertext.len()].copy_from_slice(ciphertext);
        self.unsent = Some(id);
        self.unsent_len = ciphertext.len() as u32;
        Ok(())
    }

    /// Lets `make` write, when TLS is open. No input is pending inside rustls between calls (see `whole_record`), so
    /// that it need not be shown any.
    fn write(&mut self, make: impl FnOnce(&mut Writer<'_>) -> Option<usize>) -> Option<usize> {
        let State::Open { connection, .. } = &mut self.state else {
            return None;
        };
        loop {
            match connection.process_tls_records(&mut []).state {
                Ok(ConnectionState::WriteTraffic(mut writer)) => return make(&mut writer),
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, &mut self.control).ok()?;
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                _ => return None,
            }
        }
    }

    /// Gives all chunks back.
    pub fn release(&mut self, pool: &mut Pool) {
        for id in self.parked.iter_mut().chain([&mut self.unsent]) {
            if let Some(id) = id.take() {
                pool.free(id);
            }
        }
        (self.parked_len, self.unsent_len) = (0, 0);
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Announced => "announced",
            State::Handshake(_) => "handshake",
            State::Away => "away",
            State::Open { .. } => "open",
            State::Failed => "failed",
        };
        f.debug_struct("Tls")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
