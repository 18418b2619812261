//! The few connections beside SMTP: HTTP requests, and the tools and consumers on the control socket. Their
//! number is bounded, their buffers may allocate; nothing here is on the path of a message.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use mio::{Interest, Registry, Token, event};
use slab::Slab;

use crate::clock::Instant;
use crate::sys::fd_passing;

/// HTTP connections at the same time; more are closed at once.
pub const HTTP_SESSIONS_MAX: usize = 64;
/// Control connections at the same time; more are closed at once.
pub const CTL_SESSIONS_MAX: usize = 128;
/// An HTTP connection that is silent for longer is closed, nanoseconds.
pub const HTTP_IDLE_NS: u64 = 30_000_000_000;
/// Bytes read from one connection in one turn.
const TURN_BYTES: usize = 64 * 1_024;

/// One connection and what it still has to be sent.
pub struct Visitor<T, P> {
    stream: T,
    /// Its protocol.
    pub protocol: P,
    /// Bytes to send.
    pub output: Vec<u8>,
    sent: usize,
    /// The next byte carries a descriptor.
    pub descriptor_due: bool,
    /// Closes when everything has left.
    pub closing: bool,
    /// When something last came or left.
    pub active_at: Instant,
    gone: bool,
}

/// Connections of one kind.
pub struct Desk<T, P> {
    visitors: Slab<Visitor<T, P>>,
    kind: usize,
    max: usize,
}

impl<T: Read + Write + AsFd + event::Source, P> Desk<T, P> {
    /// An empty desk; tokens are `kind` or'ed with a key.
    pub fn new(kind: usize, max: usize) -> Desk<T, P> {
        Desk {
            visitors: Slab::new(),
            kind,
            max,
        }
    }

    /// Takes a connection and returns its key, or drops it when there are too many.
    ///
    /// # Errors
    /// Whatever the registration says.
    pub fn admit(
        &mut self,
        mut stream: T,
        protocol: P,
        registry: &Registry,
        now: Instant,
    ) -> io::Result<Option<usize>> {
        if self.visitors.len() >= self.max {
            return Ok(None);
        }
        let entry = self.visitors.vacant_entry();
        let key = entry.key();
        let token = Token(self.kind | key);
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        entry.insert(Visitor {
            stream,
            protocol,
            output: Vec::new(),
            sent: 0,
            descriptor_due: false,
            closing: false,
            active_at: now,
            gone: false,
        });
        Ok(Some(key))
    }

    /// Reads what came for `key` and hands it to `receive`, which returns how many bytes it took.
    pub fn read(
        &mut self,
        key: usize,
        now: Instant,
        mut receive: impl FnMut(&mut Visitor<T, P>, &[u8]),
    ) {
        let mut buf = [0; 4_096];
        let mut budget = TURN_BYTES;
        while self
            .visitors
            .get(key)
            .is_some_and(|visitor| !visitor.gone && !visitor.closing)
            && let Some(len) = self.read_some(key, now, &mut buf)
            && let Some(visitor) = self.visitors.get_mut(key)
        {
            receive(visitor, &buf[..len]);
            budget = budget.saturating_sub(len);
            // A peer that sends without end is cut: this protocol is question and answer.
            visitor.gone |= budget == 0;
        }
    }

    /// Reads once into `buf`; `None` when nothing came or the connection has ended.
    pub fn read_some(&mut self, key: usize, now: Instant, buf: &mut [u8]) -> Option<usize> {
        let visitor = self.visitors.get_mut(key)?;
        loop {
            match visitor.stream.read(buf) {
                Ok(0) => {
                    visitor.gone = visitor.output.is_empty();
                    visitor.closing = true;
                    return None;
                }
                Ok(len) => {
                    visitor.active_at = now;
                    return Some(len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => {
                    visitor.gone = true;
                    return None;
                }
            }
        }
    }

    /// The connection of `key`.
    pub fn get_mut(&mut self, key: usize) -> Option<&mut Visitor<T, P>> {
        self.visitors.get_mut(key)
    }

    /// Every key is below this; keys without a connection may be among them.
    pub fn key_bound(&self) -> usize {
        self.visitors.capacity()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.visitors.is_empty()
    }

    /// Sends what is waiting for `key`; `descriptor` goes with the first byte when one is due. Returns the
    /// protocol of a connection that has ended.
    pub fn send(
        &mut self,
        key: usize,
        now: Instant,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Option<P> {
        let visitor = self.visitors.get_mut(key)?;
        while !visitor.gone && visitor.sent < visitor.output.len() {
            let bytes = &visitor.output[visitor.sent..];
            let result = if visitor.descriptor_due {
                fd_passing::send(visitor.stream.as_fd(), bytes, descriptor)
            } else {
                visitor.stream.write(bytes)
            };
            match result {
                Ok(0) => visitor.gone = true,
                Ok(len) => {
                    visitor.sent += len;
                    visitor.descriptor_due = false;
                    visitor.active_at = now;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => visitor.gone = true,
            }
        }
        if visitor.sent == visitor.output.len() {
            visitor.output.clear();
            visitor.sent = 0;
        }
        let ended = visitor.gone || (visitor.closing && visitor.output.is_empty());
        ended.then(|| self.visitors.remove(key).protocol)
    }

    /// Marks connections silent since before `since` as gone; `send` removes them.
    pub fn expire(&mut self, since: Instant) -> Vec<usize> {
        let mut expired = Vec::new();
        for (key, visitor) in &mut self.visitors {
            if visitor.active_at < since {
                visitor.gone = true;
                expired.push(key);
            }
        }
        expired
    }
}
