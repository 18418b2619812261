//! The raw generator: the least work that an SMTP load generator can do on this kernel.
//!
//! One thread, edge-triggered epoll, all octets prepared before the first connection, one send for each wake-up of a
//! session; it counts replies and does not read them. Every message is the same. What `smtp-loadgen` costs beyond it
//! is the price of its own work: planned messages that state who they are, parsed replies, clocks, histograms.
//!
//! ```text
//! cargo bench --bench raw_generator -- ADDRESS [--sessions N] [--seconds S] [--warmup S] [--size BYTES]
//!     [--mode lock-step|pipelined|bdat] [--connection-per-message [--quit-behind]] [--busy-poll]
//!     [--congestion NAME] [--latency] | [--idle]
//! ```
//!
//! `--quit-behind` sends QUIT behind the end of data. `--latency` adds the time from the end of data to its reply and
//! of whole transactions. `--idle` sends nothing: it waits until all sessions are greeted, prints how long that took,
//! and keeps them until its standard input ends. Prints one line: words and numbers in turn, times in us. Exits with 1
//! when the target refuses anything or closes early: a yardstick has no other way.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use memchr::memchr_iter;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};

const READ_BYTES: usize = 64 << 10;

struct Arguments {
    address: SocketAddr,
    sessions: usize,
    seconds: f64,
    warmup: f64,
    size: usize,
    mode: String,
    per_message: bool,
    quit_behind: bool,
    busy_poll: bool,
    congestion: Option<String>,
    latency: bool,
    idle: bool,
}

impl Arguments {
    fn read() -> Result<Option<Self>, String> {
        let mut address = None;
        let mut arguments = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 25)),
            sessions: 64,
            seconds: 1.0,
            warmup: 0.1,
            size: 1024,
            mode: "lock-step".into(),
            per_message: false,
            quit_behind: false,
            busy_poll: false,
            congestion: None,
            latency: false,
            idle: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            let number = |text: String| text.parse::<f64>().map_err(|e| format!("{text}: {e}"));
            match word.as_str() {
                // `cargo bench` passes it.
                "--bench" => {}
                "--sessions" => arguments.sessions = (number(value()?)? as usize).max(1),
                "--seconds" => arguments.seconds = number(value()?)?,
                "--warmup" => arguments.warmup = number(value()?)?,
                "--size" => arguments.size = number(value()?)? as usize,
                "--mode" => arguments.mode = value()?,
                "--connection-per-message" => arguments.per_message = true,
                "--quit-behind" => arguments.quit_behind = true,
                "--busy-poll" => arguments.busy_poll = true,
                "--congestion" => arguments.congestion = Some(value()?),
                "--latency" => arguments.latency = true,
                "--idle" => arguments.idle = true,
                _ => {
                    address = Some(
                        word.parse()
                            .map_err(|_| format!("{word}: not understood"))?,
                    )
                }
            }
        }
        let found = address.is_some();
        arguments.address = address.unwrap_or(arguments.address);
        Ok(found.then_some(arguments))
    }
}

/// Octets to send, and how many replies follow them.
struct Step {
    bytes: Vec<u8>,
    replies: u32,
    /// The message ends with it.
    ends: bool,
}

/// The steps of a connection: greeting and EHLO, then those of a message, then those of a farewell.
struct Script {
    steps: Vec<Step>,
    /// Where a message begins.
    message: usize,
    /// Where the steps of a message end; a kept session goes back to its beginning there.
    farewell: usize,
    per_message: bool,
}

impl Script {
    fn new(arguments: &Arguments) -> Result<Self, String> {
        let step = |text: &str, replies| Step {
            bytes: text.as_bytes().to_vec(),
            replies,
            ends: false,
        };
        let mut steps = vec![step("", 1), step("EHLO raw.example\r\n", 1)];
        let message = steps.len();
        let (mail, rcpt) = (
            "MAIL FROM:<sender@raw.example>\r\n",
            "RCPT TO:<user@test.example>\r\n",
        );
        let mut body = body(arguments.size);
        match arguments.mode.as_str() {
            "lock-step" => {
                steps.extend([step(mail, 1), step(rcpt, 1), step("DATA\r\n", 1)]);
            }
            "pipelined" => steps.push(step(&format!("{mail}{rcpt}DATA\r\n"), 3)),
            "bdat" => {
                let mut bytes = format!("{mail}{rcpt}BDAT {} LAST\r\n", body.len()).into_bytes();
                bytes.append(&mut body);
                steps.push(Step {
                    bytes,
                    replies: 3,
                    ends: true,
                });
            }
            other => return Err(format!("--mode {other}: lock-step, pipelined or bdat")),
        }
        if arguments.mode != "bdat" {
            body.extend_from_slice(b".\r\n");
            steps.push(Step {
                bytes: body,
                replies: 1,
                ends: true,
            });
        }
        let mut farewell = steps.len();
        if arguments.per_message {
            if arguments.quit_behind {
                let last = &mut steps[farewell - 1];
                last.bytes.extend_from_slice(b"QUIT\r\n");
                last.replies += 1;
            } else {
                steps.push(step("QUIT\r\n", 1));
                farewell += 1;
            }
        }
        Ok(Self {
            steps,
            message,
            farewell,
            per_message: arguments.per_message,
        })
    }
}

/// A header and lines of 62 letters.
fn body(size: usize) -> Vec<u8> {
    let mut body = b"From: <sender@raw.example>\r\nSubject: raw\r\n\r\n".to_vec();
    while body.len() + 64 <= size {
        body.extend_from_slice(&[b'x'; 62]);
        body.extend_from_slice(b"\r\n");
    }
    let rest = size.saturating_sub(body.len());
    if rest > 2 {
        body.resize(body.len() + rest - 2, b'x');
        body.extend_from_slice(b"\r\n");
    }
    body
}

struct Session {
    stream: TcpStream,
    step: usize,
    /// Octets of the step that were sent.
    sent: usize,
    /// Replies of the step that are still to come.
    left: u32,
    /// First octets of a reply line that was cut.
    line: [u8; 4],
    line_len: usize,
    wants_write: bool,
    begun: Instant,
    ended: Instant,
}

fn main() -> io::Result<()> {
    let arguments = match Arguments::read() {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            println!("raw_generator needs a target: cargo bench --bench raw_generator -- ADDRESS");
            return Ok(());
        }
        Err(text) => return Err(io::Error::other(text)),
    };
    if arguments.idle {
        return idle(&arguments);
    }
    let script = Script::new(&arguments).map_err(io::Error::other)?;
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut buf = vec![0; READ_BYTES];
    let start = Instant::now();
    let mut sessions = Vec::with_capacity(arguments.sessions);
    for token in 0..arguments.sessions {
        sessions.push(connect(&arguments, poll.registry(), token)?);
    }
    let mut messages = 0u64;
    let mut latency = [(); 2]
        .map(|()| Histogram::<u64>::new_with_bounds(64, 60_000_000_000, 3).expect("valid bounds"));
    let warm = Duration::from_secs_f64(arguments.warmup);
    let end = warm + Duration::from_secs_f64(arguments.seconds);
    let mut measured: Option<(Duration, u64, u64)> = None;
    let pause = arguments.busy_poll.then_some(Duration::ZERO);
    let (elapsed, cpu_ns) = loop {
        let elapsed = start.elapsed();
        if measured.is_none() && elapsed >= warm {
            measured = Some((elapsed, cpu_time_ns()?, messages));
            latency.iter_mut().for_each(Histogram::reset);
        }
        if elapsed >= end {
            break (elapsed, cpu_time_ns()?);
        }
        let next = if measured.is_none() { warm } else { end };
        let pause = pause.unwrap_or(next - elapsed);
        match poll.poll(&mut events, Some(pause)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            let Token(key) = event.token();
            let session = &mut sessions[key];
            if event.is_error() {
                return Err(session.stream.take_error()?.unwrap_or_else(|| refused("")));
            }
            let done = if event.is_readable() {
                read(session, &mut buf)?
            } else {
                false
            };
            if done {
                let step = &script.steps[session.step];
                if step.ends {
                    messages += 1;
                    if arguments.latency {
                        let now = Instant::now();
                        latency[0].saturating_record((now - session.ended).as_nanos() as u64);
                        latency[1].saturating_record((now - session.begun).as_nanos() as u64);
                    }
                }
                session.step += 1;
                if session.step == script.farewell && script.per_message {
                    *session = connect(&arguments, poll.registry(), key)?;
                    continue;
                }
                if session.step == script.farewell {
                    session.step = script.message;
                }
                if arguments.latency && session.step == script.message {
                    session.begun = Instant::now();
                }
                session.sent = 0;
                session.left = script.steps[session.step].replies;
            }
            let step = &script.steps[session.step];
            if session.sent < step.bytes.len() {
                write(session, step, arguments.latency, poll.registry(), key)?;
            }
        }
    };
    let (from, cpu_before, before) = measured.unwrap_or_default();
    let (wall, cpu_ns) = (elapsed - from, cpu_ns - cpu_before);
    let count = messages - before;
    print!(
        "messages {count} rate {:.0} cpu_us {:.3} core {:.3}",
        count as f64 / wall.as_secs_f64(),
        cpu_ns as f64 / 1e3 / count.max(1) as f64,
        cpu_ns as f64 / wall.as_nanos() as f64,
    );
    if arguments.latency {
        for (name, histogram) in ["end", "transaction"].iter().zip(&latency) {
            for share in [0.5, 0.99, 0.999] {
                let us = histogram.value_at_quantile(share) as f64 / 1e3;
                print!(" {name}_p{} {us:.1}", share * 100.0);
            }
        }
    }
    println!();
    Ok(())
}

/// Connects in groups of this size, so that the target's listen queue does not overflow.
const CONNECTS_AT_A_TIME: usize = 256;

/// Opens all sessions and keeps them.
fn idle(arguments: &Arguments) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut buf = vec![0; 1 << 10];
    let start = Instant::now();
    let mut sessions: Vec<Session> = Vec::with_capacity(arguments.sessions);
    let mut greeted = 0;
    while greeted < arguments.sessions {
        while sessions.len() < arguments.sessions && sessions.len() - greeted < CONNECTS_AT_A_TIME {
            let token = sessions.len();
            sessions.push(connect(arguments, poll.registry(), token)?);
        }
        match poll.poll(&mut events, Some(Duration::from_secs(30))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        if events.is_empty() {
            return Err(refused("no greeting for 30 s"));
        }
        for event in &events {
            let Token(key) = event.token();
            if sessions[key].left > 0 && event.is_readable() && read(&mut sessions[key], &mut buf)?
            {
                greeted += 1;
            }
        }
    }
    println!(
        "idle {} seconds {:.3}",
        arguments.sessions,
        start.elapsed().as_secs_f64()
    );
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

fn refused(text: &str) -> io::Error {
    io::Error::other(format!("the target refused: {text}"))
}

/// CPU time of this thread.
fn cpu_time_ns() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    first.ok_or_else(|| io::Error::other("schedstat is not understood"))
}

fn connect(arguments: &Arguments, registry: &Registry, key: usize) -> io::Result<Session> {
    let domain = socket2::Domain::for_address(arguments.address);
    let kind = socket2::Type::STREAM.nonblocking();
    let socket = socket2::Socket::new(domain, kind, Some(socket2::Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if arguments.idle {
        // Its port is free again at once, so that the next run does not have to look for one longer than this.
        socket.set_linger(Some(Duration::ZERO))?;
    }
    if let Some(name) = &arguments.congestion {
        socket.set_tcp_congestion(name.as_bytes())?;
    }
    match socket.connect(&arguments.address.into()) {
        // EINPROGRESS.
        Err(error) if error.raw_os_error() == Some(115) => {}
        other => other?,
    }
    let mut stream = TcpStream::from_std(socket.into());
    // The server speaks first, so that nothing has to be written before something can be read.
    registry.register(&mut stream, Token(key), Interest::READABLE)?;
    let now = Instant::now();
    Ok(Session {
        stream,
        step: 0,
        sent: 0,
        left: 1,
        line: [0; 4],
        line_len: 0,
        wants_write: false,
        begun: now,
        ended: now,
    })
}

/// Reads once; returns whether all replies of the step have come.
fn read(session: &mut Session, buf: &mut [u8]) -> io::Result<bool> {
    let len = match session.stream.read(buf) {
        Ok(0) => return Err(refused("closed")),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
        other => other?,
    };
    let mut start = 0;
    for end in memchr_iter(b'\n', &buf[..len]) {
        let (first, fourth) = if session.line_len == 0 {
            (buf[start], buf[(start + 3).min(end)])
        } else {
            keep(session, &buf[start..end]);
            (session.line[0], session.line[3])
        };
        session.line_len = 0;
        start = end + 1;
        if fourth == b'-' {
            continue;
        }
        if first != b'2' && first != b'3' {
            return Err(refused(&String::from_utf8_lossy(&buf[..len])));
        }
        session.left = session
            .left
            .checked_sub(1)
            .ok_or_else(|| refused("an unasked reply"))?;
    }
    keep(session, &buf[start..len]);
    Ok(session.left == 0)
}

fn keep(session: &mut Session, part: &[u8]) {
    for byte in part.iter().take(4 - session.line_len) {
        session.line[session.line_len] = *byte;
        session.line_len += 1;
    }
}

fn write(
    session: &mut Session,
    step: &Step,
    latency: bool,
    registry: &Registry,
    key: usize,
) -> io::Result<()> {
    loop {
        if latency {
            session.ended = Instant::now();
        }
        match session.stream.write(&step.bytes[session.sent..]) {
            Ok(len) => session.sent += len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
        if session.sent == step.bytes.len() {
            return Ok(());
        }
    }
    if !session.wants_write {
        session.wants_write = true;
        let both = Interest::READABLE | Interest::WRITABLE;
        registry.reregister(&mut session.stream, Token(key), both)?;
    }
    Ok(())
}
