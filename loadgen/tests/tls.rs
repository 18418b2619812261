//! STARTTLS, implicit TLS and AUTH against a small blocking server of the test's own.

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the server counted.
#[derive(Default)]
struct Seen {
    handshakes: AtomicU64,
    logins: AtomicU64,
    messages: AtomicU64,
    /// Messages that came in the clear.
    naked: AtomicU64,
}

struct Server {
    address: SocketAddr,
    seen: Arc<Seen>,
    ca: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.ca);
    }
}

/// Starts a server that closes behind its 221; its threads end with the test process.
fn serve(name: &str, implicit: bool, after_starttls: &'static [u8]) -> Server {
    serve_until(name, implicit, after_starttls, false)
}

/// Starts a server that closes behind its 221, or that `waits` for the client to do so first.
fn serve_until(name: &str, implicit: bool, after_starttls: &'static [u8], waits: bool) -> Server {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
    let ca = std::env::temp_dir().join(format!("loadgen-tls-{name}-{}.pem", std::process::id()));
    std::fs::write(&ca, cert.pem()).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let counts = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (config, counts) = (config.clone(), counts.clone());
            std::thread::spawn(move || {
                // A client that gives up early is not this server's trouble.
                let stream = stream.unwrap();
                let _ = session(stream, config, &counts, implicit, after_starttls, waits);
            });
        }
    });
    Server { address, seen, ca }
}

fn secure(
    stream: TcpStream,
    config: Arc<ServerConfig>,
) -> StreamOwned<ServerConnection, TcpStream> {
    StreamOwned::new(ServerConnection::new(config).unwrap(), stream)
}

fn session(
    mut stream: TcpStream,
    config: Arc<ServerConfig>,
    seen: &Seen,
    implicit: bool,
    after_starttls: &[u8],
    waits: bool,
) -> std::io::Result<()> {
    if implicit {
        return talk(secure(stream, config), seen, waits, true);
    }
    stream.write_all(b"220 tls.example ESMTP\r\n")?;
    let mut line = String::new();
    loop {
        // One byte at a time: nothing of the handshake may be read ahead.
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.push(char::from(byte[0]));
        if !line.ends_with('\n') {
            continue;
        }
        if line.starts_with("STARTTLS") {
            stream.write_all(&[b"220 2.0.0 Go\r\n", after_starttls].concat())?;
            return talk(secure(stream, config), seen, waits, false);
        }
        if line.starts_with("MAIL") {
            seen.naked.fetch_add(1, Ordering::Relaxed);
        }
        stream.write_all(match &line[..4] {
            "EHLO" => b"250-tls.example\r\n250 STARTTLS\r\n",
            "QUIT" => b"221 2.0.0 Bye\r\n",
            _ => b"530 5.7.0 STARTTLS first\r\n",
        })?;
        line.clear();
    }
}

fn talk(
    stream: StreamOwned<ServerConnection, TcpStream>,
    seen: &Seen,
    waits: bool,
    greet: bool,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    if greet {
        stream.get_mut().write_all(b"220 tls.example ESMTP\r\n")?;
    }
    let mut first = true;
    let mut line = String::new();
    let mut read = |stream: &mut BufReader<_>, line: &mut String| -> std::io::Result<bool> {
        line.clear();
        let some = BufRead::read_line(stream, line)? > 0;
        if std::mem::take(&mut first) {
            seen.handshakes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(some)
    };
    while read(&mut stream, &mut line)? {
        let reply: &[u8] = match line.trim_end() {
            "AUTH PLAIN AHVzZXIAcGFzcw==" => b"235 2.7.0 Hello\r\n",
            "AUTH LOGIN" => b"334 VXNlcm5hbWU6\r\n",
            // user, then pass
            "dXNlcg==" => b"334 UGFzc3dvcmQ6\r\n",
            "cGFzcw==" => b"235 2.7.0 Hello\r\n",
            other if other.starts_with("AUTH") => b"535 5.7.8 No\r\n",
            other if other.starts_with("EHLO") => {
                b"250-tls.example\r\n250-PIPELINING\r\n250 AUTH PLAIN LOGIN\r\n"
            }
            "QUIT" => b"221 2.0.0 Bye\r\n",
            "DATA" => {
                stream.get_mut().write_all(b"354 Go\r\n")?;
                while read(&mut stream, &mut line)? && line != ".\r\n" {}
                seen.messages.fetch_add(1, Ordering::Relaxed);
                b"250 2.0.0 Ok\r\n"
            }
            _ => b"250 2.0.0 Ok\r\n",
        };
        if reply.starts_with(b"235") {
            seen.logins.fetch_add(1, Ordering::Relaxed);
        }
        if reply.starts_with(b"221") && waits {
            // Reply and close_notify leave together; the connection stays until the client closes it.
            let StreamOwned { conn, sock } = stream.get_mut();
            conn.writer().write_all(reply)?;
            conn.send_close_notify();
            while conn.wants_write() {
                conn.write_tls(sock)?;
            }
            while sock.read(&mut [0; 512])? > 0 {}
            break;
        }
        stream.get_mut().write_all(reply)?;
        stream.get_mut().flush()?;
        if reply.starts_with(b"221") {
            break;
        }
    }
    Ok(())
}

fn run(server: &Server, more: &[&str]) -> Output {
    let target = server.address.to_string();
    let mut arguments = vec![
        "run",
        &target,
        "--sessions",
        "2",
        "--messages",
        "20",
        "--messages-per-connection",
        "5",
        "--quiet",
        "--timeout",
        "5s",
        "--connect-attempts",
        "1",
    ];
    arguments.extend_from_slice(more);
    Command::new(env!("CARGO_BIN_EXE_smtp-loadgen"))
        .args(arguments)
        .output()
        .unwrap()
}

fn counts(server: &Server) -> [u64; 4] {
    let seen = &server.seen;
    [&seen.handshakes, &seen.logins, &seen.messages, &seen.naked]
        .map(|count| count.load(Ordering::Relaxed))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn starttls_secures_every_message_and_auth_follows_it() {
    let server = serve("starttls", false, b"");
    let ca = server.ca.display().to_string();
    let output = run(
        &server,
        &[
            "--tls",
            "starttls",
            "--tls-ca",
            &ca,
            "--auth",
            "plain:user:pass",
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(counts(&server), [4, 4, 20, 0]);
}

#[test]
fn implicit_tls_carries_large_messages_and_auth_login() {
    let server = serve("implicit", true, b"");
    let output = run(
        &server,
        &[
            "--tls",
            "implicit",
            "--tls-insecure",
            "--auth",
            "login:user:pass",
            "--size",
            "300KiB",
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(counts(&server), [4, 4, 20, 0]);
}

#[test]
fn a_close_notify_beside_the_221_ends_the_connection() {
    // Exim and asyncio send both at once and then wait for the client. Each connection lasted a second longer, because
    // the end of the stream had been read before the session had said that it was done.
    let server = serve_until("notify", true, b"", true);
    let json = std::env::temp_dir().join(format!("loadgen-notify-{}.json", std::process::id()));
    let path = json.display().to_string();
    let more = ["--tls", "implicit", "--tls-insecure", "--json", &path];
    // Of an option that is given twice the last counts.
    let more = [&more[..], &["--messages", "120"]].concat();
    let output = run(&server, &more);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(counts(&server), [24, 0, 120, 0]);
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let _ = std::fs::remove_file(&json);
    // Two sessions with 11 such ends each before the last message: 11 s at least as it was.
    let measured = report["window"]["measured_ns"].as_u64().unwrap();
    assert!(measured < 11_000_000_000, "{}", text(&output));
}

#[test]
fn an_untrusted_certificate_sends_no_message() {
    let server = serve("untrusted", false, b"");
    let other = serve("other-ca", false, b"");
    let ca = other.ca.display().to_string();
    let output = run(&server, &["--tls", "starttls", "--tls-ca", &ca]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("tls-failure"), "{}", text(&output));
    assert_eq!(counts(&server), [0, 0, 0, 0]);
    let output = run(&server, &["--tls", "starttls"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("--tls-ca FILE"));
}

#[test]
fn words_in_the_clear_behind_starttls_are_a_violation() {
    let server = serve("injected", false, b"250 2.0.0 injected\r\n");
    let output = run(&server, &["--tls", "starttls", "--tls-insecure"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(
        text(&output).contains("protocol-violation"),
        "{}",
        text(&output)
    );
    assert_eq!(counts(&server), [0, 0, 0, 0]);
}

#[test]
fn a_refused_login_is_named() {
    let server = serve("login", true, b"");
    let output = run(
        &server,
        &[
            "--tls",
            "implicit",
            "--tls-insecure",
            "--auth",
            "plain:user:wrong",
        ],
    );
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("535"), "{}", text(&output));
    assert_eq!(counts(&server)[2], 0);
}
