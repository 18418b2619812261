//! Connections that come through a proxy: nothing is known of the client before the proxy's header, so no session
//! begins before it.

use std::io;
use std::time::Duration;

use super::{Server, live};
use crate::clock::Instant;
use crate::conn::{Io, Stream, Token};
use crate::ip_prefix::IpPrefix;
use crate::limits::{PROXY_DETECT_MS, PROXY_HEADER_BYTES_MAX, PROXY_HEADER_SECONDS_MAX};
use crate::logger::{Class, Value};
use crate::proxy_protocol::{Origin, Parsed, parse};
use crate::ringlog::backing::Backing;
use crate::server::listener::{Listener, ProxyMode};
use crate::server::storage::Committer;

/// Why a proxy's connection was closed before a session began, for the log.
const NO_HEADER: &str = "no PROXY header";
const HEADER_LATE: &str = "the PROXY header did not come in time";

/// What is done about a header at the front of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// None is looked for.
    No,
    /// One is waited for.
    Awaited,
    /// One has to come, and this client may not send one.
    NotFromHere,
}

/// What to expect of a connection from `peer`.
pub(super) fn expected(listener: &Listener, trusted: &[IpPrefix], io: &Io) -> Expected {
    let is_trusted = || trusted.iter().any(|network| network.contains(io.peer.ip()));
    match listener.proxy {
        ProxyMode::Off => Expected::No,
        _ if is_trusted() => Expected::Awaited,
        ProxyMode::Required => Expected::NotFromHere,
        ProxyMode::Detect => Expected::No,
    }
}

/// How long the header is waited for.
pub(super) fn patience(listener: &Listener) -> Duration {
    match listener.proxy {
        ProxyMode::Detect => Duration::from_millis(PROXY_DETECT_MS),
        ProxyMode::Off | ProxyMode::Required => Duration::from_secs(PROXY_HEADER_SECONDS_MAX),
    }
}

/// What the octets that wait at the front of a connection say.
enum Front {
    /// Look again when more came.
    Wait,
    /// It ended, or broke.
    Gone,
    Seen(Parsed),
}

impl<S: Stream, B: Backing, C: Committer> Server<S, B, C> {
    /// Looks for the header of a connection that awaits one. Whether its session has begun.
    pub(super) fn take_proxy_header(&mut self, token: Token) -> bool {
        let Some(conn) = live(&mut self.conns, token) else {
            return false;
        };
        let scratch = &mut self.shared.scratch[..PROXY_HEADER_BYTES_MAX];
        let front = look(&mut conn.stream, scratch);
        let mode = self.shared.listeners[usize::from(conn.io.listener)].proxy;
        let refusal = match front {
            Front::Wait => {
                conn.io.flags.readable = false;
                return false;
            }
            // What looks whether the port is open is no client.
            Front::Gone => None,
            Front::Seen(Parsed::Partial) if conn.io.flags.hung_up => None,
            Front::Seen(Parsed::Partial) => {
                conn.io.flags.readable = false;
                return false;
            }
            Front::Seen(Parsed::NotAHeader) if mode == ProxyMode::Detect => {
                self.begin(token);
                return true;
            }
            Front::Seen(Parsed::NotAHeader) => Some(NO_HEADER),
            Front::Seen(Parsed::Malformed(reason)) => Some(reason),
            Front::Seen(Parsed::Header { len, origin }) => {
                if skip(&mut conn.stream, &mut scratch[..len]).is_ok() {
                    match origin {
                        Origin::Local => conn.io.flags.is_health_check = true,
                        Origin::Unknown => {}
                        Origin::Client { client, .. } => {
                            conn.io.peer = (client.ip().to_canonical(), client.port()).into();
                        }
                    }
                    self.begin(token);
                    return true;
                }
                None
            }
        };
        self.refuse_proxy(token, refusal);
        false
    }

    /// The header did not come in time. Whether the session has begun without it.
    pub(super) fn proxy_header_is_late(&mut self, token: Token) -> bool {
        let Some(conn) = live(&mut self.conns, token) else {
            return false;
        };
        let listener = usize::from(conn.io.listener);
        let detects = self.shared.listeners[listener].proxy == ProxyMode::Detect;
        if detects {
            self.begin(token);
        } else {
            self.refuse_proxy(token, Some(HEADER_LATE));
        }
        detects
    }

    /// Closes a connection whose session never began. Without a reason it is nobody's fault, and not told.
    fn refuse_proxy(&mut self, token: Token, reason: Option<&str>) {
        let Some(conn) = live(&mut self.conns, token) else {
            return;
        };
        if let Some(reason) = reason {
            let shared = &mut self.shared;
            shared.metrics.proxy_headers_refused += 1;
            let fields = [
                ("client", Value::Addr(conn.io.peer)),
                ("reason", Value::Str(reason)),
            ];
            shared.logger.line(Class::ProxyRefused, &fields, shared.now);
        }
        self.remove(token.key as usize);
    }
}

/// When the header must have come.
pub(super) fn deadline(listener: &Listener, io: &Io) -> Instant {
    io.accepted_at.after(patience(listener))
}

fn look<S: Stream>(stream: &mut S, buf: &mut [u8]) -> Front {
    loop {
        match stream.peek(buf) {
            Ok(0) => return Front::Gone,
            Ok(len) => return Front::Seen(parse(&buf[..len])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Front::Wait,
            Err(_) => return Front::Gone,
        }
    }
}

/// Reads octets that were seen before.
fn skip<S: Stream>(stream: &mut S, mut seen: &mut [u8]) -> io::Result<()> {
    while !seen.is_empty() {
        match stream.read(seen) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => seen = &mut seen[len..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
