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
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::words::Words;
use crate::clock::{self, Clock, Instant};
use crate::ctl::{self, ClientError, Cursor, Refusal};
use crate::limits::MIB;
use crate::log_cli::view::{Failure, ShardDir, View, registered, shards};
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
/// Wait between two times that the lock is held.
const SLICE_PAUSE: Duration = Duration::from_millis(200);
/// Time between two looks for new shards.
const RESCAN: Duration = Duration::from_secs(5);
/// A shard whose server has gone, while that of other shards is there, is emptied without one after this.
const ORPHAN_WAIT: Duration = Duration::from_secs(30);
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
  --shard N          only this shard (default: all that there are, each in its order)
  --create           makes the consumer when it is missing
  --from PLACE       where a new consumer (or stdout) begins: oldest (default), newest, or a message id; in other
                     shards than that of the id, with what was received from that message's time on
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
  --shard N          only this shard (default: all)
";

/// Where a consumer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At the oldest message kept.
    Oldest,
    /// Behind the newest.
    Newest,
    /// At this message, and in other shards at its time.
    Id(MessageId),
    /// At the message with this number, where there is one shard.
    Number(u64),
}

impl Begin {
    fn parse(text: &str, shard: Option<u32>) -> Result<Begin, String> {
        match (text, shard) {
            ("oldest", _) => Ok(Begin::Oldest),
            ("newest", _) => Ok(Begin::Newest),
            (_, Some(shard)) => MessageId::parse(text, shard)
                .filter(|id| id.shard == shard)
                .map(Begin::Id)
                .ok_or_else(|| format!("'{text}': oldest, newest, or an id of shard {shard}")),
            (_, None) => MessageId::parse(text, 0)
                .map(|id| match text.contains('-') {
                    true => Begin::Id(id),
                    false => Begin::Number(id.number),
                })
                .ok_or_else(|| format!("'{text}': oldest, newest, or a message id")),
        }
    }

    /// Finds out what this means in each of these shards.
    fn locate(self, dirs: &[ShardDir]) -> Result<Spot, Failure> {
        let id = match (self, dirs) {
            (Begin::Oldest, _) => return Ok(Spot::Oldest),
            (Begin::Newest, _) => return Ok(Spot::Newest),
            (Begin::Id(id), _) => id,
            (Begin::Number(number), [only]) => MessageId {
                shard: only.shard,
                number,
            },
            (Begin::Number(number), _) => {
                let text =
                    format!("'{number}': there are several shards, so an id is SHARD-NUMBER");
                return Err(Failure::usage(text));
            }
        };
        let time_ns = match dirs {
            // Nobody asks for the time.
            [only] if only.shard == id.shard => 0,
            _ => time_of(shard_dir(dirs, id.shard)?, id.number)?,
        };
        Ok(Spot::At { id, time_ns })
    }
}

/// A [`Begin`] that means something in every shard.
#[derive(Clone, Copy, Debug)]
enum Spot {
    Oldest,
    Newest,
    At { id: MessageId, time_ns: u64 },
}

/// When the message with this number, or the next one behind it, was received, nanoseconds since 1970; a time that
/// never comes when there is none.
fn time_of(dir: &ShardDir, number: u64) -> Result<u64, Failure> {
    let mut view = View::open(dir)?;
    let window = view.window;
    let failed = |error: io::Error| Failure::storage(format!("reading the ring: {error}"));
    let position = view.reader.position_of_number(window, number);
    let header = view.reader.header(position.map_err(failed)?, window.end);
    Ok(header
        .map_err(failed)?
        .map_or(u64::MAX, |header| header.received_ns))
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
    /// Only this shard; `None` for all.
    pub shard: Option<u32>,
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
    /// Only this shard; `None` for all.
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
        shard: None,
        create: false,
        from: None,
        until_empty: false,
        failures: None,
        keeps: 0,
    };
    let (mut names, mut to, mut from) = (Vec::new(), None, None);
    let mut args = Words::new(args);
    while let Some((flag, arg)) = args.next() {
        let mut value = || args.value(flag);
        match flag {
            "--help" | "-h" => out.help = true,
            "--to" => to = Some(TargetName::parse(&value()?)?),
            "--ring" => out.ring = value()?.into(),
            "--shard" => out.shard = Some(parse_shard(&value()?)?),
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
    let mut args = Words::new(args);
    while let Some((flag, arg)) = args.next() {
        let mut value = || args.value(flag);
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
            let begin = Begin::parse(place, out.shard)?;
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
            _ => Failure {
                unknown_consumer: matches!(error, ConsumerError::Unknown),
                ..Failure::other(error.to_string())
            },
        }
    }
}

/// Turns a place into the one of the control protocol: numbers are looked up here and not in the
/// server's loop.
fn resolve(view: &mut View, spot: Spot) -> Result<ctl::From, Failure> {
    let (id, time_ns) = match spot {
        Spot::Oldest => return Ok(ctl::From::Oldest),
        Spot::Newest => return Ok(ctl::From::Newest),
        Spot::At { id, time_ns } => (id, time_ns),
    };
    let window = view.window;
    let position = match id.shard == view.reader.shard() {
        true => view.reader.position_of_number(window, id.number),
        false => view.reader.position_of_time(window, time_ns),
    };
    let position =
        position.map_err(|error| Failure::storage(format!("reading the ring: {error}")))?;
    Ok(match position == window.end {
        true => ctl::From::Newest,
        false => ctl::From::Position(position),
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
    let dirs = chosen(shards(&args.ring)?, args.shard)?;
    match &args.command {
        ConsumersCommand::Help | ConsumersCommand::List => list(args, &dirs),
        ConsumersCommand::Drop(name) => {
            change_all(&dirs, &mut |ring| match ring {
                Ring::View(view) => Ok(live(view)?.drop_consumer(name)?),
                Ring::Own(own) => Ok(own.log.drop_consumer(&consumer_name(name)?)?),
            })?;
            Ok(format!("{name} is dropped\n"))
        }
        ConsumersCommand::Seek(name, begin) => {
            let spot = begin.locate(&dirs)?;
            change_all(&dirs, &mut |ring| match ring {
                Ring::View(view) => {
                    let from = resolve(view, spot)?;
                    Ok(live(view)?.seek(name, from)?)
                }
                Ring::Own(own) => {
                    let from = resolve(&mut own.view, spot)?;
                    own.log.seek(&consumer_name(name)?, start_at(from))?;
                    Ok(())
                }
            })?;
            Ok(format!("{name} is moved\n"))
        }
    }
}

/// The shards that a command is about.
fn chosen(dirs: Vec<ShardDir>, shard: Option<u32>) -> Result<Vec<ShardDir>, Failure> {
    match shard {
        Some(shard) => Ok(vec![shard_dir(&dirs, shard)?.clone()]),
        None => Ok(dirs),
    }
}

/// Does something to a consumer in every shard. One that does not know it is passed over, unless none does; the others
/// are done also behind a failure, which is then told with its shard.
fn change_all(
    dirs: &[ShardDir],
    action: &mut dyn FnMut(&mut Ring) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut known, mut unknown, mut failed) = (false, None, None);
    for dir in dirs {
        match change(dir, &mut *action) {
            Ok(()) => known = true,
            Err(failure) if failure.unknown_consumer => unknown = Some(failure),
            Err(failure) => {
                failed.get_or_insert(match dirs.len() {
                    1 => failure,
                    _ => Failure {
                        text: format!("shard {}: {}", dir.shard, failure.text),
                        ..failure
                    },
                });
            }
        }
    }
    match (failed, unknown) {
        (Some(failure), _) => Err(failure),
        (None, Some(failure)) if !known => Err(failure),
        _ => Ok(()),
    }
}

fn list(args: &ConsumersArguments, dirs: &[ShardDir]) -> Result<String, Failure> {
    let now_ns = Clock::new().wall_ns();
    let mut rows = Vec::new();
    for dir in dirs {
        let mut view = View::open(dir)?;
        let found = consumer_rows(&mut view)?;
        rows.extend(found.iter().map(|row| row.json(now_ns)));
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
        nap(Duration::from_millis(50));
    }
}

fn in_use(dir: &ShardDir) -> Failure {
    Failure::other(format!(
        "the ring in '{}' is in use and its server does not answer",
        dir.path.display()
    ))
}

fn nap(time: Duration) {
    // poll(2) fails only for lack of memory; then the wait is short.
    let _ = wait::readable(&[], Some(time));
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
    let dirs = chosen(shards(&args.ring)?, args.shard)?;
    let spot = args.from.unwrap_or(Begin::Oldest).locate(&dirs)?;
    let name = consumer_name(&args.name)?;
    let mut known = false;
    for dir in &dirs {
        known = known || registered(dir)?.contains(&name);
    }
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
    let clock = Clock::new();
    let mut consumer = Consumer {
        args,
        spot,
        known,
        target,
        stop,
        err,
        clock,
        shards: dirs
            .into_iter()
            .map(|dir| Shard::new(args, dir, clock.now()))
            .collect(),
        rescan_at: clock.now().after(RESCAN),
        delivered: 0,
        failed: 0,
    };
    let result = consumer.run();
    let mut done = format!("{} messages delivered", consumer.delivered);
    if consumer.failed > 0 {
        done += &format!(", {} failed", consumer.failed);
    }
    consumer.say(&done);
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

/// What became of a look at one shard.
enum Visit {
    /// Something was delivered or changed: look again soon.
    Busy,
    /// Nothing is to be done before its time, or before its server reports.
    Idle,
    /// The reader of the output has gone.
    Closed,
}

/// Why work on an open shard ends.
enum End {
    /// Everything durable is delivered, and nobody writes to it.
    Empty,
    /// The server has gone.
    Gone,
    /// The time for which the lock may be held is over.
    Slice,
    /// The target or the recording of failures failed: begin again at the acknowledged cursor, later.
    Again(String),
    /// The reader of the output has gone.
    Closed,
}

/// A message that could not be delivered yet.
struct Pending {
    message: Message,
    /// The cursor in front of it.
    before: Cursor,
    /// How long the next wait is at least.
    wait: Duration,
    due: Instant,
}

/// A shard that is being read.
struct Open {
    ring: Ring,
    walk: Walk,
    acknowledged: Cursor,
    pending: Option<Pending>,
    opened: Instant,
}

/// One shard of the consumer.
struct Shard {
    dir: ShardDir,
    open: Option<Open>,
    failures: Failures,
    /// It had a server once: that one is waited for, taking its lock would keep it from starting.
    had_server: bool,
    /// When the server was seen last, where it had one.
    lost_at: Instant,
    /// Everything was delivered while nobody wrote to it.
    drained: bool,
    /// Everything durable was delivered, at one time.
    emptied: bool,
    /// It was said that the server is waited for.
    said: bool,
    /// Wait before it is opened again; doubled each time.
    wait: Duration,
    /// When it is opened again.
    due: Instant,
    /// Where a tap goes on after the server was gone: ring and position.
    tap_position: Option<([u8; 16], u64)>,
}

impl Shard {
    fn new(args: &ConsumeArguments, dir: ShardDir, now: Instant) -> Shard {
        let path = match &args.failures {
            Some(path) => path.clone(),
            None => dir.path.join(format!("{}.failed", args.name)),
        };
        Shard {
            dir,
            open: None,
            failures: Failures {
                path,
                pending: Vec::new(),
            },
            had_server: false,
            lost_at: now,
            drained: false,
            emptied: false,
            said: false,
            wait: RETRY_MIN,
            due: now,
            tap_position: None,
        }
    }

    fn is_live(&self) -> bool {
        let open = self.open.as_ref();
        open.is_some_and(|open| matches!(&open.ring, Ring::View(view) if view.is_live()))
    }
}

struct Consumer<'a> {
    args: &'a ConsumeArguments,
    /// Where it begins in a shard that does not know it.
    spot: Spot,
    /// Some shard knows it: then it belongs into all of them.
    known: bool,
    target: Box<dyn Target + 'a>,
    stop: Option<&'a StopSignals>,
    err: &'a mut dyn Write,
    clock: Clock,
    shards: Vec<Shard>,
    /// When the directory is looked at for new shards.
    rescan_at: Instant,
    delivered: u64,
    /// Messages whose failure was recorded.
    failed: u64,
}

impl Consumer<'_> {
    fn say(&mut self, text: &str) {
        // Nowhere is left to say that standard error is closed.
        let _ = writeln!(self.err, "ringmx consume {}: {text}", self.args.name);
    }

    /// As [`Consumer::say`], about one of several shards.
    fn say_of(&mut self, index: usize, text: &str) {
        match self.shards.len() {
            1 => self.say(text),
            _ => {
                let shard = self.shards[index].dir.shard;
                self.say(&format!("shard {shard}: {text}"));
            }
        }
    }

    /// Looks at the shards in turn, a batch of messages each, until it is stopped or nothing is left.
    fn run(&mut self) -> Result<(), Failure> {
        loop {
            let mut busy = false;
            for index in 0..self.shards.len() {
                if self.is_stopped() {
                    return self.close_all();
                }
                match self.visit(index)? {
                    Visit::Busy => busy = true,
                    Visit::Idle => {}
                    Visit::Closed => return Ok(()),
                }
            }
            if self.args.until_empty && self.shards.iter().all(|shard| shard.emptied) {
                return self.close_all();
            }
            if !busy {
                self.wait()?;
            }
            if self.is_stopped() {
                return self.close_all();
            }
            self.rescan();
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_some_and(StopSignals::is_stopped)
    }

    /// What was delivered has been acknowledged by now; locks are given back.
    fn close_all(&mut self) -> Result<(), Failure> {
        let mut result = Ok(());
        for shard in &mut self.shards {
            if let Some(open) = shard.open.take() {
                result = result.and(open.ring.close());
            }
        }
        result
    }

    /// Waits until a server reports something, a shard is due, or a signal arrives.
    fn wait(&mut self) -> Result<(), Failure> {
        let now = self.clock.now();
        let mut until = self.rescan_at;
        let mut waited = Vec::new();
        for shard in &mut self.shards {
            match &mut shard.open {
                None => until = until.min(shard.due),
                Some(open) => {
                    if let Some(pending) = &open.pending {
                        until = until.min(pending.due);
                    }
                    // Also while a message waits: a server that goes is noticed, and its reports are read.
                    if let Ring::View(view) = &mut open.ring
                        && let Some(client) = view.client()
                    {
                        waited.push(client.as_fd());
                    }
                }
            }
        }
        waited.extend(self.stop.map(StopSignals::as_fd));
        let time = Duration::from_nanos(until.since_ns(now));
        let stdout = io::stdout();
        let output = self.target.is_tap().then(|| stdout.as_fd());
        let is_read = wait::any_readable(&waited, output, Some(time))
            .map_err(|error| Failure::other(format!("waiting for the server: {error}")))?;
        match is_read {
            true => Ok(()),
            false => Err(Failure::output(&io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Takes up shards that a server with more workers has made.
    fn rescan(&mut self) {
        let now = self.clock.now();
        if now < self.rescan_at || self.args.shard.is_some() {
            return;
        }
        self.rescan_at = now.after(RESCAN);
        // A directory that can't be read now can perhaps be later.
        for dir in shards(&self.args.ring).unwrap_or_default() {
            if !self.shards.iter().any(|shard| shard.dir == dir) {
                self.shards.push(Shard::new(self.args, dir, now));
            }
        }
    }

    /// Does what is to be done for one shard, a batch at most.
    fn visit(&mut self, index: usize) -> Result<Visit, Failure> {
        let now = self.clock.now();
        let mut open = match self.shards[index].open.take() {
            Some(open) => open,
            None if now < self.shards[index].due => return Ok(Visit::Idle),
            None => match self.open(index)? {
                Some(open) => open,
                None => return Ok(Visit::Idle),
            },
        };
        let delivered = self.delivered;
        let end = match self.batch(index, &mut open) {
            Ok(Err(end)) => end,
            Ok(Ok(visit)) => {
                self.shards[index].open = Some(open);
                return Ok(visit);
            }
            Err(failure) => {
                // The failure has the say.
                let _ = open.ring.close();
                return Err(failure);
            }
        };
        let was_live = open.ring.view().is_live();
        open.ring.close()?;
        let shard = &mut self.shards[index];
        if self.delivered > delivered {
            shard.wait = RETRY_MIN;
        }
        let now = self.clock.now();
        shard.lost_at = now;
        let pause = match end {
            // A server can take the lock now.
            End::Slice => SLICE_PAUSE,
            End::Empty => {
                shard.drained = true;
                shard.emptied = true;
                RETRY_MIN
            }
            End::Gone => {
                shard.wait = RETRY_MIN;
                if was_live && !std::mem::replace(&mut shard.said, true) {
                    self.say_of(index, "the server has gone; waiting for it");
                }
                RETRY_MIN
            }
            End::Again(reason) => {
                let pause = shard.wait;
                shard.wait = (pause * 2).min(RETRY_MAX);
                let pause_ms = pause.as_millis();
                self.say_of(index, &format!("trying again in {pause_ms} ms: {reason}"));
                pause
            }
            End::Closed => return Ok(Visit::Closed),
        };
        self.shards[index].due = now.after(pause);
        Ok(Visit::Idle)
    }

    /// Opens a shard through its server or with its lock, and finds the place to go on; `None` when that has to wait.
    fn open(&mut self, index: usize) -> Result<Option<Open>, Failure> {
        let now = self.clock.now();
        let others_live = (0..self.shards.len()).any(|at| at != index && self.shards[at].is_live());
        let shard = &self.shards[index];
        // A server that serves other shards and not this one has fewer workers than it had.
        let orphaned = others_live && now.since_ns(shard.lost_at) > clock::nanos(ORPHAN_WAIT);
        let without_server =
            !shard.drained && (!shard.had_server || self.args.until_empty || orphaned);
        let dir = &shard.dir;
        let ring = match without_server {
            // Who only looks on changes nothing, and needs no lock for itself.
            true if self.target.is_tap() => match View::live(dir)? {
                Some(view) => Some(Ring::View(Box::new(view))),
                None => View::offline(dir)?.map(|view| Ring::View(Box::new(view))),
            },
            true => Ring::open(dir)?,
            false => View::live(dir)?.map(|view| Ring::View(Box::new(view))),
        };
        let Some(mut ring) = ring else {
            return self.wait_for_server(index);
        };
        let shard = &mut self.shards[index];
        if ring.view().is_live() {
            shard.had_server = true;
            shard.drained = false;
        }
        shard.said = false;
        let Some(cursor) = self.begin(index, &mut ring)? else {
            self.shards[index].due = now.after(RETRY_MIN);
            return Ok(None);
        };
        self.known = true;
        Ok(Some(Open {
            ring,
            walk: Walk::resume(cursor.scan_pos, cursor.done_pos),
            acknowledged: cursor,
            pending: None,
            opened: now,
        }))
    }

    fn wait_for_server(&mut self, index: usize) -> Result<Option<Open>, Failure> {
        let now = self.clock.now();
        if self.shards[index].drained {
            // Nothing is left in it, and nobody writes to it.
            self.shards[index].due = now.after(RECONNECT_MAX);
            return Ok(None);
        }
        if self.args.until_empty && now.0 > clock::nanos(UNTIL_EMPTY_WAIT) {
            return Err(in_use(&self.shards[index].dir));
        }
        if !std::mem::replace(&mut self.shards[index].said, true) {
            self.say_of(index, "waiting for the server");
        }
        let shard = &mut self.shards[index];
        shard.wait = (shard.wait * 2).min(RECONNECT_MAX);
        shard.due = now.after(shard.wait);
        Ok(None)
    }

    /// Where to begin; `None` when the server went before it said so.
    fn begin(&mut self, index: usize, ring: &mut Ring) -> Result<Option<Cursor>, Failure> {
        if self.target.is_tap() {
            let position = self.begin_tap(index, ring.view())?;
            return Ok(Some(Cursor {
                scan_pos: position,
                done_pos: position,
            }));
        }
        let create = match self.args.create || self.known {
            true => Some(resolve(ring.view(), self.spot)?),
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

    fn begin_tap(&mut self, index: usize, view: &mut View) -> Result<u64, Failure> {
        match self.shards[index].tap_position {
            Some((ring_id, position)) if ring_id == view.reader.ring_id() => Ok(position),
            _ => {
                let window = view.window;
                Ok(match resolve(view, self.spot)? {
                    ctl::From::Oldest => window.tail,
                    ctl::From::Newest => window.end,
                    ctl::From::Position(position) => position,
                })
            }
        }
    }

    /// Delivers a batch at most, flushes and acknowledges it. The inner error says that the shard is to be closed.
    fn batch(&mut self, index: usize, open: &mut Open) -> Result<Result<Visit, End>, Failure> {
        let (mut messages, mut octets) = (0, 0);
        if let Some(pending) = open.pending.take() {
            if self.clock.now() < pending.due {
                open.pending = Some(pending);
                return Ok(match open.ring.view().refresh() {
                    Ok(_) => Ok(Visit::Idle),
                    Err(_) => Err(End::Gone),
                });
            }
            let Pending {
                message,
                before,
                wait,
                ..
            } = pending;
            if let Some(result) = self.deliver(index, open, message, before, wait)? {
                return Ok(result);
            }
            messages += 1;
        }
        let mut stopped = false;
        while messages < BATCH_MESSAGES_MAX
            && octets < BATCH_OCTETS_MAX
            && !stopped
            && open.walk.position() < open.ring.view().window.end
        {
            let before = cursor_of(&open.walk);
            match open.ring.view().step(&mut open.walk)? {
                Step::Message(message) => {
                    octets += message.body().len() as u64;
                    messages += 1;
                    let delivered = self.deliver(index, open, message, before, RETRY_MIN)?;
                    if let Some(result) = delivered {
                        return Ok(result);
                    }
                }
                Step::Lapped { from, to } => {
                    let text = format!("overwritten before it was read: positions {from} to {to}");
                    self.say_of(index, &text);
                }
                Step::Damaged { reason, .. } => {
                    let view = open.ring.view();
                    let (from, to) = open
                        .walk
                        .skip_damage(&mut view.reader, view.window.end)
                        .map_err(|error| Failure::storage(format!("reading the ring: {error}")))?;
                    let text = format!("damaged, left out: positions {from} to {to}: {reason}");
                    self.say_of(index, &text);
                }
                Step::Other | Step::End => {}
            }
            stopped = self.is_stopped();
        }
        let cursor = cursor_of(&open.walk);
        if let Err(end) = self.commit(index, open, cursor)? {
            return Ok(Err(end));
        }
        if open.walk.position() < open.ring.view().window.end {
            let held = self.clock.now().since_ns(open.opened);
            let slice = matches!(open.ring, Ring::Own(_)) && held > clock::nanos(SLICE);
            return Ok(if slice {
                Err(End::Slice)
            } else {
                Ok(Visit::Busy)
            });
        }
        Ok(match open.ring.view().refresh() {
            Ok(window) if window.end > open.walk.position() => Ok(Visit::Busy),
            Ok(_) if !open.ring.view().is_live() => Err(End::Empty),
            Ok(_) => {
                self.shards[index].emptied = true;
                Ok(Visit::Idle)
            }
            Err(_) => Err(End::Gone),
        })
    }

    /// Delivers one message, or puts it aside until it is tried again; `Some` ends the batch. What was delivered before
    /// it is acknowledged before the wait. Only its own shard waits for it.
    fn deliver(
        &mut self,
        index: usize,
        open: &mut Open,
        message: Message,
        before: Cursor,
        wait: Duration,
    ) -> Result<Option<Result<Visit, End>>, Failure> {
        let outcome = self.target.deliver(&message);
        let Some(after) = outcome.retry_after() else {
            self.note(index, &message, &outcome);
            return Ok(None);
        };
        if let Err(end) = self.commit(index, open, before)? {
            return Ok(Some(Err(end)));
        }
        let pause = after.max(wait);
        let reason = outcome.reason.unwrap_or_default();
        let reason = format!("{}: {reason}", message.id());
        // The lock is not held over a wait.
        if matches!(open.ring, Ring::Own(_)) {
            return Ok(Some(Err(End::Again(reason))));
        }
        self.say(&format!(
            "trying again in {} ms: {reason}",
            pause.as_millis()
        ));
        open.pending = Some(Pending {
            message,
            before,
            wait: (wait * 2).min(RETRY_MAX),
            due: self.clock.now().after(pause),
        });
        Ok(Some(Ok(Visit::Idle)))
    }

    fn note(&mut self, index: usize, message: &Message, outcome: &Outcome) {
        let failed = outcome.results().iter().find_map(|result| match result {
            RecipientResult::Fail { text, .. } => Some(text.clone()),
            _ => None,
        });
        match failed {
            None => self.delivered += 1,
            Some(_) if self.target.is_tap() => {}
            Some(text) => {
                self.failed += 1;
                let failures = &mut self.shards[index].failures;
                failures.note(&self.args.name, message, outcome);
                let path = failures.path.display().to_string();
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
        index: usize,
        open: &mut Open,
        cursor: Cursor,
    ) -> Result<Result<(), End>, Failure> {
        let flushed = self.target.flush();
        let shard = &mut self.shards[index];
        if self.target.is_tap() {
            if flushed.is_err() {
                return Ok(Err(End::Closed));
            }
            shard.tap_position = Some((open.ring.view().reader.ring_id(), cursor.scan_pos));
            return Ok(Ok(()));
        }
        let flushed = flushed.and_then(|()| shard.failures.flush());
        if let Err(error) = flushed {
            return Ok(Err(End::Again(error.to_string())));
        }
        if cursor == open.acknowledged {
            return Ok(Ok(()));
        }
        match &mut open.ring {
            Ring::View(view) => match live(view)?.acknowledge(&self.args.name, cursor) {
                Ok(()) => {}
                Err(ClientError::Refused(refusal)) => {
                    return Err(Failure::other(refusal.to_string()));
                }
                Err(error) => {
                    shard.said = true;
                    self.say_of(index, &format!("{error}; waiting for the server"));
                    return Ok(Err(End::Gone));
                }
            },
            Ring::Own(own) => {
                let name = consumer_name(&self.args.name)?;
                own.log
                    .acknowledge(&name, cursor.scan_pos, cursor.done_pos)?;
            }
        }
        open.acknowledged = cursor;
        Ok(Ok(()))
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
            shard: None,
            create: true,
            from: Some(Begin::Id(MessageId {
                shard: 0,
                number: 7,
            })),
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
            fails("a --to mbox:x --create --from 1-7 --shard 0"),
            "--from '1-7': oldest, newest, or an id of shard 0"
        );
        assert_eq!(
            fails("a --to mbox:x --create --from 1-x"),
            "--from '1-x': oldest, newest, or a message id"
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
