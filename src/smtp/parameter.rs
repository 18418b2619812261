//! Parameters of MAIL and RCPT (RFC 1870, 6152, 3030, 6531, 3461).
//!
//! Promises: one pass from left to right; a parameter whose extension was not offered is an unknown
//! one (RFC 5321 4.1.1.11); what is accepted has the syntax of its extension, decoded xtext
//! included, so that nothing in it can break a delivery report later.
//! Does not: compare SIZE with a limit, or know which parameters exclude each other across
//! commands.

use super::reply::Reply;

/// The extensions that were offered to this client, a set of bits; empty after HELO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offered(u32);

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
    /// STARTTLS (RFC 3207): no parameter, but the STARTTLS command. Never offered under TLS.
    pub const STARTTLS: Offered = Offered(64);
    /// REQUIRETLS (RFC 8689): `REQUIRETLS`. Offered under TLS alone.
    pub const REQUIRETLS: Offered = Offered(128);

    /// Both sets together.
    pub const fn with(self, other: Offered) -> Offered {
        Offered(self.0 | other.0)
    }

    /// This set without those of `other`.
    pub const fn without(self, other: Offered) -> Offered {
        Offered(self.0 & !other.0)
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
}

/// Parameters of one RCPT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RcptParameters<'a> {
    /// When the sender wants delivery reports.
    pub notify: Option<Notify>,
    /// Original recipient, `addr-type;xtext` as given.
    pub orcpt: Option<&'a [u8]>,
}

/// Longest value of ENVID, octets (RFC 3461 4.4).
const ENVID_BYTES_MAX: usize = 100;
/// Longest value of ORCPT, octets (RFC 3461 4.2).
const ORCPT_BYTES_MAX: usize = 500;
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

fn is(keyword: &[u8], name: &[u8]) -> bool {
    keyword.eq_ignore_ascii_case(name)
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
fn is_xtext(text: &[u8]) -> bool {
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
        .with(Offered::CHUNKING);

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
            requiretls: false,
            ret: Some(Ret::Headers),
            envid: Some(b"ab+2Bc"),
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
            "AUTH=<>",
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
                notify: None,
                orcpt: Some(value.as_bytes()),
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
