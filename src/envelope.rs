//! The stored envelope: typed fields in front of the message in a ring record.
//!
//! Layout of one field, little-endian: type (1 byte), length of the value (2 bytes), value. A type of 0 is one
//! byte of padding without length. Readers skip types they do not know. `docs/ring-log.md` lists the values.
//! The first field is always [`Field::Facts`], of fixed length, because it is filled in when the message ends.

/// Bytes in front of a field's value: type and length.
pub const FIELD_HEADER_BYTES: usize = 3;
/// Length of the value of [`Field::Facts`].
pub const FACTS_BYTES: usize = 48;
/// One byte of padding between fields.
pub const PADDING: u8 = 0;

/// Type of an envelope field. Numbers are part of the ring format and never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Field {
    /// Facts known at the end of the message, see [`Facts`].
    Facts = 1,
    /// Client address: 16 bytes (IPv4 as ::ffff:a.b.c.d), then the port, 2 bytes little-endian.
    Client = 2,
    /// Server address of the listener, laid out as `Client`.
    Listener = 3,
    /// Role of the listener: `sink`, `mx` or `submission`.
    Role = 4,
    /// Argument of HELO or EHLO, as given.
    Helo = 5,
    /// TLS version and cipher suite, separated by a space.
    Tls = 6,
    /// Authenticated user.
    User = 7,
    /// Reverse-path without brackets; empty for the null reverse-path.
    ReversePath = 8,
    /// Parameters of MAIL as given, separated by single spaces, keywords in upper case.
    MailParameters = 9,
    /// Forward-path without brackets and source route. One field for each recipient, in order.
    ForwardPath = 10,
    /// Name that the client asked for in its TLS handshake (RFC 6066 3), in lower case.
    TlsServerName = 12,
    /// The client's certificate: `sha256:`, 64 hexadecimal digits, a space, `verified` or `unverified`.
    TlsClient = 13,
    /// Parameters of the RCPT whose `ForwardPath` field stands before this one.
    RcptParameters = 11,
    /// By when the message is to be delivered (RFC 2852): seconds since 1970 as 8 bytes, signed, then `N` or `R`,
    /// then `T` where it was given.
    DeliverBy = 14,
    /// What XFORWARD said of the message: `NAME=value` each, separated by single spaces, values as given (xtext).
    Forwarded = 15,
    /// Name of the client, as XCLIENT gave it.
    ClientName = 16,
    /// Reserved: a verdict, "policy-name result".
    Verdict = 32,
    /// Reserved: authentication results.
    AuthenticationResults = 33,
    /// Until when the message is to be held (RFC 4865): seconds since 1970 as 8 bytes, signed.
    HoldUntil = 34,
    /// MT-PRIORITY (RFC 6710), 1 byte, signed: -9 to 9.
    Priority = 35,
    /// Reserved: quarantine reason.
    Quarantine = 36,
}

impl Field {
    /// The field with this number, if it is known.
    pub fn from_number(number: u8) -> Option<Field> {
        Some(match number {
            1 => Field::Facts,
            2 => Field::Client,
            3 => Field::Listener,
            4 => Field::Role,
            5 => Field::Helo,
            6 => Field::Tls,
            7 => Field::User,
            8 => Field::ReversePath,
            9 => Field::MailParameters,
            10 => Field::ForwardPath,
            11 => Field::RcptParameters,
            12 => Field::TlsServerName,
            13 => Field::TlsClient,
            14 => Field::DeliverBy,
            15 => Field::Forwarded,
            16 => Field::ClientName,
            32 => Field::Verdict,
            33 => Field::AuthenticationResults,
            34 => Field::HoldUntil,
            35 => Field::Priority,
            36 => Field::Quarantine,
            _ => return None,
        })
    }
}

/// Flag in [`Facts::flags`]: the session began with EHLO.
pub const FLAG_ESMTP: u8 = 1;
/// Flag: SMTPUTF8 was given (RFC 6531).
pub const FLAG_SMTPUTF8: u8 = 2;
/// Flag: the content came by BDAT (RFC 3030).
pub const FLAG_BDAT: u8 = 4;
/// Flag: bare newlines were normalized; the stored bytes differ from what was sent.
pub const FLAG_NORMALIZED: u8 = 8;

/// BODY as declared: not given.
pub const BODY_UNSTATED: u8 = 0;
/// BODY=7BIT (RFC 6152).
pub const BODY_7BIT: u8 = 1;
/// BODY=8BITMIME (RFC 6152).
pub const BODY_8BITMIME: u8 = 2;
/// BODY=BINARYMIME (RFC 3030).
pub const BODY_BINARYMIME: u8 = 3;

/// Facts of a message that are complete only when it ended. Value of [`Field::Facts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `FLAG_*` bits.
    pub flags: u8,
    /// One of the `BODY_*` values.
    pub body: u8,
    /// Length of the trace field at the front of the message, bytes.
    pub trace_bytes: u16,
    /// Accepted recipients.
    pub recipients: u32,
    /// Declared SIZE plus one; 0 when none was declared (RFC 1870).
    pub declared_size_plus_1: u64,
    /// LF without CR before it.
    pub bare_lf: u32,
    /// CR without LF behind it.
    pub bare_cr: u32,
    /// NUL octets.
    pub nul: u32,
    /// Time from MAIL to the end of data, microseconds, saturating.
    pub transaction_us: u32,
    /// Time from the 354 (or first BDAT) to the end of data, microseconds, saturating.
    pub data_us: u32,
    /// Reserved, zero.
    pub reserved: u32,
    /// Offset of the first bare LF, bare CR or NUL plus one; 0 when there is none.
    pub first_offset_plus_1: u64,
}

impl Facts {
    /// Encodes the value of the field.
    pub fn encode(&self) -> [u8; FACTS_BYTES] {
        let mut out = [0; FACTS_BYTES];
        out[0] = self.flags;
        out[1] = self.body;
        out[2..4].copy_from_slice(&self.trace_bytes.to_le_bytes());
        out[4..8].copy_from_slice(&self.recipients.to_le_bytes());
        out[8..16].copy_from_slice(&self.declared_size_plus_1.to_le_bytes());
        out[16..20].copy_from_slice(&self.bare_lf.to_le_bytes());
        out[20..24].copy_from_slice(&self.bare_cr.to_le_bytes());
        out[24..28].copy_from_slice(&self.nul.to_le_bytes());
        out[28..32].copy_from_slice(&self.transaction_us.to_le_bytes());
        out[32..36].copy_from_slice(&self.data_us.to_le_bytes());
        out[36..40].copy_from_slice(&self.reserved.to_le_bytes());
        out[40..48].copy_from_slice(&self.first_offset_plus_1.to_le_bytes());
        out
    }

    /// Decodes the value of the field; `None` when it is shorter than [`FACTS_BYTES`].
    pub fn decode(value: &[u8]) -> Option<Facts> {
        let u32_at = |at: usize| Some(u32::from_le_bytes(value.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(value.get(at..at + 8)?.try_into().ok()?));
        Some(Facts {
            flags: *value.first()?,
            body: *value.get(1)?,
            trace_bytes: u16::from_le_bytes(value.get(2..4)?.try_into().ok()?),
            recipients: u32_at(4)?,
            declared_size_plus_1: u64_at(8)?,
            bare_lf: u32_at(16)?,
            bare_cr: u32_at(20)?,
            nul: u32_at(24)?,
            transaction_us: u32_at(28)?,
            data_us: u32_at(32)?,
            reserved: u32_at(36)?,
            first_offset_plus_1: u64_at(40)?,
        })
    }
}

/// Value of [`Field::DeliverBy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliverBy {
    /// The time, seconds since 1970.
    pub unix_seconds: i64,
    /// What is late is returned; otherwise its sender is told.
    pub returns: bool,
    /// Who hands it on tells the sender.
    pub traces: bool,
}

impl DeliverBy {
    /// Longest value, bytes.
    const BYTES_MAX: usize = 10;

    /// Encodes the value of the field into `out`; returns it.
    pub fn encode(self, out: &mut [u8; DeliverBy::BYTES_MAX]) -> &[u8] {
        out[..8].copy_from_slice(&self.unix_seconds.to_le_bytes());
        out[8] = if self.returns { b'R' } else { b'N' };
        out[9] = b'T';
        &out[..if self.traces { 10 } else { 9 }]
    }

    /// Decodes the value of the field; `None` when it is none.
    pub fn decode(value: &[u8]) -> Option<DeliverBy> {
        let (seconds, mode) = value.split_first_chunk::<8>()?;
        let (returns, traces) = match mode {
            b"R" => (true, false),
            b"RT" => (true, true),
            b"N" => (false, false),
            b"NT" => (false, true),
            _ => return None,
        };
        Some(DeliverBy {
            unix_seconds: i64::from_le_bytes(*seconds),
            returns,
            traces,
        })
    }
}

/// The header of a field whose value is `len` bytes long.
pub fn field_header(field: Field, len: u16) -> [u8; FIELD_HEADER_BYTES] {
    let [low, high] = len.to_le_bytes();
    [field as u8, low, high]
}

/// Walks the fields of an envelope; ends at the first malformed one.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
    malformed: bool,
}

impl<'a> Fields<'a> {
    /// Fields of `envelope`, unknown types included.
    pub fn new(envelope: &'a [u8]) -> Fields<'a> {
        Fields {
            rest: envelope,
            malformed: false,
        }
    }

    /// Whether the walk ended at a field that runs past the end of the envelope.
    pub fn is_malformed(&self) -> bool {
        self.malformed
    }
}

impl<'a> Iterator for Fields<'a> {
    /// Type number and value.
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        while let [PADDING, rest @ ..] = self.rest {
            self.rest = rest;
        }
        let [number, low, high, rest @ ..] = self.rest else {
            self.malformed |= !self.rest.is_empty();
            return None;
        };
        let len = usize::from(u16::from_le_bytes([*low, *high]));
        let Some((value, rest)) = rest.split_at_checked(len) else {
            self.malformed = true;
            return None;
        };
        self.rest = rest;
        Some((*number, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_read_back_as_written() {
        let facts = Facts {
            flags: FLAG_ESMTP | FLAG_BDAT,
            body: BODY_8BITMIME,
            trace_bytes: 300,
            recipients: 7,
            declared_size_plus_1: u64::MAX,
            bare_lf: 1,
            bare_cr: 2,
            nul: 3,
            transaction_us: 4,
            data_us: 5,
            reserved: 0,
            first_offset_plus_1: 6,
        };
        assert_eq!(Facts::decode(&facts.encode()), Some(facts));
        assert_eq!(Facts::decode(&facts.encode()[..FACTS_BYTES - 1]), None);
    }

    #[test]
    fn the_time_of_delivery_reads_back_as_written() {
        for (returns, traces) in [(false, false), (false, true), (true, false), (true, true)] {
            let by = DeliverBy {
                unix_seconds: -3,
                returns,
                traces,
            };
            let mut room = [0; DeliverBy::BYTES_MAX];
            assert_eq!(DeliverBy::decode(by.encode(&mut room)), Some(by));
        }
        assert_eq!(DeliverBy::decode(b"1234567N"), None);
        assert_eq!(DeliverBy::decode(b"12345678X"), None);
    }

    #[test]
    fn fields_skip_padding_and_stop_at_a_field_that_runs_past_the_end() {
        let mut bytes = vec![PADDING, PADDING];
        bytes.extend_from_slice(&field_header(Field::Helo, 2));
        bytes.extend_from_slice(b"me");
        bytes.push(PADDING);
        bytes.extend_from_slice(&[200, 1, 0, b'x']);
        let mut fields = Fields::new(&bytes);
        assert_eq!(fields.next(), Some((5, &b"me"[..])));
        assert_eq!(fields.next(), Some((200, &b"x"[..])));
        assert_eq!(fields.next(), None);
        assert!(!fields.is_malformed());

        let mut torn = Fields::new(&[8, 5, 0, b'x']);
        assert_eq!(torn.next(), None);
        assert!(torn.is_malformed());
    }
}
