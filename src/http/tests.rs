//! Requests are fed whole, octet by octet and at random splits; responses are compared octet by octet.

use super::*;
use crate::metrics::{CloseCause, Metrics, Phase};

const NOW_NS: u64 = 1_795_395_723_456_789_012;

fn get(route: Route) -> Request {
    Request {
        route,
        head_only: false,
        keep_alive: true,
    }
}

/// Feeds `input` in pieces of the lengths that `piece` gives; collects requests until the session closes or
/// everything is read. The second value is whether it closed.
fn requests(input: &[u8], mut piece: impl FnMut() -> usize) -> (Vec<Request>, bool) {
    let mut session = Session::new();
    let mut found = Vec::new();
    let mut rest = input;
    loop {
        match session.step() {
            Step::Answer(request) => found.push(request),
            Step::Close => return (found, true),
            Step::Read if rest.is_empty() => return (found, false),
            Step::Read => {
                let len = piece().clamp(1, rest.len());
                let taken = session.receive(&rest[..len]);
                assert!(taken > 0, "a session that wants to read takes something");
                rest = &rest[taken..];
            }
        }
    }
}

/// What a visitor of a loopback address who names `host` is routed to.
fn routed_on_loopback(path: &str, host: &str) -> Route {
    let mut session = Session::on_loopback();
    let input = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    assert_eq!(session.receive(input.as_bytes()), input.len());
    match session.step() {
        Step::Answer(request) => {
            assert_eq!(request, get(request.route), "{path} of {host}");
            request.route
        }
        step => panic!("{step:?} for {path} of {host}"),
    }
}

/// xorshift64*, for splits.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
    }
}

fn assert_requests(input: &[u8], expected: &[Request], closed: bool) {
    let expected = (expected.to_vec(), closed);
    let shown = String::from_utf8_lossy(input);
    assert_eq!(requests(input, || usize::MAX), expected, "whole: {shown}");
    assert_eq!(requests(input, || 1), expected, "octet by octet: {shown}");
    let mut next = random(1);
    for _ in 0..20 {
        let split = requests(input, || (next() % 40) as usize);
        assert_eq!(split, expected, "at random splits: {shown}");
    }
}

#[test]
fn requests_on_one_connection_are_answered_in_order() {
    assert_requests(
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nHEAD /healthz?x=1 HTTP/1.1\r\nHost: a\r\n\r\n\r\n\
          GET http://a:1/metrics HTTP/1.1\r\nhOST:a\r\nConnection: foo, Close\r\n\r\nGET / HTTP/1.1",
        &[
            get(Route::Home),
            Request {
                route: Route::Healthz,
                head_only: true,
                keep_alive: true,
            },
            Request {
                route: Route::Metrics,
                head_only: false,
                keep_alive: false,
            },
        ],
        true,
    );
}

#[test]
fn http_1_0_closes_unless_it_asks_not_to() {
    let closing = Request {
        keep_alive: false,
        ..get(Route::Readyz)
    };
    assert_requests(b"GET /readyz HTTP/1.0\r\n\r\n", &[closing], true);
    assert_requests(
        b"GET /readyz HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
        &[get(Route::Readyz)],
        false,
    );
}

#[test]
fn what_is_not_a_plain_request_is_refused_and_closes() {
    let cases: [(&[u8], Route); 14] = [
        (
            b"POST / HTTP/1.1\r\nHost: a\r\n\r\n",
            Route::MethodNotAllowed,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            Route::MethodNotAllowed,
        ),
        (
            b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
            Route::MethodNotAllowed,
        ),
        (b"GET / HTTP/1.1\r\n\r\n", Route::BadRequest),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            Route::BadRequest,
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nGET / HT",
            Route::BadRequest,
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Route::BadRequest,
        ),
        (b"GET / HTTP/2.0\r\n\r\n", Route::VersionNotSupported),
        (b"GET / HTTP/1.2\r\n\r\n", Route::VersionNotSupported),
        (b"GET / HTTP/9x\r\n\r\n", Route::VersionNotSupported),
        (b"GET / FTP/1.0\r\n\r\n", Route::BadRequest),
        (b"GET / x HTTP/2.0\r\n\r\n", Route::BadRequest),
        (b"EHLO me\r\n", Route::BadRequest),
        (b"\x16\x03\x01\x02\x00\x01", Route::BadRequest),
    ];
    for (input, route) in cases {
        assert_requests(input, &[Request::refused(route)], true);
    }
}

#[test]
fn mail_is_shown_on_loopback_only_under_a_name_of_this_machine() {
    let own = [
        "127.0.0.1",
        "127.0.0.1:8025",
        "192.0.2.1:80",
        "[::1]",
        "[::1]:8025",
        "localhost",
        "LocalHost:8025",
        "localhost.",
        "mail.localhost:8025",
    ];
    let foreign = [
        "",
        "evil.example",
        "evil.example:8025",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "notlocalhost",
        "[::1",
        "[evil.example]",
        "::1",
        "2130706433",
    ];
    for host in own {
        assert_eq!(routed_on_loopback("/", host), Route::Home, "{host}");
        assert_eq!(routed_on_loopback("/status?x", host), Route::Status);
    }
    for host in foreign {
        assert_eq!(routed_on_loopback("/", host), Route::Misdirected, "{host}");
        assert_eq!(routed_on_loopback("/metrics", host), Route::Metrics);
        assert_eq!(routed_on_loopback("/healthz", host), Route::Healthz);
        assert_eq!(routed_on_loopback("/nothing", host), Route::NotFound);
    }
    // Elsewhere operators name the machine as they like.
    assert_requests(
        b"GET / HTTP/1.1\r\nHost: mx.example.org\r\n\r\n",
        &[get(Route::Home)],
        false,
    );
    let refused = response(&get(Route::Misdirected), |_| ());
    let (head, body) = refused.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 421 Misdirected Request\r\n"));
    assert_eq!(body, MISDIRECTED);
}

#[test]
fn a_content_length_of_zero_is_no_body() {
    assert_requests(
        b"GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        &[get(Route::NotFound)],
        false,
    );
}

#[test]
fn a_head_of_exactly_the_limit_passes_and_one_octet_more_gets_431() {
    let head = |len: usize| {
        let fixed = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
            "x".repeat(len - fixed)
        )
    };
    assert_requests(head(HEAD_BYTES_MAX).as_bytes(), &[get(Route::Home)], false);
    let refused = Request::refused(Route::HeadTooLarge);
    assert_requests(head(HEAD_BYTES_MAX + 1).as_bytes(), &[refused], true);
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
    assert_requests(many.as_bytes(), &[refused], true);
}

#[test]
fn no_input_panics_and_every_answer_is_the_same_however_it_was_split() {
    let mut next = random(7);
    let words: [&[u8]; 12] = [
        b"GET ",
        b"HEAD ",
        b"/",
        b"/status",
        b" HTTP/1.1",
        b" HTTP/",
        b"\r\n",
        b"\n",
        b"Host: a",
        b"Connection: close",
        b"\xff\x00",
        b"?",
    ];
    for _ in 0..2_000 {
        let count = next() % 12;
        let input: Vec<u8> = (0..count)
            .flat_map(|_| words[next() as usize % words.len()].to_vec())
            .collect();
        let whole = requests(&input, || usize::MAX);
        assert_eq!(requests(&input, || 1), whole, "{input:?}");
        assert_eq!(requests(&input, || (next() % 9) as usize), whole);
    }
}

const COMMANDS: [&str; 2] = ["mail", "rcpt"];
const REPLIES: [(&str, u16); 2] = [("mail_ok", 250), ("too_big", 552)];

const NEWEST: [Message<'static>; 2] = [
    Message {
        shard: 0,
        number: 2,
        received_ns: NOW_NS - 1_000_000_000,
        octets: 512,
        from: b"",
        to: b"<script>alert('\"&\xff\x1b')</script>@example.org",
        recipients: 3,
    },
    Message {
        shard: 0,
        number: 1,
        received_ns: NOW_NS - 2_000_000_000,
        octets: 100,
        from: b"a@example.org",
        to: "gr\u{fc}n@example.org".as_bytes(),
        recipients: 1,
    },
];

fn metrics() -> Metrics {
    let mut metrics = Metrics::new(COMMANDS.len(), REPLIES.len());
    metrics.connections_accepted = 3;
    metrics.closed(CloseCause::Quit);
    metrics.command(1);
    metrics.reply(1);
    metrics.messages_accepted = 2;
    metrics.record(Phase::Sync, 2_000_000);
    metrics.record(Phase::BatchMessages, 2);
    metrics
}

fn status<'a>(metrics: &'a Metrics, listen: &'a [String]) -> Status<'a> {
    Status {
        server_name: "mx.example",
        started_ns: NOW_NS - 60_000_000_000,
        now_ns: NOW_NS,
        listen,
        unhealthy: None,
        unready: None,
        survive: "power",
        full: "auto",
        keep_for_s: 604_800,
        sessions: &[("command", 1), ("data", 0)],
        sessions_max: 10_000,
        clients: Some(Clients {
            stress: true,
            tarpitted: 2,
            evictions: 3,
            untracked: 4,
        }),
        pool: Pool {
            bytes: 1_000,
            used_bytes: 10,
        },
        rings: &[Ring {
            shard: 0,
            directory: "./ringmx-data",
            write: "pwrite",
            bytes: 4_194_304,
            used_bytes: 1_048_576,
            tail: 0,
            head: 1_048_576,
            durable: 1_048_000,
            epoch: 1,
            oldest_number: 1,
            next_number: 3,
        }],
        consumers: &[Consumer {
            name: "store",
            shard: 0,
            connected: true,
            lag_messages: 2,
            lag_bytes: 4_096,
            lag_ns: 1_500_000_000,
        }],
        newest: &NEWEST,
        log_lines_dropped: 0,
        metrics,
        commands: &COMMANDS,
        replies: &REPLIES,
    }
}

fn response(request: &Request, change: impl FnOnce(&mut Status<'_>)) -> String {
    let metrics = metrics();
    let listen = ["127.0.0.1:2525".to_owned()];
    let mut status = status(&metrics, &listen);
    change(&mut status);
    let mut out = Vec::new();
    respond(request, &status, &mut out);
    String::from_utf8(out).unwrap()
}

fn body(response: &str) -> &str {
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let length = format!("\r\nContent-Length: {}\r\n", body.len());
    assert!(head.contains(&length), "{head}");
    body
}

#[test]
fn healthz_and_readyz_say_why_not() {
    assert_eq!(
        response(&get(Route::Healthz), |_| ()),
        "HTTP/1.1 200 OK\r\nDate: Mon, 23 Nov 2026 01:02:03 GMT\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n\
         Cache-Control: no-store\r\nConnection: keep-alive\r\n\r\nok\n"
    );
    let full = "ring full: consumer store holds it since 2 h";
    let not_ready = response(&get(Route::Readyz), |status| status.unready = Some(full));
    assert_eq!(
        not_ready,
        "HTTP/1.1 503 Service Unavailable\r\nDate: Mon, 23 Nov 2026 01:02:03 GMT\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Length: 45\r\n\
         Cache-Control: no-store\r\nConnection: keep-alive\r\n\r\n\
         ring full: consumer store holds it since 2 h\n"
    );
    let healthy = response(&get(Route::Healthz), |status| status.unready = Some(full));
    assert!(healthy.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[test]
fn errors_are_answered_and_close() {
    let cases = [
        (Route::NotFound, "404 Not Found"),
        (Route::BadRequest, "400 Bad Request"),
        (Route::HeadTooLarge, "431 Request Header Fields Too Large"),
        (Route::VersionNotSupported, "505 HTTP Version Not Supported"),
    ];
    for (route, line) in cases {
        assert_eq!(
            response(&Request::refused(route), |_| ()),
            format!(
                "HTTP/1.1 {line}\r\nDate: Mon, 23 Nov 2026 01:02:03 GMT\r\n\
                 Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
                 Cache-Control: no-store\r\nConnection: close\r\n\r\n{line}\n",
                line.len() + 1
            )
        );
    }
    assert_eq!(
        response(&Request::refused(Route::MethodNotAllowed), |_| ()),
        "HTTP/1.1 405 Method Not Allowed\r\nDate: Mon, 23 Nov 2026 01:02:03 GMT\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Length: 23\r\n\
         Cache-Control: no-store\r\nAllow: GET, HEAD\r\nConnection: close\r\n\r\n\
         405 Method Not Allowed\n"
    );
}

#[test]
fn head_gives_the_head_of_get() {
    for (route, ..) in ROUTES {
        let head = Request {
            head_only: true,
            ..get(route)
        };
        let whole = response(&get(route), |_| ());
        let end = whole.find("\r\n\r\n").unwrap() + 4;
        assert_eq!(response(&head, |_| ()), whole[..end]);
    }
}

#[test]
fn the_page_escapes_what_strangers_sent() {
    let whole = response(&get(Route::Home), |_| ());
    assert!(whole.contains("\r\nContent-Security-Policy: default-src 'none'; "));
    let page = body(&whole);
    let rows = page.split_once("<h2>Newest messages</h2>\n").unwrap().1;
    let rows = rows.split_once("<h2>").unwrap().0;
    assert_eq!(
        rows,
        "<table>\n<tr><th>Id</th><th>Received</th><th>Octets</th><th>From</th><th>To</th></tr>\n\
         <tr><td>0-2</td><td>2026-11-23T01:02:02.456Z</td><td class=\"n\">512</td>\
         <td>&lt;&gt;</td><td>&lt;script&gt;alert(&#39;&quot;&amp;\\xFF\\x1B&#39;)&lt;/script&gt;\
         @example.org and 2 more</td></tr>\n\
         <tr><td>0-1</td><td>2026-11-23T01:02:01.456Z</td><td class=\"n\">100</td>\
         <td>&lt;a@example.org&gt;</td><td>gr\u{fc}n@example.org</td></tr>\n\
         </table>\n<p><code>ringmx log cat ID</code> shows one.</p>\n"
    );
    assert!(page.contains(
        "<tr><th>A 250 means</th><td>the message is on stable storage (survive power)</td></tr>\n"
    ));
}

#[test]
fn the_page_of_a_server_that_has_nothing_says_how_to_send() {
    let whole = response(&get(Route::Home), |status| {
        status.newest = &[];
        status.rings = &[];
        status.survive = "discard";
        status.unready = Some("draining");
    });
    let page = body(&whole);
    assert!(page.contains("<p>None yet. <code>ringmx send</code> delivers one.</p>\n"));
    assert!(page.contains("<td>nothing: messages are discarded</td>"));
    assert!(page.contains("<tr><th>State</th><td>draining</td></tr>\n"));
}

#[test]
fn status_is_versioned_json() {
    let whole = response(&get(Route::Status), |_| ());
    let value: serde_json::Value = serde_json::from_str(body(&whole)).unwrap();
    assert_eq!(value["schema"], "ringmx.status.v1");
    assert_eq!(value["uptime_ns"], 60_000_000_000_u64);
    assert_eq!(value["connections"]["closed"]["quit"], 1);
    assert_eq!(value["commands"], serde_json::json!({"mail": 0, "rcpt": 1}));
    assert_eq!(
        value["replies"],
        serde_json::json!({"too_big": {"code": 552, "count": 1}})
    );
    assert_eq!(value["newest"][0]["id"], "0-2");
    assert_eq!(value["consumers"][0]["lag_ns"], 1_500_000_000_u64);
    assert_eq!(value["phases"]["sync"]["count"], 1);
    assert_eq!(value["phases"]["sync"]["sum_ns"], 2_000_000);
    assert_eq!(value["phases"]["batch_messages"]["sum"], 2);
}

#[test]
fn metrics_have_help_and_type_and_samples_of_their_family() {
    let whole = response(&get(Route::Metrics), |_| ());
    assert!(whole.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    let text = body(&whole);
    let mut family = "";
    let mut families = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            family = rest.split(' ').next().unwrap();
            families.push(family);
        } else if !line.starts_with("# TYPE ") {
            assert!(line.starts_with(family), "{line} in {family}");
            let value = line.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    let listed: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
    assert_eq!(families, listed);
}

#[test]
fn metrics_count_by_label() {
    let whole = response(&get(Route::Metrics), |_| ());
    let text = body(&whole);
    for line in [
        "ringmx_healthy 1",
        "ringmx_connections_closed_total{cause=\"quit\"} 1",
        "ringmx_sessions{phase=\"command\"} 1",
        "ringmx_commands_total{command=\"rcpt\"} 1",
        "ringmx_replies_total{code=\"552\",reason=\"too_big\"} 1",
        "ringmx_messages_total{result=\"accepted\"} 2",
        "ringmx_ring_not_durable_bytes{shard=\"0\"} 576",
        "ringmx_consumer_lag_seconds{consumer=\"store\",shard=\"0\"} 1.5",
        "ringmx_phase_seconds_bucket{phase=\"sync\",le=\"0.001\"} 0",
        "ringmx_phase_seconds_bucket{phase=\"sync\",le=\"0.0025\"} 1",
        "ringmx_phase_seconds_bucket{phase=\"sync\",le=\"+Inf\"} 1",
        "ringmx_phase_seconds_sum{phase=\"sync\"} 0.002",
        "ringmx_phase_seconds_count{phase=\"sync\"} 1",
        "ringmx_batch_messages_bucket{le=\"1\"} 0",
        "ringmx_batch_messages_bucket{le=\"2\"} 1",
        "ringmx_batch_messages_sum 2",
        "ringmx_batch_messages_count 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn responses_stay_within_their_bound() {
    let metrics = Metrics::new(15, 60);
    let path = [b'"'; 600];
    let newest = [Message {
        from: &path,
        to: &path,
        ..Message::default()
    }; 50];
    let consumers = [Consumer {
        name: "thirty-one-octets-of-a-nice-name",
        ..Consumer::default()
    }; 32];
    let replies = [("a_reason_with_quite_a_long_name", 250); 60];
    for (route, ..) in ROUTES {
        let mut status = status(&metrics, &[]);
        status.newest = &newest;
        status.consumers = &consumers;
        status.replies = &replies;
        let mut out = Vec::new();
        respond(&get(route), &status, &mut out);
        assert!(
            out.len() < RESPONSE_BYTES_MAX,
            "{route:?} has {} octets",
            out.len()
        );
    }
}
