//! Exim, in the clear, with STARTTLS and with implicit TLS.

use crate::support::{
    Authority, Place, Unpacked, files_in, free_port, handshakes, holds, valid, wait_for, wait_until,
};

/// Everything lives below one directory; every message goes into one Maildir.
const CONFIG: &str = "\
primary_hostname = exim.test.example
exim_path = PROGRAM
spool_directory = PLACE/spool
log_file_path = PLACE/log/%s
local_interfaces = 127.0.0.1
daemon_smtp_ports = PLAIN : IMPLICIT
tls_on_connect_ports = IMPLICIT
tls_advertise_hosts = *
tls_certificate = PLACE/tls/server.pem
tls_privatekey = PLACE/tls/server.key
dsn_advertise_hosts = *
keep_environment =
deliver_drop_privilege = true
never_users =
acl_smtp_rcpt = accept
acl_smtp_data = accept
smtp_accept_max = 100
smtp_accept_max_per_connection = 0
begin routers
all:
  driver = accept
  transport = maildir
begin transports
maildir:
  driver = appendfile
  directory = PLACE/mail
  maildir_format
";

#[test]
fn exim_delivers_what_the_ledger_says() {
    let Some(exim) = Unpacked::find("exim", "exim4-daemon-light") else {
        return;
    };
    let place = Place::new("exim");
    let tls = Authority::new(&place);
    let (plain, implicit) = (free_port(), free_port());
    let binary = exim.root.join("usr/sbin/exim4").display().to_string();
    let config = CONFIG
        .replace("PLACE", &place.0.display().to_string())
        .replace("PROGRAM", &binary)
        .replace("PLAIN", &plain.to_string())
        .replace("IMPLICIT", &implicit.to_string());
    place.write("etc/exim4/exim4.conf", &config);
    let (user, base) = (61_998, place.0.display().to_string());
    let script = format!(
        "mkdir -p {base}/spool {base}/mail {base}/log\n\
         chown -R {user}:{user} {base}/spool {base}/mail {base}/log {base}/tls\n\
         exec {binary} -bdf"
    );
    let Some(guard) = exim.start(&place, &[("Debian-exim", user)], &script) else {
        return;
    };
    wait_for(plain);
    wait_for(implicit);
    let (clear, secure) = (
        format!("127.0.0.1:{plain}"),
        format!("127.0.0.1:{implicit}"),
    );
    let ledger = place.at("ledger");
    let mut sent = 0;
    for more in [
        &["--size", "600-5000"][..],
        &["--pipelining", "off"],
        &["--chunk", "700"],
        &["--messages-per-connection", "1", "--dsn", "never,orcpt"],
    ] {
        sent += valid(&clear, 25, &[&["--ledger", &ledger], more].concat()).1;
    }
    for (target, mode) in [(&clear, "starttls"), (&secure, "implicit")] {
        let more = ["--ledger", &ledger, "--tls", mode, "--tls-ca", &tls.ca];
        let more = [&more[..], &["--messages-per-connection", "5"]].concat();
        let (report, accepted) = valid(target, 25, &more);
        assert_eq!(handshakes(&report), [("TLS 1.3".to_owned(), 5)], "{mode}");
        sent += accepted;
    }
    // Its 250 means queued; delivery comes after.
    let inbox = place.0.join("mail/new");
    wait_until("Exim does not deliver", || files_in(&inbox) as u64 == sent);
    drop(guard);
    holds(&ledger, &["--maildir", &place.at("mail")], sent);
}
