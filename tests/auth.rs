//! AUTH and LMTP over real sockets: users made by `ringmx users`, checked by the helper, read again on SIGHUP.

#[allow(dead_code, reason = "this crate uses a part of it")]
mod process;

use std::io::Write;
use std::process::{Command, Stdio};

use process::{Client, Process, RINGMX, Server, TestDir, output_of, ringmx, wait_until};
use ringmx::base64;

/// A server with one listener, as `listen` has it.
fn serve(dir: &TestDir, listen: &str, options: &[&str]) -> Server {
    let ring = dir.ring();
    let fixed = [
        "serve",
        "--listen",
        listen,
        "--http=off",
        "--ring-size=32MiB",
        "--ring",
        &ring,
    ];
    let process = Process::start(&[&fixed, options].concat());
    let mut first_lines = Vec::new();
    while !first_lines
        .last()
        .is_some_and(|line: &String| line.starts_with("Try:"))
    {
        match process.line() {
            Some(line) => first_lines.push(line),
            None => panic!("{:?}", process.wait()),
        }
    }
    let address = first_lines[0]
        .split(' ')
        .find_map(|word| word.trim_end_matches(',').parse().ok());
    Server {
        process,
        address: address.expect("an address in the first line"),
        http: None,
        first_lines,
    }
}

/// Sends SIGHUP.
fn hang_up(server: &Server) {
    let script = format!("kill -HUP {}", server.process.pid());
    let status = Command::new("sh").args(["-c", &script]).status().unwrap();
    assert!(status.success());
}

/// Runs `ringmx users` with these arguments and this password; exit code, output, errors.
fn users(arguments: &[&str], password: &str) -> (Option<i32>, String, String) {
    let mut child = Command::new(RINGMX)
        .arg("users")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads no password may be gone already.
    let _ = child.stdin.take().unwrap().write_all(password.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |octets| String::from_utf8(octets).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn add(file: &str, name: &str, password: &str) {
    let arguments = ["add", "--file", file, name, "--iterations", "4096"];
    assert_eq!(
        users(&arguments, password),
        (Some(0), String::new(), String::new())
    );
}

/// AUTH PLAIN with this name and password, and the reply.
fn plain(client: &mut Client, name: &str, password: &str) -> String {
    let message = base64::text(format!("\0{name}\0{password}").as_bytes());
    client
        .send(format!("AUTH PLAIN {message}\r\n").as_bytes())
        .unwrap();
    client.reply().unwrap()
}

const RIGHT: &str = "235 2.7.0 Authentication successful\r\n";
const WRONG: &str = "535 5.7.8 Authentication credentials invalid\r\n";

#[test]
fn the_file_of_users_is_made_edited_and_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TestDir::new();
    let file = dir.join("users");
    add(&file, "jim", "first");
    add(&file, "ann", "second");
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with("jim:SCRAM-SHA-256$4096:") && lines[1].starts_with("ann:"));
    assert!(!text.contains("first") && !text.contains("second"));
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        users(&["list", "--file", &file], ""),
        (Some(0), "ann\njim\n".to_owned(), String::new())
    );
    let again = users(&["add", "--file", &file, "jim"], "third");
    let reason =
        "ringmx: users: jim is there already; 'ringmx users passwd' changes the password\n";
    assert_eq!(again, (Some(2), String::new(), reason.to_owned()));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    assert_eq!(
        users(&["passwd", "--file", &file, "jim"], "third").0,
        Some(0)
    );
    let changed = std::fs::read_to_string(&file).unwrap();
    assert!(changed.starts_with("jim:SCRAM-SHA-256$65536:"));
    assert!(changed.ends_with(&format!("\n{}\n", lines[1])));
    assert_eq!(users(&["remove", "--file", &file, "jim"], "").0, Some(0));
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        format!("{}\n", lines[1])
    );
    let gone = users(&["remove", "--file", &file, "jim"], "");
    assert_eq!(
        gone,
        (
            Some(2),
            String::new(),
            format!("ringmx: users: {file} has no user jim\n")
        )
    );
    std::fs::write(&file, "ann:secret\n").unwrap();
    let (code, _, errors) = users(&["add", "--file", &file, "jim"], "x");
    assert_eq!(code, Some(1));
    assert_eq!(
        errors,
        format!(
            "ringmx: users: {file}:1: not SCRAM-SHA-256$ITERATIONS:SALT$STORED-KEY:SERVER-KEY\n"
        )
    );
}

#[test]
fn a_user_submits_mail_and_sighup_reads_the_file_again() {
    let dir = TestDir::new();
    let file = dir.join("users");
    add(&file, "jim", "pencil");
    let options = ["--users", &file, "--auth-without-tls"];
    let server = serve(&dir, "127.0.0.1:0,role=submission", &options);
    let mut client = Client::open(server.address).unwrap();
    client.send(b"MAIL FROM:<a@example.org>\r\n").unwrap();
    assert_eq!(
        client.reply().unwrap(),
        "530 5.7.0 Authentication required\r\n"
    );
    assert_eq!(plain(&mut client, "jim", "wrong"), WRONG);
    assert_eq!(plain(&mut client, "nobody", "pencil"), WRONG);
    assert_eq!(plain(&mut client, "jim", "pencil"), RIGHT);
    // What is pipelined behind AUTH waits for the helper and is answered in order.
    let mut other = Client::open(server.address).unwrap();
    let message = base64::text(b"\0jim\0pencil");
    other
        .send(format!("AUTH PLAIN {message}\r\nNOOP\r\n").as_bytes())
        .unwrap();
    assert_eq!(other.reply().unwrap(), RIGHT);
    assert_eq!(other.reply().unwrap(), "250 2.0.0 Ok\r\n");
    let stored = client.deliver(b"x\r\n").unwrap();
    assert!(stored.starts_with("250 2.0.0 Ok: stored as "), "{stored}");

    let mut late = Client::open(server.address).unwrap();
    assert_eq!(plain(&mut late, "ann", "paper"), WRONG);
    add(&file, "ann", "paper");
    hang_up(&server);
    // Guesses end a session, so each try has one of its own.
    wait_until("ann is known", || {
        let mut client = Client::open(server.address).unwrap();
        plain(&mut client, "ann", "paper") == RIGHT
    });
    // Without a signal: the file is looked at.
    add(&file, "eve", "ink");
    wait_until("eve is known", || {
        let mut client = Client::open(server.address).unwrap();
        plain(&mut client, "eve", "ink") == RIGHT
    });
    // A file with a fault changes nothing.
    std::fs::write(&file, "jim:oops\n").unwrap();
    hang_up(&server);
    wait_until("the fault is told", || {
        server.process.said().contains("users_reload_failed")
    });
    assert_eq!(plain(&mut late, "ann", "paper"), RIGHT);
    for mut client in [client, other, late] {
        client.send(b"QUIT\r\n").unwrap();
        assert!(client.rest().unwrap().ends_with("221 2.0.0 Bye\r\n"));
    }
    let (_, errors) = server.stop();
    assert!(
        !errors.contains("pencil") && !errors.contains("paper"),
        "{errors}"
    );
    assert!(errors.contains("users_reload_failed"), "{errors}");
    assert!(
        errors.contains(&format!("{file}:1: not SCRAM-SHA-256")),
        "{errors}"
    );
    let json = output_of(&["log", "cat", "0-1", "--json", "--ring", &dir.ring()]);
    let message: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(message["user"], "jim");
    assert_eq!(message["role"], "submission");
}

#[test]
fn a_line_of_auth_may_come_in_parts_up_to_its_limit_and_not_beyond() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--auth", "any", "--auth-without-tls"]);
    let mut client = Client::open(server.address).unwrap();
    // Parts larger than a small chunk of the pool, and smaller ones.
    for (octets, expected) in [
        (
            12_288,
            "501 5.5.2 Bad authentication exchange: base64 of the mechanism's message expected\r\n",
        ),
        (
            12_289,
            "500 5.5.6 Authentication exchange line is too long\r\n",
        ),
        (
            12_287,
            "501 5.5.2 Bad authentication exchange: base64 of the mechanism's message expected\r\n",
        ),
    ] {
        for part in [1_000, 5_000, 12_000] {
            let mut line = b"AUTH PLAIN ".to_vec();
            line.resize(octets - 2, b'A');
            line.extend_from_slice(b"\r\n");
            for part in line.chunks(part) {
                client.send(part).unwrap();
            }
            assert_eq!(
                client.reply().unwrap(),
                expected,
                "{octets} in parts of {part}"
            );
        }
    }
    assert_eq!(plain(&mut client, "anybody", "anything"), RIGHT);
}

#[test]
fn a_sink_may_accept_any_password() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--auth", "any", "--auth-without-tls"]);
    let mut client = Client::open(server.address).unwrap();
    assert_eq!(plain(&mut client, "anybody", "anything"), RIGHT);
    client.send(b"QUIT\r\n").unwrap();
    server.stop();
}

#[test]
fn a_file_of_users_with_a_fault_keeps_the_server_from_starting() {
    let dir = TestDir::new();
    let file = dir.join("users");
    std::fs::write(&file, "# users\njim:pencil\n").unwrap();
    let output = ringmx(&[
        "serve",
        "--listen=127.0.0.1:0",
        "--http=off",
        "--users",
        &file,
        "--ring",
        &dir.ring(),
    ]);
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8(output.stderr).unwrap();
    let reason =
        format!("users: {file}:2: not SCRAM-SHA-256$ITERATIONS:SALT$STORED-KEY:SERVER-KEY");
    assert!(
        errors.contains(&reason) && !errors.contains("pencil"),
        "{errors}"
    );
}

#[test]
fn lmtp_names_the_message_once_for_each_of_many_recipients() {
    // Far more replies than fit into the buffer for them at once.
    const RECIPIENTS: usize = 300;
    let dir = TestDir::new();
    let server = serve(&dir, "127.0.0.1:0,lmtp", &[]);
    let mut client = Client::connect(server.address).unwrap();
    client.reply().unwrap();
    client
        .send(b"LHLO client.example\r\nMAIL FROM:<>\r\n")
        .unwrap();
    client.reply().unwrap();
    client.reply().unwrap();
    for number in 0..RECIPIENTS {
        client
            .send(format!("RCPT TO:<r{number}@example.net>\r\n").as_bytes())
            .unwrap();
        assert_eq!(client.reply().unwrap(), "250 2.1.5 Ok\r\n");
    }
    client.send(b"DATA\r\n").unwrap();
    client.reply().unwrap();
    client.send(b"x\r\n.\r\nNOOP\r\n").unwrap();
    for _ in 0..RECIPIENTS {
        assert_eq!(client.reply().unwrap(), "250 2.0.0 Ok: stored as 0-1\r\n");
    }
    assert_eq!(client.reply().unwrap(), "250 2.0.0 Ok\r\n");
    client.send(b"QUIT\r\n").unwrap();
    server.stop();
}

#[test]
fn an_edge_listener_offers_what_an_attached_consumer_keeps() {
    let dir = TestDir::new();
    let file = dir.join("users");
    add(&file, "jim", "pencil");
    let options = ["--users", &file, "--auth-without-tls"];
    let server = serve(&dir, "127.0.0.1:0,role=submission", &options);
    let offers = || {
        let mut client = Client::connect(server.address).unwrap();
        client.reply().unwrap();
        client.send(b"EHLO client.example\r\nQUIT\r\n").unwrap();
        let reply = client.reply().unwrap();
        let all = [
            "DSN",
            "DELIVERBY",
            "FUTURERELEASE",
            "MT-PRIORITY",
            "RRVS",
            "ETRN",
            "REQUIRETLS",
        ];
        let offered = all.into_iter().filter(|keyword| {
            reply
                .lines()
                .any(|line| line[4..].split(' ').next() == Some(keyword))
        });
        offered.collect::<Vec<_>>()
    };
    assert_eq!(offers(), Vec::<&str>::new());
    let maildir = format!("maildir:{}", dir.join("mail"));
    let ring = dir.ring();
    let consumer = Process::start(&[
        "consume", "edge", "--create", "--to", &maildir, "--ring", &ring, "--keeps", "rrvs,DSN",
    ]);
    wait_until("the consumer is attached", || offers() == ["DSN", "RRVS"]);
    consumer.terminate();
    consumer.wait();
    wait_until("the consumer is gone", || offers().is_empty());
    server.stop();
}
