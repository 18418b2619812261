//! The Received field that the receiver puts in front of a message (RFC 5321 4.4).

use core::net::IpAddr;

/// Bytes of the longest field.
pub const TRACE_BYTES_MAX: usize = 1_024;

/// Value of the "with" clause (RFC 5321 4.4, RFC 3848, RFC 6531 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HELO.
    Smtp,
    /// EHLO.
    Esmtp,
    /// EHLO under TLS.
    Esmtps,
    /// EHLO and AUTH.
    Esmtpa,
    /// EHLO under TLS and AUTH.
    Esmtpsa,
    /// SMTPUTF8 was given in MAIL.
    Utf8Smtp,
    /// SMTPUTF8 under TLS.
    Utf8Smtps,
    /// SMTPUTF8 and AUTH.
    Utf8Smtpa,
    /// SMTPUTF8 under TLS and AUTH.
    Utf8Smtpsa,
}

/// What the field says.
#[derive(Clone, Copy, Debug)]
pub struct TraceArguments<'a> {
    /// Argument of HELO or EHLO as given.
    pub helo: &'a [u8],
    /// Address of the client.
    pub client: IpAddr,
    /// Name of this server.
    pub server_name: &'a str,
    /// How the message came.
    pub protocol: Protocol,
    /// Forward-path, only when there is exactly one recipient (RFC 5321 7.6: more would disclose blind copies).
    pub recipient: Option<&'a [u8]>,
    /// Time of arrival, nanoseconds since 1970.
    pub wall_ns: u64,
}

/// A Received field without the message's id.
#[derive(Clone)]
pub struct Trace {
    bytes: [u8; TRACE_BYTES_MAX],
    len: usize,
    id_at: usize,
}

impl Trace {
    /// The field, CRLF included; the id is missing at [`Trace::id_at`].
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Offset in [`Trace::bytes`] where the message's id belongs.
    pub fn id_at(&self) -> usize {
        self.id_at
    }
}

/// Builds the field.
pub fn build(arguments: &TraceArguments<'_>) -> Trace {
    let _ = arguments;
    Trace {
        bytes: [0; TRACE_BYTES_MAX],
        len: 0,
        id_at: 0,
    }
}
