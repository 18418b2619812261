//! The HTTP/1.1 server without its sockets: request octets go in, response octets come out.
//!
//! It serves GET and HEAD for a handful of pages to an operator, a load balancer and Prometheus. It takes no
//! request bodies, has no state but unread input, and buffers one request head at most.

mod json;
mod page;
mod prometheus;
mod status;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

pub use prometheus::{FAMILIES, Family, FamilyType};
pub use status::{
    Clients, Consumer, Message, NEWEST_MAX, PATH_SHOWN_BYTES_MAX, Pool, Ring, Status,
};

use crate::clock::internet_date;

/// Request line and header fields, with all line ends; a longer head gets 431.
pub const HEAD_BYTES_MAX: usize = 8_192;
/// Longest response, octets: a page of messages whose paths need escaping throughout.
pub const RESPONSE_BYTES_MAX: usize = 131_072;
/// Header fields of a request; more get 431.
const FIELDS_MAX: usize = 64;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/`: the page.
    Home,
    /// `/healthz`: whether the server works.
    Healthz,
    /// `/readyz`: whether it takes mail.
    Readyz,
    /// `/status`: everything as JSON.
    Status,
    /// `/metrics`: Prometheus text format.
    Metrics,
    /// Any other path.
    NotFound,
    /// Malformed, or with a body.
    BadRequest,
    /// A method other than GET and HEAD.
    MethodNotAllowed,
    /// The head is too long.
    HeadTooLarge,
    /// Not HTTP/1.0 or HTTP/1.1.
    VersionNotSupported,
    /// What shows mail, asked for under a name that is not this machine's; see [`Session::on_loopback`].
    Misdirected,
}

/// The routes that answer, their path, and one line about each.
pub const ROUTES: [(Route, &str, &str); 5] = [
    (Route::Home, "/", "this page"),
    (
        Route::Healthz,
        "/healthz",
        "200 while the server works, otherwise 503 and why",
    ),
    (
        Route::Readyz,
        "/readyz",
        "200 while it takes mail, otherwise 503 and why",
    ),
    (Route::Status, "/status", "everything as JSON"),
    (
        Route::Metrics,
        "/metrics",
        "counters and histograms for Prometheus",
    ),
];

impl Route {
    /// Name of a refusal for log lines; `None` for the routes that exist.
    pub fn refusal(self) -> Option<&'static str> {
        match self {
            Route::NotFound => Some("not_found"),
            Route::BadRequest => Some("bad_request"),
            Route::MethodNotAllowed => Some("method_not_allowed"),
            Route::HeadTooLarge => Some("head_too_large"),
            Route::VersionNotSupported => Some("version_not_supported"),
            Route::Misdirected => Some("misdirected"),
            _ => None,
        }
    }
    /// Whether the answer depends on the newest messages: only then need [`Status::newest`] be filled in.
    pub fn needs_newest(self) -> bool {
        matches!(self, Route::Home | Route::Status)
    }

    fn of(target: &str) -> Route {
        // RFC 9112 3.2.2: a server accepts the absolute form.
        let origin = match target.split_once("://") {
            Some((scheme, rest))
                if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") =>
            {
                rest.find(['/', '?']).map_or("/", |at| &rest[at..])
            }
            _ => target,
        };
        let path = origin.split(['?', '#']).next().unwrap_or_default();
        let path = if path.is_empty() { "/" } else { path };
        let found = ROUTES.iter().find(|(_, known, _)| *known == path);
        found.map_or(Route::NotFound, |(route, ..)| *route)
    }
}

/// A request whose head is complete, or what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub route: Route,
    /// HEAD: the answer has no body.
    pub head_only: bool,
    /// Whether another request may follow the answer.
    pub keep_alive: bool,
}

impl Request {
    fn refused(route: Route) -> Request {
        Request {
            route,
            head_only: false,
            keep_alive: false,
        }
    }
}

/// What to do next with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read more.
    Read,
    /// Answer with [`respond`], then ask again.
    Answer(Request),
    /// Close when all answers have left.
    Close,
}

/// One HTTP connection: octets that were read and not yet answered.
#[derive(Debug, Default)]
pub struct Session {
    /// INVARIANT: at most [`HEAD_BYTES_MAX`] octets.
    input: Vec<u8>,
    closing: bool,
    is_local: bool,
}

impl Session {
    /// A new connection.
    pub fn new() -> Session {
        Session::default()
    }

    /// A new connection to a loopback address. A page of anywhere, open in a browser of this machine, can reach it
    /// under a name of its own that resolves to loopback (DNS rebinding), and read what it answers. So what shows mail
    /// is served under an IP address, `localhost` or a name below it only; others get 421 (RFC 9110 15.5.20).
    pub fn on_loopback() -> Session {
        Session {
            is_local: true,
            ..Session::default()
        }
    }

    /// Octets that [`Session::receive`] can take now; 0 means: answer first.
    pub fn room(&self) -> usize {
        if self.closing {
            return 0;
        }
        HEAD_BYTES_MAX - self.input.len()
    }

    /// Takes octets from the socket and returns how many: [`Session::room`] of them at most.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.input.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// The next request. After one whose `keep_alive` is false there are no more.
    pub fn step(&mut self) -> Step {
        if self.closing {
            return Step::Close;
        }
        let request = match parse(&self.input, self.is_local) {
            Parsed::Incomplete if self.room() == 0 => Request::refused(Route::HeadTooLarge),
            Parsed::Incomplete => return Step::Read,
            Parsed::Malformed(route) => Request::refused(route),
            Parsed::Complete(request, head_bytes) => {
                self.input.drain(..head_bytes);
                request
            }
        };
        if !request.keep_alive {
            self.closing = true;
            self.input = Vec::new();
        }
        Step::Answer(request)
    }
}

enum Parsed {
    Incomplete,
    Malformed(Route),
    /// And the length of the head, bytes.
    Complete(Request, usize),
}

fn parse(input: &[u8], is_local: bool) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Request::new(&mut fields);
    let head_bytes = match head.parse(input) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) => return Parsed::Incomplete,
        Err(httparse::Error::TooManyHeaders) => return Parsed::Malformed(Route::HeadTooLarge),
        Err(httparse::Error::Version) if names_another_version(input) => {
            return Parsed::Malformed(Route::VersionNotSupported);
        }
        Err(_) => return Parsed::Malformed(Route::BadRequest),
    };
    let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version) else {
        return Parsed::Malformed(Route::BadRequest);
    };
    let mut hosts = 0;
    let mut is_foreign = false;
    let mut keep_alive = minor == 1;
    for field in head.headers.iter() {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        let value = field.value.trim_ascii();
        if is("host") {
            hosts += 1;
            is_foreign = is_local && !names_this_machine(value);
        } else if is("connection") {
            let mut options = value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
            if options.clone().any(|o| o.eq_ignore_ascii_case(b"close")) {
                keep_alive = false;
            } else if options.any(|o| o.eq_ignore_ascii_case(b"keep-alive")) {
                keep_alive = true;
            }
        } else if is("transfer-encoding") || is("content-length") && value != b"0" {
            // A body is neither read nor skipped: what follows could be taken for a request.
            return Parsed::Malformed(match method {
                "GET" | "HEAD" => Route::BadRequest,
                _ => Route::MethodNotAllowed,
            });
        }
    }
    // RFC 9112 3.2: a request of HTTP/1.1 without Host, or any with several, gets 400.
    if hosts > 1 || hosts == 0 && minor == 1 {
        return Parsed::Malformed(Route::BadRequest);
    }
    let route = match method {
        "GET" | "HEAD" => match Route::of(target) {
            route if is_foreign && route.needs_newest() => Route::Misdirected,
            route => route,
        },
        _ => return Parsed::Malformed(Route::MethodNotAllowed),
    };
    let request = Request {
        route,
        head_only: method == "HEAD",
        keep_alive,
    };
    Parsed::Complete(request, head_bytes)
}

/// Whether the third word of the request line names a version, if not ours (RFC 9112 2.3). Looks at no more
/// than httparse has seen when it refuses, so the answer does not depend on how the input was cut.
fn names_another_version(input: &[u8]) -> bool {
    let mut lines = input.split(|b| *b == b'\n').map(<[u8]>::trim_ascii_end);
    let line = lines.find(|line| !line.is_empty()).unwrap_or_default();
    let word = line.split(|b| *b == b' ').nth(2).unwrap_or_default();
    let version = word.strip_prefix(b"HTTP/").unwrap_or_default();
    version.first().is_some_and(u8::is_ascii_digit)
}

/// Whether the value of a Host field (RFC 9110 7.2) is an IP address, `localhost` or a name below it (RFC 6761 6.3),
/// with or without a port.
fn names_this_machine(host: &[u8]) -> bool {
    let Ok(host) = str::from_utf8(host) else {
        return false;
    };
    if let Some(inner) = host.strip_prefix('[') {
        let literal = inner.split_once(']').map(|(literal, _port)| literal);
        return literal.is_some_and(|literal| literal.parse::<Ipv6Addr>().is_ok());
    }
    let name = host.split(':').next().unwrap_or_default();
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or_default();
    last.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok()
}

/// The JSON document of `/status`.
pub fn status_document(status: &Status<'_>) -> String {
    json::render(status)
}

/// Appends the response to `request` to `out`.
///
/// **Bounds**: at most [`RESPONSE_BYTES_MAX`] octets for each ring with 32 consumers.
pub fn respond(request: &Request, status: &Status<'_>, out: &mut Vec<u8>) {
    let (code, reason) = match request.route {
        Route::Home | Route::Status | Route::Metrics => (200, "OK"),
        Route::Healthz if status.unhealthy.is_none() => (200, "OK"),
        Route::Readyz if status.unready.is_none() => (200, "OK"),
        Route::Healthz | Route::Readyz => (503, "Service Unavailable"),
        Route::NotFound => (404, "Not Found"),
        Route::BadRequest => (400, "Bad Request"),
        Route::MethodNotAllowed => (405, "Method Not Allowed"),
        Route::HeadTooLarge => (431, "Request Header Fields Too Large"),
        Route::VersionNotSupported => (505, "HTTP Version Not Supported"),
        Route::Misdirected => (421, "Misdirected Request"),
    };
    let (content_type, body) = match request.route {
        Route::Home => ("text/html; charset=utf-8", page::render(status)),
        Route::Status => ("application/json", json::render(status)),
        Route::Metrics => (prometheus::CONTENT_TYPE, prometheus::render(status)),
        Route::Healthz => (TEXT, state_text(status.unhealthy)),
        Route::Readyz => (TEXT, state_text(status.unready)),
        Route::Misdirected => (TEXT, MISDIRECTED.to_owned()),
        _ => (TEXT, format!("{code} {reason}\n")),
    };
    let mut head = format!(
        "HTTP/1.1 {code} {reason}\r\nDate: {}\r\nContent-Type: {content_type}\r\n\
         Content-Length: {}\r\nCache-Control: no-store\r\n",
        http_date(status.now_ns),
        body.len()
    );
    if request.route == Route::Home {
        // The page shows what strangers sent: should the escaping ever fail, no script runs.
        head.push_str(
            "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n\
             X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n",
        );
    }
    if request.route == Route::MethodNotAllowed {
        head.push_str("Allow: GET, HEAD\r\n");
    }
    // RFC 9112 9.3: HTTP/1.0 clients are told when the connection stays, all when it does not.
    head.push_str(if request.keep_alive {
        "Connection: keep-alive\r\n\r\n"
    } else {
        "Connection: close\r\n\r\n"
    });
    out.extend_from_slice(head.as_bytes());
    if !request.head_only {
        out.extend_from_slice(body.as_bytes());
    }
}

const TEXT: &str = "text/plain; charset=utf-8";
const MISDIRECTED: &str = "421 Misdirected Request: ask for an IP address or localhost, so that no other page in a \
                           browser can read this one; a proxy in front sends such a Host\n";

fn state_text(fault: Option<&str>) -> String {
    format!("{}\n", fault.unwrap_or("ok"))
}

/// IMF-fixdate (RFC 9110 5.6.7).
fn http_date(wall_ns: u64) -> String {
    internet_date(wall_ns, "GMT")
}

/// Appends `text` with the characters that mean something in HTML replaced.
fn push_html(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
}

/// `ns` as decimal seconds without trailing zeros.
fn seconds_text(ns: u64) -> String {
    let mut text = format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    let end = text.trim_end_matches('0').trim_end_matches('.').len();
    text.truncate(end);
    text
}

/// Appends one formatted line.
fn push_line(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing into a String can't fail.
    let _ = writeln!(out, "{line}");
}

#[cfg(test)]
mod tests;
