//! HTTP: the same requests however the octets are cut, and answers that are well-formed.
//!
//! The first eight bytes seed the cuts, the rest is what the client sends.

use super::data::Cuts;
use ringmx::http::{self, HEAD_BYTES_MAX, RESPONSE_BYTES_MAX, Request, Session, Status, Step};
use ringmx::metrics::Metrics;
use ringmx::smtp::reply;
use ringmx::smtp::sink::Verb;

/// Parts of requests.
pub const DICTIONARY: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD /healthz?x=1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a:1/metrics HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /status HTTP/1.0\r\n\r\n",
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"/readyz",
    b"/metrics",
    b"*",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b" HTTP/2.0\r\n",
    b" HTTP/1.2\r\n",
    b" HTTP/11\r\n",
    b"Host: a\r\n",
    b"hOST:b\r\n",
    b"Host: [::1]:1\r\n",
    b"Host: x.localhost.\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive, x\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"X: y\r\n",
    b" folded\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\n\n",
    b"\r",
    b"\0",
    b"\t",
    b" ",
    b":",
    b"?",
    b"#",
    b"%00",
    b"\xff",
];

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let Some((seed, input)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let seed = u64::from_le_bytes(*seed) | 1;
    let is_local = seed & 2 != 0;
    let whole = requests(input, is_local, Cuts::Whole);
    for cuts in [
        Cuts::Bytes,
        Cuts::Random(seed),
        Cuts::Once(seed as usize % (input.len() + 1)),
    ] {
        assert_eq!(requests(input, is_local, cuts), whole, "{cuts:?}");
    }
    let (requests, closed) = whole;
    let last = requests.len().saturating_sub(1);
    for (at, request) in requests.iter().enumerate() {
        assert!(request.keep_alive || (at == last && closed));
        // Answers cost more than requests and depend on the few variants of a request only.
        if at == 0 && seed % 32 == 1 {
            check_answer(request);
        }
    }
}

/// The requests of `input`, and whether the session closed.
fn requests(input: &[u8], is_local: bool, mut cuts: Cuts) -> (Vec<Request>, bool) {
    let mut session = match is_local {
        true => Session::on_loopback(),
        false => Session::new(),
    };
    let mut found = Vec::new();
    let mut rest = input;
    loop {
        match session.step() {
            Step::Answer(request) => found.push(request),
            Step::Close => {
                assert_eq!(session.room(), 0);
                return (found, true);
            }
            Step::Read if rest.is_empty() => return (found, false),
            Step::Read => {
                let room = session.room();
                assert!((1..=HEAD_BYTES_MAX).contains(&room));
                let len = cuts.next_len(rest.len());
                let taken = session.receive(&rest[..len]);
                assert_eq!(taken, len.min(room));
                rest = &rest[taken..];
            }
        }
        assert!(found.len() <= input.len());
    }
}

fn check_answer(request: &Request) {
    let names: Vec<(&str, u16)> = reply::ROWS.iter().map(|row| (row.name, row.code)).collect();
    let metrics = Metrics::new(Verb::COUNT, reply::ROWS.len());
    let mut out = Vec::new();
    http::respond(request, &status(&metrics, &names), &mut out);
    assert!(out.len() <= RESPONSE_BYTES_MAX);
    let text = core::str::from_utf8(&out).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").expect("the end of the head");
    assert!(head.starts_with("HTTP/1.1 "));
    let len = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .expect("a length");
    if request.head_only {
        assert_eq!(body, "");
    } else {
        assert_eq!(len.parse(), Ok(body.len()));
    }
    let kept = head.contains("\r\nConnection: keep-alive");
    assert_eq!(kept, request.keep_alive);
}

fn status<'a>(metrics: &'a Metrics, replies: &'a [(&'a str, u16)]) -> Status<'a> {
    Status {
        clients: None,
        server_name: "mx.example.org",
        started_ns: 1,
        now_ns: 2,
        listen: &[],
        unhealthy: None,
        unready: None,
        survive: "power",
        full: "auto",
        keep_for_s: 0,
        sessions: &[],
        sessions_max: 1,
        pool: http::Pool::default(),
        rings: &[],
        consumers: &[],
        newest: &[],
        log_lines_dropped: 0,
        metrics,
        commands: Verb::NAMES.as_slice(),
        replies,
    }
}
