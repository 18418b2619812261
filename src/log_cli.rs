//! `ringmx log`: reads what the ring holds, beside a running server or without one. Changes
//! nothing.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::cli::words::Words;
use crate::clock::{self, Clock};
use crate::config::units::parse_size;
use crate::consume::target::{Maildir, Mbox, Target};
use crate::limits::{GIB, KIB, MIB};
use crate::ringlog::consumer::{Step, Walk};
use crate::ringlog::reader::{Message, MessageId, NewestFirst};
use crate::sys::wait;

pub mod rescue;
pub mod text;
pub mod view;

use rescue::RescueArguments;
use view::{EXIT_STORAGE, Failure, ShardDir, View, shards};

/// Directory of the rings when none is given.
pub const RING_DIR_DEFAULT: &str = "./ringmx-data";
/// Messages that `ringmx log` alone shows.
pub const NEWEST_DEFAULT: usize = 20;
/// Messages that a newest-first listing collects at most.
pub const LIMIT_MAX: usize = 1_000_000;

/// Text of `ringmx log --help`.
pub const HELP: &str = "\
Reads what a ring holds: beside a running server, or without one. Changes nothing.

  ringmx log                      the newest 20 messages, one line each
  ringmx log ls                   all messages, oldest first
  ringmx log cat ID               one message: envelope, then content; ID is 0-1, or 1 where there is one shard
  ringmx log cat --message-id ID  the newest message with this Message-ID
  ringmx log follow               messages as they become durable, until the server ends
  ringmx log info                 identity, fill and consumers of the ring
  ringmx log verify               checks every checksum; exit code 74 when something is damaged
  ringmx log export --maildir DIR | --mbox FILE | --eml DIR
  ringmx log rescue               saves what is whole from a damaged ring (ringmx log rescue --help)

Options:
  --ring DIR         directory of the ring (default ./ringmx-data)
  --json             one JSON object per message (info, verify: one in all)
  --raw              cat: the exact octets as stored, nothing else
  --from ADDR        only this reverse-path; '@example.org' takes a whole domain (ls, follow, export)
  --to ADDR          only with this forward-path; likewise
  --message-id ID    only with this Message-ID field
  --since ID|TIME    from this message or time on: 0-17, 2026-11-23T08:00:00Z, or 90s, 10m, 2h, 7d ago; in other
                     shards than that of the message, from its time on
  --limit N          no more than the newest N; with --since no more than the first N
";

/// What `ringmx log` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogCommand {
    /// Print [`HELP`].
    Help,
    /// Identity, fill, consumers.
    Info,
    /// Lists messages.
    Ls,
    /// One message: by id, or by the `--message-id` of the filter.
    Cat(Option<String>),
    /// New messages as they come.
    Follow,
    /// Checks everything.
    Verify,
    /// Writes messages to files.
    Export(ExportTo),
    /// Saves what is whole from a damaged ring.
    Rescue(RescueArguments),
    /// Print [`rescue::HELP`].
    RescueHelp,
}

/// Where `export` writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportTo {
    /// A Maildir.
    Maildir(PathBuf),
    /// An mbox file, appended to.
    Mbox(PathBuf),
    /// A directory with one file per message, `ID.eml`, its exact octets.
    Eml(PathBuf),
}

/// Arguments of `ringmx log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogArguments {
    /// What to do.
    pub command: LogCommand,
    /// Directory that holds `shard-0`.
    pub ring: PathBuf,
    /// JSON instead of text.
    pub json: bool,
    /// Exact octets (cat).
    pub raw: bool,
    /// Only this reverse-path.
    pub from: Option<String>,
    /// Only with this forward-path.
    pub to: Option<String>,
    /// Only with this Message-ID.
    pub message_id: Option<String>,
    /// From this message or time on.
    pub since: Option<String>,
    /// At most so many messages.
    pub limit: Option<usize>,
}

/// Reads the words behind `ringmx log`.
///
/// # Errors
/// One sentence for the user; the exit code is [`view::EXIT_USAGE`].
pub fn parse(args: &[String]) -> Result<LogArguments, String> {
    let mut out = LogArguments {
        command: LogCommand::Ls,
        ring: RING_DIR_DEFAULT.into(),
        json: false,
        raw: false,
        from: None,
        to: None,
        message_id: None,
        since: None,
        limit: None,
    };
    let mut words: Vec<&str> = Vec::new();
    let mut export = Vec::new();
    let mut rescue = RescueArguments::default();
    let mut args = Words::new(args);
    while let Some((flag, arg)) = args.next() {
        let mut value = || args.value(flag);
        match flag {
            "--help" | "-h" => out.command = LogCommand::Help,
            "--json" => out.json = true,
            "--raw" => out.raw = true,
            "--ring" => out.ring = value()?.into(),
            "--from" => out.from = Some(value()?),
            "--to" => out.to = Some(value()?),
            "--message-id" => out.message_id = Some(value()?),
            "--since" => out.since = Some(value()?),
            "--limit" => {
                let text = value()?;
                let limit = text
                    .parse()
                    .ok()
                    .filter(|limit| (1..=LIMIT_MAX).contains(limit));
                let allowed = || format!("--limit '{text}': a number from 1 to {LIMIT_MAX}");
                out.limit = Some(limit.ok_or_else(allowed)?);
            }
            "--maildir" => export.push(ExportTo::Maildir(value()?.into())),
            "--mbox" => export.push(ExportTo::Mbox(value()?.into())),
            "--eml" => export.push(ExportTo::Eml(value()?.into())),
            "--to-ring" => rescue.to_ring = Some(value()?.into()),
            "--file" => rescue.file = Some(value()?.into()),
            "--include-released" => rescue.released = true,
            "--list" => rescue.list = true,
            "--ring-size" => {
                let size = parse_size(&value()?);
                rescue.ring_size = Some(size.map_err(|reason| format!("--ring-size: {reason}"))?);
            }
            _ if flag.starts_with('-') => {
                return Err(format!("ringmx log has no option '{flag}'"));
            }
            _ => words.push(arg),
        }
    }
    if out.command == LogCommand::Help {
        if words[..] == ["rescue"] {
            out.command = LogCommand::RescueHelp;
        }
        return Ok(out);
    }
    if words[..] == ["rescue"] {
        return parse_rescue(out, rescue, export);
    }
    if rescue != RescueArguments::default() {
        return Err(
            "--to-ring, --file, --ring-size, --include-released and --list belong to ringmx log rescue"
                .to_owned(),
        );
    }
    out.command = command_of(&words, &mut out, &mut export)?;
    if !export.is_empty() {
        return Err("--maildir, --mbox and --eml belong to ringmx log export".to_owned());
    }
    if out.raw && (out.json || !matches!(out.command, LogCommand::Cat(_))) {
        return Err("--raw belongs to ringmx log cat, without --json".to_owned());
    }
    Ok(out)
}

/// What the words other than options ask for; an export takes its one target out of `export`.
fn command_of(
    words: &[&str],
    out: &mut LogArguments,
    export: &mut Vec<ExportTo>,
) -> Result<LogCommand, String> {
    Ok(match words[..] {
        [] => {
            out.limit = out.limit.or(Some(NEWEST_DEFAULT));
            LogCommand::Ls
        }
        ["ls"] => LogCommand::Ls,
        ["info"] => LogCommand::Info,
        ["follow"] => LogCommand::Follow,
        ["verify"] => LogCommand::Verify,
        ["help"] => LogCommand::Help,
        ["cat", id] if out.message_id.is_none() => LogCommand::Cat(Some(id.to_owned())),
        ["cat"] if out.message_id.is_some() => LogCommand::Cat(None),
        ["cat", ..] => return Err("ringmx log cat takes one ID, or --message-id ID".to_owned()),
        ["export"] => match <[ExportTo; 1]>::try_from(std::mem::take(export)) {
            Ok([to]) => LogCommand::Export(to),
            Err(_) => {
                return Err(
                    "ringmx log export takes one of --maildir DIR, --mbox FILE, --eml DIR"
                        .to_owned(),
                );
            }
        },
        [first, ..] => {
            return Err(format!(
                "'{first}' is nothing that ringmx log does: info, ls, cat, follow, verify, export, rescue"
            ));
        }
    })
}

fn parse_rescue(
    mut out: LogArguments,
    mut rescue: RescueArguments,
    targets: Vec<ExportTo>,
) -> Result<LogArguments, String> {
    let filters = [&out.from, &out.to, &out.message_id, &out.since];
    if out.raw || out.limit.is_some() || filters.iter().any(|filter| filter.is_some()) {
        return Err("ringmx log rescue saves all messages: it takes no filters".to_owned());
    }
    for target in targets {
        let (place, path) = match target {
            ExportTo::Maildir(path) => (&mut rescue.maildir, path),
            ExportTo::Mbox(path) => (&mut rescue.mbox, path),
            ExportTo::Eml(path) => (&mut rescue.eml, path),
        };
        if place.replace(path).is_some() {
            return Err("ringmx log rescue takes one target of each kind".to_owned());
        }
    }
    rescue::check(&rescue)?;
    out.command = LogCommand::Rescue(rescue);
    Ok(out)
}

/// Runs `ringmx log`. Returns the exit code; whatever went wrong is said on `err` in one line.
pub fn run(args: &LogArguments, out: &mut dyn Write, err: &mut dyn Write) -> i32 {
    let mut out = BufWriter::with_capacity(64 * 1_024, out);
    let mut tool = Tool {
        args,
        out: &mut out,
        err,
    };
    let result = tool.run().and_then(|code| {
        tool.out.flush().map_err(|error| Failure::output(&error))?;
        Ok(code)
    });
    match result {
        Ok(code) => code,
        Err(failure) => {
            // What was found before the failure is shown; a closed output is no further news.
            let _ = tool.out.flush();
            if !failure.text.is_empty() {
                let _ = writeln!(tool.err, "ringmx log: {failure}");
            }
            failure.code
        }
    }
}

struct Tool<'a, 'b> {
    args: &'a LogArguments,
    out: &'a mut BufWriter<&'b mut dyn Write>,
    err: &'a mut dyn Write,
}

impl Tool<'_, '_> {
    fn run(&mut self) -> Result<i32, Failure> {
        match &self.args.command {
            LogCommand::Help => self.print(HELP.as_bytes())?,
            LogCommand::Info => self.info()?,
            LogCommand::Ls => self.ls()?,
            LogCommand::Cat(id) => self.cat(id.as_deref())?,
            LogCommand::Follow => self.follow()?,
            LogCommand::Verify => return self.verify(),
            LogCommand::RescueHelp => self.print(rescue::HELP.as_bytes())?,
            LogCommand::Rescue(rescue) => {
                return rescue::run(
                    &self.args.ring,
                    self.args.json,
                    rescue,
                    &mut self.out,
                    &mut *self.err,
                );
            }
            LogCommand::Export(to) => self.export(to)?,
        }
        Ok(0)
    }

    fn print(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out
            .write_all(bytes)
            .map_err(|error| Failure::output(&error))
    }

    fn warn(&mut self, text: &str) {
        // Nowhere is left to say that standard error is closed.
        let _ = writeln!(self.err, "ringmx log: {text}");
    }

    fn shards(&self) -> Result<Vec<ShardDir>, Failure> {
        shards(&self.args.ring)
    }

    fn show(&mut self, message: &Message) -> Result<(), Failure> {
        let text = match self.args.json {
            true => format!("{}\n", text::json(message, false)),
            false => text::line(message),
        };
        self.print(text.as_bytes())
    }

    fn ls(&mut self) -> Result<(), Failure> {
        match (self.args.limit, &self.args.since) {
            (Some(limit), None) => self.newest(limit),
            (limit, _) => {
                let mut left = limit.unwrap_or(usize::MAX);
                self.each_oldest_first(&mut |tool, message| {
                    tool.show(message)?;
                    left -= 1;
                    Ok(left > 0)
                })
            }
        }
    }

    /// Calls `each` for every message that the filters let through, oldest first, until it returns
    /// false. Shards are read side by side: within one the order is that of its log, between them
    /// that of the times of receipt.
    fn each_oldest_first(
        &mut self,
        each: &mut dyn FnMut(&mut Self, &Message) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let dirs = self.shards()?;
        let since = self.since(&dirs)?;
        let mut lanes = Vec::new();
        for dir in &dirs {
            let mut view = View::open(dir)?;
            let walk = Walk::new(since.position(&mut view)?);
            // Messages that become durable meanwhile are left to the next call: this one ends.
            let end = view.window.end;
            let mut lane = Lane {
                view,
                walk,
                end,
                next: None,
            };
            self.advance(&mut lane)?;
            lanes.push(lane);
        }
        let key = |lane: &Lane| {
            let next = lane.next.as_ref();
            next.map_or((u64::MAX, u32::MAX), |next| {
                (next.received_ns, lane.view.reader.shard())
            })
        };
        while let Some(lane) = lanes.iter_mut().min_by_key(|lane| key(lane))
            && let Some(message) = lane.next.take()
        {
            if !each(self, &message)? {
                return Ok(());
            }
            self.advance(lane)?;
        }
        Ok(())
    }

    /// Reads on to the next message that the filters let through; none is the end of the lane.
    fn advance(&mut self, lane: &mut Lane) -> Result<(), Failure> {
        while lane.walk.position() < lane.end {
            match self.step(&mut lane.view, &mut lane.walk)? {
                Step::Message(message) if self.wanted(&message) => {
                    lane.next = Some(message);
                    return Ok(());
                }
                Step::End => break,
                _ => {}
            }
        }
        Ok(())
    }

    /// One step that reports and skips damage.
    fn step(&mut self, view: &mut View, walk: &mut Walk) -> Result<Step, Failure> {
        let step = view.step(walk)?;
        match &step {
            Step::Damaged { reason, .. } => {
                let (from, to) = walk
                    .skip_damage(&mut view.reader, view.window.end)
                    .map_err(|error| Failure::storage(format!("reading the ring: {error}")))?;
                self.warn(&format!(
                    "damaged, left out: positions {from} to {to}: {reason}"
                ));
            }
            Step::Lapped { from, to } => {
                self.warn(&format!(
                    "overwritten before it was read: positions {from} to {to} ({} bytes)",
                    to - from
                ));
            }
            _ => {}
        }
        Ok(step)
    }

    /// What `--since` means in all these shards. An id names a message of one shard; in the others
    /// it stands for the time of that message.
    fn since(&self, dirs: &[ShardDir]) -> Result<Since, Failure> {
        let Some(since) = &self.args.since else {
            return Ok(Since::Tail);
        };
        let Some(id) = MessageId::parse(since, dirs[0].shard) else {
            let now_ns = Clock::new().wall_ns();
            let time_ns = parse_time(since, now_ns).ok_or_else(|| {
                Failure::usage(format!(
                    "--since '{since}': an id (0-17), a time (2026-11-23T08:00:00Z) or an age (10m)"
                ))
            })?;
            return Ok(Since::Time(time_ns));
        };
        if dirs.len() == 1 && id.shard == dirs[0].shard {
            return Ok(Since::Id { id, time_ns: 0 });
        }
        if !since.contains('-') {
            return Err(Failure::usage(format!(
                "--since '{since}': there are several shards, so an id is SHARD-NUMBER"
            )));
        }
        let dir = dirs.iter().find(|dir| dir.shard == id.shard);
        let dir = dir.ok_or_else(|| {
            Failure::usage(format!("--since '{since}': there is no shard {}", id.shard))
        })?;
        let mut view = View::open(dir)?;
        let failed = |error: io::Error| Failure::storage(format!("reading the ring: {error}"));
        let position = view.reader.position_of_number(view.window, id.number);
        let header = view
            .reader
            .header(position.map_err(failed)?, view.window.end)
            .map_err(failed)?;
        // Behind the newest message: a time that never comes.
        let time_ns = header.map_or(u64::MAX, |header| header.received_ns);
        Ok(Since::Id { id, time_ns })
    }

    fn newest(&mut self, limit: usize) -> Result<(), Failure> {
        let mut found = Vec::new();
        for dir in self.shards()? {
            let mut view = View::open(&dir)?;
            self.newest_of(&mut view, limit, &mut |tool, message| {
                // Messages may be large; what is shown of them is not.
                let shown = match tool.args.json {
                    true => format!("{}\n", text::json(&message, false)),
                    false => text::line(&message),
                };
                found.push((message.received_ns, message.id(), shown));
                Ok(())
            })?;
        }
        found.sort();
        let skip = found.len().saturating_sub(limit);
        for (_, _, shown) in &found[skip..] {
            self.print(shown.as_bytes())?;
        }
        Ok(())
    }

    /// Calls `each` for at most `limit` messages that the filters let through, newest first.
    fn newest_of(
        &mut self,
        view: &mut View,
        limit: usize,
        each: &mut dyn FnMut(&mut Self, Message) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::storage(format!("reading the ring: {error}"));
        let mut newest = NewestFirst::new(view.window);
        let mut left = limit;
        let mut unreadable = 0_u64;
        while left > 0 {
            let window = view.window;
            let Some(position) = newest.next(&mut view.reader, window).map_err(failed)? else {
                break;
            };
            // Damage, a large message without its end, or one just overwritten.
            let Some(message) = view.reader.message_at(window, position).map_err(failed)? else {
                unreadable += 1;
                continue;
            };
            if !self.wanted(&message) {
                continue;
            }
            each(self, message)?;
            left -= 1;
        }
        if unreadable > 0 {
            // Nobody to tell is no reason to fail.
            let _ = writeln!(
                self.err,
                "ringmx log: left out {unreadable} that can't be read whole; 'ringmx log verify' says why"
            );
        }
        Ok(())
    }

    fn wanted(&self, message: &Message) -> bool {
        let args = self.args;
        if args.from.is_none() && args.to.is_none() && args.message_id.is_none() {
            return true;
        }
        let envelope = message.envelope();
        let from = args.from.as_deref().is_none_or(|wanted| {
            address_matches(wanted, envelope.reverse_path.unwrap_or_default())
        });
        let to = args.to.as_deref().is_none_or(|wanted| {
            let mut recipients = envelope.recipients.iter();
            recipients.any(|recipient| address_matches(wanted, recipient.path))
        });
        let id = args.message_id.as_deref().is_none_or(|wanted| {
            text::message_id(message.body()).is_some_and(|found| {
                without_brackets(&found) == without_brackets(wanted.as_bytes())
            })
        });
        from && to && id
    }

    fn cat(&mut self, id: Option<&str>) -> Result<(), Failure> {
        let dirs = self.shards()?;
        let message = match id {
            Some(id) => self.by_id(&dirs, id)?,
            None => self.by_message_id(&dirs)?,
        };
        if self.args.raw {
            return self.print(message.body());
        }
        let text = match self.args.json {
            true => format!("{}\n", text::json(&message, true)),
            false => text::readable(&message),
        };
        self.print(text.as_bytes())
    }

    fn by_id(&mut self, dirs: &[ShardDir], id: &str) -> Result<Message, Failure> {
        let wanted = match (MessageId::parse(id, 0), dirs) {
            (Some(wanted), [only]) if !id.contains('-') => MessageId {
                shard: only.shard,
                ..wanted
            },
            (Some(wanted), _) if id.contains('-') => wanted,
            _ => {
                return Err(Failure::usage(format!(
                    "'{id}' is no id of a message: 0-1, or 1 where there is one shard"
                )));
            }
        };
        let missing = |why: &str| Failure::other(format!("there is no message {wanted}: {why}"));
        let dir = dirs.iter().find(|dir| dir.shard == wanted.shard);
        let mut view = View::open(dir.ok_or_else(|| missing("there is no such shard"))?)?;
        let window = view.window;
        let message = view.reader.message(window, wanted.number);
        let message =
            message.map_err(|error| Failure::storage(format!("reading the ring: {error}")))?;
        if let Some(message) = message {
            return Ok(message);
        }
        Err(missing(match wanted.number >= view.next_number() {
            true => "it has not been received yet",
            false
                if view
                    .number_at(window.tail)
                    .is_some_and(|n| wanted.number < n) =>
            {
                "it has been overwritten"
            }
            false => "its number was not used, or it is damaged",
        }))
    }

    fn by_message_id(&mut self, dirs: &[ShardDir]) -> Result<Message, Failure> {
        let mut newest: Option<Message> = None;
        for dir in dirs {
            let mut view = View::open(dir)?;
            self.newest_of(&mut view, 1, &mut |_, message| {
                if newest
                    .as_ref()
                    .is_none_or(|newest| newest.received_ns < message.received_ns)
                {
                    newest = Some(message);
                }
                Ok(())
            })?;
        }
        newest.ok_or_else(|| Failure::other("no message has this Message-ID"))
    }

    fn follow(&mut self) -> Result<(), Failure> {
        let dirs = self.shards()?;
        let since = self.since(&dirs)?;
        let mut followed: Vec<Followed> = Vec::new();
        for dir in dirs {
            let mut lane = Followed {
                dir,
                view: None,
                walk: Walk::new(0),
                ring_id: None,
            };
            if let Some(mut view) = View::live(&lane.dir)? {
                lane.walk = Walk::new(match since {
                    Since::Tail => view.window.end,
                    since => since.position(&mut view)?,
                });
                lane.ring_id = Some(view.reader.ring_id());
                lane.view = Some(view);
            }
            followed.push(lane);
        }
        if followed.iter().all(|lane| lane.view.is_none()) {
            return Err(Failure::other(
                "no server runs here, so that nothing will come ('ringmx log ls' shows what is there)",
            ));
        }
        let mut left = self.args.limit.unwrap_or(usize::MAX);
        loop {
            for lane in &mut followed {
                if !self.follow_one(lane, &mut left)? {
                    return Ok(());
                }
            }
            let flushed = self.out.flush();
            flushed.map_err(|error| Failure::output(&error))?;
            let shards = followed.len();
            let mut waited = Vec::new();
            for lane in &mut followed {
                if let Some(view) = &mut lane.view
                    && let Some(client) = view.client()
                {
                    waited.push(client.as_fd());
                }
            }
            if waited.is_empty() {
                return Ok(());
            }
            // A shard without a server may get one again.
            let some_gone = waited.len() < shards;
            let stdout = io::stdout();
            let time = some_gone.then_some(FOLLOW_WAIT);
            let is_read = wait::any_readable(&waited, Some(stdout.as_fd()), time)
                .map_err(|error| Failure::other(format!("waiting for the server: {error}")))?;
            if !is_read {
                return Err(Failure::output(&io::ErrorKind::BrokenPipe.into()));
            }
            for lane in &mut followed {
                self.refresh(lane)?;
            }
        }
    }

    /// Shows what has come in one shard; false when as much was shown as was asked for.
    fn follow_one(&mut self, lane: &mut Followed, left: &mut usize) -> Result<bool, Failure> {
        let Some(view) = &mut lane.view else {
            return Ok(true);
        };
        loop {
            match self.step(view, &mut lane.walk)? {
                Step::Message(message) if self.wanted(&message) => {
                    self.show(&message)?;
                    *left -= 1;
                    if *left == 0 {
                        return Ok(false);
                    }
                }
                Step::End => return Ok(true),
                _ => {}
            }
        }
    }

    /// Takes in what the server of one shard reports, notices that it has ended, and finds it again.
    fn refresh(&mut self, lane: &mut Followed) -> Result<(), Failure> {
        match &mut lane.view {
            Some(view) => {
                if view.refresh().is_err() {
                    lane.view = None;
                    let shard = lane.dir.shard;
                    self.warn(&format!("the server of shard {shard} has ended"));
                }
            }
            None => {
                if let Some(view) = View::live(&lane.dir)? {
                    // Everything in a shard that was not there before is new.
                    let id = Some(view.reader.ring_id());
                    if lane.ring_id != id {
                        lane.walk = Walk::new(view.window.tail);
                        lane.ring_id = id;
                    }
                    lane.view = Some(view);
                }
            }
        }
        Ok(())
    }

    fn info(&mut self) -> Result<(), Failure> {
        for dir in self.shards()? {
            let mut view = View::open(&dir)?;
            let document = info(&dir, &mut view)?;
            let text = match self.args.json {
                true => format!("{document}\n"),
                false => info_text(&document),
            };
            self.print(text.as_bytes())?;
        }
        Ok(())
    }

    fn verify(&mut self) -> Result<i32, Failure> {
        let mut code = 0;
        for dir in self.shards()? {
            let found = match View::live(&dir)? {
                Some(mut view) => self.verify_live(&mut view)?,
                // Nobody writes: the whole ring can be judged, superblocks and what stands behind
                // the checkpoint included.
                None => match rescue::open_alone(&dir)? {
                    Some(backing) => rescue::verify(&dir, &backing)?,
                    None => self.verify_live(&mut View::open(&dir)?)?,
                },
            };
            if !found.damaged.is_empty() {
                code = EXIT_STORAGE;
            }
            let id = |number: Option<u64>| {
                let shard = dir.shard;
                number.map(|number| MessageId { shard, number }.to_string())
            };
            let text = match self.args.json {
                true => {
                    let document = json!({
                        "schema": "ringmx.verify.v1",
                        "shard": dir.shard,
                        "tail": found.tail,
                        "end": found.end,
                        "records": found.records,
                        "messages": found.messages,
                        "octets": found.octets,
                        "first_id": id(found.first),
                        "last_id": id(found.last),
                        "damaged": found.damaged,
                        "notes": found.notes,
                    });
                    format!("{document}\n")
                }
                false => {
                    let mut text = format!(
                        "shard {}: {} messages, {} octets, {} records, {} bytes checked: {}\n",
                        dir.shard,
                        found.messages,
                        found.octets,
                        found.records,
                        found.end - found.tail,
                        match found.damaged.is_empty() {
                            true => "all good",
                            false => "DAMAGED",
                        }
                    );
                    for range in &found.damaged {
                        text.push_str(&rescue::damage_text(range));
                    }
                    for note in &found.notes {
                        text.push_str(&format!("  {note}\n"));
                    }
                    text
                }
            };
            self.print(text.as_bytes())?;
        }
        Ok(code)
    }

    /// Checks what the server says is durable, beside it.
    fn verify_live(&mut self, view: &mut View) -> Result<Verified, Failure> {
        let window = view.window;
        let mut walk = Walk::new(window.tail);
        let mut found = Verified {
            tail: window.tail,
            end: window.end,
            ..Verified::default()
        };
        while walk.position() < window.end {
            match view.step(&mut walk)? {
                Step::Message(message) => found.count(&message),
                Step::Damaged { reason, .. } => {
                    let (from, to) = walk
                        .skip_damage(&mut view.reader, view.window.end)
                        .map_err(|error| Failure::storage(format!("reading the ring: {error}")))?;
                    // The list is for a person: its beginning says enough.
                    if found.damaged.len() < DAMAGE_SHOWN_MAX {
                        let reason = reason.to_string();
                        let range = json!({"from": from, "to": to, "reason": reason});
                        found.damaged.push(range);
                    }
                }
                Step::End => break,
                Step::Other | Step::Lapped { .. } => {}
            }
        }
        found.records = walk.records;
        Ok(found)
    }

    fn export(&mut self, to: &ExportTo) -> Result<(), Failure> {
        let mut writer = match to {
            ExportTo::Maildir(dir) => Maildir::open(dir)
                .map(|target| Exporter::Target(Box::new(target)))
                .map_err(|error| Failure::usage(format!("'{}': {error}", dir.display())))?,
            ExportTo::Mbox(file) => Mbox::open(file)
                .map(|target| Exporter::Target(Box::new(target)))
                .map_err(|error| Failure::usage(format!("'{}': {error}", file.display())))?,
            ExportTo::Eml(dir) => {
                fs::create_dir_all(dir)
                    .map_err(|error| Failure::usage(format!("'{}': {error}", dir.display())))?;
                Exporter::Eml(dir.clone())
            }
        };
        let mut count = 0_u64;
        let limit = self.args.limit.unwrap_or(usize::MAX) as u64;
        self.each_oldest_first(&mut |_, message| {
            writer.write(message)?;
            count += 1;
            Ok(count < limit)
        })?;
        writer.finish()?;
        let text = match self.args.json {
            true => format!(
                "{}\n",
                json!({"schema": "ringmx.export.v1", "messages": count})
            ),
            false => format!("{count} messages exported\n"),
        };
        self.print(text.as_bytes())
    }
}

/// One shard of a listing.
struct Lane {
    view: View,
    walk: Walk,
    /// Where the listing ends.
    end: u64,
    next: Option<Message>,
}

/// One shard that is followed.
struct Followed {
    dir: ShardDir,
    /// Where it has a server.
    view: Option<View>,
    walk: Walk,
    /// The ring that `walk` is about.
    ring_id: Option<[u8; 16]>,
}

/// Where a listing begins.
#[derive(Clone, Copy, Debug)]
enum Since {
    /// At the oldest message.
    Tail,
    /// At this message, and in other shards at this time.
    Id {
        /// The message.
        id: MessageId,
        /// When it was received, nanoseconds since 1970.
        time_ns: u64,
    },
    /// At this time, nanoseconds since 1970.
    Time(u64),
}

impl Since {
    /// The position in one shard.
    fn position(self, view: &mut View) -> Result<u64, Failure> {
        let window = view.window;
        let reader = &mut view.reader;
        match self {
            Since::Tail => Ok(window.tail),
            Since::Id { id, .. } if id.shard == reader.shard() => {
                reader.position_of_number(window, id.number)
            }
            Since::Id { time_ns, .. } | Since::Time(time_ns) => {
                reader.position_of_time(window, time_ns)
            }
        }
        .map_err(|error| Failure::storage(format!("reading the ring: {error}")))
    }
}

/// Time between two looks for the server of a further shard.
const FOLLOW_WAIT: Duration = Duration::from_millis(500);
/// Damaged ranges that `verify` lists.
const DAMAGE_SHOWN_MAX: usize = 100;

/// What `verify` found in one shard.
#[derive(Debug, Default)]
struct Verified {
    tail: u64,
    end: u64,
    records: u64,
    messages: u64,
    octets: u64,
    first: Option<u64>,
    last: Option<u64>,
    /// Objects with `from`, `to` and `reason` at least, or `reason` alone.
    damaged: Vec<serde_json::Value>,
    /// What is no damage and worth knowing.
    notes: Vec<String>,
}

impl Verified {
    fn count(&mut self, message: &Message) {
        self.messages += 1;
        self.octets += message.body().len() as u64;
        self.first.get_or_insert(message.number);
        self.last = self.last.max(Some(message.number));
    }
}

enum Exporter {
    Target(Box<dyn Target>),
    Eml(PathBuf),
}

impl Exporter {
    fn write(&mut self, message: &Message) -> Result<(), Failure> {
        match self {
            Exporter::Target(target) => {
                let outcome = target.deliver(message);
                match outcome.retry_after() {
                    None => Ok(()),
                    Some(_) => Err(Failure::other(outcome.reason.unwrap_or_default())),
                }
            }
            Exporter::Eml(dir) => {
                let path = dir.join(format!("{}.eml", message.id()));
                fs::write(&path, message.body())
                    .map_err(|error| Failure::other(format!("'{}': {error}", path.display())))
            }
        }
    }

    fn finish(&mut self) -> Result<(), Failure> {
        match self {
            Exporter::Target(target) => target
                .flush()
                .map_err(|error| Failure::other(format!("writing the export: {error}"))),
            Exporter::Eml(_) => Ok(()),
        }
    }
}

/// Whether `path` is the address `wanted` (ASCII letters in any case), or lies in the domain
/// `@wanted`.
fn address_matches(wanted: &str, path: &[u8]) -> bool {
    let wanted = wanted.strip_prefix('<').unwrap_or(wanted);
    let wanted = wanted.strip_suffix('>').unwrap_or(wanted).as_bytes();
    match wanted.first() {
        Some(b'@') => path
            .len()
            .checked_sub(wanted.len())
            .is_some_and(|at| path[at..].eq_ignore_ascii_case(wanted)),
        _ => path.eq_ignore_ascii_case(wanted),
    }
}

fn without_brackets(id: &[u8]) -> &[u8] {
    let id = id.trim_ascii();
    let id = id.strip_prefix(b"<").unwrap_or(id);
    id.strip_suffix(b">").unwrap_or(id)
}

/// Nanoseconds since 1970 of `2026-11-23T08:00:00Z`, `2026-11-23`, or of an age such as `90s`,
/// `10m`, `2h`, `7d`.
fn parse_time(text: &str, now_ns: u64) -> Option<u64> {
    const SECOND_NS: u64 = 1_000_000_000;
    // None in the middle of a character, and then it is no time either.
    if let Some((count, unit)) = text.split_at_checked(text.len().checked_sub(1)?)
        && let Ok(count) = count.parse::<u64>()
    {
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return None,
        };
        let age = count.checked_mul(seconds)?.checked_mul(SECOND_NS)?;
        return Some(now_ns.saturating_sub(age));
    }
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00Z"));
    let numbers = |text: &str, separator: char| -> Option<[u64; 3]> {
        let parts: Vec<u64> = text
            .split(separator)
            .map(|part| part.parse().ok())
            .collect::<Option<_>>()?;
        parts.try_into().ok()
    };
    let [year, month, day] = numbers(date, '-')?;
    let time = time.strip_suffix('Z')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let [hour, minute, second] = numbers(time, ':')?;
    if !(1970..=2261).contains(&year) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction_ns: u64 = format!("{fraction:0<9}").parse().ok()?;
    let leap = |year: u64| {
        u64::from(year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let lengths = [31, 28 + leap(year), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let before = lengths.get(..usize::try_from(month).ok()?.checked_sub(1)?)?;
    if day == 0 || day > *lengths.get(before.len())? {
        return None;
    }
    let days = (1970..year).map(|year| 365 + leap(year)).sum::<u64>() + before.iter().sum::<u64>();
    let seconds = (days + day - 1) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some(seconds * SECOND_NS + fraction_ns)
}

/// The document of `ringmx log info` for one shard.
fn info(dir: &ShardDir, view: &mut View) -> Result<serde_json::Value, Failure> {
    view.reread_superblock()?;
    let window = view.window;
    let next_number = view.next_number();
    let now_ns = Clock::new().wall_ns();
    let consumers = crate::consume::consumer_rows(view)
        .map_err(|error| Failure::other(error.to_string()))?
        .iter()
        .map(|row| row.json(now_ns))
        .collect::<Vec<_>>();
    let superblock = view.superblock();
    let oldest = view.reader.header(window.tail, window.end);
    let oldest = oldest.ok().and_then(Result::ok);
    Ok(json!({
        "schema": "ringmx.info.v1",
        "path": dir.path.join("ring").to_string_lossy(),
        "shard": dir.shard,
        "ring_id": text::hex(&superblock.ring_id),
        "server": view.is_live(),
        "format": format!("{}.{}", crate::ringlog::format::FORMAT_MAJOR, superblock.format_minor),
        "created": clock::rfc3339(superblock.created_ns),
        "created_ns": superblock.created_ns,
        "data_bytes": superblock.data_size,
        "used_bytes": window.end - window.tail,
        "tail": window.tail,
        "durable": window.end,
        "next_number": next_number,
        "oldest_number": oldest.map(|header| header.number),
        "oldest": oldest.map(|header| clock::rfc3339(header.received_ns)),
        "oldest_ns": oldest.map(|header| header.received_ns),
        "messages_total": superblock.checkpoint_messages,
        "clean": superblock.clean,
        "consumers": consumers,
    }))
}

fn info_text(document: &serde_json::Value) -> String {
    let mut out = String::new();
    let field = |name: &str| match &document[name] {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let bytes = |name: &str| size(document[name].as_u64().unwrap_or(0));
    let server = match document["server"] == json!(true) {
        true => "running",
        false => "not running",
    };
    let rows = [
        ("ring", field("path")),
        ("id", field("ring_id")),
        ("server", server.to_owned()),
        ("format", field("format")),
        ("created", field("created")),
        (
            "used",
            format!("{} of {}", bytes("used_bytes"), bytes("data_bytes")),
        ),
        ("oldest kept", field("oldest")),
        ("oldest number", field("oldest_number")),
        ("next number", field("next_number")),
    ];
    for (name, value) in rows {
        out.push_str(&format!("{name:<14} {value}\n"));
    }
    let consumers = document["consumers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if consumers.is_empty() {
        out.push_str("consumers      none: a full ring overwrites its oldest mail, unless the server runs with --full defer\n");
    }
    for consumer in consumers {
        out.push_str(&format!(
            "consumer       {}\n",
            crate::consume::row_text(&consumer)
        ));
    }
    out
}

/// `12.3 MiB`.
pub fn size(bytes: u64) -> String {
    for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
        if bytes >= unit {
            let tenths = (u128::from(bytes) * 10 / u128::from(unit)).to_string();
            let (whole, tenth) = tenths.split_at(tenths.len() - 1);
            return format!("{whole}.{tenth} {name}");
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn arguments_are_read_and_mistakes_named() {
        let alone = parse(&[]).unwrap();
        assert_eq!((alone.command, alone.limit), (LogCommand::Ls, Some(20)));
        let args = parse(&words("cat 0-1 --raw --ring=/r")).unwrap();
        assert_eq!(args.command, LogCommand::Cat(Some("0-1".to_owned())));
        assert!(args.raw && args.ring.as_os_str() == "/r");
        let args = parse(&words("export --eml out")).unwrap();
        assert_eq!(
            args.command,
            LogCommand::Export(ExportTo::Eml("out".into()))
        );
        let fails = |text: &str| parse(&words(text)).unwrap_err();
        assert_eq!(
            fails("show"),
            "'show' is nothing that ringmx log does: info, ls, cat, follow, verify, export, rescue"
        );
        assert_eq!(
            fails("cat"),
            "ringmx log cat takes one ID, or --message-id ID"
        );
        assert_eq!(
            fails("export"),
            "ringmx log export takes one of --maildir DIR, --mbox FILE, --eml DIR"
        );
        assert_eq!(
            fails("ls --raw"),
            "--raw belongs to ringmx log cat, without --json"
        );
        assert_eq!(
            fails("--limit 0"),
            "--limit '0': a number from 1 to 1000000"
        );
        assert_eq!(fails("ls --colour"), "ringmx log has no option '--colour'");
    }

    #[test]
    fn times_are_dates_and_ages_and_nothing_else() {
        let now_ns = 1_795_395_723_000_000_000;
        let at = |text: &str| parse_time(text, now_ns);
        assert_eq!(at("2026-11-23T01:02:03Z"), Some(now_ns));
        assert_eq!(at("2026-11-23T01:02:03.5Z"), Some(now_ns + 500_000_000));
        assert_eq!(at("1970-01-01"), Some(0));
        assert_eq!(at("2000-02-29T00:00:00Z"), Some(951_782_400_000_000_000));
        assert_eq!(at("10m"), Some(now_ns - 600_000_000_000));
        assert_eq!(at("7d"), Some(now_ns - 7 * 86_400_000_000_000));
        for bad in [
            "",
            "x",
            "10",
            "m",
            "10y",
            "2026-02-29",
            "2026-13-01",
            "2026-00-01",
            "2026-01-00",
            "2026-11-23T01:02:03",
            "2026-11-23T24:00:00Z",
            "2026-11-23T01:02:03.0000000000Z",
            "99999999999999999999d",
            "18446744073709551615d",
            "\u{e9}",
        ] {
            assert_eq!(at(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn addresses_match_whole_or_by_domain() {
        assert!(address_matches("A@b.example", b"a@B.example"));
        assert!(address_matches("<a@b.example>", b"a@b.example"));
        assert!(address_matches("@b.example", b"a@b.example"));
        assert!(address_matches("", b""), "the null reverse-path");
        assert!(!address_matches("@b.example", b"a@x.b.example"));
        assert!(!address_matches("b.example", b"a@b.example"));
    }

    #[test]
    fn sizes_are_rounded_down_to_a_tenth() {
        assert_eq!(size(0), "0 bytes");
        assert_eq!(size(1_023), "1023 bytes");
        assert_eq!(size(1_024), "1.0 KiB");
        assert_eq!(size(1_024 * 1_024 * 3 / 2), "1.5 MiB");
        assert_eq!(size(GIB - 1), "1023.9 MiB");
    }
}
