//! A client that says exactly what it is told to, octet for octet, and believes nothing it hears. It shares no parser
//! with the server: a tool that did could not find the server's faults.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, ProtocolVersion, SignatureScheme,
    StreamOwned, SupportedProtocolVersion,
};

/// Longest line of a reply that is read, bytes; longer ones are cut and noted.
const LINE_BYTES_MAX: usize = 8_192;
/// Most lines of one reply.
const LINES_MAX: usize = 200;
/// Octets of a dialogue that are kept for the report.
const TRANSCRIPT_BYTES_MAX: usize = 16_384;
/// Octets of one sending or one line that are shown.
const SHOWN_BYTES_MAX: usize = 160;

/// One reply: all lines that belong together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Its code; 0 when it has none.
    pub code: u16,
    /// Its lines as they came, without CRLF.
    pub lines: Vec<Vec<u8>>,
    /// What is wrong with its form (RFC 5321 4.2): the first fault.
    pub fault: Option<&'static str>,
    /// Length of its longest line with CRLF, octets.
    pub longest: usize,
}

impl Reply {
    /// The text behind the code, of each line.
    pub fn texts(&self) -> impl Iterator<Item = &[u8]> {
        self.lines.iter().map(|line| line.get(4..).unwrap_or(b""))
    }

    /// Whether a pattern such as `250`, `25x` or `5xx` matches; several stand with slashes between them.
    pub fn matches(&self, patterns: &str) -> bool {
        let code = format!("{:03}", self.code);
        patterns.split('/').any(|pattern| {
            pattern.len() == 3
                && pattern
                    .bytes()
                    .zip(code.bytes())
                    .all(|(wanted, got)| wanted == b'x' || wanted == got)
        })
    }

    /// First line, as it is shown.
    pub fn shown(&self) -> String {
        let first = self.lines.first().map_or(&b""[..], Vec::as_slice);
        escape(first)
    }
}

/// Printable form of octets, cut where it gets long.
pub fn escape(octets: &[u8]) -> String {
    let cut = &octets[..octets.len().min(SHOWN_BYTES_MAX)];
    let mut text = cut.escape_ascii().to_string();
    if cut.len() < octets.len() {
        text += &format!("... ({} octets)", octets.len());
    }
    text
}

/// Why a dialogue can't go on.
#[derive(Debug)]
pub enum Broken {
    /// The server closed, with or without a reset.
    Closed,
    /// Nothing came in time.
    Silent,
    /// Something else, such as a failed handshake.
    Other(String),
}

impl Broken {
    fn of(error: &io::Error) -> Broken {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Broken::Silent,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Broken::Closed,
            _ => Broken::Other(error.to_string()),
        }
    }

    /// As a sentence about the server.
    pub fn text(&self) -> String {
        match self {
            Broken::Closed => "the server closed the connection".to_owned(),
            Broken::Silent => "no answer in time".to_owned(),
            Broken::Other(text) => text.clone(),
        }
    }
}

/// The octets of both directions, escaped, for the report.
#[derive(Clone, Debug, Default)]
pub struct Transcript {
    lines: Vec<String>,
    bytes: usize,
}

impl Transcript {
    fn push(&mut self, who: &str, octets: &[u8]) {
        if self.bytes < TRANSCRIPT_BYTES_MAX {
            let line = format!("{who} {}", escape(octets));
            self.bytes += line.len();
            self.lines.push(line);
        }
    }

    /// The lines so far.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    /// A handshake failed; nothing more can be said.
    Spent,
}

/// One connection to the server.
pub struct Wire {
    stream: Stream,
    received: Vec<u8>,
    timeout: Duration,
    /// What was said.
    pub transcript: Transcript,
    /// Every reply that was read, for the checks that hold for all of them.
    pub replies: Vec<Reply>,
}

/// What a handshake settled.
#[derive(Clone, Debug)]
pub struct Secured {
    /// Version.
    pub version: Option<ProtocolVersion>,
}

impl Wire {
    /// Connects.
    ///
    /// # Errors
    /// The server does not take connections.
    pub fn connect(address: SocketAddr, timeout: Duration) -> Result<Wire, Broken> {
        let stream = TcpStream::connect_timeout(&address, timeout).map_err(|e| Broken::of(&e))?;
        let set = stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(timeout)))
            .and_then(|()| stream.set_write_timeout(Some(timeout)));
        set.map_err(|error| Broken::of(&error))?;
        Ok(Wire {
            stream: Stream::Plain(stream),
            received: Vec::new(),
            timeout,
            transcript: Transcript::default(),
            replies: Vec::new(),
        })
    }

    fn socket(&self) -> Option<&TcpStream> {
        match &self.stream {
            Stream::Plain(socket) => Some(socket),
            Stream::Tls(stream) => Some(&stream.sock),
            Stream::Spent => None,
        }
    }

    fn read_some(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Plain(socket) => socket.read(buf),
            Stream::Tls(stream) => stream.read(buf),
            Stream::Spent => Ok(0),
        }
    }

    /// Sends octets in one write.
    ///
    /// # Errors
    /// The server is gone, or takes nothing.
    pub fn send(&mut self, octets: &[u8]) -> Result<(), Broken> {
        self.transcript.push("C:", octets);
        let sent = match &mut self.stream {
            Stream::Plain(socket) => socket.write_all(octets),
            Stream::Tls(stream) => stream.write_all(octets).and_then(|()| stream.flush()),
            Stream::Spent => return Err(Broken::Closed),
        };
        sent.map_err(|error| Broken::of(&error))
    }

    /// Sends octets on the socket itself, below TLS.
    ///
    /// # Errors
    /// As [`Wire::send`].
    pub fn send_below_tls(&mut self, octets: &[u8]) -> Result<(), Broken> {
        self.transcript.push("C (below TLS):", octets);
        let sent = match &mut self.stream {
            Stream::Plain(socket) => socket.write_all(octets),
            Stream::Tls(stream) => stream.sock.write_all(octets),
            Stream::Spent => return Err(Broken::Closed),
        };
        sent.map_err(|error| Broken::of(&error))
    }

    /// Ends the outgoing direction.
    pub fn end_writing(&mut self) {
        if let Some(socket) = self.socket() {
            let _ = socket.shutdown(Shutdown::Write);
        }
    }

    /// Reads one reply.
    ///
    /// # Errors
    /// It does not come, or does not end.
    pub fn reply(&mut self) -> Result<Reply, Broken> {
        let mut reply = Reply::default();
        loop {
            let (line, len, cut) = self.line()?;
            self.transcript.push("S:", &line);
            let (code, more, fault) = read_line(&line);
            let first = reply.lines.is_empty();
            let fault = fault.or(cut).or((!first && code != reply.code)
                .then_some("the lines of one reply have different codes"));
            reply.fault = reply.fault.or(fault);
            reply.longest = reply.longest.max(len);
            if first {
                reply.code = code;
            }
            reply.lines.push(line);
            if !more {
                break;
            }
            if reply.lines.len() >= LINES_MAX {
                reply.fault = reply.fault.or(Some("a reply without an end"));
                break;
            }
        }
        self.replies.push(reply.clone());
        Ok(reply)
    }

    /// One line without its end, its length with it, and what is wrong with the end.
    fn line(&mut self) -> Result<(Vec<u8>, usize, Option<&'static str>), Broken> {
        let mut buf = [0; 4_096];
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.received) {
                let mut line: Vec<u8> = self.received.drain(..=at).collect();
                let len = line.len();
                line.pop();
                let fault = if line.last() == Some(&b'\r') {
                    line.pop();
                    None
                } else {
                    Some("a line that ends without CR")
                };
                return Ok((line, len, fault));
            }
            if self.received.len() > LINE_BYTES_MAX {
                let line = std::mem::take(&mut self.received);
                let len = line.len();
                return Ok((line, len, Some("a line without an end")));
            }
            match self.read_some(&mut buf) {
                Ok(0) => return Err(Broken::Closed),
                Ok(len) => self.received.extend_from_slice(&buf[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Broken::of(&error)),
            }
        }
    }

    /// Whether nothing comes for this time; what comes is kept.
    ///
    /// # Errors
    /// The server closed.
    pub fn is_quiet(&mut self, time: Duration) -> Result<bool, Broken> {
        if !self.received.is_empty() {
            return Ok(false);
        }
        let mut buf = [0; 4_096];
        let set = |socket: Option<&TcpStream>, time| {
            if let Some(socket) = socket {
                let _ = socket.set_read_timeout(Some(time));
            }
        };
        set(self.socket(), time);
        let got = self.read_some(&mut buf);
        set(self.socket(), self.timeout);
        match got {
            Ok(0) => Err(Broken::Closed),
            Ok(len) => {
                self.received.extend_from_slice(&buf[..len]);
                Ok(false)
            }
            Err(error) => match Broken::of(&error) {
                Broken::Silent => Ok(true),
                other => Err(other),
            },
        }
    }

    /// Waits for the server to close; false when it does not in time. What it still says is dropped.
    pub fn is_closed(&mut self) -> bool {
        let mut buf = [0; 4_096];
        loop {
            match self.read_some(&mut buf) {
                Ok(0) => return true,
                Ok(len) => self.transcript.push("S:", &buf[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return !matches!(Broken::of(&error), Broken::Silent),
            }
        }
    }

    /// Octets that came and were not read as a reply, at most one read more.
    ///
    /// # Errors
    /// As [`Wire::reply`].
    pub fn raw(&mut self) -> Result<Vec<u8>, Broken> {
        if self.received.is_empty() {
            let mut buf = [0; 4_096];
            match self.read_some(&mut buf) {
                Ok(0) => return Err(Broken::Closed),
                Ok(len) => self.received.extend_from_slice(&buf[..len]),
                Err(error) => return Err(Broken::of(&error)),
            }
        }
        let octets = std::mem::take(&mut self.received);
        self.transcript.push("S (raw):", &octets);
        Ok(octets)
    }

    /// Goes on under TLS, with these versions. The certificate is not judged: this tool looks at behaviour.
    ///
    /// # Errors
    /// The handshake fails.
    pub fn secure(
        &mut self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<Secured, Broken> {
        let Stream::Plain(socket) = std::mem::replace(&mut self.stream, Stream::Spent) else {
            return Err(Broken::Other("TLS is active already".to_owned()));
        };
        if !self.received.is_empty() {
            return Err(Broken::Other(
                "the server said something between its 220 and the handshake".to_owned(),
            ));
        }
        let other = |error: rustls::Error| Broken::Other(format!("TLS: {error}"));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").map_err(|e| Broken::Other(e.to_string()))?;
        let connection = ClientConnection::new(Arc::new(config), name).map_err(other)?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            let StreamOwned { conn, sock } = &mut stream;
            conn.complete_io(sock)
                .map_err(|error| match Broken::of(&error) {
                    Broken::Other(text) => Broken::Other(format!("TLS: {text}")),
                    broken => broken,
                })?;
        }
        let version = stream.conn.protocol_version();
        self.transcript
            .push("--", format!("{version:?}").as_bytes());
        self.stream = Stream::Tls(Box::new(stream));
        Ok(Secured { version })
    }

    /// Whether the end of the stream was announced by close_notify before it came. Call it after a QUIT.
    pub fn ends_with_close_notify(&mut self) -> bool {
        let mut buf = [0; 1_024];
        loop {
            match self.read_some(&mut buf) {
                // rustls gives a clean end only for close_notify.
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    /// Sends close_notify and leaves the socket open.
    pub fn close_tls(&mut self) {
        if let Stream::Tls(stream) = &mut self.stream {
            stream.conn.send_close_notify();
            let _ = stream.flush();
            self.transcript.push("C:", b"(close_notify)");
        }
    }
}

/// Code, whether more lines follow, and what is wrong.
fn read_line(line: &[u8]) -> (u16, bool, Option<&'static str>) {
    let Some(digits) = line
        .get(..3)
        .filter(|code| code.iter().all(u8::is_ascii_digit))
    else {
        return (0, false, Some("a reply without a code of three digits"));
    };
    let code = digits
        .iter()
        .fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    let mut fault = None;
    if !(b'2'..=b'5').contains(&digits[0]) {
        fault = Some("a reply code that begins with none of 2 to 5");
    }
    let more = match line.get(3) {
        Some(b'-') => true,
        Some(b' ') | None => false,
        Some(_) => {
            fault = Some("neither a space nor a hyphen behind the reply code");
            false
        }
    };
    if line.iter().any(|octet| *octet < b' ' && *octet != b'\t') {
        fault = Some("a control character in a reply");
    }
    (code, more, fault)
}

/// Takes every certificate and checks that the peer holds its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(code: u16) -> Reply {
        Reply {
            code,
            ..Reply::default()
        }
    }

    #[test]
    fn patterns_match_digit_by_digit() {
        assert!(reply(250).matches("250"));
        assert!(reply(252).matches("25x"));
        assert!(reply(555).matches("501/5xx"));
        assert!(!reply(250).matches("5xx/501"));
        assert!(!reply(250).matches(""));
        assert!(!reply(250).matches("2500"));
    }

    #[test]
    fn the_form_of_a_reply_line_is_judged() {
        assert_eq!(read_line(b"250-more"), (250, true, None));
        assert_eq!(read_line(b"250 end"), (250, false, None));
        assert_eq!(read_line(b"250"), (250, false, None));
        for (line, fault) in [
            (&b"25"[..], "a reply without a code of three digits"),
            (b"abc hello", "a reply without a code of three digits"),
            (b"650 x", "a reply code that begins with none of 2 to 5"),
            (
                b"250x",
                "neither a space nor a hyphen behind the reply code",
            ),
            (b"500 a\rb", "a control character in a reply"),
        ] {
            assert_eq!(read_line(line).2, Some(fault), "{}", escape(line));
        }
    }

    #[test]
    fn long_octets_are_shown_cut_and_escaped() {
        assert_eq!(escape(b"a\r\n\xff"), "a\\r\\n\\xff");
        assert!(escape(&[b'x'; 1_000]).ends_with("... (1000 octets)"));
    }
}
