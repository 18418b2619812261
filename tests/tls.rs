//! TLS over the server, without sockets: rustls as the client in memory, handshakes and records cut anywhere.

#[allow(dead_code, reason = "each test crate uses a part of it")]
#[path = "support/server.rs"]
mod support;
#[path = "support/tls.rs"]
mod tls_support;

use ringmx::ringlog::writer::Survive;
use ringmx::server::listener::TlsMode;
use ringmx::smtp::parameter::Offered;
use support::{Rig, options};
use tls_support::{Cut, Identity, TlsClient, security};

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
