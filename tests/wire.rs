//! A real server on real sockets: sessions, start and stop, limits, pages, and readers beside it.

#[allow(dead_code, reason = "other tests use what this one does not")]
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Shutdown, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use process::{
    Client, ENVELOPE, Key, PATIENCE, Process, RINGMX, Server, TestDir, content, key_of, load,
    output_of, refused_start, ringmx, stored, stuffed, wait_until, without_trace,
};

const MESSAGE: &[u8] = b"Subject: one\r\n\r\n.dot\r\nlast line\r\n";

#[test]
fn mail_that_is_older_than_keep_for_is_shown_to_nobody_though_none_comes_behind_it() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--keep-for", "1s", "--http", "127.0.0.1:0"]);
    let mut client = Client::connect(server.address).unwrap();
    client.expect("220 ").unwrap();
    client.send(b"HELO client.example\r\n").unwrap();
    client.expect("250 ").unwrap();
    client.deliver(MESSAGE).unwrap();
    wait_until("it has gone", || stored(&dir).is_empty());
    wait_until("it is counted", || {
        let page = server.get("/metrics");
        page.lines()
            .any(|line| line == "ringmx_overwritten_unread_total 1")
    });
    server.stop();
}

/// `ringmx log follow | head -1` printed its line and hung: that nobody reads was only noticed with the next message.
#[test]
fn tools_that_wait_for_mail_end_when_nobody_reads_what_they_print() {
    let dir = TestDir::new();
    let ring = dir.ring();
    let server = Server::start(&dir, &[]);
    let mut client = Client::connect(server.address).unwrap();
    client.expect("220 ").unwrap();
    client.send(b"EHLO client.example\r\n").unwrap();
    client.expect("250-").unwrap();
    client.deliver(MESSAGE).unwrap();
    for tool in [
        &["log", "follow", "--since", "0-1"][..],
        &["log", "follow", "--since", "0-1", "--json"],
        &["consume", "tap", "--to", "stdout"],
    ] {
        let mut child = Command::new(RINGMX)
            .args([tool, &["--ring", &ring]].concat())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        assert!(line.contains("0-1"), "{tool:?}: {line}");
        assert!(
            child.try_wait().unwrap().is_none(),
            "{tool:?} does not wait"
        );
        drop(out);
        wait_until("the tool has ended", || child.try_wait().unwrap().is_some());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{tool:?}: {said}");
    }
    server.stop();
}

// Sessions.

#[test]
fn the_server_greets_first_and_ehlo_lists_its_extensions() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--server-name", "mx.example.org"]);
    let mut client = Client::connect(server.address).unwrap();
    assert_eq!(
        client.reply().unwrap(),
        "220 mx.example.org ESMTP ringmx ready\r\n"
    );
    client.send(b"EHLO client.example\r\n").unwrap();
    let reply = client.reply().unwrap();
    let dated = "250-FUTURERELEASE 7776000 ";
    let undated: String = reply
        .split_inclusive('\n')
        .filter(|line| !line.starts_with(dated))
        .collect();
    assert_eq!(
        undated.len() + dated.len() + "2026-11-23T01:02:03Z\r\n".len(),
        reply.len()
    );
    assert_eq!(
        undated,
        "250-mx.example.org greets you\r\n250-SIZE 4194304\r\n250-PIPELINING\r\n250-8BITMIME\r\n\
         250-SMTPUTF8\r\n250-ENHANCEDSTATUSCODES\r\n250-CHUNKING\r\n250-BINARYMIME\r\n250-DSN\r\n\
         250-DELIVERBY\r\n250-MT-PRIORITY\r\n250-RRVS\r\n250-ETRN\r\n250 LIMITS RCPTMAX=1000 MAILMAX=999999\r\n"
    );
    client.send(b"QUIT\r\n").unwrap();
    assert_eq!(client.rest().unwrap(), "221 2.0.0 Bye\r\n");
    server.stop();
}

#[test]
fn pipelined_groups_get_their_replies_in_order_and_quit_closes() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &[]);
    let mut client = Client::open(server.address).unwrap();
    let mut group = Vec::new();
    for number in 1..=3 {
        group.extend_from_slice(ENVELOPE);
        group.extend_from_slice(format!("Subject: {number}\r\n\r\n.\r\n").as_bytes());
    }
    group.extend_from_slice(b"NOOP\r\nQUIT\r\n");
    client.send(&group).unwrap();
    let mut expected = String::new();
    for number in 1..=3 {
        expected += "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n";
        expected += &format!("250 2.0.0 Ok: stored as 0-{number}\r\n");
    }
    expected += "250 2.0.0 Ok\r\n221 2.0.0 Bye\r\n";
    assert_eq!(client.rest().unwrap(), expected);
    let subjects =
        [1, 2, 3].map(|number| (number, format!("Subject: {number}\r\n\r\n").into_bytes()));
    assert_eq!(stored(&dir), BTreeMap::from(subjects));
    server.stop();
}

#[test]
fn a_client_that_closes_its_side_after_quit_gets_both_replies() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &[]);
    // Again and again: the end of the stream arrives with the octets, after them, before the 250 or behind it.
    for number in 1..=50 {
        let mut client = Client::open(server.address).unwrap();
        client.send(ENVELOPE).unwrap();
        for code in ["250", "250", "354"] {
            client.expect(code).unwrap();
        }
        client.send(&[MESSAGE, b".\r\nQUIT\r\n"].concat()).unwrap();
        client.stream.shutdown(Shutdown::Write).unwrap();
        let expected = format!("250 2.0.0 Ok: stored as 0-{number}\r\n221 2.0.0 Bye\r\n");
        assert_eq!(client.rest().unwrap(), expected);
    }
    server.stop();
}

#[test]
fn a_message_that_is_cut_off_is_not_stored() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &[]);
    for _ in 0..10 {
        let mut client = Client::open(server.address).unwrap();
        client.send(&[ENVELOPE, MESSAGE, b"."].concat()).unwrap();
        client.stream.shutdown(Shutdown::Write).unwrap();
        let rest = client.rest().unwrap();
        assert!(
            rest.ends_with("354 End data with <CR><LF>.<CR><LF>\r\n"),
            "{rest}"
        );
    }
    assert_eq!(stored(&dir), BTreeMap::new());
    server.stop();
}

#[test]
fn a_client_that_ends_lines_by_lf_alone_is_told_so() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &[]);
    let mut client = Client::connect(server.address).unwrap();
    client.expect("220").unwrap();
    client.send(b"EHLO client.example\n").unwrap();
    assert_eq!(
        client.reply().unwrap(),
        "500 5.5.2 Line ended by LF alone; SMTP needs CRLF (nc -C sends it)\r\n"
    );
    // The session lives.
    client.send(b"NOOP\r\n").unwrap();
    assert_eq!(client.reply().unwrap(), "250 2.0.0 Ok\r\n");
    drop(client);
    server.stop();
}

#[test]
fn large_messages_come_back_octet_for_octet() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--ring-size", "64MiB"]);
    let mut client = Client::open(server.address).unwrap();
    let mut expected = BTreeMap::new();
    // On both sides of the sizes of chunks and records.
    let sizes = [
        1, 4_000, 4_096, 65_500, 65_536, 1_000_000, 1_048_400, 1_048_576, 1_100_000, 6_000_000,
    ];
    for (number, size) in (1..).zip(sizes) {
        let mut message = b"Subject: large\r\n\r\n".to_vec();
        while message.len() < size {
            let line = format!(".{} of {size}{}\r\n", message.len(), "x".repeat(size % 61));
            message.extend_from_slice(line.as_bytes());
        }
        client.deliver(&message).unwrap();
        expected.insert(number, message);
    }
    assert!(
        stored(&dir) == expected,
        "what is stored is not what was sent"
    );
    drop(client);
    server.stop();
    let verified = output_of(&["log", "verify", "--ring", &dir.ring()]);
    let verified = String::from_utf8(verified).unwrap();
    assert!(verified.ends_with("all good\n"), "{verified}");
}

#[test]
fn a_session_more_than_allowed_gets_421_and_one_that_ends_makes_room() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--max-sessions", "2"]);
    let mut first = Client::open(server.address).unwrap();
    let mut second = Client::open(server.address).unwrap();
    let mut third = Client::connect(server.address).unwrap();
    assert_eq!(
        third.rest().unwrap(),
        "421 4.3.2 Too many sessions; try again later\r\n"
    );
    second.send(b"QUIT\r\n").unwrap();
    assert_eq!(second.rest().unwrap(), "221 2.0.0 Bye\r\n");
    // The server may learn of the end after the next client has come.
    wait_until("room for a session", || {
        Client::open(server.address).is_ok()
    });
    first.deliver(MESSAGE).unwrap();
    drop(first);
    server.stop();
}

#[test]
fn a_client_that_reads_no_replies_is_cut_and_disturbs_nobody() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--timeout-reply", "2s", "--timeout-command", "2s"]);
    let mut deaf = Client::open(server.address).unwrap();
    deaf.stream.set_nonblocking(true).unwrap();
    let group = b"NOOP\r\n".repeat(10_000);
    let mut other = Client::open(server.address).unwrap();
    let mut number = 0;
    let cut = loop {
        // As much as it takes until the server stops reading.
        match deaf.stream.write(&group) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => break error.kind(),
        }
        number += 1;
        let begin = Instant::now();
        other.deliver(MESSAGE).unwrap();
        assert!(
            begin.elapsed() < Duration::from_secs(2),
            "message {number} had to wait"
        );
    };
    assert!(
        matches!(cut, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{cut}"
    );
    assert_eq!(stored(&dir).len(), number);
    drop(other);
    server.stop();
}

#[test]
fn a_full_ring_defers_mail_until_its_consumer_has_caught_up() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--ring-size", "4MiB"]);
    let maildir = format!("maildir:{}", dir.join("maildir"));
    let ring = dir.ring();
    let consume = [
        "consume", "keeper", "--create", "--to", &maildir, "--ring", &ring,
    ];
    let consume = [&consume[..], &["--until-empty"]].concat();
    // From now on nothing is overwritten that it has not delivered.
    output_of(&consume);
    let mut client = Client::open(server.address).unwrap();
    let message = [MESSAGE, "x".repeat(100_000).as_bytes(), b"\r\n"].concat();
    let mut accepted = 0;
    let refusal = loop {
        match client.deliver(&message) {
            Ok(_) => accepted += 1,
            Err(error) => break error.to_string(),
        }
        assert!(accepted < 100, "a ring of 4 MiB took 10 MB");
    };
    assert!(accepted > 20, "{accepted}");
    assert_eq!(
        refusal,
        "250 expected, got 452 4.3.1 Insufficient system storage; try again later\r\n"
    );
    let delivered = || {
        fs::read_dir(dir.path().join("maildir/new"))
            .unwrap()
            .count()
    };
    output_of(&consume);
    assert_eq!(delivered(), accepted);
    let mut client = Client::open(server.address).unwrap();
    client.deliver(&message).unwrap();
    output_of(&consume);
    assert_eq!(delivered(), accepted + 1);
    drop(client);
    server.stop();
}

#[test]
fn a_small_ring_without_consumers_goes_on_taking_mail() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--ring-size", "4MiB"]);
    let mut client = Client::open(server.address).unwrap();
    let message = [MESSAGE, "x".repeat(100_000).as_bytes(), b"\r\n"].concat();
    // Three times round: the oldest mail gives way.
    for _ in 0..120 {
        client.deliver(&message).unwrap();
    }
    assert_eq!(stored(&dir).into_keys().last(), Some(120));
    drop(client);
    server.stop();
}

#[test]
fn a_silent_client_is_told_that_it_timed_out() {
    let dir = TestDir::new();
    let server = Server::start(
        &dir,
        &["--timeout-command", "1s", "--timeout-greeting", "1s"],
    );
    let mut silent = Client::connect(server.address).unwrap();
    let mut idle = Client::open(server.address).unwrap();
    silent.expect("220").unwrap();
    assert_eq!(silent.rest().unwrap(), "421 4.4.2 Timed out; closing\r\n");
    assert_eq!(idle.rest().unwrap(), "421 4.4.2 Timed out; closing\r\n");
    drop((silent, idle));
    server.stop();
}

// Start and end.

#[test]
fn the_first_lines_say_what_the_server_promises_and_the_last_what_it_did() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--http", "127.0.0.1:0"]);
    let ring = dir.ring();
    let address = server.address;
    let begins = [
        format!("ringmx {} on {address}", env!("CARGO_PKG_VERSION")),
        "  durability  power: 250 means that the message is on stable storage".to_owned(),
        format!("  ring        32 MiB in {ring}, 0 messages kept, "),
        "  retention   no consumer is registered: the newest mail is kept, ".to_owned(),
        "  memory      at most about ".to_owned(),
        format!("  status      http://{}/", server.http.unwrap()),
        format!("Try:  ringmx send --server {address} Hello"),
    ];
    assert_eq!(
        server.first_lines.len(),
        begins.len(),
        "{:?}",
        server.first_lines
    );
    for (line, begin) in server.first_lines.iter().zip(&begins) {
        assert!(line.starts_with(begin), "{line:?} for {begin:?}");
    }
    let mut client = Client::open(address).unwrap();
    client.deliver(MESSAGE).unwrap();
    client.send(b"NONSENSE\r\nQUIT\r\n").unwrap();
    client.rest().unwrap();
    let (out, _) = server.stop();
    let last: Vec<&str> = out.lines().rev().take(2).collect();
    assert_eq!(
        last,
        [
            &format!("Stored: 1 messages in {ring}. Read them with: ringmx log --ring {ring}")[..],
            "Accepted 1 messages over 1 connections; 1 commands or messages refused.",
        ]
    );
}

#[test]
fn sigterm_under_load_drains_and_loses_nothing() {
    let dir = TestDir::new();
    let options = ["--full", "defer", "--ring-size", "128MiB"];
    let server = Server::start(&dir, &options);
    let (counter, counted) = channel();
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (address, counter) = (server.address, counter.clone());
            std::thread::spawn(move || {
                load(address, client, || {
                    let _ = counter.send(());
                })
            })
        })
        .collect();
    for _ in 0..300 {
        counted.recv_timeout(PATIENCE).expect("an acknowledgement");
    }
    server.stop();
    let mut acknowledged = BTreeSet::new();
    for client in clients {
        let ledger = client.join().unwrap();
        // Whatever was sent whole got its answer before the connection closed.
        assert_eq!(ledger.in_doubt, None);
        if let Some(refused) = ledger.refused {
            assert_eq!(refused, "421 4.3.2 Server is shutting down\r\n");
        }
        acknowledged.extend(ledger.acknowledged.into_iter().map(|(key, _)| key));
    }
    let found: Vec<Key> = stored(&dir)
        .values()
        .map(|message| key_of(message).expect("a message as it was sent"))
        .collect();
    assert_eq!(found.len(), acknowledged.len());
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), acknowledged);
}

#[test]
fn a_drain_tells_idle_clients_and_lets_an_open_message_end() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &[]);
    let mut idle = Client::open(server.address).unwrap();
    let mut busy = Client::open(server.address).unwrap();
    busy.send(ENVELOPE).unwrap();
    for code in ["250", "250", "354"] {
        busy.expect(code).unwrap();
    }
    busy.send(&MESSAGE[..10]).unwrap();
    server.process.terminate();
    assert_eq!(
        idle.rest().unwrap(),
        "421 4.3.2 Server is shutting down\r\n"
    );
    busy.send(&stuffed(&MESSAGE[10..])).unwrap();
    busy.send(b".\r\n").unwrap();
    let rest = busy.rest().unwrap();
    assert!(
        rest.starts_with("250 2.0.0 Ok: stored as 0-1\r\n"),
        "{rest}"
    );
    drop(busy);
    let (code, out, errors) = server.process.wait();
    assert_eq!(code, Some(0), "{out}{errors}");
    assert_eq!(stored(&dir), BTreeMap::from([(1, MESSAGE.to_vec())]));
}

#[test]
fn a_second_signal_ends_at_once_and_keeps_what_was_acknowledged() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--drain-deadline", "10min"]);
    let mut idle = Client::open(server.address).unwrap();
    let mut busy = Client::open(server.address).unwrap();
    busy.deliver(MESSAGE).unwrap();
    busy.send(&[ENVELOPE, &MESSAGE[..10]].concat()).unwrap();
    for code in ["250", "250", "354"] {
        busy.expect(code).unwrap();
    }
    server.process.terminate();
    assert_eq!(
        idle.rest().unwrap(),
        "421 4.3.2 Server is shutting down\r\n"
    );
    let begin = Instant::now();
    server.process.terminate();
    let (code, out, errors) = server.process.wait();
    assert!(begin.elapsed() < Duration::from_secs(20), "{out}{errors}");
    assert_eq!(code, Some(3), "{out}{errors}");
    assert_eq!(stored(&dir), BTreeMap::from([(1, MESSAGE.to_vec())]));
}

#[test]
fn a_message_that_outlives_the_drain_is_cut_with_exit_code_3() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--drain-deadline", "1s"]);
    let mut busy = Client::open(server.address).unwrap();
    busy.send(&[ENVELOPE, &MESSAGE[..10]].concat()).unwrap();
    for code in ["250", "250", "354"] {
        busy.expect(code).unwrap();
    }
    server.process.terminate();
    let (code, out, errors) = server.process.wait();
    assert_eq!(code, Some(3), "{out}{errors}");
    assert!(
        out.contains("Cut 1 sessions that did not end in time.\n"),
        "{out}"
    );
}

// What keeps a server from starting.

/// Starts a server with the addresses for SMTP and HTTP that `addresses` makes of one that is taken. It has to end
/// with one sentence, which names what the address is `wanted_for`, and to touch nothing.
fn assert_port_in_use(addresses: for<'a> fn(&'a str) -> [&'a str; 2], wanted_for: &str) {
    let dir = TestDir::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let [smtp, http] = addresses(&address);
    let fixed = ["serve", "--listen", smtp, "--http", http];
    let output = ringmx(&[&fixed[..], &["--ring", &dir.ring()]].concat());
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!("ringmx: can't listen on {address}{wanted_for}: address already in use\n")
    );
    assert_eq!((output.status.code(), output.stdout), (Some(1), vec![]));
    assert!(!Path::new(&dir.ring()).exists());
}

#[test]
fn a_port_in_use_is_one_sentence_and_nothing_is_touched() {
    assert_port_in_use(|taken| [taken, "off"], "");
}

#[test]
fn a_given_http_address_in_use_is_an_error() {
    assert_port_in_use(|taken| ["127.0.0.1:0", taken], " for HTTP");
}

#[test]
fn a_ring_in_use_is_one_sentence() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &[]);
    let path = format!("{}/shard-0/ring", dir.ring());
    let sentence = "another process has the ring open; stop it first";
    assert_eq!(
        refused_start(&["--ring", &dir.ring()]),
        (
            Some(1),
            String::new(),
            format!("ringmx: the ring {path}: {sentence}\n")
        )
    );
    // The server that has it goes on.
    Client::open(server.address)
        .unwrap()
        .deliver(MESSAGE)
        .unwrap();
    server.stop();
}

#[test]
fn a_file_that_is_no_ring_is_named_and_left_alone() {
    let dir = TestDir::new();
    let shard = format!("{}/shard-0", dir.ring());
    fs::create_dir_all(&shard).unwrap();
    let path = format!("{shard}/ring");
    fs::write(&path, "not a ring").unwrap();
    assert_eq!(
        refused_start(&["--ring", &dir.ring()]),
        (
            Some(74),
            String::new(),
            format!(
                "ringmx: the ring {path}: the file is not a ring; move it away or name another \
                 directory\n"
            )
        )
    );
    assert_eq!(fs::read(&path).unwrap(), b"not a ring");
}

#[test]
fn a_ring_whose_superblocks_are_damaged_is_refused_and_left_alone() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &[]);
    Client::open(server.address)
        .unwrap()
        .deliver(MESSAGE)
        .unwrap();
    server.stop();
    let path = format!("{}/shard-0/ring", dir.ring());
    let mut octets = fs::read(&path).unwrap();
    octets[100] ^= 1;
    octets[8_192 + 100] ^= 1;
    fs::write(&path, &octets).unwrap();
    let (code, out, errors) = refused_start(&["--ring", &dir.ring()]);
    assert_eq!((code, &out[..]), (Some(74), ""), "{errors}");
    assert!(
        errors.starts_with(&format!("ringmx: the ring {path}: ")),
        "{errors}"
    );
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(fs::read(&path).unwrap() == octets, "the ring was changed");
}

#[test]
fn mail_for_a_ring_that_was_removed_is_not_acknowledged_and_the_server_ends() {
    for level in ["power", "process"] {
        let dir = TestDir::new();
        let server = Server::start(&dir, &["--survive", level]);
        let mut client = Client::open(server.address).unwrap();
        client.deliver(MESSAGE).unwrap();
        fs::remove_dir_all(dir.ring()).unwrap();
        let answer = client.deliver(MESSAGE);
        if level == "power" {
            let text = answer.unwrap_err().to_string();
            assert!(text.contains("451 4.3.0 "), "{text}");
        }
        // With --survive process the next sync in the background notices.
        let (code, out, errors) = server.process.wait();
        assert_eq!(code, Some(74), "{level}: {out}{errors}");
        assert!(
            out.contains("\nThe ring was removed, and the mail in it.\n"),
            "{level}: {out}"
        );
        assert!(
            errors.contains(" class=storage_failed error=\"")
                && errors.contains("No such file or directory"),
            "{level}: {errors}"
        );
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_one_sentence() {
    let dir = TestDir::new();
    let file = dir.join("file");
    fs::write(&file, "").unwrap();
    let (code, _, errors) = refused_start(&["--ring", &file]);
    assert_eq!(code, Some(74), "{errors}");
    assert!(
        errors.starts_with(&format!("ringmx: the ring {file}/shard-0/ring: ")),
        "{errors}"
    );
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

#[test]
fn bad_usage_is_one_sentence_and_exit_code_2() {
    for (arguments, sentence) in [
        (
            &["serve", "--lisen", "1"][..],
            "ringmx: --lisen: unknown option; did you mean --listen?\n",
        ),
        (
            &["serve", "--ring-size", "1MiB"],
            "ringmx: --ring-size: \"1MiB\" is not allowed; allowed: 2MiB to 16TiB\n",
        ),
    ] {
        let output = ringmx(arguments);
        assert_eq!(String::from_utf8(output.stderr).unwrap(), sentence);
        assert_eq!((output.status.code(), output.stdout), (Some(2), vec![]));
    }
}

// Levels of durability.

#[test]
fn discard_answers_250_and_stores_nothing() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--discard"]);
    let mut client = Client::open(server.address).unwrap();
    for _ in 0..3 {
        client.deliver(MESSAGE).unwrap();
    }
    client.deliver(&content((0, 17))).unwrap();
    assert!(!Path::new(&dir.ring()).exists());
    drop(client);
    let (out, _) = server.stop();
    assert!(
        out.contains("Accepted 4 messages over 1 connections; "),
        "{out}"
    );
    assert!(!Path::new(&dir.ring()).exists());
}

#[test]
fn survive_nothing_keeps_mail_for_readers_until_the_server_ends() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--survive", "nothing"]);
    let mut client = Client::open(server.address).unwrap();
    client.deliver(MESSAGE).unwrap();
    let found = output_of(&["log", "cat", "1", "--raw", "--ring", &dir.ring()]);
    assert_eq!(without_trace(&found), MESSAGE);
    drop(client);
    server.stop();
    let after = ringmx(&["log", "cat", "1", "--raw", "--ring", &dir.ring()]);
    assert_eq!(after.status.code(), Some(2));
    assert_eq!(after.stdout, b"");
    let expected = format!(
        "ringmx log: no ring in '{ring}': a ring in memory (--survive nothing) ends with its server \
         ('ringmx serve --ring {ring}' makes one)\n",
        ring = dir.ring()
    );
    assert_eq!(String::from_utf8(after.stderr).unwrap(), expected);
}

#[test]
fn survive_process_keeps_mail_across_a_stop() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--survive", "process"]);
    Client::open(server.address)
        .unwrap()
        .deliver(MESSAGE)
        .unwrap();
    server.stop();
    let server = Server::start(&dir, &["--survive", "process"]);
    let reply = Client::open(server.address)
        .unwrap()
        .deliver(MESSAGE)
        .unwrap();
    assert_eq!(reply, "250 2.0.0 Ok: stored as 0-2\r\n");
    server.stop();
    let expected = [(1, MESSAGE.to_vec()), (2, MESSAGE.to_vec())];
    assert_eq!(stored(&dir), BTreeMap::from(expected));
}

// Pages.

#[test]
fn pages_tell_what_happened() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--http", "127.0.0.1:0"]);
    let mut client = Client::open(server.address).unwrap();
    client.deliver(MESSAGE).unwrap();
    for path in ["/healthz", "/readyz"] {
        let page = server.get(path);
        assert!(page.starts_with("HTTP/1.1 200 "), "{path}: {page}");
    }
    let page = server.get("/");
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
    assert!(page.contains("sender@example.org"), "{page}");
    let status = server.get("/status");
    let (_, body) = status.split_once("\r\n\r\n").unwrap();
    let status: serde_json::Value = serde_json::from_str(body).unwrap();
    assert!(status["schema"].is_string(), "{status}");
    let metrics = server.get("/metrics");
    let accepted = "ringmx_messages_total{result=\"accepted\"} 1";
    assert!(metrics.lines().any(|line| line == accepted), "{metrics}");
    let page = server.get("/nonsense");
    assert!(page.starts_with("HTTP/1.1 404 "), "{page}");
    drop(client);
    server.stop();
}

// Readers beside a running server.

#[test]
fn a_follower_sees_messages_as_they_come_and_ends_with_the_server() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &[]);
    let follower = Process::start(&[
        "log",
        "follow",
        "--json",
        "--since",
        "1",
        "--ring",
        &dir.ring(),
    ]);
    let mut client = Client::open(server.address).unwrap();
    for number in 1..=5u64 {
        client.deliver(MESSAGE).unwrap();
        // One at a time: each is shown without another coming after it.
        let line = follower.line().expect("a line for each message");
        let entry: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(entry["number"], number);
        assert_eq!(entry["reverse_path"], "sender@example.org");
    }
    drop(client);
    server.stop();
    let (_, out, _) = follower.wait();
    assert_eq!(out, "");
}

#[test]
fn a_consumer_beside_the_server_delivers_everything_and_goes_on_where_it_was() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &[]);
    let ring = dir.ring();
    let maildir = dir.join("maildir");
    let target = format!("maildir:{maildir}");
    let arguments = [
        "consume", "keeper", "--create", "--to", &target, "--ring", &ring,
    ];
    let delivered = || {
        let entries = fs::read_dir(Path::new(&maildir).join("new"));
        entries.map_or(0, Iterator::count)
    };
    let mut client = Client::open(server.address).unwrap();
    client.deliver(MESSAGE).unwrap();
    let consumer = Process::start(&arguments);
    wait_until("the first message", || delivered() == 1);
    client.deliver(MESSAGE).unwrap();
    wait_until("a message that came while it ran", || delivered() == 2);
    consumer.terminate();
    let (code, _, errors) = consumer.wait();
    assert_eq!(code, Some(0), "{errors}");
    client.deliver(MESSAGE).unwrap();
    client.deliver(&content((0, 17))).unwrap();
    let until_empty = [&arguments[..], &["--until-empty"]].concat();
    output_of(&until_empty);
    let mut found: Vec<Vec<u8>> = fs::read_dir(Path::new(&maildir).join("new"))
        .unwrap()
        .map(|entry| without_trace(&fs::read(entry.unwrap().path()).unwrap()).to_vec())
        .collect();
    found.sort_by_key(Vec::len);
    let expected = [MESSAGE, MESSAGE, MESSAGE, &content((0, 17))].map(<[u8]>::to_vec);
    assert!(found == expected, "{} messages were delivered", found.len());
    drop(client);
    server.stop();
}
