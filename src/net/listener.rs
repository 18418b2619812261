//! Listening sockets: TCP, UNIX, and those that were open when the process started.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;

use mio::event::Source;
pub use mio::net::TcpListener;
use mio::net::{TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket as AnySocket, Type};

use crate::ctl::with_short_path;

/// Connections the kernel may hold ready; `net.core.somaxconn` may lower it. mio's own bind asks for 128.
const BACKLOG: i32 = 4_096;
/// Whoever may enter the directory may connect, as with a port on loopback.
const UNIX_MODE: u32 = 0o666;

/// What a client on a UNIX socket counts as: it is on this machine.
pub const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A listening socket.
pub enum ListeningSocket {
    /// TCP.
    Tcp(TcpListener),
    /// UNIX.
    Unix(UnixListener),
}

/// A connection's socket.
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// UNIX.
    Unix(UnixStream),
}

impl ListeningSocket {
    /// Takes a connection and its client's address, [`LOCAL`] for one on a UNIX socket.
    ///
    /// # Errors
    /// Those of accept(2).
    pub fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        match self {
            ListeningSocket::Tcp(socket) => {
                let (socket, peer) = socket.accept()?;
                Ok((Socket::Tcp(socket), peer))
            }
            ListeningSocket::Unix(socket) => Ok((Socket::Unix(socket.accept()?.0), LOCAL)),
        }
    }

    /// The address it is bound to, [`LOCAL`] for a UNIX socket.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            ListeningSocket::Tcp(socket) => socket.local_addr(),
            ListeningSocket::Unix(_) => Ok(LOCAL),
        }
    }

    /// Another descriptor of the same socket.
    ///
    /// # Errors
    /// Those of dup(2).
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        match self {
            ListeningSocket::Tcp(socket) => socket.as_fd().try_clone_to_owned(),
            ListeningSocket::Unix(socket) => socket.as_fd().try_clone_to_owned(),
        }
    }

    /// What mio registers.
    pub fn source(&mut self) -> &mut dyn Source {
        match self {
            ListeningSocket::Tcp(socket) => socket,
            ListeningSocket::Unix(socket) => socket,
        }
    }
}

impl Socket {
    /// Ends the outgoing direction.
    ///
    /// # Errors
    /// Those of shutdown(2).
    pub fn end_writing(&self) -> io::Result<()> {
        match self {
            Socket::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Socket::Unix(socket) => socket.shutdown(Shutdown::Write),
        }
    }

    /// Copies what could be read and leaves it there.
    ///
    /// # Errors
    /// Those of recv(2).
    pub fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        crate::sys::socket::peek(self.as_fd(), buf)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.read(buf),
            Socket::Unix(socket) => socket.read(buf),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.write(bytes),
            Socket::Unix(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source for Socket {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        match self {
            Socket::Tcp(socket) => socket.register(registry, token, interest),
            Socket::Unix(socket) => socket.register(registry, token, interest),
        }
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        match self {
            Socket::Tcp(socket) => socket.reregister(registry, token, interest),
            Socket::Unix(socket) => socket.reregister(registry, token, interest),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Socket::Tcp(socket) => socket.deregister(registry),
            Socket::Unix(socket) => socket.deregister(registry),
        }
    }
}

/// Binds a listening socket. Accepted sockets inherit TCP_NODELAY: without it a peer that pipelines waits for
/// its own delayed acknowledgement.
///
/// # Errors
/// Whatever the system says to socket, bind or listen.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    bind_one(address, false)
}

/// Binds `count` sockets that listen on one address; the kernel spreads connections over them (SO_REUSEPORT).
///
/// # Errors
/// Whatever the system says, also `AddrInUse` when somebody else listens there whose sockets would let us join.
pub fn bind_group(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    if address.port() != 0 {
        // Without this a second server would quietly take a share of the first one's connections.
        drop(bind_one(address, false)?);
    }
    let mut address = address;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = bind_one(address, true)?;
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok(sockets)
}

fn bind_one(address: SocketAddr, group: bool) -> io::Result<TcpListener> {
    let socket = AnySocket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    // Connections are spread over the group: FreeBSD has an option of its own for that.
    #[cfg(not(target_os = "freebsd"))]
    socket.set_reuse_port(group)?;
    #[cfg(target_os = "freebsd")]
    socket.set_reuse_port_lb(group)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// Binds a UNIX socket that everybody may connect to who may enter its directory. A socket that nobody listens
/// on any more is replaced; anything else at this path is left alone.
///
/// # Errors
/// `AddrInUse` when somebody listens there or the path is no socket; otherwise what the system says.
pub fn bind_unix(path: &Path) -> io::Result<ListeningSocket> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        Ok(_) => {
            match with_short_path(path, |path| std::os::unix::net::UnixStream::connect(path)) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path)?;
                }
                Err(error) => return Err(error),
                Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            }
        }
    }
    let socket = with_short_path(path, |path| StdUnixListener::bind(path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(UNIX_MODE))?;
    socket.set_nonblocking(true)?;
    Ok(ListeningSocket::Unix(UnixListener::from_std(socket)))
}

#[cfg(not(target_vendor = "apple"))]
fn listens(socket: &AnySocket) -> io::Result<bool> {
    socket.is_listener()
}

/// Where a socket does not say whether it listens: one that does can be told to again, a connected one can't.
#[cfg(target_vendor = "apple")]
fn listens(socket: &AnySocket) -> io::Result<bool> {
    match socket.listen(BACKLOG) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        other => other.map(|()| true),
    }
}

/// Listens on a socket that was open when the process started.
///
/// # Errors
/// `InvalidInput` when it is no listening TCP or UNIX socket; otherwise what the system says.
pub fn adopt(socket: OwnedFd) -> io::Result<ListeningSocket> {
    let socket = AnySocket::from(socket);
    if !listens(&socket)? {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    socket.set_nonblocking(true)?;
    let address = socket.local_addr()?;
    if address.as_socket().is_some() {
        socket.set_tcp_nodelay(true)?;
        Ok(ListeningSocket::Tcp(TcpListener::from_std(socket.into())))
    } else if address.is_unix() {
        Ok(ListeningSocket::Unix(UnixListener::from_std(
            StdUnixListener::from(OwnedFd::from(socket)),
        )))
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}
