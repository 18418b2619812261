//! `ringmx log rescue`: saves every message that is whole from a damaged ring, and says what was
//! damaged and what may be missing.
//!
//! The damaged ring is opened for reading only and locked against servers and consumers; nothing is
//! called saved before it is on stable storage.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::Verified;
use super::text;
use super::view::{EXIT_STORAGE, Failure, ShardDir, shards};
use crate::clock::{Clock, nanos};
use crate::consume::target::{Mbox, Target, unique_name};
use crate::limits::{
    MIB, NUMBERS_SKIPPED_BY_RECOVERY, RESCUE_LIST_MAX, RING_BYTES_MIN, RING_BYTES_STEP,
};
use crate::ringlog::backing::{FileBacking, WriteMethod};
use crate::ringlog::copy::{CopyError, RingCopy};
use crate::ringlog::directory::{CopyPlan, CreateOptions, copy_ring, open_ring_read_only};
use crate::ringlog::format::{Consumer, Superblock};
use crate::ringlog::reader::{Message, MessageId};
use crate::ringlog::recover::OpenError;
use crate::ringlog::rescue::{
    Damage, KeySource, Reason, Report, Rescue, RescueOptions, State, SuperblockState,
};
use crate::sys::file::start_writeback;
use crate::sys::wait;

/// Text of `ringmx log rescue --help`.
pub const HELP: &str = "\
Saves every message that is whole from a ring that is damaged or that `ringmx serve` refuses, and says what
is damaged and what may be missing. Works without any superblock. The ring is only read; its server has to
be stopped. Without a target it only says what it would save.

  ringmx log rescue [--ring DIR | --file FILE] [TARGET]... [OPTIONS]

Targets, one or more:
  --maildir DIR       a Maildir
  --mbox FILE         an mbox file, appended to
  --eml DIR           one file per message, ID.eml, its exact octets
  --to-ring DIR       a new ring in DIR/shard-N, with the numbers, times and consumers of the old one

Options:
  --ring DIR          directory of the ring (default ./ringmx-data)
  --file FILE         a ring file by itself, such as a copy that ddrescue made
  --ring-size SIZE    data area of --to-ring (default: that of the old ring), and of a ring file that was
                      cut short and has no superblock
  --include-released  also mail that was released and is not overwritten yet; it goes to DIR/released,
                      DIR/.released or FILE.released, never to --to-ring
  --list              one line for every whole message as it is found
  --json              one JSON object per shard

Exit codes: 0 everything that was acknowledged and is still kept was saved, 74 something is damaged or may
be missing, or the ring could not be read; 1 the ring is in use, or a target failed; 2 usage.
";

/// Arguments of `ringmx log rescue`; ring, json and targets come from the common ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RescueArguments {
    /// A Maildir.
    pub maildir: Option<PathBuf>,
    /// An mbox file.
    pub mbox: Option<PathBuf>,
    /// A directory of files.
    pub eml: Option<PathBuf>,
    /// Directory of a new ring.
    pub to_ring: Option<PathBuf>,
    /// Size of the new ring's data area, or of a cut one's, bytes.
    pub ring_size: Option<u64>,
    /// A ring file instead of a directory.
    pub file: Option<PathBuf>,
    /// Also released mail.
    pub released: bool,
    /// One line per message, as it is found.
    pub list: bool,
}

/// Value of `schema` in the JSON.
pub const RESCUE_SCHEMA: &str = "ringmx.rescue.v1";

/// Runs `ringmx log rescue`. Returns the exit code.
///
/// # Errors
/// What kept it from saving; what was saved before stays.
pub fn run(
    ring: &Path,
    json: bool,
    args: &RescueArguments,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<i32, Failure> {
    let dirs = match &args.file {
        Some(file) => vec![ShardDir {
            shard: 0,
            path: file.clone(),
        }],
        None => shards(ring)?,
    };
    let mut code = 0;
    for dir in dirs {
        let (document, lines) = shard(&dir, args, out)?;
        let text = match json {
            true => format!("{document}\n"),
            false => report_text(&document),
        };
        out.write_all(text.as_bytes())
            .map_err(|error| Failure::output(&error))?;
        for line in lines {
            // Nowhere is left to say that standard error is closed.
            let _ = writeln!(err, "ringmx log: rescue: {line}");
        }
        if document["whole"] != json!(true) {
            code = EXIT_STORAGE;
        }
    }
    Ok(code)
}

/// How long a ring may be locked by nobody who answers before it counts as in use: a server that ends or starts holds
/// the lock without its socket, and a process that such a server has just started has a copy of the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is tried meanwhile.
const LOCK_TRIES_EVERY: Duration = Duration::from_millis(10);

/// Opens the ring of a shard for reading, locked against servers and consumers; `None` when one of
/// them has it and keeps it.
///
/// # Errors
/// Usage, when there is no ring; storage.
pub(super) fn open_alone(dir: &ShardDir) -> Result<Option<FileBacking>, Failure> {
    let path = dir.path.display();
    let clock = Clock::new();
    let opened = loop {
        match open_ring_read_only(&dir.path) {
            Ok((_, false)) | Err(OpenError::InUse) if clock.now().0 < nanos(LOCK_PATIENCE) => {
                // Nothing to wait for but time; a signal may cut it short.
                let _ = wait::readable(&[], Some(LOCK_TRIES_EVERY));
            }
            opened => break opened,
        }
    };
    let file = match opened {
        Ok((_, false)) | Err(OpenError::InUse) => return Ok(None),
        Ok((file, true)) => file,
        Err(error @ OpenError::Missing) => {
            return Err(Failure::usage(format!("'{path}': {error}")));
        }
        Err(error) => return Err(Failure::storage(format!("'{path}': {error}"))),
    };
    let backing = FileBacking::new(file, WriteMethod::Pwrite);
    backing
        .map(Some)
        .map_err(|error| Failure::storage(format!("'{path}': {error}")))
}

fn open(dir: &ShardDir, args: &RescueArguments) -> Result<FileBacking, Failure> {
    let file = match &args.file {
        Some(path) => {
            let opened = File::options()
                .read(true)
                .custom_flags(wait::O_NOFOLLOW)
                .open(path);
            opened.map_err(|error| Failure::usage(format!("'{}': {error}", path.display())))?
        }
        None => {
            return open_alone(dir)?.ok_or_else(|| {
                Failure::other(format!(
                    "'{}' is in use; stop its server and its consumers first",
                    dir.path.display()
                ))
            });
        }
    };
    FileBacking::new(file, WriteMethod::Pwrite)
        .map_err(|error| Failure::storage(format!("'{}': {error}", dir.path.display())))
}

impl Verified {
    fn note_superblocks(&mut self, superblock: Option<&Superblock>, report: &Report) {
        let clean = superblock.is_some_and(|superblock| superblock.clean);
        for (name, state) in ["A", "B"].iter().zip(report.slots) {
            let state = match state {
                SuperblockState::Good { .. } => continue,
                SuperblockState::Damaged => "is damaged",
                SuperblockState::Absent => "is not there",
                SuperblockState::Unreadable => "cannot be read",
            };
            match (superblock, clean) {
                (None, _) | (Some(_), true) => {
                    let reason = format!("superblock {name} {state}");
                    self.damaged.push(json!({"reason": reason}));
                }
                // A stop while it was being written leaves this; the next start writes it again.
                (Some(_), false) => self
                    .notes
                    .push(format!("superblock {name} {state}; the other counts")),
            }
        }
        if superblock.is_some() && report.tail.is_none() {
            let reason = "the superblock is an old one; which messages were released is not known";
            self.damaged.push(json!({"reason": reason}));
        }
    }

    /// Damaged ranges, and large messages without all of their parts.
    fn note_damage(&mut self, shard: u32, report: &Report) {
        let id = |number: u64| MessageId { shard, number }.to_string();
        for damage in &report.damage {
            match (damage.acknowledged, damage.reason) {
                (_, Reason::GivenUp) => self.notes.push(format!(
                    "positions {} to {}: {}",
                    damage.from, damage.to, damage.reason
                )),
                (true, _) => self.damaged.push(damage_json(shard, damage)),
                (false, _) => self.notes.push(format!(
                    "positions {} to {} were not finished when it stopped: {}",
                    damage.from, damage.to, damage.reason
                )),
            }
        }
        for message in &report.incomplete {
            let (id, at) = (id(message.number), message.position);
            match message.damaged {
                true => {
                    let reason = format!("parts of large message {id} at position {at} are gone");
                    self.damaged
                        .push(json!({"reason": reason, "first_id": id, "last_id": id}));
                }
                false => self.notes.push(format!(
                    "large message {id} at position {at} was not finished when it stopped"
                )),
            }
        }
    }
}

/// Checks everything that a ring without a server holds.
pub(super) fn verify(dir: &ShardDir, backing: &FileBacking) -> Result<Verified, Failure> {
    let options = RescueOptions {
        shard: dir.shard,
        ..RescueOptions::default()
    };
    let path = dir.path.display();
    let mut rescue = Rescue::look(backing, options)
        .map_err(|error| Failure::storage(format!("'{path}': {error}")))?;
    let mut found = Verified::default();
    let walked: Result<(), Infallible> = rescue.walk(&mut |message, state| {
        if state == State::Kept {
            found.count(&message);
        }
        Ok(())
    });
    walked.unwrap_or_else(|never| match never {});
    let report = rescue.report();
    found.tail = report.tail.unwrap_or(report.start);
    found.end = report.end;
    found.records = report.records;
    found.note_superblocks(rescue.superblock(), report);
    if report.missing_bytes > 0 {
        let reason = format!("the file is {} bytes too short", report.missing_bytes);
        found.damaged.push(json!({"reason": reason}));
    }
    found.note_damage(dir.shard, report);
    for (from, to) in &report.unreadable {
        let reason = format!("bytes {from} to {to} of the file cannot be read");
        found.damaged.push(json!({"reason": reason}));
    }
    Ok(found)
}

/// One line about a damaged range of [`Verified`].
pub(super) fn damage_text(range: &Value) -> String {
    let reason = range["reason"].as_str().unwrap_or("?");
    if range["from"].is_null() {
        return format!("  {reason}\n");
    }
    let missing = match (range.get("certain"), missing_text(range)) {
        (None, _) => String::new(),
        (Some(_), Some(missing)) => format!("; missing: {missing}"),
        (Some(_), None) => "; no message begins in it".to_owned(),
    };
    format!(
        "  positions {} to {}: {reason}{missing}\n",
        range["from"], range["to"]
    )
}

fn damage_json(shard: u32, damage: &Damage) -> Value {
    let id = |number: u64| MessageId { shard, number }.to_string();
    json!({
        "from": damage.from,
        "to": damage.to,
        "bytes": damage.to - damage.from,
        "reason": damage.reason.to_string(),
        "acknowledged": damage.acknowledged,
        "first_id": damage.first_number.map(id),
        "last_id": damage.last_number.map(id),
        "certain": damage.certain,
    })
}

/// Rescues one shard: the document, and warnings.
fn shard(
    dir: &ShardDir,
    args: &RescueArguments,
    out: &mut dyn Write,
) -> Result<(Value, Vec<String>), Failure> {
    let backing = open(dir, args)?;
    let options = RescueOptions {
        released: args.released,
        data_size: args.ring_size.filter(|_| args.to_ring.is_none()),
        shard: dir.shard,
    };
    let failed = |error: &dyn std::fmt::Display| {
        Failure::storage(format!("'{}': {error}", dir.path.display()))
    };
    let mut rescue = Rescue::look(&backing, options).map_err(|error| failed(&error))?;
    let mut saved = Saved::default();
    let mut files = Files::open(args)?;
    let mut list = args.list.then_some(out);
    let mut each = |message: &Message, state: State| {
        files.save(message, state)?;
        saved.add(message.number, state);
        if let Some(out) = &mut list {
            let line = text::line(message);
            out.write_all(line.as_bytes())
                .map_err(|error| Failure::output(&error))?;
        }
        Ok::<(), Failure>(())
    };
    let mut warnings = Vec::new();
    match &args.to_ring {
        None => rescue.walk(&mut |message, state| each(&message, state))?,
        Some(to) => {
            let superblock = rescue.superblock().cloned();
            let consumers: Vec<Consumer> = superblock
                .iter()
                .flat_map(|superblock| superblock.consumers.iter().flatten().copied())
                .collect();
            if superblock.is_none() {
                warnings.push(
                    "without a superblock nobody knows the consumers: register them again, from the \
                     oldest message on"
                        .to_owned(),
                );
            }
            let report = rescue.report();
            let id = Some(report.ring_id).filter(|id| *id != [0; 16]);
            let plan = CopyPlan {
                create: CreateOptions {
                    data_size: args.ring_size.unwrap_or(report.data_size),
                    group: false,
                    wall_ns: Clock::new().wall_ns(),
                },
                ring_id: id,
                epoch: superblock.map_or(0, |superblock| superblock.epoch),
                consumers: &consumers,
                replaces: None,
            };
            let next_number = report.next_number + NUMBERS_SKIPPED_BY_RECOVERY;
            let mut fill = |copy: &mut RingCopy<FileBacking>| {
                rescue.walk(&mut |message, state| {
                    each(&message, state)?;
                    Ok::<(), Failure>(copy.append(&message)?)
                })?;
                Ok(next_number)
            };
            let place = to.join(format!("shard-{}", dir.shard));
            copy_ring::<Failure>(&place, &plan, &mut fill).map_err(|error| {
                Failure::new(error.code, format!("'{}': {error}", place.display()))
            })?;
        }
    }
    files.finish()?;
    Ok((document(dir, args, rescue.report(), &saved), warnings))
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Failure {
        let hint = match &error {
            CopyError::Full | CopyError::TooLarge { .. } => "; use a larger --ring-size",
            _ => "",
        };
        Failure::other(format!("{error}{hint}"))
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Failure {
        Failure::other(error.to_string())
    }
}

/// Numbers saved, as stretches without a hole.
#[derive(Debug, Default)]
struct Saved {
    /// By state: first and last number.
    stretches: [Vec<(u64, u64)>; 3],
    omitted: [u64; 3],
}

impl Saved {
    fn add(&mut self, number: u64, state: State) {
        let stretches = &mut self.stretches[state as usize];
        let full = stretches.len() >= RESCUE_LIST_MAX;
        match stretches.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            Some(_) if full => self.omitted[state as usize] += 1,
            _ => stretches.push((number, number)),
        }
    }
}

/// Bytes and files that are written before they are made durable together.
const BATCH_BYTES: u64 = 64 * MIB;
const BATCH_FILES: usize = 256;

/// The targets that are files.
#[derive(Default)]
struct Files {
    maildirs: [Option<Batch>; 2],
    emls: [Option<Batch>; 2],
    mboxes: [Option<Mbox>; 2],
    /// Bytes given to the mboxes since they were made durable.
    unsynced: u64,
}

impl Files {
    fn open(args: &RescueArguments) -> Result<Files, Failure> {
        let mut files = Files::default();
        let wanted = if args.released { 2 } else { 1 };
        for index in 0..wanted {
            if let Some(dir) = &args.maildir {
                let dir = [dir.clone(), dir.join(".released")][index].clone();
                files.maildirs[index] = Some(Batch::open(&dir, Kind::Maildir)?);
            }
            if let Some(dir) = &args.eml {
                let dir = [dir.clone(), dir.join("released")][index].clone();
                files.emls[index] = Some(Batch::open(&dir, Kind::Eml)?);
            }
            if let Some(file) = &args.mbox {
                let mut name = file.clone().into_os_string();
                if index == 1 {
                    name.push(".released");
                }
                let path = PathBuf::from(name);
                let mbox = Mbox::open(&path)
                    .map_err(|error| Failure::usage(format!("'{}': {error}", path.display())))?;
                files.mboxes[index] = Some(mbox);
            }
        }
        Ok(files)
    }

    fn save(&mut self, message: &Message, state: State) -> Result<(), Failure> {
        let index = usize::from(state == State::Released);
        let batches = [&mut self.maildirs[index], &mut self.emls[index]];
        for batch in batches.into_iter().flatten() {
            batch.add(message)?;
        }
        if let Some(mbox) = &mut self.mboxes[index] {
            let outcome = mbox.deliver(message);
            if outcome.retry_after().is_some() {
                return Err(Failure::other(outcome.reason.unwrap_or_default()));
            }
            self.unsynced += message.body().len() as u64;
            if self.unsynced >= BATCH_BYTES {
                self.flush_mboxes()?;
            }
        }
        Ok(())
    }

    fn flush_mboxes(&mut self) -> Result<(), Failure> {
        self.unsynced = 0;
        for mbox in self.mboxes.iter_mut().flatten() {
            mbox.flush()
                .map_err(|error| Failure::other(format!("syncing the mbox: {error}")))?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Failure> {
        self.flush_mboxes()?;
        for batch in self.maildirs.iter_mut().chain(&mut self.emls).flatten() {
            batch.flush()?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Maildir,
    Eml,
}

/// Files that are written under other names first, synced together, and then named.
struct Batch {
    kind: Kind,
    dir: PathBuf,
    open: VecDeque<Pending>,
    bytes: u64,
}

struct Pending {
    file: File,
    temporary: PathBuf,
    name: PathBuf,
}

impl Batch {
    fn open(dir: &Path, kind: Kind) -> Result<Batch, Failure> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        let parts: &[&str] = match kind {
            Kind::Maildir => &["tmp", "new", "cur"],
            Kind::Eml => &[""],
        };
        let failed = |error: io::Error| Failure::usage(format!("'{}': {error}", dir.display()));
        for part in parts {
            builder.create(dir.join(part)).map_err(failed)?;
        }
        sync_directory(dir).map_err(failed)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_directory(parent).map_err(failed)?;
        }
        Ok(Batch {
            kind,
            dir: dir.to_owned(),
            open: VecDeque::new(),
            bytes: 0,
        })
    }

    /// Directory of the final names.
    fn target(&self) -> PathBuf {
        match self.kind {
            Kind::Maildir => self.dir.join("new"),
            Kind::Eml => self.dir.clone(),
        }
    }

    fn add(&mut self, message: &Message) -> Result<(), Failure> {
        let process = std::process::id();
        let (temporary, name) = match self.kind {
            Kind::Maildir => {
                let name = unique_name(message);
                let temporary = self.dir.join("tmp").join(format!("{name}.{process}"));
                (temporary, self.target().join(name))
            }
            Kind::Eml => {
                let id = message.id();
                let temporary = self.dir.join(format!(".{id}.{process}.tmp"));
                (temporary, self.target().join(format!("{id}.eml")))
            }
        };
        let failed = |path: &Path, error: io::Error| {
            Failure::other(format!("'{}': {error}", path.display()))
        };
        if name.symlink_metadata().is_ok() {
            // An earlier rescue has saved it; what is something else is not overwritten.
            return match holds(&name, message.body()) {
                Ok(true) => Ok(()),
                Ok(false) => Err(Failure::other(format!(
                    "'{}' is there already and holds something else",
                    name.display()
                ))),
                Err(error) => Err(failed(&name, error)),
            };
        }
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|error| failed(&temporary, error))?;
        if let Err(error) = file.write_all(message.body()) {
            let _ = fs::remove_file(&temporary);
            return Err(failed(&temporary, error));
        }
        let bytes = message.body().len() as u64;
        start_writeback(&file, 0, bytes);
        self.bytes += bytes;
        self.open.push_back(Pending {
            file,
            temporary,
            name,
        });
        if self.open.len() >= BATCH_FILES || self.bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Makes what was written durable and gives it its names.
    fn flush(&mut self) -> Result<(), Failure> {
        let dir = self.dir.clone();
        let failed = |error: io::Error| Failure::other(format!("'{}': {error}", dir.display()));
        self.bytes = 0;
        for pending in &self.open {
            pending.file.sync_all().map_err(failed)?;
        }
        for pending in self.open.drain(..) {
            fs::rename(&pending.temporary, &pending.name).map_err(failed)?;
        }
        sync_directory(&self.target()).map_err(failed)
    }
}

impl Drop for Batch {
    /// What was not synced has not got its name; it is not left about either.
    fn drop(&mut self) {
        for pending in &self.open {
            let _ = fs::remove_file(&pending.temporary);
        }
    }
}

fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Whether the file holds exactly these bytes.
fn holds(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let file = File::options()
        .read(true)
        .custom_flags(wait::O_NOFOLLOW)
        .open(path)?;
    let mut found = Vec::new();
    file.take(bytes.len() as u64 + 1).read_to_end(&mut found)?;
    Ok(found == bytes)
}

/// The document of one shard.
fn document(dir: &ShardDir, args: &RescueArguments, report: &Report, saved: &Saved) -> Value {
    let id = |number: u64| {
        MessageId {
            shard: dir.shard,
            number,
        }
        .to_string()
    };
    let stretches = |state: State| {
        let of_state = &saved.stretches[state as usize];
        let list: Vec<Value> = of_state
            .iter()
            .map(|(first, last)| json!([id(*first), id(*last)]))
            .collect();
        json!({
            "messages": report.messages[state as usize],
            "octets": report.octets[state as usize],
            "ids": list,
            "stretches_omitted": saved.omitted[state as usize],
        })
    };
    let slots = report.slots.map(|slot| match slot {
        SuperblockState::Good { generation } => json!({"state": "good", "generation": generation}),
        SuperblockState::Damaged => json!({"state": "damaged"}),
        SuperblockState::Absent => json!({"state": "absent"}),
        SuperblockState::Unreadable => json!({"state": "unreadable"}),
    });
    let key = match report.key {
        KeySource::Superblock => json!({"from": "superblock"}),
        KeySource::Records { bytes, other_bytes } => {
            json!({"from": "records", "bytes": bytes, "other_bytes": other_bytes})
        }
    };
    let damage: Vec<Value> = report
        .damage
        .iter()
        .map(|damage| damage_json(dir.shard, damage))
        .collect();
    let incomplete: Vec<Value> = report
        .incomplete
        .iter()
        .map(|message| {
            json!({
                "id": id(message.number),
                "position": message.position,
                "damaged": message.damaged,
            })
        })
        .collect();
    let targets: Vec<Value> = [
        ("maildir", &args.maildir),
        ("mbox", &args.mbox),
        ("eml", &args.eml),
        ("ring", &args.to_ring),
    ]
    .into_iter()
    .filter_map(|(kind, path)| {
        let path = path.as_ref()?;
        Some(json!({"kind": kind, "path": path.to_string_lossy()}))
    })
    .collect();
    let ranges = |list: &[(u64, u64)]| {
        let list: Vec<Value> = list.iter().map(|(from, to)| json!([from, to])).collect();
        list
    };
    json!({
        "schema": RESCUE_SCHEMA,
        "path": dir.path.to_string_lossy(),
        "shard": dir.shard,
        "ring_id": text::hex(&report.ring_id),
        "whole": report.is_whole(),
        "targets": targets,
        "superblocks": slots,
        "key": key,
        "data_bytes": report.data_size,
        "missing_bytes": report.missing_bytes,
        "tail": report.tail,
        "start": report.start,
        "end": report.end,
        "durable": report.hint,
        "records": report.records,
        "kept": stretches(State::Kept),
        "unconfirmed": stretches(State::Unconfirmed),
        "released": stretches(State::Released),
        "messages_expected": report.messages_expected,
        "messages_expected_found": report.messages_expected_found,
        "damaged_bytes": report.damaged_bytes,
        "damaged": damage,
        "damaged_omitted": report.damage_omitted,
        "incomplete": incomplete,
        "unreadable": ranges(&report.unreadable),
    })
}

/// The document for people.
fn report_text(document: &Value) -> String {
    let mut out = format!("shard {}: {}\n", document["shard"], word(&document["path"]));
    superblocks_text(document, &mut out);
    saved_text(document, &mut out);
    let mut missing = Vec::new();
    damaged_ranges_text(document, &mut out, &mut missing);
    incomplete_text(document, &mut out, &mut missing);
    for range in list(&document["unreadable"]).iter().take(DAMAGE_SHOWN) {
        out.push_str(&format!(
            "  bytes {} to {} of the file cannot be read\n",
            range[0], range[1]
        ));
    }
    out.push_str(
        &match (document["whole"] == json!(true), missing.is_empty()) {
            (true, _) => "  nothing that was acknowledged is missing\n".to_owned(),
            (false, true) => "  no message is known to be missing\n".to_owned(),
            (false, false) => {
                let hidden = missing.len().saturating_sub(STRETCHES_SHOWN);
                missing.truncate(STRETCHES_SHOWN);
                if hidden > 0 {
                    missing.push(format!("and {hidden} more"));
                }
                format!("  may be missing: {}\n", missing.join(", "))
            }
        },
    );
    out
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or("?").to_owned()
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// What is wrong with the superblocks, the key or the length of the file, if anything is.
fn superblocks_text(document: &Value, out: &mut String) {
    let slots = list(&document["superblocks"]);
    let states: Vec<String> = slots.iter().map(|slot| word(&slot["state"])).collect();
    if states.iter().any(|state| state != "good") || document["tail"].is_null() {
        out.push_str(&format!(
            "  superblocks: A {}, B {}{}\n",
            states[0],
            states[1],
            match document["tail"].is_null() {
                true => "; which messages were released before is not known",
                false => "",
            }
        ));
    }
    if document["key"]["from"] == json!("records") {
        out.push_str(&format!(
            "  the ring's key is the one of {} bytes of records; {} bytes have another\n",
            document["key"]["bytes"], document["key"]["other_bytes"]
        ));
    }
    if number(&document["missing_bytes"]) > 0 {
        out.push_str(&format!(
            "  the file is {} bytes too short\n",
            document["missing_bytes"]
        ));
    }
}

/// What was saved, or would be, and where to.
fn saved_text(document: &Value, out: &mut String) {
    let targets = list(&document["targets"]);
    let done = match targets.is_empty() {
        true => "would save",
        false => "saved",
    };
    for (name, about) in [
        ("kept", ""),
        (
            "unconfirmed",
            " behind damage, perhaps never acknowledged (their senders may send them again)",
        ),
        ("released", " that had been released"),
    ] {
        let part = &document[name];
        let messages = number(&part["messages"]);
        if messages == 0 && name != "kept" {
            continue;
        }
        out.push_str(&format!(
            "  {done} {}, {} octets{about}",
            match messages {
                1 => "1 message".to_owned(),
                _ => format!("{messages} messages"),
            },
            part["octets"]
        ));
        let mut ids: Vec<String> = list(&part["ids"])
            .iter()
            .map(|stretch| stretch_text(&stretch[0], &stretch[1]))
            .collect();
        let hidden = ids.len().saturating_sub(STRETCHES_SHOWN) as u64;
        ids.truncate(STRETCHES_SHOWN);
        let omitted = number(&part["stretches_omitted"]) + hidden;
        if omitted > 0 {
            ids.push(format!("and {omitted} more stretches (--list shows all)"));
        }
        if !ids.is_empty() {
            out.push_str(&format!(": {}", ids.join(", ")));
        }
        out.push('\n');
    }
    for target in &targets {
        out.push_str(&format!(
            "    in {} {}\n",
            word(&target["kind"]),
            word(&target["path"])
        ));
    }
}

/// The damaged ranges; `missing` gets what may have been acknowledged and is gone.
fn damaged_ranges_text(document: &Value, out: &mut String, missing: &mut Vec<String>) {
    let damaged = list(&document["damaged"]);
    for (index, range) in damaged.iter().enumerate() {
        let numbers = missing_text(range);
        let lost = range["acknowledged"] == json!(true);
        if index < DAMAGE_SHOWN {
            out.push_str(&format!(
                "  {}: positions {} to {} ({} bytes): {}{}\n",
                match lost {
                    true => "DAMAGED",
                    false => "not finished when it stopped",
                },
                range["from"],
                range["to"],
                range["bytes"],
                word(&range["reason"]),
                match (&numbers, lost) {
                    (Some(numbers), true) => format!("; {numbers}"),
                    (None, true) => "; no message begins in it".to_owned(),
                    (_, false) => String::new(),
                }
            ));
        }
        if let Some(numbers) = numbers.filter(|_| lost) {
            missing.push(numbers);
        }
    }
    let hidden = damaged.len().saturating_sub(DAMAGE_SHOWN) as u64;
    let omitted = number(&document["damaged_omitted"]) + hidden;
    if omitted > 0 {
        out.push_str(&format!(
            "  and {omitted} more ranges (--json lists them)\n"
        ));
    }
}

/// The large messages without all of their parts; `missing` gets those that were acknowledged.
fn incomplete_text(document: &Value, out: &mut String, missing: &mut Vec<String>) {
    for message in list(&document["incomplete"]) {
        let (id, at) = (word(&message["id"]), &message["position"]);
        match message["damaged"] == json!(true) {
            true => {
                missing.push(id.clone());
                out.push_str(&format!(
                    "  DAMAGED: large message {id} at position {at}: parts of it are gone\n"
                ));
            }
            false => out.push_str(&format!(
                "  not finished when it stopped: large message {id} at position {at}\n"
            )),
        }
    }
}

/// Stretches of numbers, and damaged ranges, that the text shows.
const STRETCHES_SHOWN: usize = 100;
const DAMAGE_SHOWN: usize = 100;

fn stretch_text(first: &Value, last: &Value) -> String {
    match first == last {
        true => word(first),
        false => format!("{} to {}", word(first), word(last)),
    }
}

/// Which messages a damaged range may have held; `None` when it held the beginning of none.
fn missing_text(range: &Value) -> Option<String> {
    let (first, last) = (&range["first_id"], &range["last_id"]);
    let number = |value: &Value| {
        let (_, number) = value.as_str()?.split_once('-')?;
        number.parse::<u64>().ok()
    };
    let perhaps = match range["certain"] == json!(true) {
        true => "",
        false => " (some of these numbers may never have been used)",
    };
    match (number(first), number(last)) {
        (Some(from), Some(to)) if to < from => None,
        (Some(_), Some(_)) => Some(format!("{}{perhaps}", stretch_text(first, last))),
        (Some(_), None) => Some(format!(
            "{} and perhaps later ones",
            stretch_text(first, first)
        )),
        (None, Some(_)) => Some(format!(
            "{} and perhaps earlier ones",
            stretch_text(last, last)
        )),
        (None, None) => Some("messages of unknown numbers".to_owned()),
    }
}

/// Checks what can't be checked word by word.
///
/// # Errors
/// One sentence for the user.
pub fn check(args: &RescueArguments) -> Result<(), String> {
    if args.released && args.to_ring.is_some() {
        return Err(
            "--include-released and --to-ring exclude each other: consumers of the new ring \
                    would deliver released mail again"
                .to_owned(),
        );
    }
    if args.to_ring.is_some()
        && args
            .ring_size
            .is_some_and(|size| size < RING_BYTES_MIN || !size.is_multiple_of(RING_BYTES_STEP))
    {
        return Err("--ring-size: a multiple of 2MiB for --to-ring".to_owned());
    }
    Ok(())
}
