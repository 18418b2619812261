//! Parameters of MAIL and RCPT (RFC 1870, 6152, 3030, 6531, 3461).

use super::reply::Reply;

/// The extensions that were offered to this client, a set of bits; empty after HELO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offered(u8);

impl Offered {
    /// Nothing: the client said HELO.
    pub const NONE: Offered = Offered(0);
    /// SIZE (RFC 1870): `SIZE=`.
    pub const SIZE: Offered = Offered(1);
    /// 8BITMIME (RFC 6152): `BODY=7BIT` and `BODY=8BITMIME`.
    pub const EIGHT_BIT_MIME: Offered = Offered(2);
    /// BINARYMIME (RFC 3030 3): `BODY=BINARYMIME`.
    pub const BINARY_MIME: Offered = Offered(4);
    /// SMTPUTF8 (RFC 6531): `SMTPUTF8`.
    pub const SMTPUTF8: Offered = Offered(8);
    /// DSN (RFC 3461): `RET=`, `ENVID=`, `NOTIFY=`, `ORCPT=`.
    pub const DSN: Offered = Offered(16);
    /// CHUNKING (RFC 3030 2): no parameter, but the BDAT command.
    pub const CHUNKING: Offered = Offered(32);

    /// Both sets together.
    pub const fn with(self, other: Offered) -> Offered {
        Offered(self.0 | other.0)
    }

    /// Whether all of `other` is in this set.
    pub const fn has(self, other: Offered) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Value of BODY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// `7BIT`
    SevenBit,
    /// `8BITMIME`
    EightBit,
    /// `BINARYMIME`
    Binary,
}

/// Value of RET (RFC 3461 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    /// `FULL`
    Full,
    /// `HDRS`
    Headers,
}

/// Value of NOTIFY (RFC 3461 4.1). All false is `NEVER`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notify {
    /// `SUCCESS`
    pub success: bool,
    /// `FAILURE`
    pub failure: bool,
    /// `DELAY`
    pub delay: bool,
}

/// Parameters of one MAIL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailParameters<'a> {
    /// Declared size, octets; `u64::MAX` when the number is larger than that.
    pub size: Option<u64>,
    /// Declared body type.
    pub body: Option<Body>,
    /// SMTPUTF8 was given.
    pub smtputf8: bool,
    /// What a delivery report shall return.
    pub ret: Option<Ret>,
    /// Envelope identifier, xtext as given.
    pub envid: Option<&'a [u8]>,
}

/// Parameters of one RCPT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RcptParameters<'a> {
    /// When the sender wants delivery reports.
    pub notify: Option<Notify>,
    /// Original recipient, `addr-type;xtext` as given.
    pub orcpt: Option<&'a [u8]>,
}

/// Parses the parameters of MAIL.
pub fn parse_mail(parameters: &[u8], offered: Offered) -> Result<MailParameters<'_>, Reply> {
    let _ = offered;
    if parameters.is_empty() {
        Ok(MailParameters::default())
    } else {
        Err(Reply::ParameterUnknown)
    }
}

/// Parses the parameters of RCPT.
pub fn parse_rcpt(parameters: &[u8], offered: Offered) -> Result<RcptParameters<'_>, Reply> {
    let _ = offered;
    if parameters.is_empty() {
        Ok(RcptParameters::default())
    } else {
        Err(Reply::ParameterUnknown)
    }
}
