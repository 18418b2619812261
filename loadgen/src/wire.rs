//! The connection below a session: TCP or UNIX socket.

use crate::client::{Desk, Outgoing};
use crate::sys;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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

    /// Returns the address of the nth connection.
    pub fn nth(self, nth: u64) -> Ipv4Addr {
        Ipv4Addr::from(self.base + (nth % u64::from(self.count)) as u32)
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
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One connection.
pub struct Wire {
    stream: Stream,
}

impl Wire {
    /// Starts to connect.
    pub fn connect(target: &Target, nth: u64) -> io::Result<Self> {
        let addr = match &target.address {
            Address::Unix(path) => {
                return Ok(Self {
                    stream: Stream::Unix(UnixStream::connect(path)?),
                });
            }
            Address::Tcp(addr) => *addr,
        };
        let domain = Domain::for_address(addr);
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        if let Some(name) = &target.congestion {
            socket.set_tcp_congestion(name.as_bytes())?;
        }
        if let (Some(sources), SocketAddr::V4(_)) = (target.sources, addr) {
            sys::bind_without_port(&socket);
            let from = SocketAddr::new(IpAddr::V4(sources.nth(nth)), 0);
            socket.bind(&SockAddr::from(from))?;
        }
        match socket.connect(&SockAddr::from(addr)) {
            // EINPROGRESS.
            Err(error) if error.raw_os_error() == Some(115) => {}
            other => other?,
        }
        Ok(Self {
            stream: Stream::Tcp(TcpStream::from_std(socket.into())),
        })
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
            let _ = socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
        }
    }

    /// Goes on with the TLS handshake; returns whether it is done.
    pub fn handshake(&mut self, _target: &Target) -> io::Result<bool> {
        Ok(true)
    }

    /// Whether bytes wait that no event will announce.
    pub fn holds_input(&self) -> bool {
        false
    }

    /// Whether bytes wait to be sent besides the session's own.
    pub fn holds_output(&self) -> bool {
        false
    }

    /// Reads once.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.read(buf),
            Stream::Unix(stream) => stream.read(buf),
        }
    }

    /// Sends once; returns how many of the session's bytes were taken.
    pub fn write(&mut self, out: &Outgoing, desk: &Desk) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); 40];
        let used = out.slices(desk, &mut slices);
        if used == 1 {
            return match &mut self.stream {
                Stream::Tcp(stream) => stream.write(&slices[0]),
                Stream::Unix(stream) => stream.write(&slices[0]),
            };
        }
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_vectored(&slices[..used]),
            Stream::Unix(stream) => stream.write_vectored(&slices[..used]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
