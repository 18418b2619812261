//! `ringmx conformance`: tries an SMTP server with everything that `docs/smtp-conformance.md` numbers, and prints what
//! it does as a table.
//!
//! Its client and its parser are its own (see `wire`): nothing here comes from the server's side of this program.

mod cases;
mod content;
mod dialogue;
mod report;
mod special;
mod store;
mod wire;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};

use self::cases::{CASES, Case, Play};
use self::dialogue::{Dialogue, Offer, Stop};
use self::store::Store;
use self::wire::Reply;
use crate::cli::{EXIT_FAILURE, EXIT_OK, complain, fail, print};
use crate::clock::Clock;
use crate::config::units::{parse_duration, quoted};

/// Help text.
pub const HELP: &str = "\
Usage: ringmx conformance HOST:PORT [OPTIONS]

Tries an SMTP server with some two hundred cases: order and syntax of commands,
addresses, parameters and their integers, content and its end (SMTP smuggling),
BDAT, enhanced codes, STARTTLS. Each case is a session of its own; some deliver
a message. Only servers on loopback and private addresses are tried.

  --from ADDR          sender (default conformance@example.org)
  --to ADDR            recipient that the server takes (default postmaster@example.org)
  --sink               the server is a sink: it takes every recipient
  --ring DIR           look at what was stored: a ring of ringmx,
  --maildir DIR        a Maildir,
  --eml DIR            or a directory with one file for each message
  --only ID,...        these cases alone, such as C110,E001; C1 is all of C100 to C199
  --slow               the case that waits 20 s as well
  --timeout TIME       longest wait for a reply (default 5s)
  --quiet-time TIME    silence that counts as no reply (default 300ms)
  --json FILE|-        write a JSON document (schema ringmx.conformance.v1)
  --html FILE          write a page
  --all                print the cases that pass as well
  --list               print the cases and end
  --i-own-this-target  try a server on a public address
  -h, --help           print this

Exit codes: 0 no MUST fails, 1 one does, or the server can't be reached, 2 usage.
";

const TLS_ANY: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
const TLS_1_2: &[&SupportedProtocolVersion] = &[&TLS12];
const TLS_1_3: &[&SupportedProtocolVersion] = &[&TLS13];

/// What to try, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server as it was named.
    pub target: String,
    /// The server.
    pub address: SocketAddr,
    /// Reverse-path.
    pub from: String,
    /// Forward-path that the server takes.
    pub to: String,
    /// The server takes every recipient.
    pub sink: bool,
    /// Longest wait for a reply.
    pub timeout: Duration,
    /// Silence that counts as no reply.
    pub quiet: Duration,
    /// Try the case that waits.
    pub slow: bool,
    only: Vec<String>,
    store: Option<Place>,
    json: Option<String>,
    html: Option<PathBuf>,
    all: bool,
}

#[derive(Clone, Debug)]
enum Place {
    Ring(PathBuf),
    Maildir(PathBuf),
    Eml(PathBuf),
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Pass,
    /// Otherwise; how.
    Fail(String),
    /// Not tried; why.
    Skip(String),
}

/// A case and what came of it.
pub struct Finding {
    /// The case.
    pub case: &'static Case,
    /// What came of it.
    pub outcome: Outcome,
    /// What was said, where it failed.
    pub transcript: Vec<String>,
}

/// A whole run.
pub struct Run {
    /// What was asked for.
    pub options: Options,
    /// The greeting of the server.
    pub greeting: String,
    /// What EHLO offers.
    pub offer: Offer,
    /// All cases, in their order.
    pub findings: Vec<Finding>,
    /// When it began, nanoseconds since 1970.
    pub started_ns: u64,
    /// How long it took, nanoseconds.
    pub took_ns: u64,
}

impl Run {
    /// Cases with this outcome: passed, failed MUST, failed SHOULD, not tried.
    pub fn counts(&self) -> [usize; 4] {
        let mut counts = [0; 4];
        for finding in &self.findings {
            let at = match (&finding.outcome, finding.case.level) {
                (Outcome::Pass, _) => 0,
                (Outcome::Fail(_), cases::Level::Must) => 1,
                (Outcome::Fail(_), cases::Level::Should) => 2,
                (Outcome::Skip(_), _) => 3,
            };
            counts[at] += 1;
        }
        counts
    }
}

/// Runs the command; returns the exit code.
pub fn run(args: &[String]) -> i32 {
    if args.iter().any(|arg| arg == "-h" || arg == "--help") {
        return print(HELP);
    }
    if args.iter().any(|arg| arg == "--list") {
        return print(&report::list(CASES));
    }
    let options = match parse(args) {
        Ok(options) => options,
        Err(reason) => return fail(&format!("conformance: {reason}")),
    };
    let run = match try_all(options) {
        Ok(run) => run,
        Err(reason) => {
            complain(&format!("ringmx conformance: {reason}\n"));
            return EXIT_FAILURE;
        }
    };
    let mut code = match run.counts()[1] {
        0 => EXIT_OK,
        _ => EXIT_FAILURE,
    };
    let mut write = |path: &str, text: String| {
        if let Err(error) = std::fs::write(path, text) {
            complain(&format!("ringmx conformance: '{path}': {error}\n"));
            code = EXIT_FAILURE;
        }
    };
    let to_stdout = run.options.json.as_deref() == Some("-");
    if let Some(path) = run.options.json.as_deref().filter(|_| !to_stdout) {
        write(path, report::json(&run));
    }
    if let Some(path) = &run.options.html {
        write(&path.display().to_string(), report::html(&run));
    }
    let text = if to_stdout {
        report::json(&run)
    } else {
        report::text(&run, run.options.all)
    };
    match print(&text) {
        EXIT_OK => code,
        failed => failed,
    }
}

fn parse(args: &[String]) -> Result<Options, String> {
    let mut target = None;
    let mut from = "conformance@example.org".to_owned();
    let mut to = "postmaster@example.org".to_owned();
    let (mut sink, mut slow, mut all, mut owned) = (false, false, false, false);
    let (mut timeout, mut quiet) = (Duration::from_secs(5), Duration::from_millis(300));
    let (mut only, mut store, mut json, mut html) = (Vec::new(), None, None, None);
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let mut value = || {
            let next = rest.next().filter(|next| !next.starts_with("--"));
            next.cloned().ok_or_else(|| format!("{arg} needs a value"))
        };
        match arg.as_str() {
            "--from" => from = address(&value()?)?,
            "--to" => to = address(&value()?)?,
            "--sink" => sink = true,
            "--slow" => slow = true,
            "--all" => all = true,
            "--i-own-this-target" => owned = true,
            "--timeout" => timeout = time(arg, &value()?)?,
            "--quiet-time" => quiet = time(arg, &value()?)?,
            "--only" => only.extend(value()?.split(',').map(str::to_owned)),
            "--ring" => store = Some(Place::Ring(value()?.into())),
            "--maildir" => store = Some(Place::Maildir(value()?.into())),
            "--eml" => store = Some(Place::Eml(value()?.into())),
            "--json" => json = Some(value()?),
            "--html" => html = Some(PathBuf::from(value()?)),
            flag if flag.starts_with("--") => {
                return Err(format!("unknown option {}", quoted(flag)));
            }
            _ if target.is_none() => target = Some(arg.clone()),
            _ => return Err(format!("unexpected argument {}", quoted(arg))),
        }
    }
    let target = target.ok_or("a server is needed: HOST:PORT")?;
    for id in &only {
        if id.is_empty() || !CASES.iter().any(|case| case.id.starts_with(id.as_str())) {
            return Err(format!(
                "--only: no case begins with {}; see --list",
                quoted(id)
            ));
        }
    }
    let address = resolve(&target)?;
    if !owned && !is_private(address.ip()) {
        return Err(format!(
            "{address} is neither loopback nor private; --i-own-this-target tries it all the same"
        ));
    }
    Ok(Options {
        target,
        address,
        from,
        to,
        sink,
        timeout,
        quiet,
        slow,
        only,
        store,
        json,
        html,
        all,
    })
}

fn address(text: &str) -> Result<String, String> {
    let good = text.split_once('@').is_some_and(|(local, domain)| {
        !local.is_empty()
            && !domain.is_empty()
            && text.bytes().all(|octet| octet.is_ascii_graphic())
    });
    if good && !text.contains(['<', '>', '"', '|']) {
        Ok(text.to_owned())
    } else {
        Err(format!("{} is no plain address", quoted(text)))
    }
}

fn time(flag: &str, text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(time) if !time.is_zero() && time <= Duration::from_secs(600) => Ok(time),
        Ok(_) => Err(format!("{flag}: allowed: 1ms to 10min")),
        Err(reason) => Err(format!("{flag}: {reason}")),
    }
}

fn resolve(target: &str) -> Result<SocketAddr, String> {
    let failed = |reason: String| format!("{}: {reason}", quoted(target));
    let mut found = target
        .to_socket_addrs()
        .map_err(|error| failed(error.to_string()))?;
    found.next().ok_or_else(|| failed("no address".to_owned()))
}

/// Whether an address is on this machine or in a private network (RFC 1918, RFC 4193, link-local).
fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

fn try_all(options: Options) -> Result<Run, String> {
    let clock = Clock::new();
    let (started, started_ns) = (clock.now(), clock.wall_ns());
    let mut store = options.store.as_ref().map(|place| match place {
        Place::Ring(dir) => Store::Ring(dir.clone()),
        Place::Maildir(dir) => Store::maildir(dir),
        Place::Eml(dir) => Store::eml(dir),
    });
    if let Some(store) = &mut store {
        store.find("no message holds this")?;
    }
    let empty = Offer::default();
    let mut first = Dialogue::new(&options, &empty, None, String::new());
    let told = |stop| match stop {
        Stop::Fail(text) | Stop::Skip(text) => format!("{}: {text}", options.target),
    };
    let greeting = first.open().map_err(told)?.shown();
    let reply = first.say("EHLO client.example", "250").map_err(told)?;
    let offer = Offer::of(&reply);
    let mut replies = first.finish().1;
    let mut findings = Vec::new();
    for case in CASES {
        let wanted = options.only.is_empty()
            || options
                .only
                .iter()
                .any(|id| case.id.starts_with(id.as_str()));
        if !wanted {
            continue;
        }
        let token = format!("conformance-{started_ns:x}-{}-", case.id);
        let mut dialogue = Dialogue::new(&options, &offer, store.as_mut(), token);
        let done = if !case.needs.is_empty() && offer.get(case.needs).is_none() {
            Err(Stop::Skip(format!("{} is not offered", case.needs)))
        } else {
            match case.play {
                Play::Script(script) => cases::play(&mut dialogue, script),
                Play::Code(code) => code(&mut dialogue),
                // Decided when all the others are done.
                Play::Replies(_) => Ok(()),
            }
        };
        let (transcript, said) = dialogue.finish();
        replies.extend(said);
        let outcome = match done {
            Ok(()) => Outcome::Pass,
            Err(Stop::Fail(text)) => Outcome::Fail(text),
            Err(Stop::Skip(text)) => Outcome::Skip(text),
        };
        let transcript = match outcome {
            Outcome::Fail(_) => transcript.lines().to_vec(),
            _ => Vec::new(),
        };
        findings.push(Finding {
            case,
            outcome,
            transcript,
        });
    }
    judge_replies(&mut findings, &replies);
    Ok(Run {
        options,
        greeting,
        offer,
        findings,
        started_ns,
        took_ns: clock.now().since_ns(started),
    })
}

/// Decides the cases that are about every reply.
fn judge_replies(findings: &mut [Finding], replies: &[Reply]) {
    for finding in findings {
        let Play::Replies(fault) = finding.case.play else {
            continue;
        };
        if finding.outcome != Outcome::Pass {
            continue;
        }
        if let Some(text) = replies.iter().find_map(fault) {
            finding.outcome = Outcome::Fail(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Options, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        parse(&args)
    }

    #[test]
    fn public_servers_are_tried_only_when_asked_for_in_so_many_words() {
        assert!(parsed(&["127.0.0.1:25"]).is_ok());
        assert!(parsed(&["10.1.2.3:25"]).is_ok());
        assert!(parsed(&["[fd00::1]:25"]).is_ok());
        assert_eq!(
            parsed(&["192.0.2.1:25"]).unwrap_err(),
            "192.0.2.1:25 is neither loopback nor private; --i-own-this-target tries it all the same"
        );
        assert!(parsed(&["192.0.2.1:25", "--i-own-this-target"]).is_ok());
    }

    #[test]
    fn what_is_wrong_with_the_arguments_is_said() {
        for (args, reason) in [
            (&[][..], "a server is needed: HOST:PORT"),
            (&["127.0.0.1:25", "x"], "unexpected argument \"x\""),
            (&["127.0.0.1:25", "--what"], "unknown option \"--what\""),
            (&["127.0.0.1:25", "--from"], "--from needs a value"),
            (
                &["127.0.0.1:25", "--from", "a"],
                "\"a\" is no plain address",
            ),
            (
                &["127.0.0.1:25", "--only", "X9"],
                "--only: no case begins with \"X9\"; see --list",
            ),
            (
                &["127.0.0.1:25", "--timeout", "0s"],
                "--timeout: allowed: 1ms to 10min",
            ),
        ] {
            assert_eq!(parsed(args).unwrap_err(), reason);
        }
    }
}
