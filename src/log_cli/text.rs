//! Messages as text for people and as JSON for programs.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::clock;
use crate::envelope::{
    BODY_7BIT, BODY_8BITMIME, BODY_BINARYMIME, FLAG_BDAT, FLAG_ESMTP, FLAG_NORMALIZED,
    FLAG_SMTPUTF8,
};
use crate::ringlog::reader::Message;

/// Value of `schema` in the JSON of a message.
pub const MESSAGE_SCHEMA: &str = "ringmx.message.v1";

/// Standard Base64 with padding (RFC 4648 section 4).
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let byte = |index: usize| u32::from(part.get(index).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            match index <= part.len() {
                true => out.push(char::from(
                    ALPHABET[(group >> (18 - 6 * index) & 63) as usize],
                )),
                false => out.push('='),
            }
        }
    }
    out
}

/// Bytes as text that cannot steer a terminal: control characters other than TAB are written
/// `\x1b`, bytes that are not UTF-8 likewise, LF and CRLF stay line ends when `lines` is set.
pub fn printable(bytes: &[u8], lines: bool) -> String {
    let mut out = String::with_capacity(bytes.len());
    let mut push = |text: &str, followed_by_lf_after: bool| {
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            let before_lf = characters
                .peek()
                .map_or(followed_by_lf_after, |next| *next == '\n');
            match character {
                '\n' if lines => out.push('\n'),
                '\r' if lines && before_lf => {}
                '\t' => out.push('\t'),
                _ if character.is_control() || is_invisible(character) => {
                    // Writing to a String cannot fail.
                    let _ = match u32::from(character) {
                        code @ ..=0xff => write!(out, "\\x{code:02x}"),
                        code => write!(out, "\\u{{{code:x}}}"),
                    };
                }
                _ => out.push(character),
            }
        }
    };
    for chunk in bytes.utf8_chunks() {
        push(chunk.valid(), false);
        for byte in chunk.invalid() {
            push(&format!("\\x{byte:02x}"), false);
        }
    }
    out
}

/// Characters that turn the direction of what follows, or hide: they make one address look like
/// another.
fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
    )
}

/// A path in angle brackets, printable.
fn bracketed(path: &[u8]) -> String {
    format!("<{}>", printable(path, false))
}

/// One line about a message: id, time, size, sender and first recipients.
pub fn line(message: &Message) -> String {
    let envelope = message.envelope();
    let mut out = format!(
        "{:<8} {} {:>9}  {} ->",
        message.id().to_string(),
        clock::rfc3339(message.received_ns),
        message.body().len(),
        bracketed(envelope.reverse_path.unwrap_or_default()),
    );
    for recipient in envelope.recipients.iter().take(RECIPIENTS_SHOWN) {
        let _ = write!(out, " {}", bracketed(recipient.path));
    }
    if let Some(more @ 1..) = envelope.recipients.len().checked_sub(RECIPIENTS_SHOWN) {
        let _ = write!(out, " and {more} more");
    }
    out.push('\n');
    out
}

/// Recipients on the line of a message.
const RECIPIENTS_SHOWN: usize = 3;

/// Envelope, an empty line, then the message with its line ends turned into those of a terminal.
pub fn readable(message: &Message) -> String {
    let envelope = message.envelope();
    let mut out = String::new();
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<12} {value}");
    };
    row("id", &message.id().to_string());
    row("received", &clock::rfc3339(message.received_ns));
    if let Some(client) = envelope.client {
        row("client", &client.to_string());
    }
    if let Some(listener) = envelope.listener {
        row("listener", &listener.to_string());
    }
    for (name, value) in [
        ("role", envelope.role),
        ("helo", envelope.helo),
        ("tls", envelope.tls),
        ("tls name", envelope.tls_server_name),
        ("tls client", envelope.tls_client),
        ("user", envelope.user),
        ("client name", envelope.client_name),
        ("forwarded", envelope.forwarded),
    ] {
        if let Some(value) = value {
            row(name, &printable(value, false));
        }
    }
    if let Some(by) = envelope.deliver_by {
        let mode = if by.returns {
            "or return it"
        } else {
            "or tell the sender"
        };
        row(
            "deliver by",
            &format!("{} {mode}", seconds_text(by.unix_seconds)),
        );
    }
    if let Some(seconds) = envelope.hold_until {
        row("hold until", &seconds_text(seconds));
    }
    if let Some(priority) = envelope.priority {
        row("priority", &priority.to_string());
    }
    let with = |path: &[u8], parameters: &[u8]| match parameters {
        [] => bracketed(path),
        _ => format!("{} {}", bracketed(path), printable(parameters, false)),
    };
    row(
        "mail from",
        &with(
            envelope.reverse_path.unwrap_or_default(),
            envelope.mail_parameters.unwrap_or_default(),
        ),
    );
    for recipient in &envelope.recipients {
        row("rcpt to", &with(recipient.path, recipient.parameters));
    }
    row("octets", &message.body().len().to_string());
    let facts = envelope.facts;
    if facts.bare_lf > 0 || facts.bare_cr > 0 || facts.nul > 0 {
        row(
            "irregular",
            &format!(
                "{} bare LF, {} bare CR, {} NUL",
                facts.bare_lf, facts.bare_cr, facts.nul
            ),
        );
    }
    if envelope.malformed {
        row("envelope", "ends in the middle of a field");
    }
    out.push('\n');
    out.push_str(&printable(message.body(), true));
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

/// A time given in seconds since 1970; before that, their number.
fn seconds_text(unix_seconds: i64) -> String {
    match u64::try_from(unix_seconds) {
        Ok(seconds) => clock::rfc3339(seconds.saturating_mul(1_000_000_000)).replace(".000", ""),
        Err(_) => format!("{unix_seconds} s from 1970"),
    }
}

/// Puts `bytes` under `name` as text; when they are not UTF-8, what can be shown of them, and the
/// exact bytes under `NAME_base64`.
fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            object.insert(name.to_owned(), json!(text));
        }
        Err(_) => {
            object.insert(name.to_owned(), json!(String::from_utf8_lossy(bytes)));
            object.insert(format!("{name}_base64"), json!(base64(bytes)));
        }
    }
}

/// The message as a JSON object; with `body`, its octets too, under `message`.
pub fn json(message: &Message, body: bool) -> Value {
    let envelope = message.envelope();
    let facts = envelope.facts;
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| {
        object.insert(name.to_owned(), value);
    };
    put("schema", json!(MESSAGE_SCHEMA));
    put("id", json!(message.id().to_string()));
    put("shard", json!(message.shard));
    put("number", json!(message.number));
    put("ring_id", json!(hex(&message.ring_id)));
    put("position", json!(message.position));
    put("received", json!(clock::rfc3339(message.received_ns)));
    put("received_ns", json!(message.received_ns));
    put("octets", json!(message.body().len()));
    put("trace_octets", json!(facts.trace_bytes));
    let address = |address: Option<std::net::SocketAddr>| {
        address.map(|address| json!({"address": address.ip().to_string(), "port": address.port()}))
    };
    put("client", json!(address(envelope.client)));
    put("listener", json!(address(envelope.listener)));
    put("esmtp", json!(facts.flags & FLAG_ESMTP != 0));
    put("smtputf8", json!(facts.flags & FLAG_SMTPUTF8 != 0));
    put("chunking", json!(facts.flags & FLAG_BDAT != 0));
    put("normalized", json!(facts.flags & FLAG_NORMALIZED != 0));
    put("body", json!(body_name(facts.body)));
    put(
        "declared_size",
        json!(facts.declared_size_plus_1.checked_sub(1)),
    );
    put("bare_lf", json!(facts.bare_lf));
    put("bare_cr", json!(facts.bare_cr));
    put("nul", json!(facts.nul));
    put(
        "first_irregular_offset",
        json!(facts.first_offset_plus_1.checked_sub(1)),
    );
    put(
        "transaction_ns",
        json!(u64::from(facts.transaction_us) * 1_000),
    );
    put("data_ns", json!(u64::from(facts.data_us) * 1_000));
    put(
        "deliver_by",
        json!(envelope.deliver_by.map(|by| json!({
            "unix_s": by.unix_seconds,
            "mode": if by.returns { "R" } else { "N" },
            "trace": by.traces,
        }))),
    );
    put("hold_until_unix_s", json!(envelope.hold_until));
    put("priority", json!(envelope.priority));
    for (name, value) in [
        ("role", envelope.role),
        ("helo", envelope.helo),
        ("tls", envelope.tls),
        ("tls_server_name", envelope.tls_server_name),
        ("tls_client", envelope.tls_client),
        ("user", envelope.user),
        ("reverse_path", envelope.reverse_path),
        ("mail_parameters", envelope.mail_parameters),
        ("client_name", envelope.client_name),
        ("forwarded", envelope.forwarded),
    ] {
        match value {
            Some(value) => put_bytes(&mut object, name, value),
            None => {
                object.insert(name.to_owned(), Value::Null);
            }
        }
    }
    let recipients = envelope.recipients.iter().map(|recipient| {
        let mut object = Map::new();
        put_bytes(&mut object, "forward_path", recipient.path);
        put_bytes(&mut object, "parameters", recipient.parameters);
        Value::Object(object)
    });
    object.insert("recipients".to_owned(), recipients.collect());
    if body {
        put_bytes(&mut object, "message", message.body());
    }
    Value::Object(object)
}

/// BODY as declared (RFC 6152, RFC 3030), `None` when it was not.
pub fn body_name(body: u8) -> Option<&'static str> {
    match body {
        BODY_7BIT => Some("7BIT"),
        BODY_8BITMIME => Some("8BITMIME"),
        BODY_BINARYMIME => Some("BINARYMIME"),
        _ => None,
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// The value of the first Message-ID field (RFC 5322 3.6.4), unfolded and trimmed.
pub fn message_id(body: &[u8]) -> Option<Vec<u8>> {
    let mut lines = body.split(|byte| *byte == b'\n').peekable();
    while let Some(line) = lines.next() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return None;
        }
        let Some((name, value)) = line.split_at_checked(11) else {
            continue;
        };
        if !name.eq_ignore_ascii_case(b"message-id:") {
            continue;
        }
        let mut value = value.to_vec();
        // RFC 5322 2.2.3: a line that begins with white space continues the field.
        while let Some(more) = lines.next_if(|line| matches!(line.first(), Some(b' ' | b'\t'))) {
            value.extend_from_slice(more.strip_suffix(b"\r").unwrap_or(more));
        }
        return Some(value.trim_ascii().to_vec());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_gives_the_test_vectors_of_rfc_4648() {
        let encoded =
            ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|s| base64(s.as_bytes()));
        assert_eq!(
            encoded,
            [
                "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"
            ]
        );
    }

    #[test]
    fn printable_leaves_nothing_that_steers_a_terminal() {
        assert_eq!(
            printable(b"a\x1b[2J\r\nb\tc\x00\xff\xc2\x9b", true),
            "a\\x1b[2J\nb\tc\\x00\\xff\\x9b"
        );
        assert_eq!(printable(b"a\r\nb\rc", false), "a\\x0d\\x0ab\\x0dc");
        assert_eq!(printable(b"a\rb\n\xff\n", true), "a\\x0db\n\\xff\n");
        assert_eq!(
            printable("x\u{202e}y\u{e9}".as_bytes(), true),
            "x\\u{202e}y\u{e9}"
        );
    }

    #[test]
    fn message_id_is_found_folded_and_in_any_case_and_only_in_the_header() {
        let find =
            |text: &str| message_id(text.as_bytes()).map(|id| String::from_utf8(id).unwrap());
        assert_eq!(
            find("Received: x\r\nMESSAGE-ID:\r\n <a@b>\r\n\r\n"),
            Some("<a@b>".to_owned())
        );
        assert_eq!(find("Subject: x\r\n\r\nMessage-ID: <a@b>\r\n"), None);
        assert_eq!(find("Message-ID: <a@b>"), Some("<a@b>".to_owned()));
        assert_eq!(find(""), None);
    }
}
