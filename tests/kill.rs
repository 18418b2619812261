//! A real server is killed with SIGKILL in the middle of its work and started again: what got a 250 is there,
//! once, octet for octet, and nothing is there that was not sent.
//!
//! `RINGMX_KILLS=n` kills that often instead of ten times.

#[allow(dead_code, reason = "other tests use what this one does not")]
mod process;

use std::sync::mpsc::channel;

use process::{Known, PATIENCE, Server, TestDir, load, verify};

const CLIENTS: u32 = 8;

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
            known.check(&dir, &format!("round {round}"));
        }
        let server = Server::start(&dir, &options);
        known.check(&dir, &format!("round {round}"));
        server.stop();
    }
    known.check(&dir, "at the end");
    verify(&dir);
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
