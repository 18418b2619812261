//! OpenSMTPD, in the clear: the TLS of Debian 12's package fails with the OpenSSL of Debian 12,
//! whoever the client is.

use crate::support::{Place, Unpacked, files_in, free_port, holds, valid, wait_for, wait_until};

const CONFIG: &str = "\
table catch { \"@\" = \"nobody\" }
listen on 127.0.0.1 port PORT hostname opensmtpd.test.example
action \"keep\" maildir \"PLACE/mail\" virtual <catch>
match from any for any action \"keep\"
";

/// Its programs and directories are where it was built to find them.
const SCRIPT: &str = "\
mount -t overlay overlay -o lowerdir=ROOT/usr:/usr /usr
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/spool
mount -t tmpfs tmpfs /var/lib
mkdir -p /var/spool/smtpd /var/lib/opensmtpd/empty PLACE/mail
chmod 711 /var/spool/smtpd
chown nobody PLACE/mail
exec /usr/sbin/smtpd -d -f PLACE/smtpd.conf
";

#[test]
fn opensmtpd_delivers_what_the_ledger_says() {
    let Some(opensmtpd) = Unpacked::find("opensmtpd", "opensmtpd") else {
        return;
    };
    let place = Place::new("opensmtpd");
    let (base, port) = (place.0.display().to_string(), free_port());
    let config = CONFIG.replace("PORT", &port.to_string());
    place.write("smtpd.conf", &config.replace("PLACE", &base));
    let root = opensmtpd.root.display().to_string();
    let script = SCRIPT.replace("ROOT", &root).replace("PLACE", &base);
    let users = [("opensmtpd", 61_996), ("opensmtpq", 61_997)];
    let Some(guard) = opensmtpd.start(&place, &users, &script) else {
        return;
    };
    wait_for(port);
    let target = format!("127.0.0.1:{port}");
    let ledger = place.at("ledger");
    let mut sent = 0;
    for more in [
        &["--size", "600-5000"][..],
        &["--pipelining", "off"],
        &["--messages-per-connection", "1", "--dsn", "never,orcpt"],
    ] {
        sent += valid(&target, 25, &[&["--ledger", &ledger], more].concat()).1;
    }
    let inbox = place.0.join("mail/new");
    wait_until("OpenSMTPD does not deliver", || {
        files_in(&inbox) as u64 == sent
    });
    drop(guard);
    holds(&ledger, &["--maildir", &place.at("mail")], sent);
}
