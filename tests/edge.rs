//! A real server on sockets other than its own TCP ports, as another user, and under a service manager.

#[allow(dead_code, reason = "other tests use what this one does not")]
mod process;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use process::{
    Client, ENVELOPE, PATIENCE, Process, RINGMX, Server, TestDir, refused_start, ringmx,
};
use ringmx::ctl::with_short_path;
use ringmx::sys::privileges;

const CONTENT: &[u8] = b"Subject: one\r\n\r\nText.\r\n";

/// Reads the first lines up to the one that begins with `last`.
fn first_lines(process: &Process, last: &str) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(line) = process.line() {
        let done = line.starts_with(last);
        lines.push(line);
        if done {
            break;
        }
    }
    lines
}

/// Delivers one message over a UNIX socket; returns all that the server said.
fn deliver(path: &str) -> String {
    let mut stream = with_short_path(path.as_ref(), |path| UnixStream::connect(path)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let input = [
        &b"EHLO client.example\r\n"[..],
        ENVELOPE,
        CONTENT,
        b".\r\nQUIT\r\n",
    ];
    stream.write_all(&input.concat()).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

fn log_json(ring: &str) -> serde_json::Value {
    let output = ringmx(&["log", "ls", "--ring", ring, "--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn mail_comes_in_over_a_unix_socket() {
    let dir = TestDir::new();
    mail_comes_in_over(&dir, &dir.join("smtp.sock"));
}

/// An address has room for 107 octets of a path, as of unix(7).
#[test]
fn mail_comes_in_over_a_unix_socket_whose_path_is_longer_than_an_address() {
    let dir = TestDir::new();
    let folder = dir.join(&"d".repeat(150));
    fs::create_dir(&folder).unwrap();
    mail_comes_in_over(&dir, &format!("{folder}/smtp.sock"));
}

fn mail_comes_in_over(dir: &TestDir, socket: &str) {
    let ring = dir.ring();
    let listen = format!("unix:{socket}");
    // Left by a server that was killed.
    drop(with_short_path(socket.as_ref(), |path| UnixListener::bind(path)).unwrap());
    let arguments = [
        "serve",
        "--listen",
        &listen,
        "--http",
        "off",
        "--ring",
        &ring,
        "--ring-size",
        "32MiB",
        "--server-name",
        "mx.example",
    ];
    let process = Process::start(&arguments);
    let lines = first_lines(&process, "Then:");
    assert_eq!(
        lines[0],
        format!("ringmx {} on {listen}", env!("CARGO_PKG_VERSION"))
    );
    assert!(!lines.iter().any(|line| line.starts_with("Try:")));
    let found = fs::symlink_metadata(socket).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o666);
    let said = deliver(socket);
    assert!(said.starts_with("220 mx.example ESMTP"), "{said}");
    assert!(
        said.ends_with("250 2.0.0 Ok: stored as 0-1\r\n221 2.0.0 Bye\r\n"),
        "{said}"
    );
    let stored = ringmx(&["log", "cat", "0-1", "--raw", "--ring", &ring]).stdout;
    let text = String::from_utf8(stored).unwrap();
    assert!(
        text.starts_with(
            "Received: from client.example ([127.0.0.1]) by mx.example with ESMTP\r\n"
        ),
        "{text}"
    );
    assert!(text.ends_with("Subject: one\r\n\r\nText.\r\n"), "{text}");

    // One that is alive is not replaced.
    let second = dir.join("second");
    let output = ringmx(&[
        "serve", "--listen", &listen, "--http", "off", "--ring", &second,
    ]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        error,
        format!("ringmx: can't listen on {listen}: address in use\n")
    );
    assert!(!Path::new(&second).exists());

    process.terminate();
    assert_eq!(process.wait().0, Some(0));
    let error = fs::symlink_metadata(socket).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::NotFound,
        "it is removed at the end"
    );
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let dir = TestDir::new();
    let path = dir.join("precious");
    fs::write(&path, "mail").unwrap();
    let (listen, ring) = (format!("unix:{path}"), dir.ring());
    let output = ringmx(&[
        "serve", "--listen", &listen, "--http", "off", "--ring", &ring,
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read(&path).unwrap(), b"mail");
    assert!(!Path::new(&ring).exists());
}

/// Opens sockets as a service manager does, and becomes ringmx.
const ACTIVATE: &str = r#"
import os, socket, sys
tcp = socket.socket()
tcp.bind(("127.0.0.1", 0))
tcp.listen()
local = socket.socket(socket.AF_UNIX)
local.bind(sys.argv[1])
local.listen()
for number, opened in ((3, tcp), (4, local)):
    spare = os.dup(opened.fileno())
    if spare <= 4:
        spare = os.dup(os.dup(os.dup(spare)))
    opened.detach()
    os.dup2(spare, number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = "2"
os.environ["LISTEN_FDNAMES"] = "smtp:local"
os.execv(sys.argv[2], sys.argv[2:])
"#;

#[test]
fn a_service_manager_opens_the_sockets_and_hears_when_the_server_is_ready() {
    let dir = TestDir::new();
    let (path, ring, heard) = (dir.join("local.sock"), dir.ring(), dir.join("notify"));
    let manager = UnixDatagram::bind(&heard).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new("python3");
    command.args(["-c", ACTIVATE, &path, RINGMX, "serve"]);
    command.args(["--listen", "systemd:smtp", "--listen", "systemd:local"]);
    command.args(["--http", "off", "--ring", &ring, "--ring-size", "32MiB"]);
    // Nobody can tell who reaches a socket that somebody else has opened.
    command.arg("--accept-any-recipient");
    command.env("NOTIFY_SOCKET", &heard);
    let process = Process::spawn(command);
    let lines = first_lines(&process, "Try:");
    let places = lines[0].split_once(" on ").unwrap().1;
    let address = places
        .strip_suffix(" (systemd:smtp), systemd:local")
        .unwrap_or_else(|| panic!("{lines:?}"));
    let mut state = [0; 64];
    let len = manager.recv(&mut state).unwrap();
    assert_eq!(&state[..len], b"READY=1");
    let mut client = Client::open(address.parse::<SocketAddr>().unwrap()).unwrap();
    let reply = client.deliver(CONTENT).unwrap();
    assert_eq!(reply, "250 2.0.0 Ok: stored as 0-1\r\n");
    drop(client);
    assert!(deliver(&path).ends_with("stored as 0-2\r\n221 2.0.0 Bye\r\n"));
    process.terminate();
    assert_eq!(process.wait().0, Some(0));
    assert!(
        Path::new(&path).exists(),
        "the file belongs to the service manager"
    );
}

/// Opens a socket of both families, as systemd does for `ListenStream=25`, and becomes ringmx.
const ACTIVATE_BOTH: &str = r#"
import os, socket, sys
both = socket.socket(socket.AF_INET6)
both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
both.bind(("::", 0))
both.listen()
if both.fileno() == 3:
    os.set_inheritable(3, True)
else:
    os.dup2(both.fileno(), 3)
both.detach()
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = "1"
os.environ["LISTEN_FDNAMES"] = "smtp"
os.execv(sys.argv[1], sys.argv[1:])
"#;

/// Log lines said `[::ffff:127.0.0.1]:1234`, so that no search for the address of a stored message found them.
#[test]
fn an_ipv4_client_of_a_socket_of_both_families_has_one_address_in_mail_and_log_lines() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        println!("skipped: this machine has no IPv6");
        return;
    }
    let dir = TestDir::new();
    let ring = dir.ring();
    let mut command = Command::new("python3");
    command.args([
        "-c",
        ACTIVATE_BOTH,
        RINGMX,
        "serve",
        "--accept-any-recipient",
    ]);
    command.args(["--listen", "systemd:smtp", "--http", "off", "--ring", &ring]);
    command.args(["--ring-size", "32MiB"]);
    let process = Process::spawn(command);
    let lines = first_lines(&process, "Try:");
    let port = lines[0]
        .split_once(" on [::]:")
        .and_then(|(_, rest)| rest.strip_suffix(" (systemd:smtp)"))
        .unwrap_or_else(|| panic!("{lines:?}"));
    let mut client = Client::open(format!("127.0.0.1:{port}").parse().unwrap()).unwrap();
    client.deliver(CONTENT).unwrap();
    client.send(b"NONSENSE\r\n").unwrap();
    client.expect("500 5.5.1").unwrap();
    drop(client);
    process.terminate();
    let (code, _, errors) = process.wait();
    assert_eq!(code, Some(0), "{errors}");
    let sent_from = &log_json(&ring)["client"];
    assert_eq!(sent_from["address"], "127.0.0.1");
    let named = format!(
        " class=refused client=127.0.0.1:{} code=500 ",
        sent_from["port"]
    );
    assert!(errors.contains(&named), "{named}: {errors}");
    assert!(!errors.contains("::ffff:"), "{errors}");
}

/// Whoever connected to it waited for a greeting until his own time limit, and no line said why.
#[test]
fn a_socket_that_was_handed_over_and_that_no_listener_takes_is_named() {
    let dir = TestDir::new();
    let (path, ring) = (dir.join("local.sock"), dir.ring());
    let mut command = Command::new("python3");
    command.args(["-c", ACTIVATE, &path, RINGMX, "serve"]);
    command.args(["--listen", "systemd:smtp", "--accept-any-recipient"]);
    command.args(["--http", "off", "--ring", &ring, "--ring-size", "32MiB"]);
    let process = Process::spawn(command);
    first_lines(&process, "Try:");
    process.terminate();
    let (code, _, errors) = process.wait();
    assert_eq!(code, Some(0), "{errors}");
    let warnings: Vec<&str> = errors
        .lines()
        .filter(|line| line.contains("handed over"))
        .collect();
    assert_eq!(
        warnings,
        [
            "ringmx: warning: no listener takes the socket \"local\" that was handed over: who connects there gets \
             no answer; '--listen systemd:local' would take it"
        ]
    );
}

#[test]
fn a_socket_that_was_not_handed_over_is_named() {
    let dir = TestDir::new();
    let ring = dir.ring();
    let output = ringmx(&[
        "serve",
        "--listen",
        "systemd:smtp",
        "--accept-any-recipient",
        "--http",
        "off",
        "--ring",
        &ring,
    ]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "ringmx: can't listen on systemd:smtp: no socket was handed over (LISTEN_FDS and LISTEN_PID of socket \
         activation)\n"
    );
    let mut command = Command::new("python3");
    command.args(["-c", ACTIVATE, &dir.join("local.sock"), RINGMX, "serve"]);
    command.args([
        "--listen",
        "systemd:submission",
        "--accept-any-recipient",
        "--http",
        "off",
        "--ring",
        &ring,
    ]);
    let (code, _, error) = Process::spawn(command).wait();
    assert_eq!(code, Some(2));
    assert_eq!(
        error,
        "ringmx: can't listen on systemd:submission: no socket of this name is left; there is: smtp, local\n"
    );
    assert!(!Path::new(&ring).exists());
}

/// The value of a line of `/proc/PID/status`, its fields joined by one space.
fn status(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let fields: Vec<&str> = line.unwrap().split_whitespace().collect();
    fields.join(" ")
}

#[test]
fn bound_as_root_the_server_serves_as_another_user_for_good() {
    if privileges::effective_user() != 0 {
        println!("skipped: becoming another user needs root");
        return;
    }
    let nobody = privileges::user_named("nobody").unwrap().unwrap();
    let (uid, gid) = (nobody.uid, nobody.gid);
    let dir = TestDir::new();
    std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).unwrap();
    let ring = dir.ring();
    let server = Server::start(&dir, &["--user", "nobody"]);
    let pid = server.process.pid();
    let ids = |id: u32| format!("{id} {id} {id} {id}");
    assert_eq!(status(pid, "Uid:"), ids(uid));
    assert_eq!(status(pid, "Gid:"), ids(gid));
    assert_eq!(status(pid, "Groups:"), gid.to_string());
    assert_eq!(status(pid, "NoNewPrivs:"), "1");
    assert_eq!(status(pid, "CapEff:"), "0000000000000000");
    let mut client = Client::open(server.address).unwrap();
    assert_eq!(
        client.deliver(CONTENT).unwrap(),
        "250 2.0.0 Ok: stored as 0-1\r\n"
    );
    drop(client);
    for (path, mode) in [
        (ring.clone(), 0o700),
        (format!("{ring}/shard-0"), 0o700),
        (format!("{ring}/shard-0/ring"), 0o600),
        (format!("{ring}/shard-0/ctl"), 0o600),
    ] {
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.uid(), found.gid()), (uid, gid), "{path}");
        assert_eq!(found.permissions().mode() & 0o777, mode, "{path}");
    }
    // Not dumpable: what it knows is root's to read, not that of other processes of the user.
    let memory = fs::metadata(format!("/proc/{pid}/mem")).unwrap();
    assert_eq!(memory.uid(), 0);
    server.stop();
    let listed = log_json(&ring);
    assert_eq!(listed["id"], "0-1");
}

#[test]
fn a_user_that_does_not_exist_or_may_not_write_is_told_before_anything_is_made() {
    let dir = TestDir::new();
    let ring = dir.ring();
    let serve = |user: &str| {
        let (code, _, errors) = refused_start(&["--ring", &ring, "--user", user]);
        (code, errors)
    };
    let (code, error) = serve("no-such-user-here");
    assert_eq!(code, Some(2));
    assert_eq!(
        error,
        "ringmx: --user: there is no user 'no-such-user-here'\n"
    );
    if privileges::effective_user() != 0 {
        println!("skipped: becoming another user needs root");
        return;
    }
    let (code, error) = serve("nobody");
    assert_eq!(code, Some(74), "{error}");
    assert!(error.contains("ermission denied"), "{error}");
    assert!(!Path::new(&ring).exists());
}
