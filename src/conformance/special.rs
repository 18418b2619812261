//! Cases that a script can't say: greeting and EHLO, addresses and lines of special length, groups of commands,
//! enhanced codes, TLS and AUTH.

use rustls::ProtocolVersion;

use super::dialogue::{Dialogue, NO_STORE, Step, Stop};
use super::wire::{Broken, Reply, escape};
use super::{TLS_1_2, TLS_1_3, TLS_ANY};

/// Recipients that are tried at most.
const RECIPIENTS_TRIED_MAX: u64 = 1_000;
/// Recipients beyond an unknown limit.
const RECIPIENTS_MANY: usize = 1_100;
/// How long a server has to bear silence here, milliseconds.
const IDLE_MS: u64 = 20_000;

fn fail<T>(text: impl Into<String>) -> Step<T> {
    Err(Stop::Fail(text.into()))
}

/// Whether a word could be a domain or an address literal (RFC 5321 4.1.2).
fn names_a_host(word: &[u8]) -> bool {
    let literal = word.starts_with(b"[") && word.ends_with(b"]");
    let domain = word
        .iter()
        .all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'.' | b'-'));
    !word.is_empty() && (literal || domain)
}

fn first_word(reply: &Reply) -> Vec<u8> {
    let text = reply.texts().next().unwrap_or(b"").to_vec();
    text.split(|octet| *octet == b' ')
        .next()
        .unwrap_or(b"")
        .to_vec()
}

pub(super) fn greeting_names_the_server(d: &mut Dialogue<'_>) -> Step {
    let greeting = d.open()?;
    let word = first_word(&greeting);
    if names_a_host(&word) {
        Ok(())
    } else {
        fail(greeting.shown())
    }
}

pub(super) fn ehlo_names_the_server(d: &mut Dialogue<'_>) -> Step {
    d.open()?;
    let reply = d.say("EHLO client.example", "250")?;
    if names_a_host(&first_word(&reply)) {
        Ok(())
    } else {
        fail(reply.shown())
    }
}

pub(super) fn helo_is_one_line(d: &mut Dialogue<'_>) -> Step {
    d.open()?;
    let reply = d.say("HELO client.example", "250")?;
    match reply.lines.len() {
        1 => Ok(()),
        lines => fail(format!("{lines} lines")),
    }
}

pub(super) fn keywords_are_well_formed(d: &mut Dialogue<'_>) -> Step {
    let offer = d.ehlo()?;
    let bad = offer.keywords.iter().find(|(keyword, _)| {
        // `AUTH=` of old is a keyword that clients know how to skip.
        let word = keyword.strip_prefix("AUTH=").unwrap_or(keyword);
        let first = keyword.as_bytes().first();
        !first.is_some_and(u8::is_ascii_alphanumeric)
            || !word
                .bytes()
                .all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')
    });
    match bad {
        None => Ok(()),
        Some((keyword, _)) => fail(escape(keyword.as_bytes())),
    }
}

pub(super) fn well_formed(reply: &Reply) -> Option<String> {
    reply
        .fault
        .map(|fault| format!("{fault}: {}", reply.shown()))
}

pub(super) fn short_lines(reply: &Reply) -> Option<String> {
    (reply.longest > 512).then(|| format!("{} octets: {}", reply.longest, reply.shown()))
}

fn address_of(d: &Dialogue<'_>, local: &str) -> String {
    let to = &d.options.to;
    let domain = to
        .rsplit_once('@')
        .map_or("localhost", |(_, domain)| domain);
    format!("{local}@{domain}")
}

pub(super) fn local_part_of_64(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    let line = format!("MAIL FROM:<{}>", address_of(d, &"l".repeat(64)));
    d.say(&line, "250").map(drop)
}

pub(super) fn path_of_256(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    // With its brackets (RFC 5321 4.5.3.1.3): 64 + 1 + 189 + 2.
    let domain = format!("{}.{}.{}", "a".repeat(62), "b".repeat(62), "c".repeat(63));
    let line = format!("MAIL FROM:<{}@{domain}>", "l".repeat(64));
    d.say(&line, "250").map(drop)
}

pub(super) fn local_part_of_300(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    let line = format!("MAIL FROM:<{}>", address_of(d, &"l".repeat(300)));
    d.say(&line, "2xx/501/550/553/500")?;
    d.alive()
}

pub(super) fn no_relay(d: &mut Dialogue<'_>) -> Step {
    if d.options.sink {
        return Err(Stop::Skip(
            "a sink takes every recipient (--sink)".to_owned(),
        ));
    }
    d.ehlo()?;
    d.say(&d.mail_line(), "250")?;
    d.say("RCPT TO:<somebody@foreign.example>", "550/551/553/554/454")
        .map(drop)
}

pub(super) fn control_in_address(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.say("MAIL FROM:<a\x07b@example.org>", "5xx").map(drop)
}

pub(super) fn eight_bit_address(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.send(b"MAIL FROM:<a\xfcb@example.org>\r\n")?;
    d.want("5xx").map(drop)
}

pub(super) fn ill_formed_utf8(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.send(b"MAIL FROM:<a\xfcb@example.org> SMTPUTF8\r\n")?;
    d.want("5xx").map(drop)
}

pub(super) fn line_of_512(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.say(&format!("NOOP {}", "x".repeat(505)), "250").map(drop)
}

pub(super) fn line_of_5000(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.say(&format!("NOOP {}", "x".repeat(4_993)), "500/501/250")?;
    if !d.quiet()? {
        return fail("more than one reply");
    }
    d.alive()
}

pub(super) fn hundred_recipients(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.say(&d.mail_line(), "250")?;
    let line = d.rcpt_line();
    for _ in 0..100 {
        d.say(&line, "25x")?;
    }
    Ok(())
}

pub(super) fn too_many_recipients(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.say(&d.mail_line(), "250")?;
    let line = d.rcpt_line();
    for _ in 0..RECIPIENTS_MANY {
        if !d.say(&line, "25x/4xx/552")?.matches("2xx") {
            break;
        }
    }
    d.say("RSET", "250")?;
    d.alive()
}

pub(super) fn idle(d: &mut Dialogue<'_>) -> Step {
    if !d.options.slow {
        return Err(Stop::Skip("takes 20 s; give --slow".to_owned()));
    }
    d.ehlo()?;
    let time = std::time::Duration::from_millis(IDLE_MS);
    if d.wire()?.is_quiet(time)? {
        d.alive()
    } else {
        fail("the server spoke unasked")
    }
}

pub(super) fn lf_ends_no_command(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.send(b"NOOP\n")?;
    if d.quiet()? {
        return Ok(());
    }
    match d.wire()?.reply() {
        Ok(reply) if reply.matches("2xx") => fail(reply.shown()),
        _ => Ok(()),
    }
}

pub(super) fn cr_ends_no_command(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.send(b"NOOP\r")?;
    if d.quiet()? {
        Ok(())
    } else {
        fail("an answer to NOOP and CR alone")
    }
}

pub(super) fn received_is_there(d: &mut Dialogue<'_>) -> Step {
    if !d.has_store() {
        return Err(Stop::Skip(NO_STORE.to_owned()));
    }
    d.ehlo()?;
    d.deliver(b"Text.\r\n", "250")?;
    let trace = d.trace()?;
    let field = trace.split("Received:").nth(1).unwrap_or_default();
    let missing = [" by ", " with ", ";"]
        .iter()
        .find(|part| !field.contains(*part));
    match missing {
        _ if field.is_empty() => fail("no Received field"),
        Some(part) => fail(format!("Received without '{}'", part.trim())),
        None => Ok(()),
    }
}

pub(super) fn received_says_how(d: &mut Dialogue<'_>) -> Step {
    if !d.has_store() {
        return Err(Stop::Skip(NO_STORE.to_owned()));
    }
    d.open()?;
    d.say("HELO client.example", "250")?;
    d.deliver(b"Text.\r\n", "250")?;
    let trace = d.trace()?;
    if !trace.contains("with SMTP") {
        return fail("Received does not say 'with SMTP' after HELO");
    }
    d.token += "e";
    d.ehlo()?;
    d.deliver(b"Text.\r\n", "250")?;
    let trace = d.trace()?;
    if trace.contains("with ESMTP") {
        Ok(())
    } else {
        fail("Received does not say 'with ESMTP'")
    }
}

pub(super) fn received_says_utf8(d: &mut Dialogue<'_>) -> Step {
    if !d.has_store() {
        return Err(Stop::Skip(NO_STORE.to_owned()));
    }
    d.ehlo()?;
    d.say(&format!("{} SMTPUTF8", d.mail_line()), "250")?;
    d.say(&d.rcpt_line(), "25x")?;
    d.say("DATA", "354")?;
    let message = format!("{}Text.\r\n.\r\n", d.header());
    d.send(message.as_bytes())?;
    d.want("250")?;
    let trace = d.trace()?;
    if trace.contains("with UTF8SMTP") {
        Ok(())
    } else {
        fail("Received does not say 'with UTF8SMTP'")
    }
}

fn is_offered(d: &Dialogue<'_>, keyword: &str) -> Step {
    match d.offer.get(keyword) {
        Some(_) => Ok(()),
        None => fail("not offered"),
    }
}

pub(super) fn size_is_offered(d: &mut Dialogue<'_>) -> Step {
    match d.offer.get("SIZE") {
        Some(text) if text.trim().parse::<u64>().is_ok() => Ok(()),
        Some(text) => fail(format!("SIZE {text}")),
        None => fail("not offered"),
    }
}

pub(super) fn enhanced_is_offered(d: &mut Dialogue<'_>) -> Step {
    is_offered(d, "ENHANCEDSTATUSCODES")
}

pub(super) fn eight_bit_is_offered(d: &mut Dialogue<'_>) -> Step {
    is_offered(d, "8BITMIME")
}

pub(super) fn smtputf8_needs_8bitmime(d: &mut Dialogue<'_>) -> Step {
    is_offered(d, "8BITMIME")
}

pub(super) fn binarymime_needs_chunking(d: &mut Dialogue<'_>) -> Step {
    is_offered(d, "CHUNKING")
}

pub(super) fn requiretls_in_the_clear(d: &mut Dialogue<'_>) -> Step {
    match d.offer.get("REQUIRETLS") {
        None => Ok(()),
        Some(_) => fail("offered"),
    }
}

fn maximum(d: &Dialogue<'_>) -> Step<u64> {
    let none = || Stop::Skip("the server states no maximum".to_owned());
    d.offer.size().ok_or_else(none)
}

pub(super) fn size_over_the_maximum(d: &mut Dialogue<'_>) -> Step {
    let max = maximum(d)?;
    d.ehlo()?;
    let line = format!("{} SIZE={}", d.mail_line(), u128::from(max) + 1);
    d.say(&line, "552").map(drop)
}

pub(super) fn size_over_2_32(d: &mut Dialogue<'_>) -> Step {
    let size = (1_u64 << 32) + 1_000;
    let wanted = match maximum(d)? {
        max if max < size => "552/501/555",
        _ => "250",
    };
    d.ehlo()?;
    d.say(&format!("{} SIZE={size}", d.mail_line()), wanted)
        .map(drop)
}

fn group(d: &mut Dialogue<'_>, lines: &[&str], wanted: &[&str]) -> Step {
    let text: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    d.send(text.as_bytes())?;
    for patterns in wanted {
        d.want(patterns)?;
    }
    if wanted.last().is_some_and(|last| *last != "221") && !d.quiet()? {
        return fail("more replies than commands");
    }
    Ok(())
}

pub(super) fn pipeline_group(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    let (mail, rcpt) = (d.mail_line(), d.rcpt_line());
    group(
        d,
        &[&mail, &rcpt, &rcpt, "DATA"],
        &["250", "25x", "25x", "354"],
    )
}

pub(super) fn pipeline_bad_rcpt(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    let (mail, rcpt) = (d.mail_line(), d.rcpt_line());
    group(
        d,
        &[&mail, "RCPT TO:<@>", &rcpt, "DATA"],
        &["250", "5xx", "25x", "354"],
    )
}

pub(super) fn pipeline_no_rcpt(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    let mail = d.mail_line();
    d.send(format!("{mail}\r\nRCPT TO:<@>\r\nDATA\r\n").as_bytes())?;
    d.want("250")?;
    d.want("5xx")?;
    if d.want("503/554/354")?.matches("354") {
        d.send(b".\r\n")?;
        d.want("554/503")?;
    }
    Ok(())
}

pub(super) fn pipeline_rset(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    group(d, &["RSET", "RSET", "QUIT"], &["250", "250", "221"])
}

pub(super) fn pipeline_behind_the_dot(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.data()?;
    let text = format!(
        "{}Text.\r\n.\r\n{}\r\n{}\r\n",
        d.header(),
        d.mail_line(),
        d.rcpt_line()
    );
    d.send(text.as_bytes())?;
    d.want("250")?;
    d.want("250")?;
    d.want("25x")?;
    d.stored_count(1)
}

pub(super) fn pipeline_sixty(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    let (mail, rcpt) = (d.mail_line(), d.rcpt_line());
    let mut lines = vec![mail.as_str()];
    lines.resize(61, rcpt.as_str());
    let mut wanted = vec!["250"];
    wanted.resize(61, "25x");
    group(d, &lines, &wanted)
}

pub(super) fn commands_octet_by_octet(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    for line in [d.mail_line(), d.rcpt_line()] {
        for octet in format!("{line}\r\n").bytes() {
            d.send(&[octet])?;
        }
        d.want("25x")?;
    }
    Ok(())
}

pub(super) fn pipeline_into_data(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.envelope()?;
    // What comes before the 354 is content or is lost, but is never a command.
    d.send(b"DATA\r\nMAIL FROM:<never@example.org>\r\n.\r\n")?;
    let replies = d.replies()?;
    let codes: Vec<u16> = replies.iter().map(|reply| reply.code).collect();
    match codes.as_slice() {
        [354] | [354, _] | [500..=599, ..] | [] => Ok(()),
        more => fail(format!(
            "replies {more:?}: what stood behind DATA was a command"
        )),
    }
}

pub(super) fn pipeline_errors(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    let rcpt = d.rcpt_line();
    group(d, &["MAIL FROM:<@>", &rcpt, "RSET"], &["5xx", "503", "250"])
}

/// The enhanced code that a text begins with, and its class.
fn enhanced(text: &[u8]) -> Option<u8> {
    let word = text.split(|octet| *octet == b' ').next()?;
    let mut parts = word.split(|octet| *octet == b'.');
    let class = match parts.next()? {
        [class @ (b'2' | b'4' | b'5')] => *class,
        _ => return None,
    };
    let number = |part: &[u8]| (1..=3).contains(&part.len()) && part.iter().all(u8::is_ascii_digit);
    let (subject, detail) = (parts.next()?, parts.next()?);
    (number(subject) && number(detail) && parts.next().is_none()).then_some(class)
}

pub(super) fn enhanced_codes(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    let (mail, rcpt) = (d.mail_line(), d.rcpt_line());
    for (line, patterns) in [
        (mail.as_str(), "250"),
        (rcpt.as_str(), "25x"),
        ("RSET", "250"),
        ("NOOP", "250"),
        ("DATA", "503"),
        ("VRFY postmaster", "2xx/5xx"),
        ("WHAT", "5xx"),
        ("QUIT", "221"),
    ] {
        let reply = d.say(line, patterns)?;
        if let Some(text) = reply.texts().find(|text| enhanced(text).is_none()) {
            return fail(format!("{line}: no enhanced code in '{}'", escape(text)));
        }
    }
    Ok(())
}

pub(super) fn enhanced_class(reply: &Reply) -> Option<String> {
    let digit = b'0' + u8::try_from(reply.code / 100).ok()?;
    let other = reply
        .texts()
        .any(|text| enhanced(text).is_some_and(|class| class != digit));
    other.then(|| reply.shown())
}

pub(super) fn no_enhanced_354(reply: &Reply) -> Option<String> {
    let has = reply.code == 354 && reply.texts().any(|text| enhanced(text).is_some());
    has.then(|| reply.shown())
}

fn begins(reply: &Reply, codes: &[&str]) -> Step {
    let text = reply.texts().next().unwrap_or(b"");
    if codes.iter().any(|code| text.starts_with(code.as_bytes())) {
        Ok(())
    } else {
        fail(reply.shown())
    }
}

pub(super) fn enhanced_unknown(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    let reply = d.say("WHAT", "5xx")?;
    begins(&reply, &["5.5.1", "5.5.2"])
}

pub(super) fn enhanced_order(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    let reply = d.say(&d.rcpt_line(), "503")?;
    begins(&reply, &["5.5.1"])
}

pub(super) fn enhanced_size(d: &mut Dialogue<'_>) -> Step {
    let max = maximum(d)?;
    d.ehlo()?;
    let reply = d.say(
        &format!("{} SIZE={}", d.mail_line(), u128::from(max) + 1),
        "552",
    )?;
    begins(&reply, &["5.3.4"])
}

pub(super) fn enhanced_ok(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    let reply = d.say(&d.mail_line(), "250")?;
    begins(&reply, &["2.1.0"])?;
    let reply = d.say(&d.rcpt_line(), "25x")?;
    begins(&reply, &["2.1.5"])
}

pub(super) fn limits_are_well_formed(d: &mut Dialogue<'_>) -> Step {
    let text = d.offer.get("LIMITS").unwrap_or_default();
    for item in text.split(' ').filter(|item| !item.is_empty()) {
        let Some((name, number)) = item.split_once('=') else {
            return fail(format!("'{item}' has no value"));
        };
        let digits = (1..=6).contains(&number.len())
            && number.bytes().all(|octet| octet.is_ascii_digit())
            && !number.starts_with('0');
        let known = ["RCPTMAX", "MAILMAX", "RCPTDOMAINMAX"].contains(&name);
        if known && !digits {
            return fail(item);
        }
    }
    Ok(())
}

pub(super) fn rcptmax_is_kept(d: &mut Dialogue<'_>) -> Step {
    let text = d.offer.get("LIMITS").unwrap_or_default();
    let stated = text
        .split(' ')
        .find_map(|item| item.strip_prefix("RCPTMAX="))
        .and_then(|number| number.parse::<u64>().ok())
        .ok_or_else(|| Stop::Skip("RCPTMAX is not stated".to_owned()))?;
    d.ehlo()?;
    d.say(&d.mail_line(), "250")?;
    let line = d.rcpt_line();
    for _ in 0..stated.min(RECIPIENTS_TRIED_MAX) {
        d.say(&line, "25x")?;
    }
    Ok(())
}

// TLS.

pub(super) fn starttls_works(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.starttls()?;
    d.say("EHLO client.example", "250").map(drop)
}

pub(super) fn starttls_is_not_offered_again(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.starttls()?;
    let reply = d.say("EHLO client.example", "250")?;
    match super::dialogue::Offer::of(&reply).get("STARTTLS") {
        None => Ok(()),
        Some(_) => fail("offered under TLS"),
    }
}

pub(super) fn starttls_forgets(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    let (mail, rcpt) = (d.mail_line(), d.rcpt_line());
    d.say(&mail, "250/530")?;
    d.starttls()?;
    d.say(&rcpt, "503").map(drop)
}

pub(super) fn starttls_twice(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.starttls()?;
    d.say("EHLO client.example", "250")?;
    d.say("STARTTLS", "5xx").map(drop)
}

/// A ClientHello whose newest version is TLS 1.0 or 1.1 (RFC 4346 7.4.1.2), without extensions.
fn old_hello(minor: u8) -> Vec<u8> {
    let suites = [0xC0, 0x13, 0xC0, 0x14, 0x00, 0x2F, 0x00, 0x35, 0x00, 0x0A];
    let mut body = vec![3, minor];
    body.extend([0x42; 32]);
    body.push(0);
    body.extend([0, suites.len() as u8]);
    body.extend(suites);
    body.extend([1, 0]);
    let mut handshake = vec![1, 0, 0, body.len() as u8];
    handshake.extend(&body);
    let mut record = vec![22, 3, minor, 0, handshake.len() as u8];
    record.extend(&handshake);
    record
}

pub(super) fn old_tls_is_refused(d: &mut Dialogue<'_>) -> Step {
    for minor in [1, 2] {
        d.ehlo()?;
        d.say("STARTTLS", "220")?;
        d.send(&old_hello(minor))?;
        match d.wire()?.raw() {
            // A record of type handshake: the server goes on with it.
            Ok(octets) if octets.first() == Some(&22) => {
                return fail(format!("TLS 1.{} is spoken", minor - 1));
            }
            Ok(_) | Err(Broken::Closed) => {}
            Err(broken) => return fail(broken.text()),
        }
    }
    Ok(())
}

fn speaks(d: &mut Dialogue<'_>, version: ProtocolVersion) -> Step {
    d.ehlo()?;
    d.say("STARTTLS", "220")?;
    let versions = match version {
        ProtocolVersion::TLSv1_3 => TLS_1_3,
        _ => TLS_1_2,
    };
    let secured = d.wire()?.secure(versions)?;
    if secured.version == Some(version) {
        Ok(())
    } else {
        fail(format!("{:?}", secured.version))
    }
}

pub(super) fn tls_1_3(d: &mut Dialogue<'_>) -> Step {
    speaks(d, ProtocolVersion::TLSv1_3)
}

pub(super) fn tls_1_2(d: &mut Dialogue<'_>) -> Step {
    speaks(d, ProtocolVersion::TLSv1_2)
}

pub(super) fn starttls_injection(d: &mut Dialogue<'_>) -> Step {
    for injected in [
        &b"STARTTLS\r\nNOOP\r\n"[..],
        b"STARTTLS\r\nEHLO injected.example\r\n",
        b"STARTTLS\r\nMAIL FROM:<injected@example.org>\r\nRCPT TO:<injected@example.org>\r\n",
    ] {
        d.ehlo()?;
        d.send(injected)?;
        let reply = match d.wire()?.reply() {
            Ok(reply) => reply,
            Err(Broken::Closed) => continue,
            Err(broken) => return fail(broken.text()),
        };
        if !reply.matches("220") {
            continue;
        }
        match d.wire()?.secure(TLS_ANY) {
            Ok(_) => {}
            // Closed, or refused to go on: nothing was executed.
            Err(Broken::Closed) => continue,
            Err(Broken::Other(text)) if text.contains("between its 220") => return fail(text),
            Err(_) => continue,
        }
        match d.quiet() {
            Ok(true) => {}
            Ok(false) => return fail("an answer under TLS to what was sent in the clear"),
            Err(_) => continue,
        }
        d.say("EHLO client.example", "250")?;
        // If the injected MAIL were open, this would be refused.
        let mail = d.mail_line();
        d.say(&mail, "250")?;
    }
    Ok(())
}

pub(super) fn close_notify(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.starttls()?;
    d.say("QUIT", "221")?;
    if d.wire()?.ends_with_close_notify() {
        Ok(())
    } else {
        fail("the end came without close_notify")
    }
}

pub(super) fn failed_handshake(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.say("STARTTLS", "220")?;
    d.send(b"this is no ClientHello\r\nNOOP\r\n")?;
    d.wire()?.end_writing();
    d.closed()?;
    d.ehlo().map(drop)
}

pub(super) fn plaintext_after_tls(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.starttls()?;
    d.say("EHLO client.example", "250")?;
    d.wire()?.close_tls();
    // The server may have gone by now.
    let _ = d
        .wire()?
        .send_below_tls(b"NOOP\r\nEHLO injected.example\r\n");
    match d.wire()?.reply() {
        Ok(reply) => fail(format!("answered: {}", reply.shown())),
        Err(_) => Ok(()),
    }
}

// AUTH.

pub(super) fn no_plain_in_the_clear(d: &mut Dialogue<'_>) -> Step {
    let offered = d.offer.get("AUTH").unwrap_or_default();
    let bad = ["PLAIN", "LOGIN"].into_iter().find(|name| {
        offered
            .split(' ')
            .any(|word| word.eq_ignore_ascii_case(name))
    });
    match bad {
        None => Ok(()),
        Some(name) => fail(format!("AUTH {name} is offered in the clear")),
    }
}

fn plain_or_login(d: &Dialogue<'_>) -> Step<&'static str> {
    let offered = d.offer.get("AUTH").unwrap_or_default();
    let named = |name: &str| offered.split(' ').any(|word| word == name);
    if named("PLAIN") {
        Ok("AUTH PLAIN")
    } else if named("LOGIN") {
        Ok("AUTH LOGIN")
    } else {
        Err(Stop::Skip(
            "neither PLAIN nor LOGIN is offered here".to_owned(),
        ))
    }
}

pub(super) fn auth_cancelled(d: &mut Dialogue<'_>) -> Step {
    let line = plain_or_login(d)?;
    d.ehlo()?;
    d.say(line, "334")?;
    d.say("*", "501").map(drop)
}

pub(super) fn auth_bad_base64(d: &mut Dialogue<'_>) -> Step {
    let line = plain_or_login(d)?;
    d.ehlo()?;
    d.say(line, "334")?;
    d.say("!!!not base64!!!", "501").map(drop)
}

pub(super) fn auth_in_transaction(d: &mut Dialogue<'_>) -> Step {
    let line = plain_or_login(d)?;
    d.ehlo()?;
    if !d.say(&d.mail_line(), "250/530")?.matches("250") {
        return Err(Stop::Skip("MAIL needs AUTH here".to_owned()));
    }
    d.say(line, "503").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enhanced_codes_have_three_numbers() {
        assert_eq!(enhanced(b"2.1.0 Ok"), Some(b'2'));
        assert_eq!(enhanced(b"5.7.26 x"), Some(b'5'));
        for text in [
            &b"2.1 x"[..],
            b"3.1.0 x",
            b"2.1.0.0 x",
            b"2.1.1234 x",
            b"Ok",
            b"",
        ] {
            assert_eq!(enhanced(text), None, "{}", escape(text));
        }
    }

    #[test]
    fn hosts_are_domains_or_literals() {
        for good in [
            &b"mx.example"[..],
            b"localhost",
            b"[127.0.0.1]",
            b"[IPv6:::1]",
        ] {
            assert!(names_a_host(good), "{}", escape(good));
        }
        for bad in [&b""[..], b"***", b"mx_example", b"<mx>"] {
            assert!(!names_a_host(bad), "{}", escape(bad));
        }
    }

    #[test]
    fn the_old_hello_is_one_whole_record() {
        let hello = old_hello(1);
        assert_eq!(hello.len(), 5 + usize::from(hello[4]));
        assert_eq!(usize::from(hello[8]), hello.len() - 9);
        assert_eq!((hello[1], hello[2], hello[9], hello[10]), (3, 1, 3, 1));
    }
}
