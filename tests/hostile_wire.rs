//! Clients that mean harm, over real sockets against the real program: resets, floods from one address, early talkers,
//! garbage. After each of them a client from another address delivers, and nothing is left of them.

#[expect(dead_code, reason = "this test needs a part of it")]
mod process;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use process::{Client, PATIENCE, Server, TestDir, stored, wait_until};
use socket2::{Domain, Socket, Type};

const CONTENT: &[u8] = b"Subject: fresh\r\n\r\nStill here?\r\n";

/// A connection from this address of the loopback network.
fn connect_from(host: u8, server: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let address = SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0));
    socket.bind(&address.into()).unwrap();
    socket.connect(&server.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What the server says until it closes. A reset ends it as well: the server may have closed with octets unread.
fn all_of(mut stream: TcpStream) -> String {
    let mut octets = Vec::new();
    let mut buf = [0; 1_024];
    while let Ok(len @ 1..) = stream.read(&mut buf) {
        octets.extend_from_slice(&buf[..len]);
    }
    String::from_utf8(octets).unwrap()
}

/// The value of a metric without labels, or of one with these.
fn metric(server: &Server, name: &str) -> u64 {
    let page = server.get("/metrics");
    let found = page
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("{name}")).parse().unwrap()
}

/// Everybody has gone, and took everything along.
fn await_rest(server: &Server) {
    wait_until("sessions are gone", || {
        let page = server.get("/metrics");
        let mut phases = page
            .lines()
            .filter(|line| line.starts_with("ringmx_sessions{"));
        phases.all(|line| line.ends_with(" 0"))
    });
    assert_eq!(metric(server, "ringmx_pool_used_bytes"), 0);
    assert_eq!(metric(server, "ringmx_session_panics_total"), 0);
}

#[test]
fn connections_that_are_reset_in_every_state_leave_nothing_behind() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--http", "127.0.0.1:0"]);
    let states: [&[u8]; 6] = [
        b"",
        b"EHLO h.example\r\nMAIL FR",
        b"EHLO h.example\r\nMAIL FROM:<>\r\nRCPT TO:<v@v.example>\r\n",
        b"EHLO h.example\r\nMAIL FROM:<>\r\nRCPT TO:<v@v.example>\r\nDATA\r\nSubject: x\r\n",
        b"EHLO h.example\r\nMAIL FROM:<>\r\nRCPT TO:<v@v.example>\r\nBDAT 1000\r\nx",
        b"EHLO h.example\r\nBDAT 99999999999 LAST\r\nx",
    ];
    for round in 0..300 {
        let mut stream = connect_from(1, server.address);
        // The server may have nothing to do with it any more.
        let _ = stream.write_all(states[round % states.len()]);
        if round % 2 == 0 {
            let _ = stream.read(&mut [0; 64]);
        }
        // RST instead of FIN.
        let socket = Socket::from(stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        drop(socket);
    }
    let mut client = Client::open(server.address).unwrap();
    client.deliver(CONTENT).unwrap();
    drop(client);
    await_rest(&server);
    server.stop();
    let messages = stored(&dir);
    let messages: Vec<&Vec<u8>> = messages.values().collect();
    assert_eq!(messages, [CONTENT]);
}

#[test]
fn a_flood_from_one_address_is_refused_and_another_address_is_served() {
    let dir = TestDir::new();
    let options = [
        "--http",
        "127.0.0.1:0",
        "--limit-sinks",
        "--unlimited-from",
        "none",
        "--client-sessions",
        "5,5",
        "--network-factor",
        "100",
    ];
    let server = Server::start(&dir, &options);
    let open: Vec<TcpStream> = (0..5)
        .map(|_| {
            let mut stream = connect_from(2, server.address);
            let mut greeting = [0; 4];
            stream.read_exact(&mut greeting).unwrap();
            assert_eq!(&greeting, b"220 ");
            stream
        })
        .collect();
    let reply = "421 4.7.0 Too many sessions from your network; try again later\r\n";
    for _ in 0..200 {
        assert_eq!(all_of(connect_from(2, server.address)), reply);
    }
    let mut client = Client::open(server.address).unwrap();
    client.deliver(CONTENT).unwrap();
    drop(client);
    let refused = "ringmx_client_refusals_total{limit=\"sessions\",scope=\"client\"}";
    assert_eq!(metric(&server, refused), 200);
    drop(open);
    await_rest(&server);
    let mut again = connect_from(2, server.address);
    let mut greeting = [0; 4];
    again.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220 ");
    drop(again);
    let (_, errors) = server.stop();
    assert!(
        errors.contains(" class=refused client=127.0.0.2:"),
        "{errors}"
    );
    assert!(
        errors.contains(" code=421 reason=client_sessions\n"),
        "{errors}"
    );
    assert_eq!(stored(&dir).len(), 1);
}

#[test]
fn an_early_talker_is_refused_and_a_patient_client_delivers() {
    let dir = TestDir::new();
    let with_delay = |dir: &TestDir, delay: &str| {
        let limited = ["--limit-sinks", "--unlimited-from", "none"];
        Server::start(dir, &[&limited[..], &["--greeting-delay", delay]].concat())
    };
    // Long enough that no busy machine makes the hasty one look patient.
    let server = with_delay(&dir, "60s");
    let mut hasty = connect_from(3, server.address);
    let group =
        b"EHLO h.example\r\nMAIL FROM:<>\r\nRCPT TO:<v@v.example>\r\nDATA\r\nforged\r\n.\r\n";
    hasty.write_all(group).unwrap();
    assert_eq!(
        all_of(hasty),
        "554 5.5.1 You talked before the greeting\r\n"
    );
    server.stop();
    assert!(stored(&dir).is_empty());
    let dir = TestDir::new();
    let server = with_delay(&dir, "1s");
    let mut client = Client::open(server.address).unwrap();
    client.deliver(CONTENT).unwrap();
    drop(client);
    server.stop();
    assert_eq!(stored(&dir).len(), 1);
}

#[test]
fn garbage_gets_replies_and_forges_no_line_of_the_log() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--http", "127.0.0.1:0", "--log-level", "debug"]);
    for seed in 1..=50_u64 {
        let mut stream = connect_from(1, server.address);
        let mut state = seed;
        let mut octets: Vec<u8> = (0..4_000)
            .map(|_| {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        octets.extend_from_slice(b"\r\nEHLO x\rtime=0 level=error class=forged\r\nQUIT\r\n");
        stream.write_all(&octets).unwrap();
        let replies = all_of(stream);
        assert!(
            replies.starts_with("220 ") && replies.is_ascii(),
            "{replies:?}"
        );
        for line in replies.lines() {
            assert!(
                !line.contains("forged") && !line.contains(|c: char| c.is_control()),
                "{line:?}"
            );
        }
    }
    let mut client = Client::open(server.address).unwrap();
    client.deliver(CONTENT).unwrap();
    drop(client);
    await_rest(&server);
    let (_, errors) = server.stop();
    assert!(errors.contains(" class=refused "), "{errors}");
    let lines = errors
        .lines()
        .filter(|line| !line.starts_with("Creating a ring "));
    for line in lines {
        assert!(line.starts_with("time=") && line.is_ascii(), "{line:?}");
        assert!(
            !line.contains("forged") && !line.contains(|c: char| c.is_control()),
            "{line:?}"
        );
    }
    assert_eq!(stored(&dir).len(), 1);
}
