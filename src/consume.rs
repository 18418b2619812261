//! `ringmx consume`: a named consumer as a process of its own, at least once and in order; `ringmx
//! consumers`: the table of them.
//!
//! A message counts as delivered when the target has taken it, has been flushed, and the cursor was
//! acknowledged, in this order; an end in between means that it is delivered again. With a server
//! the cursor goes through its control socket. Without one this process takes the ring's lock,
//! recovers it and moves the cursor itself, in short slices, so that a server that starts gets the
//! lock soon.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::{self, Clock};
use crate::ctl::{self, ClientError, Cursor, Refusal};
use crate::limits::MIB;
use crate::log_cli::view::{Failure, ShardDir, View, shards};
use crate::log_cli::{RING_DIR_DEFAULT, size};
use crate::ringlog::backing::FileBacking;
use crate::ringlog::consumer::{Step, Walk};
use crate::ringlog::directory;
use crate::ringlog::format::ConsumerName;
use crate::ringlog::reader::{Message, MessageId, Window};
use crate::ringlog::recover::{OpenError, OpenOptions};
use crate::ringlog::writer::{ConsumerError, Log, StartAt, Survive};
use crate::sys::wait::{self, StopSignals};

pub mod target;

use target::{Exec, JsonLines, Maildir, Mbox, Outcome, RecipientResult, Target, TargetName};

/// Messages delivered at most before the target is flushed and the cursor acknowledged.
pub const BATCH_MESSAGES_MAX: usize = 64;
/// Octets delivered at most before that.
pub const BATCH_OCTETS_MAX: u64 = 16 * MIB;
/// First wait before a delivery is tried again; doubled each time.
pub const RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest wait before a delivery is tried again.
pub const RETRY_MAX: Duration = Duration::from_secs(300);
/// Longest wait before the server is looked for again.
pub const RECONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest time for which the ring's lock is held without a server.
const SLICE: Duration = Duration::from_secs(1);
/// Time that `--until-empty` waits for a lock or a server that is just starting or ending.
const UNTIL_EMPTY_WAIT: Duration = Duration::from_secs(10);

/// Text of `ringmx consume --help`.
pub const HELP: &str = "\
Delivers what the ring receives, as a named consumer: at least once, in order. The ring keeps what the
consumer has not delivered; stopped and started again, it goes on where it was.

  ringmx consume NAME --to TARGET [--create [--from oldest|newest|ID]]

Targets:
  maildir:DIR        one file per message; delivering again replaces the same file
  mbox:FILE          mboxrd, LF line ends
  exec:COMMAND       /bin/sh -c COMMAND for each message: octets on standard input, envelope in RINGMX_*;
                     exit code 0 is delivered, 75 is try again later, any other is recorded as failed
  stdout             one JSON object per message; only looks on: nothing is kept for it, NAME is not registered

Options:
  --ring DIR         directory of the ring (default ./ringmx-data)
  --shard N          which shard (default 0)
  --create           makes the consumer when it is missing
  --from PLACE       where a new consumer (or stdout) begins: oldest (default), newest, or a message id
  --until-empty      ends with exit code 0 when everything durable is delivered
  --keeps EXT,...    promises this target keeps: DSN, DELIVERBY, FUTURERELEASE, MT-PRIORITY, RRVS, REQUIRETLS
  --failures FILE    where failed messages are recorded, one JSON object per line
                     (default DIR/shard-N/NAME.failed)

SIGTERM and SIGINT let the message at hand end, then exit with code 0.
";

/// Text of `ringmx consumers --help`.
pub const CONSUMERS_HELP: &str = "\
The named consumers of a ring, beside a running server or without one.

  ringmx consumers list [--json]
  ringmx consumers drop NAME             the ring keeps nothing for it any more
  ringmx consumers seek NAME PLACE       it goes on at: oldest, newest, or a message id

Options:
  --ring DIR         directory of the ring (default ./ringmx-data)
  --shard N          which shard (default 0; list: all)
";

/// Where a consumer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At the oldest message kept.
    Oldest,
    /// Behind the newest.
    Newest,
    /// At the message with this number.
    Number(u64),
}

impl Begin {
    fn parse(text: &str, shard: u32) -> Result<Begin, String> {
        match text {
            "oldest" => Ok(Begin::Oldest),
            "newest" => Ok(Begin::Newest),
            _ => MessageId::parse(text, shard)
                .filter(|id| id.shard == shard)
                .map(|id| Begin::Number(id.number))
                .ok_or_else(|| format!("'{text}': oldest, newest, or an id of shard {shard}")),
        }
    }
}

/// Arguments of `ringmx consume`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumeArguments {
    /// Print [`HELP`] and nothing else.
    pub help: bool,
    /// Name of the consumer.
    pub name: String,
    /// Where it delivers to.
    pub to: TargetName,
    /// Directory that holds `shard-0`.
    pub ring: PathBuf,
    /// Number of the shard.
    pub shard: u32,
    /// Make it when it is missing.
    pub create: bool,
    /// Where it begins when it is made.
    pub from: Option<Begin>,
    /// End when nothing is left.
    pub until_empty: bool,
    /// Where failed messages are recorded.
    pub failures: Option<PathBuf>,
    /// Promises of SMTP extensions that this consumer keeps, bits of `ctl::PROMISES`.
    pub keeps: u32,
}

/// What `ringmx consumers` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsumersCommand {
    /// Print [`CONSUMERS_HELP`].
    Help,
    /// Show the table.
    List,
    /// Remove a consumer.
    Drop(String),
    /// Move a consumer.
    Seek(String, Begin),
}

/// Arguments of `ringmx consumers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumersArguments {
    /// What to do.
    pub command: ConsumersCommand,
    /// Directory that holds `shard-0`.
    pub ring: PathBuf,
    /// Number of the shard; `None`: all (list), 0 (others).
    pub shard: Option<u32>,
    /// JSON instead of text.
    pub json: bool,
}

fn parse_shard(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("--shard '{text}': a number"))
}

fn check_name(name: &str) -> Result<String, String> {
    match ctl::is_consumer_name(name) {
        true => Ok(name.to_owned()),
        false => Err(format!("'{name}': {}", Refusal::Name)),
    }
}

/// Splits `--flag=value`.
fn split(arg: &str) -> (&str, Option<String>) {
    match arg.split_once('=') {
        Some((flag, value)) if flag.starts_with("--") => (flag, Some(value.to_owned())),
        _ => (arg, None),
    }
}

/// Reads the words behind `ringmx consume`.
///
/// # Errors
/// One sentence for the user; the exit code is 2.
pub fn parse(args: &[String]) -> Result<ConsumeArguments, String> {
    let mut out = ConsumeArguments {
        help: false,
        name: String::new(),
        to: TargetName::Stdout,
        ring: RING_DIR_DEFAULT.into(),
        shard: 0,
        create: false,
        from: None,
        until_empty: false,
        failures: None,
        keeps: 0,
    };
    let (mut names, mut to, mut from) = (Vec::new(), None, None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let (flag, joined) = split(arg);
        let mut value = || {
            let next = joined.clone().or_else(|| args.next().cloned());
            next.ok_or_else(|| format!("{flag} needs a value"))
        };
        match flag {
            "--help" | "-h" => out.help = true,
            "--to" => to = Some(TargetName::parse(&value()?)?),
            "--ring" => out.ring = value()?.into(),
            "--shard" => out.shard = parse_shard(&value()?)?,
            "--create" => out.create = true,
            "--from" => from = Some(value()?),
            "--until-empty" | "--once" => out.until_empty = true,
            "--keeps" => {
                let names = value()?;
                out.keeps = ctl::promises(&names).ok_or_else(|| {
                    format!(
                        "--keeps: {} is not allowed; allowed: {}, separated by commas",
                        crate::config::units::quoted(&names),
                        ctl::PROMISES.join(", ")
                    )
                })?;
            }
            "--failures" => out.failures = Some(value()?.into()),
            _ if flag.starts_with('-') => {
                return Err(format!("ringmx consume has no option '{flag}'"));
            }
            _ => names.push(arg),
        }
    }
    if out.help {
        return Ok(out);
    }
    out.name = match names[..] {
        [name] => check_name(name)?,
        _ => return Err("ringmx consume takes one NAME".to_owned()),
    };
    out.to = to.ok_or("ringmx consume needs --to TARGET")?;
    out.from = match from {
        Some(text) => Some(Begin::parse(&text, out.shard).map_err(|why| format!("--from {why}"))?),
        None => None,
    };
    if out.from.is_some() && !out.create && out.to != TargetName::Stdout {
        return Err("--from belongs to --create ('ringmx consumers seek' moves a consumer)".into());
    }
    Ok(out)
}

/// Reads the words behind `ringmx consumers`.
///
/// # Errors
/// One sentence for the user; the exit code is 2.
pub fn parse_consumers(args: &[String]) -> Result<ConsumersArguments, String> {
    let mut out = ConsumersArguments {
        command: ConsumersCommand::List,
        ring: RING_DIR_DEFAULT.into(),
        shard: None,
        json: false,
    };
    let mut words: Vec<&str> = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let (flag, joined) = split(arg);
        let mut value = || {
            let next = joined.clone().or_else(|| args.next().cloned());
            next.ok_or_else(|| format!("{flag} needs a value"))
        };
        match flag {
            "--help" | "-h" => words = vec!["help"],
            "--ring" => out.ring = value()?.into(),
            "--shard" => out.shard = Some(parse_shard(&value()?)?),
            "--json" => out.json = true,
            _ if flag.starts_with('-') => {
                return Err(format!("ringmx consumers has no option '{flag}'"));
            }
            _ => words.push(arg),
        }
    }
    out.command = match words[..] {
        [] | ["list"] => ConsumersCommand::List,
        ["help", ..] => ConsumersCommand::Help,
        ["drop", name] => ConsumersCommand::Drop(check_name(name)?),
        ["seek", name, place] => {
            let begin = Begin::parse(place, out.shard.unwrap_or(0))?;
            ConsumersCommand::Seek(check_name(name)?, begin)
        }
        _ => return Err("ringmx consumers takes list, drop NAME, or seek NAME PLACE".to_owned()),
    };
    Ok(out)
}

/// One row of the consumer table, with how far it is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerRow {
    /// Name.
    pub name: String,
    /// Number of the shard.
    pub shard: u32,
    /// Cursor.
    pub cursor: Cursor,
    /// Whether a process is attached; unknown without a server.
    pub attached: Option<bool>,
    /// Bytes of the ring that it holds.
    pub lag_bytes: u64,
    /// Messages that it has not delivered; an upper bound after a crash, which leaves numbers out.
    pub lag_messages: u64,
    /// When the oldest of them was received, nanoseconds since 1970.
    pub oldest_ns: Option<u64>,
}

impl ConsumerRow {
    /// The row as JSON.
    pub fn json(&self, now_ns: u64) -> Value {
        json!({
            "name": self.name,
            "shard": self.shard,
            "scan_pos": self.cursor.scan_pos,
            "done_pos": self.cursor.done_pos,
            "attached": self.attached,
            "lag_bytes": self.lag_bytes,
            "lag_messages": self.lag_messages,
            "lag_ns": self.oldest_ns.map_or(0, |oldest_ns| now_ns.saturating_sub(oldest_ns)),
        })
    }
}

/// A row of JSON as text.
pub fn row_text(row: &Value) -> String {
    let number = |name: &str| row[name].as_u64().unwrap_or(0);
    let attached = match row["attached"].as_bool() {
        Some(true) => ", running",
        Some(false) => ", not running",
        None => "",
    };
    format!(
        "{} (shard {}): {} messages behind, {}, {} s{attached}",
        row["name"].as_str().unwrap_or(""),
        number("shard"),
        number("lag_messages"),
        size(number("lag_bytes")),
        number("lag_ns") / 1_000_000_000,
    )
}

/// The consumer table of a ring.
///
/// # Errors
/// The server has gone.
pub fn consumer_rows(view: &mut View) -> Result<Vec<ConsumerRow>, ClientError> {
    let rows: Vec<(String, Cursor, Option<bool>)> = match view.client() {
        Some(client) => {
            let rows = client.list()?.into_iter();
            rows.map(|row| (row.name, row.cursor, Some(row.attached)))
                .collect()
        }
        None => {
            let consumers = view.superblock().consumers.iter().flatten();
            consumers
                .map(|consumer| {
                    let cursor = Cursor {
                        scan_pos: consumer.scan_pos,
                        done_pos: consumer.done_pos,
                    };
                    (consumer.name.to_string(), cursor, None)
                })
                .collect()
        }
    };
    let window = view.refresh()?;
    let next_number = view.next_number();
    let shard = view.reader.shard();
    let row = |(name, cursor, attached): (String, Cursor, Option<bool>)| {
        let oldest = view.reader.header(cursor.done_pos, window.end);
        let oldest = oldest.ok().and_then(Result::ok);
        let lag_messages = oldest.map_or(0, |header| next_number.saturating_sub(header.number));
        ConsumerRow {
            name,
            shard,
            cursor,
            attached,
            lag_bytes: window.end.saturating_sub(cursor.scan_pos),
            lag_messages,
            // Records that are no messages may stand behind the cursor.
            oldest_ns: oldest
                .filter(|_| lag_messages > 0)
                .map(|header| header.received_ns),
        }
    };
    Ok(rows.into_iter().map(row).collect())
}

/// A ring whose lock this process holds, because no server runs.
#[derive(Debug)]
struct OwnRing {
    log: Log<FileBacking>,
    view: View,
}

impl OwnRing {
    /// Takes the lock and recovers; `None` when somebody else holds the ring.
    fn open(dir: &ShardDir) -> Result<Option<OwnRing>, Failure> {
        let options = OpenOptions::new(Survive::Power, Clock::new().wall_ns());
        let log = match directory::open_ring(&dir.path, &options, None) {
            Ok((log, _)) => log,
            Err(OpenError::InUse) => return Ok(None),
            Err(error @ OpenError::Missing) => return Err(Failure::usage(error.to_string())),
            Err(error) => {
                let path = dir.path.display();
                return Err(Failure::storage(format!("'{path}': {error}")));
            }
        };
        let window = Window {
            tail: log.tail(),
            end: log.durable(),
        };
        let view = View::beside(dir, window)?;
        Ok(Some(OwnRing { log, view }))
    }

    fn close(self) -> Result<(), Failure> {
        let result = self.log.close();
        result.map_err(|failed| Failure::storage(failed.to_string()))?;
        Ok(())
    }
}

impl From<ConsumerError> for Failure {
    fn from(error: ConsumerError) -> Failure {
        match error {
            ConsumerError::Failed(failed) => Failure::storage(failed.to_string()),
            _ => Failure::other(error.to_string()),
        }
    }
}

/// Turns a place into the one of the control protocol: numbers are looked up here and not in the
/// server's loop.
fn resolve(view: &mut View, begin: Begin) -> Result<ctl::From, Failure> {
    Ok(match begin {
        Begin::Oldest => ctl::From::Oldest,
        Begin::Newest => ctl::From::Newest,
        Begin::Number(number) => {
            let window = view.window;
            let position = view.reader.position_of_number(window, number);
            let position =
                position.map_err(|error| Failure::storage(format!("reading the ring: {error}")))?;
            match position == window.end {
                true => ctl::From::Newest,
                false => ctl::From::Position(position),
            }
        }
    })
}

fn start_at(from: ctl::From) -> StartAt {
    match from {
        ctl::From::Oldest => StartAt::Oldest,
        ctl::From::Newest => StartAt::Newest,
        ctl::From::Position(position) => StartAt::Position(position),
    }
}

fn consumer_name(name: &str) -> Result<ConsumerName, Failure> {
    ConsumerName::new(name).ok_or_else(|| Failure::usage(Refusal::Name.to_string()))
}

/// Runs `ringmx consumers`. Returns the exit code.
pub fn run_consumers(args: &ConsumersArguments, out: &mut dyn Write, err: &mut dyn Write) -> i32 {
    let result = consumers(args).and_then(|text| {
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|error| Failure::output(&error))
    });
    finish("consumers", result, err)
}

/// Says what went wrong, if anything, and returns the exit code.
fn finish(command: &str, result: Result<(), Failure>, err: &mut dyn Write) -> i32 {
    match result {
        Ok(()) => 0,
        Err(failure) => {
            if !failure.text.is_empty() {
                // Nowhere is left to say that standard error is closed.
                let _ = writeln!(err, "ringmx {command}: {failure}");
            }
            failure.code
        }
    }
}

fn consumers(args: &ConsumersArguments) -> Result<String, Failure> {
    if args.command == ConsumersCommand::Help {
        return Ok(CONSUMERS_HELP.to_owned());
    }
    let dirs = shards(&args.ring)?;
    match &args.command {
        ConsumersCommand::Help | ConsumersCommand::List => list(args, &dirs),
        ConsumersCommand::Drop(name) => {
            let dir = shard_dir(&dirs, args.shard.unwrap_or(0))?;
            change(dir, |ring| match ring {
                Ring::View(view) => Ok(live(view)?.drop_consumer(name)?),
                Ring::Own(own) => Ok(own.log.drop_consumer(&consumer_name(name)?)?),
            })?;
            Ok(format!("{name} is dropped\n"))
        }
        ConsumersCommand::Seek(name, begin) => {
            let dir = shard_dir(&dirs, args.shard.unwrap_or(0))?;
            change(dir, |ring| match ring {
                Ring::View(view) => {
                    let from = resolve(view, *begin)?;
                    Ok(live(view)?.seek(name, from)?)
                }
                Ring::Own(own) => {
                    let from = resolve(&mut own.view, *begin)?;
                    own.log.seek(&consumer_name(name)?, start_at(from))?;
                    Ok(())
                }
            })?;
            Ok(format!("{name} is moved\n"))
        }
    }
}

fn list(args: &ConsumersArguments, dirs: &[ShardDir]) -> Result<String, Failure> {
    let now_ns = Clock::new().wall_ns();
    let mut rows = Vec::new();
    for dir in dirs {
        if args.shard.is_none_or(|shard| shard == dir.shard) {
            let mut view = View::open(dir)?;
            let found = consumer_rows(&mut view)?;
            rows.extend(found.iter().map(|row| row.json(now_ns)));
        }
    }
    if args.json {
        let document = json!({"schema": "ringmx.consumers.v1", "consumers": rows});
        return Ok(format!("{document}\n"));
    }
    if rows.is_empty() {
        return Ok("no consumers\n".to_owned());
    }
    Ok(rows
        .iter()
        .map(|row| format!("{}\n", row_text(row)))
        .collect())
}

fn shard_dir(dirs: &[ShardDir], shard: u32) -> Result<&ShardDir, Failure> {
    dirs.iter()
        .find(|dir| dir.shard == shard)
        .ok_or_else(|| Failure::usage(format!("there is no shard {shard}")))
}

fn live(view: &mut View) -> Result<&mut ctl::Client, Failure> {
    view.client()
        .ok_or_else(|| Failure::other("the server has gone"))
}

/// How a ring can be changed now.
#[derive(Debug)]
enum Ring {
    /// Through its server; for those who only look on, also without one.
    View(Box<View>),
    /// By this process, which holds the lock.
    Own(Box<OwnRing>),
}

impl Ring {
    /// Through the server if one runs, else with the lock; `None` when it is locked and nobody
    /// answers.
    fn open(dir: &ShardDir) -> Result<Option<Ring>, Failure> {
        if let Some(view) = View::live(dir)? {
            return Ok(Some(Ring::View(Box::new(view))));
        }
        Ok(OwnRing::open(dir)?.map(|own| Ring::Own(Box::new(own))))
    }

    fn view(&mut self) -> &mut View {
        match self {
            Ring::View(view) => view,
            Ring::Own(own) => &mut own.view,
        }
    }

    fn close(self) -> Result<(), Failure> {
        match self {
            Ring::View(_) => Ok(()),
            Ring::Own(own) => own.close(),
        }
    }
}

fn change(
    dir: &ShardDir,
    action: impl FnOnce(&mut Ring) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let clock = Clock::new();
    loop {
        if let Some(mut ring) = Ring::open(dir)? {
            let result = action(&mut ring);
            return ring.close().and(result);
        }
        if clock.now().0 > clock::nanos(UNTIL_EMPTY_WAIT) {
            return Err(in_use(dir));
        }
        nap(None, Duration::from_millis(50));
    }
}

fn in_use(dir: &ShardDir) -> Failure {
    Failure::other(format!(
        "the ring in '{}' is in use and its server does not answer",
        dir.path.display()
    ))
}

/// Waits; true when a signal asks to stop.
fn nap(stop: Option<&StopSignals>, time: Duration) -> bool {
    let result = match stop {
        Some(stop) => wait::readable(&[stop.as_fd()], Some(time)),
        None => wait::readable(&[], Some(time)),
    };
    // poll(2) fails only for lack of memory; then the wait is short.
    result.is_ok() && stop.is_some_and(StopSignals::is_stopped)
}

/// Runs `ringmx consume` until a signal, or with `until_empty` until nothing is left. Returns the
/// exit code.
pub fn run(args: &ConsumeArguments, out: &mut dyn Write, err: &mut dyn Write) -> i32 {
    if args.help {
        let result = out.write_all(HELP.as_bytes());
        let result = result.map_err(|error| Failure::output(&error));
        return finish("consume", result, err);
    }
    // A second call in one process (tests) finds them installed: then only `until_empty` ends it.
    let stop = match StopSignals::install() {
        Ok(stop) => Some(stop),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
        Err(error) => {
            let failure = Failure::other(format!("installing signal handlers: {error}"));
            return finish("consume", Err(failure), err);
        }
    };
    let result = consume(args, stop.as_ref(), out, err);
    finish("consume", result, err)
}

fn consume(
    args: &ConsumeArguments,
    stop: Option<&StopSignals>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<(), Failure> {
    let dirs = shards(&args.ring)?;
    let dir = shard_dir(&dirs, args.shard)?;
    let open = |error: io::Error, path: &Path| {
        Failure::usage(format!("--to '{}': {error}", path.display()))
    };
    let target: Box<dyn Target + '_> = match &args.to {
        TargetName::Maildir(path) => {
            Box::new(Maildir::open(path).map_err(|error| open(error, path))?)
        }
        TargetName::Mbox(path) => Box::new(Mbox::open(path).map_err(|error| open(error, path))?),
        TargetName::Exec(command) => Box::new(Exec::new(command)),
        TargetName::Stdout => Box::new(JsonLines::new(out)),
    };
    let failures = match &args.failures {
        Some(path) => path.clone(),
        None => dir.path.join(format!("{}.failed", args.name)),
    };
    let mut consumer = Consumer {
        args,
        dir,
        target,
        stop,
        err,
        failures: Failures {
            path: failures,
            pending: Vec::new(),
        },
        tap_position: None,
        delivered: 0,
    };
    let result = consumer.run();
    let delivered = consumer.delivered;
    consumer.say(&format!("{delivered} messages delivered"));
    result
}

/// Failed messages, recorded before the cursor passes them.
#[derive(Debug)]
struct Failures {
    path: PathBuf,
    pending: Vec<u8>,
}

impl Failures {
    fn note(&mut self, consumer: &str, message: &Message, outcome: &Outcome) {
        let envelope = message.envelope();
        let mut failed = Vec::new();
        for (index, result) in outcome.results().iter().enumerate() {
            if let RecipientResult::Fail { code, text } = result {
                let path = envelope
                    .recipients
                    .get(index)
                    .map(|recipient| recipient.path);
                failed.push(json!({
                    "forward_path": String::from_utf8_lossy(path.unwrap_or_default()),
                    "code": code,
                    "text": text,
                }));
            }
        }
        let line = json!({
            "schema": "ringmx.failure.v1",
            "time": clock::rfc3339(Clock::new().wall_ns()),
            "consumer": consumer,
            "id": message.id().to_string(),
            "recipients": failed,
        });
        self.pending
            .extend_from_slice(format!("{line}\n").as_bytes());
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut options = File::options();
        options.append(true).create(true).mode(0o600);
        let mut file = options.open(&self.path)?;
        file.write_all(&self.pending)?;
        file.sync_all()?;
        self.pending.clear();
        Ok(())
    }
}

/// Why a stretch of deliveries ended.
enum End {
    /// Everything durable is delivered, and that was all that was asked for.
    Empty,
    /// A signal.
    Stopped,
    /// The server has gone.
    Gone,
    /// The time for which the lock may be held is over.
    Slice,
    /// The target or the recording of failures failed: begin again at the acknowledged cursor,
    /// later.
    Again(String),
    /// The reader of the output has gone.
    Closed,
}

struct Consumer<'a> {
    args: &'a ConsumeArguments,
    dir: &'a ShardDir,
    target: Box<dyn Target + 'a>,
    stop: Option<&'a StopSignals>,
    err: &'a mut dyn Write,
    failures: Failures,
    /// Where a tap goes on after the server was gone: ring and position.
    tap_position: Option<([u8; 16], u64)>,
    delivered: u64,
}

impl Consumer<'_> {
    fn say(&mut self, text: &str) {
        // Nowhere is left to say that standard error is closed.
        let _ = writeln!(self.err, "ringmx consume {}: {text}", self.args.name);
    }

    fn run(&mut self) -> Result<(), Failure> {
        let clock = Clock::new();
        let mut had_server = false;
        let mut drained = false;
        let mut wait = RETRY_MIN;
        let mut said = false;
        loop {
            // Once connected, a server that goes is waited for: taking its lock would keep it from
            // starting.
            let without_server = !drained && (!had_server || self.args.until_empty);
            let ring = match without_server {
                // Who only looks on changes nothing, and needs no lock for itself.
                true if self.target.is_tap() => match View::live(self.dir)? {
                    Some(view) => Some(Ring::View(Box::new(view))),
                    None => View::offline(self.dir)?.map(|view| Ring::View(Box::new(view))),
                },
                true => Ring::open(self.dir)?,
                false => View::live(self.dir)?.map(|view| Ring::View(Box::new(view))),
            };
            let pause = match ring {
                Some(mut ring) => {
                    had_server |= ring.view().is_live();
                    said = false;
                    let before = self.delivered;
                    let end = self.drain(&mut ring);
                    if self.delivered > before {
                        wait = RETRY_MIN;
                    }
                    let closed = ring.close();
                    let end = end?;
                    closed?;
                    match end {
                        End::Empty if self.args.until_empty => return Ok(()),
                        End::Stopped | End::Closed => return Ok(()),
                        // A server can take the lock now.
                        End::Slice => Duration::from_millis(200),
                        End::Empty => {
                            drained = true;
                            RETRY_MIN
                        }
                        End::Gone => {
                            wait = RETRY_MIN;
                            wait
                        }
                        End::Again(reason) => {
                            self.say(&format!(
                                "trying again in {} ms: {reason}",
                                wait.as_millis()
                            ));
                            let pause = wait;
                            wait = (wait * 2).min(RETRY_MAX);
                            pause
                        }
                    }
                }
                None => {
                    if self.args.until_empty && clock.now().0 > clock::nanos(UNTIL_EMPTY_WAIT) {
                        return Err(in_use(self.dir));
                    }
                    if !std::mem::replace(&mut said, true) {
                        self.say("waiting for the server");
                    }
                    wait = (wait * 2).min(RECONNECT_MAX);
                    wait
                }
            };
            if nap(self.stop, pause) {
                return Ok(());
            }
        }
    }

    /// Where to begin; `None` when the server went before it said so.
    fn begin(&mut self, ring: &mut Ring) -> Result<Option<Cursor>, Failure> {
        if self.target.is_tap() {
            let position = self.begin_tap(ring.view())?;
            return Ok(Some(Cursor {
                scan_pos: position,
                done_pos: position,
            }));
        }
        let create = match self.args.create {
            true => {
                let begin = self.args.from.unwrap_or(Begin::Oldest);
                Some(resolve(ring.view(), begin)?)
            }
            false => None,
        };
        match ring {
            Ring::View(view) => {
                let client = live(view)?;
                let registered = client.register(&self.args.name, create);
                let kept = match (&registered, self.args.keeps) {
                    (Ok(_), promises) if promises != 0 => client.keeps(promises),
                    _ => Ok(()),
                };
                match registered.and_then(|cursor| kept.map(|()| cursor)) {
                    Err(error) if error.is_gone() => Ok(None),
                    result => Ok(Some(result?)),
                }
            }
            Ring::Own(own) => {
                let name = consumer_name(&self.args.name)?;
                let found = own.log.consumer(&name).copied();
                let consumer = match (found, create) {
                    (Some(found), _) => found,
                    (None, Some(from)) => own.log.register(name, start_at(from))?,
                    (None, None) => return Err(ConsumerError::Unknown.into()),
                };
                Ok(Some(Cursor {
                    scan_pos: consumer.scan_pos,
                    done_pos: consumer.done_pos,
                }))
            }
        }
    }

    fn begin_tap(&mut self, view: &mut View) -> Result<u64, Failure> {
        match self.tap_position {
            Some((ring_id, position)) if ring_id == view.reader.ring_id() => Ok(position),
            _ => {
                let begin = self.args.from.unwrap_or(Begin::Oldest);
                let window = view.window;
                Ok(match resolve(view, begin)? {
                    ctl::From::Oldest => window.tail,
                    ctl::From::Newest => window.end,
                    ctl::From::Position(position) => position,
                })
            }
        }
    }

    /// Delivers what the ring holds and, with a server, what comes.
    fn drain(&mut self, ring: &mut Ring) -> Result<End, Failure> {
        let clock = Clock::new();
        let Some(cursor) = self.begin(ring)? else {
            return Ok(End::Gone);
        };
        let mut acknowledged = cursor;
        let mut walk = Walk::resume(cursor.scan_pos, cursor.done_pos);
        let (mut messages, mut octets) = (0, 0);
        loop {
            let before = cursor_of(&walk);
            let step = ring.view().step(&mut walk)?;
            match step {
                Step::Message(message) => {
                    if let Some(end) = self.deliver(ring, &message, before, &mut acknowledged)? {
                        return Ok(end);
                    }
                    messages += 1;
                    octets += message.body().len() as u64;
                }
                Step::Lapped { from, to } => {
                    self.say(&format!(
                        "overwritten before it was read: positions {from} to {to}"
                    ));
                }
                Step::Damaged { reason, .. } => {
                    let view = ring.view();
                    let (from, to) = walk
                        .skip_damage(&mut view.reader, view.window.end)
                        .map_err(|error| Failure::storage(format!("reading the ring: {error}")))?;
                    self.say(&format!(
                        "damaged, left out: positions {from} to {to}: {reason}"
                    ));
                }
                Step::Other => {}
                Step::End => {}
            }
            let stopped = self.stop.is_some_and(StopSignals::is_stopped);
            let slice = matches!(ring, Ring::Own(_)) && clock.now().0 > clock::nanos(SLICE);
            let at_end = walk.position() >= ring.view().window.end;
            if !stopped
                && !slice
                && !at_end
                && messages < BATCH_MESSAGES_MAX
                && octets < BATCH_OCTETS_MAX
            {
                continue;
            }
            if let Some(end) = self.commit(ring, cursor_of(&walk), &mut acknowledged)? {
                return Ok(end);
            }
            (messages, octets) = (0, 0);
            if stopped {
                return Ok(End::Stopped);
            }
            if at_end {
                match ring.view().refresh() {
                    Ok(window) if window.end > walk.position() => continue,
                    Ok(_) if self.args.until_empty => return Ok(End::Empty),
                    Ok(_) => {}
                    Err(_) => return Ok(End::Gone),
                }
                if !ring.view().is_live() {
                    return Ok(End::Empty);
                }
                if let Some(end) = self.wait_for_more(ring)? {
                    return Ok(end);
                }
            } else if slice {
                return Ok(End::Slice);
            }
        }
    }

    /// Waits until the server reports something or a signal arrives.
    fn wait_for_more(&mut self, ring: &mut Ring) -> Result<Option<End>, Failure> {
        let client = live(ring.view())?;
        let mut waited = vec![client.as_fd()];
        waited.extend(self.stop.map(StopSignals::as_fd));
        wait::readable(&waited, None)
            .map_err(|error| Failure::other(format!("waiting for the server: {error}")))?;
        Ok(match ring.view().refresh() {
            Ok(_) => None,
            Err(_) => {
                self.say("the server has gone; waiting for it");
                Some(End::Gone)
            }
        })
    }

    /// Delivers one message, however often it takes. What was delivered before it is acknowledged
    /// before the first wait.
    fn deliver(
        &mut self,
        ring: &mut Ring,
        message: &Message,
        before: Cursor,
        acknowledged: &mut Cursor,
    ) -> Result<Option<End>, Failure> {
        let mut wait = RETRY_MIN;
        loop {
            let outcome = self.target.deliver(message);
            let Some(after) = outcome.retry_after() else {
                self.note(message, &outcome);
                return Ok(None);
            };
            if let Some(end) = self.commit(ring, before, acknowledged)? {
                return Ok(Some(end));
            }
            let pause = after.max(wait);
            let reason = outcome.reason.unwrap_or_default();
            let reason = format!("{}: {reason}", message.id());
            // The lock is not held over a wait.
            if matches!(ring, Ring::Own(_)) {
                return Ok(Some(End::Again(reason)));
            }
            self.say(&format!(
                "trying again in {} ms: {reason}",
                pause.as_millis()
            ));
            if nap(self.stop, pause) {
                return Ok(Some(End::Stopped));
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    fn note(&mut self, message: &Message, outcome: &Outcome) {
        let failed = outcome.results().iter().find_map(|result| match result {
            RecipientResult::Fail { text, .. } => Some(text.clone()),
            _ => None,
        });
        match failed {
            None => self.delivered += 1,
            Some(_) if self.target.is_tap() => {}
            Some(text) => {
                self.failures.note(&self.args.name, message, outcome);
                let path = self.failures.path.display().to_string();
                self.say(&format!(
                    "{}: failed, recorded in '{path}': {text}",
                    message.id()
                ));
            }
        }
    }

    /// Flushes the target, then moves the cursor.
    fn commit(
        &mut self,
        ring: &mut Ring,
        cursor: Cursor,
        acknowledged: &mut Cursor,
    ) -> Result<Option<End>, Failure> {
        let flushed = self.target.flush();
        if self.target.is_tap() {
            if flushed.is_err() {
                return Ok(Some(End::Closed));
            }
            self.tap_position = Some((ring.view().reader.ring_id(), cursor.scan_pos));
            return Ok(None);
        }
        let flushed = flushed.and_then(|()| self.failures.flush());
        if let Err(error) = flushed {
            return Ok(Some(End::Again(error.to_string())));
        }
        if cursor == *acknowledged {
            return Ok(None);
        }
        match ring {
            Ring::View(view) => match live(view)?.acknowledge(&self.args.name, cursor) {
                Ok(()) => {}
                Err(ClientError::Refused(refusal)) => {
                    return Err(Failure::other(refusal.to_string()));
                }
                Err(error) => {
                    self.say(&format!("{error}; waiting for the server"));
                    return Ok(Some(End::Gone));
                }
            },
            Ring::Own(own) => {
                let name = consumer_name(&self.args.name)?;
                own.log
                    .acknowledge(&name, cursor.scan_pos, cursor.done_pos)?;
            }
        }
        *acknowledged = cursor;
        Ok(None)
    }
}

fn cursor_of(walk: &Walk) -> Cursor {
    Cursor {
        scan_pos: walk.scan_position(),
        done_pos: walk.position(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn arguments_of_consume_are_read_and_mistakes_named() {
        let args = parse(&words(
            "archive --to maildir:/var/mail/a --ring=/r --create --from 0-7 --until-empty",
        ));
        let expected = ConsumeArguments {
            help: false,
            name: "archive".to_owned(),
            to: TargetName::Maildir("/var/mail/a".into()),
            ring: "/r".into(),
            shard: 0,
            create: true,
            from: Some(Begin::Number(7)),
            until_empty: true,
            failures: None,
            keeps: 0,
        };
        assert_eq!(args, Ok(expected));
        let fails = |text: &str| parse(&words(text)).unwrap_err();
        assert_eq!(fails("--to stdout"), "ringmx consume takes one NAME");
        assert_eq!(fails("a"), "ringmx consume needs --to TARGET");
        assert_eq!(
            fails("a --to ftp:x"),
            "'ftp:x' is no target: maildir:DIR, mbox:FILE, exec:COMMAND or stdout"
        );
        assert_eq!(
            fails("a --to mbox:x --from oldest"),
            "--from belongs to --create ('ringmx consumers seek' moves a consumer)"
        );
        assert_eq!(
            fails("a --to mbox:x --create --from 1-7"),
            "--from '1-7': oldest, newest, or an id of shard 0"
        );
        assert_eq!(fails("a --to"), "--to needs a value");
        assert_eq!(fails("a --fast"), "ringmx consume has no option '--fast'");
        assert!(fails("../a --to stdout").starts_with("'../a': not a name for a consumer"));
    }

    #[test]
    fn arguments_of_consumers_are_read_and_mistakes_named() {
        let args = |text: &str| parse_consumers(&words(text)).map(|args| args.command);
        assert_eq!(args("list --json"), Ok(ConsumersCommand::List));
        assert_eq!(
            args("seek a newest"),
            Ok(ConsumersCommand::Seek("a".to_owned(), Begin::Newest))
        );
        assert_eq!(args("drop a"), Ok(ConsumersCommand::Drop("a".to_owned())));
        assert_eq!(args("--help"), Ok(ConsumersCommand::Help));
        assert_eq!(
            args("drop"),
            Err("ringmx consumers takes list, drop NAME, or seek NAME PLACE".to_owned())
        );
    }
}
