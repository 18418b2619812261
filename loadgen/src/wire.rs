//! The connection below a session: TCP or UNIX socket, plain or under TLS.

use crate::client::{Desk, Outgoing};
use crate::sys;
use crate::tls::Security;
use mio::net::{TcpStream, UnixStream};
pub use mio::{Events, Poll, Token};
use mio::{Interest, Registry};
use rustls::{CipherSuite, ClientConnection, HandshakeKind, ProtocolVersion};
use socket2::{Domain, SockAddr, SockRef, Socket};
use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::path::PathBuf;

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A UNIX socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(addr) => write!(f, "{addr}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Addresses to connect from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    base: u32,
    count: u32,
}

impl Sources {
    /// Reads `127.0.0.0/8` or one address.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, bits.parse::<u32>().ok()?),
            None => (text, 32),
        };
        let address = u32::from(address.parse::<Ipv4Addr>().ok()?);
        match bits {
            32 => Some(Self {
                base: address,
                count: 1,
            }),
            8..=31 => {
                let mask = u32::MAX << (32 - bits);
                // The lowest and the highest address of a network are not for hosts.
                let count = (!mask).saturating_sub(1).clamp(1, 4096);
                Some(Self {
                    base: (address & mask) + 1,
                    count,
                })
            }
            _ => None,
        }
    }

    /// Returns how many addresses there are.
    pub fn count(self) -> u64 {
        u64::from(self.count)
    }

    /// Returns the address of the nth connection.
    pub fn nth(self, nth: u64) -> Ipv4Addr {
        Ipv4Addr::from(self.base + (nth % u64::from(self.count)) as u32)
    }
}

/// Versions of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// Text.
    V1,
    /// Binary.
    V2,
}

impl Proxy {
    /// Writes the header of the nth connection; its source is out of 198.18.0.0/15, which RFC 2544
    /// sets aside for benchmarks.
    fn header(self, nth: u64, to: SocketAddr) -> Vec<u8> {
        let from = Ipv4Addr::from(0xc612_0000 | (nth as u32 & 0x1_ffff));
        let port = 1024 + (nth % 60_000) as u16;
        // An IPv6 target gets the benchmark address as well: the families must agree.
        let (host, to_port) = match to {
            SocketAddr::V4(to) => (*to.ip(), to.port()),
            SocketAddr::V6(to) => (Ipv4Addr::new(198, 19, 255, 254), to.port()),
        };
        match self {
            Self::V1 => format!("PROXY TCP4 {from} {host} {port} {to_port}\r\n").into_bytes(),
            Self::V2 => {
                let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
                header.extend_from_slice(&from.octets());
                header.extend_from_slice(&host.octets());
                for port in [port, to_port] {
                    header.extend_from_slice(&[(port >> 8) as u8, port as u8]);
                }
                header
            }
        }
    }
}

/// How to reach the target.
pub struct Target {
    /// Where it listens.
    pub address: Address,
    /// From where to connect.
    pub sources: Option<Sources>,
    /// TCP congestion control to ask for.
    pub congestion: Option<String>,
    /// How to secure connections, if the plan says so.
    pub security: Option<Security>,
    /// Send a PROXY protocol header first; TCP only.
    pub proxy: Option<Proxy>,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What a TLS handshake came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// TLS 1.2 or 1.3.
    pub version: ProtocolVersion,
    /// The cipher suite.
    pub cipher: CipherSuite,
    /// An earlier session was taken up again.
    pub resumed: bool,
}

/// A socket without a connection, ready for the next.
pub struct Spare(TcpStream);

/// One connection.
pub struct Wire {
    stream: Stream,
    tls: Option<Box<ClientConnection>>,
    /// Sent before anything else, in the clear.
    preface: Vec<u8>,
}

impl Wire {
    /// Starts to connect.
    pub fn connect(target: &Target, nth: u64) -> io::Result<Self> {
        let addr = match &target.address {
            Address::Unix(path) => {
                return Ok(Self {
                    stream: Stream::Unix(UnixStream::connect(path)?),
                    tls: None,
                    preface: Vec::new(),
                });
            }
            Address::Tcp(addr) => *addr,
        };
        let domain = Domain::for_address(addr);
        let socket = sys::nonblocking_tcp(domain)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(name) = &target.congestion {
            sys::set_congestion(&socket, name)?;
        }
        if let (Some(sources), SocketAddr::V4(_)) = (target.sources, addr) {
            sys::bind_without_port(&socket);
            let from = SocketAddr::new(IpAddr::V4(sources.nth(nth)), 0);
            socket.bind(&SockAddr::from(from))?;
        }
        Self::begin(&socket, addr)?;
        Ok(Self::new(
            TcpStream::from_std(socket.into()),
            target,
            nth,
            addr,
        ))
    }

    fn begin(socket: &Socket, addr: SocketAddr) -> io::Result<()> {
        match socket.connect(&SockAddr::from(addr)) {
            Err(error) if sys::is_in_progress(&error) => Ok(()),
            other => other,
        }
    }

    fn new(stream: TcpStream, target: &Target, nth: u64, addr: SocketAddr) -> Self {
        let preface = target
            .proxy
            .map_or_else(Vec::new, |proxy| proxy.header(nth, addr));
        Self {
            stream: Stream::Tcp(stream),
            tls: None,
            preface,
        }
    }

    /// Resets the connection, as a close with SO_LINGER at 0 would, which leaves no port in TIME_WAIT; returns its
    /// socket for the next one, which saves the kernel and us to make and register another. Nothing is left of a UNIX
    /// socket, nor of one that the kernel does not let go.
    pub fn reset(self) -> Option<Spare> {
        let Stream::Tcp(stream) = self.stream else {
            return None;
        };
        if sys::disconnect(&stream).is_err() {
            let _ = SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
            return None;
        }
        Some(Spare(stream))
    }

    /// Starts to connect with a socket that was connected to `target` before, and is registered.
    ///
    /// **Errors**: as of `connect`, or the target has no TCP address.
    pub fn connect_again(spare: Spare, target: &Target, nth: u64) -> io::Result<Self> {
        let Address::Tcp(addr) = target.address else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let Spare(stream) = spare;
        let socket = SockRef::from(&stream);
        if let (Some(sources), SocketAddr::V4(_)) = (target.sources, addr) {
            let from = SocketAddr::new(IpAddr::V4(sources.nth(nth)), 0);
            socket.bind(&SockAddr::from(from))?;
        }
        Self::begin(&socket, addr)?;
        Ok(Self::new(stream, target, nth, addr))
    }

    /// Returns the congestion control in force, of a TCP connection.
    pub fn congestion(&self) -> Option<String> {
        let Stream::Tcp(stream) = &self.stream else {
            return None;
        };
        let name = sys::congestion(&SockRef::from(stream)).ok()?;
        let text = name.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// Registers for both directions, once.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        match &mut self.stream {
            Stream::Tcp(stream) => registry.register(stream, token, both),
            Stream::Unix(stream) => registry.register(stream, token, both),
        }
    }

    /// Returns whether the connection is there, at its first event; its error if it failed.
    pub fn connected(&mut self, event: &mio::event::Event) -> io::Result<bool> {
        let Stream::Tcp(stream) = &self.stream else {
            return Ok(true);
        };
        if event.is_error() || event.is_write_closed() {
            return stream.take_error()?.map_or(Ok(true), Err);
        }
        Ok(event.is_writable())
    }

    /// Makes the close of this connection a reset, which leaves no port in TIME_WAIT.
    pub fn reset_on_close(&self) {
        if let Stream::Tcp(stream) = &self.stream {
            let _ = SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
        }
    }

    /// Sends bytes as they are, TLS or not.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    /// Closes the sending side.
    pub fn half_close(&self) {
        // A connection that is gone already needs no closing.
        let _ = match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// Starts the TLS handshake, or looks how it goes; returns whether it is done. Its bytes move
    /// with `read` and `write`.
    ///
    /// **Errors**: the plan has no TLS, or rustls refuses the name.
    pub fn handshake(&mut self, target: &Target) -> io::Result<bool> {
        if let Some(tls) = &self.tls {
            return Ok(!tls.is_handshaking());
        }
        let security = target
            .security
            .as_ref()
            .ok_or_else(|| io::Error::other("TLS is off"))?;
        self.tls = Some(Box::new(security.connection()?));
        Ok(false)
    }

    /// Returns what TLS agreed on, once its handshake is done.
    pub fn agreed(&self) -> Option<Agreed> {
        let tls = self.tls.as_ref()?;
        Some(Agreed {
            version: tls.protocol_version()?,
            cipher: tls.negotiated_cipher_suite()?.suite(),
            resumed: tls.handshake_kind()? == HandshakeKind::Resumed,
        })
    }

    /// Returns how many segments were sent again; 0 for a UNIX socket.
    pub fn retransmits(&self) -> u64 {
        match &self.stream {
            Stream::Tcp(stream) => sys::retransmits(stream).unwrap_or(0),
            Stream::Unix(_) => 0,
        }
    }

    /// Whether bytes may wait that no event will announce: rustls holds whole records.
    pub fn holds_input(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether bytes wait to be sent besides the session's own.
    pub fn holds_output(&self) -> bool {
        !self.preface.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Reads once.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return self.stream.read(buf);
        };
        loop {
            match tls.reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A server that closes without close_notify has closed all the same.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            if tls.read_tls(&mut self.stream)? == 0 {
                return Ok(0);
            }
            tls.process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    /// Sends once; returns how many of the session's bytes were taken.
    pub fn write(&mut self, out: &Outgoing, desk: &Desk) -> io::Result<usize> {
        if !self.preface.is_empty() {
            let len = self.stream.write(&self.preface)?;
            self.preface.drain(..len);
            return Ok(0);
        }
        if let (None, Some(bytes)) = (&self.tls, out.only_slice()) {
            return self.stream.write(bytes);
        }
        let mut slices = [IoSlice::new(&[]); 40];
        let used = out.slices(desk, &mut slices);
        let Some(tls) = &mut self.tls else {
            return self.stream.write_vectored(&slices[..used]);
        };
        if tls.wants_write() {
            tls.write_tls(&mut self.stream)?;
        }
        if tls.is_handshaking() {
            return Ok(0);
        }
        tls.writer().write_vectored(&slices[..used])
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buf),
            Self::Unix(stream) => stream.write(buf),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(slices),
            Self::Unix(stream) => stream.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_headers_have_their_form() {
        let to = "127.0.0.1:2525".parse().unwrap();
        let text = Proxy::V1.header(258, to);
        assert_eq!(text, b"PROXY TCP4 198.18.1.2 127.0.0.1 1282 2525\r\n");
        let binary = Proxy::V2.header(258, to);
        assert_eq!(&binary[..12], b"\r\n\r\n\0\r\nQUIT\n");
        assert_eq!(&binary[12..16], [0x21, 0x11, 0, 12]);
        assert_eq!(&binary[16..], [198, 18, 1, 2, 127, 0, 0, 1, 5, 2, 9, 221]);
    }

    #[test]
    fn source_networks_skip_their_first_address() {
        let sources = Sources::parse("127.0.0.0/8").unwrap();
        assert_eq!(sources.nth(0), Ipv4Addr::new(127, 0, 0, 1));
        assert_eq!(sources.nth(1), Ipv4Addr::new(127, 0, 0, 2));
        assert_eq!(sources.nth(4096), sources.nth(0));
        assert_eq!(
            Sources::parse("127.0.0.5").unwrap().nth(9),
            Ipv4Addr::new(127, 0, 0, 5)
        );
        assert!(Sources::parse("127.0.0.0/33").is_none());
        assert!(Sources::parse("x").is_none());
    }
}
