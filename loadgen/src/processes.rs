//! One run in several processes: each has its share of the workers, and their results add up to one report.
//!
//! Promises: the messages of a run depend on the number of its workers, not on the processes they are in; all processes
//! start at one moment; a process that dies is named, ends the run and makes it invalid; none outlives its parent; a
//! process that says nothing is given up after a stated time. Does not: use another machine.
//!
//! Over the pipes of its standard input and output each process says, line by line:
//!
//! ```text
//! ready                  its sessions are up (open loop), or it waits (closed loop)
//! live N N ...           what `Live` holds, for each of its workers; five times a second
//! done JSON              what it measured; the last line
//! ```
//!
//! and hears `go NS` (start at this time of the monotonic clock), `stop` (drain now), and the end of the stream, which
//! means that its parent is gone: it exits at once.

use crate::handover;
use crate::plan::{Mode, Workload};
use crate::recorder::Recorder;
use crate::run::{self, Done};
use crate::sys;
use crate::wire::{Address, Target};
use crate::worker::{Live, Logs, Shared, Tuning, WARM_CONNECT_NS};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Most processes of one run.
pub const PROCESSES_MAX: usize = 256;
/// From the moment all are ready to the start, so that each has heard of it.
const LEAD_NS: u64 = 400_000_000;
/// A process that has begun and says nothing for this long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// The same before it is ready: a corpus has to be read first.
const PREPARE_MAX: Duration = Duration::from_secs(120);
/// How often the display is brought up to date.
const TICK: Duration = Duration::from_millis(200);
/// Most bytes that one process may say.
const SAID_MAX: u64 = 1 << 30;

/// One process of a run, as it was at its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    /// Its number in the system.
    pub pid: u32,
    /// Sessions it had.
    pub sessions: u64,
    /// Largest resident set, in bytes.
    pub resident_max: u64,
    /// By how much its resident set grew over its share of the run, in bytes.
    pub resident_grown: u64,
    /// Lines of the raw log written, and left out.
    pub raw: (u64, u64),
}

impl Process {
    /// Describes this process, which had `sessions` and was `resident_before` large before them.
    pub fn current(sessions: u64, resident_before: u64, raw: (u64, u64)) -> Self {
        let resident_max = sys::resident_max();
        Self {
            pid: std::process::id(),
            sessions,
            resident_max,
            resident_grown: resident_max.saturating_sub(resident_before),
            raw,
        }
    }
}

/// What a process of the run is told on its command line.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its number.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    /// Where the target is: resolved once, by the parent.
    pub address: String,
    /// The run id.
    pub run: u64,
    /// What the hash of its plan must be, so that a process that understood something else can't go unnoticed.
    pub plan_hash: u64,
}

impl Part {
    /// Reads the words that `words` makes and leaves what follows them.
    pub fn take(words: &mut impl Iterator<Item = OsString>) -> Option<Self> {
        let mut word = || words.next()?.into_string().ok();
        let (index, count) = (word()?.parse().ok()?, word()?.parse().ok()?);
        let address = word()?;
        let mut number = || u64::from_str_radix(&word()?, 16).ok();
        let (run, plan_hash) = (number()?, number()?);
        (index < count && count <= PROCESSES_MAX).then_some(Self {
            index,
            count,
            address,
            run,
            plan_hash,
        })
    }

    fn words(&self) -> [String; 5] {
        [
            self.index.to_string(),
            self.count.to_string(),
            self.address.clone(),
            format!("{:016x}", self.run),
            format!("{:016x}", self.plan_hash),
        ]
    }
}

/// Runs this process's share and tells the parent on standard output.
///
/// **Errors**: as `run::run`.
pub fn serve(
    part: &Part,
    load: Arc<Workload>,
    target: Arc<Target>,
    tuning: &Tuning,
    threads: usize,
    logs: &Logs,
) -> io::Result<()> {
    let (first, workers) = (part.index * threads, part.count * threads);
    let gated = load.plan.connects_first();
    let sessions = load.plan.sessions;
    let shared = Arc::new(Shared::new(threads, first, workers, sessions, gated));
    let (send, told) = channel();
    let theirs = shared.clone();
    std::thread::Builder::new()
        .name("parent".into())
        .spawn(move || listen(&theirs, &send))?;
    let warm = Duration::from_nanos(WARM_CONNECT_NS + load.plan.ramp_ns);
    let mut ready = !gated;
    if ready {
        say("ready");
        // The thread lives as long as the process; without it there is nobody left to work for.
        let start_ns = told.recv().map_err(io::Error::other)?;
        while let Some(ns) = start_ns
            .checked_sub(sys::monotonic_ns())
            .filter(|ns| *ns > 0)
        {
            std::thread::park_timeout(Duration::from_nanos(ns));
        }
    }
    let resident_before = sys::resident_max();
    let done = run::part(
        load,
        target,
        tuning,
        &shared,
        (first, workers),
        logs,
        |shared, elapsed| {
            if !ready && (shared.ready.load(Ordering::Relaxed) >= shared.sessions || elapsed > warm)
            {
                ready = true;
                say("ready");
            }
            let mut line = "live".to_owned();
            for field in shared.live.iter().flat_map(Live::fields) {
                line.push(' ');
                line.push_str(&field.load(Ordering::Relaxed).to_string());
            }
            say(&line);
        },
    )?;
    let raw = logs.raw.as_ref().map_or((0, 0), |raw| raw.counts());
    let process = Process::current(shared.sessions, resident_before, raw);
    let result = json!({
        "recorder": handover::write(&done.recorder),
        "sessions": process.sessions,
        "resident_max": process.resident_max,
        "resident_grown": process.resident_grown,
        "raw": [raw.0, raw.1],
    });
    say(&format!("done {result}"));
    Ok(())
}

/// Writes a line to the parent. One that is gone is noticed by `listen`.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Hears the parent, to the end of this process.
fn listen(shared: &Shared, told: &Sender<u64>) {
    let mut lines = io::stdin().lock().lines();
    while let Some(Ok(line)) = lines.next() {
        match line.strip_prefix("go ").and_then(|ns| ns.parse().ok()) {
            Some(ns) => {
                shared.start_ns.store(ns, Ordering::Relaxed);
                let _ = told.send(ns);
            }
            None => {
                shared.stop.store(true, Ordering::Relaxed);
                let _ = told.send(0);
            }
        }
    }
    std::process::exit(i32::from(crate::cli::INTERRUPTED));
}

/// What a process said.
enum Said {
    Ready,
    Live(Vec<u64>),
    Done(Box<(Recorder, Process)>),
    /// Nothing more will come.
    End,
}

/// How a run is divided.
pub struct Setting<'a> {
    /// TARGET and the options from which each process makes the plan again.
    pub arguments: &'a [String],
    /// The target.
    pub address: &'a Address,
    /// Processes, 2 or more.
    pub processes: usize,
    /// Workers of each.
    pub threads: usize,
}

/// Runs a workload to its end in several processes. `tick` is called as by `run::run`.
///
/// **Errors**: a process can't be started.
pub fn run(
    setting: &Setting<'_>,
    load: &Workload,
    mut tick: impl FnMut(&Shared, Duration),
) -> io::Result<Done> {
    let plan = &load.plan;
    let workers = setting.processes * setting.threads;
    let shared = Shared::new(workers, 0, workers, plan.sessions, false);
    let open = matches!(plan.mode, Mode::Open { .. });
    let (send, said) = channel();
    let mut crew = Crew::default();
    for index in 0..setting.processes {
        let part = Part {
            index,
            count: setting.processes,
            address: setting.address.to_string(),
            run: plan.run,
            plan_hash: plan.hash(),
        };
        let member = Member::start(&part, setting.arguments, open, &send)?;
        crew.members.push(member);
    }
    drop(send);
    let begin = Instant::now();
    let mut next = begin + TICK;
    while !crew.members.iter().all(|member| member.over) {
        match said.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok((index, Said::Live(numbers))) => {
                crew.members[index].heard = Instant::now();
                let fields = shared.live[index * setting.threads..]
                    .iter()
                    .flat_map(Live::fields);
                for (field, number) in fields.zip(numbers) {
                    field.store(number, Ordering::Relaxed);
                }
            }
            Ok((index, said)) => crew.hear(index, said),
            Err(RecvTimeoutError::Timeout) => {
                crew.look();
                tick(&shared, crew.started.unwrap_or(begin).elapsed());
                next = Instant::now() + TICK;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let nothing = || Recorder::new(plan.warmup_ns, plan.warmup_ns, open);
    Ok(Done {
        elapsed: crew.started.unwrap_or(begin).elapsed(),
        recorder: crew.recorder.unwrap_or_else(nothing),
        interrupted: sys::interrupted(),
        processes: crew.processes,
        trouble: crew.trouble,
    })
}

/// One process as its parent sees it.
struct Member {
    child: Child,
    /// Dropping it ends the process.
    input: ChildStdin,
    /// As people name it.
    name: String,
    ready: bool,
    done: bool,
    over: bool,
    /// It was given up.
    silent: bool,
    /// When it last said something.
    heard: Instant,
}

impl Member {
    fn start(
        part: &Part,
        arguments: &[String],
        open: bool,
        send: &Sender<(usize, Said)>,
    ) -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("part")
            .args(part.words())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("no pipe to a process"));
        };
        let (send, index, pid) = (send.clone(), part.index, child.id());
        std::thread::Builder::new()
            .name(format!("process-{index}"))
            .spawn(move || {
                let mut lines = BufReader::new(output.take(SAID_MAX)).lines();
                while let Some(Ok(line)) = lines.next() {
                    if let Some(said) = parse(&line, pid, open) {
                        // The receiver goes when the run is over.
                        let _ = send.send((index, said));
                    }
                }
                let _ = send.send((index, Said::End));
            })?;
        Ok(Self {
            name: format!("process {} of {} (pid {pid})", index + 1, part.count),
            child,
            input,
            ready: false,
            done: false,
            over: false,
            silent: false,
            heard: Instant::now(),
        })
    }

    fn tell(&mut self, line: &str) {
        // A process that is gone is noticed by the end of what it says.
        let _ = self.input.write_all(line.as_bytes());
    }
}

/// Reads one line of a process; nothing when it is none.
fn parse(line: &str, pid: u32, open: bool) -> Option<Said> {
    if let Some(text) = line.strip_prefix("done ") {
        let value: Value = serde_json::from_str(text).ok()?;
        let number = |value: &Value| value.as_u64();
        let process = Process {
            pid,
            sessions: number(&value["sessions"])?,
            resident_max: number(&value["resident_max"])?,
            resident_grown: number(&value["resident_grown"])?,
            raw: (number(&value["raw"][0])?, number(&value["raw"][1])?),
        };
        let recorder = handover::read(&value["recorder"], open)?;
        return Some(Said::Done(Box::new((recorder, process))));
    }
    match line.split_once(' ') {
        None if line == "ready" => Some(Said::Ready),
        Some(("live", numbers)) => {
            let numbers = numbers.split(' ').map(|number| number.parse().ok());
            numbers.collect::<Option<_>>().map(Said::Live)
        }
        _ => None,
    }
}

/// All processes of a run.
#[derive(Default)]
struct Crew {
    members: Vec<Member>,
    /// When they were told to start.
    started: Option<Instant>,
    stopped: bool,
    /// What was wrong first.
    trouble: Option<String>,
    recorder: Option<Recorder>,
    processes: Vec<Process>,
}

impl Crew {
    fn hear(&mut self, index: usize, said: Said) {
        let member = &mut self.members[index];
        member.heard = Instant::now();
        match said {
            Said::Ready => {
                member.ready = true;
                if self.started.is_none() && self.members.iter().all(|member| member.ready) {
                    self.started = Some(Instant::now());
                    let line = format!("go {}\n", sys::monotonic_ns() + LEAD_NS);
                    self.members
                        .iter_mut()
                        .for_each(|member| member.tell(&line));
                }
            }
            Said::Done(result) => {
                member.done = true;
                run::add(&mut self.recorder, result.0);
                self.processes.push(result.1);
            }
            Said::End => self.over(index),
            Said::Live(_) => {}
        }
    }

    /// A process has said its last.
    fn over(&mut self, index: usize) {
        let member = &mut self.members[index];
        member.over = true;
        if !member.done {
            // It may have closed its output and live on.
            let _ = member.child.kill();
        }
        let status = member.child.wait();
        if !member.done {
            let how = match status {
                _ if member.silent => "said nothing for too long and was killed".into(),
                Ok(status) => ending(status),
                Err(error) => format!("is gone: {error}"),
            };
            let text = format!("{} {how}; its part is not in the figures", member.name);
            self.trouble.get_or_insert(text);
            // What the others still do can't make this run valid.
            self.stop();
        }
    }

    fn stop(&mut self) {
        if !std::mem::replace(&mut self.stopped, true) {
            self.members
                .iter_mut()
                .for_each(|member| member.tell("stop\n"));
        }
    }

    /// Looks for a wish to end, and for processes that hang.
    fn look(&mut self) {
        if sys::interrupted() {
            self.stop();
        }
        let patience = match self.started {
            None => PREPARE_MAX,
            Some(_) => SILENCE_MAX,
        };
        for member in self.members.iter_mut().filter(|member| !member.over) {
            if member.heard.elapsed() > patience {
                member.silent = true;
                let _ = member.child.kill();
            }
        }
    }
}

fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("ended with exit code {code} before it reported"),
        (None, None) => "ended before it reported".into(),
    }
}
