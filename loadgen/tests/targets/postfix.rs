//! Postfix: its smtpd with everything behind it, and its smtp-sink.

use crate::support::{
    Authority, Guard, Place, files_in, free_port, handshakes, holds, is_root, said, skip, valid,
    wait_for, wait_until,
};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Services; `PLAIN` and `IMPLICIT` are replaced.
const MASTER: &str = "\
127.0.0.1:PLAIN inet n - n - - smtpd
127.0.0.1:IMPLICIT inet n - n - - smtpd -o smtpd_tls_wrappermode=yes
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
virtual unix - n n - - virtual
smtp unix - - n - - smtp
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
error unix - - n - - error
retry unix - - n - - error
postlog unix-dgram n - n - 1 postlogd
";

/// Settings; `PLACE`, `UID` and `GID` are replaced. Everything lives below one directory. Mail for
/// test.example goes into one Maildir, what is told to senders into another.
const MAIN: &str = "\
compatibility_level = 3.6
queue_directory = PLACE/queue
data_directory = PLACE/data
maillog_file = PLACE/log
maillog_file_prefixes = PLACE
myhostname = postfix.test.example
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
virtual_mailbox_domains = test.example loadgen.example
virtual_mailbox_base = PLACE/mail
virtual_mailbox_maps = regexp:PLACE/mailboxes
virtual_minimum_uid = 1
virtual_uid_maps = static:UID
virtual_gid_maps = static:GID
smtpd_client_connection_count_limit = 0
smtpd_authorized_xclient_hosts = 127.0.0.0/8
smtpd_tls_security_level = may
smtpd_tls_received_header = yes
smtpd_tls_chain_files = PLACE/tls/server.key, PLACE/tls/server.pem
smtputf8_enable = yes
";

const MAILBOXES: &str = "/@test\\.example$/ all/\n/@loadgen\\.example$/ notices/\n";

/// A Postfix of a test's own; stopped with it.
pub struct Postfix {
    pub place: Place,
    pub tls: Authority,
    /// Where it speaks SMTP, and where TLS comes first.
    pub plain: String,
    implicit: String,
}

impl Postfix {
    /// Starts one; says what is missing where it can't.
    fn start(name: &str) -> Option<Self> {
        Self::start_with(name, "")
    }

    /// As [`Postfix::start`]; `settings` follow those of `MAIN` and count more.
    pub fn start_with(name: &str, settings: &str) -> Option<Self> {
        let user = said("id", &["-u", "postfix"]).zip(said("id", &["-g", "postfix"]));
        let (true, Some((uid, gid))) = (Path::new("/usr/sbin/postfix").exists(), user) else {
            skip!("Postfix (Debian package postfix) is not installed");
            return None;
        };
        if !is_root() {
            skip!("Postfix starts only as root");
            return None;
        }
        let place = Place::new(name);
        for name in ["queue", "data", "mail"] {
            fs::create_dir(place.0.join(name)).unwrap();
        }
        for name in ["data", "mail"] {
            let owner = Some(uid.parse().unwrap());
            std::os::unix::fs::chown(place.0.join(name), owner, None).unwrap();
        }
        let tls = Authority::new(&place);
        let (plain, implicit) = (free_port(), free_port());
        let base = place.0.display().to_string();
        let main = format!("{MAIN}{settings}").replace("PLACE", &base);
        place.write("main.cf", &main.replace("UID", &uid).replace("GID", &gid));
        let master = MASTER.replace("PLAIN", &plain.to_string());
        let master = master.replace("IMPLICIT", &implicit.to_string());
        place.write("master.cf", &master);
        place.write("mailboxes", MAILBOXES);
        let started = Command::new("/usr/sbin/postfix")
            .args(["-c", &base, "start"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(started.success());
        let postfix = Self {
            place,
            tls,
            plain: format!("127.0.0.1:{plain}"),
            implicit: format!("127.0.0.1:{implicit}"),
        };
        wait_for(plain);
        wait_for(implicit);
        Some(postfix)
    }

    /// Waits until `count` messages lie in a mailbox, and returns them. Its 250 means queued;
    /// delivery comes after.
    fn mailbox(&self, name: &str, count: u64) -> Vec<String> {
        let new = self.place.0.join("mail").join(name).join("new");
        wait_until("Postfix does not deliver", || {
            files_in(&new) as u64 >= count
        });
        let files = fs::read_dir(new)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let texts: Vec<String> = files
            .map(|file| String::from_utf8(fs::read(file).unwrap()).unwrap())
            .collect();
        assert_eq!(texts.len() as u64, count, "{name}");
        texts
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let base = self.place.0.display().to_string();
        let _ = Command::new("/usr/sbin/postfix")
            .args(["-c", &base, "stop"])
            .output();
    }
}

#[test]
fn postfix_delivers_what_the_ledger_says() {
    let Some(postfix) = Postfix::start("postfix") else {
        return;
    };
    let ledger = postfix.place.at("ledger");
    let mut sent = 0;
    for more in [
        &["--size", "600-5000"][..],
        &["--pipelining", "off"],
        &["--chunk", "700"],
        &["--messages-per-connection", "1", "--dsn", "never"],
    ] {
        sent += valid(&postfix.plain, 25, &[&["--ledger", &ledger], more].concat()).1;
    }
    postfix.mailbox("all", sent);
    holds(&ledger, &["--maildir", &postfix.place.at("mail/all")], sent);
}

#[test]
fn postfix_takes_mail_over_tls_that_the_authority_of_the_test_vouches_for() {
    let Some(postfix) = Postfix::start("postfix-tls") else {
        return;
    };
    let ledger = postfix.place.at("ledger");
    let mut sent = 0;
    for (target, mode) in [
        (&postfix.plain, "starttls"),
        (&postfix.implicit, "implicit"),
    ] {
        let more = [
            "--ledger",
            &ledger,
            "--tls",
            mode,
            "--tls-ca",
            &postfix.tls.ca,
        ];
        let more = [&more[..], &["--messages-per-connection", "5"]].concat();
        let (report, accepted) = valid(target, 25, &more);
        assert_eq!(handshakes(&report), [("TLS 1.3".to_owned(), 5)], "{mode}");
        sent += accepted;
    }
    let stored = postfix.mailbox("all", sent);
    // Postfix says so in its trace field.
    let secured = stored.iter().filter(|text| text.contains("using TLSv1.3"));
    assert_eq!(secured.count() as u64, sent);
    holds(&ledger, &["--maildir", &postfix.place.at("mail/all")], sent);
    // The same server under a name that its certificate does not have gets nothing.
    let wrong = crate::support::program(&[
        "run",
        &postfix.plain,
        "--messages",
        "5",
        "--quiet",
        "--tls",
        "starttls",
        "--tls-ca",
        &postfix.tls.ca,
        "--tls-name",
        "other.example",
        "--connect-attempts",
        "1",
    ]);
    assert_eq!(wrong.status.code(), Some(3), "{wrong:?}");
    let text = String::from_utf8_lossy(&wrong.stdout).into_owned();
    assert!(
        text.contains("tls-failure") && text.contains("[target side]"),
        "{text}"
    );
    postfix.mailbox("all", sent);
}

#[test]
fn postfix_sees_the_client_that_xclient_names() {
    let Some(postfix) = Postfix::start("postfix-xclient") else {
        return;
    };
    let ledger = postfix.place.at("ledger");
    let client = "NAME=client.example ADDR=192.0.2.7";
    let (report, sent) = valid(
        &postfix.plain,
        20,
        &[
            "--ledger",
            &ledger,
            "--xclient",
            client,
            "--messages-per-connection",
            "4",
        ],
    );
    // Once for each connection, and EHLO again behind it.
    let phase = |name: &str| report["latency"]["phases"][name]["n"].as_u64().unwrap();
    assert_eq!((phase("xclient"), phase("ehlo")), (5, 10));
    let stored = postfix.mailbox("all", sent);
    let named = stored
        .iter()
        .filter(|text| text.contains("(client.example [192.0.2.7])"));
    assert_eq!(named.count() as u64, sent, "{}", stored[0]);
    holds(&ledger, &["--maildir", &postfix.place.at("mail/all")], sent);
}

#[test]
fn postfix_tells_the_sender_the_recipient_and_the_envelope_id_of_each_message() {
    let Some(postfix) = Postfix::start("postfix-dsn") else {
        return;
    };
    let ledger = postfix.place.at("ledger");
    // A recipient whose `+` and `=` need xtext.
    let to = "dsn+tag={seq}@test.example";
    let (report, sent) = valid(
        &postfix.plain,
        20,
        &["--ledger", &ledger, "--dsn", "success,orcpt", "--to", to],
    );
    let notices = postfix.mailbox("notices", sent);
    let run = report["config"]["run"].as_str().unwrap();
    for seq in 0..20 {
        let said = format!("Original-Envelope-Id: {run}.{seq}\n");
        let mut of_it = notices.iter().filter(|text| text.contains(&said));
        let notice = of_it
            .next()
            .unwrap_or_else(|| panic!("none of {said}: {}", notices[0]));
        let xtext = format!("Original-Recipient: rfc822;dsn+2Btag+3D{seq}@test.example\n");
        let plain = format!("Original-Recipient: rfc822;dsn+tag={seq}@test.example\n");
        assert!(
            notice.contains(&xtext) || notice.contains(&plain),
            "{notice}"
        );
        assert!(notice.contains("Action: delivered\n"), "{notice}");
        assert!(of_it.next().is_none());
    }
    postfix.mailbox("all", sent);
    holds(&ledger, &["--maildir", &postfix.place.at("mail/all")], sent);
}

/// Starts smtp-sink with `options`; its messages go into a directory of `place`, one file each.
fn smtp_sink(place: &Place, options: &[&str]) -> Option<(Guard, String)> {
    let sink = ["/usr/sbin/smtp-sink", "/usr/lib/postfix/sbin/smtp-sink"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    let Some(sink) = sink else {
        skip!("smtp-sink (Debian package postfix) is not installed");
        return None;
    };
    let store = place.0.join("store");
    fs::create_dir_all(&store).unwrap();
    // As root smtp-sink wants a user to become.
    let user: &[&str] = if is_root() {
        assert!(said("chown", &["nobody", &store.display().to_string()]).is_some());
        &["-u", "nobody"]
    } else {
        &[]
    };
    let port = free_port();
    let target = format!("127.0.0.1:{port}");
    let child = Command::new(sink)
        .args(user)
        .args(["-d", &format!("{}/%M.", store.display())])
        .args(options)
        .args([&target, "100"])
        .spawn()
        .unwrap();
    wait_for(port);
    Some((Guard(child), target))
}

#[test]
fn smtp_sink_stores_what_the_ledger_says_in_each_dialect() {
    for (name, options, runs) in [
        (
            "sink-smtp",
            &[][..],
            &[
                (500, &[][..]),
                (500, &["--pipelining", "off"]),
                (100, &["--messages-per-connection", "1"]),
                (20, &["--size", "1MiB"]),
                (300, &["--rate", "1000", "--poisson"]),
            ][..],
        ),
        ("sink-lmtp", &["-L"], &[(100, &["--lmtp"])]),
    ] {
        let place = Place::new(name);
        let Some((guard, target)) = smtp_sink(&place, options) else {
            return;
        };
        let ledger = place.at("ledger");
        let mut sent = 0;
        for (messages, more) in runs {
            let more = [&["--ledger", &ledger], *more].concat();
            sent += valid(&target, *messages, &more).1;
        }
        drop(guard);
        holds(&ledger, &["--eml", &place.at("store")], sent);
    }
}
