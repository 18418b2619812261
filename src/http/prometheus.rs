//! `/metrics`: the Prometheus text format, version 0.0.4. [`FAMILIES`] is the one list of what there is.

use super::status::{Consumer, Ring, Status};
use super::{push_line, seconds_text};
use crate::metrics::{CloseCause, Distribution, Limited, Phase, Scope, StressCause, TlsFailure};

/// Content type that announces the format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the buckets of times, nanoseconds.
const TIME_BOUNDS_NS: [u64; 18] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    60_000_000_000,
    300_000_000_000,
];
/// Upper bounds of the buckets of messages in a batch.
const MESSAGES_BOUNDS: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1_024, 4_096];
/// Upper bounds of the buckets of bytes in a batch.
const BYTES_BOUNDS: [u64; 9] = [
    1 << 12,
    1 << 14,
    1 << 16,
    1 << 18,
    1 << 20,
    1 << 22,
    1 << 24,
    1 << 26,
    1 << 28,
];

/// Type of a metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyType {
    /// Rises, and starts at 0 with the process.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
}

impl FamilyType {
    /// Word in the `# TYPE` line.
    pub fn name(self) -> &'static str {
        match self {
            FamilyType::Counter => "counter",
            FamilyType::Gauge => "gauge",
            FamilyType::Histogram => "histogram",
        }
    }
}

/// A metric family.
pub struct Family {
    /// Name.
    pub name: &'static str,
    /// Type.
    pub kind: FamilyType,
    /// Labels of its samples, separated by commas; empty for none.
    pub labels: &'static str,
    /// What it counts.
    pub help: &'static str,
    write: fn(&mut Samples<'_>, &Status<'_>),
}

/// Writes the samples of one family.
struct Samples<'a> {
    out: &'a mut String,
    name: &'static str,
}

impl Samples<'_> {
    fn plain(&mut self, value: u64) {
        push_line(self.out, format_args!("{} {value}", self.name));
    }

    /// `labels` is complete but for the braces.
    fn labelled(&mut self, labels: std::fmt::Arguments<'_>, value: u64) {
        push_line(self.out, format_args!("{}{{{labels}}} {value}", self.name));
    }

    fn by_shard(&mut self, rings: &[Ring<'_>], value: impl Fn(&Ring<'_>) -> u64) {
        for ring in rings {
            self.labelled(format_args!("shard=\"{}\"", ring.shard), value(ring));
        }
    }

    fn seconds(&mut self, labels: std::fmt::Arguments<'_>, ns: u64) {
        let value = seconds_text(ns);
        push_line(self.out, format_args!("{}{{{labels}}} {value}", self.name));
    }

    /// `label` is empty, or ends in a comma. `shown` turns a value into the unit of the family.
    fn histogram(
        &mut self,
        label: &str,
        distribution: &Distribution,
        bounds: &[u64],
        shown: fn(u64) -> String,
    ) {
        let name = self.name;
        for (bound, count) in bounds.iter().zip(distribution.cumulative(bounds)) {
            let bound = shown(*bound);
            push_line(
                self.out,
                format_args!("{name}_bucket{{{label}le=\"{bound}\"}} {count}"),
            );
        }
        let count = distribution.count();
        let sum = shown(distribution.sum());
        let only = label.trim_end_matches(',');
        let braced = if only.is_empty() {
            String::new()
        } else {
            format!("{{{only}}}")
        };
        push_line(
            self.out,
            format_args!("{name}_bucket{{{label}le=\"+Inf\"}} {count}"),
        );
        push_line(self.out, format_args!("{name}_sum{braced} {sum}"));
        push_line(self.out, format_args!("{name}_count{braced} {count}"));
    }
}

pub(super) fn render(status: &Status<'_>) -> String {
    let mut out = String::with_capacity(32_768);
    for family in FAMILIES {
        let (name, help) = (family.name, family.help);
        push_line(&mut out, format_args!("# HELP {name} {help}"));
        push_line(
            &mut out,
            format_args!("# TYPE {name} {}", family.kind.name()),
        );
        let mut samples = Samples {
            out: &mut out,
            name,
        };
        (family.write)(&mut samples, status);
    }
    out
}

/// A label value: backslash, double quote and line feed are escaped, as the format wants.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn consumer_labels(consumer: &Consumer<'_>) -> String {
    let name = escaped(consumer.name);
    format!("consumer=\"{name}\",shard=\"{}\"", consumer.shard)
}

macro_rules! families {
    ($($kind:ident $name:literal [$labels:literal] $help:literal => $write:expr;)*) => {
        /// Every metric family, in the order of `/metrics`.
        pub static FAMILIES: &[Family] = &[$(Family {
            name: $name,
            kind: FamilyType::$kind,
            labels: $labels,
            help: $help,
            write: $write,
        },)*];
    };
}

families! {
    Gauge "ringmx_build_info" ["version"] "Always 1; the version is in the label." => |out, _| {
        out.labelled(format_args!("version=\"{}\"", env!("CARGO_PKG_VERSION")), 1);
    };
    Gauge "ringmx_start_time_seconds" [""] "When the server started, seconds since 1970." => |out, s| {
        out.plain(s.started_ns / 1_000_000_000);
    };
    Gauge "ringmx_healthy" [""] "1 while the server works." => |out, s| {
        out.plain(u64::from(s.unhealthy.is_none()));
    };
    Gauge "ringmx_ready" [""] "1 while the server takes mail." => |out, s| {
        out.plain(u64::from(s.unready.is_none()));
    };
    Gauge "ringmx_survive_info" ["level"] "Always 1; the durability level is in the label." => |out, s| {
        out.labelled(format_args!("level=\"{}\"", escaped(s.survive)), 1);
    };
    Counter "ringmx_connections_accepted_total" [""] "SMTP connections accepted." => |out, s| {
        out.plain(s.metrics.connections_accepted);
    };
    Counter "ringmx_connections_closed_total" ["cause"] "SMTP connections ended." => |out, s| {
        for (cause, count) in CloseCause::NAMES.iter().zip(s.metrics.connections_closed) {
            out.labelled(format_args!("cause=\"{cause}\""), count);
        }
    };
    Counter "ringmx_sessions_refused_total" [""]
        "SMTP connections refused because all sessions were taken." => |out, s| {
        out.plain(s.metrics.sessions_refused);
    };
    Counter "ringmx_proxy_headers_refused_total" [""]
        "Connections closed for want of a good PROXY header." => |out, s| {
        out.plain(s.metrics.proxy_headers_refused);
    };
    Counter "ringmx_tls_handshakes_total" ["version"] "TLS handshakes that succeeded." => |out, s| {
        for (version, count) in ["1.2", "1.3"].iter().zip(s.metrics.tls.completed) {
            out.labelled(format_args!("version=\"{version}\""), count);
        }
    };
    Counter "ringmx_tls_resumed_total" [""] "Of these, those that resumed an earlier session." => |out, s| {
        out.plain(s.metrics.tls.resumed);
    };
    Counter "ringmx_tls_client_certificates_total" [""]
        "Of these, those with a certificate of the client." => |out, s| {
        out.plain(s.metrics.tls.with_client_certificate);
    };
    Counter "ringmx_tls_handshakes_failed_total" ["reason"] "TLS handshakes that failed." => |out, s| {
        for (reason, count) in TlsFailure::NAMES.iter().zip(s.metrics.tls.failed) {
            out.labelled(format_args!("reason=\"{reason}\""), count);
        }
    };
    Counter "ringmx_tls_handshakes_refused_total" [""]
        "TLS handshakes not taken because tls-handshakes were under way." => |out, s| {
        out.plain(s.metrics.tls.refused);
    };
    Counter "ringmx_tls_handshakes_offloaded_total" [""]
        "TLS handshakes whose signature the helper thread made." => |out, s| {
        out.plain(s.metrics.tls.offloaded);
    };
    Counter "ringmx_tls_broken_total" [""] "Sessions under TLS that failed behind their handshake." => |out, s| {
        out.plain(s.metrics.tls.broken);
    };
    Counter "ringmx_tls_truncated_total" [""]
        "Sessions under TLS that ended without close_notify." => |out, s| {
        out.plain(s.metrics.tls.truncated);
    };
    Counter "ringmx_tls_reloads_total" ["result"] "Times that certificates were read again." => |out, s| {
        for (result, count) in ["ok", "failed"].iter().zip(s.metrics.tls.reloads) {
            out.labelled(format_args!("result=\"{result}\""), count);
        }
    };
    Counter "ringmx_tls_plaintext_bytes_total" ["direction"] "Octets under TLS, decrypted." => |out, s| {
        for (direction, count) in ["in", "out"].iter().zip(s.metrics.tls.plaintext) {
            out.labelled(format_args!("direction=\"{direction}\""), count);
        }
    };
    Counter "ringmx_accept_pauses_total" [""]
        "Times that accepting stopped for want of descriptors or memory." => |out, s| {
        out.plain(s.metrics.accept_pauses);
    };
    Gauge "ringmx_sessions" ["phase"] "Open SMTP sessions." => |out, s| {
        for (phase, count) in s.sessions {
            out.labelled(format_args!("phase=\"{}\"", escaped(phase)), *count);
        }
    };
    Gauge "ringmx_sessions_max" [""] "Limit of SMTP sessions." => |out, s| out.plain(s.sessions_max);
    Counter "ringmx_session_panics_total" [""] "Sessions closed because their code panicked." => |out, s| {
        out.plain(s.metrics.session_panics);
    };
    Counter "ringmx_commands_total" ["command"] "SMTP commands." => |out, s| {
        for (command, count) in s.commands.iter().zip(&s.metrics.commands) {
            out.labelled(format_args!("command=\"{}\"", escaped(command)), *count);
        }
    };
    Counter "ringmx_replies_total" ["code,reason"] "SMTP replies." => |out, s| {
        for ((reason, code), count) in s.replies.iter().zip(&s.metrics.replies) {
            let reason = escaped(reason);
            out.labelled(format_args!("code=\"{code}\",reason=\"{reason}\""), *count);
        }
    };
    Counter "ringmx_received_bytes_total" [""] "Octets read from SMTP clients." => |out, s| {
        out.plain(s.metrics.bytes_in);
    };
    Counter "ringmx_sent_bytes_total" [""] "Octets written to SMTP clients." => |out, s| {
        out.plain(s.metrics.bytes_out);
    };
    Counter "ringmx_messages_total" ["result"]
        "Messages: accepted (250 sent), refused at their end, aborted before it." => |out, s| {
        out.labelled(format_args!("result=\"accepted\""), s.metrics.messages_accepted);
        out.labelled(format_args!("result=\"refused\""), s.metrics.messages_refused);
        out.labelled(format_args!("result=\"aborted\""), s.metrics.messages_aborted);
    };
    Counter "ringmx_message_bytes_total" [""] "Octets of accepted messages." => |out, s| {
        out.plain(s.metrics.message_bytes_accepted);
    };
    Counter "ringmx_bare_newlines_total" ["kind"] "Bare LF, bare CR and NUL in content." => |out, s| {
        out.labelled(format_args!("kind=\"lf\""), s.metrics.bare_lf);
        out.labelled(format_args!("kind=\"cr\""), s.metrics.bare_cr);
        out.labelled(format_args!("kind=\"nul\""), s.metrics.nul);
    };
    Gauge "ringmx_pool_bytes" [""] "Memory for messages on their way in." => |out, s| {
        out.plain(s.pool.bytes);
    };
    Gauge "ringmx_pool_used_bytes" [""] "Of it in use." => |out, s| out.plain(s.pool.used_bytes);
    Counter "ringmx_pool_low_total" [""] "Times that the pool had no room for a message." => |out, s| {
        out.plain(s.metrics.pool_low_events);
    };
    Gauge "ringmx_ring_bytes" ["shard"] "Size of the ring's data area." => |out, s| {
        out.by_shard(s.rings, |ring| ring.bytes);
    };
    Gauge "ringmx_ring_used_bytes" ["shard"] "From the oldest record to the newest." => |out, s| {
        out.by_shard(s.rings, |ring| ring.used_bytes);
    };
    Gauge "ringmx_ring_not_durable_bytes" ["shard"] "Appended and not yet synced." => |out, s| {
        out.by_shard(s.rings, |ring| ring.head.saturating_sub(ring.durable));
    };
    Gauge "ringmx_ring_next_number" ["shard"] "Number that the next message takes." => |out, s| {
        out.by_shard(s.rings, |ring| ring.next_number);
    };
    Counter "ringmx_ring_written_bytes_total" [""]
        "Bytes appended to the ring, headers and zero fill included." => |out, s| {
        out.plain(s.metrics.ring_bytes_written);
    };
    Counter "ringmx_overwritten_unread_total" [""] "Messages overwritten before anybody read them." => |out, s| {
        out.plain(s.metrics.overwritten_unread);
    };
    Counter "ringmx_no_space_after_data_total" [""] "452 replies after the end of data, the last resort." => |out, s| {
        out.plain(s.metrics.no_space_after_data);
    };
    Counter "ringmx_unacknowledged_commits_total" [""]
        "Messages committed after their client had gone; it will send them again." => |out, s| {
        out.plain(s.metrics.unacknowledged_commits);
    };
    Counter "ringmx_commits_total" [""] "Commits: batches of messages acknowledged together." => |out, s| {
        out.plain(s.metrics.batches);
    };
    Counter "ringmx_syncs_total" [""] "fdatasync calls." => |out, s| out.plain(s.metrics.syncs);
    Counter "ringmx_storage_failures_total" [""] "Writes and syncs that failed; the first stops the log." => |out, s| {
        out.plain(s.metrics.storage_failures);
    };
    Gauge "ringmx_consumer_connected" ["consumer,shard"] "1 while the consumer is connected." => |out, s| {
        for c in s.consumers {
            out.labelled(format_args!("{}", consumer_labels(c)), u64::from(c.connected));
        }
    };
    Gauge "ringmx_consumer_lag_messages" ["consumer,shard"] "Messages the consumer has not acknowledged." => |out, s| {
        for c in s.consumers {
            out.labelled(format_args!("{}", consumer_labels(c)), c.lag_messages);
        }
    };
    Gauge "ringmx_consumer_lag_bytes" ["consumer,shard"] "Bytes of the ring the consumer holds." => |out, s| {
        for c in s.consumers {
            out.labelled(format_args!("{}", consumer_labels(c)), c.lag_bytes);
        }
    };
    Gauge "ringmx_consumer_lag_seconds" ["consumer,shard"]
        "Age of the oldest message the consumer has not acknowledged." => |out, s| {
        for c in s.consumers {
            out.seconds(format_args!("{}", consumer_labels(c)), c.lag_ns);
        }
    };
    Histogram "ringmx_phase_seconds" ["phase"]
        "Times: greeting, command, data, commit_wait, sync_wait, release, end_of_data, write, sync_start, sync, turn." => |out, s| {
        for phase in Phase::TIMES {
            let label = format!("phase=\"{}\",", phase.name());
            let distribution = s.metrics.distribution(phase);
            out.histogram(&label, distribution, &TIME_BOUNDS_NS, seconds_text);
        }
    };
    Histogram "ringmx_batch_messages" [""] "Messages that one commit covered." => |out, s| {
        let distribution = s.metrics.distribution(Phase::BatchMessages);
        out.histogram("", distribution, &MESSAGES_BOUNDS, |count| count.to_string());
    };
    Histogram "ringmx_batch_bytes" [""] "Bytes that one commit covered." => |out, s| {
        let distribution = s.metrics.distribution(Phase::BatchBytes);
        out.histogram("", distribution, &BYTES_BOUNDS, |count| count.to_string());
    };
    Counter "ringmx_turns_total" [""] "Turns of the loop." => |out, s| out.plain(s.metrics.turns);
    Counter "ringmx_client_refusals_total" ["limit,scope"]
        "Refusals because a client, or the network around it, used too much." => |out, s| {
        for (limit, counts) in Limited::NAMES.iter().zip(&s.metrics.limited) {
            for (scope, count) in Scope::NAMES.iter().zip(counts) {
                out.labelled(format_args!("limit=\"{limit}\",scope=\"{scope}\""), *count);
            }
        }
    };
    Counter "ringmx_early_talkers_total" [""] "Clients that talked before their greeting." => |out, s| {
        out.plain(s.metrics.early_talkers);
    };
    Counter "ringmx_tarpitted_total" [""] "Refusals that were held back for a while." => |out, s| {
        out.plain(s.metrics.tarpitted);
    };
    Gauge "ringmx_tarpitted" [""] "Sessions whose refusals are held back now." => |out, s| {
        out.plain(s.clients.map_or(0, |clients| clients.tarpitted));
    };
    Gauge "ringmx_stress" [""] "1 while the limits for stress are in force." => |out, s| {
        out.plain(u64::from(s.clients.is_some_and(|clients| clients.stress)));
    };
    Counter "ringmx_stress_total" ["cause"] "Times that the limits for stress were put in force." => |out, s| {
        for (cause, count) in StressCause::NAMES.iter().zip(&s.metrics.stress_began) {
            out.labelled(format_args!("cause=\"{cause}\""), *count);
        }
    };
    Counter "ringmx_client_evictions_total" [""] "Clients that were forgotten to make room for others." => |out, s| {
        out.plain(s.clients.map_or(0, |clients| clients.evictions));
    };
    Counter "ringmx_clients_untracked_total" [""]
        "Connections of clients that found no place in the table of clients." => |out, s| {
        out.plain(s.clients.map_or(0, |clients| clients.untracked));
    };
    Counter "ringmx_rules_reloads_total" ["result"] "Times that the access rules were read again." => |out, s| {
        out.labelled(format_args!("result=\"loaded\""), s.metrics.rules_loaded);
        out.labelled(format_args!("result=\"refused\""), s.metrics.rules_refused);
    };
    Counter "ringmx_http_requests_total" [""] "HTTP requests answered." => |out, s| {
        out.plain(s.metrics.http_requests);
    };
    Counter "ringmx_log_lines_dropped_total" [""] "Log lines dropped because nobody read them." => |out, s| {
        out.plain(s.log_lines_dropped);
    };
}
