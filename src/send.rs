//! `ringmx send`: a small blocking SMTP client that delivers one message and prints the dialogue.
//!
//! It serves first contact and troubleshooting. It speaks EHLO or HELO, MAIL, RCPT, DATA and QUIT one after the
//! other; it neither pipelines nor uses TLS.

use std::fmt;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::cli::complain;
use crate::clock::{Clock, internet_date};
use crate::config::is_domain;
use crate::config::units::{parse_duration, quoted};
use crate::limits::{MIB, PATH_BYTES_MAX};
use crate::sys::process::host_name;

/// Help text.
pub const HELP: &str = "\
Usage: ringmx send [OPTIONS] [TEXT]

Delivers one message to an SMTP server and prints the dialogue: C: is what was
sent, S: what was answered. The message is TEXT, or what standard input holds: a
whole message if it starts with a header field, otherwise the text of one.

  --to ADDR             recipient; may be given more than once (default test@localhost)
  --from ADDR           sender; empty for the null sender (default ringmx-send@localhost)
  --server HOST:PORT    server (default 127.0.0.1:2525)
  --timeout TIME        longest wait for the server (default 60s)
  -h, --help            print this

Exit codes: 0 the server answered 250 and took every recipient, 2 usage, 1 anything else.
";

const DEFAULT_TEXT: &str = "This message was delivered by ringmx send.";
/// Standard input beyond this is refused, bytes.
const INPUT_BYTES_MAX: u64 = 256 * MIB;
/// Longest reply that is read, bytes.
const REPLY_BYTES_MAX: u64 = 65_536;
/// Lines of the message in the printed dialogue.
const LINES_SHOWN_MAX: usize = 20;
/// Recipients of one message.
const RECIPIENTS_MAX: usize = 1_000;

/// What to send, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Host and port.
    pub server: String,
    /// Sender; empty for the null reverse-path.
    pub from: String,
    /// Recipients, at least one.
    pub to: Vec<String>,
    /// Text of the message; `None` reads standard input.
    pub text: Option<String>,
    /// Longest wait for one answer.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            server: "127.0.0.1:2525".to_owned(),
            from: "ringmx-send@localhost".to_owned(),
            to: vec!["test@localhost".to_owned()],
            text: None,
            timeout: Duration::from_secs(60),
        }
    }
}

/// Why a message was not delivered, or not to everybody.
#[derive(Debug)]
pub enum SendError {
    /// The connection failed; what was being done.
    Connection(&'static str, io::Error),
    /// The server closed the connection in mid-dialogue.
    Closed,
    /// The server's answer is not SMTP, or too long.
    NotSmtp,
    /// The server refused; its last line.
    Refused(String),
    /// So many recipients were refused; the others have the message.
    RecipientsRefused(usize),
    /// The message needs an extension that the server does not offer.
    NeedsExtension(&'static str),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::Connection(doing, error) => write!(f, "{doing}: {error}"),
            SendError::Closed => f.write_str("the server closed the connection"),
            SendError::NotSmtp => f.write_str("the answer is not SMTP"),
            SendError::Refused(line) => write!(f, "refused: {line}"),
            SendError::RecipientsRefused(count) => write!(f, "{count} recipients were refused"),
            SendError::NeedsExtension(name) => {
                write!(
                    f,
                    "the message needs {name}, which the server does not offer"
                )
            }
        }
    }
}

/// Reads the arguments behind `send`; `None` when help is asked for.
///
/// # Errors
/// A sentence about the first bad argument.
pub fn parse(args: &[String]) -> Result<Option<Options>, String> {
    let mut options = Options::default();
    let mut to = Vec::new();
    let mut text: Vec<String> = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "-h" || arg == "--help" {
            return Ok(None);
        }
        if arg == "--" {
            text.extend(rest.by_ref().cloned());
            break;
        }
        let Some(flag) = arg.strip_prefix("--") else {
            text.push(arg.clone());
            continue;
        };
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if !["to", "from", "server", "timeout"].contains(&name) {
            return Err(format!(
                "unknown option {}; see ringmx send --help",
                quoted(arg)
            ));
        }
        let value = inline
            .or_else(|| rest.next().cloned())
            .ok_or_else(|| format!("--{name}: needs a value"))?;
        match name {
            "to" => to.push(address(name, value)?),
            "from" if value.is_empty() => options.from = value,
            "from" => options.from = address(name, value)?,
            "server" => options.server = value,
            _ => {
                options.timeout = parse_duration(&value)
                    .ok()
                    .filter(|time| !time.is_zero())
                    .ok_or_else(|| {
                        format!("--timeout: {} is not a time such as 30s", quoted(&value))
                    })?;
            }
        }
    }
    if to.len() > RECIPIENTS_MAX {
        return Err(format!("--to: at most {RECIPIENTS_MAX} recipients"));
    }
    if !to.is_empty() {
        options.to = to;
    }
    if !text.is_empty() {
        options.text = Some(text.join(" "));
    }
    Ok(Some(options))
}

/// An address may hold nothing that could end its command or its brackets.
fn address(name: &str, value: String) -> Result<String, String> {
    let harmful = |c: char| c.is_control() || matches!(c, '<' | '>' | ' ');
    if value.is_empty() || value.len() > PATH_BYTES_MAX || value.contains(harmful) {
        return Err(format!("--{name}: {} is not an address", quoted(&value)));
    }
    Ok(value)
}

/// Delivers one message; prints the dialogue on standard output and faults on standard error. Returns the exit
/// code.
pub fn run(options: &Options) -> i32 {
    let content = match content(options) {
        Ok(content) => content,
        Err(error) => {
            complain(&format!(
                "ringmx send: can't read standard input: {error}\n"
            ));
            return 1;
        }
    };
    let delivered = connect(options).and_then(|stream| {
        let mut dialogue = Dialogue::new(stream, io::stdout());
        dialogue.deliver(&helo_name(), &options.from, &options.to, &content)
    });
    match delivered {
        Ok(()) => 0,
        Err(error) => {
            complain(&format!("ringmx send: {error}\n"));
            let refused = matches!(&error, SendError::Connection(_, error)
                if error.kind() == io::ErrorKind::ConnectionRefused);
            if refused {
                complain("ringmx send: is a server running? Start one with: ringmx serve\n");
            }
            1
        }
    }
}

fn connect(options: &Options) -> Result<TcpStream, SendError> {
    let fault = |error| SendError::Connection("can't connect", error);
    let addresses = options.server.to_socket_addrs().map_err(fault)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, options.timeout) {
            Ok(stream) => {
                let prepared = stream
                    .set_read_timeout(Some(options.timeout))
                    .and_then(|()| stream.set_write_timeout(Some(options.timeout)))
                    .and_then(|()| stream.set_nodelay(true));
                return prepared.map(|()| stream).map_err(fault);
            }
            Err(error) => last = error,
        }
    }
    Err(fault(last))
}

fn helo_name() -> String {
    let host = host_name();
    if is_domain(&host) {
        host
    } else {
        "localhost".to_owned()
    }
}

/// The message as lines that end in CRLF.
fn content(options: &Options) -> io::Result<Vec<u8>> {
    let clock = Clock::new();
    let text = match &options.text {
        Some(text) => text.clone().into_bytes(),
        None if io::stdin().is_terminal() => DEFAULT_TEXT.as_bytes().to_vec(),
        None => {
            let mut input = Vec::new();
            let mut stdin = io::stdin().lock().take(INPUT_BYTES_MAX + 1);
            stdin.read_to_end(&mut input)?;
            if input.len() as u64 > INPUT_BYTES_MAX {
                return Err(io::Error::other("more than 256MiB"));
            }
            if starts_with_field(&input) {
                return Ok(crlf_lines(&input));
            }
            input
        }
    };
    let head = header(options, clock.wall_ns(), &helo_name());
    Ok(crlf_lines(&[head.as_bytes(), &text].concat()))
}

/// Whether the first line is a header field: a name of printable ASCII and a colon (RFC 5322 2.2).
fn starts_with_field(input: &[u8]) -> bool {
    let colon = input
        .iter()
        .position(|b| !(33..=126).contains(b) || *b == b':');
    matches!(colon, Some(at) if at > 0 && input[at] == b':')
}

fn header(options: &Options, wall_ns: u64, host: &str) -> String {
    let date = internet_date(wall_ns, "+0000");
    let from = if options.from.is_empty() {
        "MAILER-DAEMON@localhost"
    } else {
        &options.from
    };
    // One address a line keeps lines far below the 998 octets of RFC 5322 2.1.1.
    let to = options.to.join(",\n ");
    format!(
        "Date: {date}\nFrom: {from}\nTo: {to}\nSubject: ringmx send\n\
         Message-ID: <{wall_ns}.{}@{host}>\nMIME-Version: 1.0\n\
         Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n",
        std::process::id()
    )
}

/// `text` with CRLF, LF and CR each made CRLF, and one at the end.
fn crlf_lines(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 16 + 2);
    let mut at = 0;
    while let Some(offset) = memchr::memchr2(b'\r', b'\n', &text[at..]) {
        let end = at + offset;
        out.extend_from_slice(&text[at..end]);
        out.extend_from_slice(b"\r\n");
        at = end
            + if text[end..].starts_with(b"\r\n") {
                2
            } else {
                1
            };
    }
    out.extend_from_slice(&text[at..]);
    if at < text.len() {
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// `content` with a dot before each line that starts with one, and the end of data (RFC 5321 4.5.2).
fn dot_stuffed(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + content.len() / 64 + 3);
    for line in content.split_inclusive(|b| *b == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    out.extend_from_slice(b".\r\n");
    out
}

/// A complete reply.
struct Reply {
    code: u16,
    /// Text of each line, printable.
    lines: Vec<String>,
}

impl Reply {
    fn is_positive(&self) -> bool {
        (200..400).contains(&self.code)
    }

    fn into_error(self) -> SendError {
        let text = self.lines.last().map_or("", String::as_str);
        SendError::Refused(format!("{} {text}", self.code))
    }

    fn offers(&self, keyword: &str) -> bool {
        // The first line of an EHLO reply names the server (RFC 5321 4.1.1.1).
        self.lines.iter().skip(1).any(|line| {
            let first = line.split(' ').next().unwrap_or_default();
            first.eq_ignore_ascii_case(keyword)
        })
    }
}

/// One session with a server, printed as it goes.
struct Dialogue<S, W> {
    stream: BufReader<S>,
    print: W,
}

impl<S: Read + Write, W: Write> Dialogue<S, W> {
    fn new(stream: S, print: W) -> Dialogue<S, W> {
        Dialogue {
            stream: BufReader::new(stream),
            print,
        }
    }

    /// Delivers `content`, lines that end in CRLF.
    fn deliver(
        &mut self,
        host: &str,
        from: &str,
        to: &[String],
        content: &[u8],
    ) -> Result<(), SendError> {
        let delivered = self.transaction(host, from, to, content);
        // Courtesy: the answer changes nothing.
        let connection_works = !matches!(
            delivered,
            Err(SendError::Connection(..) | SendError::Closed | SendError::NotSmtp)
        );
        if connection_works && self.send_line("QUIT").is_ok() {
            let _ = self.reply();
        }
        delivered
    }

    fn transaction(
        &mut self,
        host: &str,
        from: &str,
        to: &[String],
        content: &[u8],
    ) -> Result<(), SendError> {
        let greeting = self.reply()?;
        if !greeting.is_positive() {
            return Err(greeting.into_error());
        }
        let mut hello = self.command(&format!("EHLO {host}"))?;
        if (500..600).contains(&hello.code) {
            // RFC 5321 4.1.1.1: a server without extensions gets HELO.
            hello = self.command(&format!("HELO {host}"))?;
        }
        if !hello.is_positive() {
            return Err(hello.into_error());
        }
        let mut mail = format!("MAIL FROM:<{from}>");
        if !content.is_ascii() {
            if !hello.offers("8BITMIME") {
                return Err(SendError::NeedsExtension("8BITMIME"));
            }
            mail.push_str(" BODY=8BITMIME");
        }
        if !from.is_ascii() || !to.iter().all(|to| to.is_ascii()) {
            if !hello.offers("SMTPUTF8") {
                return Err(SendError::NeedsExtension("SMTPUTF8"));
            }
            mail.push_str(" SMTPUTF8");
        }
        self.positive(&mail)?;
        let refused = self.recipients(to)?;
        let start = self.command("DATA")?;
        if start.code != 354 {
            return Err(start.into_error());
        }
        self.data(content)?;
        let stored = self.reply()?;
        match (stored.code, refused) {
            (250, 0) => Ok(()),
            (250, refused) => Err(SendError::RecipientsRefused(refused)),
            _ => Err(stored.into_error()),
        }
    }

    /// How many recipients were refused; an error when all were.
    fn recipients(&mut self, to: &[String]) -> Result<usize, SendError> {
        let mut refused = Vec::new();
        for to in to {
            let reply = self.command(&format!("RCPT TO:<{to}>"))?;
            if !reply.is_positive() {
                refused.push(reply);
            }
        }
        match refused.len() {
            count if count < to.len() => Ok(count),
            _ => Err(refused.pop().map_or(SendError::NotSmtp, Reply::into_error)),
        }
    }

    fn positive(&mut self, line: &str) -> Result<(), SendError> {
        let reply = self.command(line)?;
        if reply.is_positive() {
            Ok(())
        } else {
            Err(reply.into_error())
        }
    }

    fn command(&mut self, line: &str) -> Result<Reply, SendError> {
        self.send_line(line)?;
        self.reply()
    }

    fn send_line(&mut self, line: &str) -> Result<(), SendError> {
        self.show("C", line);
        self.send(format!("{line}\r\n").as_bytes())
    }

    fn data(&mut self, content: &[u8]) -> Result<(), SendError> {
        let wire = dot_stuffed(content);
        let mut lines = wire
            .split_inclusive(|b| *b == b'\n')
            .map(<[u8]>::trim_ascii_end);
        for line in lines.by_ref().take(LINES_SHOWN_MAX) {
            self.show("C", &String::from_utf8_lossy(line));
        }
        let more = lines.count();
        if more > 0 {
            self.show("C", &format!("({more} more lines)"));
        }
        self.send(&wire)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), SendError> {
        let stream = self.stream.get_mut();
        stream
            .write_all(bytes)
            .and_then(|()| stream.flush())
            .map_err(|error| SendError::Connection("can't send", error))
    }

    fn reply(&mut self) -> Result<Reply, SendError> {
        let mut limited = Read::take(&mut self.stream, REPLY_BYTES_MAX);
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            limited
                .read_until(b'\n', &mut line)
                .map_err(|error| SendError::Connection("no answer", error))?;
            if !line.ends_with(b"\n") {
                return Err(match limited.limit() {
                    0 => SendError::NotSmtp,
                    _ => SendError::Closed,
                });
            }
            let line = printable(line.trim_ascii_end());
            // Shown before it is judged: what is not SMTP should be seen too.
            let _ = writeln!(self.print, "S: {line}");
            let (code, last, text) = reply_line(&line).ok_or(SendError::NotSmtp)?;
            lines.push(text.to_owned());
            if last {
                return Ok(Reply { code, lines });
            }
        }
    }

    /// A closed standard output does not stop the delivery.
    fn show(&mut self, side: &str, line: &str) {
        let _ = writeln!(self.print, "{side}: {}", printable(line.as_bytes()));
    }
}

/// Code, whether it is the last line, and the text (RFC 5321 4.2).
fn reply_line(line: &str) -> Option<(u16, bool, &str)> {
    let digits = line.get(..3)?;
    let code = digits.parse().ok()?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    match line.as_bytes().get(3) {
        None => Some((code, true, "")),
        Some(b' ') => Some((code, true, line.get(4..)?)),
        Some(b'-') => Some((code, false, line.get(4..)?)),
        Some(_) => None,
    }
}

/// Text that is safe on a terminal.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says what it is told to, at most `piece` octets a read, and keeps what it gets.
    struct Script {
        said: io::Cursor<Vec<u8>>,
        piece: usize,
        heard: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let len = buf.len().min(self.piece);
            self.said.read(&mut buf[..len])
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.heard.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Outcome, what the server heard, and what was printed; the same at every split of the server's words.
    fn deliver(said: &[u8], to: &[&str], content: &[u8]) -> (Result<(), String>, String, String) {
        let to: Vec<String> = to.iter().map(|to| (*to).to_owned()).collect();
        let run = |piece: usize| {
            let script = Script {
                said: io::Cursor::new(said.to_vec()),
                piece,
                heard: Vec::new(),
            };
            let mut dialogue = Dialogue::new(script, Vec::new());
            let outcome = dialogue.deliver("me.example", "a@example.org", &to, content);
            (
                outcome.map_err(|error| error.to_string()),
                String::from_utf8_lossy(&dialogue.stream.get_ref().heard).into_owned(),
                String::from_utf8(dialogue.print).unwrap(),
            )
        };
        let whole = run(usize::MAX);
        for piece in [1, 2, 3, 7] {
            assert_eq!(run(piece), whole, "in pieces of {piece}");
        }
        whole
    }

    #[test]
    fn a_message_is_delivered_dot_stuffed_and_the_dialogue_printed() {
        let (outcome, heard, printed) = deliver(
            b"220 hi\r\n250-mx.example\r\n250 8BITMIME\r\n250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 go\r\n\
              250 2.0.0 Ok: stored 0-1\r\n221 bye\r\n",
            &["b@example.org"],
            b"Subject: x\r\n\r\n.dot\r\n..\r\n",
        );
        assert_eq!(outcome, Ok(()));
        assert_eq!(
            heard,
            "EHLO me.example\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n\
             Subject: x\r\n\r\n..dot\r\n...\r\n.\r\nQUIT\r\n"
        );
        assert_eq!(
            printed,
            "S: 220 hi\nC: EHLO me.example\nS: 250-mx.example\nS: 250 8BITMIME\n\
             C: MAIL FROM:<a@example.org>\nS: 250 2.1.0 Ok\nC: RCPT TO:<b@example.org>\n\
             S: 250 2.1.5 Ok\nC: DATA\nS: 354 go\nC: Subject: x\nC: \nC: ..dot\nC: ...\nC: .\n\
             S: 250 2.0.0 Ok: stored 0-1\nC: QUIT\nS: 221 bye\n"
        );
    }

    #[test]
    fn a_server_without_extensions_gets_helo_and_no_8bit() {
        let (outcome, heard, _) = deliver(
            b"220 hi\r\n502 no\r\n250 mx\r\n250 ok\r\n250 ok\r\n354 go\r\n250 ok\r\n221 bye\r\n",
            &["b@example.org"],
            b"x\r\n",
        );
        assert_eq!(outcome, Ok(()));
        assert!(
            heard
                .starts_with("EHLO me.example\r\nHELO me.example\r\nMAIL FROM:<a@example.org>\r\n")
        );
        let (outcome, heard, _) = deliver(
            b"220 hi\r\n250-mx\r\n250 PIPELINING\r\n221 bye\r\n",
            &["b@example.org"],
            "gr\u{fc}n\r\n".as_bytes(),
        );
        let expected = "the message needs 8BITMIME, which the server does not offer";
        assert_eq!(outcome, Err(expected.to_owned()));
        assert_eq!(heard, "EHLO me.example\r\nQUIT\r\n");
    }

    #[test]
    fn addresses_and_content_beyond_ascii_are_announced() {
        let (outcome, heard, _) = deliver(
            b"220 hi\r\n250-mx\r\n250-8BITMIME\r\n250-SIZE 5\r\n250 smtputf8\r\n250 ok\r\n250 ok\r\n\
              354 go\r\n250 ok\r\n221 bye\r\n",
            &["gr\u{fc}n@example.org"],
            b"\xfc\r\n",
        );
        assert_eq!(outcome, Ok(()));
        assert!(heard.contains("MAIL FROM:<a@example.org> BODY=8BITMIME SMTPUTF8\r\n"));
    }

    #[test]
    fn refusals_are_reported_with_the_words_of_the_server() {
        let (outcome, heard, _) = deliver(
            b"220 hi\r\n250 mx\r\n250 ok\r\n550 5.1.1 no\r\n452 4.5.3 later\r\n221 bye\r\n",
            &["b@example.org", "c@example.org"],
            b"x\r\n",
        );
        assert_eq!(outcome, Err("refused: 452 4.5.3 later".to_owned()));
        assert!(heard.ends_with("RCPT TO:<c@example.org>\r\nQUIT\r\n"));

        let (outcome, ..) = deliver(
            b"220 hi\r\n250 mx\r\n250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n250 ok\r\n221 bye\r\n",
            &["b@example.org", "c@example.org"],
            b"x\r\n",
        );
        assert_eq!(outcome, Err("1 recipients were refused".to_owned()));

        let (outcome, ..) = deliver(
            b"220 hi\r\n250 mx\r\n250 ok\r\n250 ok\r\n354 go\r\n550-a\r\n550 5.6.0 bare\r\n221 bye\r\n",
            &["b@example.org"],
            b"x\r\n",
        );
        assert_eq!(outcome, Err("refused: 550 5.6.0 bare".to_owned()));
    }

    #[test]
    fn a_server_that_is_none_ends_the_dialogue() {
        let cases: [(&[u8], &str); 6] = [
            (b"", "the server closed the connection"),
            (b"220 hi", "the server closed the connection"),
            (b"HTTP/1.1 400 Bad Request\r\n", "the answer is not SMTP"),
            (b"22\xff\r\n", "the answer is not SMTP"),
            (b"+20 hi\r\n", "the answer is not SMTP"),
            (b"421 4.3.2 busy\r\n", "refused: 421 4.3.2 busy"),
        ];
        for (said, expected) in cases {
            let (outcome, ..) = deliver(said, &["b@example.org"], b"x\r\n");
            assert_eq!(outcome, Err(expected.to_owned()));
        }
        let endless = b"220-more\r\n".repeat(10_000);
        let (outcome, ..) = deliver(&endless, &["b@example.org"], b"x\r\n");
        assert_eq!(outcome, Err("the answer is not SMTP".to_owned()));
    }

    #[test]
    fn what_a_server_says_cannot_drive_the_terminal() {
        let (_, _, printed) = deliver(b"554 \x1b[2J\x07\r\n", &["b@example.org"], b"x\r\n");
        assert_eq!(printed, "S: 554 \u{fffd}[2J\u{fffd}\nC: QUIT\n");
    }

    #[test]
    fn lines_end_in_crlf_whatever_they_ended_in() {
        assert_eq!(crlf_lines(b""), b"");
        assert_eq!(crlf_lines(b"a"), b"a\r\n");
        assert_eq!(
            crlf_lines(b"a\nb\r\nc\rd\r\r\n\n"),
            b"a\r\nb\r\nc\r\nd\r\n\r\n\r\n"
        );
    }

    #[test]
    fn input_that_starts_with_a_field_is_a_message() {
        assert!(starts_with_field(b"Subject: x\n"));
        assert!(starts_with_field(b"X-Y:"));
        for input in [
            &b""[..],
            b":",
            b"Hello\n",
            b"see http://x",
            b"a b: c",
            b"\xfc: x",
        ] {
            assert!(!starts_with_field(input), "{input:?}");
        }
    }

    #[test]
    fn the_header_names_who_and_when() {
        let options = Options {
            to: vec!["b@example.org".to_owned(), "c@example.org".to_owned()],
            ..Options::default()
        };
        let pid = std::process::id();
        assert_eq!(
            header(&options, 1_795_395_723_456_789_012, "me.example"),
            format!(
                "Date: Mon, 23 Nov 2026 01:02:03 +0000\nFrom: ringmx-send@localhost\n\
                 To: b@example.org,\n c@example.org\nSubject: ringmx send\n\
                 Message-ID: <1795395723456789012.{pid}@me.example>\nMIME-Version: 1.0\n\
                 Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n"
            )
        );
    }

    #[test]
    fn arguments_are_read_and_what_could_end_a_command_is_refused() {
        let read = |words: &[&str]| {
            let args: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            parse(&args)
        };
        assert_eq!(read(&[]), Ok(Some(Options::default())));
        assert_eq!(read(&["hi", "--help"]), Ok(None));
        assert_eq!(
            read(&[
                "--to=b@x",
                "--to",
                "c@x",
                "--from=",
                "--server",
                "[::1]:25",
                "--timeout=5s",
                "a",
                "b"
            ]),
            Ok(Some(Options {
                server: "[::1]:25".to_owned(),
                from: String::new(),
                to: vec!["b@x".to_owned(), "c@x".to_owned()],
                text: Some("a b".to_owned()),
                timeout: Duration::from_secs(5),
            }))
        );
        let fault = |words: &[&str]| read(words).unwrap_err();
        assert_eq!(fault(&["--to"]), "--to: needs a value");
        assert_eq!(fault(&["--to="]), "--to: \"\" is not an address");
        assert_eq!(
            fault(&["--to", "a@b>\r\nRCPT"]),
            "--to: \"a@b>\\r\\nRCPT\" is not an address"
        );
        assert_eq!(
            fault(&["--timeout=0"]),
            "--timeout: \"0\" is not a time such as 30s"
        );
        assert_eq!(
            fault(&["--cc=x"]),
            "unknown option \"--cc=x\"; see ringmx send --help"
        );
    }
}
