//! Python's aiosmtpd, in the clear, with STARTTLS and with implicit TLS.

use crate::support::{Authority, Place, handshakes, holds, said, skip, valid, with_ports};
use std::process::Command;

/// Keeps each message as a file; prints the ports of its three listeners.
const SERVER: &str = r#"
import asyncio, itertools, os, ssl, sys
from aiosmtpd.smtp import SMTP
store, certificate, key = sys.argv[1:]
count = itertools.count()
class Keep:
    async def handle_DATA(self, server, session, envelope):
        with open(os.path.join(store, f"{next(count)}.eml"), "wb") as file:
            file.write(envelope.content)
        return "250 2.0.0 kept"
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
async def main():
    loop = asyncio.get_running_loop()
    plain = await loop.create_server(
        lambda: SMTP(Keep(), hostname="aio.example"), "127.0.0.1", 0)
    starttls = await loop.create_server(
        lambda: SMTP(Keep(), hostname="aio.example", tls_context=context, require_starttls=True),
        "127.0.0.1", 0)
    implicit = await loop.create_server(
        lambda: SMTP(Keep(), hostname="aio.example"), "127.0.0.1", 0, ssl=context)
    servers = plain, starttls, implicit
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"#;

#[test]
fn aiosmtpd_stores_what_the_ledger_says() {
    if said("python3", &["-c", "import aiosmtpd"]).is_none() {
        skip!("aiosmtpd (Python package) is not installed");
        return;
    }
    let place = Place::new("aiosmtpd");
    let tls = Authority::new(&place);
    let store = place.at("store");
    std::fs::create_dir(&store).unwrap();
    let mut command = Command::new("python3");
    command.args(["-c", SERVER, &store, &tls.certificate, &tls.key]);
    let (guard, ports) = with_ports(&mut command);
    let targets: Vec<String> = ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    let ledger = place.at("ledger");
    let more = [
        "--ledger",
        &ledger,
        "--size",
        "600-5000",
        "--messages-per-connection",
        "20",
    ];
    let mut sent = valid(&targets[0], 200, &more).1;
    for (target, mode) in [(&targets[1], "starttls"), (&targets[2], "implicit")] {
        let more = [&more[..], &["--tls", mode, "--tls-ca", &tls.ca]].concat();
        let (report, accepted) = valid(target, 100, &more);
        assert_eq!(handshakes(&report), [("TLS 1.3".to_owned(), 5)], "{mode}");
        sent += accepted;
    }
    drop(guard);
    holds(&ledger, &["--eml", &store], sent);
}
