//! `/status`: everything as JSON. Fields may be added; one that changes its meaning gets a new `schema`.

use serde_json::{Map, Value, json};

use super::status::{Message, NEWEST_MAX, Ring, Status, path_text};
use crate::clock::rfc3339;
use crate::metrics::{CloseCause, Limited, Phase, Scope, StressCause, TlsFailure};

/// Version of the layout.
const SCHEMA: &str = "ringmx.status.v1";

pub(super) fn render(status: &Status<'_>) -> String {
    let m = status.metrics;
    let replies: Map<String, Value> = status
        .replies
        .iter()
        .zip(&m.replies)
        .filter(|(_, count)| **count > 0)
        .map(|((name, code), count)| ((*name).to_owned(), json!({"code": code, "count": count})))
        .collect();
    let sessions: Map<String, Value> = status
        .sessions
        .iter()
        .map(|(phase, count)| ((*phase).to_owned(), json!(count)))
        .collect();
    let shards: Vec<Value> = status.rings.iter().map(|r| ring(r, true)).collect();
    let consumers: Vec<Value> = status
        .consumers
        .iter()
        .map(|consumer| {
            json!({
                "name": consumer.name,
                "shard": consumer.shard,
                "connected": consumer.connected,
                "lag_messages": consumer.lag_messages,
                "lag_bytes": consumer.lag_bytes,
                "lag_ns": consumer.lag_ns,
            })
        })
        .collect();
    let newest: Vec<Value> = status.newest.iter().take(NEWEST_MAX).map(message).collect();
    let value = json!({
        "schema": SCHEMA,
        "version": env!("CARGO_PKG_VERSION"),
        "server_name": status.server_name,
        "started": rfc3339(status.started_ns),
        "uptime_ns": status.now_ns.saturating_sub(status.started_ns),
        "listen": status.listen,
        "healthy": status.unhealthy.is_none(),
        "ready": status.unready.is_none(),
        "unhealthy_because": status.unhealthy,
        "unready_because": status.unready,
        "survive": status.survive,
        "full": status.full,
        "keep_for_s": status.keep_for_s,
        "sessions": sessions,
        "sessions_max": status.sessions_max,
        "pool": {"bytes": status.pool.bytes, "used_bytes": status.pool.used_bytes},
        "clients": clients(status),
        "ring": whole_ring(status.rings),
        "shards": shards,
        "consumers": consumers,
        "newest": newest,
        "connections": {
            "accepted": m.connections_accepted,
            "closed": counted(&CloseCause::NAMES, &m.connections_closed),
            "sessions_refused": m.sessions_refused,
            "proxy_headers_refused": m.proxy_headers_refused,
            "accept_pauses": m.accept_pauses,
        },
        "tls": {
            "handshakes": {"tls1_2": m.tls.completed[0], "tls1_3": m.tls.completed[1]},
            "resumed": m.tls.resumed,
            "with_client_certificate": m.tls.with_client_certificate,
            "failed": counted(&TlsFailure::NAMES, &m.tls.failed),
            "refused": m.tls.refused,
            "offloaded": m.tls.offloaded,
            "broken": m.tls.broken,
            "truncated": m.tls.truncated,
            "reloads": m.tls.reloads[0],
            "reloads_failed": m.tls.reloads[1],
            "plaintext_bytes_in": m.tls.plaintext[0],
            "plaintext_bytes_out": m.tls.plaintext[1],
        },
        "commands": counted(status.commands, &m.commands),
        "replies": replies,
        "bytes_in": m.bytes_in,
        "bytes_out": m.bytes_out,
        "messages": {
            "accepted": m.messages_accepted,
            "accepted_bytes": m.message_bytes_accepted,
            "refused": m.messages_refused,
            "aborted": m.messages_aborted,
            "unacknowledged_commits": m.unacknowledged_commits,
        },
        "bare_newlines": {"bare_lf": m.bare_lf, "bare_cr": m.bare_cr, "nul": m.nul},
        "storage": {
            "batches": m.batches,
            "syncs": m.syncs,
            "failures": m.storage_failures,
            "ring_bytes_written": m.ring_bytes_written,
            "overwritten_unread": m.overwritten_unread,
            "no_space_after_data": m.no_space_after_data,
            "pool_low_events": m.pool_low_events,
        },
        "session_panics": m.session_panics,
        "rules": {"loaded": m.rules_loaded, "refused": m.rules_refused},
        "http_requests": m.http_requests,
        "turns": m.turns,
        "log_lines_dropped": status.log_lines_dropped,
        "phases": phases(status),
    });
    format!("{value}\n")
}

fn counted(names: &[&str], counts: &[u64]) -> Value {
    let pairs = names.iter().zip(counts);
    Value::Object(pairs.map(|(n, c)| ((*n).to_owned(), json!(c))).collect())
}

/// The ring of a server with one shard; of several, what can be added.
fn whole_ring(rings: &[Ring<'_>]) -> Value {
    let sum = |of: fn(&Ring<'_>) -> u64| rings.iter().map(of).sum::<u64>();
    match rings {
        [] => Value::Null,
        [only] => ring(only, false),
        // Positions, epochs and numbers are those of a shard; what can be added is.
        [first, ..] => json!({
            "directory": first.directory,
            "write": first.write,
            "bytes": sum(|ring| ring.bytes),
            "used_bytes": sum(|ring| ring.used_bytes),
        }),
    }
}

/// What limits on clients have done; `None` without them.
fn clients(status: &Status<'_>) -> Option<Value> {
    status.clients.map(|clients| {
        let limited = Limited::NAMES
            .iter()
            .zip(&status.metrics.limited)
            .map(|(name, counts)| ((*name).to_owned(), counted(&Scope::NAMES, counts)));
        json!({
            "stress": clients.stress,
            "stress_began": counted(&StressCause::NAMES, &status.metrics.stress_began),
            "limited": limited.collect::<Map<String, Value>>(),
            "tarpitted_now": clients.tarpitted,
            "tarpitted": status.metrics.tarpitted,
            "early_talkers": status.metrics.early_talkers,
            "evictions": clients.evictions,
            "untracked": clients.untracked,
        })
    })
}

fn ring(ring: &Ring<'_>, with_shard: bool) -> Value {
    let mut value = json!({
        "directory": ring.directory,
        "write": ring.write,
        "bytes": ring.bytes,
        "used_bytes": ring.used_bytes,
        "tail": ring.tail,
        "head": ring.head,
        "durable": ring.durable,
        "epoch": ring.epoch,
        "oldest_number": ring.oldest_number,
        "next_number": ring.next_number,
    });
    if with_shard {
        value["shard"] = json!(ring.shard);
    }
    value
}

fn message(message: &Message<'_>) -> Value {
    json!({
        "id": format!("{}-{}", message.shard, message.number),
        "received": rfc3339(message.received_ns),
        "octets": message.octets,
        "from": path_text(message.from),
        "to": path_text(message.to),
        "recipients": message.recipients,
    })
}

fn phases(status: &Status<'_>) -> Map<String, Value> {
    let all = Phase::TIMES
        .into_iter()
        .chain([Phase::BatchMessages, Phase::BatchBytes]);
    all.map(|phase| {
        let d = status.metrics.distribution(phase);
        let unit = if Phase::TIMES.contains(&phase) {
            "_ns"
        } else {
            ""
        };
        let mut summary = Map::new();
        summary.insert("count".to_owned(), json!(d.count()));
        for (name, value) in [
            ("sum", d.sum()),
            ("p50", d.quantile(0.5)),
            ("p99", d.quantile(0.99)),
            ("p999", d.quantile(0.999)),
            ("max", d.max()),
        ] {
            summary.insert(format!("{name}{unit}"), json!(value));
        }
        (phase.name().to_owned(), Value::Object(summary))
    })
    .collect()
}
