//! What the first lines of a server tell a newcomer to try: commands that work as they stand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Config;
use crate::server::listener::{Listener, ProxyMode, TlsMode};
use crate::smtp::session::Role;

/// Commands that deliver a first message to one of these listeners, which have TCP addresses, a line each; empty
/// where there is none.
pub(super) fn first_steps(config: &Config, listeners: &[Listener]) -> String {
    let plain = listeners.iter().find(|listener| is_plain(listener));
    match (plain, listeners.first()) {
        (Some(listener), _) => {
            let to = (listener.role == Role::Mx && !config.accept_any_recipient)
                .then(|| taken_by(&config.accept_domain));
            plain_steps(reachable(listener.address), to.as_deref())
        }
        (None, Some(listener)) => other_steps(listener),
        (None, None) => String::new(),
    }
}

/// Whether a client needs neither TLS nor a password nor a header in front.
fn is_plain(listener: &Listener) -> bool {
    let Listener {
        role,
        tls,
        proxy,
        lmtp,
        ..
    } = listener;
    *role != Role::Submission
        && matches!(tls, TlsMode::Off | TlsMode::Offered)
        && *proxy != ProxyMode::Required
        && !lmtp
}

/// The address to connect to from this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// A recipient that a listener with these entries of `accept-domain` takes. Without any, recipients are in a file, and
/// postmaster is taken always (RFC 5321 4.5.1).
fn taken_by(entries: &[String]) -> String {
    match entries.first().map(|entry| entry.split_at_checked(1)) {
        None => "postmaster".to_owned(),
        Some(Some(("@", entry))) => taken_by(&[entry.to_owned()]),
        Some(Some((".", domain))) => format!("postmaster@mail.{domain}"),
        Some(_) if entries[0].contains('@') => entries[0].clone(),
        Some(_) => format!("postmaster@{}", entries[0]),
    }
}

fn plain_steps(address: SocketAddr, to: Option<&str>) -> String {
    let mut options = String::new();
    if address.port() != 2525 || !address.ip().is_loopback() {
        options += &format!(" --server {address}");
    }
    if let Some(to) = to {
        options += &format!(" --to {to}");
    }
    format!(
        "Try:  ringmx send{options} Hello\n      python3 -c \"import smtplib; smtplib.SMTP('{}', \
         {}).sendmail('me@example.org', '{}', 'Subject: hi\\r\\n\\r\\nHello\\r\\n')\"\n",
        address.ip(),
        address.port(),
        to.unwrap_or("you@example.org"),
    )
}

/// For a listener that `ringmx send` and a line of Python can't deliver to.
fn other_steps(listener: &Listener) -> String {
    let address = reachable(listener.address);
    let mut options = match listener.tls {
        TlsMode::Off => String::new(),
        TlsMode::Offered | TlsMode::Required => " --tls".to_owned(),
        TlsMode::Implicit => " --tls-on-connect".to_owned(),
    };
    if listener.role == Role::Submission {
        options += " --auth-user NAME";
    }
    if listener.lmtp {
        options += " --protocol LMTP";
    }
    if listener.proxy == ProxyMode::Required {
        // The first version of the header, as the proxy would send it for a client of its own machine.
        options += " --proxy 'TCP4 127.0.0.1 127.0.0.1 40000 25'";
    }
    format!(
        "Try:  swaks --server {} --port {}{options} --to postmaster\n",
        address.ip(),
        address.port()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink(address: &str) -> Listener {
        Listener::sink(address.parse().unwrap())
    }

    fn steps(config: &Config, listeners: &[Listener]) -> Vec<String> {
        let text = first_steps(config, listeners);
        text.lines().map(str::to_owned).collect()
    }

    const PYTHON: &str = "      python3 -c \"import smtplib; smtplib.SMTP(";

    #[test]
    fn a_sink_is_named_only_where_it_is_not_the_default() {
        let config = Config::default();
        let lines = steps(&config, &[sink("127.0.0.1:2525")]);
        let python = format!(
            "{PYTHON}'127.0.0.1', 2525).sendmail('me@example.org', 'you@example.org', \
             'Subject: hi\\r\\n\\r\\nHello\\r\\n')\""
        );
        assert_eq!(lines, ["Try:  ringmx send Hello".to_owned(), python]);
        let lines = steps(&config, &[sink("0.0.0.0:25")]);
        assert_eq!(lines[0], "Try:  ringmx send --server 127.0.0.1:25 Hello");
        let lines = steps(&config, &[sink("[::]:25")]);
        assert_eq!(lines[0], "Try:  ringmx send --server [::1]:25 Hello");
        assert!(steps(&config, &[]).is_empty());
    }

    #[test]
    fn an_mx_is_sent_a_recipient_that_it_takes() {
        let mx = Listener {
            role: Role::Mx,
            ..sink("127.0.0.1:2525")
        };
        let table = [
            (&[][..], "postmaster"),
            (&["example.net", "other.test"][..], "postmaster@example.net"),
            (&["@example.net"][..], "postmaster@example.net"),
            (&[".example.net"][..], "postmaster@mail.example.net"),
            (&["@.example.net"][..], "postmaster@mail.example.net"),
            (&["jim@example.net"][..], "jim@example.net"),
            (&["[192.0.2.1]"][..], "postmaster@[192.0.2.1]"),
        ];
        for (entries, to) in table {
            let config = Config {
                accept_domain: entries.iter().map(|&entry| entry.to_owned()).collect(),
                ..Config::default()
            };
            let lines = steps(&config, &[mx]);
            assert_eq!(lines[0], format!("Try:  ringmx send --to {to} Hello"));
            let python = format!("{PYTHON}'127.0.0.1', 2525).sendmail('me@example.org', '{to}', ");
            assert!(lines[1].starts_with(&python), "{}", lines[1]);
        }
        let config = Config {
            accept_any_recipient: true,
            ..Config::default()
        };
        assert_eq!(steps(&config, &[mx])[0], "Try:  ringmx send Hello");
    }

    #[test]
    fn a_listener_that_wants_more_than_plain_smtp_gets_a_client_that_can() {
        let config = Config::default();
        let plain = sink("127.0.0.1:587");
        let submission = Listener {
            role: Role::Submission,
            tls: TlsMode::Required,
            ..plain
        };
        let table = [
            (submission, " --tls --auth-user NAME"),
            (
                Listener {
                    tls: TlsMode::Implicit,
                    ..plain
                },
                " --tls-on-connect",
            ),
            (
                Listener {
                    lmtp: true,
                    ..plain
                },
                " --protocol LMTP",
            ),
            (
                Listener {
                    proxy: ProxyMode::Required,
                    ..plain
                },
                " --proxy 'TCP4 127.0.0.1 127.0.0.1 40000 25'",
            ),
        ];
        for (listener, options) in table {
            let expected =
                format!("Try:  swaks --server 127.0.0.1 --port 587{options} --to postmaster");
            assert_eq!(steps(&config, &[listener]), [expected]);
        }
        // One that needs less stands behind it.
        let lines = steps(&config, &[submission, sink("127.0.0.1:25")]);
        assert_eq!(lines[0], "Try:  ringmx send --server 127.0.0.1:25 Hello");
    }
}
