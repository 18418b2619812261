//! A server over streams in memory, a disk that is told when its syncs end, and a clock that is set by hand.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ringmx::clock::Instant;
use ringmx::conn::{Stream, Token};
use ringmx::logger::Logger;
use ringmx::metrics::Metrics;
use ringmx::ringlog::backing::{Backing, MemoryBacking};
use ringmx::ringlog::commit::{SyncDone, SyncRequest};
use ringmx::ringlog::format::DATA_OFFSET;
use ringmx::ringlog::recover::{self, NewRing, OpenOptions};
use ringmx::ringlog::writer::{FullPolicy, Log, Survive};
use ringmx::server::listener::TlsMode;
use ringmx::server::{Committer, Listener, Options, Server, Storage};
use ringmx::smtp::extension;
use ringmx::smtp::parameter::Offered;
use ringmx::smtp::reply;
use ringmx::smtp::session::{Context, ContextOptions};
use ringmx::smtp::sink::Verb;

/// What a test sees of a connection.
#[derive(Debug, Default)]
pub struct Pipe {
    input: Vec<u8>,
    input_at: usize,
    pub input_ended: bool,
    /// What the server wrote, and how often it did.
    pub output: Vec<u8>,
    pub writes: u32,
    /// Bytes that can be written before it would block.
    pub window: usize,
    pub output_ended: bool,
    pub dropped: bool,
    pub wants_writable: bool,
    /// The connection was reset: nothing can be read or written.
    pub is_reset: bool,
}

impl Pipe {
    /// Bytes that the server has not read.
    pub fn unread(&self) -> usize {
        self.input.len() - self.input_at
    }
}

pub struct PipeStream(Rc<RefCell<Pipe>>);

impl Stream for PipeStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        if pipe.is_reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let taken = pipe.unread().min(buf.len());
        if taken == 0 {
            return if pipe.input_ended {
                Ok(0)
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            };
        }
        let at = pipe.input_at;
        buf[..taken].copy_from_slice(&pipe.input[at..at + taken]);
        pipe.input_at += taken;
        if pipe.unread() == 0 {
            pipe.input.clear();
            pipe.input_at = 0;
        }
        Ok(taken)
    }

    fn peek(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let pipe = self.0.borrow();
        let taken = pipe.unread().min(buf.len());
        if taken == 0 && !pipe.input_ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let at = pipe.input_at;
        buf[..taken].copy_from_slice(&pipe.input[at..at + taken]);
        Ok(taken)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        if pipe.is_reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        pipe.writes += 1;
        let taken = bytes.len().min(pipe.window);
        if taken == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        pipe.window -= taken;
        pipe.output.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn want_writable(&mut self, _token: Token) -> io::Result<()> {
        self.0.borrow_mut().wants_writable = true;
        Ok(())
    }

    fn end_writing(&mut self) {
        self.0.borrow_mut().output_ended = true;
    }
}

impl Drop for PipeStream {
    fn drop(&mut self) {
        self.0.borrow_mut().dropped = true;
    }
}

/// A ring in memory that counts its writes.
pub struct Disk {
    memory: MemoryBacking,
    pub writes: Rc<Cell<u64>>,
}

impl Disk {
    /// What is in the ring's file.
    pub fn bytes(&self) -> &[u8] {
        &self.memory.bytes
    }
}

impl Backing for Disk {
    fn len(&self) -> u64 {
        self.memory.len()
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.memory.read_at(buf, at)
    }

    fn write_at(&mut self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        self.writes.set(self.writes.get() + 1);
        self.memory.write_at(parts, at)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Syncs end when a test says so.
#[derive(Clone, Default)]
pub struct Syncs {
    under_way: Rc<Cell<Option<u64>>>,
    done: Rc<Cell<Option<(u64, bool)>>>,
    /// When the next one that ends was asked for and begun.
    pub times: Rc<Cell<(Instant, Instant)>>,
    /// End by themselves, in the turn after the one that asked.
    pub at_once: Rc<Cell<bool>>,
}

impl Syncs {
    /// The sync under way ends. False when there is none.
    pub fn end(&self, ok: bool) -> bool {
        let Some(target) = self.under_way.take() else {
            return false;
        };
        self.done.set(Some((target, ok)));
        true
    }
}

impl Committer for Syncs {
    fn submit(&mut self, request: &SyncRequest<'_>) {
        assert_eq!(self.under_way.replace(Some(request.target)), None);
    }

    fn poll(&mut self) -> Option<SyncDone> {
        if self.at_once.get() {
            self.end(true);
        }
        let (target, ok) = self.done.take()?;
        Some(SyncDone {
            target,
            result: if ok {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(5))
            },
            asked: self.times.get().0,
            began: self.times.get().1,
            took: Duration::from_millis(1),
        })
    }
}

/// A server and what drives it.
pub struct Rig {
    pub server: Server<PipeStream, Disk, Syncs>,
    pub syncs: Syncs,
    pub now: Instant,
    /// Writes to the ring.
    pub disk_writes: Rc<Cell<u64>>,
}

/// A client's end.
#[derive(Clone)]
pub struct Client {
    pub pipe: Rc<RefCell<Pipe>>,
    pub token: Token,
}

/// Options with which nothing happens by itself within a minute.
pub fn options() -> Options {
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    Options {
        sessions_max: 64,
        pool_bytes: 16 << 20,
        message_bytes_max: 1 << 20,
        discard: false,
        shard: 0,
        timeout_greeting: minutes(5),
        timeout_command: minutes(5),
        timeout_data: minutes(3),
        timeout_reply: minutes(2),
        request_deadline: minutes(10),
        data_rate_min: 0,
        data_grace: minutes(1),
        pool_wait_max: minutes(1),
        linger: Duration::from_secs(5),
        sync_stall: minutes(1),
        prefix_key: 7,
    }
}

impl Rig {
    /// A server over a ring of 16 MiB.
    pub fn new(options: Options, survive: Survive) -> Rig {
        Rig::with_ring(options, survive, 16 << 20)
    }

    /// A server over a ring of this size.
    pub fn with_ring(options: Options, survive: Survive, data_size: u64) -> Rig {
        Rig::with_listener(options, survive, data_size, TlsMode::Off, Offered::NONE)
    }

    /// A server whose one listener does this about TLS and offers these extensions as well.
    pub fn with_listener(
        options: Options,
        survive: Survive,
        data_size: u64,
        tls: TlsMode,
        offered: Offered,
    ) -> Rig {
        let offers = ContextOptions {
            offered: extension::ALL.with(offered),
            ..ContextOptions::default()
        };
        Rig::with_context(options, survive, data_size, tls, offers)
    }

    /// A server whose sessions are of this kind; name, largest message and whether TLS comes first are as always.
    pub fn with_context(
        options: Options,
        survive: Survive,
        data_size: u64,
        tls: TlsMode,
        context: ContextOptions,
    ) -> Rig {
        let mut memory = MemoryBacking {
            bytes: vec![0; (DATA_OFFSET + data_size) as usize],
        };
        let ring = NewRing {
            ring_id: [1; 16],
            ring_key: 2,
            data_size,
            created_ns: 3,
        };
        recover::format(&mut memory, &ring).expect("it fits");
        let disk_writes = Rc::new(Cell::new(0));
        let disk = Disk {
            memory,
            writes: Rc::clone(&disk_writes),
        };
        let mut open = OpenOptions::new(survive, 4);
        open.full = FullPolicy::Auto;
        let (log, _) = Log::open(disk, &open).expect("an empty ring opens");
        disk_writes.set(0);
        let syncs = Syncs::default();
        let context = Context::new(ContextOptions {
            server_name: "mx.example".into(),
            message_bytes_max: options.message_bytes_max,
            needs_tls: tls == TlsMode::Required,
            ..context
        })
        .expect("a good name");
        let storage = (!options.discard).then(|| Storage {
            log,
            committer: syncs.clone(),
        });
        let listener = Listener {
            tls,
            ..Listener::sink(([127, 0, 0, 1], 25).into())
        };
        let now = Instant(1_000_000_000_000);
        let metrics = Metrics::new(Verb::COUNT, reply::ROWS.len());
        Rig {
            server: Server::new(
                options,
                vec![context],
                vec![listener],
                storage,
                metrics,
                Logger::disabled(),
                now,
            ),
            syncs,
            now,
            disk_writes,
        }
    }

    /// A turn without events.
    pub fn turn(&mut self) {
        self.server.begin_turn(self.now, self.now.0);
        self.server.end_turn();
    }

    /// Lets time pass and runs the turns that are due meanwhile.
    pub fn pass(&mut self, time: Duration) {
        let until = self.now.after(time);
        while let Some(due) = self.server.next_turn() {
            if due > until {
                break;
            }
            self.now = due.max(self.now);
            self.turn();
        }
        self.now = until;
        self.turn();
    }

    /// A client whose greeting has been sent.
    pub fn connect(&mut self) -> Client {
        self.connect_from(([10, 0, 0, 9], 4_242).into(), b"")
    }

    /// A client of this address that sent something before it was accepted.
    pub fn connect_from(&mut self, peer: SocketAddr, early: &[u8]) -> Client {
        // Three allocations: the pipe and its buffers.
        let pipe = Rc::new(RefCell::new(Pipe {
            input: Vec::with_capacity(8_192),
            output: Vec::with_capacity(8_192),
            window: usize::MAX,
            ..Pipe::default()
        }));
        pipe.borrow_mut().input.extend_from_slice(early);
        let stream = PipeStream(Rc::clone(&pipe));
        self.server.begin_turn(self.now, self.now.0);
        let token = self
            .server
            .accept(peer, 0, |_| Ok(stream))
            .expect("streams never refuse");
        self.server.end_turn();
        Client { pipe, token }
    }

    /// The client sends these bytes, and its end of file if it has ended; one event tells of both.
    pub fn send(&mut self, client: &Client, bytes: &[u8]) {
        client.pipe.borrow_mut().input.extend_from_slice(bytes);
        let ended = client.pipe.borrow().input_ended;
        self.server.begin_turn(self.now, self.now.0);
        self.server.ready(client.token, true, false, ended);
        self.server.end_turn();
    }

    /// The client can be written to again.
    pub fn open_window(&mut self, client: &Client, bytes: usize) {
        client.pipe.borrow_mut().window += bytes;
        self.server.begin_turn(self.now, self.now.0);
        self.server.ready(client.token, false, true, false);
        self.server.end_turn();
    }

    /// The sync under way ends, and a turn follows.
    pub fn sync(&mut self, ok: bool) {
        assert!(self.syncs.end(ok), "no sync is under way");
        self.turn();
    }
}

impl Client {
    /// Lays bytes ready for the server; no event tells of them.
    pub fn feed(&self, bytes: &[u8]) {
        self.pipe.borrow_mut().input.extend_from_slice(bytes);
    }

    /// Takes what the server wrote since the last call.
    pub fn read(&self) -> String {
        let mut pipe = self.pipe.borrow_mut();
        pipe.writes = 0;
        String::from_utf8(std::mem::take(&mut pipe.output)).expect("replies are ASCII")
    }
}
