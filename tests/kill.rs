//! A real server is killed with SIGKILL in the middle of its work and started again: what got a 250 is there,
//! once, octet for octet, under the number that the 250 named, and nothing is there that was not sent.
//!
//! `RINGMX_KILLS=n` kills n times in all instead of 16 times.

#[allow(dead_code, reason = "other tests use what this one does not")]
mod process;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Instant;

use process::{
    Key, Known, LARGE, Ledger, MIDDLE, PATIENCE, Process, Server, TestDir, content, key_of, load,
    verify, wait_until, without_trace,
};

const CLIENTS: u32 = 8;
/// Tests of this file, which share the kills.
const TESTS: u32 = 8;
/// Kills that one ring goes through at most; fewer where it would be full.
const KILLS_OF_A_RING: u32 = 10;
const RING_BYTES: usize = 16 << 20;

/// What makes place for new messages.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Nothing: the ring is larger than all of them.
    Enough,
    /// Old messages give way.
    Overwritten,
    /// A consumer that runs beside the server, and is killed as well.
    Consumed,
}

struct Variant {
    survive: &'static str,
    ring_write: &'static str,
    /// Number of the first client: says how large its messages are.
    first_client: u32,
    /// Acknowledgements that a load waits for at most.
    acknowledgements: u32,
    place: Place,
}

#[derive(Default)]
struct Totals {
    kills: u32,
    acknowledged: usize,
    in_doubt: usize,
    found: usize,
}

/// One ring and everything that happened to it.
struct Life<'a> {
    variant: &'a Variant,
    dir: TestDir,
    known: Known,
    next_client: u32,
    /// What the consumer got: number and message.
    consumed: BTreeMap<u64, Key>,
    consumer: Option<Process>,
}

impl Life<'_> {
    fn new(variant: &Variant) -> Life<'_> {
        Life {
            variant,
            dir: TestDir::new(),
            known: Known::default(),
            next_client: variant.first_client,
            consumed: BTreeMap::new(),
            consumer: None,
        }
    }

    fn start(&self) -> Server {
        let full = match self.variant.place {
            Place::Overwritten => "overwrite",
            _ => "defer",
        };
        let options = [
            ["--survive", self.variant.survive],
            ["--ring-write", self.variant.ring_write],
            ["--ring-size", "16MiB"],
            ["--full", full],
            ["--log-level", "error"],
        ];
        Server::start(&self.dir, &options.concat())
    }

    /// Loads the server from several clients, kills it after some acknowledgements, and notes what is known then.
    fn load_and_kill(&mut self, server: Server, acknowledgements: u32, when: &str) {
        let (counter, counted) = channel();
        let may_be_full = self.variant.place == Place::Consumed;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (address, counter) = (server.address, counter.clone());
                // Client numbers differ in each round: a key names one message of the ring.
                let client = self.next_client;
                self.next_client += 1;
                std::thread::spawn(move || {
                    send_until_killed(address, client, may_be_full, move || {
                        let _ = counter.send(());
                    })
                })
            })
            .collect();
        drop(counter);
        for _ in 0..acknowledgements {
            counted.recv_timeout(PATIENCE).expect("an acknowledgement");
        }
        server.process.kill();
        for client in clients {
            let ledger = client.join().unwrap();
            assert_eq!(ledger.refused, None, "{when}");
            for (key, number) in ledger.acknowledged {
                self.known.acknowledged.insert(key);
                self.known.numbers.insert(key, number);
            }
            self.known.in_doubt.extend(ledger.in_doubt);
        }
    }

    /// Compares the ring with what is known.
    fn check(&self, when: &str) {
        match self.variant.place {
            Place::Enough => self.known.check(&self.dir, when),
            Place::Overwritten => self.check_the_newest(when),
            // Messages that the consumer has may have given way, others not.
            Place::Consumed => {
                let has = self.consumed.keys().next_back().copied().unwrap_or(0);
                self.known.check_from(&self.dir, has + 1, when);
            }
        }
    }

    /// Whatever is older than the oldest message may be gone, and nothing else.
    fn check_the_newest(&self, when: &str) {
        let oldest = process::stored(&self.dir).keys().next().copied();
        let kept = self.known.check_from(&self.dir, oldest.unwrap_or(0), when);
        let kept: usize = kept.values().map(Vec::len).sum();
        let sent = self.sent();
        assert!(
            kept >= sent.min(RING_BYTES / 2),
            "{when}: {kept} of {sent} octets were kept"
        );
    }

    /// Octets of the messages that were acknowledged.
    fn sent(&self) -> usize {
        let keys = self.known.acknowledged.iter();
        keys.map(|key| content(*key).len()).sum()
    }

    /// Starts the consumer unless it runs.
    fn start_consumer(&mut self) {
        if self.consumer.as_mut().is_some_and(Process::ended) {
            // It outlives servers, but not one that is killed while it asks to be let in.
            let ended = self.consumer.take().map(Process::wait);
            let (code, _, errors) = ended.expect("there was one");
            let refused = errors.starts_with("ringmx consume: control socket: ");
            assert!(code == Some(1) && refused, "{code:?} {errors}");
        }
        if self.variant.place == Place::Consumed && self.consumer.is_none() {
            let target = format!("maildir:{}", self.dir.join("mail"));
            let ring = self.dir.ring();
            let arguments = [
                "consume", "archive", "--create", "--to", &target, "--ring", &ring,
            ];
            self.consumer = Some(Process::start(&arguments));
        }
    }

    /// Takes what the consumer has delivered; each message is looked at and removed.
    fn collect(&mut self, when: &str) {
        let new = Path::new(&self.dir.join("mail")).join("new");
        let Ok(files) = fs::read_dir(&new) else {
            return;
        };
        for file in files {
            let path = file.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let number = name.rsplit('-').next().unwrap().parse().unwrap();
            let octets = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            let key = key_of(without_trace(&octets));
            let key = key.unwrap_or_else(|| panic!("{when}: {name} is not what was sent"));
            // Again is allowed; as something else is not.
            let before = self.consumed.insert(number, key);
            assert!(
                before.is_none_or(|before| before == key),
                "{when}: {number}"
            );
            let sent = self.known.acknowledged.contains(&key) || self.known.in_doubt.contains(&key);
            assert!(sent, "{when}: {key:?} was never sent whole");
            let named = self.known.numbers.get(&key);
            assert!(
                named.is_none_or(|named| *named == number),
                "{when}: {key:?} is {number}"
            );
        }
    }

    /// Waits until the consumer has everything that was acknowledged.
    fn await_consumer(&mut self, when: &str) {
        if self.variant.place != Place::Consumed {
            return;
        }
        wait_until("the consumer has everything", || {
            self.start_consumer();
            self.collect(when);
            self.known
                .numbers
                .values()
                .all(|number| self.consumed.contains_key(number))
        });
        let mut keys: Vec<_> = self.consumed.values().collect();
        keys.sort();
        let all = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), all, "{when}: a message has two numbers");
    }

    /// Starts the server once more, compares what it recovered with what is known, and stops it in order.
    fn recover(&mut self, when: &str) {
        let server = self.start();
        self.start_consumer();
        self.await_consumer(when);
        self.check(when);
        server.stop();
    }

    fn end(mut self, totals: &mut Totals) {
        self.recover("at the end of the ring");
        drop(self.consumer.take());
        verify(&self.dir);
        let stored = process::stored(&self.dir);
        assert_eq!(process::exported(&self.dir), stored);
        totals.acknowledged += self.known.acknowledged.len();
        totals.in_doubt += self.known.in_doubt.len();
        totals.found += match self.variant.place {
            Place::Consumed => self.consumed.len(),
            _ => stored.len(),
        };
    }
}

/// Sends until the connection breaks. A ring that is full for now is tried again.
fn send_until_killed(
    address: std::net::SocketAddr,
    client: u32,
    may_be_full: bool,
    counted: impl Fn() + Clone,
) -> Ledger {
    let mut all = Ledger::default();
    // Each try is another client, so that each message has a name of its own.
    for again in 0.. {
        let ledger = load(address, client + again * 10_000, counted.clone());
        all.acknowledged.extend(ledger.acknowledged);
        all.in_doubt = ledger.in_doubt;
        match ledger.refused {
            Some(reply) if may_be_full && reply.starts_with("452 4.3.1 ") => {
                std::thread::yield_now();
            }
            refused => {
                all.refused = refused;
                break;
            }
        }
    }
    all
}

/// Kills of one test.
fn kills() -> u32 {
    let all: u32 = match std::env::var("RINGMX_KILLS") {
        Ok(count) => count.parse().expect("RINGMX_KILLS is a number"),
        Err(_) => 16,
    };
    all.div_ceil(TESTS)
}

fn kill_again_and_again(variant: &Variant) {
    let begun = Instant::now();
    let mut totals = Totals::default();
    while totals.kills < kills() {
        let mut life = Life::new(variant);
        for round in 0..KILLS_OF_A_RING.min(kills() - totals.kills) {
            let when = format!("kill {} of {}", totals.kills, kills());
            let server = life.start();
            life.start_consumer();
            // Early and late: with almost nothing in the ring, amid large messages, after some batches.
            let acknowledgements = 1 + totals.kills * 37 % variant.acknowledgements;
            life.load_and_kill(server, acknowledgements, &when);
            totals.kills += 1;
            if round % 3 == 2 {
                drop(life.consumer.take());
            }
            // Every other time nothing recovers the ring before it is looked at: readers alone have to get it right,
            // and the next start has what the kill left, with mail coming in at once.
            if round % 2 == 0 {
                life.collect(&when);
                life.check(&when);
            } else {
                life.recover(&format!("{when}, recovered"));
            }
            if variant.place == Place::Enough && life.sent() > RING_BYTES / 3 {
                break;
            }
        }
        life.end(&mut totals);
    }
    println!(
        "{} kills ({}, {}): {} acknowledged, {} in doubt, {} found at the end of their rings, 0 lost, 0 doubled, \
         0 altered, {:.0} s",
        totals.kills,
        variant.survive,
        variant.ring_write,
        totals.acknowledged,
        totals.in_doubt,
        totals.found,
        begun.elapsed().as_secs_f64()
    );
}

#[test]
fn kills_lose_and_double_nothing_that_was_acknowledged_after_its_sync() {
    kill_again_and_again(&Variant {
        survive: "power",
        ring_write: "pwrite",
        first_client: 0,
        acknowledgements: 400,
        place: Place::Enough,
    });
}

#[test]
fn kills_lose_and_double_nothing_that_was_acknowledged_after_the_sync_of_a_map() {
    kill_again_and_again(&Variant {
        survive: "power",
        ring_write: "map",
        first_client: 0,
        acknowledgements: 400,
        place: Place::Enough,
    });
}

#[test]
fn kills_lose_and_double_nothing_that_was_acknowledged_in_the_page_cache() {
    kill_again_and_again(&Variant {
        survive: "process",
        ring_write: "pwrite",
        first_client: 0,
        acknowledgements: 400,
        place: Place::Enough,
    });
}

#[test]
fn kills_lose_and_double_nothing_that_was_acknowledged_in_a_map() {
    kill_again_and_again(&Variant {
        survive: "process",
        ring_write: "map",
        first_client: 0,
        acknowledgements: 400,
        place: Place::Enough,
    });
}

#[test]
fn kills_lose_only_the_oldest_messages_of_a_ring_that_overwrites_after_its_sync() {
    kill_again_and_again(&Variant {
        survive: "power",
        ring_write: "pwrite",
        first_client: MIDDLE,
        acknowledgements: 40,
        place: Place::Overwritten,
    });
}

#[test]
fn kills_lose_only_the_oldest_messages_of_a_ring_that_overwrites_in_the_page_cache() {
    kill_again_and_again(&Variant {
        survive: "process",
        ring_write: "map",
        first_client: MIDDLE,
        acknowledgements: 40,
        place: Place::Overwritten,
    });
}

#[test]
fn kills_keep_no_message_from_a_consumer_of_a_ring_that_wraps_after_its_sync() {
    kill_again_and_again(&Variant {
        survive: "power",
        ring_write: "pwrite",
        first_client: LARGE,
        acknowledgements: 16,
        place: Place::Consumed,
    });
}

#[test]
fn kills_keep_no_message_from_a_consumer_of_a_ring_that_wraps_in_the_page_cache() {
    kill_again_and_again(&Variant {
        survive: "process",
        ring_write: "map",
        first_client: LARGE,
        acknowledgements: 16,
        place: Place::Consumed,
    });
}
