//! Who may send what to whom: a real server with rules, what it refuses, and rules that change while it runs.

#[expect(dead_code, reason = "this test needs a part of it")]
mod process;

use std::path::Path;

use process::{Client, Process, Server, TestDir, output_of, stored, wait_until};
use ringmx::tls::self_signed;

const MX: &[&str] = &[
    "--listen",
    "127.0.0.1:0,role=mx",
    "--server-name",
    "mx.example",
];
const RELAY_DENIED: &str = "550 5.7.1 Relaying denied\r\n";
const USER_UNKNOWN: &str = "550 5.1.1 No such user here\r\n";
const RCPT_OK: &str = "250 2.1.5 Ok\r\n";

fn start(dir: &TestDir, options: &[&str]) -> Server {
    Server::start(dir, &[MX, options].concat())
}

/// The reply to one RCPT in a transaction of its own.
fn rcpt(client: &mut Client, path: &str) -> String {
    let group = format!("RSET\r\nMAIL FROM:<>\r\nRCPT TO:<{path}>\r\n");
    client.send(group.as_bytes()).unwrap();
    client.expect("250 2.0.0").unwrap();
    client.expect("250 2.1.0").unwrap();
    client.reply().unwrap()
}

/// Replaces a file as its writers should: nobody sees it half written.
fn replace(path: &str, text: &str) {
    let new = format!("{path}.new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

#[test]
fn an_mx_takes_mail_for_its_own_and_stores_nothing_else() {
    let dir = TestDir::new();
    let domains = [
        "--accept-domain",
        "example.org,jane@example.com,.below.example",
    ];
    let server = start(&dir, &domains);
    let mut client = Client::open(server.address).unwrap();
    for (path, expected) in [
        ("anyone@EXAMPLE.org", RCPT_OK),
        ("Jane@example.com", RCPT_OK),
        ("jane+list@example.com", RCPT_OK),
        ("joe@example.com", USER_UNKNOWN),
        ("jane%example.net@example.com", USER_UNKNOWN),
        ("x@a.below.example", RCPT_OK),
        ("x@below.example", RELAY_DENIED),
        ("jane@example.net", RELAY_DENIED),
        ("@example.org:jane@example.net", RELAY_DENIED),
        ("@example.net:jane@example.com", RCPT_OK),
        ("Postmaster", RCPT_OK),
        ("postmaster@example.com", RCPT_OK),
        ("postmaster@mx.example", RCPT_OK),
        ("postmaster@[127.0.0.1]", RCPT_OK),
        ("postmaster@example.net", RELAY_DENIED),
        ("joe@[127.0.0.1]", USER_UNKNOWN),
    ] {
        assert_eq!(rcpt(&mut client, path), expected, "{path}");
    }
    // Where every recipient was refused there is nobody to take the message for.
    let group = b"RSET\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n";
    client.send(group).unwrap();
    client.expect("250").unwrap();
    client.expect("250").unwrap();
    assert_eq!(client.reply().unwrap(), RELAY_DENIED);
    assert_eq!(
        client.reply().unwrap(),
        "503 5.5.1 Need an accepted RCPT first\r\n"
    );
    client
        .send(b"RCPT TO:<jane@example.com>\r\nDATA\r\n")
        .unwrap();
    assert_eq!(client.reply().unwrap(), RCPT_OK);
    client.expect("354").unwrap();
    client
        .send(b"Subject: x\r\n\r\ntext\r\n.\r\nQUIT\r\n")
        .unwrap();
    client.expect("250 2.0.0 Ok: stored as ").unwrap();
    client.expect("221").unwrap();
    drop(client);
    server.stop();
    let messages = stored(&dir);
    let messages: Vec<&Vec<u8>> = messages.values().collect();
    assert_eq!(messages, [b"Subject: x\r\n\r\ntext\r\n"]);
    let listed = output_of(&["log", "cat", "0-1", "--json", "--ring", &dir.ring()]);
    let message: serde_json::Value = serde_json::from_slice(&listed).unwrap();
    let recipients = message["recipients"].as_array().unwrap();
    assert_eq!(recipients.len(), 1, "{message}");
    assert_eq!(
        recipients[0]["forward_path"], "jane@example.com",
        "{message}"
    );
}

#[test]
fn a_list_of_recipients_is_read_again_on_sighup_and_a_bad_one_changes_nothing() {
    let dir = TestDir::new();
    let list = dir.join("recipients");
    replace(&list, "# staff\njane@example.org\n\n");
    let server = start(&dir, &["--recipients-file", &list, "--http", "127.0.0.1:0"]);
    let mut client = Client::open(server.address).unwrap();
    assert_eq!(rcpt(&mut client, "jane@example.org"), RCPT_OK);
    assert_eq!(rcpt(&mut client, "joe@example.org"), USER_UNKNOWN);
    // The session stays; its next command is answered by the new list.
    replace(&list, "joe@example.org  # new\r\n@example.net\n");
    ringmx::sys::signal::hang_up(server.process.pid()).unwrap();
    // A session that asked for so many wrong recipients would be ended.
    let takes = |path: &str| rcpt(&mut Client::open(server.address).unwrap(), path) == RCPT_OK;
    let refused = |count: u32| {
        let line = format!("ringmx_rules_reloads_total{{result=\"refused\"}} {count}\n");
        wait_until(&line, || server.get("/metrics").contains(&line));
    };
    wait_until("the new list counts", || takes("joe@example.org"));
    assert_eq!(rcpt(&mut client, "joe@example.org"), RCPT_OK);
    assert_eq!(rcpt(&mut client, "jane@example.org"), USER_UNKNOWN);
    assert_eq!(rcpt(&mut client, "any@example.net"), RCPT_OK);
    replace(&list, "jane@example.org\njoe at example.org\n");
    refused(1);
    assert_eq!(rcpt(&mut client, "joe@example.org"), RCPT_OK);
    assert_eq!(rcpt(&mut client, "jane@example.org"), USER_UNKNOWN);
    // Mended: seen without a signal.
    replace(&list, "jane@example.org\n");
    wait_until("the mended list counts", || takes("jane@example.org"));
    assert_eq!(rcpt(&mut client, "jane@example.org"), RCPT_OK);
    std::fs::remove_file(&list).unwrap();
    refused(2);
    assert_eq!(rcpt(&mut client, "jane@example.org"), RCPT_OK);
    client.send(b"QUIT\r\n").unwrap();
    client.expect("221").unwrap();
    drop(client);
    let (_, errors) = server.stop();
    let fault = format!(
        "{list}:2: recipients-file: \\\"joe at example.org\\\": not a recipient; allowed: "
    );
    assert!(errors.contains(&fault), "{errors}");
    assert!(
        errors.contains(" class=rules_loaded recipients=2\n"),
        "{errors}"
    );
    assert!(
        errors.contains(&format!(
            "{list}: recipients-file: can't be read: No such file"
        )),
        "{errors}"
    );
}

#[test]
fn a_server_with_a_bad_list_does_not_start() {
    let dir = TestDir::new();
    let (list, missing, ring) = (dir.join("list"), dir.join("missing"), dir.ring());
    for (file, option, text, fault) in [
        (
            &list,
            "--recipients-file",
            "a@b\na b\n",
            ":2: recipients-file: \"a b\": not a recipient; allowed: ",
        ),
        (
            &list,
            "--deny-from-file",
            "10.0.0.1/8\n",
            ":1: deny-from-file: \"10.0.0.1/8\": bits behind the length",
        ),
        (
            &list,
            "--allow-from-file",
            "localhost\n",
            ":1: allow-from-file: \"localhost\": not a network; allowed: ",
        ),
        (
            &missing,
            "--recipients-file",
            "",
            ": recipients-file: can't be read: No such file or directory",
        ),
    ] {
        std::fs::write(&list, text).unwrap();
        for command in ["serve", "check-config"] {
            let mut arguments = vec![command, "--ring", &ring, option, file];
            arguments.extend(MX);
            arguments.extend(["--accept-domain", "example.org"]);
            let (code, out, errors) = Process::start(&arguments).wait();
            assert_eq!((code, out.as_str()), (Some(2), ""), "{errors}");
            assert!(
                errors.starts_with(&format!("ringmx: {file}{fault}")),
                "{errors}"
            );
        }
    }
    assert!(!std::path::Path::new(&ring).exists(), "something was made");
}

#[test]
fn a_network_that_is_denied_is_told_so_in_place_of_the_greeting() {
    let dir = TestDir::new();
    let denied = dir.join("denied");
    replace(&denied, "192.0.2.0/24\n127.0.0.0/8\n");
    let options = ["--deny-from-file", &denied, "--allow-from", "127.0.0.1,::1"];
    let options = [&options[..], &["--http", "127.0.0.1:0"]].concat();
    let server = Server::start(&dir, &options);
    let mut client = Client::connect(server.address).unwrap();
    assert_eq!(client.rest().unwrap(), "554 5.7.1 Access denied\r\n");
    drop(client);
    let count = "ringmx_replies_total{code=\"554\",reason=\"access_denied\"} 1\n";
    assert!(server.get("/metrics").contains(count));
    replace(&denied, "192.0.2.0/24\n");
    wait_until("access is given", || {
        let mut client = Client::connect(server.address).unwrap();
        client.reply().unwrap().starts_with("220 ")
    });
    server.stop();
    assert!(stored(&dir).is_empty());
}

#[test]
fn the_example_for_a_receiver_of_the_world_is_a_good_configuration() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples/ringmx.toml");
    // The files that it names are looked at, so that they have to be there.
    let dir = TestDir::new();
    let names = ["mx1.example.org".to_owned()];
    let made = self_signed::make_once(Path::new(&dir.join("tls")), &names).unwrap();
    replace(&dir.join("users"), "");
    let text = std::fs::read_to_string(example).unwrap();
    let here = text
        .replace("/etc/ringmx/cert.pem", &made.0.display().to_string())
        .replace("/etc/ringmx/key.pem", &made.1.display().to_string())
        .replace(
            "\"/etc/ringmx/users\"",
            &format!("\"{}\"", dir.join("users")),
        );
    let config = dir.join("ringmx.toml");
    replace(&config, &here);
    let checked = output_of(&["check-config", "--config", &config]);
    let checked = String::from_utf8(checked).unwrap();
    // What it says is what counts, none of it a default by another name.
    for line in [
        "accept-domain = [\"example.org\", \".example.org\", \"postmaster@example.net\"]",
        "deny-from = [\"192.0.2.0/24\", \"2001:db8:bad::/48\"]",
        "client-sessions = \"50,10\"",
        "greeting-delay = \"2s\"",
        "listen-tls = [\"0.0.0.0:465,role=submission\", \"[::]:465,role=submission\"]",
        "listen-submission = [\"0.0.0.0:587\", \"[::]:587\"]",
        "accept-any-recipient = false",
    ] {
        assert!(
            checked.lines().any(|shown| shown == line),
            "{line}: {checked}"
        );
    }
    for setting in text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let (name, _) = setting.split_once(" = ").expect("a setting");
        assert!(checked.contains(&format!("{name} = ")), "{name}");
    }
    // A file that says all settings gives the same ones.
    let again = dir.join("again.toml");
    std::fs::write(&again, &checked).unwrap();
    assert_eq!(
        output_of(&["check-config", "--config", &again]),
        checked.as_bytes()
    );
}
