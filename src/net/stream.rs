//! A connection's socket.

use std::io::{self, Read, Write};
use std::rc::Rc;

use mio::{Interest, Registry};

use super::listener::Socket;
use super::reactor::session_token;
use crate::conn::{Stream, Token};

/// A non-blocking socket, registered once for reading.
pub struct MioStream {
    socket: Socket,
    registry: Rc<Registry>,
}

impl MioStream {
    /// Registers the socket for reading under this token. Interest in writing is added on the first short
    /// write: registered early it costs a spurious event and a failed read per connection.
    ///
    /// # Errors
    /// Whatever the registration says.
    pub fn register(
        mut socket: Socket,
        registry: &Rc<Registry>,
        token: Token,
    ) -> io::Result<MioStream> {
        registry.register(&mut socket, session_token(token), Interest::READABLE)?;
        Ok(MioStream {
            socket,
            registry: Rc::clone(registry),
        })
    }
}

impl Stream for MioStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.socket.read(buf)
    }

    fn peek(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.socket.peek(buf)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn want_writable(&mut self, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.registry
            .reregister(&mut self.socket, session_token(token), interest)
    }

    fn end_writing(&mut self) {
        // A socket that is gone already needs no end.
        let _ = self.socket.end_writing();
    }
}
