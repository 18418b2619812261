//! The built program: what it prints, where, and its exit code.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use ringmx::cli;
use ringmx::config::Config;
use ringmx::config::options::{Kind, OPTIONS};
use ringmx::http::FAMILIES;
use ringmx::logger::Class;
use ringmx::tls::self_signed;

/// Exit code, standard output, standard error.
type Ran = (i32, String, String);

fn ringmx_with(args: &[&str], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringmx"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that reads no input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn ringmx(args: &[&str]) -> Ran {
    ringmx_with(args, "")
}

fn assert_refused(args: &[&str], reason: &str) {
    let expected = (2, String::new(), format!("ringmx: {reason}\n"));
    assert_eq!(ringmx(args), expected, "{args:?}");
}

/// A file of this process, removed at the end.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, content: &[u8]) -> TempFile {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let path = path.join(format!("{name}-{}.toml", std::process::id()));
        std::fs::write(&path, content).unwrap();
        TempFile(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn help_is_the_same_however_it_is_asked_for() {
    let (code, out, err) = ringmx(&["help"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out, cli::help());
    assert_eq!(ringmx(&["--help"]), (0, out.clone(), String::new()));
    assert_eq!(ringmx(&["-h"]), (0, out.clone(), String::new()));
    assert_eq!(ringmx(&[]), (2, String::new(), out));
}

#[test]
fn the_first_screen_fits_a_terminal() {
    let help = cli::help();
    assert!(help.lines().count() <= 26, "{help}");
    for text in [help, cli::serve_help()] {
        for line in text.lines() {
            assert!(line.len() <= 90, "{line}");
        }
    }
}

#[test]
fn every_command_has_help_on_standard_output() {
    for (command, _) in cli::COMMANDS {
        let (code, out, err) = ringmx(&["help", command]);
        assert_eq!((code, err.as_str()), (0, ""), "{command}");
        assert!(
            out.contains(&format!("ringmx {command}")) || out == cli::help(),
            "{out}"
        );
    }
    let (code, out, _) = ringmx(&["serve", "--ring-size", "1GiB", "--help"]);
    assert_eq!((code, out), (0, cli::serve_help()));
}

#[test]
fn version_is_one_line() {
    let line = format!("ringmx {}\n", env!("CARGO_PKG_VERSION"));
    for arg in ["version", "--version", "-V"] {
        assert_eq!(ringmx(&[arg]), (0, line.clone(), String::new()));
    }
}

#[test]
fn an_unknown_command_gets_a_suggestion() {
    assert_refused(&["sreve"], "unknown command \"sreve\"; did you mean serve?");
    assert_refused(
        &["frobnicate"],
        "unknown command \"frobnicate\"; `ringmx help` lists all",
    );
    assert_refused(
        &["serve\x1b"],
        "unknown command \"serve\\u{1b}\"; did you mean serve?",
    );
    assert_refused(
        &["help", "snd"],
        "unknown command \"snd\"; did you mean send?",
    );
    assert_refused(&["help", "send", "x"], "help: unexpected argument \"x\"");
}

#[test]
fn bad_flags_are_named_with_what_is_allowed() {
    for command in ["serve", "check-config"] {
        assert_refused(
            &[command, "--ring-sise", "1GiB"],
            "--ring-sise: unknown option; did you mean --ring-size?",
        );
        assert_refused(
            &[command, "--ring-size=1"],
            "--ring-size: \"1\" is not allowed; allowed: 2MiB to 16TiB",
        );
        assert_refused(&[command, "--http"], "--http: needs a value");
        assert_refused(&[command, "mail"], "unexpected argument \"mail\"");
    }
    assert_refused(
        &["send", "--cc=x"],
        "send: unknown option \"--cc=x\"; see ringmx send --help",
    );
}

#[test]
fn commands_with_parts_name_them() {
    assert_refused(&["ring"], "ring: create, resize or bench-disk?");
    assert_refused(&["ring", "resize"], "ring: resize needs --ring-size");
    assert_refused(&["demo"], "demo: there is one demo: ringmx demo crash");
}

#[cfg(unix)]
#[test]
fn an_argument_that_is_not_utf_8_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let output = Command::new(env!("CARGO_BIN_EXE_ringmx"))
        .arg(std::ffi::OsStr::from_bytes(b"\xff"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(output.stderr, b"ringmx: argument \"\\xFF\" is not UTF-8\n");
}

#[test]
fn bad_files_are_named_with_line_and_key() {
    for (name, content, reason) in [
        (
            "unknown",
            &b"# comment\nring-sise = \"1GiB\"\n"[..],
            ":2: ring-sise: unknown option; did you mean ring-size?",
        ),
        (
            "value",
            b"survive = \"fire\"",
            ":1: survive: \"fire\" is not allowed; allowed: nothing, process, power",
        ),
        (
            "kind",
            b"\n\npool = true",
            ":3: pool: a boolean where a string should be; allowed: 4MiB to 1TiB",
        ),
        (
            "utf8",
            b"pool = 1\nring = \"\xff\"",
            ":2: not TOML: not UTF-8",
        ),
        (
            "pair",
            b"ring-size = \"4MiB\"\nmax-message = \"1MiB\"",
            ":2: max-message: 1MiB is more than an eighth of the ring (4MiB) or half of the pool \
             (256MiB); allowed here: up to 512KiB",
        ),
    ] {
        let file = TempFile::new(name, content);
        let reason = format!("{}{reason}", file.path());
        assert_refused(&["serve", "--config", file.path()], &reason);
        assert_refused(&["check-config", "--config", file.path()], &reason);
    }
    let long = TempFile::new("long", &vec![b'#'; (1 << 20) + 1]);
    let reason = format!("{}: too long; allowed: up to 1MiB", long.path());
    assert_refused(&["serve", "--config", long.path()], &reason);
    assert_refused(
        &["serve", "--config", "/nonexistent/r.toml"],
        "/nonexistent/r.toml: can't read the configuration file: No such file or directory \
         (os error 2)",
    );
}

/// A configuration that `check-config` called good did not start: it had never looked at the files of TLS and AUTH, nor
/// at user and group, and a missing group was found when the ring was there already.
#[test]
fn what_a_start_reads_is_checked_before_it_by_serve_and_by_check_config() {
    let files = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let files = files.join(format!("named-files-{}", std::process::id()));
    let pair = |name: &str| {
        let pair = self_signed::make_once(&files.join(name), &["mx.example".to_owned()]).unwrap();
        (pair.0.display().to_string(), pair.1.display().to_string())
    };
    let ((chain, key), (_, other_key)) = (pair("one"), pair("other"));
    let bad_users = TempFile::new("bad-users", b"nonsense\n");
    let ring = files.join("ring").display().to_string();
    let tls = |chain: &str, key: &str| format!("tls-cert = [\"{chain}\"]\ntls-key = [\"{key}\"]\n");
    let good = tls(&chain, &key);
    let cases = [
        (
            tls("/nonexistent/c.pem", &key),
            "1: tls-cert: /nonexistent/c.pem: no such file or directory".to_owned(),
        ),
        (
            tls(&chain, "/nonexistent/k.pem"),
            "2: tls-key: /nonexistent/k.pem: no such file or directory".to_owned(),
        ),
        (
            tls(&chain, &other_key),
            format!("2: tls-key: {other_key}: the key does not belong to {chain}"),
        ),
        (
            tls(&chain, &chain),
            format!("2: tls-key: {chain}: no private key in PEM: no items found"),
        ),
        (
            tls(&key, &key),
            format!("1: tls-cert: {key}: no certificate in PEM"),
        ),
        (
            format!(
                "{good}tls-client-cert = \"request\"\ntls-client-ca = \"{}\"\n",
                bad_users.path()
            ),
            format!(
                "4: tls-client-ca: {}: no certificate in PEM",
                bad_users.path()
            ),
        ),
        (
            format!("users = \"{}\"\n", bad_users.path()),
            format!("1: users: {}:1: no ':' behind the name", bad_users.path()),
        ),
        (
            "users = \"/nonexistent/users\"\n".to_owned(),
            "1: users: /nonexistent/users: No such file or directory (os error 2)".to_owned(),
        ),
        (
            "user = \"no-such-user-here\"\n".to_owned(),
            "1: user: there is no user 'no-such-user-here'".to_owned(),
        ),
        (
            "group = \"no-such-group-here\"\n".to_owned(),
            "1: group: there is no group 'no-such-group-here'".to_owned(),
        ),
    ];
    for (content, reason) in cases {
        let file = TempFile::new("named", content.as_bytes());
        let reason = format!("{}:{reason}", file.path());
        for command in ["serve", "check-config"] {
            let args = [command, "--config", file.path(), "--ring", &ring];
            let args = [&args[..], &["--listen=127.0.0.1:0", "--http=off"]].concat();
            assert_refused(&args, &reason);
        }
    }
    let file = TempFile::new("named", good.as_bytes());
    let (code, out, err) = ringmx(&["check-config", "--config", file.path(), "--ring", &ring]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains(&format!("\ntls-key = [\"{key}\"]\n")), "{out}");
    assert!(!files.join("ring").exists(), "something was made");
    std::fs::remove_dir_all(&files).unwrap();
}

#[test]
fn check_config_prints_a_file_that_gives_the_same_settings() {
    let (code, out, err) = ringmx(&[
        "check-config",
        "--listen=[::1]:25",
        "--server-name=mx.example",
        "--ring=a \"b\"\\",
    ]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        out.starts_with("listen = [\"[::1]:25\"]\nhttp = \"127.0.0.1:8025\"\n"),
        "{out}"
    );
    assert!(out.contains("\nring = \"a \\\"b\\\"\\\\\"\n"), "{out}");
    let file = TempFile::new("same", out.as_bytes());
    let again = ringmx(&["check-config", "--config", file.path()]);
    assert_eq!(again, (0, out, String::new()));
}

#[test]
fn check_config_warns_and_passes() {
    let (code, _, err) = ringmx(&["check-config", "--discard"]);
    assert_eq!(
        (code, err.as_str()),
        (
            0,
            "ringmx: warning: discard: accepted mail is stored nowhere, whatever survive says (power)\n"
        )
    );
}

#[test]
fn send_says_when_nobody_listens() {
    // Bound and not listening, so that nobody else can have the port.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let server = socket
        .local_addr()
        .unwrap()
        .as_socket()
        .unwrap()
        .to_string();
    assert_eq!(
        ringmx(&["send", "--server", &server, "x"]),
        (
            1,
            String::new(),
            "ringmx send: can't connect: Connection refused (os error 111)\n\
             ringmx send: is a server running? Start one with: ringmx serve\n"
                .to_owned()
        )
    );
}

/// Takes one connection and answers each of `rounds` when a line starts with its first part (a dot alone is the
/// end of data); returns the lines it heard.
fn scripted_server(
    listener: std::net::TcpListener,
    rounds: [(&'static str, &'static [u8]); 6],
) -> Vec<String> {
    use std::io::{BufRead, BufReader};
    let (mut stream, _) = listener.accept().unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut heard = Vec::new();
    stream.write_all(b"220 hi\r\n").unwrap();
    for (awaited, answer) in rounds {
        loop {
            let line = lines.next().unwrap().unwrap();
            let found = match awaited {
                "." => line == ".",
                command => line.starts_with(command),
            };
            heard.push(line);
            if found {
                break;
            }
        }
        stream.write_all(answer).unwrap();
    }
    heard
}

#[test]
fn send_delivers_the_message_on_standard_input() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let rounds: [(&str, &[u8]); 6] = [
        ("EHLO ", b"250 mx\r\n"),
        ("MAIL ", b"250 ok\r\n"),
        ("RCPT ", b"250 ok\r\n"),
        ("DATA", b"354 go\r\n"),
        (".", b"250 stored\r\n"),
        ("QUIT", b"221 bye\r\n"),
    ];
    let server = std::thread::spawn(move || scripted_server(listener, rounds));
    let (code, out, err) = ringmx_with(
        &[
            "send",
            "--server",
            &address,
            "--from=",
            "--to=b@example.org",
        ],
        "Subject: hello\n\n.dot\n",
    );
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        out.ends_with("C: .\nS: 250 stored\nC: QUIT\nS: 221 bye\n"),
        "{out}"
    );
    let heard = server.join().unwrap();
    assert_eq!(
        heard[1..],
        [
            "MAIL FROM:<>",
            "RCPT TO:<b@example.org>",
            "DATA",
            "Subject: hello",
            "",
            "..dot",
            ".",
            "QUIT"
        ]
    );
}

/// Rows of the first table below `heading`, without its head.
fn table<'a>(document: &'a str, heading: &str) -> Vec<&'a str> {
    let heading = format!("\n{heading}\n");
    let (_, rest) = document.split_once(&heading).expect("the heading is there");
    rest.lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .collect()
}

const MANUAL: &str = include_str!("../docs/operations.md");

/// A cell may not hold a bar.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[test]
fn the_manual_lists_every_option_with_its_default_and_bounds() {
    let defaults = Config::default();
    let rows: Vec<String> = OPTIONS
        .iter()
        .map(|option| {
            let default = cli::default_text(option, &defaults);
            let default = match (option.kind, default.as_str()) {
                (Kind::Flag, _) => "false".to_owned(),
                (_, "") => "none".to_owned(),
                (_, text) => format!("`{text}`"),
            };
            format!(
                "| `{}` | {default} | {} | {} |",
                option.name,
                cell(&option.kind.allowed()),
                cell(option.help)
            )
        })
        .collect();
    assert_eq!(table(MANUAL, "## Options"), rows, "\n{}\n", rows.join("\n"));
}

#[test]
fn the_manual_lists_every_exit_code() {
    let rows = cli::EXIT_CODES.map(|(code, about)| format!("| {code} | {about} |"));
    assert_eq!(
        table(MANUAL, "## Exit codes"),
        rows,
        "\n{}\n",
        rows.join("\n")
    );
}

#[test]
fn the_manual_lists_every_metric() {
    let rows: Vec<String> = FAMILIES
        .iter()
        .map(|family| {
            format!(
                "| `{}` | {} | {} | {} |",
                family.name,
                family.kind.name(),
                family.labels,
                family.help
            )
        })
        .collect();
    assert_eq!(table(MANUAL, "## Metrics"), rows, "\n{}\n", rows.join("\n"));
}

#[test]
fn the_manual_lists_every_class_of_log_lines() {
    let text = MANUAL
        .split_once("\n## Log lines\n")
        .expect("the heading is there")
        .1;
    let starts: Vec<String> = table(MANUAL, "## Log lines")
        .iter()
        .map(|row| row.splitn(5, '|').take(4).collect::<Vec<_>>().join("|"))
        .collect();
    let expected: Vec<String> = Class::ALL
        .iter()
        .map(|class| {
            let limit = match class.per_second() {
                u32::MAX => "no limit".to_owned(),
                limit => limit.to_string(),
            };
            format!("| `{}` | {} | {limit} ", class.name(), class.level())
        })
        .collect();
    assert_eq!(starts, expected, "{text}\n{}\n", expected.join("\n"));
}
