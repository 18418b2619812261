//! What the parts of the receiver cost in instructions, counted and not timed.
//!
//! `benches/instructions` runs this program under callgrind, which adds up what [`counted`] runs and nothing else, and
//! compares with `benches/instructions.txt`. By itself the program only says which cases there are:
//!
//! ```text
//! cargo bench --bench instructions               names the cases
//! cargo bench --bench instructions -- CASE ...   runs these; `all` runs those that tests/run compares
//! ```
//!
//! Nothing here depends on time, addresses or chance: the same program counts the same instructions. Each case is run
//! before it is counted, so that buffers have their size; a count is that of one unit, whose name the case says.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::hint::black_box;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::time::Duration;

use ringmx::buffer::{Pool, Urgency};
use ringmx::clock::Instant;
use ringmx::conn::{Stream, Token};
use ringmx::envelope::{Facts, Field};
use ringmx::limits::{CHUNK_LARGE_BYTES, RECORD_HEADER_BYTES};
use ringmx::logger::Logger;
use ringmx::message::Message;
use ringmx::metrics::Metrics;
use ringmx::ringlog::backing::MemoryBacking;
use ringmx::ringlog::commit::{SyncDone, SyncRequest};
use ringmx::ringlog::format::DATA_OFFSET;
use ringmx::ringlog::recover::{self, NewRing, OpenOptions};
use ringmx::ringlog::writer::{Log, Survive};
use ringmx::server::{Committer, Listener, Options, Server, Storage};
use ringmx::smtp::command;
use ringmx::smtp::data::{BareNewlines, Checker, Decoder};
use ringmx::smtp::parameter::Offered;
use ringmx::smtp::parameter::{parse_mail, parse_rcpt};
use ringmx::smtp::reply::{self, Reply};
use ringmx::smtp::sasl::{Binding, BindingData};
use ringmx::smtp::session::{Context, ContextOptions, Session};
use ringmx::smtp::sink::{
    CloseReason, Completion, MessageFacts, PasswordVerdict, Question, Sink, Verb, Verdict,
};
use ringmx::users::Verifier;

/// A case: its name, whether tests/run compares it, what one unit is, and what runs it.
type Case = (&'static str, bool, &'static str, fn());

const CASES: &[Case] = &[
    ("parse-mail", true, "line", || lines(MAIL)),
    ("parse-rcpt", true, "line", || lines(RCPT)),
    ("decode-1KiB", true, "body", || decode(1 << 10, 200)),
    ("decode-1MiB", true, "body", || decode(1 << 20, 4)),
    ("check-1MiB", true, "body", || check(1 << 20, 4)),
    ("session-lock-step", true, "message", || {
        session(Way::LockStep)
    }),
    ("session-pipelined", true, "message", || {
        session(Way::Pipelined)
    }),
    ("append-1KiB", true, "message", || append(1 << 10, 300)),
    ("append-100KiB", true, "message", || append(100 << 10, 30)),
    ("turn-lock-step", true, "message", || {
        turn(Some(Survive::Power), 64, Way::LockStep, 1 << 10)
    }),
    ("turn-pipelined", true, "message", || {
        turn(Some(Survive::Power), 64, Way::Pipelined, 1 << 10)
    }),
    ("turn-bdat", true, "message", || {
        turn(Some(Survive::Power), 64, Way::Bdat, 1 << 10)
    }),
    ("turn-100KiB", true, "message", || {
        turn(Some(Survive::Power), 8, Way::Pipelined, 100 << 10)
    }),
    ("discard-lock-step", true, "message", || {
        turn(None, 64, Way::LockStep, 1 << 10)
    }),
    ("discard-pipelined", true, "message", || {
        turn(None, 64, Way::Pipelined, 1 << 10)
    }),
    ("discard-bdat", true, "message", || {
        turn(None, 64, Way::Bdat, 1 << 10)
    }),
    ("greet-10000", true, "session", || greet(10_000)),
    ("greet-1000000", false, "session", || greet(1_000_000)),
    ("events-10000", true, "event", || events(10_000)),
    ("events-1000000", false, "event", || events(1_000_000)),
    ("timers-10000", true, "timer", || timers(10_000)),
    ("timers-1000000", false, "timer", || timers(1_000_000)),
];

const MAIL: &[u8] = b"MAIL FROM:<someone.with.a.name@client.example.org> SIZE=1024 BODY=8BITMIME";
const RCPT: &[u8] = b"RCPT TO:<someone.else@server.example.org>";
const WALL_NS: u64 = 1_700_000_000_000_000_000;

fn main() {
    // Cargo passes --bench.
    let asked: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    for (name, compared, unit, run) in CASES {
        let is_asked = |word: &String| word == name || (word == "all" && *compared);
        if asked.is_empty() {
            println!("{name}, counted for one {unit}");
        } else if asked.iter().any(is_asked) {
            print!("{name} {unit} ");
            run();
        }
    }
}

/// What callgrind counts: everything that `work` does. Prints how many units that are.
#[inline(never)]
fn counted(units: usize, work: &mut dyn FnMut()) {
    work();
    black_box(units);
}

/// Warms up, and has the same work counted.
fn measure(units: usize, mut work: impl FnMut()) {
    work();
    work();
    println!("{units}");
    counted(units, &mut work);
}

/// A text of `size` octets in lines of 78, CRLF included.
fn text(size: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(size + 78);
    while text.len() < size {
        text.resize(text.len() + 76, b'x');
        text.extend_from_slice(b"\r\n");
    }
    text.truncate(size - 2);
    text.extend_from_slice(b"\r\n");
    text
}

fn lines(line: &'static [u8]) {
    measure(1_000, || {
        for _ in 0..1_000 {
            match command::parse(black_box(line)).command {
                Ok(command::Command::Mail { path, parameters }) => {
                    black_box((path, parse_mail(parameters, Offered::NONE).is_ok()));
                }
                Ok(command::Command::Rcpt { path, parameters }) => {
                    black_box((path, parse_rcpt(parameters, Offered::NONE).is_ok()));
                }
                _ => unreachable!("both lines are right"),
            }
        }
    });
}

/// Decodes a body of `size` octets with its end, in parts as the receiver has them.
fn decode(size: usize, rounds: usize) {
    let mut body = text(size);
    body.extend_from_slice(b".\r\n");
    measure(rounds, || {
        for _ in 0..rounds {
            let mut decoder = Decoder::new(BareNewlines::Reject);
            for part in body.chunks_mut(CHUNK_LARGE_BYTES) {
                black_box(decoder.decode_in_place(black_box(part)));
            }
            assert_eq!(decoder.facts().octets, size as u64);
        }
    });
}

fn check(size: usize, rounds: usize) {
    let body = text(size);
    measure(rounds, || {
        for _ in 0..rounds {
            let mut checker = Checker::new(BareNewlines::Reject);
            for part in body.chunks(CHUNK_LARGE_BYTES) {
                checker.check(black_box(part), |piece| {
                    black_box(piece);
                });
            }
            checker.finish(|_| ());
            assert_eq!(checker.facts().octets, size as u64);
        }
    });
}

/// Takes everything and keeps nothing.
#[derive(Default)]
struct Nowhere {
    replies: u64,
    octets: u64,
}

impl Sink for Nowhere {
    fn has_room(&self) -> bool {
        true
    }
    fn commits_pending(&self) -> u32 {
        0
    }
    fn command(&mut self, verb: Verb) {
        black_box(verb);
    }
    fn reply(&mut self, reply: Reply) {
        assert!(reply.row().code < 400, "{}", reply.row().name);
        self.replies += 1;
    }
    fn reply_configured(&mut self, _: Reply, wire: &[u8]) {
        black_box(wire);
        self.replies += 1;
    }
    fn verifier(&mut self, _: &str) -> Option<Verifier> {
        None
    }
    fn check_password(&mut self, _: &str, _: &[u8]) -> Option<PasswordVerdict> {
        None
    }
    fn channel_binding(&mut self, _: Binding) -> Option<BindingData> {
        None
    }
    fn nonce(&mut self) -> Vec<u8> {
        Vec::new()
    }
    fn ask(&mut self, question: Question<'_>) -> Option<Verdict> {
        black_box(question);
        Some(Verdict::Accept)
    }
    fn begin_message(&mut self) -> bool {
        true
    }
    fn envelope_room(&self) -> usize {
        usize::MAX
    }
    fn envelope_field(&mut self, field: Field, parts: &[&[u8]]) -> bool {
        black_box((field, parts));
        true
    }
    fn begin_body(&mut self, trace: &[u8], id_at: usize) -> bool {
        black_box((trace, id_at));
        true
    }
    fn body_room(&self) -> usize {
        usize::MAX
    }
    fn body(&mut self, bytes: &[u8]) {
        self.octets += black_box(bytes).len() as u64;
    }
    fn end_of_message(&mut self, facts: &MessageFacts) -> Completion {
        black_box(facts);
        self.replies += 1;
        Completion::Queued
    }
    fn abort_message(&mut self) {}
    fn close(&mut self, _: CloseReason) {}
}

fn context() -> Context {
    Context::new(ContextOptions {
        server_name: "mx.example".into(),
        ..ContextOptions::default()
    })
    .expect("a good name")
}

/// How a client sends a message.
#[derive(Clone, Copy)]
enum Way {
    /// Each command by itself, then the content: four writes.
    LockStep,
    /// The commands, then the content: two writes.
    Pipelined,
    /// All of it in one write.
    Bdat,
}

/// The writes that one message comes in.
fn message(size: usize, way: Way) -> Vec<Vec<u8>> {
    let line = |line: &[u8]| [line, b"\r\n"].concat();
    let data = [&text(size)[..], b".\r\n"].concat();
    let (mail, rcpt) = (line(MAIL), line(RCPT));
    match way {
        Way::LockStep => vec![mail, rcpt, line(b"DATA"), data],
        Way::Pipelined => vec![[mail, rcpt, line(b"DATA")].concat(), data],
        Way::Bdat => {
            let chunk = line(format!("BDAT {size} LAST").as_bytes());
            vec![[mail, rcpt, chunk, text(size)].concat()]
        }
    }
}

fn session(way: Way) {
    const MESSAGES: usize = 100;
    let context = context();
    let (mut out, now) = (Nowhere::default(), Instant(1_000_000));
    let mut session = Session::new([192, 0, 2, 1].into());
    session.start(&context, &mut out);
    let parts = message(1 << 10, way);
    let mut take = |part: &[u8]| {
        let progress = session.receive(&context, black_box(part), now, WALL_NS, &mut out);
        assert_eq!(progress.consumed, part.len());
    };
    take(b"EHLO client.example\r\n");
    measure(MESSAGES, || {
        for part in parts.iter().cycle().take(MESSAGES * parts.len()) {
            take(part);
        }
    });
    assert_eq!(out.octets, 3 * (MESSAGES << 10) as u64);
}

/// A ring in memory of 16 MiB, so that a few rounds lap it.
fn ring(survive: Survive) -> Log<MemoryBacking> {
    let data_size = 16 << 20;
    let mut memory = MemoryBacking {
        bytes: vec![0; (DATA_OFFSET + data_size) as usize],
    };
    let new = NewRing {
        ring_id: [1; 16],
        ring_key: 2,
        data_size,
        created_ns: 3,
    };
    recover::format(&mut memory, &new).expect("it fits");
    let (log, _) = Log::open(memory, &OpenOptions::new(survive, 4)).expect("an empty ring");
    log
}

/// Collects messages in chunks, seals them and writes each; ends with a sync.
fn append(size: usize, messages: usize) {
    let mut log = ring(Survive::Power);
    let mut pool = Pool::new(16 << 20, 1 << 20);
    let body = text(size);
    let mut at = 1;
    measure(messages, || {
        for _ in 0..messages {
            log.begin_turn(at);
            at += 1;
            let mut message = Message::begin(&mut pool).expect("a chunk");
            message.envelope_field(&mut pool, Field::Client, &[&[0; 18]]);
            message.begin_body(&mut pool, &[b't'; 150], 100);
            message.body(&mut pool, black_box(&body), Urgency::Normal);
            let slot = log.reserve(message.payload_bytes()).expect("space");
            message.name(&mut pool, b"0-12345", Facts::default());
            let first = message.first();
            let (fragment, _) = message.fragment_from(&pool, first);
            let header = log.header(&slot, message.envelope_bytes(), fragment.crc);
            message.header_mut(&mut pool).copy_from_slice(&header);
            let padding = [0; RECORD_HEADER_BYTES];
            let mut parts = [IoSlice::new(&[]); 8];
            let (mut count, mut next) = (0, Some(first));
            while let Some(chunk) = next {
                let meta = pool.meta(chunk);
                parts[count] = IoSlice::new(&pool.bytes(chunk)[..meta.used as usize]);
                (count, next) = (count + 1, meta.next);
            }
            parts[count] = IoSlice::new(&padding[..slot.padding]);
            log.write(&parts[..=count]).expect("memory");
            message.free(&mut pool);
        }
        log.sync_inline(Instant(at * 1_000_000)).expect("memory");
    });
}

/// What a connection's client wrote and has been written.
#[derive(Default)]
struct Pipe {
    input: VecDeque<Rc<[u8]>>,
    taken: usize,
    output: u64,
    writes: u64,
}

#[derive(Clone, Default)]
struct PipeStream(Rc<RefCell<Pipe>>);

impl Stream for PipeStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        let Some(front) = pipe.input.front() else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let len = (front.len() - pipe.taken).min(buf.len());
        buf[..len].copy_from_slice(&front[pipe.taken..pipe.taken + len]);
        let is_over = pipe.taken + len == front.len();
        pipe.taken = if is_over { 0 } else { pipe.taken + len };
        if is_over {
            pipe.input.pop_front();
        }
        Ok(len)
    }
    fn peek(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        pipe.output += bytes.len() as u64;
        pipe.writes += 1;
        Ok(bytes.len())
    }
    fn want_writable(&mut self, _: Token) -> io::Result<()> {
        Ok(())
    }
    fn end_writing(&mut self) {}
}

/// Every sync ends in the turn behind it.
#[derive(Default)]
struct AtOnce(Option<u64>);

impl Committer for AtOnce {
    fn submit(&mut self, request: &SyncRequest<'_>) {
        self.0 = Some(request.target);
    }
    fn poll(&mut self) -> Option<SyncDone> {
        let target = self.0.take()?;
        Some(SyncDone {
            target,
            result: Ok(()),
            asked: Instant(0),
            began: Instant(0),
            took: Duration::from_micros(200),
        })
    }
}

type Receiver<S> = Server<S, MemoryBacking, AtOnce>;

fn receiver<S: Stream>(survive: Survive, sessions_max: usize, discard: bool) -> Receiver<S> {
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    let options = Options {
        sessions_max,
        pool_bytes: 32 << 20,
        message_bytes_max: 1 << 20,
        discard,
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
    };
    let storage = (!discard).then(|| Storage {
        log: ring(survive),
        committer: AtOnce::default(),
    });
    Server::new(
        options,
        vec![context()],
        vec![Listener::sink(([127, 0, 0, 1], 25).into())],
        storage,
        Metrics::new(Verb::COUNT, reply::ROWS.len()),
        Logger::disabled(),
        START,
    )
}

const START: Instant = Instant(1_000_000_000_000);

/// Turns of a whole server in which every session sends its next part; without `survive` nothing is stored.
fn turn(survive: Option<Survive>, sessions: usize, way: Way, size: usize) {
    const ROUNDS: usize = 10;
    let (discard, survive) = (survive.is_none(), survive.unwrap_or(Survive::Nothing));
    let mut server = receiver::<PipeStream>(survive, sessions, discard);
    let (mut now, mut clients) = (START, Vec::new());
    for client in 0..sessions {
        let stream = PipeStream::default();
        let hello: Rc<[u8]> = (*b"EHLO client.example\r\n").into();
        stream.0.borrow_mut().input.push_back(hello);
        let peer = ([10, 0, 0, client as u8], 4_242);
        server.begin_turn(now, WALL_NS);
        let token = server
            .accept(peer.into(), 0, |_| Ok(stream.clone()))
            .expect("a place");
        server.ready(token, true, false, false);
        server.end_turn();
        clients.push((stream, token));
    }
    let parts: Vec<Rc<[u8]>> = message(size, way).into_iter().map(Rc::from).collect();
    measure(ROUNDS * sessions, || {
        for _ in 0..ROUNDS {
            for part in &parts {
                now.0 += 1_000_000;
                server.begin_turn(now, WALL_NS);
                for (stream, token) in &clients {
                    stream.0.borrow_mut().input.push_back(Rc::clone(part));
                    server.ready(*token, true, false, false);
                }
                server.end_turn();
                server.shared.record_turn(1_000);
            }
            // The sync has ended; the 250s leave.
            server.begin_turn(now, WALL_NS);
            server.end_turn();
            server.shared.record_turn(1_000);
        }
    });
    let accepted = server.shared.metrics.messages_accepted;
    assert_eq!(accepted, (3 * ROUNDS * sessions) as u64);
    for (stream, _) in &clients {
        // One write for greeting and EHLO, one for each part of a message.
        let expected = 1 + 3 * ROUNDS * parts.len();
        assert_eq!(stream.0.borrow().writes, expected as u64);
    }
}

/// Clients that say nothing, but for the one that is told to say a line.
#[derive(Clone, Default)]
struct Silent(Rc<Cell<Option<&'static [u8]>>>);

impl Stream for Silent {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let line = self.0.take().ok_or(io::ErrorKind::WouldBlock)?;
        buf[..line.len()].copy_from_slice(line);
        Ok(line.len())
    }
    fn peek(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn want_writable(&mut self, _: Token) -> io::Result<()> {
        Ok(())
    }
    fn end_writing(&mut self) {}
}

/// The address of client number `client`, each in a network of its own.
fn peer(client: usize) -> (std::net::Ipv4Addr, u16) {
    (
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + client as u32),
        25,
    )
}

/// Opens `sessions`, 64 a turn, a millisecond apart; each gets its greeting. Returns their tokens.
fn open(server: &mut Receiver<Silent>, now: &mut Instant, sessions: usize) -> Vec<Token> {
    open_as(server, now, sessions, &Silent::default())
}

fn open_as(
    server: &mut Receiver<Silent>,
    now: &mut Instant,
    sessions: usize,
    stream: &Silent,
) -> Vec<Token> {
    let mut tokens = Vec::with_capacity(sessions);
    let from = server.connections();
    for client in 0..sessions {
        if client % 64 == 0 {
            now.0 += 1_000_000;
            server.begin_turn(*now, WALL_NS);
        }
        let token = server.accept(peer(from + client).into(), 0, |_| Ok(stream.clone()));
        tokens.push(token.expect("a place"));
        if client % 64 == 63 || client + 1 == sessions {
            server.end_turn();
        }
    }
    tokens
}

/// What one more session costs where there are so many.
fn greet(sessions: usize) {
    const MORE: usize = 1_024;
    let mut now = START;
    let mut server = receiver(Survive::Power, sessions + 3 * MORE, true);
    open(&mut server, &mut now, sessions);
    measure(MORE, || {
        black_box(open(&mut server, &mut now, MORE));
    });
    assert_eq!(server.connections(), sessions + 3 * MORE);
}

/// What an event costs, with its turn, where there are so many sessions.
fn events(sessions: usize) {
    const EVENTS: usize = 1_024;
    let mut now = START;
    let mut server = receiver(Survive::Power, sessions, true);
    let speaker = Silent::default();
    let tokens = open_as(&mut server, &mut now, sessions, &speaker);
    let mut next = 0;
    measure(EVENTS, || {
        for _ in 0..EVENTS {
            // A stride that is prime to both numbers of sessions: neighbours in time are none in memory.
            next = (next + 7_919) % sessions;
            now.0 += 1_000;
            server.begin_turn(now, WALL_NS);
            speaker.0.set(Some(b"EHLO c.example\r\n"));
            server.ready(tokens[next], true, false, false);
            server.end_turn();
        }
    });
    assert_eq!(server.connections(), sessions);
}

/// What it costs to look at all limits of one session, which each session's timer does every few seconds.
fn timers(sessions: usize) {
    const STEP: Duration = Duration::from_millis(50);
    let mut now = START;
    let mut server = receiver(Survive::Power, sessions, true);
    let tokens = open(&mut server, &mut now, sessions);
    // Every timer fires once in so many turns: after each linger, the shortest of the limits, and up to a tick later.
    let turns = server.shared.options.linger.as_millis() / STEP.as_millis() + 1;
    measure(sessions, || {
        for _ in 0..turns {
            now = now.after(STEP);
            server.begin_turn(now, WALL_NS);
            server.end_turn();
        }
    });
    assert_eq!(server.connections(), tokens.len());
}
