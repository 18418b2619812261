//! The server's state as the status pages and the control socket show it.

use crate::conn::Stream;
use crate::http::{Clients, Consumer, Message, Pool, Request, Ring, Status, respond};
use crate::limits::RECORD_HEADER_BYTES;
use crate::ringlog::backing::{Backing, read_exact_at};
use crate::ringlog::format::Header;
use crate::ringlog::writer::Log;
use crate::server::{Committer, Health, Server, ring_takes};
use crate::smtp::reply;
use crate::smtp::session::Phase;
use crate::smtp::sink::Verb;

pub mod snapshot;

/// What does not change while the server runs.
#[derive(Clone, Debug)]
pub struct About {
    /// Name in the greeting.
    pub server_name: String,
    /// When the server started, nanoseconds since 1970.
    pub started_ns: u64,
    /// Addresses that take mail.
    pub listen: Vec<String>,
    /// Durability level.
    pub survive: &'static str,
    /// Retention policy.
    pub full: &'static str,
    /// Age after which messages are removed, seconds; 0 for never.
    pub keep_for_s: u64,
    /// Ring directory.
    pub ring_directory: String,
    /// `pwrite` or `map`.
    pub ring_write: &'static str,
    /// Sessions at the same time.
    pub sessions_max: u64,
}

/// A stored message in a few words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Shard of its ring.
    pub shard: u32,
    /// Number in its shard.
    pub number: u64,
    /// When its end of data arrived, nanoseconds since 1970.
    pub received_ns: u64,
    /// Octets, trace field included.
    pub octets: u64,
    /// Reverse-path.
    pub from: Vec<u8>,
    /// First recipient.
    pub to: Vec<u8>,
    /// Recipients.
    pub recipients: u32,
}

impl Summary {
    /// As the pages show it.
    pub fn message(&self) -> Message<'_> {
        Message {
            shard: self.shard,
            number: self.number,
            received_ns: self.received_ns,
            octets: self.octets,
            from: &self.from,
            to: &self.to,
            recipients: self.recipients,
        }
    }
}

/// Number and time of the record at a position, for the lag of a consumer that stands there.
fn record_at<B: Backing>(log: &Log<B>, position: u64) -> Option<Header> {
    let superblock = log.superblock();
    let at = superblock.data_offset + position % superblock.data_size;
    let mut bytes = [0; RECORD_HEADER_BYTES];
    read_exact_at(log.backing(), &mut bytes, at).ok()?;
    Header::decode(&bytes, superblock.ring_key)
        .ok()
        .filter(|header| header.position == position)
}

/// Why no mail is taken now, naming the consumer that holds the ring when one does.
fn unready_reason<B: Backing, S: Stream, C: Committer>(server: &Server<S, B, C>) -> Option<String> {
    Some(match server.shared.health() {
        Health::Ready => return None,
        Health::Failed => "storage failed".to_owned(),
        Health::Draining => "shutting down".to_owned(),
        Health::Refusing => {
            let storage = server.shared.storage.as_ref()?;
            match storage.log.holder() {
                _ if ring_takes(&storage.log, 0) => "storage does not answer".to_owned(),
                Some(holder) => {
                    format!(
                        "the ring is full, held by consumer {}",
                        holder.name.as_str()
                    )
                }
                None => "the ring is full".to_owned(),
            }
        }
    })
}

/// Appends the answer to an HTTP request.
pub fn answer<S: Stream, B: Backing, C: Committer>(
    server: &Server<S, B, C>,
    about: &About,
    newest: &[Summary],
    request: &Request,
    now_ns: u64,
    out: &mut Vec<u8>,
) {
    with_status(server, about, newest, now_ns, |status| {
        respond(request, status, out)
    });
}

/// Appends the status document without messages, for the control socket.
pub fn json<S: Stream, B: Backing, C: Committer>(
    server: &Server<S, B, C>,
    about: &About,
    now_ns: u64,
    out: &mut Vec<u8>,
) {
    with_status(server, about, &[], now_ns, |status| {
        out.extend_from_slice(crate::http::status_document(status).as_bytes());
    });
}

/// Name and code of each row of replies, as the pages show them.
fn reply_names() -> Vec<(&'static str, u16)> {
    reply::ROWS.iter().map(|row| (row.name, row.code)).collect()
}

/// Builds the snapshot and lends it.
pub fn with_status<S: Stream, B: Backing, C: Committer, R>(
    server: &Server<S, B, C>,
    about: &About,
    newest: &[Summary],
    now_ns: u64,
    f: impl FnOnce(&Status<'_>) -> R,
) -> R {
    let shared = &server.shared;
    let shard = u32::from(shared.options.shard);
    let unready = unready_reason(server);
    let unhealthy = unready.as_deref().filter(|_| {
        shared.is_failed()
            || shared
                .storage
                .as_ref()
                .is_some_and(|storage| ring_takes(&storage.log, 0))
                && shared.health() == Health::Refusing
    });
    let counts = server.sessions_by_phase();
    let sessions: Vec<(&str, u64)> = Phase::NAMES.into_iter().zip(counts).collect();
    let replies = reply_names();
    let mut consumers = Vec::new();
    let mut rings = Vec::new();
    if let Some(storage) = &shared.storage {
        let log = &storage.log;
        let status = log.status();
        rings.push(Ring {
            shard,
            directory: &about.ring_directory,
            write: about.ring_write,
            bytes: status.data_size,
            used_bytes: status.written - status.tail,
            tail: status.tail,
            head: status.written,
            durable: status.durable,
            epoch: status.epoch,
            oldest_number: record_at(log, status.tail)
                .map_or(status.next_number, |header| header.number),
            next_number: status.next_number,
        });
        for consumer in log.consumers() {
            let lag_bytes = status.durable.saturating_sub(consumer.scan_pos);
            let record = if lag_bytes > 0 {
                record_at(log, consumer.scan_pos)
            } else {
                None
            };
            consumers.push(Consumer {
                name: consumer.name.as_str(),
                shard,
                connected: server.shared.attachments.contains(consumer.name.as_str()),
                lag_messages: record
                    .map_or(0, |record| status.next_number.saturating_sub(record.number)),
                lag_bytes,
                lag_ns: record.map_or(0, |record| now_ns.saturating_sub(record.received_ns)),
            });
        }
    }
    let messages: Vec<Message<'_>> = newest.iter().map(Summary::message).collect();
    f(&Status {
        server_name: &about.server_name,
        started_ns: about.started_ns,
        now_ns,
        listen: &about.listen,
        unhealthy,
        unready: unready.as_deref(),
        survive: about.survive,
        full: about.full,
        keep_for_s: about.keep_for_s,
        sessions: &sessions,
        sessions_max: about.sessions_max,
        clients: shared.limiter.as_ref().map(|limiter| Clients {
            stress: limiter.stress.is_on(),
            tarpitted: u64::from(limiter.tarpitted()),
            evictions: limiter.clients.evictions(),
            untracked: limiter.clients.untracked(),
        }),
        pool: Pool {
            bytes: shared.pool.total_bytes(),
            used_bytes: shared.pool.total_bytes() - shared.pool.free_bytes(),
        },
        rings: &rings,
        consumers: &consumers,
        newest: &messages,
        log_lines_dropped: shared.logger.dropped_total(),
        metrics: &shared.metrics,
        commands: &Verb::NAMES,
        replies: &replies,
    })
}
