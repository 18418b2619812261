//! A simulated connection: two byte streams with limited buffers, edge-triggered events, and the ways in which
//! either side can end it.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use ringmx::conn::{Stream, Token};

use crate::random::Random;

/// What the poll would report for this socket next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Events {
    pub readable: bool,
    pub writable: bool,
    pub hung_up: bool,
}

impl Events {
    pub fn any(&self) -> bool {
        self.readable || self.writable || self.hung_up
    }
}

/// Both directions of one connection.
#[derive(Debug)]
pub struct Wire {
    /// Bytes from client to server that were not read yet.
    to_server: Vec<u8>,
    /// How many of them have arrived.
    arrived: usize,
    /// Bytes the server has read.
    pub server_read: u64,
    /// Unread bytes that client and network hold at most.
    pub to_server_max: usize,
    /// The client ended its direction.
    pub client_fin: bool,
    fin_arrived: bool,
    /// The client reset the connection.
    pub client_reset: bool,
    reset_reported: bool,
    /// Bytes from server to client that the client has not read.
    to_client: Vec<u8>,
    /// Unread bytes that the network and the client's buffer hold at most.
    pub to_client_max: usize,
    /// Bytes the server has written, and that the checker has not looked at.
    pub unchecked: Vec<u8>,
    /// Bytes the client has read.
    pub client_read: u64,
    /// Bytes the server has written.
    pub server_wrote: u64,
    /// Simulated time.
    pub now_ns: u64,
    /// Since when the server has replies that the network does not take.
    pub stuck_since_ns: Option<u64>,
    /// The server ended its direction.
    pub server_fin: bool,
    /// The server dropped the connection.
    pub server_gone: bool,
    /// The server wants to hear when it can write.
    wants_writable: bool,
    /// It was told that it cannot.
    write_blocked: bool,
    pub events: Events,
    /// Written by the server since the turn began: it may write once.
    pub writes_in_turn: u32,
    random: Random,
}

impl Wire {
    pub fn new(random: Random, to_server_max: usize, to_client_max: usize) -> Wire {
        Wire {
            to_server: Vec::new(),
            arrived: 0,
            server_read: 0,
            to_server_max,
            client_fin: false,
            fin_arrived: false,
            client_reset: false,
            reset_reported: false,
            to_client: Vec::new(),
            to_client_max,
            unchecked: Vec::new(),
            client_read: 0,
            server_wrote: 0,
            now_ns: 0,
            stuck_since_ns: None,
            server_fin: false,
            server_gone: false,
            wants_writable: false,
            write_blocked: false,
            events: Events::default(),
            writes_in_turn: 0,
            random,
        }
    }

    /// The client sends what fits of `bytes`; returns how much that is.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        assert!(!self.client_fin && !self.client_reset);
        let room = self.to_server_max.saturating_sub(self.to_server.len());
        let taken = room.min(bytes.len());
        self.to_server.extend_from_slice(&bytes[..taken]);
        taken
    }

    pub fn end_sending(&mut self) {
        self.client_fin = true;
    }

    pub fn reset(&mut self) {
        self.client_reset = true;
        self.to_server.clear();
        self.arrived = 0;
        self.to_client.clear();
        self.events.readable = true;
        self.events.writable = self.wants_writable;
        self.events.hung_up = true;
    }

    /// The server takes the connection: the poll reports what is true at once.
    pub fn registered(&mut self) {
        self.events.readable |= self.arrived > 0 || self.fin_arrived || self.client_reset;
        self.events.hung_up |= self.fin_arrived || self.client_reset;
    }

    /// The listener refuses the connection with these bytes.
    pub fn refuse(&mut self, bytes: &[u8]) {
        self.server_gone = true;
        if !self.client_reset {
            self.to_client.extend_from_slice(bytes);
            self.unchecked.extend_from_slice(bytes);
            self.server_wrote += bytes.len() as u64;
        }
    }

    /// Some of what is under way arrives at the server.
    pub fn deliver(&mut self, all: bool) {
        if self.client_reset || self.server_gone {
            return;
        }
        let under_way = self.to_server.len() - self.arrived;
        if under_way > 0 {
            let more = if all || self.random.one_in(3) {
                under_way
            } else if self.random.one_in(2) {
                1 + self.random.below(under_way.min(8) as u64) as usize
            } else {
                1 + self.random.below(under_way as u64) as usize
            };
            self.arrived += more;
            self.events.readable = true;
        }
        let all_here = self.arrived == self.to_server.len();
        if all_here && self.client_fin && !self.fin_arrived && (all || self.random.one_in(2)) {
            self.fin_arrived = true;
            self.events.readable = true;
            self.events.hung_up = true;
        }
    }

    /// The client reads up to `most` bytes.
    pub fn receive(&mut self, most: usize) -> usize {
        let taken = most.min(self.to_client.len());
        self.to_client.drain(..taken);
        self.client_read += taken as u64;
        if taken > 0 && self.write_blocked {
            self.write_blocked = false;
            if self.wants_writable {
                self.events.writable = true;
                // An edge reports all that is true.
                self.events.readable |= self.arrived > 0;
            }
        }
        taken
    }

    /// Whether the client has seen the end of the stream, or would.
    pub fn is_over(&self) -> bool {
        self.client_reset || (self.server_fin || self.server_gone) && self.to_client.is_empty()
    }

    /// Bytes that the client sent and the server has not read.
    pub fn unread(&self) -> usize {
        self.to_server.len()
    }
}

/// The server's end of a connection.
pub struct SimStream {
    pub wire: Rc<RefCell<Wire>>,
    /// The process is dead: nothing gets out any more.
    pub dead: Rc<Cell<bool>>,
}

impl Stream for SimStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut wire = self.wire.borrow_mut();
        if wire.client_reset {
            if wire.reset_reported {
                return Ok(0);
            }
            wire.reset_reported = true;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if wire.random.one_in(4) {
            wire.deliver(false);
        }
        if wire.random.one_in(16) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if wire.arrived == 0 {
            return if wire.fin_arrived {
                Ok(0)
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            };
        }
        let taken = wire.arrived.min(buf.len());
        buf[..taken].copy_from_slice(&wire.to_server[..taken]);
        wire.to_server.drain(..taken);
        wire.arrived -= taken;
        wire.server_read += taken as u64;
        if wire.random.one_in(8) {
            wire.deliver(false);
        }
        Ok(taken)
    }

    fn peek(&mut self, _buf: &mut [u8]) -> io::Result<usize> {
        unreachable!("no listener of the simulator expects a proxy")
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut wire = self.wire.borrow_mut();
        if self.dead.get() {
            return Ok(bytes.len());
        }
        assert!(!wire.server_fin, "written behind the end of the stream");
        assert!(!bytes.is_empty(), "a system call for nothing");
        if wire.client_reset {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if wire.random.one_in(16) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        wire.writes_in_turn += 1;
        let room = wire.to_client_max.saturating_sub(wire.to_client.len());
        let mut taken = room.min(bytes.len());
        if taken > 0 && wire.random.one_in(8) {
            taken = wire.random.below(taken as u64 + 1) as usize;
        }
        wire.to_client.extend_from_slice(&bytes[..taken]);
        wire.unchecked.extend_from_slice(&bytes[..taken]);
        wire.server_wrote += taken as u64;
        wire.stuck_since_ns = match wire.stuck_since_ns {
            _ if taken == bytes.len() => None,
            Some(since_ns) if taken == 0 => Some(since_ns),
            _ => Some(wire.now_ns),
        };
        if taken < bytes.len() {
            wire.write_blocked = true;
            if wire.wants_writable && taken < room {
                wire.write_blocked = false;
                wire.events.writable = true;
            }
        }
        if taken == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(taken)
    }

    fn want_writable(&mut self, _token: Token) -> io::Result<()> {
        let mut wire = self.wire.borrow_mut();
        assert!(!wire.wants_writable, "registered twice");
        wire.wants_writable = true;
        // Registering anew reports what is true now.
        if wire.to_client.len() < wire.to_client_max {
            wire.write_blocked = false;
            wire.events.writable = true;
        }
        wire.events.readable |= wire.arrived > 0;
        Ok(())
    }

    fn end_writing(&mut self) {
        let mut wire = self.wire.borrow_mut();
        if !self.dead.get() {
            wire.server_fin = true;
        }
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        if !self.dead.get() {
            self.wire.borrow_mut().server_gone = true;
        }
    }
}
