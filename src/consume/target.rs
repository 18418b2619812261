//! Where a consumer delivers to.
//!
//! A target reports a result for each recipient. Those here have one result for all of them.
//! Nothing a target took counts as delivered before [`Target::flush`] returned.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::clock::{self, Calendar, MONTHS, WEEKDAYS};
use crate::envelope::FLAG_SMTPUTF8;
use crate::log_cli::text;
use crate::ringlog::reader::Message;
use crate::sys::file::{Lock, memory_file, try_lock};
use crate::sys::wait;

/// What became of a message for one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecipientResult {
    /// Delivered.
    Ok,
    /// Not now: to be tried again after this time at the earliest.
    Retry(Duration),
    /// Never: recorded, and not tried again.
    Fail {
        /// A number that means something to the target, such as an exit code.
        code: u16,
        /// One sentence.
        text: String,
    },
}

/// What became of a message: one result for each recipient of its envelope, in order, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// INVARIANT: not empty.
    results: Vec<RecipientResult>,
    /// Why a retry is needed, for the log.
    pub reason: Option<String>,
}

impl Outcome {
    /// The same result for every recipient of `message`.
    pub fn all(message: &Message, result: RecipientResult) -> Outcome {
        let recipients = message.envelope().recipients.len().max(1);
        Outcome {
            results: vec![result; recipients],
            reason: None,
        }
    }

    /// Every recipient again later, because of `error`.
    pub fn retry(message: &Message, error: &dyn std::fmt::Display) -> Outcome {
        let mut outcome = Outcome::all(message, RecipientResult::Retry(Duration::ZERO));
        outcome.reason = Some(error.to_string());
        outcome
    }

    /// The results, by recipient.
    pub fn results(&self) -> &[RecipientResult] {
        &self.results
    }

    /// The longest wait that a recipient asks for; `None` when none has to be tried again.
    pub fn retry_after(&self) -> Option<Duration> {
        let waits = self.results.iter().filter_map(|result| match result {
            RecipientResult::Retry(after) => Some(*after),
            _ => None,
        });
        waits.max()
    }
}

/// Takes messages in order.
pub trait Target {
    /// Delivers one message, or takes it for the next [`Target::flush`].
    fn deliver(&mut self, message: &Message) -> Outcome;

    /// Makes everything delivered so far last.
    ///
    /// # Errors
    /// Everything since the last flush is delivered again.
    fn flush(&mut self) -> io::Result<()>;

    /// Whether it only looks on: it is no consumer, and nothing is kept for it.
    fn is_tap(&self) -> bool {
        false
    }
}

/// How a target is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetName {
    /// `maildir:DIR`
    Maildir(PathBuf),
    /// `mbox:FILE`
    Mbox(PathBuf),
    /// `exec:COMMAND`
    Exec(OsString),
    /// `stdout`
    Stdout,
}

impl TargetName {
    /// Reads `maildir:DIR`, `mbox:FILE`, `exec:COMMAND` or `stdout`.
    ///
    /// # Errors
    /// One sentence that says what is allowed.
    pub fn parse(text: &str) -> Result<TargetName, String> {
        match text.split_once(':') {
            None if text == "stdout" => Ok(TargetName::Stdout),
            Some(("maildir", dir)) if !dir.is_empty() => Ok(TargetName::Maildir(dir.into())),
            Some(("mbox", file)) if !file.is_empty() => Ok(TargetName::Mbox(file.into())),
            Some(("exec", command)) if !command.is_empty() => Ok(TargetName::Exec(command.into())),
            _ => Err(format!(
                "'{text}' is no target: maildir:DIR, mbox:FILE, exec:COMMAND or stdout"
            )),
        }
    }
}

/// Name of a message's file: the same at every delivery, and the same nowhere else.
pub(crate) fn unique_name(message: &Message) -> String {
    format!(
        "{}.{}-{}.ringmx",
        message.received_ns / 1_000_000_000,
        text::hex(&message.ring_id),
        message.id()
    )
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A Maildir: `tmp`, then `new`. The name is made of ring, shard and number, so that a message that
/// is delivered again replaces itself. One that was moved to `cur` in the meantime is recognised
/// there as well.
#[derive(Debug)]
pub struct Maildir {
    dir: PathBuf,
    /// Names in `cur` without their flags, as they stood at the start: only what was delivered
    /// before then can be delivered again.
    seen: BTreeSet<Vec<u8>>,
    dirty: bool,
}

impl Maildir {
    /// Opens or makes the directory and its three parts.
    ///
    /// # Errors
    /// As mkdir(2) and readdir(3).
    pub fn open(dir: &Path) -> io::Result<Maildir> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for part in ["tmp", "new", "cur"] {
            builder.create(dir.join(part))?;
        }
        let mut seen = BTreeSet::new();
        for entry in fs::read_dir(dir.join("cur"))? {
            let name = entry?.file_name();
            let base = name.as_bytes().split(|byte| *byte == b':').next();
            if let Some(base) = base.filter(|base| base.ends_with(b".ringmx")) {
                seen.insert(base.to_vec());
            }
        }
        sync_directory(dir)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_directory(parent)?;
        }
        Ok(Maildir {
            dir: dir.to_owned(),
            seen,
            dirty: false,
        })
    }

    fn store(&mut self, message: &Message) -> io::Result<()> {
        let name = unique_name(message);
        if self.seen.contains(name.as_bytes()) {
            return Ok(());
        }
        // Two consumers may deliver to one Maildir: the temporary names differ, the final ones need
        // not.
        let temporary = self
            .dir
            .join("tmp")
            .join(format!("{name}.{}", std::process::id()));
        let result = write_new(&temporary, message.body())
            .and_then(|()| fs::rename(&temporary, self.dir.join("new").join(name)));
        if result.is_err() {
            // The first error counts; Maildir readers clear what stays in tmp for long.
            let _ = fs::remove_file(&temporary);
        }
        self.dirty |= result.is_ok();
        result
    }
}

/// Writes a file and makes its bytes durable.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

impl Target for Maildir {
    fn deliver(&mut self, message: &Message) -> Outcome {
        match self.store(message) {
            Ok(()) => Outcome::all(message, RecipientResult::Ok),
            Err(error) => Outcome::retry(message, &format!("'{}': {error}", self.dir.display())),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.dirty) {
            sync_directory(&self.dir.join("new"))?;
        }
        Ok(())
    }
}

/// An mbox file, mboxrd: a From_ line before each message, `>` before each body line that begins
/// with any number of `>` and `From `, LF as line end, an empty line behind. Locked while it is
/// written to.
#[derive(Debug)]
pub struct Mbox {
    path: PathBuf,
    file: Option<File>,
}

impl Mbox {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(path: &Path) -> io::Result<Mbox> {
        let mut mbox = Mbox {
            path: path.to_owned(),
            file: None,
        };
        mbox.reopen()?;
        if let Some(parent) = path.parent() {
            let parent = match parent.as_os_str().is_empty() {
                true => Path::new("."),
                false => parent,
            };
            sync_directory(parent)?;
        }
        Ok(mbox)
    }

    /// Opens the file by its name each time, because readers replace it when they rewrite it.
    fn reopen(&mut self) -> io::Result<&mut File> {
        let file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)?;
        Ok(self.file.insert(file))
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = self.reopen()?;
        // Locks of open file descriptions exclude those of fcntl that mail readers take.
        let deadline = 100;
        for attempt in 0.. {
            if try_lock(file, Lock::Exclusive)? {
                break;
            }
            if attempt == deadline {
                return Err(io::Error::other("locked by another program"));
            }
            wait::readable(&[], Some(Duration::from_millis(50)))?;
        }
        let len = file.seek(SeekFrom::End(0))?;
        // What a crash has cut off ends here, so that this message begins a line behind an empty
        // one.
        let mut end = [b'\n'; 2];
        if len >= 2 {
            file.read_exact_at(&mut end, len - 2)?;
        }
        let missing: &[u8] = match end {
            [b'\n', b'\n'] => b"",
            [_, b'\n'] => b"\n",
            _ => b"\n\n",
        };
        let result = file.write_all(missing).and_then(|()| file.write_all(bytes));
        if result.is_err() {
            // Half a message would swallow the beginning of the next one.
            file.set_len(len)?;
        }
        result
    }
}

/// One message as it stands in an mbox file.
pub fn mbox_entry(message: &Message) -> Vec<u8> {
    let envelope = message.envelope();
    let sender: Vec<u8> = match envelope.reverse_path {
        None | Some([]) => b"MAILER-DAEMON".to_vec(),
        // The From_ line is split at spaces by its readers.
        Some(path) => path
            .iter()
            .map(|byte| match byte {
                b'!'..=b'~' | 128.. => *byte,
                _ => b'-',
            })
            .collect(),
    };
    let mut out = Vec::with_capacity(message.body().len() + 128);
    out.extend_from_slice(b"From ");
    out.extend_from_slice(&sender);
    let date = asctime(clock::calendar(message.received_ns / 1_000_000_000));
    out.extend_from_slice(format!(" {date}\n").as_bytes());
    for line in message.body().split_inclusive(|byte| *byte == b'\n') {
        let quotes = line.iter().take_while(|byte| **byte == b'>').count();
        if line[quotes..].starts_with(b"From ") {
            out.push(b'>');
        }
        match line.strip_suffix(b"\r\n") {
            Some(text) => {
                out.extend_from_slice(text);
                out.push(b'\n');
            }
            None => out.extend_from_slice(line),
        }
    }
    if out.last() != Some(&b'\n') {
        out.push(b'\n');
    }
    out.push(b'\n');
    out
}

/// `Mon Nov 23 01:02:03 2026`, UTC.
fn asctime(at: Calendar) -> String {
    let name = |names: &[&'static str], index: u8| names.get(usize::from(index)).copied();
    format!(
        "{} {} {:2} {:02}:{:02}:{:02} {:04}",
        name(&WEEKDAYS, at.weekday).unwrap_or("Sun"),
        name(&MONTHS, at.month.saturating_sub(1)).unwrap_or("Jan"),
        at.day,
        at.hour,
        at.minute,
        at.second,
        at.year
    )
}

impl Target for Mbox {
    fn deliver(&mut self, message: &Message) -> Outcome {
        match self.append(&mbox_entry(message)) {
            Ok(()) => Outcome::all(message, RecipientResult::Ok),
            Err(error) => Outcome::retry(message, &format!("'{}': {error}", self.path.display())),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // The lock ends with the descriptor.
        match self.file.take() {
            Some(file) => file.sync_all(),
            None => Ok(()),
        }
    }
}

/// One line of JSON per message, the message's octets included, to any writer. A tap.
#[derive(Debug)]
pub struct JsonLines<W> {
    out: W,
    /// The reader of the output has gone.
    pub closed: bool,
}

impl<W: Write> JsonLines<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> JsonLines<W> {
        JsonLines { out, closed: false }
    }
}

impl<W: Write> Target for JsonLines<W> {
    fn deliver(&mut self, message: &Message) -> Outcome {
        match writeln!(self.out, "{}", text::json(message, true)) {
            Ok(()) => Outcome::all(message, RecipientResult::Ok),
            Err(error) => {
                self.closed = true;
                let (code, text) = (0, error.to_string());
                Outcome::all(message, RecipientResult::Fail { code, text })
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().inspect_err(|_| self.closed = true)
    }

    fn is_tap(&self) -> bool {
        true
    }
}

/// A command run by `/bin/sh -c` for each message: octets on its standard input, envelope in its
/// environment.
#[derive(Debug)]
pub struct Exec {
    command: OsString,
    run_max: Duration,
}

/// Exit code by which a command asks to be run again later: EX_TEMPFAIL of sysexits.h.
pub const EXIT_TEMPFAIL: i32 = 75;
/// Time after which a command is killed and tried again later.
pub const EXEC_RUN_MAX: Duration = Duration::from_secs(600);
/// Bytes of one environment value: Linux takes no string over 128 KiB.
const ENVIRONMENT_VALUE_BYTES_MAX: usize = 65_536;

impl Exec {
    /// Will run `command`.
    pub fn new(command: &OsStr) -> Exec {
        Exec {
            command: command.to_owned(),
            run_max: EXEC_RUN_MAX,
        }
    }

    /// With another bound for one run.
    pub fn with_run_max(self, run_max: Duration) -> Exec {
        Exec { run_max, ..self }
    }

    fn run(&self, message: &Message) -> io::Result<Ended> {
        // A file and not a pipe: nobody can stop reading it half-way and leave this process
        // waiting.
        let mut stdin = memory_file(c"ringmx-message")?;
        stdin.write_all(message.body())?;
        stdin.rewind()?;
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(&self.command)
            .stdin(Stdio::from(stdin))
            // A signal from the terminal stops the consumer after this message, not the command in
            // the midst of it.
            .process_group(0);
        environment(&mut command, message);
        let mut child = command.spawn()?;
        let process = wait::process(child.id());
        let clock = clock::Clock::new();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Ended::Status(status));
            }
            let left_ns = clock::nanos(self.run_max).saturating_sub(clock.now().0);
            if left_ns == 0 {
                // The whole group, because the command may have started others.
                wait::kill_group(child.id());
                child.wait()?;
                return Ok(Ended::TooLong);
            }
            let left = Duration::from_nanos(left_ns);
            match &process {
                Ok(process) => wait::readable(&[process.as_fd_ref()], Some(left))?,
                // Without process descriptors there is only looking again and again.
                Err(_) => wait::readable(&[], Some(left.min(Duration::from_millis(20))))?,
            };
        }
    }
}

enum Ended {
    Status(std::process::ExitStatus),
    TooLong,
}

fn environment(command: &mut Command, message: &Message) {
    let envelope = message.envelope();
    let mut set = |name: &str, value: &[u8]| {
        // An environment value cannot hold NUL; no field of an envelope should.
        let value: Vec<u8> = value.iter().copied().filter(|byte| *byte != 0).collect();
        let len = value.len().min(ENVIRONMENT_VALUE_BYTES_MAX);
        command.env(name, OsStr::from_bytes(&value[..len]));
    };
    set("RINGMX_ID", message.id().to_string().as_bytes());
    set("RINGMX_SHARD", message.shard.to_string().as_bytes());
    set("RINGMX_NUMBER", message.number.to_string().as_bytes());
    set("RINGMX_RING_ID", text::hex(&message.ring_id).as_bytes());
    let received = clock::rfc3339(message.received_ns);
    set("RINGMX_RECEIVED", received.as_bytes());
    set(
        "RINGMX_RECEIVED_NS",
        message.received_ns.to_string().as_bytes(),
    );
    set("RINGMX_OCTETS", message.body().len().to_string().as_bytes());
    for (address, port, value) in [
        (
            "RINGMX_CLIENT_ADDRESS",
            "RINGMX_CLIENT_PORT",
            envelope.client,
        ),
        (
            "RINGMX_LISTENER_ADDRESS",
            "RINGMX_LISTENER_PORT",
            envelope.listener,
        ),
    ] {
        let (ip, number) = value.map_or_else(Default::default, |value| {
            (value.ip().to_string(), value.port().to_string())
        });
        set(address, ip.as_bytes());
        set(port, number.as_bytes());
    }
    set("RINGMX_ROLE", envelope.role.unwrap_or_default());
    set("RINGMX_HELO", envelope.helo.unwrap_or_default());
    set("RINGMX_TLS", envelope.tls.unwrap_or_default());
    set("RINGMX_USER", envelope.user.unwrap_or_default());
    set("RINGMX_SENDER", envelope.reverse_path.unwrap_or_default());
    set(
        "RINGMX_SENDER_PARAMETERS",
        envelope.mail_parameters.unwrap_or_default(),
    );
    let body = text::body_name(envelope.facts.body).unwrap_or_default();
    set("RINGMX_BODY", body.as_bytes());
    let smtputf8 = envelope.facts.flags & FLAG_SMTPUTF8 != 0;
    set("RINGMX_SMTPUTF8", if smtputf8 { b"1" } else { b"0" });
    // One per line; whole addresses only, and how many are left out.
    let mut recipients = Vec::new();
    let mut shown = 0;
    for recipient in &envelope.recipients {
        if recipients.len() + recipient.path.len() >= ENVIRONMENT_VALUE_BYTES_MAX {
            break;
        }
        if shown > 0 {
            recipients.push(b'\n');
        }
        recipients.extend_from_slice(recipient.path);
        shown += 1;
    }
    set("RINGMX_RECIPIENTS", &recipients);
    let count = envelope.recipients.len();
    set("RINGMX_RECIPIENTS_COUNT", count.to_string().as_bytes());
    let omitted = count - shown;
    set("RINGMX_RECIPIENTS_OMITTED", omitted.to_string().as_bytes());
}

impl Target for Exec {
    fn deliver(&mut self, message: &Message) -> Outcome {
        let status = match self.run(message) {
            Ok(Ended::Status(status)) => status,
            Ok(Ended::TooLong) => return Outcome::retry(message, &"the command took too long"),
            Err(error) => return Outcome::retry(message, &format!("running the command: {error}")),
        };
        match (status.code(), status.signal()) {
            (Some(0), _) => Outcome::all(message, RecipientResult::Ok),
            (Some(EXIT_TEMPFAIL), _) => Outcome::retry(message, &"the command asks for a retry"),
            (Some(code), _) => Outcome::all(
                message,
                RecipientResult::Fail {
                    code: u16::try_from(code).unwrap_or(u16::MAX),
                    text: format!("the command exited with code {code}"),
                },
            ),
            // Killed from outside: that says nothing about the message.
            (None, signal) => Outcome::retry(
                message,
                &format!("the command was ended by signal {}", signal.unwrap_or(0)),
            ),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
