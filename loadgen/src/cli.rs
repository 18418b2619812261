//! The command line: arguments to plan, plan to run, run to report and exit code.

use crate::ceiling::{self, Ceiling};
use crate::client::{EXTENSIONS, Phase};
use crate::compare;
use crate::corpus::Corpus;
use crate::formats;
use crate::help;
use crate::hostile;
use crate::html;
use crate::ledger::Ledger;
use crate::live::Display;
use crate::message;
use crate::plan::{
    Addresses, Auth, Count, Dsn, Mode, Pipelining, Plan, Protocol, Quit, Sizes, TlsMode, Workload,
};
use crate::preflight;
use crate::probe;
use crate::processes::{self, PROCESSES_MAX, Part, Process};
use crate::profile;
use crate::raw::{self, RawLog};
use crate::report::{self, Facts};
use crate::rng;
use crate::run;
use crate::search;
use crate::sink::{Faults, Running};
use crate::smtp_source;
use crate::sys;
use crate::tls::{Security, TlsOptions};
use crate::trace::Trace;
use crate::verdict::{self, State};
use crate::verify::{self, Store};
use crate::wire::{Address, Proxy, Sources, Target};
use crate::worker::{Logs, Shared, Tuning};
use lexopt::prelude::*;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Everything held.
pub const OK: u8 = 0;
/// A `--fail-if` came true.
pub const THRESHOLD: u8 = 1;
/// Wrong arguments, or the target can't be reached.
pub const USAGE: u8 = 2;
/// The numbers are worth nothing: saturated, unsent, nothing accepted.
pub const INVALID: u8 = 3;
/// Messages were lost, duplicated or corrupted.
pub const LOSS: u8 = 4;
/// Ended by a signal; the report was written.
pub const INTERRUPTED: u8 = 130;

/// Descriptors of a process beside those of its sessions.
const DESCRIPTORS_ASIDE: u64 = 64;
/// Least `--chunk`, in bytes: the command of a smaller chunk would outweigh it.
const CHUNK_MIN: u64 = 64;

/// Most messages a second that can be asked for.
const RATE_MAX: f64 = 1e7;

/// How much slower than it was a trace may be sent again.
const SPEED_MIN: f64 = 0.001;
/// How much faster.
const SPEED_MAX: f64 = 1000.0;

/// What a trace decides, so that it can't be said besides.
const DECIDED_BY_TRACE: [&str; 8] = [
    "rate",
    "rate-shape",
    "poisson",
    "size",
    "sizes",
    "rcpts",
    "profile",
    "corpus",
];

/// Why the program ends early.
#[derive(Debug)]
pub struct Stop {
    code: u8,
    text: String,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<lexopt::Error> for Stop {
    fn from(error: lexopt::Error) -> Self {
        usage(error.to_string())
    }
}

fn usage(text: impl Into<String>) -> Stop {
    Stop {
        code: USAGE,
        text: text.into(),
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let argv: Vec<String> = std::env::args().collect();
    match command(argv) {
        Ok(code) => ExitCode::from(code),
        Err(stop) => {
            note(&format!("smtp-loadgen: {stop}"));
            ExitCode::from(stop.code)
        }
    }
}

fn command(argv: Vec<String>) -> Result<u8, Stop> {
    let mut parser = lexopt::Parser::from_env();
    let name = match parser.next()? {
        Some(Value(word)) => word.string()?,
        Some(Long("help") | Short('h')) => return help(None),
        Some(Long("version") | Short('V')) => return version(),
        Some(other) => return Err(stray(other)),
        None => {
            note(help::first().trim_end());
            return Ok(USAGE);
        }
    };
    // Whatever else is said: who asks for help gets it. smtp-source has a -h of no meaning, so only the word counts.
    let asks = |word: &String| word == "--help" || (word == "-h" && name != "smtp-source");
    if argv.iter().skip(2).any(asks) {
        return help(Some(&name));
    }
    match name.as_str() {
        "run" => run_command(Options::parse(&mut parser)?, argv),
        "replay" => run_command(Options::parse_replay(&mut parser)?, argv),
        // One of `--processes`; started by `run` alone.
        "part" => part_command(parser),
        "verify" => verify_command(parser),
        "report" => report_command(parser),
        "raw" => raw_command(parser),
        "compare" => compare_command(parser),
        "find-max" => find_max_command(parser, argv),
        "sweep" => sweep_command(parser, argv),
        "ab" => ab_command(parser, argv),
        "profile" => profile_command(parser),
        "smtp-source" => smtp_source_command(parser, argv),
        "sink" => sink_command(parser),
        "selftest" => selftest_command(parser),
        "help" => match parser.next()? {
            Some(Value(word)) => help(Some(&word.string()?)),
            Some(other) => Err(stray(other)),
            None => help(None),
        },
        "version" => version(),
        other => Err(no_command(other)),
    }
}

fn no_command(name: &str) -> Stop {
    usage(match help::nearest_command(name) {
        Some(near) => format!("no command `{name}`; did you mean {near}?"),
        None => format!("no command `{name}`; see smtp-loadgen --help"),
    })
}

fn no_option(flag: &str) -> Stop {
    usage(match help::nearest_option(flag) {
        Some(near) if near != flag => format!("no option `--{flag}`; did you mean --{near}?"),
        Some(_) => format!("--{flag} belongs to another command; see smtp-loadgen --help"),
        None => format!("no option `--{flag}`; see smtp-loadgen --help"),
    })
}

/// Why an argument that nobody takes is refused.
fn stray(argument: lexopt::Arg<'_>) -> Stop {
    match argument {
        Long(flag) => no_option(flag),
        Short(letter) => usage(format!(
            "no option `-{letter}`: options are long here; those of smtp-source go behind \
             `smtp-loadgen smtp-source`"
        )),
        Value(word) => usage(format!(
            "{word:?} is one argument too many; see smtp-loadgen --help"
        )),
    }
}

fn help(name: Option<&str>) -> Result<u8, Stop> {
    let text = match name {
        None => help::whole(),
        Some(name) => help::of(name).ok_or_else(|| no_command(name))?,
    };
    say(text).map(|()| OK)
}

fn version() -> Result<u8, Stop> {
    say(format_args!("smtp-loadgen {}\n", env!("CARGO_PKG_VERSION"))).map(|()| OK)
}

/// Writes to standard output. A reader that has seen enough is no fault.
///
/// **Errors**: it can't be written, as on a full disk.
fn say(text: impl fmt::Display) -> Result<(), Stop> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Stop {
            code: INVALID,
            text: format!("standard output: {error}"),
        }),
        _ => Ok(()),
    }
}

/// Writes a line to standard error, if that can be.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Reads `500ms`, `10s`, `2m`, `1h`, `250us`; a bare number is seconds. Returns ns.
pub fn parse_time(text: &str) -> Option<u64> {
    let at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..at].parse().ok()?;
    let unit = match &text[at..] {
        "ns" => 1.0,
        "us" => 1e3,
        "ms" => 1e6,
        "" | "s" => 1e9,
        "m" => 60e9,
        "h" => 3600e9,
        _ => return None,
    };
    let ns = number * unit;
    (0.0..=1e18).contains(&ns).then_some(ns as u64)
}

/// Reads `1000`, `4k`, `4KiB`, `1MB`, `1MiB`.
pub fn parse_size(text: &str) -> Option<u64> {
    let at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..at].parse().ok()?;
    let unit = match text[at..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "kb" => 1e3,
        "m" | "mib" => 1024.0 * 1024.0,
        "mb" => 1e6,
        _ => return None,
    };
    let bytes = number * unit;
    (0.0..=1e12).contains(&bytes).then_some(bytes as u64)
}

fn parse_sizes(text: &str) -> Option<Sizes> {
    if let Some(rest) = text.strip_prefix("lognormal:") {
        let (median, sigma) = rest.split_once(',')?;
        let (median, sigma) = (parse_size(median)? as f64, sigma.parse::<f64>().ok()?);
        return (median >= 1.0 && (0.0..=10.0).contains(&sigma))
            .then_some(Sizes::Lognormal(median, sigma));
    }
    if text.contains(',') {
        return text
            .split(',')
            .map(parse_size)
            .collect::<Option<_>>()
            .map(Sizes::List);
    }
    if let Some((low, high)) = text.split_once('-') {
        let (low, high) = (parse_size(low)?, parse_size(high)?);
        return (low <= high).then_some(Sizes::Uniform(low, high));
    }
    parse_size(text).map(Sizes::Fixed)
}

/// Reads `size,share` lines.
pub fn parse_size_table(text: &str) -> Result<Sizes, String> {
    let mut points: Vec<(u64, f64)> = Vec::new();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        let point = line
            .split_once(',')
            .and_then(|(size, share)| Some((parse_size(size.trim())?, share.trim().parse().ok()?)));
        let Some((size, share)) = point else {
            return Err(format!("`{line}` is not SIZE,SHARE"));
        };
        if points.last().is_some_and(|(s, p)| size <= *s || share < *p)
            || !(0.0..=1.0).contains(&share)
        {
            return Err(format!(
                "`{line}`: sizes and shares must rise, shares end at 1"
            ));
        }
        points.push((size, share));
    }
    match points.last() {
        Some((_, share)) if *share >= 0.999_999 => Ok(Sizes::Table(points)),
        _ => Err("the last share must be 1".into()),
    }
}

/// Reads `RATE@TIME,RATE@TIME,...`.
fn parse_shape(text: &str) -> Option<Vec<(u64, f64)>> {
    let points: Vec<(u64, f64)> = text
        .split(',')
        .map(|point| {
            let (rate, at) = point.split_once('@')?;
            let rate = rate
                .parse::<f64>()
                .ok()
                .filter(|rate| (0.0..=RATE_MAX).contains(rate))?;
            Some((parse_time(at)?, rate))
        })
        .collect::<Option<_>>()?;
    let rises = points.windows(2).all(|pair| pair[0].0 <= pair[1].0);
    let some = points.iter().any(|(_, rate)| *rate > 0.0);
    (rises && some).then_some(points)
}

/// Reads messages a second: above 0, and no more than any machine can send, so that every plan has an end.
fn parse_rate(text: &str) -> Option<f64> {
    let rate = text.parse::<f64>().ok()?;
    (rate > 0.0 && rate <= RATE_MAX).then_some(rate)
}

fn parse_count(text: &str) -> Option<Count> {
    match text.split_once('-') {
        Some((low, high)) => {
            let (low, high) = (low.parse().ok()?, high.parse().ok()?);
            (low <= high).then_some(Count::Range(low, high))
        }
        None => text.parse().ok().map(Count::Fixed),
    }
}

/// Returns all addresses of a target, at least one.
fn parse_addresses(text: &str) -> Result<Vec<Address>, Stop> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(vec![Address::Unix(path.into())]);
    }
    let text = text.strip_prefix("inet:").unwrap_or(text);
    let found = text.to_socket_addrs().map_err(|error| {
        usage(format!(
            "target `{text}`: {error}; write HOST:PORT, [IPV6]:PORT or unix:PATH"
        ))
    })?;
    let found: Vec<_> = found.map(Address::Tcp).collect();
    if found.is_empty() {
        return Err(usage(format!("target `{text}` has no address")));
    }
    Ok(found)
}

fn parse_address(text: &str) -> Result<Address, Stop> {
    parse_addresses(text).map(|mut found| found.swap_remove(0))
}

/// Greets the addresses of a target one after the other, and returns the first that can be used.
///
/// **Errors**: none can.
fn greet(addresses: Vec<Address>, plan: &Plan) -> Result<(Address, probe::Greeting), Stop> {
    let mut refusals = Vec::new();
    for address in addresses {
        match probe::ask(&address, plan) {
            Ok(greeting) => return Ok((address, greeting)),
            Err(error) => refusals.push(format!("target {address} can't be used: {error}")),
        }
    }
    Err(usage(refusals.join("; ")))
}

/// Whether mail sent there can't reach a stranger.
fn is_private(address: &Address) -> bool {
    match address {
        Address::Unix(_) => true,
        Address::Tcp(addr) => match addr.ip() {
            IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
            IpAddr::V6(ip) => {
                ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()
            }
        },
    }
}

/// Whether RFC 2606 or RFC 6761 reserves the domain.
fn is_reserved(domain: &str) -> bool {
    let domain = domain.to_ascii_lowercase();
    let last = domain.rsplit('.').next().unwrap_or("");
    matches!(last, "example" | "test" | "invalid" | "localhost")
        || ["example.com", "example.net", "example.org"]
            .iter()
            .any(|known| domain == *known || domain.ends_with(&format!(".{known}")))
        || domain.starts_with('[')
        || domain.is_empty()
}

/// Everything that `run` and its relatives take from the command line.
pub struct Options {
    /// The plan; `sessions` is 0 when it was not given.
    pub plan: Plan,
    /// TARGET as given.
    pub target: String,
    tuning: Tuning,
    sources: Option<Sources>,
    congestion: Option<String>,
    threads: usize,
    processes: usize,
    preflight: bool,
    owned: bool,
    quiet: bool,
    dry_run: bool,
    ledger: Option<PathBuf>,
    raw: Option<PathBuf>,
    json: Option<PathBuf>,
    html: Option<PathBuf>,
    tls: TlsOptions,
    hostile: Vec<(usize, f64)>,
    corpus: Option<PathBuf>,
    proxy: Option<Proxy>,
    ceiling: Option<CeilingFrom>,
    fail_if: Vec<Threshold>,
    run_id: Option<u64>,
    rate: Option<f64>,
    poisson: bool,
    by_connection: bool,
    trace: Option<PathBuf>,
    speed: f64,
    /// The options that all this was read from, for the processes of a run.
    arguments: Vec<String>,
}

/// Where the ceiling of this machine comes from.
enum CeilingFrom {
    /// Given as a rate.
    Rate(f64),
    /// A file that `selftest --json` wrote.
    File(PathBuf),
}

/// One `--fail-if`.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    text: String,
    name: String,
    above: bool,
    limit: f64,
}

impl Threshold {
    /// Reads `p99>50ms`, `error_rate>0.1%`, `rate<9900`.
    pub fn parse(text: &str) -> Option<Self> {
        let at = text.find(['<', '>'])?;
        let name = text[..at].trim().to_owned();
        let value = text[at + 1..].trim();
        let limit = if is_latency(&name) {
            parse_time(value)? as f64
        } else if let Some(percent) = value.strip_suffix('%') {
            percent.trim().parse::<f64>().ok()? / 100.0
        } else {
            value.parse().ok()?
        };
        if !limit.is_finite() {
            return None;
        }
        let known = is_latency(&name) || COUNTS.contains(&name.as_str());
        let above = text.as_bytes()[at] == b'>';
        known.then_some(Self {
            text: text.to_owned(),
            name,
            above,
            limit,
        })
    }

    /// Returns the observed value; nothing when the run has too few messages to tell.
    fn observe(&self, report: &Value) -> Option<f64> {
        let totals = &report["totals"];
        let number = |name: &str| totals[name].as_f64().unwrap_or(0.0);
        if is_latency(&self.name) {
            let (table, name) = match self.name.split_once('.') {
                Some((table, name)) if name.starts_with(['p', 'm']) => (table, name),
                _ => ("", self.name.as_str()),
            };
            let latency = &report["latency"];
            let table = match table {
                "" if latency["response"].is_object() => &latency["response"],
                "" => &latency["service"],
                table if TABLES.contains(&table) => &latency[table],
                phase => &latency["phases"][phase],
            };
            let key = format!("{}_ns", name.replace('.', "_"));
            return table[key.as_str()].as_f64();
        }
        let bad = number("attempted") - number("accepted");
        Some(match self.name.as_str() {
            "rate" => number("accepted_per_s"),
            "error_rate" => bad / number("attempted").max(1.0),
            "errors" => bad,
            other => number(other),
        })
    }
}

const COUNTS: [&str; 9] = [
    "rate",
    "error_rate",
    "errors",
    "accepted",
    "deferred",
    "rejected",
    "failed",
    "unsent",
    "unfinished",
];

/// The tables of the report beside those of the phases.
const TABLES: [&str; 3] = ["response", "service", "end_of_data"];

fn is_latency(name: &str) -> bool {
    let last = match name.split_once('.') {
        Some((table, rest)) if TABLES.contains(&table) => rest,
        Some((table, rest)) if Phase::ALL.iter().any(|phase| phase.name() == table) => rest,
        _ => name,
    };
    matches!(
        last,
        "p50" | "p75" | "p90" | "p95" | "p99" | "p99.9" | "p99.99" | "p99.999" | "max" | "mean"
    )
}

/// Fills in `thresholds` and returns whether all passed. A value that can't be told fails.
pub fn apply_thresholds(report: &mut Value, thresholds: &[Threshold]) -> bool {
    let mut all = true;
    let mut rows = Vec::new();
    for threshold in thresholds {
        let observed = threshold.observe(report);
        let fails = observed.is_none_or(|value| {
            if threshold.above {
                value > threshold.limit
            } else {
                value < threshold.limit
            }
        });
        all &= !fails;
        rows.push(serde_json::json!({
            "expr": threshold.text, "observed": observed, "pass": !fails,
        }));
    }
    report["thresholds"] = rows.into();
    all
}

/// The plan of a run without options; its command has to say how many sessions there are.
pub(crate) fn default_plan() -> Plan {
    Plan {
        seed: 1,
        run: 0,
        mode: Mode::Closed,
        sessions: 0,
        messages: None,
        duration_ns: None,
        warmup_ns: 0,
        drain_ns: 10_000_000_000,
        timeout_ns: 30_000_000_000,
        ramp_ns: 0,
        connect_first: false,
        sizes: Sizes::Fixed(1024),
        recipients: Count::Fixed(1),
        per_connection: Count::Fixed(0),
        from: Addresses::parse("sender@loadgen.example").expect("invariant: a valid pattern"),
        to: Addresses::parse("user{1-1000}@test.example").expect("invariant: a valid pattern"),
        helo: "loadgen.example".into(),
        ignored: Vec::new(),
        protocol: Protocol::Smtp,
        pipelining: Pipelining::Auto,
        chunking: false,
        tls: TlsMode::Off,
        auth: None,
        xclient: None,
        quit: Quit::Wait,
        shape: Vec::new(),
        trace: None,
        corpus: 0,
        chunk: 0,
        smtputf8: false,
        dsn: None,
        hostile: String::new(),
    }
}

/// Returns what `text` stands for in the list of an option that takes one of several words.
fn one_of<T: Copy>(flag: &str, text: &str, known: &[(&str, T)]) -> Result<T, Stop> {
    if let Some((_, value)) = known.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
    let (last, others) = words.split_last().expect("invariant: there are words");
    Err(usage(format!(
        "--{flag} takes {} or {last}",
        others.join(", ")
    )))
}

/// Reads MECHANISM:USER:PASSWORD; the password may hold colons.
fn parse_auth(text: &str) -> Option<Auth> {
    let (mechanism, rest) = text.split_once(':')?;
    let (user, password) = rest.split_once(':')?;
    let login = match mechanism {
        "login" => true,
        "plain" => false,
        _ => return None,
    };
    Some(Auth {
        login,
        user: user.to_owned(),
        password: password.to_owned(),
    })
}

fn bad<T>(value: Option<T>, flag: &str, text: &str) -> Result<T, Stop> {
    value.ok_or_else(|| {
        usage(format!(
            "--{flag} `{text}`: it takes {}",
            help::allowed(flag)
        ))
    })
}

fn read_text(path: &Path) -> Result<String, Stop> {
    std::fs::read_to_string(path).map_err(|error| usage(format!("{}: {error}", path.display())))
}

impl Options {
    fn new() -> Self {
        Self {
            plan: default_plan(),
            target: String::new(),
            tuning: Tuning {
                spin: false,
                cpus: Vec::new(),
                connecting_max: 64,
                attempts_max: 30,
            },
            sources: None,
            congestion: None,
            threads: 1,
            processes: 1,
            preflight: true,
            owned: false,
            quiet: false,
            dry_run: false,
            ledger: None,
            raw: None,
            json: None,
            html: None,
            tls: TlsOptions::default(),
            hostile: Vec::new(),
            corpus: None,
            proxy: None,
            ceiling: None,
            fail_if: Vec::new(),
            run_id: None,
            rate: None,
            poisson: false,
            by_connection: false,
            trace: None,
            speed: 1.0,
            arguments: Vec::new(),
        }
    }

    /// Reads all arguments.
    fn parse(parser: &mut lexopt::Parser) -> Result<Self, Stop> {
        let mut options = Self::new();
        while let Some(argument) = parser.next()? {
            match argument {
                Value(word) if options.target.is_empty() => options.target = word.string()?,
                Long(flag) => {
                    let flag = flag.to_owned();
                    options.flag(&flag, parser)?;
                }
                other => return Err(stray(other)),
            }
        }
        options.complete()
    }

    /// Reads the arguments of `replay`: a trace, then those of a run.
    fn parse_replay(parser: &mut lexopt::Parser) -> Result<Self, Stop> {
        let mut options = Self::new();
        while let Some(argument) = parser.next()? {
            match argument {
                Value(word) if options.trace.is_none() => {
                    let word = word.string()?;
                    options.arguments.push(format!("--trace={word}"));
                    options.trace = Some(PathBuf::from(word));
                }
                Value(word) if options.target.is_empty() => options.target = word.string()?,
                Long(flag) => {
                    let flag = flag.to_owned();
                    options.flag(&flag, parser)?;
                }
                other => return Err(stray(other)),
            }
        }
        if options.trace.is_none() {
            return Err(usage("replay needs a TRACE and a TARGET"));
        }
        options.complete()
    }

    fn flag(&mut self, flag: &str, parser: &mut lexopt::Parser) -> Result<(), Stop> {
        let plan = &mut self.plan;
        match flag {
            "connect-first" => plan.connect_first = true,
            "chunking" => plan.chunking = true,
            "smtputf8" => plan.smtputf8 = true,
            "lmtp" => plan.protocol = Protocol::Lmtp,
            "poisson" => self.poisson = true,
            "spin" => self.tuning.spin = true,
            "no-preflight" => self.preflight = false,
            "i-own-this-target" => self.owned = true,
            "quiet" => self.quiet = true,
            "dry-run" => self.dry_run = true,
            "tls-insecure" => self.tls.insecure = true,
            "tls-no-resumption" => self.tls.no_resumption = true,
            _ => {
                let text = parser.value()?.string()?;
                self.arguments.push(format!("--{flag}={text}"));
                return self.valued(flag, &text);
            }
        }
        self.arguments.push(format!("--{flag}"));
        Ok(())
    }

    fn valued(&mut self, flag: &str, text: &str) -> Result<(), Stop> {
        let plan = &mut self.plan;
        let time = || bad(parse_time(text), flag, text);
        match flag {
            "sessions" => plan.sessions = bad(text.parse().ok().filter(|n| *n > 0), flag, text)?,
            "messages" => {
                let count = text.parse().ok().filter(|count| *count > 0);
                plan.messages = Some(bad(count, flag, text)?);
            }
            "duration" => {
                let ns = parse_time(text).filter(|ns| *ns > 0);
                plan.duration_ns = Some(bad(ns, flag, text)?);
            }
            "warmup" => plan.warmup_ns = time()?,
            "drain" => plan.drain_ns = time()?,
            "timeout" => plan.timeout_ns = time()?.max(1_000_000),
            "ramp" => plan.ramp_ns = time()?,
            "rate" => {
                self.rate = Some(bad(parse_rate(text), flag, text)?);
            }
            "rate-shape" => {
                plan.shape = bad(parse_shape(text), flag, text)?;
                self.rate = plan
                    .shape
                    .iter()
                    .map(|(_, rate)| *rate)
                    .max_by(f64::total_cmp);
            }
            "trace" => self.trace = Some(PathBuf::from(text)),
            "speed" => {
                let speed = text.trim_end_matches('x').parse::<f64>().ok();
                let speed = speed.filter(|speed| (SPEED_MIN..=SPEED_MAX).contains(speed));
                self.speed = bad(speed, flag, text)?;
            }
            "arrival" => {
                self.by_connection = one_of(flag, text, &[("msg", false), ("conn", true)])?;
            }
            "size" => plan.sizes = bad(parse_sizes(text), flag, text)?,
            "sizes" => {
                plan.sizes = parse_size_table(&read_text(Path::new(text))?).map_err(usage)?
            }
            "rcpts" => {
                let count = parse_count(text).filter(|count| count.most() > 0);
                plan.recipients = bad(count, flag, text)?;
            }
            "chunk" => {
                let size = parse_size(text).filter(|size| *size >= CHUNK_MIN);
                plan.chunk = size.ok_or_else(|| {
                    usage(format!("--chunk takes a size of at least {CHUNK_MIN}"))
                })?;
                plan.chunking = true;
            }
            "dsn" => plan.dsn = Some(Dsn::parse(text).map_err(usage)?),
            "profile" => profile::apply(text, plan).map_err(usage)?,
            "corpus" => self.corpus = Some(text.into()),
            "hostile" => {
                self.hostile = hostile::parse(text).map_err(usage)?;
                plan.hostile = hostile::describe(&self.hostile);
            }
            "proxy" => {
                let versions = [
                    ("off", None),
                    ("v1", Some(Proxy::V1)),
                    ("v2", Some(Proxy::V2)),
                ];
                self.proxy = one_of(flag, text, &versions)?;
            }
            "from" => plan.from = Addresses::parse(text).map_err(usage)?,
            "to" => plan.to = Addresses::parse(text).map_err(usage)?,
            "from-file" => {
                plan.from = Addresses::parse_list(&read_text(Path::new(text))?).map_err(usage)?;
            }
            "to-file" => {
                plan.to = Addresses::parse_list(&read_text(Path::new(text))?).map_err(usage)?;
            }
            "seed" => plan.seed = bad(text.parse().ok(), flag, text)?,
            "run-id" => self.run_id = Some(bad(u64::from_str_radix(text, 16).ok(), flag, text)?),
            "pipelining" => {
                let ways = [("auto", Pipelining::Auto), ("off", Pipelining::Off)];
                plan.pipelining = one_of(flag, text, &ways)?;
            }
            "messages-per-connection" => {
                plan.per_connection = bad(parse_count(text), flag, text)?;
            }
            "helo" => plan.helo = text.to_owned(),
            "ignore" => {
                plan.ignored = text.split(',').map(str::to_ascii_uppercase).collect();
                let unknown = |word: &&String| !EXTENSIONS.contains(&word.as_str());
                if let Some(word) = plan.ignored.iter().find(unknown) {
                    let known = EXTENSIONS.join(", ");
                    return Err(usage(format!("--ignore {word}: not one of {known}")));
                }
            }
            "quit" => {
                let ways = [
                    ("wait", Quit::Wait),
                    ("reset", Quit::Reset),
                    ("none", Quit::None),
                ];
                plan.quit = one_of(flag, text, &ways)?;
            }
            "auth" => {
                let wrong = "--auth takes plain:USER:PASSWORD or login:USER:PASSWORD";
                plan.auth = Some(parse_auth(text).ok_or_else(|| usage(wrong))?);
            }
            "tls" => {
                let modes = [
                    ("off", TlsMode::Off),
                    ("starttls", TlsMode::StartTls),
                    ("implicit", TlsMode::Implicit),
                ];
                plan.tls = one_of(flag, text, &modes)?;
            }
            "tls-ca" => self.tls.ca = Some(text.into()),
            "tls-name" => self.tls.name = Some(text.to_owned()),
            "xclient" => plan.xclient = Some(text.to_owned()),
            "source" => self.sources = Some(bad(Sources::parse(text), flag, text)?),
            "congestion" => self.congestion = Some(text.to_owned()),
            "connect-burst" => {
                let burst = text.parse().ok().filter(|burst| *burst > 0);
                self.tuning.connecting_max = bad(burst, flag, text)?;
            }
            "connect-attempts" => self.tuning.attempts_max = bad(text.parse().ok(), flag, text)?,
            "threads" => self.threads = bad(text.parse().ok().filter(|n| *n > 0), flag, text)?,
            "processes" => {
                let count = text.parse().ok();
                let count = count.filter(|count| (1..=PROCESSES_MAX).contains(count));
                self.processes = bad(count, flag, text)?;
            }
            "cpus" => {
                let list: Option<Vec<usize>> =
                    text.split(',').map(|cpu| cpu.parse().ok()).collect();
                self.tuning.cpus = bad(list, flag, text)?;
            }
            "ledger" => self.ledger = Some(text.into()),
            "raw" => self.raw = Some(text.into()),
            "json" => self.json = Some(text.into()),
            "html" => self.html = Some(text.into()),
            "ceiling" => {
                self.ceiling = Some(match text.parse::<f64>() {
                    Ok(rate) => CeilingFrom::Rate(bad(
                        Some(rate).filter(|rate| *rate > 0.0 && rate.is_finite()),
                        flag,
                        text,
                    )?),
                    Err(_) => CeilingFrom::File(text.into()),
                });
            }
            "fail-if" => self.fail_if.push(bad(Threshold::parse(text), flag, text)?),
            _ => {
                return Err(no_option(flag));
            }
        }
        Ok(())
    }

    /// Returns what one thread reaches with a workload like `plan`, if that is known.
    ///
    /// **Errors**: a file that was named is not what `selftest` wrote on this machine.
    fn ceiling(&self, plan: &Plan) -> Result<Option<Ceiling>, Stop> {
        match &self.ceiling {
            Some(CeilingFrom::Rate(per_s)) => Ok(Some(Ceiling {
                per_s: *per_s,
                workload: None,
                measured_unix_s: None,
            })),
            Some(CeilingFrom::File(path)) => {
                let found = ceiling::read(path).and_then(|file| Ceiling::of(&file, plan));
                found.map(Some).ok_or_else(|| {
                    usage(format!(
                        "--ceiling {}: neither a rate nor what `selftest --json` of this version \
                         wrote on this machine",
                        path.display()
                    ))
                })
            }
            None => {
                let file = ceiling::place().and_then(|path| ceiling::read(&path));
                Ok(file.and_then(|file| Ceiling::of(&file, plan)))
            }
        }
    }

    /// Fills in what depends on other arguments.
    fn complete(mut self) -> Result<Self, Stop> {
        if self.target.is_empty() {
            return Err(usage("no TARGET; write HOST:PORT or unix:PATH"));
        }
        let plan = &mut self.plan;
        let ascii = plan.from.is_ascii() && plan.to.is_ascii();
        if !plan.smtputf8 && !ascii {
            return Err(usage(
                "addresses beyond ASCII need --smtputf8, and a target that offers it (RFC 6531)",
            ));
        }
        let tls = &self.tls;
        let secures = tls.ca.is_some() || tls.name.is_some() || tls.insecure || tls.no_resumption;
        if secures && plan.tls == TlsMode::Off {
            return Err(usage(
                "--tls-ca, --tls-insecure, --tls-name and --tls-no-resumption need --tls starttls \
                 or implicit: without it everything goes in the clear",
            ));
        }
        if let Some(path) = &self.corpus {
            if self.ledger.is_some() {
                return Err(usage(
                    "--ledger needs messages that state who they are; a corpus is sent as it is",
                ));
            }
            let corpus = Corpus::load(path).map_err(|error| usage(format!("--corpus: {error}")))?;
            plan.corpus = corpus
                .entries
                .iter()
                .fold(1, |hash, entry| rng::mix(hash ^ message::fold(&entry.raw)));
        }
        if let Some(path) = &self.trace {
            let said = |name: &&&str| {
                let flag = format!("--{name}");
                let given = |word: &String| {
                    word.strip_prefix(&flag)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
                };
                self.arguments.iter().any(given)
            };
            if let Some(name) = DECIDED_BY_TRACE.iter().find(said) {
                return Err(usage(format!(
                    "--{name}: a trace says when messages come, how large they are and for how many"
                )));
            }
            let trace = Trace::load(path, self.speed).map_err(|error| usage(error.to_string()))?;
            let count = trace.rows.len() as u64;
            plan.messages = Some(plan.messages.map_or(count, |messages| messages.min(count)));
            // The mean, for the display, the pre-flight and the report; 1 ns where all come at once.
            let span_ns = trace.span_ns().max(1) as f64;
            self.rate = Some((count as f64 * 1e9 / span_ns).min(RATE_MAX));
            plan.trace = Some(Arc::new(trace));
        } else if self.speed != 1.0 {
            return Err(usage("--speed needs a trace"));
        }
        if let Some(rate) = self.rate {
            let (poisson, by_connection) = (self.poisson, self.by_connection);
            plan.mode = Mode::Open {
                rate,
                poisson,
                by_connection,
            };
        } else if self.poisson || self.by_connection {
            return Err(usage("--poisson and --arrival need --rate"));
        }
        if plan.connect_first && self.rate.is_some() {
            return Err(usage(
                "--connect-first is for a closed loop: with a rate, sessions connect first anyway, or with each arrival",
            ));
        }
        if plan.sessions == 0 {
            plan.sessions = if self.rate.is_some() { 100 } else { 10 };
        }
        if self.processes > 1 && plan.sessions as usize / self.processes < self.threads {
            return Err(usage(format!(
                "{} sessions are too few for --processes {} with {} event loop(s) each",
                plan.sessions, self.processes, self.threads
            )));
        }
        if plan.messages.is_none() && plan.duration_ns.is_none() {
            let end = plan
                .shape
                .last()
                .map(|(at, _)| at.saturating_sub(plan.warmup_ns));
            plan.duration_ns = Some(end.filter(|end| *end > 0).unwrap_or(10_000_000_000));
        }
        plan.run = match (self.run_id, &self.ledger) {
            (Some(run), _) => run,
            (None, None) => rng::mix(plan.seed),
            // Two runs into one store must not be taken for each other.
            (None, Some(_)) => {
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                rng::mix(now.as_nanos() as u64 ^ u64::from(std::process::id()) << 40)
            }
        };
        Ok(self)
    }
}

/// A checked target, ready to be loaded any number of times.
struct Prepared {
    /// TARGET as given.
    target: String,
    address: Address,
    greeting: probe::Greeting,
    security: Option<Security>,
    logs: Logs,
    argv: Vec<String>,
    /// What the pre-flight found.
    warnings: Vec<String>,
}

/// Refuses what could hurt strangers or can't work, and greets the target.
fn prepare(options: &Options, argv: Vec<String>) -> Result<Prepared, Stop> {
    let mut addresses = parse_addresses(&options.target)?;
    let address = addresses[0].clone();
    if !options.owned {
        if let Some(address) = addresses.iter().find(|address| !is_private(address)) {
            return Err(usage(format!(
                "{address} is a public address; load it only if it is yours: --i-own-this-target"
            )));
        }
        let foreign = options
            .plan
            .to
            .domains()
            .chain(options.plan.from.domains())
            .find(|d| !is_reserved(d));
        if let Some(domain) = foreign {
            return Err(usage(format!(
                "{domain} is not a reserved domain (RFC 2606), so a relay could mail strangers; \
                 use .example or .test, or --i-own-this-target"
            )));
        }
    }
    can_run(options)?;
    let files = sys::raise_descriptor_limit();
    let setting = preflight::Setting {
        threads: (options.threads * options.processes) as u64,
        processes: options.processes as u64,
        hostile: hostile::sessions(&options.hostile, options.plan.sessions),
        connecting: (options.tuning.connecting_max * options.threads * options.processes) as u64,
        sources: match address {
            Address::Tcp(_) => options.sources.map_or(1, Sources::count),
            Address::Unix(_) => 0,
        },
        local: match address {
            Address::Tcp(addr) => addr.ip().is_loopback(),
            Address::Unix(_) => true,
        },
    };
    // Processes have their own sessions; those of hostile company are all here.
    let own = if options.processes == 1 {
        u64::from(options.plan.sessions)
    } else {
        0
    };
    sys::reserve_descriptors(own + setting.hostile + DESCRIPTORS_ASIDE);
    let machine = preflight::Machine::here(files, options.ledger.as_deref());
    let warnings = preflight::judge(&options.plan, setting, machine).map_err(usage)?;
    if !options.quiet {
        for warning in &warnings {
            note(&format!("warning: {warning}"));
        }
    }
    let security = security(options)?;
    // A target behind PROXY would refuse a greeting without it.
    let (address, greeting) = if options.preflight && !options.dry_run && options.proxy.is_none() {
        greet(addresses, &options.plan)?
    } else {
        (addresses.swap_remove(0), probe::Greeting::default())
    };
    sys::catch_interrupts();
    let heading = format!(
        "run={:016x} seed={} plan={:016x} target={address}",
        options.plan.run,
        options.plan.seed,
        options.plan.hash()
    );
    let ledger = match &options.ledger {
        Some(path) if !options.dry_run => {
            let made = Ledger::create(path, &heading);
            Some(made.map_err(|error| usage(format!("ledger {}: {error}", path.display())))?)
        }
        _ => None,
    };
    let raw = match &options.raw {
        Some(path) if !options.dry_run => {
            let made = RawLog::create(path, &heading);
            Some(made.map_err(|error| usage(format!("raw log {}: {error}", path.display())))?)
        }
        _ => None,
    };
    Ok(Prepared {
        target: options.target.clone(),
        address,
        greeting,
        security,
        logs: Logs { ledger, raw },
        argv,
        warnings,
    })
}

/// Tries what would otherwise fail only when the run begins, or when its report is written.
///
/// **Errors**: a CPU or a congestion control that this machine does not have, a report that can't be written.
fn can_run(options: &Options) -> Result<(), Stop> {
    for cpu in &options.tuning.cpus {
        let cpu = *cpu;
        let tried = std::thread::spawn(move || sys::pin_thread(cpu)).join();
        if !matches!(tried, Ok(Ok(()))) {
            return Err(usage(format!(
                "--cpus: this process can't run on CPU {cpu}; see `taskset -p $$`"
            )));
        }
    }
    if let Some(name) = &options.congestion {
        let tried = Socket::new(Domain::IPV4, Type::STREAM, None)
            .and_then(|socket| sys::set_congestion(&socket, name));
        if let Err(error) = tried {
            let known = "/proc/sys/net/ipv4/tcp_available_congestion_control";
            let known = std::fs::read_to_string(known).unwrap_or_default();
            return Err(usage(format!(
                "--congestion {name}: {error}; this machine has {}",
                known.trim()
            )));
        }
    }
    for (flag, path) in [("json", &options.json), ("html", &options.html)] {
        let Some(path) = path else { continue };
        // An older report stays until there is a new one.
        let tried = match std::fs::File::create_new(path) {
            Ok(_) => std::fs::remove_file(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::OpenOptions::new()
                    .append(true)
                    .open(path)
                    .map(drop)
            }
            Err(error) => Err(error),
        };
        tried.map_err(|error| usage(format!("--{flag} {}: {error}", path.display())))?;
    }
    Ok(())
}

/// How to secure connections, if they are to be.
fn security(options: &Options) -> Result<Option<Security>, Stop> {
    Ok(match options.plan.tls {
        TlsMode::Off => None,
        _ => Some(Security::new(&options.tls, &options.target).map_err(usage)?),
    })
}

/// The plan with what it needs.
fn workload(options: &Options, plan: &Plan) -> Result<Arc<Workload>, Stop> {
    let mut load = Workload::new(plan.clone());
    if let Some(path) = &options.corpus {
        load.corpus = Corpus::load(path).map_err(|error| usage(format!("--corpus: {error}")))?;
    }
    Ok(Arc::new(load))
}

fn target(options: &Options, address: &Address, security: Option<Security>) -> Arc<Target> {
    Arc::new(Target {
        address: address.clone(),
        sources: options.sources,
        congestion: options.congestion.clone(),
        security,
        proxy: options.proxy,
    })
}

/// Arguments from which another process makes the same plan. A search has changed the options that it was given.
fn part_arguments(options: &Options, target: &str, plan: &Plan) -> Vec<String> {
    let mut arguments = vec![target.to_owned()];
    arguments.extend_from_slice(&options.arguments);
    arguments.push(format!("--sessions={}", plan.sessions));
    arguments.push(format!("--warmup={}ns", plan.warmup_ns));
    arguments.push(format!("--drain={}ns", plan.drain_ns));
    arguments.extend(plan.duration_ns.map(|ns| format!("--duration={ns}ns")));
    if let (Mode::Open { rate, .. }, None) = (plan.mode, &plan.trace) {
        arguments.push(format!("--rate={rate}"));
    }
    arguments
}

/// Runs this process's share of a run: the words of a `Part`, then the arguments of the run.
fn part_command(mut parser: lexopt::Parser) -> Result<u8, Stop> {
    let mut words = parser.raw_args()?;
    let part = Part::take(&mut words)
        .ok_or_else(|| usage("part is started by run --processes, never by hand"))?;
    let arguments: Vec<std::ffi::OsString> = words.collect();
    let mut options = Options::parse(&mut lexopt::Parser::from_args(arguments))?;
    options.plan.run = part.run;
    if options.plan.hash() != part.plan_hash {
        return Err(Stop {
            code: INVALID,
            text: format!("part has another plan: {}", options.plan.text()),
        });
    }
    let sessions = u64::from(options.plan.sessions).div_ceil(part.count.max(1) as u64);
    sys::reserve_descriptors(sessions + DESCRIPTORS_ASIDE);
    sys::catch_interrupts();
    let file = |path: &Path, error| usage(format!("{}: {error}", path.display()));
    let writers = part.count as u64;
    let logs = Logs {
        ledger: match &options.ledger {
            Some(path) => Some(Ledger::join(path).map_err(|error| file(path, error))?),
            None => None,
        },
        raw: match &options.raw {
            Some(path) => Some(RawLog::join(path, writers).map_err(|error| file(path, error))?),
            None => None,
        },
    };
    let address = parse_address(&part.address)?;
    let target = target(&options, &address, security(&options)?);
    let load = workload(&options, &options.plan)?;
    processes::serve(&part, load, target, &options.tuning, options.threads, &logs).map_err(
        |error| Stop {
            code: INVALID,
            text: format!("run failed: {error}"),
        },
    )?;
    Ok(OK)
}

/// Sends what `plan` says, by threads or by processes, beside the hostile sessions that the options ask for; returns
/// what was recorded, and what came of those.
fn send(
    options: &Options,
    prepared: &Prepared,
    plan: &Plan,
) -> Result<(run::Done, Vec<hostile::Tally>), Stop> {
    let load = workload(options, plan)?;
    let resident_before = sys::resident_max();
    let target = target(options, &prepared.address, prepared.security.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let hostile = (!options.hostile.is_empty()).then(|| {
        let (stop, target) = (stop.clone(), target.clone());
        let (kinds, sessions) = (options.hostile.clone(), plan.sessions);
        std::thread::spawn(move || hostile::play(&target, &kinds, sessions, &stop))
    });
    let mut display = Display::new(options.quiet, &prepared.address.to_string(), plan);
    let mut tick = |shared: &Shared, elapsed| display.tick(shared, elapsed);
    let done = if options.processes > 1 {
        let setting = processes::Setting {
            arguments: &part_arguments(options, &prepared.target, plan),
            address: &prepared.address,
            processes: options.processes,
            threads: options.threads,
        };
        processes::run(&setting, &load, &mut tick)
    } else {
        let (tuning, logs) = (&options.tuning, &prepared.logs);
        run::run(load, target, tuning, options.threads, logs, &mut tick).map(|mut done| {
            let raw = logs.raw.as_ref().map_or((0, 0), RawLog::counts);
            let sessions = u64::from(plan.sessions);
            done.processes
                .push(Process::current(sessions, resident_before, raw));
            done
        })
    };
    display.clear();
    stop.store(true, Ordering::Relaxed);
    let invalid = |text: String| Stop {
        code: INVALID,
        text,
    };
    let tallies = match hostile.map(std::thread::JoinHandle::join) {
        None => Vec::new(),
        Some(Ok(Ok(tallies))) => tallies,
        Some(Ok(Err(error))) => return Err(invalid(format!("hostile sessions: {error}"))),
        Some(Err(_)) => return Err(invalid("the hostile thread panicked".into())),
    };
    let done = done.map_err(|error| invalid(format!("run failed: {error}")))?;
    Ok((done, tallies))
}

/// Runs `plan` once and reports on it.
fn execute(
    options: &Options,
    prepared: &Prepared,
    plan: &Plan,
) -> Result<(Value, verdict::Verdict, bool), Stop> {
    let load_before = report::load_average();
    let (done, tallies) = send(options, prepared, plan)?;
    let open = matches!(plan.mode, Mode::Open { .. });
    let mut verdict = verdict::judge(&done.recorder, open);
    if let Some(trouble) = done.trouble {
        verdict.state = State::Invalid;
        verdict.reasons = vec![trouble];
    }
    let facts = Facts {
        plan,
        target: prepared.address.to_string(),
        banner: prepared.greeting.banner.clone(),
        ehlo: prepared.greeting.ehlo.clone(),
        argv: prepared.argv.clone(),
        threads: options.threads,
        processes: &done.processes,
        processes_asked: options.processes,
        interrupted: done.interrupted,
        load_before,
        ledger: options
            .ledger
            .as_ref()
            .map(|path| path.display().to_string()),
        ceiling: options.ceiling(plan)?,
    };
    let mut report = report::run(&facts, &done.recorder, &verdict);
    if let Some(path) = &options.raw {
        let sum = |part: fn(&Process) -> u64| done.processes.iter().map(part).sum::<u64>();
        report["raw"] = serde_json::json!({
            "file": path.display().to_string(),
            "lines": sum(|process| process.raw.0),
            "left_out": sum(|process| process.raw.1),
        });
    }
    report["preflight"] = prepared.warnings.clone().into();
    if !tallies.is_empty() {
        report["hostile"] = tallies.iter().map(hostile::Tally::json).collect();
    }
    Ok((report, verdict, done.interrupted))
}

fn run_command(options: Options, argv: Vec<String>) -> Result<u8, Stop> {
    let prepared = prepare(&options, argv)?;
    if options.dry_run {
        return dry_run(&options);
    }
    let (mut report, verdict, interrupted) = execute(&options, &prepared, &options.plan)?;
    let passed = apply_thresholds(&mut report, &options.fail_if);
    publish(&options, &report, &report::text(&report))?;
    Ok(match verdict.state {
        _ if interrupted => INTERRUPTED,
        State::Valid if passed => OK,
        State::Valid => THRESHOLD,
        _ => INVALID,
    })
}

/// Shows a report and writes it wherever it was asked for; a place that can't take it costs the others nothing.
///
/// **Errors**: the first of the places that could not take it.
fn publish(options: &Options, report: &Value, text: &str) -> Result<(), Stop> {
    let shown = show(text);
    let json = match &options.json {
        Some(path) => write_json(path, report),
        None => Ok(()),
    };
    let page = match &options.html {
        Some(path) => write_file(path, &html::page(report)),
        None => Ok(()),
    };
    shown.and(json).and(page)
}

fn read_report(path: &Path) -> Result<Value, Stop> {
    let report: Value = serde_json::from_str(&read_text(path)?)
        .map_err(|error| usage(format!("{}: {error}", path.display())))?;
    match report["schema"].as_str() {
        Some(report::SCHEMA | search::SCHEMA) => Ok(report),
        other => Err(usage(format!(
            "{}: schema {} is not one this version reads",
            path.display(),
            other.unwrap_or("(none)")
        ))),
    }
}

fn report_command(mut parser: lexopt::Parser) -> Result<u8, Stop> {
    let (mut file, mut format) = (None, "text".to_owned());
    while let Some(argument) = parser.next()? {
        match argument {
            Value(path) if file.is_none() => file = Some(PathBuf::from(path)),
            Long("format") => format = parser.value()?.string()?,
            Long("schema") => {
                let name = match parser.optional_value() {
                    Some(name) => name.string()?,
                    None => match parser.next()? {
                        Some(Value(name)) => name.string()?,
                        None => "run".into(),
                        Some(other) => return Err(stray(other)),
                    },
                };
                let schema = report::JSON_SCHEMAS.iter().find(|known| known.0 == name);
                let schema = schema.ok_or_else(|| {
                    let names: Vec<_> = report::JSON_SCHEMAS.iter().map(|known| known.0).collect();
                    usage(format!("no schema `{name}`: {}", names.join(", ")))
                })?;
                say(schema.1)?;
                return Ok(OK);
            }
            other => return Err(stray(other)),
        }
    }
    let report = read_report(&file.ok_or_else(|| usage("report needs a FILE"))?)?;
    let text = match format.as_str() {
        "text" if report["schema"] == search::SCHEMA => search::text(&report),
        "text" => report::text(&report),
        "csv" => formats::csv(&report),
        "prometheus" => formats::prometheus(&report),
        "hlog" if report["schema"] == report::SCHEMA => formats::hlog(&report),
        "hlog" => return Err(usage("hlog needs the report of a run")),
        "html" => html::page(&report),
        other => {
            return Err(usage(format!(
                "no format `{other}`: text, csv, prometheus, html or hlog"
            )));
        }
    };
    if format == "text" {
        show(&text)?;
    } else {
        say(text)?;
    }
    Ok(OK)
}

fn raw_command(mut parser: lexopt::Parser) -> Result<u8, Stop> {
    let (mut file, mut from, mut to) = (None, 0, u64::MAX);
    while let Some(argument) = parser.next()? {
        let (place, name) = match argument {
            Value(path) if file.is_none() => {
                file = Some(PathBuf::from(path));
                continue;
            }
            Long("from") => (&mut from, "from"),
            Long("to") => (&mut to, "to"),
            other => return Err(stray(other)),
        };
        let text = parser.value()?.string()?;
        *place = bad(parse_time(&text), name, &text)?;
    }
    let file = file.ok_or_else(|| usage("raw needs a FILE"))?;
    let summary = raw::summary(&file, from, to)
        .map_err(|error| usage(format!("{}: {error}", file.display())))?;
    show(&report::raw_text(&summary))?;
    Ok(OK)
}

fn compare_command(mut parser: lexopt::Parser) -> Result<u8, Stop> {
    let (mut files, mut force, mut json) = (Vec::new(), false, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Value(path) if files.len() < 2 => files.push(PathBuf::from(path)),
            Long("force") => force = true,
            Long("json") => json = Some(PathBuf::from(parser.value()?)),
            other => return Err(stray(other)),
        }
    }
    let [a, b] = &files[..] else {
        return Err(usage("compare needs two report files"));
    };
    let answer = compare::document(&read_report(a)?, &read_report(b)?, force).map_err(usage)?;
    let said = say(compare::text(&answer));
    if let Some(path) = json {
        write_json(&path, &answer)?;
    }
    said?;
    Ok(OK)
}

/// Keeps what is peculiar to `find-max`, `sweep` and `ab` apart from the options of a run.
#[derive(Default)]
struct SearchOptions {
    max_p99_ns: Option<u64>,
    max_errors: Option<f64>,
    rates: Vec<f64>,
    start: Option<f64>,
    rounds: u32,
    a: Option<String>,
    b: Option<String>,
}

impl SearchOptions {
    /// Takes the flags of `command` and leaves the others to `options`.
    fn parse(
        command: &str,
        parser: &mut lexopt::Parser,
        options: &mut Options,
    ) -> Result<Self, Stop> {
        let mut search = Self {
            rounds: 5,
            ..Self::default()
        };
        let (own, refused): (&[&str], &[(&str, &str)]) = match command {
            "find-max" => (
                &["max-p99", "max-errors", "start-rate"],
                &[
                    (
                        "rate",
                        "find-max chooses the rates; --start-rate is the first",
                    ),
                    (
                        "rate-shape",
                        "find-max chooses the rates; --start-rate is the first",
                    ),
                    (
                        "fail-if",
                        "--max-p99 and --max-errors are the limits of find-max",
                    ),
                    ("connect-first", "its steps do so anyway"),
                ],
            ),
            "sweep" => (
                &["max-p99", "max-errors", "rates"],
                &[
                    ("rate", "a sweep has --rates"),
                    ("rate-shape", "a sweep has --rates"),
                    (
                        "fail-if",
                        "--max-p99 and --max-errors are the limits of a sweep",
                    ),
                    ("connect-first", "its steps do so anyway"),
                ],
            ),
            _ => (
                &["rounds", "a", "b"],
                &[
                    ("fail-if", "it judges one run; ab compares many"),
                    ("html", "ab writes text and --json"),
                ],
            ),
        };
        while let Some(argument) = parser.next()? {
            let flag = match argument {
                Value(word) if options.target.is_empty() && command != "ab" => {
                    options.target = word.string()?;
                    continue;
                }
                Long(flag) => flag.to_owned(),
                other => return Err(stray(other)),
            };
            if let Some((flag, why)) = refused.iter().find(|(name, _)| *name == flag) {
                return Err(usage(format!("--{flag}: {why}")));
            }
            if !own.contains(&flag.as_str()) {
                options.flag(&flag, parser)?;
                continue;
            }
            let text = parser.value()?.string()?;
            match flag.as_str() {
                "max-p99" => search.max_p99_ns = Some(bad(parse_time(&text), &flag, &text)?),
                "max-errors" => {
                    let share = text
                        .strip_suffix('%')
                        .and_then(|text| text.parse::<f64>().ok())
                        .filter(|share| (0.0..=100.0).contains(share));
                    search.max_errors = Some(bad(share, &flag, &text)? / 100.0);
                }
                "rates" => {
                    let rates: Option<Vec<f64>> = text.split(',').map(parse_rate).collect();
                    search.rates = bad(rates, &flag, &text)?;
                }
                "start-rate" => {
                    search.start = Some(bad(parse_rate(&text), &flag, &text)?);
                }
                "rounds" => {
                    let rounds = text
                        .parse()
                        .ok()
                        .filter(|rounds| (1..=100).contains(rounds));
                    search.rounds = bad(rounds, &flag, &text)?;
                }
                "a" => search.a = Some(text),
                _ => search.b = Some(text),
            }
        }
        if options.trace.is_some() {
            return Err(usage("a trace has one rate; send it with replay"));
        }
        if options.raw.is_some() {
            return Err(usage("--raw describes one run; use it with run"));
        }
        Ok(search)
    }
}

/// Runs one step at `rate` and describes it.
fn step(
    options: &Options,
    prepared: &Prepared,
    rate: f64,
    number: u64,
) -> Result<(Value, State, bool), Stop> {
    let mut plan = options.plan.clone();
    let (poisson, by_connection) = (options.poisson, options.by_connection);
    plan.mode = Mode::Open {
        rate,
        poisson,
        by_connection,
    };
    plan.run = rng::mix(plan.run ^ number);
    let (report, verdict, interrupted) = execute(options, prepared, &plan)?;
    Ok((report, verdict.state, interrupted))
}

/// Writes the report of a search or a sweep wherever the options want it, with the share of the ceiling that the
/// rate it found is.
fn publish_search(
    options: &Options,
    prepared: &Prepared,
    limits: &search::Limits,
    found: &search::Found,
) -> Result<(), Stop> {
    let target = prepared.address.to_string();
    let mut report = search::report(found, limits, &target, &options.plan);
    let ceiling = options.ceiling(&options.plan)?;
    let threads = options.threads * options.processes;
    report["generator"] = serde_json::json!({
        "ceiling": ceiling.map(|ceiling| ceiling.json(found.rate, threads)),
    });
    publish(options, &report, &search::text(&report))
}

fn find_max_command(mut parser: lexopt::Parser, argv: Vec<String>) -> Result<u8, Stop> {
    let mut options = Options::new();
    let search = SearchOptions::parse("find-max", &mut parser, &mut options)?;
    options.plan.duration_ns.get_or_insert(10_000_000_000);
    if options.plan.sessions == 0 {
        options.plan.sessions = 100;
    }
    if options.plan.warmup_ns == 0 {
        options.plan.warmup_ns = 1_000_000_000;
    }
    options.plan.drain_ns = options.plan.drain_ns.min(3_000_000_000);
    let options = options.complete()?;
    let prepared = prepare(&options, argv)?;
    if options.dry_run {
        return dry_run(&options);
    }
    let limits = search::Limits {
        p99_ns: search.max_p99_ns.unwrap_or(50_000_000),
        errors: search.max_errors.unwrap_or(0.001),
    };
    let mut steps = Vec::new();
    let mut ask = |rate: f64, part: &'static str| -> Result<search::Step, Stop> {
        let number = steps.len() as u64 + 1;
        let (report, state, interrupted) = step(&options, &prepared, rate, number)?;
        if interrupted {
            return Err(Stop {
                code: INTERRUPTED,
                text: "interrupted".into(),
            });
        }
        let step = search::Step::judge(rate, &report, state, &limits, part);
        if !options.quiet {
            note(&step.line());
        }
        steps.push(step.clone());
        Ok(step)
    };
    let (found, interrupted) = match search::find_max(search.start.unwrap_or(1000.0), &mut ask) {
        Ok(found) => (found, false),
        Err(stop) if stop.code == INTERRUPTED => (search::Found::cut_short(steps), true),
        Err(stop) => return Err(stop),
    };
    publish_search(&options, &prepared, &limits, &found)?;
    Ok(match found.rate > 0.0 {
        _ if interrupted => INTERRUPTED,
        true => OK,
        false => INVALID,
    })
}

fn sweep_command(mut parser: lexopt::Parser, argv: Vec<String>) -> Result<u8, Stop> {
    let mut options = Options::new();
    let search = SearchOptions::parse("sweep", &mut parser, &mut options)?;
    if search.rates.is_empty() {
        return Err(usage("sweep needs --rates R,R,..."));
    }
    if options.plan.sessions == 0 {
        options.plan.sessions = 100;
    }
    let options = options.complete()?;
    let prepared = prepare(&options, argv)?;
    if options.dry_run {
        return dry_run(&options);
    }
    let limits = search::Limits {
        p99_ns: search.max_p99_ns.unwrap_or(u64::MAX),
        errors: search.max_errors.unwrap_or(0.001),
    };
    let mut steps = Vec::new();
    let mut interrupted = false;
    for (number, rate) in search.rates.iter().enumerate() {
        let report;
        let state;
        (report, state, interrupted) = step(&options, &prepared, *rate, number as u64)?;
        if interrupted {
            break;
        }
        let step = search::Step::judge(*rate, &report, state, &limits, "");
        if !options.quiet {
            note(&step.line());
        }
        steps.push(step);
    }
    let found = match interrupted {
        true => search::Found::cut_short(steps),
        false => search::Found::of_sweep(steps),
    };
    publish_search(&options, &prepared, &limits, &found)?;
    Ok(if interrupted { INTERRUPTED } else { OK })
}

fn ab_command(mut parser: lexopt::Parser, argv: Vec<String>) -> Result<u8, Stop> {
    let mut options = Options::new();
    let search = SearchOptions::parse("ab", &mut parser, &mut options)?;
    let (Some(a), Some(b)) = (search.a, search.b) else {
        return Err(usage("ab needs --a TARGET and --b TARGET"));
    };
    options.target = a.clone();
    let mut options = options.complete()?;
    let first = prepare(&options, argv.clone())?;
    options.target = b.clone();
    let second = prepare(&options, argv)?;
    if options.dry_run {
        return dry_run(&options);
    }
    let mut rounds = Vec::new();
    let mut interrupted = false;
    say(format_args!(
        "{:>5} {:>12} {:>12} {:>8}  p99 ratio\n",
        "round", "a msg/s", "b msg/s", "b / a"
    ))?;
    for round in 0..search.rounds {
        let mut plan = options.plan.clone();
        plan.run = rng::mix(plan.run ^ u64::from(round));
        // Who goes first changes each round, so that drift does not favour one.
        let flip = round % 2 == 1;
        let (one, two) = if flip {
            (&second, &first)
        } else {
            (&first, &second)
        };
        let (report_one, verdict_one, stop_one) = execute(&options, one, &plan)?;
        let (report_two, verdict_two, stop_two) = execute(&options, two, &plan)?;
        if stop_one || stop_two {
            interrupted = true;
            break;
        }
        let (ra, rb) = if flip {
            (report_two, report_one)
        } else {
            (report_one, report_two)
        };
        let mut states = (verdict_one.state, verdict_two.state);
        if flip {
            states = (states.1, states.0);
        }
        let round_row = compare::Round::new(&ra, &rb, states);
        say(format_args!("{}\n", round_row.line(round + 1)))?;
        for verdict in [verdict_one, verdict_two] {
            if verdict.state != State::Valid {
                say(format_args!(
                    "      {}: {}\n",
                    verdict.state.name(),
                    verdict.reasons.join("; ")
                ))?;
            }
        }
        rounds.push(round_row);
    }
    if rounds.is_empty() {
        // Interrupted in the first round: there is nothing to report.
        return Ok(INTERRUPTED);
    }
    let said = say(compare::rounds_text(&rounds));
    if let Some(path) = &options.json {
        write_json(path, &compare::rounds_json(&a, &b, &options.plan, &rounds))?;
    }
    said?;
    Ok(if interrupted { INTERRUPTED } else { OK })
}

/// Prints a report; on a terminal, no line is wider than that.
///
/// **Errors**: standard output can't be written.
fn show(text: &str) -> Result<(), Stop> {
    if io::stdout().is_terminal() {
        let columns = sys::terminal_columns().unwrap_or(80);
        say(report::folded(text, columns))
    } else {
        say(text)
    }
}

fn write_file(path: &Path, text: &str) -> Result<(), Stop> {
    std::fs::write(path, text).map_err(|error| Stop {
        code: INVALID,
        text: format!("{}: {error}", path.display()),
    })
}

fn write_json(path: &Path, value: &Value) -> Result<(), Stop> {
    let text = format!("{value:#}\n");
    std::fs::write(path, text).map_err(|error| Stop {
        code: INVALID,
        text: format!("{}: {error}", path.display()),
    })
}

fn dry_run(options: &Options) -> Result<u8, Stop> {
    let plan = &options.plan;
    let head = format!("plan {:016x}  {}\n", plan.hash(), plan.text());
    let spec = plan.message(0);
    let (mut from, mut to) = (Vec::new(), Vec::new());
    plan.sender(0, &mut from);
    plan.recipient(0, 0, &mut to);
    let filler = crate::message::Filler::new();
    let text = crate::message::whole(&filler, plan.run, 0, spec.size, &from, &to);
    say(format_args!(
        "{head}first of the messages, {} bytes, {} recipient(s):\n{}",
        text.len(),
        spec.recipients,
        String::from_utf8_lossy(&text[..text.len().min(2000)])
    ))?;
    Ok(OK)
}

fn verify_command(mut parser: lexopt::Parser) -> Result<u8, Stop> {
    let (mut ledger, mut store, mut program, mut json) = (None, None, None, None);
    while let Some(argument) = parser.next()? {
        let named = match argument {
            Long("ledger") => {
                ledger = Some(PathBuf::from(parser.value()?));
                continue;
            }
            Long("ringmx") => {
                program = Some(PathBuf::from(parser.value()?));
                continue;
            }
            Long("json") => {
                json = Some(PathBuf::from(parser.value()?));
                continue;
            }
            Long("maildir") => Store::Maildir(parser.value()?.into()),
            Long("mbox") => Store::Mbox(parser.value()?.into()),
            Long("eml") => Store::Eml(parser.value()?.into()),
            Long("ring") => Store::Ring(parser.value()?.into(), None),
            other => return Err(stray(other)),
        };
        if store.replace(named).is_some() {
            return Err(usage("verify looks into one store at a time"));
        }
    }
    let ledger = ledger.ok_or_else(|| usage("verify needs --ledger FILE"))?;
    let store = match store {
        Some(Store::Ring(ring, _)) => Store::Ring(ring, program),
        Some(store) => store,
        None => return Err(usage("verify needs --maildir, --mbox, --eml or --ring")),
    };
    let findings =
        verify::verify(&ledger, &store).map_err(|error| usage(format!("can't verify: {error}")))?;
    let said = say(findings.text());
    if let Some(path) = json {
        write_json(&path, &findings.json())?;
    }
    said?;
    Ok(if findings.is_clean() { OK } else { LOSS })
}

fn profile_command(mut parser: lexopt::Parser) -> Result<u8, Stop> {
    let mut words = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Value(word) => words.push(word.string()?),
            other => return Err(stray(other)),
        }
    }
    match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["show"] => {
            for profile in &profile::PROFILES {
                say(format_args!("{}\n  {}\n", profile.name, profile.source))?;
            }
        }
        ["show", name] => {
            let mut plan = default_plan();
            profile::apply(name, &mut plan).map_err(usage)?;
            let source = profile::PROFILES.iter().find(|known| known.name == *name);
            let source = source.map_or("", |profile| profile.source);
            say(format_args!("{name}: {source}\n{}\n", plan.text()))?;
        }
        ["learn", path] => {
            let sizes = profile::learn(Path::new(path))
                .map_err(|error| usage(format!("{path}: {error}")))?;
            if sizes.is_empty() {
                return Err(usage(format!("{path} holds no message")));
            }
            say(profile::table(sizes))?;
        }
        _ => return Err(usage("profile show [NAME], or profile learn PATH")),
    }
    Ok(OK)
}

fn smtp_source_command(mut parser: lexopt::Parser, argv: Vec<String>) -> Result<u8, Stop> {
    let words: Vec<String> = parser
        .raw_args()?
        .map(|word| word.string())
        .collect::<Result<_, _>>()?;
    let translated = smtp_source::translate(&words).map_err(usage)?;
    for note in &translated.notes {
        self::note(note);
    }
    note(&format!(
        "smtp-loadgen run {}",
        translated.arguments.join(" ")
    ));
    let mut parser = lexopt::Parser::from_args(translated.arguments);
    run_command(Options::parse(&mut parser)?, argv)
}

fn sink_command(mut parser: lexopt::Parser) -> Result<u8, Stop> {
    let mut address = None;
    let mut faults = Faults::default();
    let (mut store, mut limit) = (None, 3_600_000_000_000);
    while let Some(argument) = parser.next()? {
        let (place, name) = match argument {
            Value(word) if address.is_none() => {
                address = Some(word.string()?);
                continue;
            }
            Long("eml") => {
                store = Some(PathBuf::from(parser.value()?));
                continue;
            }
            Long("duration") => {
                let text = parser.value()?.string()?;
                limit = bad(parse_time(&text).filter(|ns| *ns > 0), "duration", &text)?;
                continue;
            }
            Long("lose") => (&mut faults.lose, "lose"),
            Long("duplicate") => (&mut faults.duplicate, "duplicate"),
            Long("corrupt") => (&mut faults.corrupt, "corrupt"),
            Long("reset") => (&mut faults.reset, "reset"),
            Long("defer") => (&mut faults.defer, "defer"),
            Long("reject") => (&mut faults.reject, "reject"),
            Long("shut") => (&mut faults.shut, "shut"),
            other => return Err(stray(other)),
        };
        let text = parser.value()?.string()?;
        *place = bad(text.parse().ok(), name, &text)?;
    }
    let address = address.unwrap_or_else(|| "127.0.0.1:0".to_owned());
    if let Some(path) = &store {
        std::fs::create_dir_all(path)
            .map_err(|error| usage(format!("--eml {}: {error}", path.display())))?;
    }
    sys::raise_descriptor_limit();
    let sink = Running::bind(&address, faults, store)
        .map_err(|error| usage(format!("sink {address}: {error}")))?;
    say(format_args!("sink listens on {}\n", sink.address))?;
    sys::catch_interrupts();
    let start = std::time::Instant::now();
    while !sys::interrupted() && (start.elapsed().as_nanos() as u64) < limit && !sink.is_finished()
    {
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
    let (connections, messages) = (
        sink.seen.connections.load(Ordering::Relaxed),
        sink.seen.messages.load(Ordering::Relaxed),
    );
    sink.stop().map_err(|error| Stop {
        code: INVALID,
        text: format!("sink: {error}"),
    })?;
    say(format_args!(
        "sink saw {messages} messages on {connections} connections\n"
    ))?;
    Ok(OK)
}

/// The workloads of `selftest`.
pub fn selftest_plans() -> Vec<(&'static str, Plan)> {
    let base = Plan {
        run: 1,
        sessions: 64,
        ..default_plan()
    };
    let plans = ceiling::Workload::ALL.iter().map(|workload| {
        let mut plan = base.clone();
        match workload {
            ceiling::Workload::LockStep => plan.pipelining = Pipelining::Off,
            ceiling::Workload::Pipelined => {}
            ceiling::Workload::Chunked => plan.chunking = true,
            ceiling::Workload::PerConnection => plan.per_connection = Count::Fixed(1),
            ceiling::Workload::Large => {
                plan.sizes = Sizes::Fixed(1 << 20);
                plan.sessions = 16;
            }
        }
        (workload.name(), plan)
    });
    plans.collect()
}

fn selftest_command(mut parser: lexopt::Parser) -> Result<u8, Stop> {
    let (mut each, mut json) = (2_000_000_000, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("duration") => {
                let text = parser.value()?.string()?;
                each = bad(parse_time(&text).filter(|ns| *ns > 0), "duration", &text)?;
            }
            Long("json") => json = Some(PathBuf::from(parser.value()?)),
            other => return Err(stray(other)),
        }
    }
    sys::raise_descriptor_limit();
    sys::catch_interrupts();
    say(format_args!(
        "{:<32} {:>10} {:>12} {:>11}\n",
        "workload", "msg/s", "generator", "us of CPU"
    ))?;
    let mut rows = Vec::new();
    for (name, mut plan) in selftest_plans() {
        plan.duration_ns = Some(each);
        plan.warmup_ns = each / 10;
        let failed = |error| Stop {
            code: INVALID,
            text: format!("selftest: {error}"),
        };
        let sink = Running::start(Faults::default(), None).map_err(failed)?;
        let target = Arc::new(Target {
            address: Address::Tcp(sink.address),
            sources: Sources::parse("127.0.0.0/8"),
            congestion: None,
            security: None,
            proxy: None,
        });
        let tuning = Options::new().tuning;
        let load = Arc::new(Workload::new(plan));
        let done =
            run::run(load, target, &tuning, 1, &Logs::default(), |_, _| {}).map_err(failed)?;
        sink.stop().map_err(failed)?;
        let totals = &done.recorder.totals;
        let window = done.recorder.window.1 - done.recorder.window.0;
        let rate = totals.window_accepted as f64 * 1e9 / window.max(1) as f64;
        let (used, _) = verdict::busiest(&done.recorder);
        let cpu_us = used * 1e6 / rate.max(1.0);
        say(format_args!(
            "{name:<32} {:>10} {:>10.0} % {cpu_us:>11.1}\n",
            report::grouped(rate),
            used * 100.0
        ))?;
        rows.push(serde_json::json!({
            "workload": name, "accepted_per_s": rate, "cpu_share": used, "cpu_ns_per_message":
            (cpu_us * 1000.0) as u64,
        }));
        if done.interrupted {
            return Ok(INTERRUPTED);
        }
    }
    say("the sink runs in this process on a thread of its own; one generator thread\n")?;
    let document = ceiling::document(rows);
    if let Some(path) = ceiling::place() {
        match ceiling::keep(&path, &document) {
            Ok(()) => say(format_args!(
                "kept in {}; reports state the share of it that was used\n",
                path.display()
            ))?,
            Err(error) => note(&format!("not kept: {}: {error}", path.display())),
        }
    }
    if let Some(path) = json {
        write_json(&path, &document)?;
    }
    Ok(OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_read() {
        assert_eq!(parse_time("500ms"), Some(500_000_000));
        assert_eq!(parse_time("1.5"), Some(1_500_000_000));
        assert_eq!(parse_time("2m"), Some(120_000_000_000));
        assert_eq!(parse_time("2x"), None);
        assert_eq!(parse_size("1KiB"), Some(1024));
        assert_eq!(parse_size("2MB"), Some(2_000_000));
        assert_eq!(parse_size(""), None);
        assert_eq!(parse_sizes("1k,2k"), Some(Sizes::List(vec![1024, 2048])));
        assert_eq!(parse_sizes("1k-2k"), Some(Sizes::Uniform(1024, 2048)));
        assert_eq!(parse_sizes("2k-1k"), None);
        let shape = vec![(0, 100.0), (10_000_000_000, 900.0), (10_000_000_000, 5.0)];
        assert_eq!(parse_shape("100@0,900@10s,5@10s"), Some(shape));
        assert_eq!(parse_shape("100@10s,900@0s"), None);
        assert_eq!(parse_shape("0@10s"), None);
        assert!(parse_size_table("1k,0.5\n2k,1\n").is_ok());
        assert!(parse_size_table("1k,0.5\n2k,0.9\n").is_err());
        assert!(parse_size_table("2k,0.5\n1k,1\n").is_err());
    }

    #[test]
    fn of_the_addresses_of_a_name_the_first_that_greets_is_used() {
        // A host that listens on 127.0.0.1 alone, asked for as `localhost` where that is ::1 as well.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = Address::Tcp(listener.local_addr().unwrap());
        drop(listener);
        let sink = Running::start(Faults::default(), None).unwrap();
        let open = Address::Tcp(sink.address);
        let addresses = vec![closed.clone(), open.clone(), closed.clone()];
        let (used, greeting) = greet(addresses, &default_plan()).unwrap();
        assert_eq!(used.to_string(), open.to_string());
        assert_eq!(greeting.banner.as_deref(), Some("sink.example ESMTP"));
        sink.stop().unwrap();
        let refused = greet(vec![closed.clone(), open.clone()], &default_plan());
        let text = refused.err().unwrap().text;
        for address in [&closed, &open] {
            let said = format!("target {address} can't be used: Connection refused");
            assert!(text.contains(&said), "{text}");
        }
    }

    #[test]
    fn public_targets_and_real_domains_are_told_from_safe_ones() {
        let tcp = |text: &str| Address::Tcp(text.parse().unwrap());
        assert!(is_private(&tcp("127.0.0.1:25")));
        assert!(is_private(&tcp("10.1.2.3:25")));
        assert!(is_private(&tcp("[::1]:25")));
        assert!(!is_private(&tcp("192.0.2.1:25")));
        assert!(is_reserved("mail.example"));
        assert!(is_reserved("a.example.com"));
        assert!(!is_reserved("notexample.com"));
    }

    #[test]
    fn thresholds_compare_what_they_name() {
        let mut report = serde_json::json!({
            "totals": { "accepted_per_s": 500.0, "attempted": 1000, "accepted": 999 },
            "latency": { "service": { "p99_ns": 2_000_000, "p99_9_ns": 3_000_000 } },
        });
        let list = |texts: &[&str]| -> Vec<Threshold> {
            texts
                .iter()
                .map(|text| Threshold::parse(text).unwrap())
                .collect()
        };
        assert!(apply_thresholds(
            &mut report,
            &list(&["p99>5ms", "rate<400", "error_rate>0.2%"])
        ));
        assert!(!apply_thresholds(&mut report, &list(&["p99>1ms"])));
        assert!(!apply_thresholds(&mut report, &list(&["rate<501"])));
        assert!(!apply_thresholds(&mut report, &list(&["p99.9>2ms"])));
        assert!(!apply_thresholds(&mut report, &list(&["errors>0"])));
        // So many tables, and no other.
        assert!(Threshold::parse("bdat-chunk.p99>1ms").is_some());
        assert_eq!(Threshold::parse("nonsense.p99>1ms"), None);
        assert_eq!(Threshold::parse("rate<nan"), None);
        // Too few messages to tell: that is no pass.
        assert!(!apply_thresholds(&mut report, &list(&["p99.99>1s"])));
        assert_eq!(Threshold::parse("speed>1"), None);
        assert_eq!(Threshold::parse("p99=1"), None);
    }
}
