//! Several workers on one address, as real processes: no acknowledged message is lost when one of them, or their
//! parent, is killed amid load, and what is shown is what was done.

#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "this crate uses a part of it")]
mod process;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use process::{
    Client, ENVELOPE, Key, Process, Server, TestDir, content, key_of, output_of, refused_start,
    ringmx, stuffed, wait_until, without_trace,
};
use ringmx::sys::signal;

/// What the clients know: the messages that got a 250 with the id that it named, and those that were sent whole and
/// never answered.
#[derive(Debug, Default)]
struct Sent {
    acknowledged: BTreeMap<Key, String>,
    in_doubt: Vec<Key>,
}

/// The id that the reply to a stored message names.
fn id_in(reply: &str) -> String {
    let (_, id) = reply
        .trim_end()
        .rsplit_once(" stored as ")
        .expect("an id in the reply");
    id.to_owned()
}

fn shard_of(id: &str) -> &str {
    id.split_once('-').expect("SHARD-NUMBER").0
}

/// Delivers one message over a connection of its own.
fn deliver(address: SocketAddr, key: Key) -> String {
    let mut client = Client::open(address).expect("a session");
    let reply = client.deliver(&content(key)).expect("250");
    id_in(&reply)
}

/// Delivers messages over a connection each until every one of `workers` shards has some.
fn fill_all_shards(address: SocketAddr, workers: usize, client: u32, sent: &mut Sent) {
    let mut shards = std::collections::BTreeSet::new();
    for sequence in 0..2_000 {
        let key = (client, sequence);
        let id = deliver(address, key);
        shards.insert(shard_of(&id).to_owned());
        sent.acknowledged.insert(key, id);
        if shards.len() == workers && sequence >= 20 {
            return;
        }
    }
    panic!("2,000 connections reached only {shards:?}");
}

/// Clients in threads of their own, until they are told to stop; each ends with a `T`.
struct Clients<T> {
    stop: Arc<AtomicBool>,
    /// Messages that got a 250, of all.
    acknowledged: Arc<AtomicU32>,
    threads: Vec<JoinHandle<T>>,
}

impl<T: Send + 'static> Clients<T> {
    /// Starts `count` of them, each as `client` with its number.
    fn start(
        count: u32,
        client: impl Fn(u32, &AtomicBool, &AtomicU32) -> T + Clone + Send + 'static,
    ) -> Clients<T> {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU32::new(0));
        let threads = (0..count)
            .map(|number| {
                let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
                let client = client.clone();
                std::thread::spawn(move || client(number, &stop, &acknowledged))
            })
            .collect();
        Clients {
            stop,
            acknowledged,
            threads,
        }
    }

    /// Waits for so many more messages than now.
    fn more(&self, count: u32) {
        let from = self.acknowledged.load(Ordering::Relaxed);
        wait_until("messages under load", || {
            let failed = self.threads.iter().any(JoinHandle::is_finished);
            assert!(!failed, "a client has failed");
            self.acknowledged.load(Ordering::Relaxed) >= from + count
        });
    }

    /// Tells them to stop and waits for each.
    fn end(self) -> impl Iterator<Item = T> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = |thread: JoinHandle<T>| thread.join().expect("a client");
        self.threads.into_iter().map(ended)
    }
}

/// Clients that send over new connections, a few messages each.
struct Load {
    clients: Clients<()>,
    sent: Arc<Mutex<Sent>>,
}

impl Load {
    fn start(address: SocketAddr, clients: u32) -> Load {
        let sent = Arc::new(Mutex::new(Sent::default()));
        let all_sent = Arc::clone(&sent);
        let clients = Clients::start(clients, move |client, stop, acknowledged| {
            let mut next = 0;
            while !stop.load(Ordering::Relaxed) {
                // A connection that breaks, or that nobody takes any more, is part of the test.
                let _ = converse(address, client, &mut next, &all_sent, acknowledged);
                std::thread::yield_now();
            }
        });
        Load { clients, sent }
    }

    fn end(self) -> Sent {
        self.clients.end().for_each(drop);
        let sent = Arc::into_inner(self.sent).expect("all clients have ended");
        sent.into_inner().expect("no client has panicked")
    }
}

/// One connection with up to seven messages.
fn converse(
    address: SocketAddr,
    client: u32,
    next: &mut u32,
    sent: &Mutex<Sent>,
    acknowledged: &AtomicU32,
) -> std::io::Result<()> {
    let mut session = Client::open(address)?;
    for _ in 0..7 {
        let key = (client, *next);
        session.send(ENVELOPE)?;
        for code in ["250", "250", "354"] {
            session.expect(code)?;
        }
        *next += 1;
        // In doubt from the moment at which its end may have arrived.
        sent.lock().expect("no panic").in_doubt.push(key);
        session.send(&[&stuffed(&content(key))[..], b".\r\n"].concat())?;
        let reply = session.reply()?;
        let mut sent = sent.lock().expect("no panic");
        sent.in_doubt.retain(|doubted| *doubted != key);
        if !reply.starts_with("250") {
            return Ok(());
        }
        sent.acknowledged.insert(key, id_in(&reply));
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    session.send(b"QUIT\r\n")?;
    session.expect("221").map(drop)
}

/// Every stored message by its id, as `ringmx log export` writes them.
fn stored(dir: &TestDir) -> BTreeMap<String, Key> {
    let eml = TestDir::new();
    let target = eml.join("eml");
    output_of(&["log", "export", "--eml", &target, "--ring", &dir.ring()]);
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&target).expect("the export") {
        let path = entry.expect("an entry").path();
        let id = path.file_stem().expect("a name").to_str().expect("UTF-8");
        let message = fs::read(&path).expect("a message");
        let key = key_of(without_trace(&message)).expect("what was sent, octet for octet");
        found.insert(id.to_owned(), key);
    }
    found
}

/// What was acknowledged is there once, under the id that its 250 named; nothing else is but what is in doubt.
fn check(dir: &TestDir, sent: &Sent) {
    let stored = stored(dir);
    let mut ids: BTreeMap<Key, &str> = BTreeMap::new();
    for (id, key) in &stored {
        let before = ids.insert(*key, id);
        assert_eq!(before, None, "{key:?} is stored twice, as {id} as well");
    }
    for (key, id) in &sent.acknowledged {
        assert_eq!(ids.remove(key), Some(id.as_str()), "{key:?}");
    }
    let allowed = |key: &Key| sent.in_doubt.contains(key);
    let never_sent: Vec<_> = ids.keys().filter(|key| !allowed(key)).collect();
    assert_eq!(never_sent, Vec::<&Key>::new());
}

/// Numbers of the processes that `parent` started, lowest first.
fn children(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut numbers: Vec<u32> = text
        .split_whitespace()
        .map(|number| number.parse().expect("a number"))
        .collect();
    numbers.sort_unstable();
    numbers
}

fn exists(pid: u32) -> bool {
    // A process that has ended and was not waited for is there as a zombie.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit_once(") ")
            .is_some_and(|(_, s)| s.starts_with('Z'))
    })
}

fn wait_until_ready(server: &Server) {
    wait_until("all workers take mail", || {
        server.get("/readyz").ends_with("\r\n\r\nok\n")
    });
}

fn start(dir: &TestDir, workers: &str) -> Server {
    Server::start(
        dir,
        &[
            "--workers",
            workers,
            "--http",
            "127.0.0.1:0",
            "--ring-size",
            "16MiB",
        ],
    )
}

/// The value of a metric without labels, or with these.
fn metric(page: &str, name: &str) -> u64 {
    let value = page
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.expect(name).parse().expect("a number")
}

/// Descriptors that the kernel's table of a process has room for.
fn descriptor_table(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let size = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
    size.expect("FDSize").trim().parse().expect("a number")
}

#[test]
fn no_session_waits_for_the_kernel_to_enlarge_its_table_of_descriptors() {
    let dir = TestDir::new();
    let server = start(&dir, "2");
    wait_until_ready(&server);
    let workers = children(server.process.pid());
    assert_eq!(workers.len(), 2);
    for worker in workers {
        assert!(descriptor_table(worker) >= 10_000);
    }
    // It takes no sessions itself.
    assert!(descriptor_table(server.process.pid()) < 10_000);
    server.stop();
    let dir = TestDir::new();
    let options = ["--max-sessions", "3000", "--ring-size", "16MiB"];
    let server = Server::start(&dir, &options);
    let size = descriptor_table(server.process.pid());
    assert!((3_000..10_000).contains(&size), "{size}");
    server.stop();
}

#[test]
fn mail_reaches_all_shards_and_the_pages_show_their_sums() {
    for workers in [2, 4] {
        let dir = TestDir::new();
        let server = start(&dir, &workers.to_string());
        assert_eq!(
            server.first_lines[1].trim(),
            format!(
                "workers     {workers} processes, each with its own sessions, pool and limits per client"
            )
        );
        assert_eq!(children(server.process.pid()).len(), workers);
        let mut sent = Sent::default();
        fill_all_shards(server.address, workers, 7, &mut sent);
        let count = sent.acknowledged.len() as u64;
        let page = server.get("/metrics");
        assert_eq!(
            metric(&page, "ringmx_messages_total{result=\"accepted\"}"),
            count
        );
        assert_eq!(metric(&page, "ringmx_connections_accepted_total"), count);
        assert_eq!(
            metric(&page, "ringmx_sessions_max"),
            workers as u64 * 10_000
        );
        assert_eq!(
            metric(&page, "ringmx_phase_seconds_count{phase=\"end_of_data\"}"),
            count
        );
        // Counts of the rings: what each has taken.
        let taken = |shard: usize| {
            metric(
                &page,
                &format!("ringmx_ring_next_number{{shard=\"{shard}\"}}"),
            ) - 1
        };
        let each: Vec<u64> = (0..workers).map(taken).collect();
        assert_eq!(each.iter().sum::<u64>(), count, "{each:?}");
        assert!(each.iter().all(|taken| *taken > 0), "{each:?}");
        let answer = server.get("/status");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let status: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(status["messages"]["accepted"], count);
        assert_eq!(status["shards"].as_array().map(Vec::len), Some(workers));
        assert_eq!(status["newest"].as_array().map(Vec::len), Some(20));
        let newest = status["newest"][0]["id"].as_str().expect("an id");
        assert_eq!(
            Some(newest),
            sent.acknowledged
                .last_key_value()
                .map(|(_, id)| id.as_str())
        );
        assert!(server.get("/").contains("<th>Ring, shard 1</th>"));
        assert!(server.get("/nothing").starts_with("HTTP/1.1 404 "));
        let (out, errors) = server.stop();
        assert!(
            out.contains(&format!(
                "\nAccepted {count} messages over {count} connections; "
            )),
            "{out}{errors}"
        );
        assert!(
            out.contains(&format!("\nStored: {count} messages in ")),
            "{out}"
        );
        check(&dir, &sent);
        let verified = output_of(&["log", "verify", "--ring", &dir.ring()]);
        let verified = String::from_utf8(verified).expect("text");
        assert_eq!(
            verified.matches(": all good\n").count(),
            workers,
            "{verified}"
        );
    }
}

/// The messages that a consumer on standard output, or `log ls`, has shown as JSON lines, by id.
fn ids_in(lines: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(lines).expect("UTF-8");
    let id = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        value["id"].as_str().expect("an id").to_owned()
    };
    text.lines().map(id).collect()
}

fn number_of(id: &str) -> u64 {
    let (_, number) = id.split_once('-').expect("SHARD-NUMBER");
    number.parse().expect("a number")
}

/// The ids of one shard, in their order.
fn of_shard(ids: &[String], shard: usize) -> Vec<u64> {
    let prefix = format!("{shard}-");
    let own = ids.iter().filter(|id| id.starts_with(&prefix));
    own.map(|id| number_of(id)).collect()
}

fn maildir_keys(dir: &str) -> Vec<Key> {
    let mut keys: Vec<Key> = fs::read_dir(format!("{dir}/new"))
        .expect("a Maildir")
        .map(|entry| {
            let message = fs::read(entry.expect("an entry").path()).expect("a message");
            // Behind the fields that delivery adds stands the trace field.
            let text = String::from_utf8_lossy(&message).into_owned();
            let (_, value) = text.split_once("X-Key: ").expect("a key");
            let (client, rest) = value.split_once('-').expect("CLIENT-SEQUENCE");
            let sequence = rest.lines().next().expect("a line");
            (
                client.parse().expect("a number"),
                sequence.trim().parse().expect("a number"),
            )
        })
        .collect();
    keys.sort_unstable();
    keys
}

#[test]
fn log_lists_all_shards_as_one_with_a_server_and_without() {
    let dir = TestDir::new();
    let ring = dir.ring();
    let server = start(&dir, "3");
    let mut sent = Sent::default();
    fill_all_shards(server.address, 3, 9, &mut sent);
    // One connection after the other: the order in which they were received is that of the keys.
    let in_order: Vec<String> = sent.acknowledged.values().cloned().collect();
    let listed = |more: &[&str]| {
        ids_in(&output_of(
            &[&["log", "ls", "--json", "--ring", &ring], more].concat(),
        ))
    };
    let check_all = || {
        assert_eq!(listed(&[]), in_order);
        assert_eq!(listed(&["--limit", "5"]), in_order[in_order.len() - 5..]);
        let since = &in_order[7];
        assert_eq!(listed(&["--since", since]), in_order[7..]);
        assert_eq!(listed(&["--since", since, "--limit", "4"]), in_order[7..11]);
        let one = output_of(&["log", "cat", since, "--raw", "--ring", &ring]);
        assert_eq!(key_of(without_trace(&one)), Some((9, 7)));
        let info = output_of(&["log", "info", "--json", "--ring", &ring]);
        let text = String::from_utf8(info).expect("UTF-8");
        let shards: Vec<u64> = text
            .lines()
            .map(|line| {
                let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
                value["shard"].as_u64().expect("a number")
            })
            .collect();
        assert_eq!(shards, [0, 1, 2]);
    };
    check_all();
    let bare = ringmx(&["log", "ls", "--since", "1", "--ring", &ring]);
    assert_eq!(bare.status.code(), Some(2));
    assert_eq!(
        String::from_utf8_lossy(&bare.stderr),
        "ringmx log: --since '1': there are several shards, so an id is SHARD-NUMBER\n"
    );
    // Everything from a message on, and what comes while it looks.
    let expected = in_order.len() - 7 + 20;
    let limit = expected.to_string();
    let follow = Process::start(&[
        "log",
        "follow",
        "--json",
        "--ring",
        &ring,
        "--since",
        &in_order[7],
        "--limit",
        &limit,
    ]);
    let mut later = Vec::new();
    for sequence in 0..20 {
        later.push(deliver(server.address, (10, sequence)));
    }
    let (code, out, errors) = follow.wait();
    assert_eq!(code, Some(0), "{errors}");
    let mut seen = ids_in(out.as_bytes());
    for shard in 0..3 {
        assert!(of_shard(&seen, shard).is_sorted(), "{seen:?}");
    }
    seen.sort_unstable();
    let mut wanted = [&in_order[7..], &later[..]].concat();
    wanted.sort_unstable();
    assert_eq!(seen, wanted);
    server.stop();
    let all = [&in_order[..], &later[..]].concat();
    assert_eq!(listed(&[]), all);
    assert_eq!(listed(&["--since", &in_order[7]]), all[7..]);
}

#[test]
fn one_consumer_serves_all_shards_and_a_new_shard_begins_with_it() {
    let dir = TestDir::new();
    let ring = dir.ring();
    let maildir = dir.join("mail");
    let to = format!("maildir:{maildir}");
    let server = start(&dir, "2");
    let mut sent = Sent::default();
    fill_all_shards(server.address, 2, 1, &mut sent);
    let unknown = ringmx(&[
        "consume",
        "archive",
        "--to",
        &to,
        "--ring",
        &ring,
        "--until-empty",
    ]);
    assert_eq!(unknown.status.code(), Some(1));
    let consume = Process::start(&[
        "consume", "archive", "--to", &to, "--ring", &ring, "--create",
    ]);
    let keys = |sent: &Sent| sent.acknowledged.keys().copied().collect::<Vec<Key>>();
    let arrived = |sent: &Sent| {
        fs::exists(format!("{maildir}/new")).expect("a directory")
            && maildir_keys(&maildir) == keys(sent)
    };
    wait_until("all mail in the Maildir", || arrived(&sent));
    // Beside a consumer that runs, under load, and across the death of a worker.
    for sequence in 0..30 {
        let key = (2, sequence);
        sent.acknowledged.insert(key, deliver(server.address, key));
        if sequence == 10 {
            signal::kill(children(server.process.pid())[0]).expect("a worker");
        }
    }
    wait_until("what came meanwhile", || arrived(&sent));
    let rows = || {
        let listed = output_of(&["consumers", "list", "--json", "--ring", &ring]);
        let value: serde_json::Value = serde_json::from_slice(&listed).expect("JSON");
        let rows = value["consumers"].as_array().expect("rows").clone();
        let row = |row: &serde_json::Value| {
            (
                row["name"].as_str().expect("a name").to_owned(),
                row["shard"].as_u64().expect("a shard"),
                row["lag_messages"].as_u64().expect("a lag"),
            )
        };
        rows.iter().map(row).collect::<Vec<_>>()
    };
    let of = |shards: std::ops::Range<u64>| {
        shards
            .map(|shard| ("archive".to_owned(), shard, 0))
            .collect::<Vec<_>>()
    };
    wait_until("acknowledged everywhere", || rows() == of(0..2));
    consume.terminate();
    assert_eq!(consume.wait().0, Some(0));
    server.stop();
    // Two more workers: their shards hold mail for the consumer from the first message on.
    let server = start(&dir, "4");
    assert!(
        server
            .first_lines
            .iter()
            .any(|line| line.contains("mail is kept until archive acknowledged it")),
        "{:?}",
        server.first_lines
    );
    assert_eq!(rows(), of(0..4));
    fill_all_shards(server.address, 4, 3, &mut sent);
    let page = server.get("/metrics");
    let lag = |shard: usize| {
        metric(
            &page,
            &format!("ringmx_consumer_lag_messages{{consumer=\"archive\",shard=\"{shard}\"}}"),
        )
    };
    assert!((0..4).all(|shard| lag(shard) > 0));
    server.stop();
    // One worker: three shards are emptied without a server, one with it, by the same process.
    let server = start(&dir, "1");
    output_of(&[
        "consume",
        "archive",
        "--to",
        &to,
        "--ring",
        &ring,
        "--until-empty",
    ]);
    assert_eq!(maildir_keys(&maildir), keys(&sent));
    assert_eq!(rows(), of(0..4));
    // Moving and dropping are for all shards too.
    let first = sent
        .acknowledged
        .first_key_value()
        .expect("a message")
        .1
        .clone();
    output_of(&["consumers", "seek", "archive", &first, "--ring", &ring]);
    let behind: u64 = rows().iter().map(|(_, _, lag)| lag).sum();
    // Numbers that a killed worker never used count as behind.
    assert!(behind >= sent.acknowledged.len() as u64, "{behind}");
    output_of(&["consumers", "drop", "archive", "--ring", &ring]);
    assert_eq!(rows(), []);
    let again = ringmx(&["consumers", "drop", "archive", "--ring", &ring]);
    assert_eq!(again.status.code(), Some(1));
    server.stop();
}

#[test]
fn a_consumer_whose_target_fails_for_one_message_goes_on_with_the_other_shards() {
    let dir = TestDir::new();
    let ring = dir.ring();
    let server = start(&dir, "2");
    let mut sent = Sent::default();
    fill_all_shards(server.address, 2, 4, &mut sent);
    let done = dir.join("done");
    // The first message of shard 0 is not taken until there is a file; what is taken leaves its id.
    let command = format!(
        "case $RINGMX_ID in 0-*) test -e {done}/go || exit 75;; esac; cat > /dev/null; touch {done}/$RINGMX_ID"
    );
    fs::create_dir(&done).expect("a directory");
    let to = format!("exec:{command}");
    let consume = Process::start(&["consume", "hand", "--to", &to, "--ring", &ring, "--create"]);
    let taken = || {
        let mut names: Vec<String> = fs::read_dir(&done)
            .expect("a directory")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("UTF-8")
            })
            .filter(|name| name != "go")
            .collect();
        names.sort_unstable();
        names
    };
    let wanted = |prefix: &str| {
        let ids = sent
            .acknowledged
            .values()
            .filter(|id| id.starts_with(prefix));
        let mut ids: Vec<String> = ids.cloned().collect();
        ids.sort_unstable();
        ids
    };
    wait_until("all of shard 1", || taken() == wanted("1-"));
    fs::write(format!("{done}/go"), "").expect("a file");
    wait_until("all of both", || taken() == wanted(""));
    consume.terminate();
    assert_eq!(consume.wait().0, Some(0));
    server.stop();
}

/// Kills one of the workers, and waits until another process takes mail in its place.
fn kill_worker(server: &Server, which: usize) {
    let before = children(server.process.pid());
    let victim = before[which % before.len()];
    signal::kill(victim).expect("a worker");
    wait_until("another process in its place", || {
        let now = children(server.process.pid());
        now.len() == before.len() && !now.contains(&victim)
    });
    wait_until_ready(server);
}

#[test]
fn a_killed_worker_is_started_again_and_nothing_acknowledged_is_lost() {
    for workers in [2, 4] {
        let dir = TestDir::new();
        let server = start(&dir, &workers.to_string());
        let load = Load::start(server.address, 8);
        load.clients.more(50);
        for round in 0..2 {
            kill_worker(&server, round);
            load.clients.more(50);
        }
        let accepted = "ringmx_messages_total{result=\"accepted\"}";
        let shown = metric(&server.get("/metrics"), accepted);
        kill_worker(&server, 0);
        assert!(
            metric(&server.get("/metrics"), accepted) >= shown,
            "a counter went back"
        );
        let sent = load.end();
        let (out, errors) = server.stop();
        assert_eq!(
            errors.matches(" class=worker_ended ").count(),
            3,
            "{errors}"
        );
        assert_eq!(
            errors.matches(" class=worker_started ").count(),
            3,
            "{errors}"
        );
        assert!(out.contains("\nWorkers ended unasked 3 times; "), "{out}");
        check(&dir, &sent);
    }
}

#[test]
fn connections_that_wait_for_a_dead_worker_are_served_by_the_next_one() {
    let dir = TestDir::new();
    let server = start(&dir, "2");
    let victim = children(server.process.pid())[0];
    signal::kill(victim).expect("a worker");
    // Whether these come before or after the next one is there: the listening socket is never closed.
    let clients: Vec<Client> = (0..40)
        .map(|_| Client::connect(server.address).expect("the listener is kept"))
        .collect();
    for mut client in clients {
        client.expect("220").expect("a greeting");
        client.send(b"QUIT\r\n").expect("a session");
        client.expect("221").expect("goodbye");
    }
    server.stop();
}

#[test]
fn killing_the_parent_ends_the_workers_and_loses_nothing() {
    for workers in [2, 4] {
        let dir = TestDir::new();
        let server = start(&dir, &workers.to_string());
        let load = Load::start(server.address, 8);
        load.clients.more(100);
        let pids = children(server.process.pid());
        assert_eq!(pids.len(), workers);
        server.process.kill();
        wait_until("the workers have gone", || {
            !pids.iter().any(|pid| exists(*pid))
        });
        check(&dir, &load.end());
    }
}

#[test]
fn sigterm_under_load_drains_all_workers_and_loses_nothing() {
    for workers in [2, 4] {
        let dir = TestDir::new();
        let server = start(&dir, &workers.to_string());
        let load = Load::start(server.address, 8);
        load.clients.more(100);
        let (out, errors) = server.stop();
        let sent = load.end();
        assert_eq!(
            errors.matches(" class=stopped ").count(),
            workers,
            "{errors}"
        );
        let count = sent.acknowledged.len();
        // A 250 may be on its way to a client that is told goodbye; it is counted and stored all the same.
        let accepted = out
            .split_once("Accepted ")
            .and_then(|(_, rest)| rest.split_once(' '))
            .map(|(number, _)| number.parse::<usize>().expect("a number"));
        assert!(
            accepted.is_some_and(|accepted| accepted >= count),
            "{count}: {out}"
        );
        check(&dir, &sent);
    }
}

#[test]
fn a_worker_that_dies_too_often_is_given_up_and_the_others_go_on() {
    let dir = TestDir::new();
    let server = start(&dir, "2");
    let first = children(server.process.pid());
    let (kept, mut victim) = (first[0], first[1]);
    for round in 0..5 {
        signal::kill(victim).expect("a worker");
        if round == 4 {
            break;
        }
        wait_until("another process in its place", || {
            match children(server.process.pid())[..] {
                [a, b] if a != victim && b != victim => {
                    victim = if a == kept { b } else { a };
                    true
                }
                _ => false,
            }
        });
        wait_until_ready(&server);
    }
    wait_until("health turns red", || {
        server.get("/healthz").starts_with("HTTP/1.1 503 ")
    });
    assert!(
        server
            .get("/healthz")
            .contains(" ended too often and is not started again\n")
    );
    assert_eq!(children(server.process.pid()), [kept]);
    let mut sent = Sent::default();
    for sequence in 0..30 {
        let key = (1, sequence);
        sent.acknowledged.insert(key, deliver(server.address, key));
    }
    server.process.terminate();
    let (code, out, errors) = server.process.wait();
    assert_eq!(code, Some(1), "{out}{errors}");
    assert_eq!(
        errors.matches(" class=worker_given_up ").count(),
        1,
        "{errors}"
    );
    check(&dir, &sent);
}

#[test]
fn sighup_reaches_the_workers_and_a_second_sigterm_ends_all() {
    let dir = TestDir::new();
    let rules = dir.join("denied");
    fs::write(&rules, "192.0.2.0/24\n").expect("a file");
    let server = Server::start(
        &dir,
        &[
            "--workers",
            "2",
            "--deny-from-file",
            &rules,
            "--http",
            "127.0.0.1:0",
        ],
    );
    fs::write(&rules, "127.0.0.0/8\n").expect("a file");
    signal::hang_up(server.process.pid()).expect("the parent");
    let loaded = "ringmx_rules_reloads_total{result=\"loaded\"}";
    wait_until("both have new rules", || {
        metric(&server.get("/metrics"), loaded) >= 2
    });
    for _ in 0..10 {
        let mut client = Client::connect(server.address).expect("a connection");
        client.expect("554 5.7.1").expect("denied");
    }
    fs::write(&rules, "192.0.2.0/24\n").expect("a file");
    signal::hang_up(server.process.pid()).expect("the parent");
    wait_until("both have the old rules", || {
        metric(&server.get("/metrics"), loaded) >= 4
    });
    // Messages that are open keep the drain from ending.
    let mut client = Client::open(server.address).expect("a session");
    client.send(ENVELOPE).expect("a session");
    for code in ["250", "250", "354"] {
        client.expect(code).expect("a transaction");
    }
    let pids = children(server.process.pid());
    server.process.terminate();
    wait_until("the drain has begun", || {
        server.get("/readyz").contains("shutting down")
    });
    server.process.terminate();
    let (code, out, errors) = server.process.wait();
    assert_eq!(code, Some(3), "{out}{errors}");
    wait_until("the workers have gone", || {
        !pids.iter().any(|pid| exists(*pid))
    });
}

#[test]
fn workers_share_a_unix_socket() {
    let dir = TestDir::new();
    let path = dir.join("smtp");
    let server = Server::start(
        &dir,
        &[
            "--workers",
            "3",
            "--listen",
            "127.0.0.1:0",
            "--listen",
            &format!("unix:{path}"),
        ],
    );
    let mut greetings = 0;
    for _ in 0..20 {
        let stream = UnixStream::connect(&path).expect("the socket");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stream), &mut line)
            .expect("a greeting");
        greetings += u32::from(line.starts_with("220 "));
    }
    assert_eq!(greetings, 20);
    server.stop();
    assert!(
        !fs::exists(&path).expect("the directory"),
        "the file is removed"
    );
}

#[test]
fn a_worker_that_cannot_start_ends_the_start_with_its_reason() {
    let dir = TestDir::new();
    start(&dir, "3").stop();
    fs::write(format!("{}/shard-1/ring", dir.ring()), b"no ring").expect("a file");
    let process = match Server::start_by(
        std::process::Command::new(process::RINGMX),
        &dir,
        &["--workers", "3"],
    ) {
        Ok(_) => panic!("it started"),
        Err(process) => process,
    };
    let (code, out, errors) = process.wait();
    assert_eq!(code, Some(74), "{out}{errors}");
    assert_eq!(out, "");
    let last = errors.lines().last().expect("a line");
    assert!(last.starts_with("ringmx: worker 1: the ring "), "{errors}");
}

#[test]
fn a_port_that_another_server_with_workers_has_is_refused() {
    let dir = TestDir::new();
    let server = start(&dir, "2");
    let second = TestDir::new();
    let address = server.address.to_string();
    let output = ringmx(&[
        "serve",
        "--workers",
        "2",
        "--listen",
        &address,
        "--http",
        "off",
        "--ring",
        &second.ring(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        errors,
        format!("ringmx: can't listen on {address}: address already in use\n")
    );
    server.stop();
}

#[test]
fn fewer_workers_than_shards_are_said_and_the_rest_stays_readable() {
    let dir = TestDir::new();
    let server = start(&dir, "4");
    let mut sent = Sent::default();
    fill_all_shards(server.address, 4, 3, &mut sent);
    server.stop();
    let server = start(&dir, "2");
    let said = "shards      no worker writes to shard-2, shard-3: ringmx log reads them, ringmx consume empties them";
    assert!(
        server.first_lines.iter().any(|line| line.trim() == said),
        "{:?}",
        server.first_lines
    );
    fill_all_shards(server.address, 2, 5, &mut sent);
    check(&dir, &sent);
    let (out, _) = server.stop();
    let said =
        " (not counted: 2 of its shards, to which this server did not write). Read them with: ";
    assert!(out.contains(said), "{out}");
    check(&dir, &sent);
}

/// Starts a server that takes over the one on the same directory.
fn take_over(dir: &TestDir, more: &[&str]) -> Server {
    Server::start(
        dir,
        &[&["--takeover", "--ring-size", "64MiB"], more].concat(),
    )
}

/// Clients that send over new connections, and for which nothing may go wrong: a connection that is refused or reset,
/// a command that is refused, a message without its 250.
fn start_strict_load(address: SocketAddr, clients: u32) -> Clients<Vec<(Key, String)>> {
    Clients::start(clients, move |client, stop, acknowledged| {
        let mut sent = Vec::new();
        for sequence in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            // Of those whose messages are small: the rings keep all of them.
            let key = (4 * client + 1, sequence);
            sent.push((key, deliver(address, key)));
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        sent
    })
}

#[test]
fn takeover_under_load_refuses_nothing_resets_nothing_and_loses_nothing() {
    for workers in ["1", "2"] {
        let dir = TestDir::new();
        let options = [
            "--workers",
            workers,
            "--http",
            "127.0.0.1:0",
            "--ring-size",
            "64MiB",
        ];
        let mut server = Server::start(&dir, &options);
        let address = server.address;
        let load = start_strict_load(address, 6);
        load.more(60);
        let mut shards = std::collections::BTreeSet::new();
        // There and back again: the third server works on the shards of the first.
        for round in 0..2 {
            let mut idle = Client::open(address).expect("a session");
            let next = take_over(&dir, &["--workers", workers, "--http", "127.0.0.1:0"]);
            assert_eq!((next.address, next.http), (address, server.http));
            load.more(60);
            // The old one tells who is idle, ends when its sessions have, and has nothing to regret.
            idle.expect("421 4.3.2").expect("a goodbye");
            drop(idle);
            let (code, out, errors) = server.process.wait();
            assert_eq!(code, Some(0), "round {round}: {out}{errors}");
            assert_eq!(
                errors.matches(" class=handed_over").count(),
                if workers == "1" { 1 } else { 3 },
                "{errors}"
            );
            load.more(60);
            assert!(next.get("/healthz").ends_with("\r\n\r\nok\n"));
            shards.insert(
                next.get("/metrics")
                    .contains("ringmx_ring_bytes{shard=\"0\"}"),
            );
            server = next;
        }
        assert_eq!(shards.len(), 2, "the pair of shard directories takes turns");
        let mut sent = Sent::default();
        sent.acknowledged.extend(load.end().flatten());
        server.stop();
        check(&dir, &sent);
        let of_both: std::collections::BTreeSet<&str> =
            sent.acknowledged.values().map(|id| shard_of(id)).collect();
        assert!(of_both.len() >= 2, "{of_both:?}");
        assert!(!fs::exists(dir.join("ring-data/takeover")).expect("a directory"));
    }
}

#[test]
fn takeover_keeps_open_messages_consumers_and_unix_sockets() {
    let dir = TestDir::new();
    let ring = dir.ring();
    let path = dir.join("smtp");
    let unix = format!("unix:{path}");
    let listen = ["--listen", "127.0.0.1:0", "--listen", &unix];
    let old = Server::start(&dir, &[&listen[..], &["--ring-size", "16MiB"]].concat());
    let mut sent = Sent::default();
    sent.acknowledged
        .insert((1, 0), deliver(old.address, (1, 0)));
    let maildir = dir.join("mail");
    let to = format!("maildir:{maildir}");
    let consume = Process::start(&[
        "consume", "archive", "--to", &to, "--ring", &ring, "--create",
    ]);
    wait_until("the first message", || {
        fs::exists(format!("{maildir}/new")).expect("a directory")
            && maildir_keys(&maildir) == [(1, 0)]
    });
    // A message that is open while the sockets go over ends where it began.
    let mut open = Client::open(old.address).expect("a session");
    open.send(ENVELOPE).expect("a session");
    for code in ["250", "250", "354"] {
        open.expect(code).expect("a transaction");
    }
    let new = take_over(&dir, &listen);
    assert_eq!(new.address, old.address);
    assert!(
        new.first_lines
            .iter()
            .any(|line| line.contains("mail is kept until archive acknowledged it")),
        "{:?}",
        new.first_lines
    );
    let id = deliver(new.address, (1, 1));
    assert_eq!(shard_of(&id), "1");
    sent.acknowledged.insert((1, 1), id);
    open.send(&[&stuffed(&content((1, 2)))[..], b".\r\n"].concat())
        .expect("a session");
    let id = id_in(&open.expect("250").expect("its 250"));
    assert_eq!(shard_of(&id), "0");
    sent.acknowledged.insert((1, 2), id);
    open.send(b"QUIT\r\n").expect("a session");
    assert_eq!(old.process.wait().0, Some(0));
    let stream = UnixStream::connect(&path).expect("the socket and its file are still there");
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stream), &mut line).expect("a line");
    assert!(line.starts_with("220 "), "{line}");
    // The same consumer process has found the new shard, and empties the one that has no server any more.
    wait_until("all mail", || {
        maildir_keys(&maildir) == [(1, 0), (1, 1), (1, 2)]
    });
    consume.terminate();
    assert_eq!(consume.wait().0, Some(0));
    check(&dir, &sent);
    new.stop();
    assert!(
        !fs::exists(&path).expect("a directory"),
        "the last one removes the file"
    );
}

#[test]
fn takeover_that_cannot_be_is_refused_and_the_old_server_goes_on() {
    let dir = TestDir::new();
    let ring = dir.ring();
    let refused = |more: &[&str]| {
        let (code, _, errors) = refused_start(&[&["--ring", &ring], more].concat());
        (code, errors)
    };
    assert_eq!(
        refused(&["--takeover"]),
        (
            Some(1),
            format!("ringmx: takeover: no server runs on {ring}; start without --takeover\n")
        )
    );
    let server = start(&dir, "2");
    let text = "ringmx: takeover: the running server has 2 workers; start with --workers 2\n";
    assert_eq!(refused(&["--takeover"]), (Some(2), text.to_owned()));
    // A new server that dies before it is ready leaves nothing changed.
    fs::create_dir_all(format!("{ring}/shard-2")).expect("a directory");
    fs::write(format!("{ring}/shard-2/ring"), b"no ring").expect("a file");
    let (code, errors) = refused(&["--takeover", "--workers", "2"]);
    assert_eq!(code, Some(74), "{errors}");
    let mut sent = Sent::default();
    fill_all_shards(server.address, 2, 6, &mut sent);
    fs::remove_dir_all(format!("{ring}/shard-2")).expect("a directory");
    let next = take_over(&dir, &["--workers", "2"]);
    server.process.wait();
    // Locks do not keep apart a server that has taken over and one that starts on the same directory.
    let (code, errors) = refused(&[]);
    let pid = next.process.pid();
    let text = format!(
        "ringmx: a server (process {pid}) runs on {ring} already; --takeover takes its place\n"
    );
    assert_eq!((code, errors), (Some(1), text));
    fill_all_shards(next.address, 2, 7, &mut sent);
    next.stop();
    check(&dir, &sent);
}
