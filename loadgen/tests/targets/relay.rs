//! Postfix and Exim hand on to ringmx what they are given, over TLS, with its certificate checked.

use crate::postfix::Postfix;
use crate::ringmx::{ringmx, serve};
use crate::support::{
    Authority, Place, Unpacked, free_port, holds, said, valid, wait_for, wait_until,
};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Messages in each run.
const MESSAGES: u64 = 25;

/// How many messages a ring holds.
fn stored(ringmx: &Path, ring: &str) -> u64 {
    let program = ringmx.display().to_string();
    let list = said(&program, &["log", "ls", "--json", "--ring", ring]);
    list.map_or(0, |list| list.lines().count() as u64)
}

/// Asserts of each message that it came under TLS, and from whom.
fn came_under_tls(ringmx: &Path, ring: &str, user: Option<&str>) {
    let program = ringmx.display().to_string();
    let list = said(&program, &["log", "ls", "--json", "--ring", ring]).unwrap();
    for line in list.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        let tls = entry["tls"].as_str().unwrap_or_default();
        assert!(tls.starts_with("TLSv1.3 TLS_"), "{entry}");
        assert_eq!(entry["user"].as_str(), user, "{entry}");
    }
}

fn port(address: &str) -> &str {
    address.rsplit(':').next().unwrap()
}

/// Postfix hands everything to `localhost`, port `PORT`, and trusts the authority in `CA` alone.
const POSTFIX: &str = "\
virtual_mailbox_domains =
relay_domains = test.example loadgen.example
relay_transport = smtp:[localhost]:PORT
smtp_tls_security_level = secure
smtp_tls_wrappermode = WRAPPER
smtp_tls_secure_cert_match = hostname
smtp_tls_CAfile = CA
smtp_tls_mandatory_protocols = >=TLSv1.2
smtp_host_lookup = native
";

#[test]
fn postfix_hands_on_over_starttls_and_implicit_tls_with_the_certificate_checked() {
    let Some(ringmx) = ringmx() else {
        return;
    };
    for (name, implicit) in [("starttls", false), ("implicit", true)] {
        let place = Place::new(&format!("postfix-{name}"));
        let tls = Authority::new(&place);
        let ring = place.at("ring");
        let listen = match implicit {
            true => "127.0.0.1:0,role=mx,tls=implicit",
            false => "127.0.0.1:0,role=mx,tls=required",
        };
        let accepted = ["test.example", "loadgen.example"];
        let files = ["--tls-cert", &tls.certificate, "--tls-key", &tls.key];
        let domains = accepted
            .iter()
            .flat_map(|domain| ["--accept-domain", domain]);
        let options: Vec<&str> = ["--listen", listen]
            .into_iter()
            .chain(files)
            .chain(domains)
            .collect();
        let (guard, targets) = serve(&ringmx, &ring, &options);
        let settings = |authority: &str| {
            let wrapper = if implicit { "yes" } else { "no" };
            let settings = POSTFIX.replace("PORT", port(&targets[0]));
            settings
                .replace("WRAPPER", wrapper)
                .replace("CA\n", &format!("{authority}\n"))
        };
        if !implicit {
            hands_nothing_to_a_stranger(&settings);
            assert_eq!(stored(&ringmx, &ring), 0);
        }
        let label = format!("relay-{name}");
        let Some(postfix) = Postfix::start_with(&label, &settings(&tls.ca)) else {
            return;
        };
        let ledger = place.at("ledger");
        let more = ["--ledger", &ledger, "--size", "600-5000"];
        let (_, sent) = valid(&postfix.plain, MESSAGES, &more);
        wait_until("Postfix does not hand on", || {
            stored(&ringmx, &ring) >= sent
        });
        drop(postfix);
        came_under_tls(&ringmx, &ring, None);
        drop(guard);
        let program = ringmx.display().to_string();
        holds(&ledger, &["--ring", &ring, "--ringmx", &program], sent);
    }
}

/// A Postfix that trusts another authority tries, and keeps its mail.
fn hands_nothing_to_a_stranger(settings: &dyn Fn(&str) -> String) {
    let elsewhere = Place::new("postfix-elsewhere");
    let untrusted = Authority::new(&elsewhere).ca;
    let Some(postfix) = Postfix::start_with("relay-untrusted", &settings(&untrusted)) else {
        return;
    };
    valid(&postfix.plain, 1, &[]);
    let log = postfix.place.0.join("log");
    wait_until("Postfix does not try", || {
        fs::read_to_string(&log)
            .is_ok_and(|log| log.contains("status=deferred (Server certificate not "))
    });
}

/// Exim hands everything to `localhost`, port `TARGET`, as a user, and trusts one authority alone.
const EXIM: &str = "\
primary_hostname = exim.test.example
exim_path = PROGRAM
spool_directory = PLACE/spool
log_file_path = PLACE/log/%s
local_interfaces = 127.0.0.1
daemon_smtp_ports = PLAIN
disable_ipv6 = true
keep_environment =
deliver_drop_privilege = true
never_users =
acl_smtp_rcpt = accept
acl_smtp_data = accept
smtp_accept_max = 100
smtp_accept_max_per_connection = 0
queue_run_max = 20
begin routers
all:
  driver = manualroute
  route_list = * localhost::TARGET byname
  self = send
  transport = relay
begin transports
relay:
  driver = smtp
  protocol = PROTOCOL
  hosts_require_tls = *
  hosts_require_auth = *
  tls_verify_certificates = PLACE/tls/ca.pem
  tls_verify_hosts = *
  tls_verify_cert_hostnames = *
begin retry
* * F,1h,1m
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  client_send = ^exim^a password of exim
";

#[test]
fn exim_hands_on_as_a_user_over_starttls_and_implicit_tls_with_the_certificate_checked() {
    let (Some(ringmx), Some(exim)) = (ringmx(), Unpacked::find("exim", "exim4-daemon-light"))
    else {
        return;
    };
    for (name, tls_mode, protocol) in [
        ("starttls", "required", "smtp"),
        ("implicit", "implicit", "smtps"),
    ] {
        let place = Place::new(&format!("relay-exim-{name}"));
        let tls = Authority::new(&place);
        let (ring, users) = (place.at("ring"), place.at("users"));
        add_user(&ringmx, &users);
        let listen = format!("127.0.0.1:0,role=submission,tls={tls_mode}");
        let (guard, targets) = serve(
            &ringmx,
            &ring,
            &[
                "--listen",
                &listen,
                "--tls-cert",
                &tls.certificate,
                "--tls-key",
                &tls.key,
                "--users",
                &users,
            ],
        );
        let (plain, user) = (free_port(), 61_997);
        let (base, binary) = (
            place.0.display().to_string(),
            exim.root.join("usr/sbin/exim4").display().to_string(),
        );
        let config = EXIM
            .replace("PLACE", &base)
            .replace("PROGRAM", &binary)
            .replace(
                "daemon_smtp_ports = PLAIN",
                &format!("daemon_smtp_ports = {plain}"),
            )
            .replace("TARGET", port(&targets[0]))
            .replace("PROTOCOL", protocol);
        place.write("etc/exim4/exim4.conf", &config);
        let script = format!(
            "mkdir -p {base}/spool {base}/log\n\
             chown -R {user}:{user} {base}/spool {base}/log {base}/tls\n\
             exec {binary} -bdf -q5s"
        );
        let Some(relay) = exim.start(&place, &[("Debian-exim", user)], &script) else {
            return;
        };
        wait_for(plain);
        let ledger = place.at("ledger");
        let more = ["--ledger", &ledger, "--size", "600-5000"];
        let (_, sent) = valid(&format!("127.0.0.1:{plain}"), MESSAGES, &more);
        wait_until("Exim does not hand on", || stored(&ringmx, &ring) >= sent);
        drop(relay);
        came_under_tls(&ringmx, &ring, Some("exim"));
        drop(guard);
        let program = ringmx.display().to_string();
        holds(&ledger, &["--ring", &ring, "--ringmx", &program], sent);
    }
}

fn add_user(ringmx: &Path, users: &str) {
    let mut child = Command::new(ringmx)
        .args([
            "users",
            "add",
            "--file",
            users,
            "exim",
            "--iterations",
            "4096",
        ])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"a password of exim\n").unwrap();
    drop(input);
    assert!(child.wait().unwrap().success());
}
