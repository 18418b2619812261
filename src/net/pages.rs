//! The HTTP side of a loop: connections, requests, and answers that may come later.

use std::io;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use super::desk::{Desk, HTTP_IDLE_NS, HTTP_SESSIONS_MAX};
use super::reactor::accept_ready;
use crate::clock::Instant;
use crate::http;

/// Reads from one connection in one turn.
const TURN_READS: usize = 16;

/// Whether a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// It was.
    Now,
    /// What it asks for is not known yet: [`Pages::put`] answers it.
    Later,
}

/// A request that waits for its answer.
struct Waiting {
    key: usize,
    request: http::Request,
    round: u64,
}

/// Connections of HTTP clients.
pub(super) struct Pages {
    listener: Option<TcpListener>,
    /// The kernel may hold connections for it.
    ready: bool,
    desk: Desk<TcpStream, http::Session>,
    /// Connections that had more to do than one turn allows.
    again: Vec<usize>,
    waiting: Vec<Waiting>,
    /// Requests that have to wait from now on belong to this round.
    pub(super) round: u64,
}

impl Pages {
    /// Registers `listener` under the token `listening`; those of connections are `kind` or'ed with a key.
    ///
    /// # Errors
    /// Whatever the registration says.
    pub(super) fn new(
        mut listener: Option<TcpListener>,
        registry: &Registry,
        listening: usize,
        kind: usize,
    ) -> io::Result<Pages> {
        if let Some(socket) = &mut listener {
            registry.register(socket, Token(listening), Interest::READABLE)?;
        }
        Ok(Pages {
            listener,
            ready: true,
            desk: Desk::new(kind, HTTP_SESSIONS_MAX),
            again: Vec::new(),
            waiting: Vec::new(),
            round: 0,
        })
    }

    /// The listening socket, if there is one.
    pub(super) fn listener(&self) -> Option<&TcpListener> {
        self.listener.as_ref()
    }

    /// Takes no more connections; those that are there go on.
    pub(super) fn stop_listening(&mut self) {
        self.listener = None;
    }

    /// The kernel may hold connections.
    pub(super) fn set_ready(&mut self) {
        self.ready = true;
    }

    /// Whether connections may wait.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Whether connections go on in the next turn.
    pub(super) fn has_more(&self) -> bool {
        !self.again.is_empty()
    }

    /// Connections that go on in this turn; pass each to [`Pages::event`].
    pub(super) fn take_again(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.again)
    }

    /// Takes connections. Returns the error when descriptors or memory ran out.
    pub(super) fn accept(&mut self, registry: &Registry, now: Instant) -> Option<io::Error> {
        let Pages {
            listener,
            ready,
            desk,
            ..
        } = self;
        // A connection that can't be registered is closed by being dropped.
        accept_ready(ready, || match listener {
            None => Err(io::ErrorKind::WouldBlock.into()),
            Some(listener) => {
                let (socket, _) = listener.accept()?;
                let session = match socket.local_addr() {
                    Ok(local) if local.ip().to_canonical().is_loopback() => {
                        http::Session::on_loopback()
                    }
                    _ => http::Session::new(),
                };
                drop(desk.admit(socket, session, registry, now));
                Ok(())
            }
        })
    }

    /// Reads requests and answers them, one after the other: nothing is read while an answer has not left, so that
    /// a client that asks and does not read holds one answer and no more.
    pub(super) fn event(
        &mut self,
        key: usize,
        now: Instant,
        answer: &mut dyn FnMut(&http::Request, &mut Vec<u8>) -> Answered,
    ) {
        let mut buf = [0; 4_096];
        for _ in 0..TURN_READS {
            self.answer(key, now, answer);
            let awaited = self.is_awaited(key);
            let Some(visitor) = self.desk.get_mut(key) else {
                return;
            };
            if visitor.closing || !visitor.output.is_empty() || awaited {
                return;
            }
            let room = visitor.protocol.room().min(buf.len());
            let Some(len) = self.desk.read_some(key, now, &mut buf[..room]) else {
                return self.send(key, now);
            };
            if let Some(visitor) = self.desk.get_mut(key) {
                visitor.protocol.receive(&buf[..len]);
            }
        }
        self.again.push(key);
    }

    fn answer(
        &mut self,
        key: usize,
        now: Instant,
        answer: &mut dyn FnMut(&http::Request, &mut Vec<u8>) -> Answered,
    ) {
        self.send(key, now);
        loop {
            let awaited = self.is_awaited(key);
            let Some(visitor) = self.desk.get_mut(key) else {
                return;
            };
            if awaited || visitor.closing || !visitor.output.is_empty() {
                return;
            }
            match visitor.protocol.step() {
                http::Step::Read => return,
                http::Step::Close => visitor.closing = true,
                http::Step::Answer(request) => {
                    if answer(&request, &mut visitor.output) == Answered::Later {
                        let round = self.round;
                        self.waiting.push(Waiting {
                            key,
                            request,
                            round,
                        });
                        return;
                    }
                    visitor.closing |= !request.keep_alive;
                }
            }
            self.send(key, now);
        }
    }

    fn is_awaited(&self, key: usize) -> bool {
        self.waiting.iter().any(|waiting| waiting.key == key)
    }

    /// Whether requests of a round up to this one wait.
    pub(super) fn is_waited_for(&self, round: u64) -> bool {
        self.waiting.iter().any(|waiting| waiting.round <= round)
    }

    /// Whether one of the requests that wait needs the newest messages.
    pub(super) fn needs_newest(&self) -> bool {
        let mut requests = self.waiting.iter().map(|waiting| waiting.request);
        requests.any(|request| request.route.needs_newest())
    }

    /// The requests of the rounds up to this one; each is to be answered by [`Pages::put`] and continued by
    /// [`Pages::event`].
    pub(super) fn take_waiting(&mut self, round: u64) -> Vec<(usize, http::Request)> {
        let (due, later) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| waiting.round <= round);
        self.waiting = later;
        let due: Vec<Waiting> = due;
        due.into_iter()
            .map(|waiting| (waiting.key, waiting.request))
            .collect()
    }

    /// Answers a request that waited.
    pub(super) fn put(
        &mut self,
        key: usize,
        request: &http::Request,
        answer: impl FnOnce(&mut Vec<u8>),
    ) {
        if let Some(visitor) = self.desk.get_mut(key) {
            answer(&mut visitor.output);
            visitor.closing |= !request.keep_alive;
        }
    }

    fn send(&mut self, key: usize, now: Instant) {
        if self.desk.send(key, now, None).is_some() {
            // The key may be taken again: no answer of this connection may reach the next one.
            self.waiting.retain(|waiting| waiting.key != key);
        }
    }

    /// Closes connections that were silent for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        for key in self
            .desk
            .expire(Instant(now.0.saturating_sub(HTTP_IDLE_NS)))
        {
            self.send(key, now);
        }
    }
}
