//! What clients can do to a running server, over loopback sockets: each limit holds, and holding it
//! hurts nobody else.
//!
//! Every wait ends by a socket's time-out: a server that does not answer fails the test.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ringmx::clock::Clock;
use ringmx::config::Config;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(60);
const EHLO: &[u8] = b"EHLO client.example\r\n";
const OK: &str = "250 2.0.0 Ok\r\n";
const MIB: u64 = 1 << 20;

/// A server of the built program; ends with the value.
struct Server {
    child: Child,
    /// Kept open: the program writes to it at its end.
    _stdout: BufReader<ChildStdout>,
    directory: PathBuf,
    smtp: SocketAddr,
    http: SocketAddr,
}

impl Server {
    /// A server with these flags beside those that keep it small.
    fn start(flags: &[&str]) -> Server {
        Server::start_by(Command::new(env!("CARGO_BIN_EXE_ringmx")), flags)
    }

    /// A server that can't have more than `descriptors`. A privileged process could raise its limit
    /// again, so it is started without that privilege.
    fn start_with_descriptors(descriptors: u32, flags: &[&str]) -> Server {
        let script = format!(
            "ulimit -n {descriptors}
            without='setpriv --bounding-set=-sys_resource --inh-caps=-sys_resource'
            if [ \"$(id -u)\" = 0 ] && $without true 2>/dev/null; then
                exec $without \"$0\" \"$@\"
            fi
            exec \"$0\" \"$@\""
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_ringmx")]);
        Server::start_by(command, flags)
    }

    fn start_by(mut command: Command, flags: &[&str]) -> Server {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "limits-{}-{}",
            std::process::id(),
            STARTED.fetch_add(1, Ordering::Relaxed)
        );
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .args([
                "--survive",
                "nothing",
                "--ring-size",
                "64MiB",
                "--pool",
                "64MiB",
            ])
            .arg("--ring")
            .arg(&directory)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut smtp = None;
        let mut http = None;
        while smtp.is_none() || http.is_none() {
            let mut line = String::new();
            let len = stdout.read_line(&mut line).unwrap();
            assert!(len > 0, "the server ended: {:?}", child.wait());
            if let Some((_, address)) = line.trim().split_once(" on ") {
                smtp = smtp.or_else(|| address.parse().ok());
            } else if let Some((_, address)) = line.split_once("http://") {
                http = address.trim().trim_end_matches('/').parse().ok();
            }
        }
        Server {
            child,
            _stdout: stdout,
            directory,
            smtp: smtp.unwrap(),
            http: http.unwrap(),
        }
    }

    /// A client that was greeted and has said EHLO.
    fn client(&self) -> Client {
        let mut client = Client::connect(self.smtp);
        assert!(client.line().starts_with("220 "));
        client.send(EHLO);
        client.reply();
        client
    }

    fn status(&self) -> Value {
        Http::connect(self.http).status()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// An SMTP client.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: SocketAddr) -> Client {
        Client::over(TcpStream::connect(address).unwrap())
    }

    fn over(stream: TcpStream) -> Client {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client {
            stream: BufReader::new(stream),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// One line, empty at the end of the stream.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line
    }

    /// Last line of a reply.
    fn reply(&mut self) -> String {
        loop {
            let line = self.line();
            if line.as_bytes().get(3) != Some(&b'-') {
                return line;
            }
        }
    }

    /// Sends one command and returns the last line of its reply.
    fn command(&mut self, command: &str) -> String {
        self.send(format!("{command}\r\n").as_bytes());
        self.reply()
    }

    /// Opens a transaction up to DATA.
    fn begin_data(&mut self, mail_parameters: &str) {
        let mail = format!("MAIL FROM:<a@example.org>{mail_parameters}");
        assert_eq!(self.command(&mail), "250 2.1.0 Ok\r\n");
        let rcpt = "RCPT TO:<b@example.org>";
        assert_eq!(self.command(rcpt), "250 2.1.5 Ok\r\n");
        assert!(self.command("DATA").starts_with("354 "));
    }

    /// Sends a message; returns the reply to it.
    fn deliver(&mut self) -> String {
        self.begin_data("");
        self.command("Subject: x\r\n\r\ntext\r\n.")
    }

    /// What comes within `wait`: a line, or nothing.
    fn line_within(&mut self, wait: Duration) -> Option<String> {
        self.stream.get_ref().set_read_timeout(Some(wait)).unwrap();
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        self.stream
            .get_ref()
            .set_read_timeout(Some(DEADLINE))
            .unwrap();
        match read {
            Ok(_) => Some(line),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                assert_eq!(line, "", "a part of a line");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// An HTTP connection that stays.
struct Http {
    stream: BufReader<TcpStream>,
}

impl Http {
    fn connect(address: SocketAddr) -> Http {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Http {
            stream: BufReader::new(stream),
        }
    }

    fn status(&mut self) -> Value {
        let request = b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n";
        self.stream.get_mut().write_all(request).unwrap();
        let mut len = 0;
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).unwrap();
            if let Some(text) = line.strip_prefix("Content-Length: ") {
                len = text.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
            assert_ne!(line, "", "the connection ended");
        }
        let mut body = vec![0; len];
        self.stream.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    }
}

/// Waits until this number of the status has this value: what is counted when a connection is gone
/// comes a moment after its last reply.
fn await_number(server: &Server, path: &str, expected: u64) {
    let mut http = Http::connect(server.http);
    let clock = Clock::new();
    let until = clock.now().after(DEADLINE);
    while number(&http.status(), path) != expected {
        assert!(clock.now() < until, "{path} never becomes {expected}");
    }
}

fn number(status: &Value, path: &str) -> u64 {
    let value = status.pointer(path);
    value
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("{path}"))
}

#[test]
fn sessions_go_on_without_descriptors_and_new_ones_are_taken_when_some_are_free() {
    let server = Server::start_with_descriptors(40, &[]);
    // Once descriptors have run out there is none for this either.
    let mut http = Http::connect(server.http);
    assert_eq!(number(&http.status(), "/connections/accept_pauses"), 0);
    let mut clients = Vec::new();
    let mut waiting = loop {
        let mut client = Client::connect(server.smtp);
        let greeted = loop {
            if client.line_within(Duration::from_millis(20)).is_some() {
                break true;
            }
            if number(&http.status(), "/connections/accept_pauses") > 0 {
                break client.line_within(Duration::from_millis(1)).is_some();
            }
        };
        if !greeted {
            break client;
        }
        clients.push(client);
        assert!(clients.len() < 40, "the limit is not in force");
    };
    assert!(clients.len() > 2, "{} sessions", clients.len());
    for client in &mut clients {
        assert!(client.command("EHLO client.example").starts_with("250 "));
        assert!(client.deliver().starts_with("250 2.0.0 Ok: stored"));
    }
    let status = http.status();
    let accepted = number(&status, "/connections/accepted");
    assert_eq!(accepted, clients.len() as u64);
    assert_eq!(number(&status, "/messages/accepted"), accepted);
    assert_eq!(clients[0].command("QUIT"), "221 2.0.0 Bye\r\n");
    assert!(waiting.line().starts_with("220 "), "taken after a pause");
    assert_eq!(waiting.command("NOOP"), OK);
    let status = http.status();
    assert_eq!(number(&status, "/connections/accepted"), accepted + 1);
    assert_eq!(number(&status, "/session_panics"), 0);
}

#[test]
fn a_silent_client_is_closed_by_timeout_command_and_has_five_minutes_by_default() {
    assert!(Config::default().timeout_command >= Duration::from_secs(300));
    let patient = Server::start(&[]);
    let hasty = Server::start(&["--timeout-command", "1s"]);
    let mut kept = patient.client();
    let mut closed = hasty.client();
    let clock = Clock::new();
    let begun = clock.now();
    assert_eq!(closed.line(), "421 4.4.2 Timed out; closing\r\n");
    assert!(clock.now().since_ns(begun) >= 900_000_000);
    assert_eq!(closed.line(), "");
    // The other one has been silent for as long, inside of a transaction or not.
    assert_eq!(kept.line_within(Duration::from_millis(1)), None);
    assert_eq!(kept.command("NOOP"), OK);
    assert_eq!(
        number(&patient.status(), "/connections/closed/timed_out"),
        0
    );
    drop(closed);
    await_number(&hasty, "/connections/closed/timed_out", 1);
}

#[test]
fn a_client_that_says_nothing_at_all_is_closed_by_timeout_greeting() {
    let server = Server::start(&["--timeout-greeting", "1s"]);
    let mut silent = Client::connect(server.smtp);
    assert!(silent.line().starts_with("220 "));
    let mut other = server.client();
    assert_eq!(silent.line(), "421 4.4.2 Timed out; closing\r\n");
    assert_eq!(silent.line(), "");
    assert_eq!(other.command("NOOP"), OK);
}

#[test]
fn replies_to_a_pipelined_group_arrive_together() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let mut group = String::from("MAIL FROM:<a@example.org>\r\n");
    let mut expected = String::from("250 2.1.0 Ok\r\n");
    for at in 0..18 {
        group += &format!("RCPT TO:<{at}@example.org>\r\n");
        expected += "250 2.1.5 Ok\r\n";
    }
    group += "NOOP\r\n";
    expected += OK;
    client.send(group.as_bytes());
    let mut replies = Vec::new();
    let mut reads = 0;
    while replies.len() < expected.len() {
        let mut buf = [0; 4_096];
        let len = client.stream.get_mut().read(&mut buf).unwrap();
        assert!(len > 0);
        replies.extend_from_slice(&buf[..len]);
        reads += 1;
    }
    assert_eq!(String::from_utf8(replies).unwrap(), expected);
    // One, unless the kernel has cut the group on its way: 20 replies need not 20 segments.
    assert!(reads <= 2, "{reads} reads for 20 replies");
}

#[test]
fn announced_sizes_cost_nothing_until_the_bytes_arrive() {
    let server = Server::start(&[]);
    let mut clients: Vec<Client> = (0..20).map(|_| server.client()).collect();
    // 140 MiB, more than pool and ring hold.
    for client in &mut clients {
        client.begin_data(&format!(" SIZE={}", 7 * MIB));
    }
    let status = server.status();
    assert_eq!(number(&status, "/sessions/data"), 20);
    let used = number(&status, "/pool/used_bytes");
    assert!(used < MIB, "{used} bytes of the pool");
    for client in &mut clients {
        let stored = client.command("Subject: x\r\n\r\nshorter than announced\r\n.");
        assert!(stored.starts_with("250 2.0.0 Ok: stored"), "{stored}");
    }
    // One that is over the maximum is refused at once.
    let refused = clients[0].command(&format!("MAIL FROM:<> SIZE={}", 60 * MIB));
    assert_eq!(refused, "552 5.3.4 Message too big\r\n");
}

#[test]
fn a_command_line_of_a_megabyte_gets_one_500_and_the_session_lives() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let mut line = vec![b'x'; 1_000_000];
    line.extend_from_slice(b"\r\nNOOP\r\n");
    client.send(&line);
    assert_eq!(client.line(), "500 5.5.2 Command line too long\r\n");
    assert_eq!(client.line(), OK);
    assert!(client.deliver().starts_with("250 2.0.0 Ok: stored"));
    assert_eq!(client.command("QUIT"), "221 2.0.0 Bye\r\n");
    assert_eq!(client.line(), "");
    let status = server.status();
    assert_eq!(number(&status, "/replies/line_too_long/count"), 1);
    assert_eq!(number(&status, "/pool/used_bytes"), 0);
}

#[test]
fn two_hundred_thousand_pipelined_commands_get_as_many_replies() {
    const COMMANDS: usize = 200_000;
    let server = Server::start(&[]);
    let mut client = server.client();
    let writer = client.stream.get_ref().try_clone().unwrap();
    let sender = std::thread::spawn(move || (&writer).write_all(&b"NOOP\r\n".repeat(COMMANDS)));
    let mut replies = vec![0; COMMANDS * OK.len()];
    client.stream.read_exact(&mut replies).unwrap();
    sender.join().unwrap().unwrap();
    assert!(
        replies
            .chunks_exact(OK.len())
            .all(|reply| reply == OK.as_bytes())
    );
    assert_eq!(client.command("QUIT"), "221 2.0.0 Bye\r\n");
    assert_eq!(client.line(), "");
}

#[test]
fn recipients_beyond_the_maximum_get_452_and_the_others_stand() {
    const GIVEN: usize = 50_000;
    const TAKEN: usize = 1_000;
    let server = Server::start(&[]);
    let mut client = server.client();
    assert_eq!(
        client.command("MAIL FROM:<a@example.org>"),
        "250 2.1.0 Ok\r\n"
    );
    let group: String = (0..GIVEN)
        .map(|at| format!("RCPT TO:<{at}@example.org>\r\n"))
        .collect();
    let writer = client.stream.get_ref().try_clone().unwrap();
    let sender = std::thread::spawn(move || (&writer).write_all(group.as_bytes()));
    for at in 0..GIVEN {
        let expected = match at < TAKEN {
            true => "250 2.1.5 Ok\r\n",
            false => "452 4.5.3 Too many recipients\r\n",
        };
        assert_eq!(client.line(), expected, "recipient {at}");
    }
    sender.join().unwrap().unwrap();
    assert!(client.command("DATA").starts_with("354 "));
    assert!(
        client
            .command("text\r\n.")
            .starts_with("250 2.0.0 Ok: stored")
    );
    let newest = &server.status()["newest"][0];
    assert_eq!(number(newest, "/recipients"), TAKEN as u64);
}

#[test]
fn a_message_that_drips_below_the_minimum_rate_is_cut() {
    let flags = ["--min-data-rate", "1000", "--min-data-rate-grace", "1s"];
    let server = Server::start(&flags);
    let mut slow = server.client();
    let mut other = server.client();
    slow.begin_data("");
    let mut dripped = 0;
    let reply = loop {
        slow.send(b"x");
        dripped += 1;
        if let Some(reply) = slow.line_within(Duration::from_millis(100)) {
            break reply;
        }
        assert!(dripped < 600, "nobody minds");
    };
    assert_eq!(reply, "421 4.4.2 Data arrived too slowly; closing\r\n");
    assert!(dripped > 5, "cut within the grace");
    assert_eq!(slow.line(), "");
    assert!(other.deliver().starts_with("250 2.0.0 Ok: stored"));
    drop(slow);
    await_number(&server, "/connections/closed/too_slow", 1);
    assert_eq!(number(&server.status(), "/messages/accepted"), 1);
}

#[test]
fn a_client_that_never_reads_stops_nobody_else_and_is_cut_in_the_end() {
    let server = Server::start(&["--timeout-reply", "1s"]);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // Small buffers fill sooner.
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.set_send_buffer_size(65_536).unwrap();
    socket.connect(&server.smtp.into()).unwrap();
    let mut deaf = TcpStream::from(socket);
    deaf.set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let group = b"NOOP\r\n".repeat(10_000);
    let mut sent = 0;
    let stuck = loop {
        match deaf.write(&group) {
            Ok(len) => sent += len,
            Err(error) => break error.kind(),
        }
        assert!(sent < 1 << 30, "the server reads without end");
    };
    assert!(matches!(stuck, ErrorKind::WouldBlock | ErrorKind::TimedOut));
    let mut other = server.client();
    assert!(other.deliver().starts_with("250 2.0.0 Ok: stored"));
    assert_eq!(other.command("QUIT"), "221 2.0.0 Bye\r\n");
    // The pool holds one chunk of replies and one of input for it, and lets go of them.
    let used = number(&server.status(), "/pool/used_bytes");
    assert!(used <= 128 * 1_024, "{used} bytes for one client");
    await_number(&server, "/connections/closed/replies_unread", 1);
    await_number(&server, "/pool/used_bytes", 0);
    drop(deaf);
}

#[test]
fn one_session_too_many_gets_421_and_a_free_place_is_given_again() {
    let server = Server::start(&["--max-sessions", "5"]);
    let mut clients: Vec<Client> = (0..5).map(|_| server.client()).collect();
    for _ in 0..3 {
        let mut refused = Client::connect(server.smtp);
        let line = refused.line();
        assert_eq!(line, "421 4.3.2 Too many sessions; try again later\r\n");
        assert_eq!(refused.line(), "");
    }
    for client in &mut clients {
        assert_eq!(client.command("NOOP"), OK);
    }
    assert_eq!(clients[0].command("QUIT"), "221 2.0.0 Bye\r\n");
    assert_eq!(clients[0].line(), "");
    let mut taken = server.client();
    assert!(taken.deliver().starts_with("250 2.0.0 Ok: stored"));
    let status = server.status();
    assert_eq!(number(&status, "/connections/accepted"), 6);
    assert_eq!(number(&status, "/connections/sessions_refused"), 3);
}
