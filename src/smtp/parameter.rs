//! Parameters of MAIL and RCPT (RFC 1870, 6152, 3030, 6531, 3461, 2852, 4865, 6710, 7293, 4954).
//!
//! Promises: one pass from left to right; a parameter whose extension was not offered is an unknown
//! one (RFC 5321 4.1.1.11); what is accepted has the syntax of its extension, decoded xtext
//! included, so that nothing in it can break a delivery report later.
//! Does not: compare SIZE or a time of release with a limit, or know which parameters exclude each
//! other across commands.

use super::path;
use super::reply::Reply;
use crate::clock::parse_rfc3339;

/// The extensions that were offered to this client, a set of bits; empty after HELO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offered(u32);

impl Offered {
    /// Nothing: the client said HELO.
    pub const NONE: Offered = Offered(0);
    /// SIZE (RFC 1870): `SIZE=`.
    pub const SIZE: Offered = Offered(1);
    /// 8BITMIME (RFC 6152): `BODY=7BIT` and `BODY=8BITMIME`.
    pub const EIGHT_BIT_MIME: Offered = Offered(1 << 1);
    /// BINARYMIME (RFC 3030 3): `BODY=BINARYMIME`.
    pub const BINARY_MIME: Offered = Offered(1 << 2);
    /// SMTPUTF8 (RFC 6531): `SMTPUTF8`.
    pub const SMTPUTF8: Offered = Offered(1 << 3);
    /// DSN (RFC 3461): `RET=`, `ENVID=`, `NOTIFY=`, `ORCPT=`.
    pub const DSN: Offered = Offered(1 << 4);
    /// CHUNKING (RFC 3030 2): no parameter, but the BDAT command.
    pub const CHUNKING: Offered = Offered(1 << 5);
    /// PIPELINING (RFC 2920): nothing but the promise.
    pub const PIPELINING: Offered = Offered(1 << 6);
    /// ENHANCEDSTATUSCODES (RFC 2034): nothing but the promise.
    pub const ENHANCED_STATUS_CODES: Offered = Offered(1 << 7);
    /// LIMITS (RFC 9422): nothing but its numbers.
    pub const LIMITS: Offered = Offered(1 << 8);
    /// DELIVERBY (RFC 2852): `BY=`.
    pub const DELIVERBY: Offered = Offered(1 << 9);
    /// FUTURERELEASE (RFC 4865): `HOLDFOR=` and `HOLDUNTIL=`.
    pub const FUTURERELEASE: Offered = Offered(1 << 10);
    /// MT-PRIORITY (RFC 6710): `MT-PRIORITY=`.
    pub const MT_PRIORITY: Offered = Offered(1 << 11);
    /// RRVS (RFC 7293): `RRVS=` of RCPT.
    pub const RRVS: Offered = Offered(1 << 12);
    /// ETRN (RFC 1985): the ETRN command.
    pub const ETRN: Offered = Offered(1 << 13);
    /// AUTH (RFC 4954): the AUTH command, and `AUTH=` of MAIL.
    pub const AUTH: Offered = Offered(1 << 14);
    /// XCLIENT: the XCLIENT command of Postfix.
    pub const XCLIENT: Offered = Offered(1 << 15);
    /// XFORWARD: the XFORWARD command of Postfix.
    pub const XFORWARD: Offered = Offered(1 << 16);
    /// STARTTLS (RFC 3207): the STARTTLS command.
    pub const STARTTLS: Offered = Offered(1 << 17);
    /// REQUIRETLS (RFC 8689): `REQUIRETLS` of MAIL.
    pub const REQUIRETLS: Offered = Offered(1 << 18);

    /// What promises something that only whoever takes the message on can keep.
    pub const PROMISES: Offered = Offered::DSN
        .with(Offered::DELIVERBY)
        .with(Offered::FUTURERELEASE)
        .with(Offered::MT_PRIORITY)
        .with(Offered::RRVS)
        .with(Offered::REQUIRETLS);

    /// This set without what is in `other`.
    pub const fn without(self, other: Offered) -> Offered {
        Offered(self.0 & !other.0)
    }

    /// What is in both sets.
    pub const fn and(self, other: Offered) -> Offered {
        Offered(self.0 & other.0)
    }

    /// The set as a number, bit by bit; [`Offered::from_bits`] reads it back.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The set of these bits; bits that mean nothing are kept and match no extension.
    pub const fn from_bits(bits: u32) -> Offered {
        Offered(bits)
    }

    /// Both sets together.
    pub const fn with(self, other: Offered) -> Offered {
        Offered(self.0 | other.0)
    }

    /// Whether any of `other` is in this set.
    pub const fn has_any(self, other: Offered) -> bool {
        self.0 & other.0 != 0
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

/// Value of BY (RFC 2852 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliverBy {
    /// Seconds from MAIL to the time by which the message is to be delivered; not above zero only with `N`.
    pub seconds: i32,
    /// By-mode `R`: what is late is returned. Otherwise `N`: its sender is told.
    pub returns: bool,
    /// By-trace `T`.
    pub traces: bool,
}

/// When a message may be released (RFC 4865).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// HOLDFOR: seconds from MAIL, at least 1.
    For(u32),
    /// HOLDUNTIL: seconds since 1970; a fraction counts as a second.
    Until(i64),
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
    /// REQUIRETLS was given: the message must not travel without TLS (RFC 8689 2).
    pub requiretls: bool,
    /// What a delivery report shall return.
    pub ret: Option<Ret>,
    /// Envelope identifier, xtext as given.
    pub envid: Option<&'a [u8]>,
    /// By when it is to be delivered.
    pub deliver_by: Option<DeliverBy>,
    /// Until when it is to be held.
    pub hold: Option<Hold>,
    /// Priority, -9 to 9.
    pub priority: Option<i8>,
    /// Who submitted it, says the client: xtext of a mailbox, or `<>`.
    pub auth: Option<&'a [u8]>,
}

/// Parameters of one RCPT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RcptParameters<'a> {
    /// When the sender wants delivery reports.
    pub notify: Option<Notify>,
    /// Original recipient, `addr-type;xtext` as given.
    pub orcpt: Option<&'a [u8]>,
    /// Since when the address must have had its present owner, seconds since 1970.
    pub valid_since: Option<i64>,
}

/// Longest value of ENVID, octets (RFC 3461 4.4).
const ENVID_BYTES_MAX: usize = 100;
/// Longest value of ORCPT, octets (RFC 3461 4.2).
const ORCPT_BYTES_MAX: usize = 500;
/// Longest value of AUTH, octets (RFC 4954 3: the parameter adds at most 500 to MAIL).
const AUTH_BYTES_MAX: usize = 494;
/// Digits of a by-time (RFC 2852 4) and of a future-release-interval (RFC 4865 3).
const INTERVAL_DIGITS_MAX: usize = 9;
/// Digits of a size-value (RFC 1870 3).
const SIZE_DIGITS_MAX: usize = 20;

/// Parses the parameters of MAIL, separated by blanks.
///
/// # Errors
/// [`Reply::ParameterUnknown`], [`Reply::ParameterTwice`] or [`Reply::ParameterMalformed`] for the
/// first parameter, from the left, that is not right.
pub fn parse_mail(parameters: &[u8], offered: Offered) -> Result<MailParameters<'_>, Reply> {
    let mut found = MailParameters::default();
    for (keyword, value) in split(parameters) {
        if is(keyword, b"SIZE") && offered.has(Offered::SIZE) {
            set(&mut found.size, value.and_then(size))?;
        } else if is(keyword, b"BODY") && offered.has_any(BODY) {
            set(
                &mut found.body,
                value.and_then(|value| body(value, offered)),
            )?;
        } else if is(keyword, b"SMTPUTF8") && offered.has(Offered::SMTPUTF8) {
            // RFC 6531 3.4: no value.
            raise(&mut found.smtputf8, value)?;
        } else if is(keyword, b"REQUIRETLS") && offered.has(Offered::REQUIRETLS) {
            // RFC 8689 2: no value.
            raise(&mut found.requiretls, value)?;
        } else if is(keyword, b"RET") && offered.has(Offered::DSN) {
            set(&mut found.ret, value.and_then(ret))?;
        } else if is(keyword, b"ENVID") && offered.has(Offered::DSN) {
            set(&mut found.envid, value.filter(|value| is_envid(value)))?;
        } else if is(keyword, b"BY") && offered.has(Offered::DELIVERBY) {
            set(&mut found.deliver_by, value.and_then(deliver_by))?;
        } else if is(keyword, b"HOLDFOR") && offered.has(Offered::FUTURERELEASE) {
            // RFC 4865 4.2: one of the two, once.
            set(&mut found.hold, value.and_then(hold_for))?;
        } else if is(keyword, b"HOLDUNTIL") && offered.has(Offered::FUTURERELEASE) {
            set(&mut found.hold, value.and_then(hold_until))?;
        } else if is(keyword, b"MT-PRIORITY") && offered.has(Offered::MT_PRIORITY) {
            set(&mut found.priority, value.and_then(priority))?;
        } else if is(keyword, b"AUTH") && offered.has(Offered::AUTH) {
            set(&mut found.auth, value.filter(|value| is_auth(value)))?;
        } else {
            return Err(Reply::ParameterUnknown);
        }
    }
    Ok(found)
}

/// Parses the parameters of RCPT, separated by blanks.
///
/// # Errors
/// As [`parse_mail`].
pub fn parse_rcpt(parameters: &[u8], offered: Offered) -> Result<RcptParameters<'_>, Reply> {
    let mut found = RcptParameters::default();
    for (keyword, value) in split(parameters) {
        if is(keyword, b"NOTIFY") && offered.has(Offered::DSN) {
            set(&mut found.notify, value.and_then(notify))?;
        } else if is(keyword, b"ORCPT") && offered.has(Offered::DSN) {
            set(
                &mut found.orcpt,
                value.filter(|value| is_orcpt(value, offered)),
            )?;
        } else if is(keyword, b"RRVS") && offered.has(Offered::RRVS) {
            set(&mut found.valid_since, value.and_then(valid_since))?;
        } else {
            return Err(Reply::ParameterUnknown);
        }
    }
    Ok(found)
}

const BODY: Offered = Offered::EIGHT_BIT_MIME.with(Offered::BINARY_MIME);

/// Keyword and value of each parameter; the value is what follows the first `=`, if there is one.
fn split(parameters: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    parameters
        .split(|octet| matches!(octet, b' ' | b'\t'))
        .filter(|parameter| !parameter.is_empty())
        .map(
            |parameter| match parameter.iter().position(|&octet| octet == b'=') {
                Some(at) => (&parameter[..at], Some(&parameter[at + 1..])),
                None => (parameter, None),
            },
        )
}

/// Whether `keyword` is `name`, which is in upper case, in any case.
fn is<const N: usize>(keyword: &[u8], name: &[u8; N]) -> bool {
    // Of one length: a few instructions, where slices are compared octet by octet.
    <[u8; N]>::try_from(keyword).is_ok_and(|mut keyword| {
        keyword.make_ascii_uppercase();
        keyword == *name
    })
}

/// Stores the value of a parameter that may be given once; `None` is a bad or missing value.
fn set<T>(slot: &mut Option<T>, value: Option<T>) -> Result<(), Reply> {
    if slot.is_some() {
        return Err(Reply::ParameterTwice);
    }
    *slot = Some(value.ok_or(Reply::ParameterMalformed)?);
    Ok(())
}

/// Notes a parameter that may be given once and has no value.
fn raise(flag: &mut bool, value: Option<&[u8]>) -> Result<(), Reply> {
    if *flag {
        return Err(Reply::ParameterTwice);
    }
    if value.is_some() {
        return Err(Reply::ParameterMalformed);
    }
    *flag = true;
    Ok(())
}

/// RFC 1870 3: 1 to 20 digits. A number past u64 is larger than any limit, so it saturates.
fn size(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > SIZE_DIGITS_MAX {
        return None;
    }
    value.iter().try_fold(0u64, |size, octet| {
        let digit = octet.is_ascii_digit().then(|| u64::from(octet - b'0'))?;
        Some(size.saturating_mul(10).saturating_add(digit))
    })
}

/// RFC 6152 3 and RFC 3030 3.
fn body(value: &[u8], offered: Offered) -> Option<Body> {
    if is(value, b"7BIT") {
        Some(Body::SevenBit)
    } else if is(value, b"8BITMIME") && offered.has(Offered::EIGHT_BIT_MIME) {
        Some(Body::EightBit)
    } else if is(value, b"BINARYMIME") && offered.has(Offered::BINARY_MIME) {
        Some(Body::Binary)
    } else {
        None
    }
}

/// RFC 3461 4.3.
fn ret(value: &[u8]) -> Option<Ret> {
    if is(value, b"FULL") {
        Some(Ret::Full)
    } else if is(value, b"HDRS") {
        Some(Ret::Headers)
    } else {
        None
    }
}

/// RFC 3461 4.1: NEVER alone, or a list of the others; one of them may be named again.
fn notify(value: &[u8]) -> Option<Notify> {
    let mut notify = Notify::default();
    if is(value, b"NEVER") {
        return Some(notify);
    }
    for element in value.split(|&octet| octet == b',') {
        if is(element, b"SUCCESS") {
            notify.success = true;
        } else if is(element, b"FAILURE") {
            notify.failure = true;
        } else if is(element, b"DELAY") {
            notify.delay = true;
        } else {
            return None;
        }
    }
    Some(notify)
}

/// 1 to [`INTERVAL_DIGITS_MAX`] digits as a number.
fn interval(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || digits.len() > INTERVAL_DIGITS_MAX {
        return None;
    }
    digits.iter().try_fold(0u32, |value, octet| {
        let digit = octet.is_ascii_digit().then(|| u32::from(octet - b'0'))?;
        Some(value * 10 + digit)
    })
}

/// RFC 2852 4: by-time, `;`, `N` or `R`, and `T` if wanted.
fn deliver_by(value: &[u8]) -> Option<DeliverBy> {
    let at = value.iter().position(|&octet| octet == b';')?;
    let (time, mode) = (&value[..at], &value[at + 1..]);
    let (mode, traces) = match mode {
        [mode] => (mode, false),
        [mode, b'T' | b't'] => (mode, true),
        _ => return None,
    };
    let returns = match mode {
        b'R' | b'r' => true,
        b'N' | b'n' => false,
        _ => return None,
    };
    let seconds = match time {
        [b'-', digits @ ..] => -i32::try_from(interval(digits)?).ok()?,
        [b'+', digits @ ..] | digits => i32::try_from(interval(digits)?).ok()?,
    };
    // What is to be returned when it is late can't be late already.
    (!returns || seconds > 0).then_some(DeliverBy {
        seconds,
        returns,
        traces,
    })
}

/// RFC 4865 3: 1 to 999999999, without zeros in front.
fn hold_for(value: &[u8]) -> Option<Hold> {
    let seconds = interval(value).filter(|_| value[0] != b'0')?;
    Some(Hold::For(seconds))
}

/// RFC 4865 3: a date and time in UTC.
fn hold_until(value: &[u8]) -> Option<Hold> {
    let time = parse_rfc3339(value).filter(|time| time.is_utc)?;
    Some(Hold::Until(
        time.unix_seconds + i64::from(time.has_fraction),
    ))
}

/// RFC 6710 7: -9 to 9, without a plus sign, a zero in front or a negative zero.
fn priority(value: &[u8]) -> Option<i8> {
    match value {
        b"0" => Some(0),
        [digit @ b'1'..=b'9'] => Some((digit - b'0') as i8),
        [b'-', digit @ b'1'..=b'9'] => Some(-((digit - b'0') as i8)),
        _ => None,
    }
}

/// RFC 7293 3.1: a date and time without a fraction, and what to do where the extension is not known.
fn valid_since(value: &[u8]) -> Option<i64> {
    let time = match value {
        [time @ .., b';', b'C' | b'c' | b'R' | b'r'] => time,
        time => time,
    };
    let time = parse_rfc3339(time).filter(|time| !time.has_fraction)?;
    Some(time.unix_seconds)
}

/// RFC 4954 5: `<>`, or xtext of a mailbox. What it decodes to is a mailbox as RFC 5321 4.1.2 has it.
fn is_auth(value: &[u8]) -> bool {
    if value == b"<>" {
        return true;
    }
    if value.len() > AUTH_BYTES_MAX || !is_xtext(value) {
        return false;
    }
    let mut decoded = [0; AUTH_BYTES_MAX];
    let len = decode_xtext(value, &mut decoded);
    path::is_mailbox(&decoded[..len])
}

/// Decodes what [`is_xtext`] approved into the front of `out`, which has room for it; the length.
pub fn decode_xtext(text: &[u8], out: &mut [u8]) -> usize {
    let mut rest = text;
    let mut len = 0;
    while let [first, behind @ ..] = rest {
        let (octet, behind) = match (first, behind) {
            (b'+', [high, low, behind @ ..]) => {
                let digit = |octet| upper_hex(octet).unwrap_or(0);
                (digit(*high) * 16 + digit(*low), behind)
            }
            _ => (*first, behind),
        };
        rest = behind;
        if let Some(place) = out.get_mut(len) {
            *place = octet;
            len += 1;
        }
    }
    len
}

/// RFC 3461 4.4: xtext that decodes to printable ASCII and white space.
fn is_envid(value: &[u8]) -> bool {
    !value.is_empty() && value.len() <= ENVID_BYTES_MAX && is_xtext(value)
}

/// RFC 3461 4.2: addr-type ";" xtext; with addr-type utf-8, the forms of RFC 6533 3.
fn is_orcpt(value: &[u8], offered: Offered) -> bool {
    let Some(at) = value.iter().position(|&octet| octet == b';') else {
        return false;
    };
    let (kind, address) = (&value[..at], &value[at + 1..]);
    value.len() <= ORCPT_BYTES_MAX
        && !kind.is_empty()
        && kind
            .iter()
            .all(|octet| octet.is_ascii_alphanumeric() || *octet == b'-')
        && if is(kind, b"UTF-8") {
            is_utf8_address(address, offered)
        } else {
            is_xtext(address)
        }
}

/// Whether `text` is xtext (RFC 3461 4) whose decoded octets are printable ASCII or white space.
pub fn is_xtext(text: &[u8]) -> bool {
    let mut rest = text;
    loop {
        rest = match rest {
            [] => return true,
            [b'+', high, low, rest @ ..] => match (upper_hex(*high), upper_hex(*low)) {
                (Some(high), Some(low)) if matches!(high * 16 + low, b'\t' | 32..=126) => rest,
                _ => return false,
            },
            [33..=42 | 44..=60 | 62..=126, rest @ ..] => rest,
            _ => return false,
        }
    }
}

fn upper_hex(octet: u8) -> Option<u8> {
    match octet {
        b'0'..=b'9' => Some(octet - b'0'),
        b'A'..=b'F' => Some(octet - b'A' + 10),
        _ => None,
    }
}

/// Whether `text` is utf-8-addr-xtext, or utf-8-addr-unitext where SMTPUTF8 is offered (RFC 6533
/// 3).
fn is_utf8_address(text: &[u8], offered: Offered) -> bool {
    if text.is_empty() || !(text.is_ascii() || offered.has(Offered::SMTPUTF8)) {
        return false;
    }
    if core::str::from_utf8(text).is_err() {
        return false;
    }
    let mut rest = text;
    loop {
        rest = match rest {
            [] => return true,
            [b'\\', b'x', b'{', rest @ ..] => match embedded_character(rest) {
                Some(rest) => rest,
                None => return false,
            },
            // QCHAR: printable ASCII but for `+`, `=` and backslash.
            [33..=42 | 44..=60 | 62..=91 | 93..=126 | 128.., rest @ ..] => rest,
            _ => return false,
        }
    }
}

/// What follows the HEXPOINT and `}` of an EmbeddedUnicodeChar, if it names a character that is not
/// a control.
fn embedded_character(text: &[u8]) -> Option<&[u8]> {
    let len = text.iter().position(|&octet| octet == b'}')?;
    if !(2..=6).contains(&len) {
        return None;
    }
    let point = text[..len].iter().try_fold(0u32, |point, octet| {
        Some(point * 16 + u32::from(upper_hex(octet.to_ascii_uppercase())?))
    })?;
    char::from_u32(point).filter(|c| !c.is_control())?;
    Some(&text[len + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offered = Offered::SIZE
        .with(Offered::EIGHT_BIT_MIME)
        .with(Offered::BINARY_MIME)
        .with(Offered::SMTPUTF8)
        .with(Offered::DSN)
        .with(Offered::CHUNKING)
        .with(Offered::DELIVERBY)
        .with(Offered::FUTURERELEASE)
        .with(Offered::MT_PRIORITY)
        .with(Offered::RRVS)
        .with(Offered::AUTH);

    fn mail(parameters: &str) -> Result<MailParameters<'_>, Reply> {
        parse_mail(parameters.as_bytes(), ALL)
    }

    fn rcpt(parameters: &str) -> Result<RcptParameters<'_>, Reply> {
        parse_rcpt(parameters.as_bytes(), ALL)
    }

    #[test]
    fn all_parameters_of_mail_are_read_in_any_order_and_case() {
        let expected = MailParameters {
            size: Some(1000),
            body: Some(Body::Binary),
            smtputf8: true,
            ret: Some(Ret::Headers),
            envid: Some(b"ab+2Bc"),
            ..MailParameters::default()
        };
        assert_eq!(
            mail("SIZE=1000 BODY=BINARYMIME SMTPUTF8 RET=HDRS ENVID=ab+2Bc"),
            Ok(expected)
        );
        assert_eq!(
            mail(" envid=ab+2Bc\tret=hdrs  smtputf8 body=binarymime size=1000 "),
            Ok(expected)
        );
        assert_eq!(mail(""), Ok(MailParameters::default()));
    }

    #[test]
    fn size_is_digits_only_and_saturates() {
        let size = |value: &str| mail(value).map(|found| found.size);
        assert_eq!(size("SIZE=0"), Ok(Some(0)));
        assert_eq!(size("SIZE=4294968296"), Ok(Some(4_294_968_296)));
        assert_eq!(size("SIZE=18446744073709551615"), Ok(Some(u64::MAX)));
        assert_eq!(size("SIZE=18446744073709552616"), Ok(Some(u64::MAX)));
        assert_eq!(size("SIZE=99999999999999999999"), Ok(Some(u64::MAX)));
        for bad in [
            "SIZE", "SIZE=", "SIZE=abc", "SIZE=-1", "SIZE=+1", "SIZE=1=2", "SIZE=1.0",
        ] {
            assert_eq!(size(bad), Err(Reply::ParameterMalformed), "{bad}");
        }
        assert_eq!(
            size("SIZE=000000000000000000001"),
            Err(Reply::ParameterMalformed)
        );
    }

    #[test]
    fn bad_values_of_mail_parameters_are_malformed() {
        let too_long = format!("ENVID={}", "e".repeat(101));
        for bad in [
            "BODY",
            "BODY=",
            "BODY=NONSENSE",
            "SMTPUTF8=yes",
            "SMTPUTF8=",
            "RET",
            "RET=FOO",
            "ENVID",
            "ENVID=",
            "ENVID=+G1",
            "ENVID=+2b",
            "ENVID=+2",
            "ENVID=a=b",
            "ENVID=+0D+0A",
            "ENVID=+7F",
            "ENVID=\u{fc}",
            &too_long,
        ] {
            assert_eq!(mail(bad), Err(Reply::ParameterMalformed), "{bad}");
        }
        let longest = format!("ENVID={}", "e".repeat(100));
        assert_eq!(
            mail(&longest).map(|found| found.envid.map(<[u8]>::len)),
            Ok(Some(100))
        );
    }

    #[test]
    fn parameters_given_twice_are_refused() {
        for twice in [
            "SIZE=1 SIZE=2",
            "SIZE=1 size=x",
            "BODY=7BIT BODY=7BIT",
            "SMTPUTF8 SMTPUTF8",
            "RET=FULL RET=FULL",
            "ENVID=a ENVID=a",
        ] {
            assert_eq!(mail(twice), Err(Reply::ParameterTwice), "{twice}");
        }
        assert_eq!(
            rcpt("NOTIFY=NEVER NOTIFY=NEVER"),
            Err(Reply::ParameterTwice)
        );
        assert_eq!(
            rcpt("ORCPT=rfc822;a ORCPT=rfc822;a"),
            Err(Reply::ParameterTwice)
        );
    }

    #[test]
    fn parameters_of_extensions_that_are_not_offered_are_unknown() {
        for (parameter, needs) in [
            ("SIZE=1", Offered::SIZE),
            ("BODY=8BITMIME", Offered::EIGHT_BIT_MIME),
            ("BODY=BINARYMIME", Offered::BINARY_MIME),
            ("SMTPUTF8", Offered::SMTPUTF8),
            ("RET=FULL", Offered::DSN),
            ("ENVID=a", Offered::DSN),
            ("BY=1;N", Offered::DELIVERBY),
            ("HOLDFOR=1", Offered::FUTURERELEASE),
            ("HOLDUNTIL=2026-11-23T01:02:03Z", Offered::FUTURERELEASE),
            ("MT-PRIORITY=0", Offered::MT_PRIORITY),
            ("AUTH=<>", Offered::AUTH),
        ] {
            let parse = |offered| parse_mail(parameter.as_bytes(), offered).map(|_| ());
            assert_eq!(
                parse(Offered::NONE),
                Err(Reply::ParameterUnknown),
                "{parameter}"
            );
            assert_eq!(parse(needs), Ok(()), "{parameter}");
        }
        for parameter in ["NOTIFY=NEVER", "ORCPT=rfc822;a"] {
            let parse = |offered| parse_rcpt(parameter.as_bytes(), offered).map(|_| ());
            assert_eq!(
                parse(Offered::NONE),
                Err(Reply::ParameterUnknown),
                "{parameter}"
            );
            assert_eq!(parse(Offered::DSN), Ok(()), "{parameter}");
        }
        let eight_bit_only = parse_mail(b"BODY=BINARYMIME", Offered::EIGHT_BIT_MIME);
        assert_eq!(eight_bit_only, Err(Reply::ParameterMalformed));
        for unknown in [
            "X",
            "X=1",
            "RRVS=2026-11-23T01:02:03Z",
            "NOTIFY=NEVER",
            "=",
            "=1",
            "SIZ=1",
            "SIZE1",
            "\0",
        ] {
            assert_eq!(mail(unknown), Err(Reply::ParameterUnknown), "{unknown}");
        }
        for unknown in ["X", "SIZE=1", "RET=FULL", "SMTPUTF8"] {
            assert_eq!(rcpt(unknown), Err(Reply::ParameterUnknown), "{unknown}");
        }
    }

    #[test]
    fn the_time_of_delivery_has_a_sign_a_mode_and_a_trace() {
        let by = |value: &str| mail(value).map(|found| found.deliver_by);
        for (value, seconds, returns, traces) in [
            ("BY=120;R", 120, true, false),
            ("by=+120;rt", 120, true, true),
            ("BY=0;N", 0, false, false),
            ("BY=-999999999;NT", -999_999_999, false, true),
            ("BY=999999999;R", 999_999_999, true, false),
            ("BY=000000001;R", 1, true, false),
        ] {
            let expected = DeliverBy {
                seconds,
                returns,
                traces,
            };
            assert_eq!(by(value), Ok(Some(expected)), "{value}");
        }
        for bad in [
            "BY",
            "BY=",
            "BY=1",
            "BY=;R",
            "BY=1;",
            "BY=1;X",
            "BY=1;TR",
            "BY=1;RTT",
            "BY=0;R",
            "BY=-1;R",
            "BY=-0;R",
            "BY=+-1;N",
            "BY=1.0;N",
            "BY=1000000000;N",
            "BY=-1000000000;N",
            "BY=1;R;T",
            "BY=9999999999999999999999;N",
        ] {
            assert_eq!(by(bad), Err(Reply::ParameterMalformed), "{bad}");
        }
        assert_eq!(by("BY=1;N BY=1;N"), Err(Reply::ParameterTwice));
    }

    #[test]
    fn a_hold_is_an_interval_or_a_date_in_utc_and_never_both() {
        let hold = |value: &str| mail(value).map(|found| found.hold);
        assert_eq!(hold("HOLDFOR=1"), Ok(Some(Hold::For(1))));
        assert_eq!(hold("holdfor=999999999"), Ok(Some(Hold::For(999_999_999))));
        let until = "HOLDUNTIL=2026-11-23T01:02:03Z";
        assert_eq!(hold(until), Ok(Some(Hold::Until(1_795_395_723))));
        let fraction = "HOLDUNTIL=2026-11-23T01:02:03.1Z";
        assert_eq!(hold(fraction), Ok(Some(Hold::Until(1_795_395_724))));
        for bad in [
            "HOLDFOR",
            "HOLDFOR=",
            "HOLDFOR=0",
            "HOLDFOR=01",
            "HOLDFOR=-1",
            "HOLDFOR=+1",
            "HOLDFOR=1000000000",
            "HOLDFOR=18446744073709551617",
            "HOLDFOR=1s",
            "HOLDUNTIL",
            "HOLDUNTIL=",
            "HOLDUNTIL=1",
            "HOLDUNTIL=2026-11-23T01:02:03",
            "HOLDUNTIL=2026-11-23T01:02:03+01:00",
            "HOLDUNTIL=2026-11-31T01:02:03Z",
        ] {
            assert_eq!(hold(bad), Err(Reply::ParameterMalformed), "{bad}");
        }
        for twice in [
            "HOLDFOR=1 HOLDFOR=1",
            "HOLDFOR=1 HOLDUNTIL=2026-11-23T01:02:03Z",
        ] {
            assert_eq!(hold(twice), Err(Reply::ParameterTwice), "{twice}");
        }
    }

    #[test]
    fn a_priority_is_one_digit_with_or_without_a_minus() {
        let priority = |value: &str| mail(value).map(|found| found.priority);
        for (value, number) in [("0", 0), ("9", 9), ("-9", -9), ("1", 1)] {
            let parameter = format!("MT-PRIORITY={value}");
            assert_eq!(priority(&parameter), Ok(Some(number)), "{value}");
        }
        for bad in ["", "-0", "+1", "10", "-10", "01", "1.0", "a", "--1"] {
            let parameter = format!("MT-PRIORITY={bad}");
            assert_eq!(
                priority(&parameter),
                Err(Reply::ParameterMalformed),
                "{bad}"
            );
        }
        assert_eq!(
            priority("MT-PRIORITY=1 mt-priority=1"),
            Err(Reply::ParameterTwice)
        );
    }

    #[test]
    fn the_submitter_is_xtext_of_a_mailbox_or_empty_brackets() {
        let auth = |value: &str| mail(value).map(|found| found.auth.map(<[u8]>::to_vec));
        for value in [
            "<>",
            "e+3Dmc2@example.com",
            "a@b",
            "+22a+20b+22@example.com",
        ] {
            let parameter = format!("AUTH={value}");
            assert_eq!(auth(&parameter), Ok(Some(value.into())), "{value}");
        }
        let too_long = format!("{}@example.com", "a".repeat(490));
        for bad in [
            "", "<a@b>", "a", "a@", "@b", "a+b@c", "a b@c", "+0D+0A@b", "a@b+", "\u{fc}@b",
            &too_long,
        ] {
            let parameter = format!("AUTH={bad}");
            assert!(auth(&parameter).is_err(), "{bad}");
        }
        assert_eq!(auth("AUTH=<> AUTH=<>"), Err(Reply::ParameterTwice));
    }

    #[test]
    fn an_address_is_valid_since_a_date_without_a_fraction() {
        let since = |value: &str| rcpt(value).map(|found| found.valid_since);
        for value in [
            "RRVS=2026-11-23T01:02:03Z",
            "rrvs=2026-11-23T02:02:03+01:00",
            "RRVS=2026-11-23T01:02:03Z;R",
            "RRVS=2026-11-23T01:02:03z;c",
        ] {
            assert_eq!(since(value), Ok(Some(1_795_395_723)), "{value}");
        }
        for bad in [
            "RRVS",
            "RRVS=",
            "RRVS=2026-11-23",
            "RRVS=2026-11-23T01:02:03.5Z",
            "RRVS=2026-11-23T01:02:03Z;",
            "RRVS=2026-11-23T01:02:03Z;X",
            "RRVS=2026-11-23T01:02:03Z;RC",
            "RRVS=2026-11-23T01:02:03",
        ] {
            assert_eq!(since(bad), Err(Reply::ParameterMalformed), "{bad}");
        }
        let twice = "RRVS=2026-11-23T01:02:03Z RRVS=2026-11-23T01:02:03Z";
        assert_eq!(since(twice), Err(Reply::ParameterTwice));
        let hidden = parse_rcpt(b"RRVS=2026-11-23T01:02:03Z", Offered::DSN);
        assert_eq!(hidden, Err(Reply::ParameterUnknown));
    }

    #[test]
    fn the_first_fault_from_the_left_decides() {
        assert_eq!(mail("SIZE=x X=1"), Err(Reply::ParameterMalformed));
        assert_eq!(mail("X=1 SIZE=x"), Err(Reply::ParameterUnknown));
        assert_eq!(mail("SIZE=1 SIZE=1 X"), Err(Reply::ParameterTwice));
    }

    #[test]
    fn notify_is_never_alone_or_a_list() {
        let notify = |value: &str| rcpt(value).map(|found| found.notify);
        let never = Notify::default();
        let all = Notify {
            success: true,
            failure: true,
            delay: true,
        };
        assert_eq!(notify("NOTIFY=NEVER"), Ok(Some(never)));
        assert_eq!(notify("notify=Success,failure,DELAY"), Ok(Some(all)));
        assert_eq!(
            notify("NOTIFY=DELAY"),
            Ok(Some(Notify {
                delay: true,
                ..never
            }))
        );
        assert_eq!(
            notify("NOTIFY=DELAY,DELAY"),
            Ok(Some(Notify {
                delay: true,
                ..never
            }))
        );
        for bad in [
            "NOTIFY",
            "NOTIFY=",
            "NOTIFY=FOO",
            "NOTIFY=NEVER,SUCCESS",
            "NOTIFY=SUCCESS,NEVER",
            "NOTIFY=SUCCESS,",
            "NOTIFY=,SUCCESS",
            "NOTIFY=SUCCESS;DELAY",
        ] {
            assert_eq!(notify(bad), Err(Reply::ParameterMalformed), "{bad}");
        }
    }

    #[test]
    fn orcpt_is_an_address_type_and_xtext() {
        let longest = format!("rfc822;{}", "o".repeat(493));
        for value in [
            "rfc822;a+2Bb@x",
            "x-type;any!thing",
            "rfc822;",
            "utf-8;a@b",
            "UTF-8;\\x{7528}\\x{1F600}@example.com",
            "utf-8;\u{fc}@b",
            &longest,
        ] {
            let parameter = format!("ORCPT={value}");
            let expected = RcptParameters {
                orcpt: Some(value.as_bytes()),
                ..RcptParameters::default()
            };
            assert_eq!(rcpt(&parameter), Ok(expected), "{value}");
        }
        let too_long = longest.clone() + "o";
        for value in [
            "",
            "rfc822",
            ";a",
            "rfc 822;a",
            "rfc_822;a",
            "rfc822;a+2b",
            "rfc822;a+",
            "rfc822;a=b",
            "rfc822;a+0A",
            "rfc822;\u{fc}@b",
            "utf-8;",
            "utf-8;a+2Bb",
            "utf-8;a\\b",
            "utf-8;\\x{}",
            "utf-8;\\x{0A}",
            "utf-8;\\x{D800}",
            "utf-8;\\x{110000}",
            "utf-8;\\x{0000041}",
            "utf-8;\\x{41",
            &too_long,
        ] {
            let parameter = format!("ORCPT={value}");
            let reply = rcpt(&parameter).map(|_| ());
            assert!(reply.is_err(), "{value}");
            if !value.contains(' ') {
                assert_eq!(reply, Err(Reply::ParameterMalformed), "{value}");
            }
        }
        let ill_formed = parse_rcpt(b"ORCPT=utf-8;\xff", ALL);
        assert_eq!(ill_formed, Err(Reply::ParameterMalformed));
        let not_offered = parse_rcpt("ORCPT=utf-8;\u{fc}".as_bytes(), Offered::DSN);
        assert_eq!(not_offered, Err(Reply::ParameterMalformed));
    }
}
