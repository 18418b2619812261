//! Cases about content: what is stored of what was sent, where DATA ends, and chunks.

use super::dialogue::{Dialogue, Step, Stop};

/// Larger than the maximum by this much, octets.
const OVER_BYTES: u64 = 1_024;
/// A maximum beyond this is not tried, octets.
const MAXIMUM_TRIED: u64 = 64 << 20;

fn fail<T>(text: impl Into<String>) -> Step<T> {
    Err(Stop::Fail(text.into()))
}

/// Delivers `wire` behind the header fields and looks for `stored`.
fn intact(d: &mut Dialogue<'_>, wire: &[u8], stored: &[u8]) -> Step {
    d.ehlo()?;
    d.deliver(wire, "250")?;
    let content = [d.header().as_bytes(), stored].concat();
    d.stored_as(&content)
}

pub(super) fn line_of_1000(d: &mut Dialogue<'_>) -> Step {
    let line = [&b"x".repeat(998)[..], b"\r\n"].concat();
    intact(d, &line, &line)
}

pub(super) fn message_of_64k(d: &mut Dialogue<'_>) -> Step {
    let text = b"sixty-two octets of text and a line end make sixty-four....\r\n".repeat(1_075);
    intact(d, &text, &text)
}

pub(super) fn line_of_20000(d: &mut Dialogue<'_>) -> Step {
    let line = [&b"x".repeat(19_998)[..], b"\r\n"].concat();
    d.ehlo()?;
    let reply = d.deliver(&line, "250/5xx")?;
    if reply.matches("250") {
        let content = [d.header().as_bytes(), &line].concat();
        return d.stored_as(&content);
    }
    d.stored_count(0)
}

pub(super) fn two_dots(d: &mut Dialogue<'_>) -> Step {
    intact(d, b"..\r\n", b".\r\n")
}

pub(super) fn leading_dot(d: &mut Dialogue<'_>) -> Step {
    intact(d, b".text\r\n", b"text\r\n")
}

pub(super) fn many_dots(d: &mut Dialogue<'_>) -> Step {
    let (mut wire, mut stored) = (String::new(), String::new());
    for dots in 1..=6 {
        wire += &format!(".{}\r\n", ".".repeat(dots));
        stored += &format!("{}\r\n", ".".repeat(dots));
    }
    intact(d, wire.as_bytes(), stored.as_bytes())
}

pub(super) fn lost_before_the_end(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.data()?;
    let text = format!("{}no end\r\n.", d.header());
    cut_off_behind(d, &text)
}

/// Ends the connection behind these octets of a message; nothing may be stored of it.
fn cut_off_behind(d: &mut Dialogue<'_>, text: &str) -> Step {
    d.send(text.as_bytes())?;
    d.wire()?.end_writing();
    d.closed()?;
    // Another session, so that the server has had time to see the end of the first.
    d.ehlo()?;
    d.alive()?;
    d.stored_count(0)
}

fn received(count: usize) -> Vec<u8> {
    b"Received: from a by b; Thu, 1 Jan 2026 00:00:00 +0000\r\n".repeat(count)
}

pub(super) fn thirty_received(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.data()?;
    let message = [&received(30)[..], d.header().as_bytes(), b"Text.\r\n.\r\n"].concat();
    d.send(&message)?;
    d.want("250").map(drop)
}

pub(super) fn many_received(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.data()?;
    let message = [&received(250)[..], d.header().as_bytes(), b"Text.\r\n.\r\n"].concat();
    d.send(&message)?;
    let wanted = if d.options.sink { "554/250" } else { "554" };
    d.want(wanted)?;
    d.alive()
}

pub(super) fn octet_by_octet(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.data()?;
    let message = [d.header().as_bytes(), b"..one\r\n\r\n...\r\n", b".\r\n"].concat();
    for octet in message {
        d.send(&[octet])?;
    }
    d.want("250")?;
    let content = [d.header().as_bytes(), b".one\r\n\r\n..\r\n"].concat();
    d.stored_as(&content)
}

fn eight_bit_body() -> Vec<u8> {
    let mut body: Vec<u8> = (128..=255).collect();
    body.extend(b"\r\n");
    body
}

pub(super) fn eight_bit_undeclared(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    let body = eight_bit_body();
    if d.deliver(&body, "250/5xx")?.matches("250") {
        let content = [d.header().as_bytes(), &body].concat();
        return d.stored_as(&content);
    }
    Ok(())
}

pub(super) fn eight_bit(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.say(&format!("{} BODY=8BITMIME", d.mail_line()), "250")?;
    d.say(&d.rcpt_line(), "25x")?;
    d.say("DATA", "354")?;
    let content = [d.header().as_bytes(), &eight_bit_body()].concat();
    d.send(&[&content[..], b".\r\n"].concat())?;
    d.want("250")?;
    d.stored_as(&content)
}

pub(super) fn utf8_header(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.say(&format!("{} SMTPUTF8 BODY=8BITMIME", d.mail_line()), "250")?;
    d.say(&d.rcpt_line(), "25x")?;
    d.say("DATA", "354")?;
    let content = format!(
        "{}Text.\r\n",
        d.header().replace("Subject: ", "Subject: \u{fc} ")
    );
    d.send(format!("{content}.\r\n").as_bytes())?;
    d.want("250")?;
    d.stored_as(content.as_bytes())
}

pub(super) fn text_like_commands(d: &mut Dialogue<'_>) -> Step {
    let text = b"QUIT\r\nRSET\r\nMAIL FROM:<a@example.org>\r\nDATA\r\n";
    intact(d, text, text)
}

pub(super) fn blank_lines(d: &mut Dialogue<'_>) -> Step {
    intact(d, b"Text.\r\n\r\n\r\n\r\n", b"Text.\r\n\r\n\r\n\r\n")
}

pub(super) fn a_mebibyte(d: &mut Dialogue<'_>) -> Step {
    let lines = match d.offer.size() {
        Some(max) if max < (1 << 20) + 4_096 => (max * 9 / 10 / 32) as usize,
        _ => 32_768,
    };
    let text = b"thirty octets and a line end..\r\n".repeat(lines);
    intact(d, &text, &text)
}

fn too_much(d: &Dialogue<'_>) -> Step<Vec<u8>> {
    match d.offer.size() {
        None => Err(Stop::Skip("the server states no maximum".to_owned())),
        Some(max) if max > MAXIMUM_TRIED => Err(Stop::Skip(
            "a maximum of more than 64 MiB is not tried".to_owned(),
        )),
        Some(max) => {
            let line = b"sixty-two octets of text and a line end make sixty-four......\r\n";
            Ok(line.repeat(((max + OVER_BYTES) / line.len() as u64 + 1) as usize))
        }
    }
}

pub(super) fn over_the_maximum(d: &mut Dialogue<'_>) -> Step {
    let body = too_much(d)?;
    d.ehlo()?;
    d.deliver(&body, "552/554")?;
    d.alive()?;
    d.stored_count(0)
}

pub(super) fn longer_than_declared(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.say(&format!("{} SIZE=200", d.mail_line()), "250")?;
    d.say(&d.rcpt_line(), "25x")?;
    d.say("DATA", "354")?;
    let message = format!("{}{}\r\n.\r\n", d.header(), "x".repeat(300));
    d.send(message.as_bytes())?;
    d.want("250").map(drop)
}

/// One chunk.
fn chunk(octets: &[u8], last: bool) -> Vec<u8> {
    let mut out = format!(
        "BDAT {}{}\r\n",
        octets.len(),
        if last { " LAST" } else { "" }
    )
    .into_bytes();
    out.extend(octets);
    out
}

fn bdat(d: &mut Dialogue<'_>, chunks: &[&[u8]]) -> Step {
    d.ehlo()?;
    d.envelope()?;
    for (at, octets) in chunks.iter().enumerate() {
        d.send(&chunk(octets, at + 1 == chunks.len()))?;
        d.want("250")?;
    }
    d.stored_as(&chunks.concat())
}

pub(super) fn bdat_last(d: &mut Dialogue<'_>) -> Step {
    let content = format!("{}Text.\r\n", d.header());
    bdat(d, &[content.as_bytes()])
}

pub(super) fn bdat_three(d: &mut Dialogue<'_>) -> Step {
    let header = d.header();
    bdat(d, &[header.as_bytes(), b"Text.\r\n", b""])
}

pub(super) fn bdat_dot(d: &mut Dialogue<'_>) -> Step {
    let content = format!("{}one\r\n.\r\n..\r\ntwo\r\n", d.header());
    bdat(d, &[content.as_bytes()])
}

pub(super) fn bdat_cut_crlf(d: &mut Dialogue<'_>) -> Step {
    let content = format!("{}one\r", d.header());
    bdat(d, &[content.as_bytes(), b"\ntwo\r\n"])
}

pub(super) fn bdat_pipelined(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    let content = format!("{}Text.\r\n", d.header());
    let envelope = format!("{}\r\n{}\r\n", d.mail_line(), d.rcpt_line());
    d.send(&[envelope.as_bytes(), &chunk(content.as_bytes(), true)].concat())?;
    d.want("250")?;
    d.want("25x")?;
    d.want("250")?;
    d.stored_as(content.as_bytes())
}

fn refused_chunk(d: &mut Dialogue<'_>) -> Step {
    // Commands, if the octets were not dropped.
    d.send(&chunk(b"NOOP\r\nNOOP\r\n", true))?;
    d.want("503")?;
    d.send(b"NOOP\r\n")?;
    d.want("250")?;
    if d.quiet()? {
        Ok(())
    } else {
        fail("the octets of a refused chunk were commands")
    }
}

pub(super) fn bdat_before_rcpt(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.say(&d.mail_line(), "250")?;
    refused_chunk(d)
}

pub(super) fn bdat_before_mail(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    refused_chunk(d)
}

fn one_chunk(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.envelope()?;
    d.send(&chunk(b"Subject: x\r\n", false))?;
    d.want("250").map(drop)
}

pub(super) fn data_after_bdat(d: &mut Dialogue<'_>) -> Step {
    one_chunk(d)?;
    d.say("DATA", "503").map(drop)
}

pub(super) fn mail_between_chunks(d: &mut Dialogue<'_>) -> Step {
    one_chunk(d)?;
    d.say(&d.mail_line(), "503")?;
    d.say(&d.rcpt_line(), "503").map(drop)
}

pub(super) fn rset_between_chunks(d: &mut Dialogue<'_>) -> Step {
    one_chunk(d)?;
    d.say("RSET", "250")?;
    d.send(&chunk(b"Subject: x\r\n", true))?;
    d.want("503").map(drop)
}

pub(super) fn bdat_after_last(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.envelope()?;
    d.send(&chunk(b"Subject: x\r\n\r\n", true))?;
    d.want("250")?;
    d.send(&chunk(b"Subject: x\r\n", true))?;
    d.want("503").map(drop)
}

pub(super) fn bdat_lower_case(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.envelope()?;
    d.send(b"bdat 14 last\r\nSubject: x\r\n\r\n")?;
    d.want("250").map(drop)
}

pub(super) fn bdat_over_the_maximum(d: &mut Dialogue<'_>) -> Step {
    let body = too_much(d)?;
    d.ehlo()?;
    d.envelope()?;
    d.send(&chunk(&body, true))?;
    d.want("552/554")?;
    d.alive()?;
    d.stored_count(0)
}

pub(super) fn binary(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.say(&format!("{} BODY=BINARYMIME", d.mail_line()), "250")?;
    d.say(&d.rcpt_line(), "25x")?;
    let mut content = d.header().into_bytes();
    content.extend(0..=255);
    content.extend(b"\n\r\0\r\n.\r\n");
    d.send(&chunk(&content, true))?;
    d.want("250")?;
    d.stored_as(&content)
}

pub(super) fn under_tls(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.starttls()?;
    d.say("EHLO client.example", "250")?;
    d.deliver(b"Text.\r\n", "250")?;
    let content = format!("{}Text.\r\n", d.header());
    d.stored_as(content.as_bytes())
}

pub(super) fn truncated_tls(d: &mut Dialogue<'_>) -> Step {
    d.ehlo()?;
    d.starttls()?;
    d.say("EHLO client.example", "250")?;
    d.data()?;
    let text = format!("{}cut\r\n", d.header());
    cut_off_behind(d, &text)
}

/// Sends a message whose content holds `end` and then a second message. A server that takes `end` for the end of
/// data answers more commands than were sent, or stores two.
pub(super) fn smuggle(d: &mut Dialogue<'_>, end: &[u8]) -> Step {
    for in_one_write in [true, false] {
        d.ehlo()?;
        d.data()?;
        let first = [d.header().as_bytes(), b"first", end].concat();
        let second = format!(
            "{}\r\n{}\r\nDATA\r\n{}second\r\n.\r\n",
            d.mail_line(),
            d.rcpt_line(),
            d.header()
        );
        if in_one_write {
            d.send(&[&first[..], second.as_bytes()].concat())?;
        } else {
            d.send(&first)?;
            match d.quiet() {
                Ok(true) => {}
                Ok(false) => {
                    let reply = d.want("xxx")?;
                    if reply.matches("2xx") {
                        return fail("an answer before the end of data");
                    }
                    continue;
                }
                Err(_) => continue,
            }
            d.send(second.as_bytes())?;
        }
        // NOOP tells where the replies to the messages end. A server that closed takes it no more.
        let _ = d.send(b"NOOP\r\n");
        let replies = d.replies()?;
        let codes: Vec<u16> = replies.iter().map(|reply| reply.code).collect();
        let wrong = match codes.as_slice() {
            [250, 250] | [500..=599, 250] | [400..=599] | [] => false,
            [500..=599, rest @ ..] => rest.iter().any(|code| matches!(code, 250 | 354)),
            _ => true,
        };
        if wrong {
            return fail(format!("replies {codes:?}: content became commands"));
        }
    }
    // Every message that was taken has its 250, so that nothing has to be waited for.
    d.stored_at_most(2)
}

/// A message with a bare newline is answered once.
pub(super) fn bare(d: &mut Dialogue<'_>, body: &[u8]) -> Step {
    d.ehlo()?;
    d.deliver(body, "250/5xx")?;
    d.alive()
}
