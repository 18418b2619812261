//! A real server is killed with SIGKILL in the middle of its work and started again: what got a 250 is there,
//! once, octet for octet, and nothing is there that was not sent.
//!
//! `RINGMX_KILLS=n` kills that often instead of ten times.

#[allow(dead_code, reason = "other tests use what this one does not")]
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::channel;

use process::{Key, PATIENCE, Server, TestDir, key_of, load, output_of, stored};

const CLIENTS: u32 = 8;

/// What all rounds so far have to have left in the ring.
#[derive(Default)]
struct Known {
    acknowledged: BTreeSet<Key>,
    in_doubt: BTreeSet<Key>,
}

/// Loads the server from several clients, kills it after `acknowledgements`, and notes what is known then.
fn load_and_kill(server: Server, round: u32, acknowledgements: u32, known: &mut Known) {
    let (counter, counted) = channel();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (address, counter) = (server.address, counter.clone());
            // Client numbers differ in each round: a key names one message of the whole test.
            let client = round * CLIENTS + client;
            std::thread::spawn(move || {
                load(address, client, move || {
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
        assert_eq!(ledger.refused, None, "round {round}");
        known.acknowledged.extend(ledger.acknowledged);
        known.in_doubt.extend(ledger.in_doubt);
    }
}

/// Compares the ring with what is known.
fn check(dir: &TestDir, round: u32, known: &Known) {
    let mut found: BTreeMap<Key, u32> = BTreeMap::new();
    for (number, message) in stored(dir) {
        let head = String::from_utf8_lossy(&message[..message.len().min(80)]).into_owned();
        let key = key_of(&message).unwrap_or_else(|| panic!("round {round}: {number}: {head}"));
        *found.entry(key).or_default() += 1;
    }
    let twice: Vec<_> = found.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "round {round}: stored twice: {twice:?}");
    let found: BTreeSet<Key> = found.into_keys().collect();
    let lost: Vec<_> = known.acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "round {round}: lost: {lost:?}");
    let allowed = &known.acknowledged | &known.in_doubt;
    let never_sent: Vec<_> = found.difference(&allowed).collect();
    assert!(
        never_sent.is_empty(),
        "round {round}: stored, but never sent whole: {never_sent:?}"
    );
}

fn kills(default: u32) -> u32 {
    match std::env::var("RINGMX_KILLS") {
        Ok(count) => count.parse().expect("RINGMX_KILLS is a number"),
        Err(_) => default,
    }
}

fn kill_again_and_again(survive: &str, rounds: u32) {
    let dir = TestDir::new();
    let options = ["--survive", survive, "--ring-size", "256MiB"];
    // Nothing may be overwritten: the ring refuses before it forgets.
    let options = [&options[..], &["--full", "defer", "--log-level", "error"]].concat();
    let mut known = Known::default();
    for round in 0..rounds {
        let server = Server::start(&dir, &options);
        // Early and late: with almost nothing in the ring, amid large messages, after some batches.
        load_and_kill(server, round, 1 + round * 37, &mut known);
        // Every other time before anything recovers the ring, so that readers alone have to get it right.
        if round % 2 == 0 {
            check(&dir, round, &known);
        }
        let server = Server::start(&dir, &options);
        check(&dir, round, &known);
        server.stop();
    }
    check(&dir, rounds, &known);
    let verified = output_of(&["log", "verify", "--ring", &dir.ring()]);
    let verified = String::from_utf8(verified).unwrap();
    assert!(verified.ends_with("all good\n"), "{verified}");
    assert!(known.acknowledged.len() as u32 >= rounds * (rounds - 1) / 2 * 37 + rounds);
}

#[test]
fn kills_lose_and_double_nothing_that_was_acknowledged_after_its_sync() {
    kill_again_and_again("power", kills(10));
}

#[test]
fn kills_lose_and_double_nothing_that_was_acknowledged_in_the_page_cache() {
    kill_again_and_again("process", kills(10).div_ceil(3));
}
