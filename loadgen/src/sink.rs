//! The built-in sink: a receiver that does the least work, and on request the wrong work.
//!
//! Promises: answers every command, keeps nothing unless told where, and commits each fault it is
//! told to exactly on every nth message. It is what `selftest` measures this program against and
//! what the tests accuse of losing mail. Does not: check addresses or sequences beyond what a
//! client of this program needs, or protect itself from hostile peers.

use memchr::memmem::Finder;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What the sink does wrong. Each number n means every nth message; 0 means never.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Answer 250 and keep nothing.
    pub lose: u64,
    /// Keep two copies.
    pub duplicate: u64,
    /// Flip one bit of the copy kept.
    pub corrupt: u64,
    /// Keep the message and reset the connection without an answer.
    pub reset: u64,
    /// Answer 451 and keep nothing.
    pub defer: u64,
    /// Answer 554 and keep nothing.
    pub reject: u64,
    /// Answer 421 to MAIL and close.
    pub shut: u64,
    /// Stop reading for this long, this long after the first message.
    pub freeze: Option<(Duration, Duration)>,
    /// Send this instead of every greeting.
    pub greeting: Option<Vec<u8>>,
    /// Close right after the greeting.
    pub hang_up: bool,
    /// Never answer anything after the greeting.
    pub silent: bool,
    /// Offer neither PIPELINING nor CHUNKING nor SIZE.
    pub plain: bool,
    /// Answer 502 to EHLO.
    pub no_ehlo: bool,
}

/// What the sink saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Messages whose end was read.
    pub messages: AtomicU64,
    /// Bytes read.
    pub bytes: AtomicU64,
}

/// What follows a command or message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    GoOn,
    Close,
    Reset,
}

enum State {
    Command,
    /// Reading message text; how much of CRLF "." CRLF has matched.
    Data(usize),
    /// Reading a chunk: bytes left, and whether it is the last.
    Chunk(u64, bool),
}

struct Peer {
    stream: TcpStream,
    state: State,
    line: Vec<u8>,
    body: Vec<u8>,
    out: Vec<u8>,
    then: Then,
}

const END: &[u8; 5] = b"\r\n.\r\n";
const LISTENER: Token = Token(usize::MAX);

/// Keeps messages and commits faults.
struct Keeper {
    faults: Faults,
    store: Option<PathBuf>,
    count: u64,
    kept: u64,
    mails: u64,
}

impl Keeper {
    fn keep(&mut self, body: &[u8]) -> io::Result<()> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        self.kept += 1;
        std::fs::write(store.join(format!("{:08}.eml", self.kept)), body)
    }

    /// Handles a whole message; returns the reply and what follows.
    fn message(&mut self, body: &mut [u8]) -> io::Result<(&'static [u8], Then)> {
        self.count += 1;
        let hit = |every: u64| every != 0 && self.count.is_multiple_of(every);
        if hit(self.faults.defer) {
            return Ok((b"451 4.3.0 Try again later\r\n", Then::GoOn));
        }
        if hit(self.faults.reject) {
            return Ok((b"554 5.6.0 Not wanted\r\n", Then::GoOn));
        }
        let (lose, duplicate, reset) = (
            hit(self.faults.lose),
            hit(self.faults.duplicate),
            hit(self.faults.reset),
        );
        if hit(self.faults.corrupt) {
            let middle = body.len() - 100;
            body[middle] ^= 1;
        }
        if !lose {
            self.keep(body)?;
        }
        if duplicate {
            self.keep(body)?;
        }
        Ok((
            b"250 2.0.0 Ok\r\n",
            if reset { Then::Reset } else { Then::GoOn },
        ))
    }
}

impl Peer {
    /// A client that has just connected, with what it hears first.
    fn greeted(stream: TcpStream, faults: &Faults) -> Self {
        // A peer that is gone already shows as an error at the first read.
        let _ = stream.set_nodelay(true);
        let greeting = faults.greeting.as_deref();
        Self {
            stream,
            state: State::Command,
            line: Vec::new(),
            body: Vec::new(),
            out: greeting.unwrap_or(b"220 sink.example ESMTP\r\n").to_vec(),
            then: if faults.hang_up {
                Then::Close
            } else {
                Then::GoOn
            },
        }
    }
}

/// Does nothing for this long.
fn freeze(length: Duration) {
    let until = Instant::now() + length;
    while Instant::now() < until {
        std::thread::park_timeout(until - Instant::now());
    }
}

/// Serves until `stop`. `store` is a directory that gets one file for each message.
///
/// **Errors**: the poll, the listener or the store failed.
pub fn serve(
    listener: std::net::TcpListener,
    faults: Faults,
    store: Option<PathBuf>,
    seen: &Seen,
    stop: &AtomicBool,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(listener);
    let mut poll = Poll::new()?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut peers: Vec<Option<Peer>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut input = vec![0; 64 << 10];
    let keeping = store.is_some() || faults.corrupt > 0;
    let finder = Finder::new(END);
    let mut keeper = Keeper {
        faults,
        store,
        count: 0,
        kept: 0,
        mails: 0,
    };
    let mut first: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) {
        if let Some((after, length)) = keeper.faults.freeze
            && first.is_some_and(|first| first.elapsed() >= after)
        {
            keeper.faults.freeze = None;
            freeze(length);
        }
        match poll.poll(&mut events, Some(Duration::from_millis(20))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    seen.connections.fetch_add(1, Ordering::Relaxed);
                    let index = free.pop().unwrap_or_else(|| {
                        peers.push(None);
                        peers.len() - 1
                    });
                    let both = Interest::READABLE | Interest::WRITABLE;
                    poll.registry().register(&mut stream, Token(index), both)?;
                    let mut peer = Peer::greeted(stream, &keeper.faults);
                    if flush(&mut peer) {
                        peers[index] = Some(peer);
                    } else {
                        free.push(index);
                    }
                }
                continue;
            }
            let index = event.token().0;
            let Some(peer) = &mut peers[index] else {
                continue;
            };
            let mut alive = true;
            loop {
                match peer.stream.read(&mut input) {
                    Ok(0) => alive = false,
                    Ok(len) => {
                        seen.bytes.fetch_add(len as u64, Ordering::Relaxed);
                        let before = keeper.count;
                        if !keeper.faults.silent {
                            receive(peer, &input[..len], &mut keeper, &finder, keeping)?;
                        }
                        if keeper.count > before {
                            first.get_or_insert_with(Instant::now);
                            seen.messages
                                .fetch_add(keeper.count - before, Ordering::Relaxed);
                        }
                        if len == input.len() || event.is_read_closed() {
                            continue;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => alive = false,
                }
                break;
            }
            if !flush(peer) || !alive {
                peers[index] = None;
                free.push(index);
            }
        }
    }
    Ok(())
}

/// Sends what is queued; returns whether the connection goes on.
fn flush(peer: &mut Peer) -> bool {
    while !peer.out.is_empty() {
        match peer.stream.write(&peer.out) {
            Ok(len) => drop(peer.out.drain(..len)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    if peer.then == Then::Reset {
        let _ = socket2::SockRef::from(&peer.stream).set_linger(Some(Duration::ZERO));
    }
    peer.then == Then::GoOn
}

fn receive(
    peer: &mut Peer,
    mut input: &[u8],
    keeper: &mut Keeper,
    finder: &Finder<'_>,
    keeping: bool,
) -> io::Result<()> {
    while !input.is_empty() && peer.then == Then::GoOn {
        match peer.state {
            State::Command => {
                let Some(end) = memchr::memchr(b'\n', input) else {
                    peer.line.extend_from_slice(input);
                    break;
                };
                let rest = &input[end + 1..];
                if peer.line.is_empty() {
                    command(peer, &input[..end], keeper);
                } else {
                    let mut line = std::mem::take(&mut peer.line);
                    line.extend_from_slice(&input[..end]);
                    command(peer, &line, keeper);
                }
                input = rest;
            }
            State::Data(matched) => {
                let (used, matched) = find_end(input, matched, finder);
                if keeping {
                    peer.body.extend_from_slice(&input[..used]);
                }
                input = &input[used..];
                peer.state = State::Data(matched);
                if matched == END.len() {
                    if keeping {
                        unstuff(&mut peer.body);
                    }
                    message(peer, keeper)?;
                }
            }
            State::Chunk(left, last) => {
                let used = left.min(input.len() as u64) as usize;
                if keeping {
                    peer.body.extend_from_slice(&input[..used]);
                }
                input = &input[used..];
                peer.state = State::Chunk(left - used as u64, last);
                if left == used as u64 {
                    if last {
                        message(peer, keeper)?;
                    } else {
                        peer.out.extend_from_slice(b"250 2.0.0 Chunk\r\n");
                        peer.state = State::Command;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Looks for the end of data; returns bytes used and how much of it has matched.
fn find_end(input: &[u8], mut matched: usize, finder: &Finder<'_>) -> (usize, usize) {
    let mut used = 0;
    while matched > 0 && used < input.len() {
        let byte = input[used];
        used += 1;
        if byte == END[matched] {
            matched += 1;
            if matched == END.len() {
                return (used, matched);
            }
        } else {
            matched = usize::from(byte == b'\r');
        }
    }
    if matched > 0 {
        return (used, matched);
    }
    if let Some(at) = finder.find(&input[used..]) {
        return (used + at + END.len(), END.len());
    }
    let rest = &input[used..];
    let matched = (1..END.len())
        .rev()
        .find(|n| rest.ends_with(&END[..*n]))
        .unwrap_or(0);
    (input.len(), matched)
}

/// Takes off the terminator and the doubled dots.
fn unstuff(body: &mut Vec<u8>) {
    body.truncate(body.len() - 3);
    let mut to = 0;
    let mut line_start = true;
    for from in 0..body.len() {
        let byte = body[from];
        if !(line_start && byte == b'.') {
            body[to] = byte;
            to += 1;
        }
        line_start = byte == b'\n';
    }
    body.truncate(to);
}

fn message(peer: &mut Peer, keeper: &mut Keeper) -> io::Result<()> {
    let (reply, then) = keeper.message(&mut peer.body)?;
    peer.body.clear();
    peer.state = State::Command;
    peer.then = then;
    if then == Then::GoOn {
        peer.out.extend_from_slice(reply);
    }
    Ok(())
}

fn command(peer: &mut Peer, line: &[u8], keeper: &mut Keeper) {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let reply: &[u8] = match line.get(..4).unwrap_or(line) {
        b"MAIL" => {
            keeper.mails += 1;
            if keeper.faults.shut != 0 && keeper.mails.is_multiple_of(keeper.faults.shut) {
                peer.then = Then::Close;
                b"421 4.3.2 Come back later\r\n"
            } else {
                b"250 2.1.0 Ok\r\n"
            }
        }
        b"RCPT" => b"250 2.1.5 Ok\r\n",
        b"DATA" => {
            // The line end of DATA counts: a dot may follow at once.
            peer.state = State::Data(2);
            b"354 Go ahead\r\n"
        }
        b"BDAT" => {
            let words = std::str::from_utf8(line).unwrap_or("");
            let mut words = words.split(' ').skip(1);
            match words.next().and_then(|size| size.parse().ok()) {
                Some(size) => {
                    peer.state = State::Chunk(size, words.next() == Some("LAST"));
                    b""
                }
                None => b"501 5.5.4 BDAT SIZE [LAST]\r\n",
            }
        }
        b"EHLO" if keeper.faults.no_ehlo => b"502 5.5.1 No\r\n",
        b"EHLO" if keeper.faults.plain => b"250 sink.example\r\n",
        b"EHLO" => {
            b"250-sink.example\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n250 SIZE 0\r\n"
        }
        b"QUIT" => {
            peer.then = Then::Close;
            b"221 2.0.0 Bye\r\n"
        }
        b"HELO" | b"RSET" | b"NOOP" => b"250 2.0.0 Ok\r\n",
        _ => b"500 5.5.2 What?\r\n",
    };
    peer.out.extend_from_slice(reply);
}

/// A sink on a thread of its own, on a free port of 127.0.0.1.
pub struct Running {
    /// Where it listens.
    pub address: std::net::SocketAddr,
    /// What it saw.
    pub seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<io::Result<()>>>,
}

impl Running {
    /// Starts one.
    ///
    /// **Errors**: no port or no thread is to be had.
    pub fn start(faults: Faults, store: Option<PathBuf>) -> io::Result<Self> {
        Self::bind("127.0.0.1:0", faults, store)
    }

    /// Starts one at a given address.
    ///
    /// **Errors**: the address is taken, or no thread is to be had.
    pub fn bind(address: &str, faults: Faults, store: Option<PathBuf>) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        // std listens with a queue of 128; a second call makes it as long as the kernel allows.
        socket2::SockRef::from(&listener).listen(4096)?;
        let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let (their_seen, their_stop) = (seen.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("sink".into())
            .spawn(move || serve(listener, faults, store, &their_seen, &their_stop))?;
        Ok(Self {
            address,
            seen,
            stop,
            thread: Some(thread),
        })
    }

    /// Whether it ended by itself, which only an error does.
    pub fn is_finished(&self) -> bool {
        self.thread
            .as_ref()
            .is_none_or(std::thread::JoinHandle::is_finished)
    }

    /// Ends it.
    ///
    /// **Errors**: what `serve` met.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread
                .join()
                .map_err(|_| io::Error::other("the sink panicked"))?,
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_data_is_found_at_any_split() {
        let finder = Finder::new(END);
        let text = b"a\r\n..\r\n.x\r\r\n.\r\nQUIT";
        for first in 0..text.len() {
            for second in first..text.len() {
                let (mut matched, mut at) = (2, 0);
                for part in [&text[..first], &text[first..second], &text[second..]] {
                    if matched == END.len() {
                        break;
                    }
                    let (used, now) = find_end(part, matched, &finder);
                    matched = now;
                    at += used;
                }
                assert_eq!(
                    (matched, &text[at..]),
                    (5, &b"QUIT"[..]),
                    "{first} {second}"
                );
            }
        }
    }
}
