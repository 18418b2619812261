//! Readers and consumers beside a writer that laps them: stopped, continued and killed while it goes on. Whatever a
//! reader hands out is what was sent, whole and in order; what it missed it says; a consumer gets everything.

#[allow(dead_code, reason = "other tests use what this one does not")]
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use process::{
    Key, MIDDLE, Process, Server, TestDir, content, key_of, ringmx, wait_until, without_trace,
};

const RING_BYTES: u64 = 4 << 20;

/// Clients that send until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    /// Times that the ring was full.
    refused: Arc<AtomicU64>,
    ledger: Arc<Mutex<BTreeMap<u64, Key>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// `clients` send one message a session, so that each of them stops soon.
    fn start(address: SocketAddr, clients: &[u32]) -> Load {
        let (stop, acknowledged) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let refused = Arc::new(AtomicU64::new(0));
        let ledger = Arc::new(Mutex::new(BTreeMap::new()));
        let clients = clients
            .iter()
            .map(|&client| {
                let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
                let (refused, ledger) = (refused.clone(), ledger.clone());
                std::thread::spawn(move || {
                    send(address, client, &stop, &acknowledged, &refused, &ledger);
                })
            })
            .collect();
        Load {
            stop,
            acknowledged,
            refused,
            ledger,
            clients,
        }
    }

    /// Waits until the clients have sent so many octets more.
    fn more(&self, octets: u64) {
        let until = self.acknowledged.load(Ordering::SeqCst) + octets;
        wait_until("the ring is lapped", || {
            self.acknowledged.load(Ordering::SeqCst) >= until
        });
    }

    /// Waits until the clients have sent so many octets more, or the ring is full.
    fn more_or_full(&self, octets: u64) {
        let until = self.acknowledged.load(Ordering::SeqCst) + octets;
        let refused = self.refused.load(Ordering::SeqCst);
        wait_until("the ring is filled", || {
            self.acknowledged.load(Ordering::SeqCst) >= until
                || self.refused.load(Ordering::SeqCst) > refused
        });
    }

    /// Every number that was acknowledged, and its message.
    fn end(self) -> BTreeMap<u64, Key> {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.join().unwrap();
        }
        Arc::into_inner(self.ledger).unwrap().into_inner().unwrap()
    }
}

fn send(
    address: SocketAddr,
    client: u32,
    stop: &AtomicBool,
    acknowledged: &AtomicU64,
    refused: &AtomicU64,
    ledger: &Mutex<BTreeMap<u64, Key>>,
) {
    let mut connection = process::Client::open(address).unwrap();
    let mut sequence = 0;
    while !stop.load(Ordering::SeqCst) {
        let key = (client, sequence);
        let octets = content(key);
        match connection.deliver(&octets) {
            Ok(reply) => {
                let number = process::number_in(&reply);
                ledger.lock().unwrap().insert(number, key);
                acknowledged.fetch_add(octets.len() as u64, Ordering::SeqCst);
            }
            // A ring that a consumer holds is full for now.
            Err(error) if error.to_string().contains(" 452 4.3.1 ") => {
                refused.fetch_add(1, Ordering::SeqCst);
                connection = process::Client::open(address).unwrap();
            }
            Err(error) => panic!("{key:?}: {error}"),
        }
        // Its messages of more than an eighth of this ring are left out.
        sequence = (sequence + 1) % 1_000_000;
        while content((client, sequence)).len() as u64 > RING_BYTES / 10 {
            sequence += 1;
        }
    }
}

fn signal(process: &Process, name: &str) {
    let status = Command::new("kill")
        .args([name, &process.pid().to_string()])
        .status();
    assert!(status.unwrap().success());
}

/// One line of a reader.
struct Seen {
    number: u64,
    position: u64,
    message: Option<String>,
}

fn lines_of(out: &str) -> Vec<Seen> {
    let parse = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        Seen {
            number: value["number"].as_u64().unwrap(),
            position: value["position"].as_u64().unwrap(),
            message: value["message"].as_str().map(str::to_owned),
        }
    };
    out.lines().map(parse).collect()
}

/// Ranges that a reader says were overwritten before it read them.
fn overtaken(errors: &str) -> Vec<(u64, u64)> {
    let said = errors
        .lines()
        .filter_map(|line| line.split_once("overwritten before it was read: positions "));
    said.map(|(_, range)| {
        let (from, to) = range.split_once(" to ").unwrap();
        let to = to.split(' ').next().unwrap();
        (from.parse().unwrap(), to.parse().unwrap())
    })
    .collect()
}

/// Holds what a reader printed against what was acknowledged.
fn check_reader(who: &str, out: &str, errors: &str, ledger: &BTreeMap<u64, Key>) {
    let seen = lines_of(out);
    let gaps = overtaken(errors);
    assert!(!errors.contains("damaged"), "{who}: {errors}");
    assert!(
        !gaps.is_empty(),
        "{who} was stopped over two laps and says nothing: {errors}"
    );
    for pair in seen.windows(2) {
        let [before, after] = pair else {
            unreachable!()
        };
        assert!(
            before.number < after.number,
            "{who}: {} before {}",
            before.number,
            after.number
        );
        let missing = ledger.range(before.number + 1..after.number).count();
        let said = gaps
            .iter()
            .any(|(from, to)| *from > before.position && *to <= after.position);
        assert!(
            missing == 0 || said,
            "{who}: {missing} messages between {} and {} are missing, which it did not say",
            before.number,
            after.number
        );
    }
    for seen in &seen {
        let Some(key) = ledger.get(&seen.number) else {
            panic!("{who}: {} was not acknowledged", seen.number);
        };
        if let Some(message) = &seen.message {
            assert_eq!(
                key_of(without_trace(message.as_bytes())),
                Some(*key),
                "{who}"
            );
        }
    }
    let last = ledger.keys().next_back();
    assert_eq!(
        seen.last().map(|seen| &seen.number),
        last,
        "{who}: the last message"
    );
    println!(
        "{who}: {} of {} messages, overtaken {} times",
        seen.len(),
        ledger.len(),
        gaps.len()
    );
}

/// What a tool finds in the ring at this moment, amid the laps.
fn read_once(dir: &TestDir, round: u32) {
    let ring = dir.ring();
    let out = TestDir::new();
    let eml = out.join("eml");
    let exported = ringmx(&["log", "export", "--eml", &eml, "--ring", &ring]);
    let errors = String::from_utf8(exported.stderr).unwrap();
    assert_eq!(exported.status.code(), Some(0), "round {round}: {errors}");
    assert!(!errors.contains("damaged"), "round {round}: {errors}");
    let mut found = BTreeSet::new();
    for file in fs::read_dir(&eml).unwrap() {
        let octets = fs::read(file.unwrap().path()).unwrap();
        let key = key_of(without_trace(&octets));
        assert!(
            found.insert(key.expect("a whole message")),
            "round {round}: {key:?} twice"
        );
    }
    let verified = ringmx(&["log", "verify", "--ring", &ring]);
    let said = String::from_utf8(verified.stdout).unwrap();
    assert_eq!(verified.status.code(), Some(0), "round {round}: {said}");
    assert!(said.ends_with("all good\n"), "round {round}: {said}");
    // The oldest message, which is about to go: whole, or not there.
    let listed = ringmx(&["log", "ls", "--ring", &ring]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    for line in listed.lines().take(3) {
        let id = line.split(' ').next().unwrap();
        let cat = ringmx(&["log", "cat", "--raw", id, "--ring", &ring]);
        let errors = String::from_utf8_lossy(&cat.stderr).into_owned();
        match cat.status.code() {
            Some(0) => assert!(
                key_of(without_trace(&cat.stdout)).is_some(),
                "round {round}: {id}"
            ),
            code => {
                assert_eq!(code, Some(1), "round {round}: {id}: {errors}");
                assert!(cat.stdout.is_empty(), "round {round}: {id}");
                assert!(!errors.contains("damaged"), "round {round}: {errors}");
            }
        }
    }
}

fn readers_of_a_ring_that_laps_them(ring_write: &str) {
    let dir = TestDir::new();
    let options = [
        ["--ring-size", "4MiB"],
        ["--full", "overwrite"],
        ["--survive", "process"],
        ["--ring-write", ring_write],
        ["--log-level", "error"],
    ];
    let server = Server::start(&dir, &options.concat());
    let ring = dir.ring();
    let tap = Process::start(&["consume", "tap", "--to", "stdout", "--ring", &ring]);
    let follow = Process::start(&["log", "follow", "--json", "--ring", &ring]);
    let load = Load::start(server.address, &[1, 2, MIDDLE + 1]);
    for round in 0..4 {
        for reader in [&tap, &follow] {
            signal(reader, "-STOP");
        }
        // In steps, each with its own deadline: two laps and a half.
        for _ in 0..10 {
            load.more(RING_BYTES / 4);
        }
        for reader in [&tap, &follow] {
            signal(reader, "-CONT");
        }
        read_once(&dir, round);
        load.more(RING_BYTES / 2);
    }
    let ledger = load.end();
    // The server's end is that of `follow`, which prints the rest first. The tap would wait for another server.
    let last = format!("\"number\":{},", ledger.keys().next_back().unwrap());
    let mut tapped = String::new();
    while !tapped
        .lines()
        .next_back()
        .is_some_and(|line| line.contains(&last))
    {
        tapped += &tap.line().expect("the last message");
        tapped += "\n";
    }
    server.stop();
    let (code, out, errors) = follow.wait();
    assert_eq!(code, Some(0), "{errors}");
    check_reader("log follow", &out, &errors, &ledger);
    tap.terminate();
    let (code, out, errors) = tap.wait();
    assert_eq!((code, &out[..]), (Some(0), ""), "{errors}");
    check_reader("consume --to stdout", &tapped, &errors, &ledger);
}

#[test]
fn readers_that_a_writer_of_the_file_laps_hand_out_nothing_wrong_and_say_what_they_missed() {
    readers_of_a_ring_that_laps_them("pwrite");
}

#[test]
fn readers_that_a_writer_through_a_map_laps_hand_out_nothing_wrong_and_say_what_they_missed() {
    readers_of_a_ring_that_laps_them("map");
}

/// Each number goes to the end of a file when its message has been stored: the order of deliveries, repeats included.
#[test]
fn consumers_that_are_stopped_and_killed_get_everything_in_order_while_the_ring_wraps() {
    let dir = TestDir::new();
    let options = [
        "--ring-size",
        "4MiB",
        "--full",
        "defer",
        "--log-level",
        "error",
    ];
    let server = Server::start(&dir, &options);
    let ring = dir.ring();
    fs::create_dir(dir.join("got")).unwrap();
    let order = dir.join("order");
    let command = format!(
        "exec:cat > {}/$RINGMX_NUMBER && echo $RINGMX_NUMBER >> {order}",
        dir.join("got")
    );
    let arguments = [
        "consume", "archive", "--create", "--to", &command, "--ring", &ring,
    ];
    let delivered = || {
        fs::read_to_string(&order)
            .unwrap_or_default()
            .lines()
            .count()
    };
    let mut consumer = Process::start(&arguments);
    let load = Load::start(server.address, &[1, 2, MIDDLE + 1]);
    for round in 0..8 {
        let before = delivered();
        wait_until("deliveries", || delivered() > before + 3 + round);
        match round % 2 {
            0 => {
                consumer.kill();
                consumer = Process::start(&arguments);
            }
            _ => {
                signal(&consumer, "-STOP");
                // It holds the ring meanwhile.
                load.more_or_full(2 * RING_BYTES);
                signal(&consumer, "-CONT");
            }
        }
    }
    let ledger = load.end();
    let all_delivered = || {
        let order = fs::read_to_string(&order).unwrap();
        let numbers: BTreeSet<u64> = order.lines().map(|line| line.parse().unwrap()).collect();
        ledger.keys().all(|number| numbers.contains(number))
    };
    wait_until("everything is delivered", all_delivered);
    consumer.terminate();
    let (code, _, errors) = consumer.wait();
    assert_eq!(code, Some(0), "{errors}");
    server.stop();
    let numbers: Vec<u64> = fs::read_to_string(&order)
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    // A number may come again; none comes for the first time behind a later one.
    let mut newest = 0;
    for number in &numbers {
        if *number > newest {
            let skipped = ledger.range(newest + 1..*number).next();
            assert_eq!(skipped, None, "{number} came before it");
            newest = *number;
        }
    }
    for (number, key) in &ledger {
        let octets = fs::read(format!("{}/{number}", dir.join("got"))).unwrap();
        assert_eq!(key_of(without_trace(&octets)), Some(*key), "{number}");
    }
    println!("{} messages, {} deliveries", ledger.len(), numbers.len());
}
