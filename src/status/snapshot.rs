//! The state of one worker, as it goes to the parent, and of several as one.
//!
//! What can be added is added: counters, histograms, sessions, memory. What belongs to a ring stays apart, with its
//! shard. The bytes are read by the program that wrote them and by no other.

use super::{About, Summary, reply_names};
use crate::http::{Clients, Consumer, Message, NEWEST_MAX, Pool, Request, Ring, Status, respond};
use crate::limits::CONSUMERS_MAX;
use crate::metrics::{Metrics, Phase as Measured};
use crate::smtp::reply;
use crate::smtp::session::Phase;
use crate::smtp::sink::Verb;

/// Longest text or path, bytes.
const TEXT_BYTES_MAX: usize = 1_024;
/// Different values of one histogram; it has fewer.
const VALUES_MAX: u64 = 16_384;

/// State of one worker.
#[derive(Clone, Debug)]
pub struct Snapshot {
    unhealthy: Option<String>,
    unready: Option<String>,
    sessions: Vec<u64>,
    clients: Option<Clients>,
    pool: Pool,
    ring: Option<RingState>,
    consumers: Vec<ConsumerState>,
    newest: Vec<Summary>,
    log_lines_dropped: u64,
    /// Counters and histograms.
    pub metrics: Metrics,
}

#[derive(Clone, Copy, Debug, Default)]
struct RingState {
    shard: u64,
    bytes: u64,
    used_bytes: u64,
    tail: u64,
    head: u64,
    durable: u64,
    epoch: u64,
    oldest_number: u64,
    next_number: u64,
}

#[derive(Clone, Debug)]
struct ConsumerState {
    name: String,
    shard: u64,
    connected: bool,
    lag_messages: u64,
    lag_bytes: u64,
    lag_ns: u64,
}

/// Counters of nothing, with the rows that all workers have.
pub fn no_metrics() -> Metrics {
    Metrics::new(Verb::COUNT, reply::ROWS.len())
}

/// The bytes of a state.
pub fn encode(status: &Status<'_>) -> Vec<u8> {
    let mut out = Output(Vec::with_capacity(8_192));
    out.option(status.unhealthy.as_ref(), |out, text| {
        out.bytes(text.as_bytes())
    });
    out.option(status.unready.as_ref(), |out, text| {
        out.bytes(text.as_bytes())
    });
    for (_, count) in status.sessions {
        out.number(*count);
    }
    out.option(status.clients.as_ref(), |out, clients| {
        out.number(u64::from(clients.stress));
        out.number(clients.tarpitted);
        out.number(clients.evictions);
        out.number(clients.untracked);
    });
    out.number(status.pool.bytes);
    out.number(status.pool.used_bytes);
    out.option(status.rings.first(), |out, ring| {
        for number in [
            u64::from(ring.shard),
            ring.bytes,
            ring.used_bytes,
            ring.tail,
            ring.head,
            ring.durable,
            u64::from(ring.epoch),
            ring.oldest_number,
            ring.next_number,
        ] {
            out.number(number);
        }
    });
    out.list(status.consumers, |out, consumer| {
        out.bytes(consumer.name.as_bytes());
        out.number(u64::from(consumer.shard));
        out.number(u64::from(consumer.connected));
        out.number(consumer.lag_messages);
        out.number(consumer.lag_bytes);
        out.number(consumer.lag_ns);
    });
    let newest = &status.newest[..status.newest.len().min(NEWEST_MAX)];
    out.list(newest, |out, message| {
        out.number(u64::from(message.shard));
        out.number(message.number);
        out.number(message.received_ns);
        out.number(message.octets);
        out.bytes(message.from);
        out.bytes(message.to);
        out.number(u64::from(message.recipients));
    });
    out.number(status.log_lines_dropped);
    out.metrics(status.metrics);
    out.0
}

impl Snapshot {
    /// Reads what [`encode`] wrote; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Snapshot> {
        let mut input = Input(bytes);
        let snapshot = Snapshot {
            unhealthy: input.option(Input::text)?,
            unready: input.option(Input::text)?,
            sessions: (0..Phase::NAMES.len())
                .map(|_| input.number())
                .collect::<Option<_>>()?,
            clients: input.option(|input| {
                Some(Clients {
                    stress: input.number()? != 0,
                    tarpitted: input.number()?,
                    evictions: input.number()?,
                    untracked: input.number()?,
                })
            })?,
            pool: Pool {
                bytes: input.number()?,
                used_bytes: input.number()?,
            },
            ring: input.option(|input| {
                Some(RingState {
                    shard: input.number()?,
                    bytes: input.number()?,
                    used_bytes: input.number()?,
                    tail: input.number()?,
                    head: input.number()?,
                    durable: input.number()?,
                    epoch: input.number()?,
                    oldest_number: input.number()?,
                    next_number: input.number()?,
                })
            })?,
            consumers: input.list(CONSUMERS_MAX, |input| {
                Some(ConsumerState {
                    name: input.text()?,
                    shard: input.number()?,
                    connected: input.number()? != 0,
                    lag_messages: input.number()?,
                    lag_bytes: input.number()?,
                    lag_ns: input.number()?,
                })
            })?,
            newest: input.list(NEWEST_MAX, |input| {
                Some(Summary {
                    shard: u32::try_from(input.number()?).ok()?,
                    number: input.number()?,
                    received_ns: input.number()?,
                    octets: input.number()?,
                    from: input.bytes()?.to_vec(),
                    to: input.bytes()?.to_vec(),
                    recipients: u32::try_from(input.number()?).ok()?,
                })
            })?,
            log_lines_dropped: input.number()?,
            metrics: input.metrics()?,
        };
        input.0.is_empty().then_some(snapshot)
    }
}

/// What a parent knows beside the states of its workers.
#[derive(Clone, Debug)]
pub struct Others {
    /// Counters of workers that have ended, and of the parent itself.
    pub metrics: Metrics,
    /// Log lines that these have dropped.
    pub log_lines_dropped: u64,
    /// What is wrong with the whole, if anything.
    pub unhealthy: Option<String>,
    /// Why not all workers take mail, if there is a reason beside what they say themselves.
    pub unready: Option<String>,
}

/// A worker's number and its latest state, as far as it has told one.
pub type Told<'a> = (usize, Option<&'a Snapshot>);

/// Appends the answer to an HTTP request about all workers.
pub fn answer(
    about: &About,
    workers: &[Told<'_>],
    others: &Others,
    request: &Request,
    now_ns: u64,
    out: &mut Vec<u8>,
) {
    with_status(about, workers, others, now_ns, |status| {
        respond(request, status, out);
    });
}

/// Lends the state of all workers as that of one server.
pub fn with_status<R>(
    about: &About,
    workers: &[Told<'_>],
    others: &Others,
    now_ns: u64,
    f: impl FnOnce(&Status<'_>) -> R,
) -> R {
    let told = || workers.iter().filter_map(|(_, snapshot)| *snapshot);
    let mut metrics = others.metrics.clone();
    for snapshot in told() {
        metrics.merge(&snapshot.metrics);
    }
    let fault = |of: fn(&Snapshot) -> &Option<String>| {
        workers.iter().find_map(|(index, snapshot)| {
            let text = of((*snapshot)?).as_ref()?;
            Some(format!("worker {index}: {text}"))
        })
    };
    let unhealthy = others.unhealthy.clone().or_else(|| fault(|s| &s.unhealthy));
    let unready = others.unready.clone().or_else(|| fault(|s| &s.unready));
    let sum = |of: fn(&Snapshot) -> u64| told().map(of).sum::<u64>();
    let sessions: Vec<(&str, u64)> = Phase::NAMES
        .iter()
        .enumerate()
        .map(|(at, name)| (*name, told().map(|s| s.sessions[at]).sum()))
        .collect();
    let rings: Vec<Ring<'_>> = told()
        .filter_map(|snapshot| snapshot.ring)
        .map(|ring| Ring {
            shard: ring.shard as u32,
            directory: &about.ring_directory,
            write: about.ring_write,
            bytes: ring.bytes,
            used_bytes: ring.used_bytes,
            tail: ring.tail,
            head: ring.head,
            durable: ring.durable,
            epoch: ring.epoch as u32,
            oldest_number: ring.oldest_number,
            next_number: ring.next_number,
        })
        .collect();
    let mut consumers: Vec<Consumer<'_>> = told()
        .flat_map(|snapshot| &snapshot.consumers)
        .map(|consumer| Consumer {
            name: &consumer.name,
            shard: consumer.shard as u32,
            connected: consumer.connected,
            lag_messages: consumer.lag_messages,
            lag_bytes: consumer.lag_bytes,
            lag_ns: consumer.lag_ns,
        })
        .collect();
    consumers.sort_by_key(|consumer| (consumer.name, consumer.shard));
    let mut newest: Vec<Message<'_>> = told()
        .flat_map(|snapshot| &snapshot.newest)
        .map(Summary::message)
        .collect();
    newest.sort_by_key(|m| std::cmp::Reverse((m.received_ns, m.shard, m.number)));
    newest.truncate(NEWEST_MAX);
    let clients = told().filter_map(|snapshot| snapshot.clients);
    let clients = clients.reduce(|sum, one| Clients {
        stress: sum.stress || one.stress,
        tarpitted: sum.tarpitted + one.tarpitted,
        evictions: sum.evictions + one.evictions,
        untracked: sum.untracked + one.untracked,
    });
    f(&Status {
        server_name: &about.server_name,
        started_ns: about.started_ns,
        now_ns,
        listen: &about.listen,
        unhealthy: unhealthy.as_deref(),
        unready: unready.as_deref().or(unhealthy.as_deref()),
        survive: about.survive,
        full: about.full,
        keep_for_s: about.keep_for_s,
        sessions: &sessions,
        sessions_max: about.sessions_max,
        clients,
        pool: Pool {
            bytes: sum(|snapshot| snapshot.pool.bytes),
            used_bytes: sum(|snapshot| snapshot.pool.used_bytes),
        },
        rings: &rings,
        consumers: &consumers,
        newest: &newest,
        log_lines_dropped: others.log_lines_dropped + sum(|snapshot| snapshot.log_lines_dropped),
        metrics: &metrics,
        commands: &Verb::NAMES,
        replies: &reply_names(),
    })
}

impl Snapshot {
    /// Log lines that the worker dropped.
    pub fn log_lines_dropped(&self) -> u64 {
        self.log_lines_dropped
    }
}

struct Output(Vec<u8>);

impl Output {
    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    /// What is longer than any text is cut.
    fn bytes(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(TEXT_BYTES_MAX)];
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Output, T)) {
        self.number(u64::from(value.is_some()));
        if let Some(value) = value {
            put(self, value);
        }
    }

    fn list<T>(&mut self, values: &[T], mut put: impl FnMut(&mut Output, &T)) {
        self.number(values.len() as u64);
        values.iter().for_each(|value| put(self, value));
    }

    fn metrics(&mut self, metrics: &Metrics) {
        metrics
            .clone()
            .each_counter(&mut |counter| self.number(*counter));
        for phase in Measured::ALL {
            let (pairs, sum) = metrics.distribution(phase).pairs();
            self.number(sum);
            self.list(&pairs, |out, (value, count)| {
                out.number(*value);
                out.number(*count);
            });
        }
    }
}

/// Reads the parts; every method is `None` past the end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn number(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn text(&mut self) -> Option<String> {
        Some(String::from_utf8_lossy(self.bytes()?).into_owned())
    }

    fn option<T>(&mut self, take: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.number()? {
            0 => Some(None),
            1 => Some(Some(take(self)?)),
            _ => None,
        }
    }

    fn list<T>(
        &mut self,
        max: usize,
        mut take: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let len = usize::try_from(self.number()?).ok()?;
        (len <= max).then_some(())?;
        (0..len).map(|_| take(self)).collect()
    }

    fn metrics(&mut self) -> Option<Metrics> {
        let mut metrics = no_metrics();
        let mut whole = true;
        metrics.each_counter(&mut |counter| match self.number() {
            Some(number) => *counter = number,
            None => whole = false,
        });
        whole.then_some(())?;
        for phase in Measured::ALL {
            metrics.add_sum(phase, self.number()?);
            let len = self.number().filter(|len| *len <= VALUES_MAX)?;
            for _ in 0..len {
                let value = self.number()?;
                metrics.record_counted(phase, value, self.number()?);
            }
        }
        Some(metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::status_document;

    fn about() -> About {
        About {
            server_name: "mx.example".to_owned(),
            started_ns: 0,
            listen: vec!["127.0.0.1:2525".to_owned()],
            survive: "power",
            full: "auto",
            keep_for_s: 0,
            ring_directory: "./ringmx-data".to_owned(),
            ring_write: "pwrite",
            sessions_max: 20,
        }
    }

    /// A worker with everything filled in; what it holds differs by `shard`.
    fn worker(shard: u32, change: impl FnOnce(&mut Status<'_>)) -> Vec<u8> {
        let mut metrics = no_metrics();
        metrics.each_counter(&mut |counter| *counter = 3 + u64::from(shard));
        for value in 0..500 {
            metrics.record(Measured::Sync, value * 10_000);
        }
        let sessions: Vec<(&str, u64)> = Phase::NAMES.into_iter().zip(1..).collect();
        let mut status = Status {
            server_name: "",
            started_ns: 0,
            now_ns: 0,
            listen: &[],
            unhealthy: None,
            unready: None,
            survive: "power",
            full: "auto",
            keep_for_s: 0,
            sessions: &sessions,
            sessions_max: 10,
            clients: Some(Clients {
                stress: shard == 1,
                tarpitted: 1,
                evictions: 2,
                untracked: 3,
            }),
            pool: Pool {
                bytes: 100,
                used_bytes: 10,
            },
            rings: &[Ring {
                shard,
                directory: "",
                write: "",
                bytes: 4_096,
                used_bytes: 1_024,
                tail: 64,
                head: 128,
                durable: 64,
                epoch: 2,
                oldest_number: 1,
                next_number: 7,
            }],
            consumers: &[Consumer {
                name: "store",
                shard,
                connected: true,
                lag_messages: 1,
                lag_bytes: 2,
                lag_ns: 3,
            }],
            newest: &[Message {
                shard,
                number: 6,
                received_ns: 1_000 - u64::from(shard),
                octets: 5,
                from: b"a@example.org",
                to: b"\xFFb@example.org",
                recipients: 2,
            }],
            log_lines_dropped: 2,
            metrics: &metrics,
            commands: &Verb::NAMES,
            replies: &reply_names(),
        };
        change(&mut status);
        encode(&status)
    }

    fn others() -> Others {
        Others {
            metrics: no_metrics(),
            log_lines_dropped: 1,
            unhealthy: None,
            unready: None,
        }
    }

    fn document(workers: &[Told<'_>], others: &Others) -> serde_json::Value {
        let text = with_status(&about(), workers, others, 0, status_document);
        serde_json::from_str(&text).expect("JSON")
    }

    #[test]
    fn two_workers_are_added_and_their_rings_stay_apart() {
        let first = Snapshot::decode(&worker(0, |_| ())).expect("whole");
        let second = Snapshot::decode(&worker(1, |_| ())).expect("whole");
        let mut others = others();
        others.metrics.http_requests = 100;
        let all = document(&[(0, Some(&first)), (1, Some(&second))], &others);
        assert_eq!(all["messages"]["accepted"], 3 + 4);
        assert_eq!(all["http_requests"], 100 + 3 + 4);
        assert_eq!(all["sessions"][Phase::NAMES[1]], 4);
        assert_eq!(all["sessions_max"], 20);
        assert_eq!(all["pool"]["used_bytes"], 20);
        assert_eq!(all["clients"]["stress"], true);
        assert_eq!(all["clients"]["evictions"], 4);
        assert_eq!(all["log_lines_dropped"], 5);
        assert_eq!(
            all["ring"],
            serde_json::json!({
                "directory": "./ringmx-data", "write": "pwrite", "bytes": 8_192, "used_bytes": 2_048
            })
        );
        let shards = all["shards"].as_array().expect("an array");
        let numbers: Vec<_> = shards.iter().map(|s| s["shard"].as_u64()).collect();
        assert_eq!(numbers, [Some(0), Some(1)]);
        assert_eq!(shards[1]["next_number"], 7);
        assert_eq!(all["consumers"][1]["shard"], 1);
        assert_eq!(all["newest"][0]["id"], "0-6");
        assert_eq!(all["newest"][1]["id"], "1-6");
        assert_eq!(all["newest"][1]["to"], "\\xFFb@example.org");
        let sync = &all["phases"]["sync"];
        assert_eq!(sync["count"], 1_000);
        assert_eq!(sync["sum_ns"], 2 * 10_000 * (499 * 500 / 2_u64));
        assert_eq!(all["healthy"], true);
    }

    #[test]
    fn one_worker_that_does_not_work_is_named() {
        let bytes = worker(1, |status| {
            status.unhealthy = Some("storage failed");
            status.unready = Some("storage failed");
        });
        let well = Snapshot::decode(&worker(0, |_| ())).expect("whole");
        let ill = Snapshot::decode(&bytes).expect("whole");
        let workers = [(0, Some(&well)), (1, Some(&ill)), (2, None)];
        let all = document(&workers, &others());
        assert_eq!(all["unhealthy_because"], "worker 1: storage failed");
        assert_eq!(all["unready_because"], "worker 1: storage failed");
        let mut others = others();
        others.unhealthy = Some("worker 2 has gone".to_owned());
        let all = document(&workers[..1], &others);
        assert_eq!(all["unhealthy_because"], "worker 2 has gone");
        assert_eq!(all["ready"], false);
    }

    #[test]
    fn a_state_that_was_cut_or_lengthened_is_none() {
        let whole = worker(0, |_| ());
        for len in (0..whole.len()).step_by(7) {
            assert!(Snapshot::decode(&whole[..len]).is_none(), "{len} octets");
        }
        assert!(Snapshot::decode(&[&whole[..], b"x"].concat()).is_none());
    }

    #[test]
    fn a_state_with_everything_filled_fits_into_a_frame() {
        let mut metrics = no_metrics();
        for phase in Measured::ALL {
            for bit in 0..64 {
                for step in 0..256 {
                    metrics.record(phase, (1_u64 << bit).saturating_add(step << bit >> 8));
                }
            }
        }
        // For as long as the tests run: a state borrows all that it shows.
        let metrics: &'static Metrics = Box::leak(Box::new(metrics));
        let consumers: Vec<Consumer<'_>> = (0..CONSUMERS_MAX)
            .map(|number| Consumer {
                name: format!("{number:0>31}").leak(),
                ..Consumer::default()
            })
            .collect();
        let consumers: &'static [Consumer<'_>] = consumers.leak();
        let path: &'static [u8] = vec![b'x'; TEXT_BYTES_MAX].leak();
        let message = Message {
            from: path,
            to: path,
            ..Message::default()
        };
        let newest: &'static [Message<'_>] = vec![message; NEWEST_MAX].leak();
        let bytes = worker(0, |status| {
            status.metrics = metrics;
            status.consumers = consumers;
            status.newest = newest;
        });
        assert!(bytes.len() + 16 < crate::limits::LINK_FRAME_BYTES_MAX);
        assert!(Snapshot::decode(&bytes).is_some());
    }
}
