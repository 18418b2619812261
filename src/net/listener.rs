//! Listening sockets.

use std::io;
use std::net::SocketAddr;

use mio::net::TcpListener;
use socket2::{Domain, Protocol, Socket, Type};

/// A listening socket.
pub type ListeningSocket = TcpListener;

/// Connections the kernel may hold ready; `net.core.somaxconn` may lower it. mio's own bind asks for 128.
const BACKLOG: i32 = 4_096;

/// Binds a listening socket. Accepted sockets inherit TCP_NODELAY: without it a peer that pipelines waits for
/// its own delayed acknowledgement.
///
/// # Errors
/// Whatever the system says to socket, bind or listen.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}
