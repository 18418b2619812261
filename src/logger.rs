//! Structured log lines, written by a thread of their own so that a full pipe never stops the loop.
//!
//! One line is `time=... level=... class=... key=value ...`, or one JSON object with the same keys. Values are
//! escaped: no line holds a control character, so nothing a client sends can forge one. Each class has a limit
//! of lines per second; what is over it is counted and reported. Accepted mail makes no line: the ring is its
//! record.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use crate::choice::choices;
use crate::clock::{Clock, Instant, rfc3339};

choices! {
    /// Form of the log lines.
    #[derive(Default)]
    LogFormat {
        /// `key=value` pairs.
        #[default]
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

choices! {
    /// Importance of a log line, most important first.
    #[derive(PartialOrd, Ord, Default)]
    LogLevel {
        /// Mail cannot be taken, or was damaged.
        Error = "error",
        /// Something needs attention.
        Warning = "warning",
        /// What happened to a client or to the server.
        #[default]
        Info = "info",
        /// For finding faults.
        Debug = "debug",
    }
}

/// Lines that may wait for the writer thread; more are dropped and counted.
pub const LINES_WAITING_MAX: usize = 1_024;
/// Octets of one value that are written; `...` stands for the rest.
pub const VALUE_BYTES_MAX: usize = 256;
/// Window of the rate limit.
const WINDOW: Duration = Duration::from_secs(1);
/// Room a line usually needs, bytes.
const LINE_BYTES_TYPICAL: usize = 256;

macro_rules! classes {
    ($($(#[$meta:meta])* $variant:ident = $name:literal $level:ident $per_second:expr;)*) => {
        /// What a line is about. Each class has its level and its limit of lines per second.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Class { $($(#[$meta])* $variant,)* }

        impl Class {
            /// All classes.
            pub const ALL: &'static [Class] = &[$(Class::$variant,)*];

            /// Name, the value of `class=`.
            pub fn name(self) -> &'static str {
                match self { $(Class::$variant => $name,)* }
            }

            /// Importance.
            pub fn level(self) -> LogLevel {
                match self { $(Class::$variant => LogLevel::$level,)* }
            }

            /// Lines written in one second; more are suppressed and counted.
            pub fn per_second(self) -> u32 {
                match self { $(Class::$variant => $per_second,)* }
            }
        }
    };
}

classes! {
    /// The server has started.
    Started = "started" Info 20;
    /// A setting works and may not be what is wanted.
    Setting = "setting" Warning 100;
    /// The server is stopping: a signal, or a storage failure.
    Stopping = "stopping" Info 20;
    /// The server has stopped.
    Stopped = "stopped" Info 20;
    /// A worker ended unasked; it is started again.
    WorkerEnded = "worker_ended" Error 20;
    /// A worker was started again and takes mail.
    WorkerStarted = "worker_started" Info 20;
    /// A worker ended too often; it is not started again, the others go on.
    WorkerGivenUp = "worker_given_up" Error 20;
    /// Another process has taken the listening sockets over.
    HandedOver = "handed_over" Info 20;
    /// A connection was taken.
    Connected = "connected" Debug 100;
    /// A session ended in order.
    Closed = "closed" Debug 100;
    /// A command, a message or a session was refused: who, what and why.
    Refused = "refused" Info 20;
    /// A session was cut: a time limit, a client that reads no replies, a reset.
    Cut = "cut" Info 20;
    /// A connection was closed because no good header of the PROXY protocol came.
    ProxyRefused = "proxy_refused" Warning 1;
    /// A TLS handshake succeeded.
    TlsOpened = "tls_opened" Debug 100;
    /// TLS failed, and its connection was closed.
    TlsFailed = "tls_failed" Info 20;
    /// Certificates were read again.
    TlsReloaded = "tls_reloaded" Info 20;
    /// Certificates could not be read again; the old ones stay.
    TlsReloadFailed = "tls_reload_failed" Error 20;
    /// The file of users was read again.
    UsersReloaded = "users_reloaded" Info 20;
    /// The file of users could not be read again; the old users stay.
    UsersReloadFailed = "users_reload_failed" Error 20;
    /// No connections are accepted for a while: no descriptors, or no memory for them.
    AcceptPaused = "accept_paused" Warning 1;
    /// The pool has no room; messages wait.
    PoolLow = "pool_low" Warning 1;
    /// The ring is past its high-water mark; new mail gets 452.
    RingFull = "ring_full" Warning 1;
    /// Messages that nobody read were overwritten.
    Overwritten = "overwritten" Warning 1;
    /// A sync took longer than a second.
    SyncSlow = "sync_slow" Warning 1;
    /// A write or a sync failed; no more mail is taken.
    StorageFailed = "storage_failed" Error 20;
    /// What opening the ring found.
    Recovered = "recovered" Info 20;
    /// A consumer registered, left, moved, or was lapped.
    Consumer = "consumer" Info 20;
    /// The limits for stress are in force.
    Stress = "stress" Warning 1;
    /// The ordinary limits are in force again.
    StressOver = "stress_over" Info 1;
    /// The access rules were read again, and are in force.
    RulesLoaded = "rules_loaded" Info 20;
    /// The access rules could not be read again; the old ones stay in force.
    RulesRefused = "rules_refused" Warning 20;
    /// The HTTP server refused a request or lost a client.
    Http = "http" Debug 20;
    /// A session panicked; it was closed with 421, the others live.
    SessionPanicked = "session_panicked" Error 20;
    /// Lines of a class were over its limit.
    Suppressed = "suppressed" Warning u32::MAX;
    /// Lines were dropped because the reader of standard error is too slow.
    LinesDropped = "lines_dropped" Warning u32::MAX;
}

/// Value of a field.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// Text.
    Str(&'a str),
    /// Octets, UTF-8 or not.
    Bytes(&'a [u8]),
    /// Number; the unit is in the name of the field.
    Number(u64),
    /// Address and port.
    Addr(SocketAddr),
    /// Yes or no.
    Bool(bool),
}

/// Lines of one class within the current window.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    window_start: Instant,
    written: u32,
    suppressed: u64,
}

/// Writes a line at once and returns true, or returns false when that would have to wait.
type WriteNow = Box<dyn FnMut(&[u8]) -> bool + Send>;

struct Direct(WriteNow);

impl std::fmt::Debug for Direct {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Direct")
    }
}

#[derive(Debug)]
enum Output {
    /// To the writer thread. `finished` is answered when the thread has written everything.
    Thread {
        lines: SyncSender<Vec<u8>>,
        finished: Receiver<()>,
    },
    /// By the caller itself.
    Direct(Direct),
    /// Kept, for tests and for the simulator.
    Memory(Vec<String>),
    /// Nowhere.
    Nowhere,
}

/// The writing end of the log. A line below the level or over its limit costs a comparison and no allocation.
#[derive(Debug)]
pub struct Logger {
    output: Output,
    format: LogFormat,
    level: LogLevel,
    clock: Clock,
    buckets: Vec<Bucket>,
    /// Dropped since the last report.
    dropped: u64,
    dropped_total: u64,
    /// INVARIANT: the number of buckets whose `suppressed` is not 0.
    suppressing: usize,
    /// Number of the worker that writes, where there are several.
    worker: Option<u16>,
}

impl Logger {
    /// A logger whose lines a new thread writes to `writer`, one `write_all` each. A line that cannot be
    /// written is lost.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start(
        mut writer: impl Write + Send + 'static,
        format: LogFormat,
        level: LogLevel,
        clock: Clock,
    ) -> std::io::Result<Logger> {
        let (lines, receiver) = sync_channel::<Vec<u8>>(LINES_WAITING_MAX);
        let (finish, finished) = sync_channel(1);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                for line in receiver {
                    // There is nowhere to report to; the next line may get through.
                    let _ = writer.write_all(&line);
                }
                let _ = writer.flush();
                let _ = finish.send(());
            })?;
        Ok(Logger::new(
            Output::Thread { lines, finished },
            format,
            level,
            clock,
        ))
    }

    /// A logger without a thread, for a process that must have none: `write` writes a line at once, or returns false
    /// when that would have to wait; such a line is dropped.
    pub fn direct(
        write: impl FnMut(&[u8]) -> bool + Send + 'static,
        format: LogFormat,
        level: LogLevel,
        clock: Clock,
    ) -> Logger {
        let output = Output::Direct(Direct(Box::new(write)));
        Logger::new(output, format, level, clock)
    }

    /// Puts the number of a worker into every line from now on.
    pub fn set_worker(&mut self, worker: u16) {
        self.worker = Some(worker);
    }

    /// A logger that keeps its lines for [`Logger::take_lines`].
    pub fn to_memory(format: LogFormat, level: LogLevel, clock: Clock) -> Logger {
        Logger::new(Output::Memory(Vec::new()), format, level, clock)
    }

    /// A logger that writes nothing.
    pub fn disabled() -> Logger {
        Logger::new(
            Output::Nowhere,
            LogFormat::Text,
            LogLevel::Error,
            Clock::new(),
        )
    }

    fn new(output: Output, format: LogFormat, level: LogLevel, clock: Clock) -> Logger {
        Logger {
            output,
            format,
            level,
            clock,
            buckets: vec![Bucket::default(); Class::ALL.len()],
            dropped: 0,
            dropped_total: 0,
            suppressing: 0,
            worker: None,
        }
    }

    /// Whether lines of this class are written at all: lets a caller skip costly fields.
    pub fn is_enabled(&self, class: Class) -> bool {
        class.level() <= self.level && !matches!(self.output, Output::Nowhere)
    }

    /// Writes a line unless its class is off or over its limit. Never blocks.
    pub fn line(&mut self, class: Class, fields: &[(&str, Value<'_>)], now: Instant) {
        if self.is_enabled(class) && self.admit(class, now) {
            self.send(class, fields);
        }
    }

    /// Reports what was suppressed in windows that have ended, and what was dropped. Call it once a turn; it
    /// costs a comparison when there is nothing to report.
    pub fn tick(&mut self, now: Instant) {
        if self.dropped > 0 {
            self.report_dropped();
        }
        if self.suppressing == 0 {
            return;
        }
        for class in Class::ALL {
            let bucket = self.buckets[*class as usize];
            if bucket.suppressed > 0 && now.since_ns(bucket.window_start) >= window_ns() {
                self.close_window(*class, now);
            }
        }
    }

    /// Lines dropped since the start because the queue to the writer was full.
    pub fn dropped_total(&self) -> u64 {
        self.dropped_total
    }

    /// The lines kept by [`Logger::to_memory`], without their line ends; leaves none.
    pub fn take_lines(&mut self) -> Vec<String> {
        match &mut self.output {
            Output::Memory(lines) => std::mem::take(lines),
            _ => Vec::new(),
        }
    }

    /// Reports what is left and waits until everything is written, `wait` at most: the reader of standard error
    /// may never come back. True when everything was written.
    pub fn close(mut self, wait: Duration) -> bool {
        for class in Class::ALL {
            if self.buckets[*class as usize].suppressed > 0 {
                self.close_window(*class, Instant::default());
            }
        }
        if self.dropped > 0 {
            self.report_dropped();
        }
        match self.output {
            Output::Thread { lines, finished } => {
                drop(lines);
                finished.recv_timeout(wait) != Err(RecvTimeoutError::Timeout)
            }
            _ => true,
        }
    }

    fn admit(&mut self, class: Class, now: Instant) -> bool {
        let bucket = self.buckets[class as usize];
        if bucket.written == 0 || now.since_ns(bucket.window_start) >= window_ns() {
            self.close_window(class, now);
        }
        let bucket = &mut self.buckets[class as usize];
        if bucket.written < class.per_second() {
            bucket.written += 1;
            return true;
        }
        self.suppressing += usize::from(bucket.suppressed == 0);
        bucket.suppressed += 1;
        false
    }

    /// Opens a new window for `class` and reports what the last one suppressed.
    fn close_window(&mut self, class: Class, now: Instant) {
        let bucket = &mut self.buckets[class as usize];
        let suppressed = bucket.suppressed;
        *bucket = Bucket {
            window_start: now,
            written: 0,
            suppressed: 0,
        };
        if suppressed > 0 {
            self.suppressing -= 1;
            self.send(
                Class::Suppressed,
                &[
                    ("of", Value::Str(class.name())),
                    ("lines", Value::Number(suppressed)),
                ],
            );
        }
    }

    fn send(&mut self, class: Class, fields: &[(&str, Value<'_>)]) {
        if self.dropped > 0 && !self.report_dropped() {
            self.count_dropped();
            return;
        }
        let line = self.formatted(class, fields);
        if !self.hand_over(line) {
            self.count_dropped();
        }
    }

    fn formatted(&self, class: Class, fields: &[(&str, Value<'_>)]) -> Vec<u8> {
        let wall_ns = self.clock.wall_ns();
        let Some(worker) = self.worker else {
            return format_line(self.format, wall_ns, class, fields);
        };
        let mut all = vec![("worker", Value::Number(u64::from(worker)))];
        all.extend_from_slice(fields);
        format_line(self.format, wall_ns, class, &all)
    }

    fn report_dropped(&mut self) -> bool {
        let fields = [("lines", Value::Number(self.dropped))];
        let line = self.formatted(Class::LinesDropped, &fields);
        let sent = self.hand_over(line);
        if sent {
            self.dropped = 0;
        }
        sent
    }

    fn count_dropped(&mut self) {
        self.dropped += 1;
        self.dropped_total += 1;
    }

    /// False when the queue is full.
    fn hand_over(&mut self, line: Vec<u8>) -> bool {
        match &mut self.output {
            Output::Thread { lines, .. } => match lines.try_send(line) {
                Ok(()) => true,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
            },
            Output::Direct(Direct(write)) => write(&line),
            Output::Memory(kept) => {
                let room = kept.len() < LINES_WAITING_MAX;
                if room {
                    kept.push(String::from_utf8_lossy(&line).trim_end().to_owned());
                }
                room
            }
            Output::Nowhere => true,
        }
    }
}

fn window_ns() -> u64 {
    crate::clock::nanos(WINDOW)
}

/// One line with its line end.
fn format_line(
    format: LogFormat,
    wall_ns: u64,
    class: Class,
    fields: &[(&str, Value<'_>)],
) -> Vec<u8> {
    let time = rfc3339(wall_ns);
    let fixed = [
        ("time", Value::Str(&time)),
        ("level", Value::Str(class.level().name())),
        ("class", Value::Str(class.name())),
    ];
    let mut out = Vec::with_capacity(LINE_BYTES_TYPICAL);
    if format == LogFormat::Json {
        out.push(b'{');
    }
    for (at, (key, value)) in fixed.iter().chain(fields).enumerate() {
        match format {
            LogFormat::Text => {
                if at > 0 {
                    out.push(b' ');
                }
                out.extend_from_slice(key.as_bytes());
                out.push(b'=');
                push_value(&mut out, *value, push_text);
            }
            LogFormat::Json => {
                if at > 0 {
                    out.push(b',');
                }
                push_json(&mut out, key.as_bytes());
                out.push(b':');
                push_value(&mut out, *value, push_json);
            }
        }
    }
    if format == LogFormat::Json {
        out.push(b'}');
    }
    out.push(b'\n');
    out
}

fn push_value(out: &mut Vec<u8>, value: Value<'_>, push: fn(&mut Vec<u8>, &[u8])) {
    match value {
        Value::Str(text) => push(out, text.as_bytes()),
        Value::Bytes(bytes) => push(out, bytes),
        // Displaying into a Vec can't fail.
        Value::Number(number) => drop(write!(out, "{number}")),
        Value::Bool(yes) => drop(write!(out, "{yes}")),
        Value::Addr(address) => push(out, address.to_string().as_bytes()),
    }
}

/// `bytes` as they are where that is unambiguous, otherwise between double quotes with `\"`, `\\` and `\xNN`.
fn push_text(out: &mut Vec<u8>, bytes: &[u8]) {
    let plain = |b: &u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'=');
    if !bytes.is_empty() && bytes.len() <= VALUE_BYTES_MAX && bytes.iter().all(plain) {
        out.extend_from_slice(bytes);
        return;
    }
    push_quoted(out, bytes, "\\x");
}

/// `bytes` as a JSON string. Octets that are not UTF-8 and unprintable characters stand as the text `\xNN`.
fn push_json(out: &mut Vec<u8>, bytes: &[u8]) {
    // JSON has no `\x` escape, so the backslash of ours is itself escaped.
    push_quoted(out, bytes, "\\\\x");
}

/// At most [`VALUE_BYTES_MAX`] octets of `bytes` between double quotes. What is not printable UTF-8 is written
/// as `hex_prefix` and two digits.
fn push_quoted(out: &mut Vec<u8>, bytes: &[u8], hex_prefix: &str) {
    let shown = &bytes[..bytes.len().min(VALUE_BYTES_MAX)];
    let mut octets = [0; 4];
    out.push(b'"');
    for chunk in shown.utf8_chunks() {
        for c in chunk.valid().chars() {
            let encoded = c.encode_utf8(&mut octets).as_bytes();
            match c {
                '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
                c if is_printable(c) => out.extend_from_slice(encoded),
                _ => push_hex(out, encoded, hex_prefix),
            }
        }
        push_hex(out, chunk.invalid(), hex_prefix);
    }
    if shown.len() < bytes.len() {
        out.extend_from_slice(b"...");
    }
    out.push(b'"');
}

/// Control characters, line separators and what turns the direction of text around may not reach a terminal.
fn is_printable(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{61c}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

fn push_hex(out: &mut Vec<u8>, bytes: &[u8], prefix: &str) {
    for byte in bytes {
        drop(write!(out, "{prefix}{byte:02X}"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Condvar, Mutex};

    use super::*;

    const WALL_NS: u64 = 1_795_395_723_456_789_012;

    fn text(fields: &[(&str, Value<'_>)]) -> String {
        String::from_utf8(format_line(
            LogFormat::Text,
            WALL_NS,
            Class::Refused,
            fields,
        ))
        .unwrap()
    }

    fn json(fields: &[(&str, Value<'_>)]) -> String {
        String::from_utf8(format_line(
            LogFormat::Json,
            WALL_NS,
            Class::Refused,
            fields,
        ))
        .unwrap()
    }

    #[test]
    fn a_line_has_time_level_class_and_its_fields() {
        let client: SocketAddr = "[::1]:4312".parse().unwrap();
        let fields = [
            ("client", Value::Addr(client)),
            ("reason", Value::Str("too_big")),
            ("code", Value::Number(552)),
            ("tls", Value::Bool(false)),
            ("helo", Value::Bytes(b"my host")),
        ];
        assert_eq!(
            text(&fields),
            "time=2026-11-23T01:02:03.456Z level=info class=refused client=[::1]:4312 \
             reason=too_big code=552 tls=false helo=\"my host\"\n"
        );
        assert_eq!(
            json(&fields),
            "{\"time\":\"2026-11-23T01:02:03.456Z\",\"level\":\"info\",\"class\":\"refused\",\
             \"client\":\"[::1]:4312\",\"reason\":\"too_big\",\"code\":552,\"tls\":false,\
             \"helo\":\"my host\"}\n"
        );
    }

    #[test]
    fn no_octet_of_a_value_ends_a_line_or_a_string() {
        let head = "time=2026-11-23T01:02:03.456Z level=info class=refused v=";
        let cases: [(&[u8], &str); 8] = [
            (b"", "\"\""),
            (b"a=b", "\"a=b\""),
            (b"a\r\nlevel=error", "\"a\\x0D\\x0Alevel=error\""),
            (b"say \"x\\y\"", "\"say \\\"x\\\\y\\\"\""),
            (b"\xff\xc3", "\"\\xFF\\xC3\""),
            ("gr\u{fc}n".as_bytes(), "\"gr\u{fc}n\""),
            ("\u{202e}".as_bytes(), "\"\\xE2\\x80\\xAE\""),
            (b"\x1b[31m\0\x7f", "\"\\x1B[31m\\x00\\x7F\""),
        ];
        for (value, expected) in cases {
            assert_eq!(
                text(&[("v", Value::Bytes(value))]),
                format!("{head}{expected}\n")
            );
        }
    }

    #[test]
    fn every_octet_gives_valid_json_of_one_line() {
        let all: Vec<u8> = (0..=255).collect();
        for value in all.chunks(64).chain([&b"\\x41\\\\\"\r\n"[..]]) {
            let line = json(&[("v", Value::Bytes(value))]);
            assert_eq!(line.bytes().filter(|b| *b < 0x20).count(), 1, "{line}");
            let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert!(parsed["v"].is_string());
        }
        let line = json(&[("v", Value::Bytes(b"a\\b\xff\n\"c"))]);
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(parsed["v"], "a\\b\\xFF\\x0A\"c");
    }

    #[test]
    fn a_long_value_is_cut() {
        let line = text(&[("v", Value::Bytes(&[b'a'; 1_000]))]);
        let expected = format!("v=\"{}...\"\n", "a".repeat(VALUE_BYTES_MAX));
        assert!(line.ends_with(&expected), "{line}");
    }

    fn classes_of(lines: &[String]) -> Vec<&str> {
        lines
            .iter()
            .map(|line| line.split_once("class=").unwrap().1)
            .collect()
    }

    #[test]
    fn lines_over_the_limit_of_their_class_are_counted_and_reported_when_the_second_is_over() {
        let mut log = Logger::to_memory(LogFormat::Text, LogLevel::Info, Clock::new());
        let at = |ms: u64| Instant(5_000_000_000 + ms * 1_000_000);
        for n in 0..50 {
            log.line(Class::PoolLow, &[("n", Value::Number(n))], at(n));
        }
        log.tick(at(999));
        assert_eq!(classes_of(&log.take_lines()), ["pool_low n=0"]);
        log.tick(at(1_000));
        assert_eq!(
            classes_of(&log.take_lines()),
            ["suppressed of=pool_low lines=49"]
        );
        log.tick(at(9_000));
        assert_eq!(classes_of(&log.take_lines()), [""; 0]);
        log.line(Class::PoolLow, &[("n", Value::Number(50))], at(9_000));
        log.line(Class::PoolLow, &[("n", Value::Number(51))], at(9_001));
        log.line(Class::PoolLow, &[("n", Value::Number(52))], at(10_001));
        assert_eq!(
            classes_of(&log.take_lines()),
            [
                "pool_low n=50",
                "suppressed of=pool_low lines=1",
                "pool_low n=52"
            ]
        );
    }

    #[test]
    fn a_line_below_the_level_is_not_written() {
        let mut log = Logger::to_memory(LogFormat::Text, LogLevel::Warning, Clock::new());
        log.line(Class::Refused, &[], Instant(0));
        log.line(Class::AcceptPaused, &[], Instant(0));
        assert_eq!(classes_of(&log.take_lines()), ["accept_paused"]);
        assert!(!log.is_enabled(Class::Refused));
        assert!(!Logger::disabled().is_enabled(Class::StorageFailed));
    }

    #[derive(Default)]
    struct GateState {
        open: bool,
        writes_begun: usize,
        written: Vec<u8>,
    }

    /// Blocks in `write` until it is opened.
    #[derive(Clone, Default)]
    struct Gate(Arc<(Mutex<GateState>, Condvar)>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let (lock, changed) = &*self.0;
            let mut state = lock.lock().unwrap();
            state.writes_begun += 1;
            changed.notify_all();
            while !state.open {
                state = changed.wait(state).unwrap();
            }
            state.written.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_blocked_reader_costs_lines_and_never_the_caller() {
        let gate = Gate::default();
        let mut log =
            Logger::start(gate.clone(), LogFormat::Text, LogLevel::Info, Clock::new()).unwrap();
        let mut send = |n: u64| {
            // Every line has a second of its own, so that no limit applies.
            let now = Instant(n * 1_000_000_000);
            log.line(Class::Refused, &[("n", Value::Number(n))], now);
        };
        send(0);
        let (lock, changed) = &*gate.0;
        drop(
            changed
                .wait_while(lock.lock().unwrap(), |s| s.writes_begun == 0)
                .unwrap(),
        );
        // One line is inside `write`; the queue takes so many and drops 7.
        let total = LINES_WAITING_MAX as u64 + 8;
        (1..total).for_each(&mut send);
        assert_eq!(log.dropped_total(), 7);
        lock.lock().unwrap().open = true;
        changed.notify_all();
        let full = LINES_WAITING_MAX + 1;
        drop(
            changed
                .wait_while(lock.lock().unwrap(), |s| s.writes_begun < full)
                .unwrap(),
        );
        log.tick(Instant(total * 1_000_000_000));
        assert!(log.close(Duration::from_secs(60)));

        let written = String::from_utf8(lock.lock().unwrap().written.clone()).unwrap();
        let lines: Vec<String> = written.lines().map(str::to_owned).collect();
        let mut expected: Vec<String> =
            (0..full as u64).map(|n| format!("refused n={n}")).collect();
        expected.push("lines_dropped lines=7".to_owned());
        assert_eq!(classes_of(&lines), expected);
    }
}
