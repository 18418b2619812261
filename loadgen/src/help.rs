//! What the program says of itself: the first screen, the help of each command, and what an option takes.
//!
//! Promises: every command has one row, and the whole help is made of those rows. Does not: parse (see `cli`).

/// What a command is called and what its help says.
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// How it is called and what it does, as in the whole help.
    usage: &'static str,
    /// Takes the options of a run.
    loads: bool,
    /// Options of its own.
    own: &'static str,
}

/// All commands, in the order of the help.
pub const COMMANDS: [Command; 13] = [
    Command {
        name: "run",
        usage: "  smtp-loadgen run TARGET [options]      send messages, print a report
",
        loads: true,
        own: "",
    },
    Command {
        name: "verify",
        usage: "  smtp-loadgen verify --ledger FILE (--maildir DIR | --mbox FILE | --eml DIR | --ring DIR)
                                         compare acknowledged messages with a store
",
        loads: false,
        own: VERIFY,
    },
    Command {
        name: "replay",
        usage: "  smtp-loadgen replay TRACE TARGET [options]
                                         send what --raw recorded, or lines of TIME SIZE
                                         [RECIPIENTS], at its times again
",
        loads: true,
        own: "",
    },
    Command {
        name: "find-max",
        usage: "  smtp-loadgen find-max TARGET [options] find the highest rate within --max-p99 and --max-errors
",
        loads: true,
        own: SEARCH,
    },
    Command {
        name: "sweep",
        usage: "  smtp-loadgen sweep TARGET --rates R,R,...    one run at each rate, one table
",
        loads: true,
        own: SEARCH,
    },
    Command {
        name: "ab",
        usage: "  smtp-loadgen ab --a TARGET --b TARGET  two targets in turns, ratio of each round
",
        loads: true,
        own: SEARCH,
    },
    Command {
        name: "compare",
        usage: "  smtp-loadgen compare A.json B.json     two reports, difference or none
",
        loads: false,
        own: SEARCH,
    },
    Command {
        name: "report",
        usage: "  smtp-loadgen report FILE [--format text|csv|prometheus|html|hlog]
  smtp-loadgen report --schema [NAME]    the JSON Schema of what --json writes: run, search, ab,
                                         compare, verify or selftest [run]
",
        loads: false,
        own: "",
    },
    Command {
        name: "raw",
        usage: "  smtp-loadgen raw FILE [--from TIME] [--to TIME]
                                         counts and percentiles of what --raw wrote, or of a part
",
        loads: false,
        own: "",
    },
    Command {
        name: "profile",
        usage: "  smtp-loadgen profile show [NAME]       the named workloads and where their figures come from
  smtp-loadgen profile learn PATH        sizes of a Maildir, mbox or directory, for --sizes
",
        loads: false,
        own: "",
    },
    Command {
        name: "smtp-source",
        usage: "  smtp-loadgen smtp-source [its options] TARGET
",
        loads: false,
        own: "",
    },
    Command {
        name: "selftest",
        usage: "  smtp-loadgen selftest                  what this machine can send to a sink that does nothing
",
        loads: false,
        own: SELFTEST,
    },
    Command {
        name: "sink",
        usage: "  smtp-loadgen sink [ADDR] [options]     be that sink, on 127.0.0.1 and a free port by default
",
        loads: false,
        own: SINK,
    },
];

const INTRO: &str = "\
smtp-loadgen: an SMTP load generator that says whether it was you or the target
";

const FIRST: &str = "
First commands, in two terminals:
  smtp-loadgen sink 127.0.0.1:2526               a receiver that keeps nothing
  smtp-loadgen run 127.0.0.1:2526 --duration 5s  load it and judge the result

With a receiver of your own:
  smtp-loadgen run HOST:PORT --sessions 64       64 patient senders
  smtp-loadgen find-max HOST:PORT --max-p99 50ms the rate it can sustain
  smtp-loadgen run HOST:PORT --rate 1000         waits at 1,000 a second

Commands:
  run find-max sweep ab replay      load a target
  report compare raw verify         look at what was measured and stored
  profile selftest sink smtp-source

`smtp-loadgen COMMAND --help` says more, `smtp-loadgen --help` everything.
";

const TARGET: &str = "\
TARGET is HOST:PORT, [IPV6]:PORT or unix:PATH.

";

const RUN_OPTIONS: &str = "\
How much
  --sessions N              connections at a time [10; open loop 100]
  --messages N              end after N messages
  --duration TIME           end after TIME, such as 10s or 500ms [10s without --messages]
  --warmup TIME             not measured [0s]
  --drain TIME              for what is in flight at the end [10s]
  --timeout TIME            for any one reply [30s]
  --ramp TIME               spread the session starts over TIME
  --connect-first           closed loop: no message before all sessions are ready, or 3 s
                            passed; warm-up begins then (an open loop does so anyway)
  --rate R                  open loop: R messages a second, whatever the target does
  --rate-shape R@T,R@T,...  a rate that follows these points, joined by straight lines; two
                            points at one time are a step; ends at the last
  --speed N                 replay: N times as fast as it was [1]
  --poisson                 exponential gaps instead of equal ones
  --arrival msg|conn        whether each arrival opens its own connection [msg]

What
  --profile NAME            a named workload; options behind it change it
  --size SIZE               1000, 4KiB, 1MiB, 1KiB,4KiB (one of), 1KiB-9KiB (even),
                            lognormal:MEDIAN,SIGMA [1KiB]
  --corpus PATH             send these real messages as they are: Maildir, mbox, directory,
                            one message
  --sizes FILE              lines of SIZE,SHARE: share of messages at most that large
  --rcpts N or N-M          recipients of a message [1]
  --from PATTERN            sender [sender@loadgen.example]; {seq} and {1-1000} vary
  --to PATTERN              recipients [user{1-1000}@test.example]
  --from-file, --to-file    one pattern a line
  --seed N                  [1]
  --run-id HEX              [from the seed; unique with --ledger]

How
  --pipelining auto|off     [auto]
  --chunking                BDAT instead of DATA
  --chunk SIZE              BDAT in chunks of at most SIZE, 64 or more
  --smtputf8                SMTPUTF8 on MAIL when offered; needed for addresses beyond ASCII
  --dsn WORDS               when offered: NOTIFY from never, or success,failure,delay; RET from
                            full or hdrs [hdrs]; ORCPT with orcpt; ENVID from run and number
  --messages-per-connection N or N-M    [all]
  --helo NAME               [loadgen.example]
  --ignore WORD,...         EHLO keywords to leave alone though the server offers them:
                            PIPELINING CHUNKING SIZE STARTTLS AUTH 8BITMIME SMTPUTF8 DSN
  --lmtp                    LHLO, a reply for each recipient
  --auth plain:USER:PASSWORD or login:USER:PASSWORD
  --tls off|starttls|implicit    [off]; needs --tls-ca FILE (PEM) or --tls-insecure
  --tls-name NAME           the server's name [the host of TARGET]
  --tls-no-resumption       a full handshake each time
  --proxy v1|v2             PROXY protocol header, sources out of 198.18.0.0/15
  --xclient ATTRIBUTES      such as 'ADDR=192.0.2.1 NAME=client.example'
  --quit wait|reset|none    how connections end [wait]
  --hostile KIND=N%,...     misbehaving sessions beside the others, N% of --sessions; kinds:
                            slowloris slow-data idle early-talker rst-mid-data half-close
                            long-line endless-header rcpt-flood bdat-lie starttls-inject
                            tls-stall binary eager-data smuggle-{lf-lf,cr-cr,cr-lf,lf-cr,lf-crlf,
                            crlf-lf,cr-crlf,crlf-cr,nul,nul-after}
  --source NET              connect from these addresses, such as 127.0.0.0/8
  --congestion NAME         TCP congestion control, such as reno or cubic
  --connect-burst N         connects under way at one time in each thread [64]
  --connect-attempts N      in a row before a session gives up [30]
  --threads N               event loops in each process [1]
  --processes N             share the sessions between N processes, each with its own
                            descriptors [1]
  --cpus LIST               bind the loops to these CPUs, such as 1 or 0,1
  --spin                    never sleep
  --no-preflight            do not ask the target for its banner first
  --i-own-this-target       allow public addresses and real domains

Result
  --ledger FILE             append a line for each 250
  --raw FILE                a line for each message: its planned start, its steps, what it got
  --json FILE               the report as JSON
  --html FILE               the report as one page with pictures
  --ceiling R|FILE          a rate, or what selftest --json wrote, to state the share of it that
                            was used [what selftest kept on this machine]
  --fail-if EXPR            exit 1 when EXPR holds: p99>50ms, error_rate>0.1%, rate<9900,
                            unsent>0; repeat for more
  --quiet                   only the report
  --dry-run                 print plan and first message, send nothing

";

const SEARCH: &str = "\
find-max: --max-p99 TIME [50ms], --max-errors N% [0.1%], --start-rate R [1000]; --duration is
  the length of a step [10s].  ab: --rounds N [5].  compare: --force
  despite different plans, --json FILE

";

const SINK: &str = "\
sink: --eml DIR keeps messages; --lose, --duplicate, --corrupt, --reset, --defer, --reject,
  --shut N do that to every Nth message; --duration TIME ends it [1h]

";

const SELFTEST: &str = "\
selftest: --duration TIME for each line [2s], --json FILE

";

const VERIFY: &str = "\
verify
  --ringmx PATH             the ringmx program that reads a ring
  --json FILE               the findings as JSON

";

const EXIT_CODES: &str = "\
Exit codes: 0 ok, 1 threshold failed, 2 usage or target unreachable, 3 run invalid,
4 loss, duplication or corruption, 130 interrupted (the report is written).
";

/// Returns the first screen: what this is, and what to try.
pub fn first() -> String {
    format!("{INTRO}{FIRST}")
}

/// Returns everything.
pub fn whole() -> String {
    let usages: String = COMMANDS.iter().map(|command| command.usage).collect();
    format!("{INTRO}\n{usages}\n{TARGET}{RUN_OPTIONS}{SEARCH}{SINK}{SELFTEST}{VERIFY}{EXIT_CODES}")
}

/// Returns the help of one command, unless there is no such command.
pub fn of(name: &str) -> Option<String> {
    let command = COMMANDS.iter().find(|command| command.name == name)?;
    let (usage, own) = (command.usage, command.own);
    let options = if command.loads { RUN_OPTIONS } else { "" };
    let target = if command.loads { TARGET } else { "" };
    Some(format!("{usage}\n{target}{options}{own}{EXIT_CODES}"))
}

/// Returns what the value of `--flag` may be, as a phrase behind "takes".
pub fn allowed(flag: &str) -> &'static str {
    match flag {
        "sessions" | "messages" | "connect-burst" | "threads" => "a number, 1 or more",
        "connect-attempts" => "a number",
        "duration" => "a time above 0, such as 10s or 500ms",
        "warmup" | "drain" | "timeout" | "ramp" | "from" | "to" | "max-p99" => {
            "a time, such as 10s, 500ms or 250us"
        }
        "rate" | "start-rate" => "messages a second, above 0 and at most 10000000",
        "rates" => "rates with commas between, each above 0 and at most 10000000",
        "rate-shape" => {
            "RATE@TIME,RATE@TIME,... with times that don't fall, rates of at most 10000000, one of \
             them above 0"
        }
        "speed" => "0.001 to 1000",
        "size" => {
            "a size such as 1000, 4KiB or 1MB, several with commas between, FROM-TO, or \
             lognormal:MEDIAN,SIGMA"
        }
        "rcpts" => "N or N-M, 1 or more",
        "messages-per-connection" => "N or N-M, or 0 for all",
        "seed" => "a number below 2^64",
        "run-id" => "up to 16 hexadecimal digits",
        "source" => "an IPv4 address or network, such as 127.0.0.0/8",
        "processes" => "1 to 256",
        "cpus" => "numbers of CPUs with commas between, such as 0,1",
        "ceiling" => "messages a second, or a file that selftest --json wrote",
        "fail-if" => {
            "NAME>LIMIT or NAME<LIMIT; NAME is p50, p75, p90, p95, p99, p99.9, p99.99, p99.999, max \
             or mean, alone or behind response., service., end_of_data. or the name of a phase \
             with a dot, with a time for LIMIT; or rate, error_rate, errors, accepted, deferred, \
             rejected, failed, unsent or unfinished with a number or N% for LIMIT"
        }
        "max-errors" => "a share from 0% to 100%, such as 0.1%",
        "rounds" => "1 to 100",
        "lose" | "duplicate" | "corrupt" | "reset" | "defer" | "reject" | "shut" => {
            "a number N: every Nth message, 0 for none"
        }
        _ => "another value",
    }
}

/// What other load generators call it, and what it is called here.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("clients", "sessions"),
    ("concurrency", "sessions"),
    ("connections", "sessions"),
    ("count", "messages"),
    ("requests", "messages"),
    ("length", "size"),
    ("qps", "rate"),
    ("rps", "rate"),
    ("starttls", "tls"),
    ("time", "duration"),
    ("recipient", "to"),
    ("sender", "from"),
];

/// Returns the option that was meant, if one is within a slip of the fingers or has another name elsewhere.
pub fn nearest_option(flag: &str) -> Option<String> {
    if let Some((_, here)) = OTHER_NAMES.iter().find(|(other, _)| *other == flag) {
        return Some((*here).to_owned());
    }
    let whole = whole();
    let known = whole
        .split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'))
        .filter_map(|word| word.strip_prefix("--"))
        .filter(|word| !word.is_empty());
    nearest(flag, known).map(str::to_owned)
}

/// Returns the command that was meant, if one is within a slip of the fingers.
pub fn nearest_command(name: &str) -> Option<&'static str> {
    nearest(name, COMMANDS.iter().map(|command| command.name))
}

/// Returns the nearest of `known`: at most one edit, and one more for each four letters or the last three.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Bounds the work; no name is nearly as long.
    if name.len() > 64 {
        return None;
    }
    known
        .map(|candidate| (edits(name.as_bytes(), candidate.as_bytes()), candidate))
        .filter(|(edits, _)| *edits <= 1 + (name.len() + 1) / 4)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Counts the letters to insert, remove or replace that make `b` of `a`; time |a| * |b|.
fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut before: Vec<usize> = (0..=b.len()).collect();
    for (row, x) in a.iter().enumerate() {
        let mut now = vec![row + 1];
        for (column, y) in b.iter().enumerate() {
            let replaced = before[column] + usize::from(x != y);
            now.push(replaced.min(before[column + 1] + 1).min(now[column] + 1));
        }
        before = now;
    }
    before[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_found_within_a_slip_of_the_fingers() {
        assert_eq!(nearest_option("sesions").as_deref(), Some("sessions"));
        assert_eq!(nearest_option("fail-fi").as_deref(), Some("fail-if"));
        assert_eq!(nearest_option("connections").as_deref(), Some("sessions"));
        let known = whole();
        for (other, here) in OTHER_NAMES {
            assert!(known.contains(&format!("--{here} ")), "--{here}");
            assert!(!known.contains(&format!("--{other} ")), "--{other}");
        }
        assert_eq!(nearest_option("no-such-thing"), None);
        assert_eq!(nearest_option(&"s".repeat(1 << 20)), None);
        assert_eq!(nearest_command("rnu"), Some("run"));
        assert_eq!(nearest_command("selftset"), Some("selftest"));
        assert_eq!(nearest_command("attack"), None);
    }

    #[test]
    fn the_help_of_a_command_has_its_options_and_the_exit_codes() {
        for command in &COMMANDS {
            let help = of(command.name).unwrap();
            let call = format!("  smtp-loadgen {}", command.name);
            assert!(help.starts_with(&call), "{call}: {help}");
            assert_eq!(help.contains("--sessions N "), command.loads, "{help}");
            assert!(help.ends_with(EXIT_CODES), "{help}");
            assert!(whole().contains(command.usage), "{}", command.name);
            assert!(first().contains(command.name), "{}", command.name);
        }
        assert_eq!(of("no-such-command"), None);
    }
}
