//! Connections that come through a proxy: who is believed, what the client's address becomes, what is counted.

#[path = "support/server.rs"]
#[allow(dead_code, reason = "other tests use what this one does not")]
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use ringmx::metrics::CloseCause;
use ringmx::ringlog::writer::Survive;
use ringmx::server::listener::ProxyMode;
use support::{Client, Rig, options};

const GREETING: &str = "220 mx.example ESMTP ringmx ready\r\n";
const V1: &[u8] = b"PROXY TCP4 192.0.2.77 198.51.100.7 49153 25\r\n";
const V2_LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
const MESSAGE: &[u8] =
    b"EHLO c.example\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\nSubject: t\r\n\r\nText.\r\n.\r\n";

fn rig(mode: ProxyMode) -> Rig {
    let mut rig = Rig::new(options(), Survive::Power);
    rig.server.shared.listeners[0].proxy = mode;
    rig.server.shared.proxy_from = vec!["10.0.0.0/8".parse().unwrap()];
    rig.syncs.at_once.set(true);
    rig
}

fn proxy() -> SocketAddr {
    ([10, 0, 0, 9], 4_242).into()
}

/// Connections accepted, and closed by cause where any were.
fn counted(rig: &Rig) -> (u64, Vec<(&'static str, u64)>) {
    let metrics = &rig.server.shared.metrics;
    let closed = CloseCause::NAMES.iter().zip(metrics.connections_closed);
    (
        metrics.connections_accepted,
        closed
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (*name, count))
            .collect(),
    )
}

fn is_gone(rig: &Rig, client: &Client) -> bool {
    client.pipe.borrow().dropped && rig.server.connections() == 0
}

/// The Received field of the only message in the ring.
fn trace(rig: &Rig) -> String {
    let storage = rig.server.shared.storage.as_ref().unwrap();
    let bytes = storage.log.backing().bytes();
    let at = bytes
        .windows(14)
        .position(|window| window == b"Received: from")
        .expect("a message is stored");
    let end = at + bytes[at..].iter().position(|byte| *byte == b'\n').unwrap();
    String::from_utf8(bytes[at..end].to_vec()).unwrap()
}

#[test]
fn the_header_names_the_client_wherever_it_is_cut() {
    let input = [V1, MESSAGE].concat();
    let mut cuts: Vec<Vec<usize>> = (0..V1.len() + 3).map(|at| vec![at]).collect();
    cuts.push((1..input.len()).collect());
    cuts.push(vec![]);
    for cut in cuts {
        let mut rig = rig(ProxyMode::Required);
        let mut parts = Vec::new();
        let mut start = 0;
        for at in cut.iter().copied().chain([input.len()]) {
            parts.push(&input[start..at]);
            start = at;
        }
        let client = rig.connect_from(proxy(), b"");
        assert_eq!(client.read(), "", "nothing is said before the header");
        for part in &parts {
            rig.send(&client, part);
        }
        rig.turn();
        rig.turn();
        let replies = client.read();
        assert!(replies.starts_with(GREETING), "{cut:?}: {replies:?}");
        assert!(
            replies.ends_with("250 2.0.0 Ok: stored as 0-1\r\n"),
            "{cut:?}: {replies:?}"
        );
        assert_eq!(
            trace(&rig),
            "Received: from c.example ([192.0.2.77]) by mx.example with ESMTP\r",
            "{cut:?}"
        );
        assert_eq!(counted(&rig), (1, vec![]));
    }
}

#[test]
fn a_header_that_was_there_before_the_connection_was_accepted_is_seen_with_its_first_event() {
    let mut rig = rig(ProxyMode::Detect);
    let client = rig.connect_from(proxy(), V1);
    assert_eq!(client.read(), "");
    rig.send(&client, b"");
    assert_eq!(client.read(), GREETING);
}

#[test]
fn only_trusted_networks_may_send_a_header() {
    let stranger: SocketAddr = ([192, 0, 2, 1], 1).into();
    let mut required = rig(ProxyMode::Required);
    let client = required.connect_from(stranger, b"");
    assert_eq!(
        client.read(),
        "554 5.7.1 Connections to this port come through a proxy\r\n"
    );
    required.send(&client, V1);
    client.pipe.borrow_mut().input_ended = true;
    required.send(&client, b"");
    assert!(is_gone(&required, &client));
    assert_eq!(counted(&required), (1, vec![("refused", 1)]));

    let mut detecting = rig(ProxyMode::Detect);
    let client = detecting.connect_from(stranger, b"");
    assert_eq!(client.read(), GREETING, "greeted at once");
    detecting.send(&client, V1);
    assert_eq!(client.read(), "500 5.5.1 Command not recognized\r\n");

    let mut off = rig(ProxyMode::Off);
    let client = off.connect_from(proxy(), b"");
    assert_eq!(client.read(), GREETING);
    off.send(&client, V1);
    assert_eq!(client.read(), "500 5.5.1 Command not recognized\r\n");
}

#[test]
fn a_connection_without_a_good_header_is_closed_without_a_word() {
    let too_long = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xFF\xFF"[..], &[0; 8_192]].concat();
    for input in [
        &b"EHLO c.example\r\n"[..],
        b"PROXY TCP4 192.0.2.77 198.51.100.7 49153\r\nEHLO c.example\r\n",
        &too_long,
    ] {
        let mut rig = rig(ProxyMode::Required);
        let client = rig.connect_from(proxy(), b"");
        rig.send(&client, input);
        assert_eq!(client.read(), "");
        assert!(is_gone(&rig, &client));
        assert_eq!(rig.server.shared.metrics.proxy_headers_refused, 1);
        assert_eq!(counted(&rig), (0, vec![]));
    }
}

#[test]
fn a_header_is_waited_for_and_no_longer() {
    let mut rig = rig(ProxyMode::Required);
    let client = rig.connect_from(proxy(), b"");
    rig.send(&client, &V1[..V1.len() - 1]);
    rig.pass(Duration::from_millis(4_900));
    assert_eq!(client.read(), "");
    assert!(!client.pipe.borrow().dropped);
    rig.pass(Duration::from_millis(200));
    assert_eq!(client.read(), "");
    assert!(is_gone(&rig, &client));
    assert_eq!(rig.server.shared.metrics.proxy_headers_refused, 1);
    assert_eq!(counted(&rig), (0, vec![]));
}

#[test]
fn without_a_header_detection_greets_after_half_a_second() {
    let mut rig = rig(ProxyMode::Detect);
    let client = rig.connect_from(proxy(), b"");
    rig.pass(Duration::from_millis(400));
    assert_eq!(client.read(), "");
    rig.pass(Duration::from_millis(200));
    assert_eq!(client.read(), GREETING);
    rig.send(&client, V1);
    assert_eq!(
        client.read(),
        "500 5.5.1 Command not recognized\r\n",
        "it is too late for a header"
    );
    let mut early = self::rig(ProxyMode::Detect);
    let client = early.connect_from(proxy(), b"");
    early.send(&client, b"QUIT\r\n");
    assert_eq!(client.read(), format!("{GREETING}221 2.0.0 Bye\r\n"));
}

#[test]
fn health_checks_are_neither_counted_nor_logged() {
    for (input, replies) in [
        (&b""[..], ""),
        (&V1[..10], ""),
        (V2_LOCAL, GREETING),
        (
            &[V2_LOCAL, b"QUIT\r\n"].concat(),
            &format!("{GREETING}221 2.0.0 Bye\r\n"),
        ),
    ] {
        let mut rig = rig(ProxyMode::Required);
        let client = rig.connect_from(proxy(), b"");
        client.pipe.borrow_mut().input_ended = true;
        rig.send(&client, input);
        rig.turn();
        assert_eq!(client.read(), replies, "{}", input.escape_ascii());
        assert!(is_gone(&rig, &client), "{}", input.escape_ascii());
        assert_eq!(counted(&rig), (0, vec![]));
        assert_eq!(rig.server.shared.metrics.proxy_headers_refused, 0);
    }
}

#[test]
fn a_stop_does_not_wait_for_a_header() {
    let mut rig = rig(ProxyMode::Required);
    let client = rig.connect_from(proxy(), b"");
    rig.server.begin_drain();
    rig.turn();
    assert_eq!(client.read(), "");
    assert!(is_gone(&rig, &client));
    assert!(rig.server.is_drained());
}

#[test]
fn a_header_that_names_nobody_leaves_the_proxys_address() {
    let mut rig = rig(ProxyMode::Required);
    let client = rig.connect_from(proxy(), b"");
    rig.send(&client, b"PROXY UNKNOWN\r\n");
    rig.send(&client, MESSAGE);
    rig.turn();
    rig.turn();
    assert!(client.read().ends_with("stored as 0-1\r\n"));
    assert_eq!(
        trace(&rig),
        "Received: from c.example ([10.0.0.9]) by mx.example with ESMTP\r"
    );
    assert_eq!(counted(&rig), (1, vec![]));
}
