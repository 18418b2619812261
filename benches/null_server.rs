//! The null server: the least work that an SMTP server can do on this kernel.
//!
//! One thread, edge-triggered epoll, fixed replies, one send for each wake-up of a connection. It looks for line ends,
//! for the first letter of a command, for the size of a BDAT chunk and for the end of data, and for nothing else: any
//! address, any order, any length is answered. NOOP is answered with the number of messages that ended so far. What
//! another receiver costs beyond it is that receiver's own work, so that a ratio to this program means something on
//! any machine.
//!
//! ```text
//! cargo bench --bench null_server -- [ADDRESS] [--durable FILE] [--file-size MIB] [--busy-poll]
//!     [--reuse-port]
//! ```
//!
//! Without `--durable` bodies are dropped. With it each piece of a body is written to FILE (made of zeros first, then
//! overwritten from its beginning again and again) as it arrives, and the reply to the end of data waits for an
//! `fdatasync` that covers it: one thread syncs, and everything that ended while it did shares the next sync.
//! `--busy-poll` never sleeps. `--reuse-port` lets several of them share one ADDRESS, each with its own descriptors.
//! ADDRESS is 127.0.0.1 and a free port by default; the first line says which. It serves until it is killed. Not for a
//! network: nothing here is bounded or checked.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memchr::{memchr, memmem::Finder};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use ringmx::sys::memory::Pages;
use slab::Slab;

/// One buffer for all connections.
const READ_BYTES: usize = 64 << 10;
const END_OF_DATA: &[u8; 5] = b"\r\n.\r\n";
/// What is searched for: rarer in mail than the line ends around it, so that the search is faster.
const LINE_WITH_DOT: &[u8; 2] = b"\n.";
const LISTENER: Token = Token(usize::MAX - 1);
const SYNCED: Token = Token(usize::MAX);

const GREETING: &[u8] = b"220 null.example ESMTP\r\n";
const EHLO: &[u8] =
    b"250-null.example\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-8BITMIME\r\n250 SIZE 0\r\n";
const OK: &[u8] = b"250 2.0.0 Ok\r\n";
const GO_AHEAD: &[u8] = b"354 Go\r\n";
const BYE: &[u8] = b"221 2.0.0 Bye\r\n";
const WHAT: &[u8] = b"500 5.5.2 What\r\n";

struct Arguments {
    address: SocketAddr,
    durable: Option<String>,
    file_bytes: u64,
    busy_poll: bool,
    reuse_port: bool,
}

impl Arguments {
    fn read() -> Result<Option<Self>, String> {
        let mut arguments = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            durable: None,
            file_bytes: 1 << 30,
            busy_poll: false,
            reuse_port: false,
        };
        let mut words = std::env::args().skip(1).peekable();
        let alone = std::env::args().len() <= 2;
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                // `cargo bench` passes it: alone it means that all benches are run, and this one would not end.
                "--bench" if alone => return Ok(None),
                "--bench" => {}
                "--durable" => arguments.durable = Some(value()?),
                "--file-size" => {
                    let mib: u64 = value()?.parse().map_err(|_| "--file-size takes MiB")?;
                    arguments.file_bytes = mib.max(1) << 20;
                }
                "--busy-poll" => arguments.busy_poll = true,
                "--reuse-port" => arguments.reuse_port = true,
                _ => {
                    arguments.address = word
                        .parse()
                        .map_err(|_| format!("{word}: not understood"))?
                }
            }
        }
        Ok(Some(arguments))
    }
}

fn main() -> io::Result<()> {
    match Arguments::read() {
        Ok(Some(arguments)) => serve(&arguments),
        Ok(None) => {
            println!("null_server is a server: cargo bench --bench null_server -- 127.0.0.1:2525");
            Ok(())
        }
        Err(text) => Err(io::Error::other(text)),
    }
}

/// What the next octet of a connection belongs to.
enum State {
    /// A command line.
    Line,
    /// A message; its last four octets, because the end may be cut anywhere.
    Data([u8; 4]),
    /// A chunk: octets still to come, and whether it is the last of its message.
    Chunk(u64, bool),
}

struct Connection {
    stream: TcpStream,
    state: State,
    /// The beginning of a line whose end has not arrived.
    line: Vec<u8>,
    replies: Vec<u8>,
    /// Nothing leaves before the file is synced up to here.
    hold: u64,
    closes: bool,
    wants_write: bool,
}

/// What all connections share.
struct Sink {
    finder: Finder<'static>,
    store: Option<Store>,
    /// Messages that have ended.
    messages: u64,
}

/// Where bodies go when they are kept.
struct Store {
    file: Arc<File>,
    file_bytes: u64,
    /// Octets written since the start.
    written: u64,
    /// Octets that the sync thread is asked to cover, and has covered.
    target: Arc<AtomicU64>,
    synced: Arc<AtomicU64>,
    syncer: std::thread::Thread,
    /// Messages that wait for a sync: how far it has to go, and the connection.
    waiting: VecDeque<(u64, usize)>,
}

impl Store {
    fn new(path: &str, file_bytes: u64, waker: Waker) -> io::Result<Self> {
        let mut file = File::create(path)?;
        let zeros = vec![0; 1 << 20];
        for _ in 0..file_bytes >> 20 {
            file.write_all(&zeros)?;
        }
        file.sync_all()?;
        let file = Arc::new(file);
        let (target, synced) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (their_file, their_target, their_synced) =
            (file.clone(), target.clone(), synced.clone());
        let thread = std::thread::Builder::new()
            .name("sync".into())
            .spawn(move || {
                loop {
                    let target = their_target.load(Ordering::Acquire);
                    if target == their_synced.load(Ordering::Relaxed) {
                        std::thread::park();
                        continue;
                    }
                    // What a failed sync has lost can't be told; a yardstick ends there.
                    their_file.sync_data().expect("fdatasync");
                    their_synced.store(target, Ordering::Release);
                    waker.wake().expect("eventfd");
                }
            })?;
        Ok(Self {
            file,
            file_bytes,
            written: 0,
            target,
            synced,
            syncer: thread.thread().clone(),
            waiting: VecDeque::new(),
        })
    }

    /// Writes one piece; a piece that would pass the end of the file begins at its beginning.
    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        let len = piece.len() as u64;
        let at = self.written % self.file_bytes;
        if at + len > self.file_bytes {
            self.written += self.file_bytes - at;
        }
        self.file
            .write_all_at(piece, self.written % self.file_bytes)?;
        self.written += len;
        Ok(())
    }

    /// Has everything written so far synced, unless that was asked for already.
    fn ask(&self) {
        if self.target.load(Ordering::Relaxed) != self.written {
            self.target.store(self.written, Ordering::Release);
            self.syncer.unpark();
        }
    }
}

fn serve(arguments: &Arguments) -> io::Result<()> {
    let mut listener = listen(arguments)?;
    let mut poll = Poll::new()?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let store = match &arguments.durable {
        None => None,
        Some(path) => {
            let waker = Waker::new(poll.registry(), SYNCED)?;
            Some(Store::new(path, arguments.file_bytes, waker)?)
        }
    };
    let mut sink = Sink {
        finder: Finder::new(LINE_WITH_DOT),
        store,
        messages: 0,
    };
    println!("null server on {}", listener.local_addr()?);
    let mut events = Events::with_capacity(1024);
    let mut connections: Slab<Connection> = Slab::new();
    // A copy from it into the page cache is as fast as the receiver's own.
    let mut buf = Pages::zeroed(READ_BYTES);
    let pause = arguments.busy_poll.then_some(Duration::ZERO);
    loop {
        match poll.poll(&mut events, pause) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        if let Some(store) = &mut sink.store {
            let synced = store.synced.load(Ordering::Acquire);
            while store
                .waiting
                .front()
                .is_some_and(|(hold, _)| *hold <= synced)
            {
                let (hold, key) = store.waiting.pop_front().unwrap_or_default();
                // The client may have gone, and another one may have its key.
                if connections.get(key).is_some_and(|c| c.hold == hold)
                    && !send(&mut connections[key], synced, poll.registry(), key)
                {
                    connections.remove(key);
                }
            }
        }
        for event in &events {
            let key = match event.token() {
                LISTENER => {
                    accept(&listener, &mut connections, poll.registry())?;
                    continue;
                }
                SYNCED => continue,
                Token(key) => key,
            };
            let Some(connection) = connections.get_mut(key) else {
                continue;
            };
            let open = !event.is_readable()
                || receive(connection, &mut buf, event.is_read_closed(), &mut sink, key)?;
            let synced = sink
                .store
                .as_ref()
                .map_or(0, |s| s.synced.load(Ordering::Acquire));
            if !open || !send(connection, synced, poll.registry(), key) {
                connections.remove(key);
            }
        }
        if let Some(store) = &sink.store {
            store.ask();
        }
    }
}

fn listen(arguments: &Arguments) -> io::Result<TcpListener> {
    let address = arguments.address;
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(arguments.reuse_port)?;
    // Connections inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(TcpListener::from_std(socket.into()))
}

fn accept(
    listener: &TcpListener,
    connections: &mut Slab<Connection>,
    registry: &Registry,
) -> io::Result<()> {
    loop {
        let (mut stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // The client gave up before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        let entry = connections.vacant_entry();
        registry.register(&mut stream, Token(entry.key()), Interest::READABLE)?;
        if stream
            .write(GREETING)
            .is_ok_and(|len| len == GREETING.len())
        {
            entry.insert(Connection {
                stream,
                state: State::Line,
                line: Vec::new(),
                replies: Vec::new(),
                hold: 0,
                closes: false,
                wants_write: false,
            });
        }
    }
}

/// Reads what is there and queues the replies; returns whether the connection goes on.
fn receive(
    connection: &mut Connection,
    buf: &mut [u8],
    to_the_end: bool,
    sink: &mut Sink,
    key: usize,
) -> io::Result<bool> {
    loop {
        match connection.stream.read(buf) {
            Ok(0) => return Ok(false),
            Ok(len) => {
                take(connection, &buf[..len], sink, key)?;
                // A short read has emptied the socket: epoll tells when there is more.
                if len < buf.len() && !to_the_end {
                    return Ok(true);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(false),
        }
    }
}

fn take(
    connection: &mut Connection,
    mut input: &[u8],
    sink: &mut Sink,
    key: usize,
) -> io::Result<()> {
    while !input.is_empty() && !connection.closes {
        let (used, ended) = match &mut connection.state {
            State::Line => match memchr(b'\n', input) {
                None => {
                    connection.line.extend_from_slice(input);
                    return Ok(());
                }
                Some(end) if connection.line.is_empty() => {
                    command(connection, &input[..end], sink.messages);
                    input = &input[end + 1..];
                    continue;
                }
                Some(end) => {
                    let mut line = std::mem::take(&mut connection.line);
                    line.extend_from_slice(&input[..end]);
                    command(connection, &line, sink.messages);
                    input = &input[end + 1..];
                    continue;
                }
            },
            State::Data(tail) => match end_of_data(tail, input, &sink.finder) {
                Some(end) => (end, Some(true)),
                None => (input.len(), None),
            },
            State::Chunk(left, last) => {
                let used = input
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= used as u64;
                (used, (*left == 0).then_some(*last))
            }
        };
        if let Some(store) = &mut sink.store {
            store.write(&input[..used])?;
        }
        input = &input[used..];
        if let Some(last) = ended {
            connection.state = State::Line;
            connection.replies.extend_from_slice(OK);
            sink.messages += u64::from(last);
            if let Some(store) = sink.store.as_mut().filter(|_| last) {
                connection.hold = store.written;
                store.waiting.push_back((store.written, key));
            }
        }
    }
    Ok(())
}

fn command(connection: &mut Connection, line: &[u8], messages: u64) {
    let reply = match line.first().map(u8::to_ascii_uppercase) {
        Some(b'M' | b'R' | b'H') => OK,
        Some(b'N') => {
            let count = format!("250 {messages}\r\n");
            return connection.replies.extend_from_slice(count.as_bytes());
        }
        Some(b'D') => {
            // The line end of the command is the first half of the end of an empty message.
            connection.state = State::Data([0, 0, b'\r', b'\n']);
            GO_AHEAD
        }
        Some(b'B') => {
            let digits = line.iter().skip(5).take_while(|byte| byte.is_ascii_digit());
            let size = digits.fold(0u64, |size, digit| {
                size.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'))
            });
            connection.state = State::Chunk(size, line.len() > 11 && line.contains(&b'L'));
            return;
        }
        Some(b'E') => EHLO,
        Some(b'Q') => {
            connection.closes = true;
            BYE
        }
        _ => WHAT,
    };
    connection.replies.extend_from_slice(reply);
}

/// Returns where the message ends in `input`, if it does.
fn end_of_data(tail: &mut [u8; 4], input: &[u8], finder: &Finder<'_>) -> Option<usize> {
    let mut seam = [0; 8];
    let head = input.len().min(4);
    seam[..4].copy_from_slice(tail);
    seam[4..4 + head].copy_from_slice(&input[..head]);
    let windows = seam[..4 + head].windows(END_OF_DATA.len());
    if let Some(at) = windows
        .enumerate()
        .find_map(|(at, w)| (w == END_OF_DATA).then_some(at))
    {
        return Some(at + END_OF_DATA.len() - 4);
    }
    for at in finder.find_iter(input) {
        // What begins before this piece was seen above.
        if at > 0 && input[at - 1..].starts_with(END_OF_DATA) {
            return Some(at - 1 + END_OF_DATA.len());
        }
    }
    if head == 4 {
        tail.copy_from_slice(&input[input.len() - 4..]);
    } else {
        tail.copy_from_slice(&seam[head..head + 4]);
    }
    None
}

/// Sends what is queued, once; returns whether the connection goes on.
fn send(connection: &mut Connection, synced: u64, registry: &Registry, key: usize) -> bool {
    if connection.replies.is_empty() || connection.hold > synced {
        return true;
    }
    match connection.stream.write(&connection.replies) {
        Ok(len) if len == connection.replies.len() => connection.replies.clear(),
        Ok(len) => drop(connection.replies.drain(..len)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(_) => return false,
    }
    if connection.replies.is_empty() {
        return !connection.closes;
    }
    if !connection.wants_write {
        connection.wants_write = true;
        let both = Interest::READABLE | Interest::WRITABLE;
        return registry
            .reregister(&mut connection.stream, Token(key), both)
            .is_ok();
    }
    true
}
