//! The command line: which command runs, its help text, and the exit codes.

pub(crate) mod words;

use std::io::Write;

use crate::config::options::{Group, Kind, OPTIONS, Opt, units_help};
use crate::config::units::quoted;
use crate::config::{Config, Request, nearest};
use crate::{conformance, consume, daemon, demo, log_cli, ring_cli, send, users_cli};

/// Done, or drained with no session cut.
pub const EXIT_OK: i32 = 0;
/// Anything that has no code of its own.
pub const EXIT_FAILURE: i32 = 1;
/// Bad usage or configuration; nothing was touched.
pub const EXIT_USAGE: i32 = 2;
/// Drained, but sessions had to be cut at the deadline.
pub const EXIT_CUT: i32 = 3;
/// Storage failed (EX_IOERR of sysexits.h).
pub const EXIT_STORAGE: i32 = 74;

/// The exit codes and what they say, for the help text and the documents.
pub const EXIT_CODES: [(i32, &str); 5] = [
    (EXIT_OK, "done, or drained"),
    (EXIT_FAILURE, "anything that has no code of its own"),
    (
        EXIT_USAGE,
        "bad usage or configuration; nothing was touched",
    ),
    (EXIT_CUT, "drained, but sessions were cut at the deadline"),
    (EXIT_STORAGE, "storage failed"),
];

/// Every command with one line about it, in the order of the help text.
pub const COMMANDS: [(&str, &str); 12] = [
    ("serve", "take mail and keep it in a ring log"),
    (
        "send",
        "deliver one message to a server and print the dialogue",
    ),
    (
        "log",
        "list, print, follow, verify or export what a ring holds",
    ),
    (
        "consume",
        "hand every message on, at least once and in order",
    ),
    ("consumers", "list, drop or seek the consumers of a ring"),
    (
        "ring",
        "create or resize a ring, or measure the disk under it",
    ),
    ("users", "make and edit the file of users of serve --users"),
    (
        "demo",
        "demo crash: kill a server under load and count what was lost",
    ),
    (
        "conformance",
        "try any SMTP server with two hundred cases and print what it does",
    ),
    (
        "check-config",
        "check the settings of serve and print all of them",
    ),
    ("help", "print this, or the help of a command"),
    ("version", "print the version"),
];

/// Runs the command that `args` (without the program's name) ask for and returns the exit code.
pub fn run(args: &[String]) -> i32 {
    let Some((command, rest)) = args.split_first() else {
        complain(&help());
        return EXIT_USAGE;
    };
    match command.as_str() {
        "serve" => serve(rest),
        "send" => run_send(rest),
        "check-config" => check_config(rest),
        "help" => run_help(rest),
        "-h" | "--help" => print(&help()),
        "version" | "-V" | "--version" => print(&version()),
        "log" => tool(command, log_cli::parse(rest), log_cli::run),
        "consume" => tool(command, consume::parse(rest), consume::run),
        "consumers" => tool(
            command,
            consume::parse_consumers(rest),
            consume::run_consumers,
        ),
        "users" => users_cli::run(rest),
        "ring" => ring_cli::run(rest),
        "demo" => demo::run(rest),
        "conformance" => conformance::run(rest),
        _ => unknown(command),
    }
}

/// Prints `ringmx: REASON` on standard error and returns [`EXIT_USAGE`].
pub fn fail(reason: &str) -> i32 {
    complain(&format!("ringmx: {reason}\n"));
    EXIT_USAGE
}

/// Prints on standard error; there is nowhere to report that nobody reads it.
pub fn complain(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Prints on standard output. A reader that went away is no fault.
pub fn print(text: &str) -> i32 {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => EXIT_OK,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => EXIT_OK,
        Err(error) => {
            complain(&format!(
                "ringmx: can't write to standard output: {error}\n"
            ));
            EXIT_FAILURE
        }
    }
}

fn serve(args: &[String]) -> i32 {
    match Config::from_args(args) {
        Ok(Request::Help) => print(&serve_help()),
        Ok(Request::Run(config)) => daemon::serve(*config),
        Err(error) => fail(&error.to_string()),
    }
}

fn check_config(args: &[String]) -> i32 {
    match Config::from_args(args) {
        Ok(Request::Help) => print(CHECK_CONFIG_HELP),
        Ok(Request::Run(config)) => {
            if let Err(reason) = daemon::check(&config) {
                return fail(&reason);
            }
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            for warning in config.warnings(cores) {
                complain(&format!("ringmx: warning: {warning}\n"));
            }
            print(&config.to_toml())
        }
        Err(error) => fail(&error.to_string()),
    }
}

/// Runs a command that reads rings, whose module has its own arguments and help.
fn tool<A>(
    command: &str,
    parsed: Result<A, String>,
    run: fn(&A, &mut dyn Write, &mut dyn Write) -> i32,
) -> i32 {
    match parsed {
        Ok(args) => run(&args, &mut std::io::stdout(), &mut std::io::stderr()),
        Err(reason) => fail(&format!("{command}: {reason}")),
    }
}

fn run_send(args: &[String]) -> i32 {
    match send::parse(args) {
        Ok(None) => print(send::HELP),
        Ok(Some(options)) => send::run(&options),
        Err(reason) => fail(&format!("send: {reason}")),
    }
}

fn run_help(args: &[String]) -> i32 {
    match args {
        [] => print(&help()),
        [command] if command == "help" || command == "version" => print(&help()),
        [command] if COMMANDS.iter().any(|(name, _)| name == command) => {
            run(&[command.clone(), "--help".to_owned()])
        }
        [command] => unknown(command),
        [_, extra, ..] => fail(&format!("help: unexpected argument {}", quoted(extra))),
    }
}

fn unknown(command: &str) -> i32 {
    let names = COMMANDS.iter().map(|(name, _)| *name);
    let hint = match nearest(command, names) {
        Some(near) => format!("did you mean {near}?"),
        None => "`ringmx help` lists all".to_owned(),
    };
    fail(&format!("unknown command {}; {hint}", quoted(command)))
}

/// `ringmx 0.1.0`.
pub fn version() -> String {
    format!("ringmx {}\n", env!("CARGO_PKG_VERSION"))
}

/// The first screen.
pub fn help() -> String {
    let mut out = String::from(
        "ringmx receives mail over SMTP and keeps it in a ring log. Its 250 means that the
message is on stable storage.

Usage: ringmx COMMAND [OPTIONS]

First steps, in two terminals:
  ringmx serve            take mail on 127.0.0.1:2525, keep it in ./ringmx-data
  ringmx send Hello       deliver a message to it
  ringmx log              list the newest messages
  ringmx log cat 0-1      print the first one

Commands:
",
    );
    for (name, about) in COMMANDS {
        out.push_str(&format!("  {name:<14}{about}\n"));
    }
    out.push_str("\n`ringmx COMMAND --help` says more.\n");
    out
}

const CHECK_CONFIG_HELP: &str = "\
Usage: ringmx check-config [--config FILE] [OPTIONS]

Takes the options of `ringmx serve`, checks them, the configuration file, and
the files, user and group that they name, and prints all settings as a file
that gives the same server. Touches nothing. Run it as whoever starts the
server: others may not read its keys.

Exit codes: 0 no fault, 2 a fault, which is printed.
";

/// Column of the descriptions in the help of `serve`.
const HELP_COLUMN: usize = 30;
/// Width of a help line.
const HELP_WIDTH: usize = 88;

/// Help of `ringmx serve`, from the table of options.
pub fn serve_help() -> String {
    let defaults = Config::default();
    let mut out = String::from(
        "Usage: ringmx serve [OPTIONS]

Takes mail over SMTP and keeps it in a ring log until SIGTERM or Ctrl-C, which
let open messages end; a second one ends at once. No option is needed.

  --config FILE               TOML file with the options below, without the hyphens;
                              a flag counts more than the file
  -h, --help                  print this
",
    );
    for group in Group::ALL {
        out.push_str(&format!("\n{}:\n", group.title()));
        for option in OPTIONS.iter().filter(|option| option.group == group) {
            push_option(&mut out, option, &defaults);
        }
    }
    out.push('\n');
    out.push_str(&units_help());
    out.push_str("\nExit codes:\n");
    for (code, about) in EXIT_CODES {
        out.push_str(&format!("  {code:<4}{about}\n"));
    }
    out
}

/// The default of `option` as the help and the documents show it; empty for a flag.
pub fn default_text(option: &Opt, defaults: &Config) -> String {
    match (option.kind, option.text(defaults)) {
        (Kind::Flag, _) => String::new(),
        (Kind::Text(_), text) if text == "off" => String::new(),
        (_, text) => text,
    }
}

fn push_option(out: &mut String, option: &Opt, defaults: &Config) {
    let mut head = format!("  --{}", option.name);
    if !matches!(option.kind, Kind::Flag) {
        head.push(' ');
        head.push_str(&option.kind.value_name());
    }
    let default = default_text(option, defaults);
    let mut about = option.help.to_owned();
    if !default.is_empty() {
        about.push_str(&format!(" (default {default})"));
    }
    out.push_str(&head);
    let mut column = head.len();
    if column + 2 > HELP_COLUMN {
        out.push('\n');
        column = 0;
    }
    for word in about.split(' ') {
        let starts = column <= HELP_COLUMN;
        if column > HELP_COLUMN && column + 1 + word.len() > HELP_WIDTH {
            out.push('\n');
            column = 0;
        }
        if column < HELP_COLUMN {
            out.push_str(&" ".repeat(HELP_COLUMN - column));
            column = HELP_COLUMN;
        } else if !starts {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += word.len();
    }
    out.push('\n');
}
