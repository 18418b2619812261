//! TLS over the server, without sockets: rustls as the client in memory, handshakes and records cut anywhere.

#[allow(dead_code, reason = "each test crate uses a part of it")]
#[path = "support/server.rs"]
mod support;
#[path = "support/tls.rs"]
mod tls_support;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ringmx::buffer::Pool;
use ringmx::limits::FILES_LOOK_MS;
use ringmx::ringlog::writer::Survive;
use ringmx::server::listener::TlsMode;
use ringmx::smtp::parameter::Offered;
use ringmx::tls::credentials::{ClientCertificates, Credentials, Sources};
use ringmx::tls::{Failure, Tls};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use support::{Rig, options};
use tls_support::{Cut, Identity, TlsClient, client_config, security};

const GREETING: &str = "220 mx.example ESMTP ringmx ready\r\n";

fn rig(mode: TlsMode, identity: &Identity) -> Rig {
    let offered = match mode {
        TlsMode::Offered | TlsMode::Required => Offered::STARTTLS,
        TlsMode::Off | TlsMode::Implicit => Offered::NONE,
    };
    let mut rig = Rig::with_listener(options(), Survive::Power, 16 << 20, mode, offered);
    rig.syncs.at_once.set(true);
    rig.server.secure(security(&[identity]));
    rig
}

/// A client that has just come has its message stored within three turns: its connection and its group of commands
/// take the first two.
fn assert_serves(rig: &mut Rig) {
    let before = rig.server.shared.metrics.messages_accepted;
    let client = rig.connect();
    rig.send(
        &client,
        b"EHLO fresh.example\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\n\
          BDAT 3 LAST\r\nx\r\n",
    );
    rig.turn();
    let replies = client.read();
    assert!(
        replies.contains("250 2.0.0 Ok: stored as 0-"),
        "no 250 within three turns: {replies:?}"
    );
    assert_eq!(rig.server.shared.metrics.messages_accepted, before + 1);
    rig.send(&client, b"QUIT\r\n");
    assert!(client.pipe.borrow().dropped);
}

/// A client whose handshake behind STARTTLS is done.
fn starttls(rig: &mut Rig, identity: &Identity, cut: Cut) -> TlsClient {
    let plain = rig.connect();
    assert_eq!(plain.read(), GREETING);
    rig.send(&plain, b"STARTTLS\r\n");
    assert_eq!(plain.read(), "220 2.0.0 Ready to start TLS\r\n");
    let mut client = TlsClient::new(plain, identity, cut);
    client.shake_hands(rig);
    client
}

#[test]
fn a_message_is_taken_under_starttls_however_the_records_are_cut() {
    let identity = Identity::new(&["mx.example"]);
    for cut in [Cut::Whole, Cut::Octets, Cut::Random(1), Cut::Random(2)] {
        let mut rig = rig(TlsMode::Offered, &identity);
        let mut client = starttls(&mut rig, &identity, cut);
        client.say(&mut rig, "EHLO client.example\r\n");
        let ehlo = client.hear(&mut rig);
        assert!(ehlo.starts_with("250-mx.example greets you\r\n"), "{ehlo}");
        assert!(!ehlo.contains("STARTTLS"), "{ehlo}");
        client.say(
            &mut rig,
            "MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n",
        );
        assert_eq!(
            client.hear(&mut rig),
            "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n"
        );
        client.say(&mut rig, "Subject: x\r\n\r\ntext\r\n.\r\n");
        rig.turn();
        assert_eq!(client.hear(&mut rig), "250 2.0.0 Ok: stored as 0-1\r\n");
        client.say(&mut rig, "QUIT\r\n");
        assert_eq!(client.hear(&mut rig), "221 2.0.0 Bye\r\n");
        assert!(client.heard_goodbye(), "close_notify follows the 221");
        assert!(client.plain.pipe.borrow().dropped);
        let metrics = &rig.server.shared.metrics;
        assert_eq!(metrics.tls.completed, [0, 1]);
        assert_eq!(metrics.messages_accepted, 1);
        assert_eq!(metrics.tls.failed, [0; 11]);
    }
}

#[test]
fn implicit_tls_greets_behind_the_handshake() {
    let identity = Identity::new(&["mx.example"]);
    for cut in [Cut::Whole, Cut::Octets, Cut::Random(3)] {
        let mut rig = rig(TlsMode::Implicit, &identity);
        let plain = rig.connect();
        assert_eq!(plain.read(), "");
        let mut client = TlsClient::new(plain, &identity, cut);
        client.shake_hands(&mut rig);
        assert_eq!(client.hear(&mut rig), GREETING);
        client.say(&mut rig, "STARTTLS\r\n");
        assert_eq!(client.hear(&mut rig), "503 5.5.1 TLS is active already\r\n");
    }
}

/// The octets of a TLS 1.2 ClientHello without the extension that offers 1.3, with this version in it.
fn old_hello(version: u16) -> Vec<u8> {
    let [high, low] = [(version >> 8) as u8, version as u8];
    let mut body = vec![high, low];
    body.extend_from_slice(&[7; 32]);
    // No session, two suites with RSA and AES, no compression, no extensions.
    body.extend_from_slice(&[0, 0, 4, 0, 0x2f, 0, 0x35, 1, 0]);
    let mut message = vec![1, 0, 0, body.len() as u8];
    message.extend(body);
    let mut record = vec![22, 3, 1, 0, message.len() as u8];
    record.extend(message);
    record
}

/// What a server in `mode` does with a connection whose client sends `octets` where the handshake should be: its
/// answer, in the clear, whether the connection is closed, and why the handshake failed.
fn garbage(mode: TlsMode, octets: &[u8], cut: Cut) -> (Vec<u8>, bool, Vec<&'static str>) {
    let identity = Identity::new(&["mx.example"]);
    let mut rig = rig(mode, &identity);
    let plain = rig.connect();
    if mode != TlsMode::Implicit {
        rig.send(&plain, b"STARTTLS\r\n");
    }
    plain.read();
    for piece in cut.pieces(octets) {
        rig.send(&plain, &piece);
    }
    rig.turn();
    let answer = std::mem::take(&mut plain.pipe.borrow_mut().output);
    let ended = plain.pipe.borrow().output_ended || plain.pipe.borrow().dropped;
    // Whatever follows is read and thrown away, and nothing is answered to it.
    rig.send(
        &plain,
        b"EHLO client.example\r\nMAIL FROM:<a@example.org>\r\n",
    );
    assert_eq!(plain.pipe.borrow().output, b"");
    plain.pipe.borrow_mut().input_ended = true;
    rig.send(&plain, b"");
    assert!(plain.pipe.borrow().dropped || !ended);
    assert_eq!(
        rig.server.shared.pool.free_bytes(),
        rig.server.shared.pool.total_bytes()
    );
    if mode == TlsMode::Offered {
        assert_serves(&mut rig);
    }
    let failed = rig.server.shared.metrics.tls.failed;
    let reasons = Failure::NAMES
        .iter()
        .zip(failed)
        .flat_map(|(name, count)| vec![*name; count as usize])
        .collect();
    (answer, ended, reasons)
}

#[test]
fn what_is_no_handshake_gets_an_alert_or_nothing_and_never_a_reply() {
    let cases: [(&[u8], &str); 5] = [
        (
            b"EHLO client.example\r\nMAIL FROM:<a@example.org>\r\n",
            "not_tls",
        ),
        (b"GET / HTTP/1.1\r\nHost: mx.example\r\n\r\n", "not_tls"),
        (&[0; 64], "not_tls"),
        (&[0x17, 3, 3, 0, 5, 1, 2, 3, 4, 5], "misbehaved"),
        (&[0x16, 3, 1, 0xff, 0xff, 1, 2, 3, 4, 5], "not_tls"),
    ];
    for mode in [TlsMode::Implicit, TlsMode::Offered, TlsMode::Required] {
        for (octets, _) in cases {
            for cut in [Cut::Whole, Cut::Octets, Cut::Random(9)] {
                let (answer, ended, reasons) = garbage(mode, octets, cut);
                // An alert is a record of type 21; no reply begins so.
                assert!(
                    answer.is_empty() || answer[0] == 21,
                    "{}",
                    answer.escape_ascii()
                );
                assert!(ended, "{mode} {}", octets.escape_ascii());
                assert_eq!(reasons.len(), 1, "{mode} {reasons:?}");
            }
        }
    }
}

#[test]
fn clients_of_tls_1_0_and_1_1_are_refused() {
    // RFC 8996: neither may be negotiated.
    for version in [0x0300, 0x0301, 0x0302] {
        for cut in [Cut::Whole, Cut::Octets] {
            let (answer, ended, reasons) = garbage(TlsMode::Offered, &old_hello(version), cut);
            // A fatal alert: protocol_version or handshake_failure (RFC 5246 7.2.2).
            assert_eq!(answer[..1], [21], "{version:x}");
            assert_eq!(answer[5], 2, "{version:x}");
            assert!(
                matches!(answer[6..], [70] | [40]),
                "{version:x}: {answer:?}"
            );
            assert!(ended);
            assert_eq!(reasons, ["version"], "{version:x}");
        }
    }
}

#[test]
fn a_client_that_leaves_amid_its_handshake_leaves_nothing_behind() {
    let identity = Identity::new(&["mx.example"]);
    let hello = {
        let mut rig = rig(TlsMode::Implicit, &identity);
        let mut client = TlsClient::new(rig.connect(), &identity, Cut::Whole);
        let mut hello = Vec::new();
        client.tls.write_tls(&mut hello).expect("memory");
        hello
    };
    for sent in [0, 1, 5, hello.len() / 2, hello.len() - 1, hello.len()] {
        let mut rig = rig(TlsMode::Implicit, &identity);
        let plain = rig.connect();
        rig.send(&plain, &hello[..sent]);
        plain.pipe.borrow_mut().input_ended = true;
        rig.send(&plain, b"");
        rig.turn();
        assert!(plain.pipe.borrow().dropped, "{sent}");
        assert_eq!(rig.server.connections(), 0);
        assert_eq!(
            rig.server.shared.metrics.tls.failed[Failure::Closed as usize],
            1
        );
        assert_eq!(rig.server.handshakes_under_way(), 0);
    }
}

#[test]
fn a_handshake_that_does_not_end_is_cut_in_silence_when_its_time_is_over() {
    let identity = Identity::new(&["mx.example"]);
    for mode in [TlsMode::Implicit, TlsMode::Offered] {
        let mut rig = rig(mode, &identity);
        let plain = rig.connect();
        if mode == TlsMode::Offered {
            rig.send(&plain, b"STARTTLS\r\n");
        }
        plain.read();
        rig.pass(Duration::from_secs(29));
        rig.send(&plain, &[22, 3, 1]);
        assert!(!plain.pipe.borrow().dropped);
        rig.pass(Duration::from_secs(2));
        assert!(plain.pipe.borrow().dropped);
        assert_eq!(plain.pipe.borrow().output, b"");
        let failed = rig.server.shared.metrics.tls.failed;
        assert_eq!(failed[Failure::TimedOut as usize], 1);
        assert_eq!(rig.server.handshakes_under_way(), 0);
    }
}

#[test]
fn handshakes_beyond_the_limit_are_refused_and_those_under_way_go_on() {
    let identity = Identity::new(&["mx.example"]);
    let mut rig = rig(TlsMode::Offered, &identity);
    let mut security = security(&[&identity]);
    security.handshakes_max = 2;
    rig.server.secure(security);
    let under_way: Vec<_> = (0..2)
        .map(|_| {
            let plain = rig.connect();
            rig.send(&plain, b"STARTTLS\r\n");
            assert!(plain.read().ends_with("220 2.0.0 Ready to start TLS\r\n"));
            plain
        })
        .collect();
    let third = rig.connect();
    rig.send(&third, b"STARTTLS\r\nNOOP\r\n");
    // Octets behind STARTTLS end the session before anything else is looked at.
    assert!(
        third
            .read()
            .contains("554 5.5.1 Nothing may follow STARTTLS")
    );
    let fourth = rig.connect();
    fourth.read();
    rig.send(&fourth, b"STARTTLS\r\n");
    assert_eq!(
        fourth.read(),
        "454 4.7.0 TLS not available due to temporary reason\r\n"
    );
    rig.send(&fourth, b"NOOP\r\n");
    assert_eq!(fourth.read(), "250 2.0.0 Ok\r\n");
    assert_eq!(rig.server.shared.metrics.tls.refused, 1);
    for plain in under_way {
        let mut client = TlsClient::new(plain, &identity, Cut::Whole);
        client.shake_hands(&mut rig);
    }
    rig.send(&fourth, b"STARTTLS\r\n");
    assert_eq!(fourth.read(), "220 2.0.0 Ready to start TLS\r\n");
}

/// A flood of handshakes takes its share of a turn and no more: a session in the clear is answered in every one.
#[test]
fn a_flood_of_handshakes_does_not_keep_a_session_in_the_clear_waiting() {
    let identity = Identity::new(&["mx.example"]);
    let mut rig = rig(TlsMode::Offered, &identity);
    let mut clients: Vec<_> = (0..40)
        .map(|_| {
            let plain = rig.connect();
            rig.send(&plain, b"STARTTLS\r\n");
            plain.read();
            let mut client = TlsClient::new(plain, &identity, Cut::Whole);
            let mut hello = Vec::new();
            client.tls.write_tls(&mut hello).expect("memory");
            (client, hello)
        })
        .collect();
    let honest = rig.connect();
    honest.read();
    // All hellos and the command come in one turn.
    rig.server.begin_turn(rig.now, rig.now.0);
    for (client, hello) in &clients {
        client.plain.feed(hello);
        rig.server.ready(client.plain.token, true, false, false);
    }
    honest.feed(b"NOOP\r\n");
    rig.server.ready(honest.token, true, false, false);
    rig.server.end_turn();
    assert_eq!(honest.read(), "250 2.0.0 Ok\r\n");
    let answered = |clients: &[(TlsClient, Vec<u8>)]| {
        let waits =
            |client: &&(TlsClient, Vec<u8>)| !client.0.plain.pipe.borrow().output.is_empty();
        clients.iter().filter(waits).count()
    };
    assert_eq!(answered(&clients), 16, "one turn's share");
    assert_eq!(rig.server.handshakes_under_way(), 40);
    rig.turn();
    assert_eq!(answered(&clients), 32);
    rig.turn();
    assert_eq!(answered(&clients), 40);
    assert_serves(&mut rig);
    for (client, _) in &mut clients {
        client.shake_hands(&mut rig);
    }
    assert_eq!(rig.server.shared.metrics.tls.completed, [0, 40]);
}

const ENVELOPE: &str =
    "EHLO client.example\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\n";

/// Exim CVE-2026-45185: TLS ended amid a BDAT chunk, an octet in the clear followed, and memory was used that had been
/// given back. Here the end of TLS is the end of the session, whatever follows it.
#[test]
fn a_message_cut_by_the_end_of_tls_is_never_stored_nor_completed_in_the_clear() {
    let identity = Identity::new(&["mx.example"]);
    let cuts = [
        "DATA\r\nSubject: x\r\n\r\ntext\r\n",
        "BDAT 100 LAST\r\nabc",
        "BDAT 3\r\nabc",
    ];
    for begun in cuts {
        // TLS ends with its close_notify, with that and the rest in one piece, or not at all.
        for (says_goodbye, at_once) in [(true, false), (true, true), (false, false)] {
            let mut rig = rig(TlsMode::Offered, &identity);
            let mut client = starttls(&mut rig, &identity, Cut::Whole);
            client.say(&mut rig, ENVELOPE);
            client.say(&mut rig, begun);
            client.hear(&mut rig);
            // The rest of the message in the clear, in one event with the end of file or without it.
            let mut rest = [b"x".repeat(97), b"\r\n.\r\nNOOP\r\n".to_vec()].concat();
            if says_goodbye {
                client.tls.send_close_notify();
                if at_once {
                    let mut goodbye = Vec::new();
                    client.tls.write_tls(&mut goodbye).expect("memory");
                    rest.splice(0..0, goodbye);
                } else {
                    client.pump(&mut rig);
                }
                rig.send(&client.plain, &rest);
                let answer = std::mem::take(&mut client.plain.pipe.borrow_mut().output);
                client.take(&answer);
                assert_eq!(
                    client.hear(&mut rig),
                    "",
                    "an answer in the clear, or to it"
                );
            }
            client.plain.pipe.borrow_mut().input_ended = true;
            rig.send(&client.plain, b"");
            rig.turn();
            assert!(client.plain.pipe.borrow().dropped);
            let metrics = &rig.server.shared.metrics;
            assert_eq!(metrics.messages_accepted, 0);
            assert_eq!(metrics.tls.truncated, u64::from(!says_goodbye));
            let pool = &rig.server.shared.pool;
            assert_eq!(pool.free_bytes(), pool.total_bytes());
            let storage = rig.server.shared.storage.as_ref().expect("storage");
            assert_eq!(storage.log.messages(), 0);
            assert_serves(&mut rig);
        }
    }
}

#[test]
fn octets_in_the_clear_amid_a_session_end_it() {
    let identity = Identity::new(&["mx.example"]);
    for cut in [Cut::Whole, Cut::Octets] {
        let mut rig = rig(TlsMode::Offered, &identity);
        let mut client = starttls(&mut rig, &identity, cut);
        client.say(&mut rig, ENVELOPE);
        client.hear(&mut rig);
        for piece in cut.pieces(b"DATA\r\nx\r\n.\r\n") {
            rig.send(&client.plain, &piece);
        }
        let answer = std::mem::take(&mut client.plain.pipe.borrow_mut().output);
        client.take(&answer);
        assert!(matches!(
            client.failed,
            Some(rustls::Error::AlertReceived(_))
        ));
        assert_eq!(rig.server.shared.metrics.tls.broken, 1);
        assert!(client.plain.pipe.borrow().output_ended);
        assert_eq!(rig.server.shared.metrics.messages_accepted, 0);
        assert_serves(&mut rig);
    }
}

#[test]
fn a_record_that_was_changed_on_its_way_ends_the_session_and_stores_nothing() {
    let identity = Identity::new(&["mx.example"]);
    let mut rig = rig(TlsMode::Offered, &identity);
    let mut client = starttls(&mut rig, &identity, Cut::Whole);
    client.say(&mut rig, ENVELOPE);
    client.say(&mut rig, "DATA\r\n");
    client.hear(&mut rig);
    client
        .tls
        .writer()
        .write_all(b"text\r\n.\r\n")
        .expect("memory");
    let mut record = Vec::new();
    client.tls.write_tls(&mut record).expect("memory");
    record[7] ^= 1;
    rig.send(&client.plain, &record);
    rig.turn();
    let answer = std::mem::take(&mut client.plain.pipe.borrow_mut().output);
    client.take(&answer);
    let alert = rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac);
    assert_eq!(client.failed, Some(alert));
    assert_eq!(rig.server.shared.metrics.messages_accepted, 0);
    assert_eq!(rig.server.shared.metrics.tls.broken, 1);
    assert_serves(&mut rig);
}

#[test]
fn a_large_message_comes_back_octet_for_octet_however_its_records_are_cut() {
    let identity = Identity::new(&["mx.example"]);
    let body: String = (0..9_000)
        .map(|line| format!("line {line} of a message\r\n"))
        .collect();
    for cut in [Cut::Whole, Cut::Random(5)] {
        let mut rig = rig(TlsMode::Implicit, &identity);
        let mut client = TlsClient::new(rig.connect(), &identity, cut);
        client.shake_hands(&mut rig);
        client.say(&mut rig, ENVELOPE);
        client.say(&mut rig, "DATA\r\n");
        client.hear(&mut rig);
        for part in body.as_bytes().chunks(40_000) {
            client.say(&mut rig, std::str::from_utf8(part).expect("ASCII"));
        }
        client.say(&mut rig, ".\r\n");
        for _ in 0..4 {
            rig.turn();
        }
        assert_eq!(client.hear(&mut rig), "250 2.0.0 Ok: stored as 0-1\r\n");
        let storage = rig.server.shared.storage.as_ref().expect("storage");
        let stored = storage.log.backing().bytes();
        let found = stored
            .windows(body.len())
            .any(|window| window == body.as_bytes());
        assert!(found, "{cut:?}: the message is in the ring");
        assert_eq!(rig.server.shared.metrics.tls.truncated, 0);
    }
}

#[test]
fn a_client_that_reads_nothing_holds_a_bounded_answer_and_gets_it_whole_later() {
    let identity = Identity::new(&["mx.example"]);
    let mut rig = rig(TlsMode::Offered, &identity);
    let mut client = starttls(&mut rig, &identity, Cut::Whole);
    client.hear(&mut rig);
    client.plain.pipe.borrow_mut().window = 10;
    for _ in 0..1_000 {
        client.say(&mut rig, "NOOP\r\n");
    }
    let held = rig.server.shared.pool.total_bytes() - rig.server.shared.pool.free_bytes();
    assert!(held <= 3 * 65_536, "{held} bytes are held");
    let mut heard = String::new();
    for _ in 0..100 {
        rig.open_window(&client.plain, 700);
        heard += &client.hear(&mut rig);
    }
    assert_eq!(heard, "250 2.0.0 Ok\r\n".repeat(1_000));
    assert_eq!(client.failed, None);
}

/// A certificate with an RSA key, made by openssl where that is installed: rcgen makes none.
fn rsa_identity() -> Option<Identity> {
    let directory = std::env::temp_dir().join(format!("ringmx-tls-rsa-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let (key, certificate) = (directory.join("key.pem"), directory.join("cert.pem"));
    let made = std::process::Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args([
            "-subj",
            "/CN=mx.example",
            "-addext",
            "subjectAltName=DNS:mx.example",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    let identity = match made {
        Ok(output) if output.status.success() => {
            let chain = std::fs::read_to_string(&certificate).expect("a file");
            let key = std::fs::read_to_string(&key).expect("a file");
            let der = CertificateDer::from_pem_slice(chain.as_bytes()).expect("PEM");
            Some(Identity::of(&chain, &key, &der, "mx.example".to_owned()))
        }
        _ => {
            println!("skipped: openssl made no certificate");
            None
        }
    };
    let _ = std::fs::remove_dir_all(&directory);
    identity
}

/// A signature by an RSA key takes most of a millisecond, so that another thread makes it and the handshake comes back.
#[test]
fn a_handshake_with_an_rsa_key_is_made_by_the_helper() {
    let Some(identity) = rsa_identity() else {
        return;
    };
    for versions in [[&TLS12], [&TLS13]] {
        for cut in [Cut::Whole, Cut::Octets] {
            let mut rig = rig(TlsMode::Offered, &identity);
            let plain = rig.connect();
            rig.send(&plain, b"STARTTLS\r\n");
            plain.read();
            let config = Arc::new(client_config(&identity, &versions));
            let mut client = TlsClient::with_config(plain, config, "mx.example", cut);
            client.shake_hands(&mut rig);
            client.say(&mut rig, "NOOP\r\n");
            assert_eq!(client.hear(&mut rig), "250 2.0.0 Ok\r\n");
            assert_eq!(rig.server.shared.metrics.tls.offloaded, 1);
            let is_newer = usize::from(versions[0].version == rustls::ProtocolVersion::TLSv1_3);
            assert_eq!(rig.server.shared.metrics.tls.completed[is_newer], 1);
        }
    }
}

#[test]
fn a_client_that_leaves_while_the_helper_signs_leaves_nothing_behind() {
    let Some(identity) = rsa_identity() else {
        return;
    };
    let mut rig = rig(TlsMode::Implicit, &identity);
    let mut client = TlsClient::new(rig.connect(), &identity, Cut::Whole);
    let mut hello = Vec::new();
    client.tls.write_tls(&mut hello).expect("memory");
    // The job is taken; its answer is asked for in the next turn, when the client is gone.
    rig.send(&client.plain, &hello);
    assert_eq!(rig.server.shared.offload.under_way(), 1);
    rig.server.cut_all();
    assert_eq!(rig.server.connections(), 0);
    rig.turn();
    assert_eq!(rig.server.shared.offload.under_way(), 0);
    assert_eq!(rig.server.handshakes_under_way(), 0);
}

#[test]
fn tls_1_2_is_negotiated_where_the_client_has_nothing_newer_and_sessions_resume() {
    let identity = Identity::new(&["mx.example"]);
    let mut rig = rig(TlsMode::Implicit, &identity);
    for versions in [[&TLS12], [&TLS13]] {
        let mut config = client_config(&identity, &versions);
        config.resumption = Resumption::in_memory_sessions(8);
        let config = Arc::new(config);
        for round in 0..2 {
            let plain = rig.connect();
            let mut client =
                TlsClient::with_config(plain, Arc::clone(&config), "mx.example", Cut::Whole);
            client.shake_hands(&mut rig);
            assert_eq!(client.hear(&mut rig), GREETING);
            let resumed = client.tls.handshake_kind() == Some(HandshakeKind::Resumed);
            assert_eq!(resumed, round == 1, "{versions:?}");
            client.say(&mut rig, "QUIT\r\n");
            assert_eq!(client.hear(&mut rig), "221 2.0.0 Bye\r\n");
        }
    }
    let counters = &rig.server.shared.metrics.tls;
    assert_eq!((counters.completed, counters.resumed), ([2, 2], 2));
}

#[test]
fn the_certificate_is_chosen_by_the_name_the_client_asks_for() {
    let first = Identity::new(&["mx.example"]);
    let second = Identity::new(&["mail.example.net", "*.example.org"]);
    let mut rig = rig(TlsMode::Implicit, &first);
    rig.server.secure(security(&[&first, &second]));
    for (name, expected) in [
        ("mx.example", &first),
        ("MX.Example", &first),
        ("mail.example.net", &second),
        ("a.example.org", &second),
    ] {
        let config = Arc::new(client_config(expected, rustls::DEFAULT_VERSIONS));
        let mut client = TlsClient::with_config(rig.connect(), config, name, Cut::Whole);
        client.shake_hands(&mut rig);
        let shown = &client.tls.peer_certificates().expect("a certificate")[0];
        assert_eq!(shown, &expected.der, "{name}");
    }
    // For a name that nobody has, and for none, the first one is shown; this client does not trust it.
    for name in ["b.a.example.org", "192.0.2.1"] {
        let config = Arc::new(client_config(&first, rustls::DEFAULT_VERSIONS));
        let mut client = TlsClient::with_config(rig.connect(), config, name, Cut::Whole);
        client.pump(&mut rig);
        assert!(matches!(
            client.failed,
            Some(rustls::Error::InvalidCertificate(_))
        ));
        let shown = &client.tls.peer_certificates();
        assert!(shown.is_none_or(|chain| chain[0] == first.der));
    }
}

/// A client with a certificate of its own.
fn known_client(server: &Identity, own: &Identity) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server.der.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::from_pem_file(&own.key).expect("a key");
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![own.der.clone()], key)
        .expect("a pair");
    Arc::new(config)
}

#[test]
fn certificates_of_clients_are_asked_for_or_required_and_stored_with_the_mail() {
    use ringmx::tls::credentials::ClientCertificates::{Request, Require};
    let server = Identity::new(&["mx.example"]);
    let (trusted, stranger) = (Identity::new(&["a.example"]), Identity::new(&["b.example"]));
    for (asked, client, expected) in [
        (Request, Some(&trusted), Some("verified")),
        (Request, Some(&stranger), Some("unverified")),
        (Request, None, Some("none")),
        (Require, Some(&trusted), Some("verified")),
        (Require, Some(&stranger), None),
        (Require, None, None),
    ] {
        let mut rig = rig(TlsMode::Implicit, &server);
        let mut security = security(&[&server]);
        security.sources.client_ca = Some(trusted.certificate.clone());
        security.sources.client_certificates = asked;
        security.credentials = Arc::new(security.sources.load().expect("good files"));
        rig.server.secure(security);
        let config = match client {
            Some(own) => known_client(&server, own),
            None => Arc::new(client_config(&server, rustls::DEFAULT_VERSIONS)),
        };
        let mut client = TlsClient::with_config(rig.connect(), config, "mx.example", Cut::Whole);
        client.pump(&mut rig);
        let Some(expected) = expected else {
            assert!(matches!(
                client.failed,
                Some(rustls::Error::AlertReceived(_))
            ));
            let failed = rig.server.shared.metrics.tls.failed;
            assert_eq!(failed[Failure::ClientCertificate as usize], 1, "{failed:?}");
            continue;
        };
        client.say(&mut rig, ENVELOPE);
        client.say(&mut rig, "DATA\r\n");
        client.say(&mut rig, "x\r\n.\r\n");
        rig.turn();
        assert!(client.hear(&mut rig).ends_with("stored as 0-1\r\n"));
        let storage = rig.server.shared.storage.as_ref().expect("storage");
        let ring = storage.log.backing().bytes();
        let holds = |text: &str| ring.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(holds("TLSv1.3 TLS_AES_256_GCM_SHA384"));
        assert_eq!(holds(" verified"), expected == "verified", "{asked}");
        assert_eq!(holds(" unverified"), expected == "unverified", "{asked}");
    }
}

#[test]
fn certificates_are_read_again_without_an_end_of_sessions_and_a_bad_file_changes_nothing() {
    let old = Identity::new(&["mx.example"]);
    let new = Identity::new(&["mx.example"]);
    let mut rig = rig(TlsMode::Implicit, &old);
    let mut open = TlsClient::new(rig.connect(), &old, Cut::Whole);
    open.shake_hands(&mut rig);
    open.hear(&mut rig);
    // A client whose handshake is under way keeps what it began with.
    let mut amid = TlsClient::new(rig.connect(), &old, Cut::Whole);
    std::fs::copy(&new.certificate, &old.certificate).expect("a copy");
    rig.server.reload();
    rig.turn();
    let reloads = rig.server.shared.metrics.tls.reloads;
    assert_eq!(reloads, [0, 1], "the key belongs to the old certificate");
    let mut still = TlsClient::new(rig.connect(), &old, Cut::Whole);
    still.shake_hands(&mut rig);
    std::fs::copy(&new.key, &old.key).expect("a copy");
    rig.server.reload();
    rig.turn();
    assert_eq!(rig.server.shared.metrics.tls.reloads, [1, 1]);
    let mut fresh = TlsClient::new(rig.connect(), &new, Cut::Whole);
    fresh.shake_hands(&mut rig);
    amid.shake_hands(&mut rig);
    open.say(&mut rig, "NOOP\r\n");
    assert_eq!(open.hear(&mut rig), "250 2.0.0 Ok\r\n");
}

#[test]
fn certificates_that_changed_are_read_again_without_a_signal_and_a_bad_pair_is_told_once() {
    let old = Identity::new(&["mx.example"]);
    let new = Identity::new(&["mx.example"]);
    let mut rig = rig(TlsMode::Implicit, &old);
    let look = |rig: &mut Rig, times: u64| {
        for _ in 0..times {
            rig.pass(Duration::from_millis(FILES_LOOK_MS));
            rig.server.idle_tick();
            // Too early: nothing is asked for, and what was is answered.
            rig.turn();
            rig.server.idle_tick();
            rig.turn();
        }
        rig.server.shared.metrics.tls.reloads
    };
    assert_eq!(look(&mut rig, 5), [0, 0], "nothing has changed");
    let replace = |from: &PathBuf, to: &PathBuf| {
        let beside = to.with_extension("new");
        std::fs::copy(from, &beside).expect("a copy");
        std::fs::rename(&beside, to).expect("a name");
    };
    replace(&new.certificate, &old.certificate);
    assert_eq!(look(&mut rig, 5), [0, 1], "one without its key, told once");
    let mut still = TlsClient::new(rig.connect(), &old, Cut::Whole);
    still.shake_hands(&mut rig);
    replace(&new.key, &old.key);
    assert_eq!(look(&mut rig, 5), [1, 1]);
    let mut fresh = TlsClient::new(rig.connect(), &new, Cut::Whole);
    fresh.shake_hands(&mut rig);
    std::fs::remove_file(&old.key).expect("a file");
    assert_eq!(look(&mut rig, 5), [1, 2], "what is gone changes nothing");
    let mut later = TlsClient::new(rig.connect(), &new, Cut::Whole);
    later.shake_hands(&mut rig);
    // A signal has everything read, changed or not; and what it read counts as seen.
    replace(&new.key, &old.key);
    rig.server.reload();
    rig.turn();
    assert_eq!(look(&mut rig, 5), [2, 2]);
}

#[test]
fn what_can_not_be_loaded_is_named_with_its_reason() {
    let (one, other) = (Identity::new(&["a.example"]), Identity::new(&["b.example"]));
    let none = one.directory.join("none.pem");
    let empty = one.directory.join("empty.pem");
    std::fs::write(&empty, "nothing\n").expect("a file");
    let pair = |certificate: &PathBuf, key: &PathBuf| Sources {
        pairs: vec![(certificate.clone(), key.clone())],
        ..Sources::default()
    };
    for (sources, file, reason) in [
        (pair(&none, &one.key), &none, "no such file or directory"),
        (pair(&empty, &one.key), &empty, "no certificate in PEM"),
        (
            pair(&one.certificate, &empty),
            &empty,
            "no private key in PEM",
        ),
        (
            pair(&one.certificate, &other.key),
            &other.key,
            "the key does not belong to",
        ),
    ] {
        let error = sources.load().expect_err("a bad file");
        assert_eq!(&error.file, file);
        assert!(error.reason.starts_with(reason), "{error}");
    }
}

/// A fault of rustls that one of these inputs found: after an error it may hold messages of an input that it has to be
/// shown again, and panics when it is not. Here octets of each flight are changed, one at a time.
#[test]
fn a_handshake_whose_octets_are_changed_fails_and_panics_nowhere() {
    let server = Identity::new(&["mx.example"]);
    let own = Identity::new(&["a.example"]);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut failures = 0;
    for round in 0..150 {
        let mut rig = rig(TlsMode::Implicit, &server);
        let mut security = security(&[&server]);
        security.sources.client_ca = Some(own.certificate.clone());
        security.sources.client_certificates = ClientCertificates::Require;
        security.credentials = Arc::new(security.sources.load().expect("good files"));
        rig.server.secure(security);
        let config = known_client(&server, &own);
        let cut = [Cut::Whole, Cut::Random(round + 1)][(round % 2) as usize];
        let mut client = TlsClient::with_config(rig.connect(), config, "mx.example", cut);
        let changed_flight = round % 3;
        for flight in 0..4 {
            let mut sent = Vec::new();
            while client.tls.wants_write() {
                client.tls.write_tls(&mut sent).expect("memory");
            }
            if flight == changed_flight && !sent.is_empty() {
                for _ in 0..1 + round % 4 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let at = (random >> 8) as usize % sent.len();
                    sent[at] ^= (random as u8) | 1;
                }
            }
            for piece in cut.pieces(&sent) {
                rig.send(&client.plain, &piece);
            }
            rig.turn();
            let answer = std::mem::take(&mut client.plain.pipe.borrow_mut().output);
            client.take(&answer);
        }
        client.plain.pipe.borrow_mut().input_ended = true;
        rig.send(&client.plain, b"");
        rig.pass(Duration::from_secs(60));
        let metrics = &rig.server.shared.metrics;
        assert_eq!(metrics.session_panics, 0, "round {round}");
        assert_eq!(rig.server.handshakes_under_way(), 0, "round {round}");
        assert_eq!(rig.server.connections(), 0, "round {round}");
        let pool = &rig.server.shared.pool;
        assert_eq!(pool.free_bytes(), pool.total_bytes(), "round {round}");
        failures += metrics.tls.failed.iter().sum::<u64>() + metrics.tls.broken;
    }
    assert!(failures > 75, "only {failures} rounds failed");
}

/// A handshake with rustls as the client; both ends, the server's open.
fn handshake(
    credentials: &Arc<Credentials>,
    config: &Arc<ClientConfig>,
) -> (Tls, ClientConnection) {
    let name = ServerName::try_from("mx.example").expect("a name");
    let mut client = ClientConnection::new(Arc::clone(config), name).expect("settings");
    let mut server = Tls::announced(credentials);
    let mut pool = Pool::new(1 << 20, 0);
    let mut buf = vec![0; 1 << 16];
    server.begin().expect("settings");
    while let Some(handshake) = server.handshake_mut() {
        let mut sent = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut sent).expect("memory");
        }
        handshake.add(&sent);
        let step = handshake.advance();
        server.settle(step, &mut pool).expect("a good handshake");
        let (len, _) = server.fill(b"", false, &mut buf, 0);
        let mut answer = &buf[..len];
        while !answer.is_empty() {
            client.read_tls(&mut answer).expect("memory");
            client.process_new_packets().expect("a good answer");
        }
    }
    assert!(!client.is_handshaking() && server.facts().is_some());
    (server, client)
}

#[test]
fn both_ends_bind_authentication_to_the_same_octets_under_tls_1_3_and_to_none_under_1_2() {
    let identity = Identity::new(&["mx.example"]);
    let credentials = security(&[&identity]).credentials;
    let certificate = ring::digest::digest(&ring::digest::SHA256, &identity.der);
    let mut seen = Vec::new();
    for suite in rustls::crypto::ring::ALL_CIPHER_SUITES {
        let provider = rustls::crypto::CryptoProvider {
            cipher_suites: vec![*suite],
            ..rustls::crypto::ring::default_provider()
        };
        let version = suite.version();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(identity.der.clone()).expect("a certificate");
        let built = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .map(|builder| builder.with_root_certificates(roots).with_no_client_auth());
        let config = Arc::new(built.expect("a suite and its version"));
        let needs_rsa = format!("{suite:?}").contains("_RSA_");
        if needs_rsa {
            continue;
        }
        // The second resumes the first: no certificate is sent, and it is bound all the same.
        for resumed in [false, true] {
            let (mut server, mut client) = handshake(&credentials, &config);
            assert_eq!(server.facts().map(|facts| facts.resumed), Some(resumed));
            if version.version == rustls::ProtocolVersion::TLSv1_2 {
                assert_eq!(server.bindings(), None);
            } else {
                let bindings = server.bindings().expect("TLS 1.3");
                let theirs = client
                    .export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b""))
                    .expect("an exporter");
                assert_eq!(bindings.exporter, theirs, "{suite:?}");
                assert!(!seen.contains(&theirs), "another channel");
                seen.push(theirs);
                assert_eq!(bindings.end_point.as_deref(), Some(certificate.as_ref()));
            }
            // Tickets come behind the handshake.
            let mut buf = vec![0; 1 << 16];
            let (len, _) = server.fill(b"x", false, &mut buf, 0);
            client.read_tls(&mut &buf[..len]).expect("memory");
            client.process_new_packets().expect("a ticket");
        }
    }
    assert_eq!(seen.len(), 6, "three suites, twice each");
}
