//! One listening address and what it is for, as `--listen` writes it.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::units::quoted;
use crate::server::listener::{ProxyMode, TlsMode};
use crate::smtp::session::Role;

/// What a listening address may be, as error messages and documents say it.
pub const LISTEN_ALLOWED: &str = "an IP address and a port, such as 127.0.0.1:2525 or [::1]:2525 (names are not looked up), \
     unix:PATH (up to 255 bytes) or systemd:NAME, and behind commas role=WORD, tls=WORD, proxy=WORD or lmtp";

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// TCP.
    Ip(SocketAddr),
    /// A UNIX socket at this path.
    Unix(PathBuf),
    /// A socket that the service manager opened and gave this name (FileDescriptorName= of systemd.socket).
    Inherited(String),
}

/// Longest path of a UNIX socket, and longest name of an inherited one, bytes. A path that an address has no room for
/// is bound through its directory.
const PLACE_BYTES_MAX: usize = 255;

impl Place {
    fn parse(text: &str) -> Option<Place> {
        let usable = |text: &str| {
            (1..=PLACE_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control)
        };
        if let Some(path) = text.strip_prefix("unix:") {
            usable(path).then(|| Place::Unix(PathBuf::from(path)))
        } else if let Some(name) = text.strip_prefix("systemd:") {
            usable(name).then(|| Place::Inherited(name.to_owned()))
        } else {
            text.parse().ok().map(Place::Ip)
        }
    }

    /// The address that is known before anything is bound: a UNIX socket counts as loopback, one that is
    /// inherited as open to everybody.
    pub fn address(&self) -> SocketAddr {
        match self {
            Place::Ip(address) => *address,
            Place::Unix(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            Place::Inherited(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        }
    }
}

impl fmt::Display for Place {
    /// The text that is read back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Ip(address) => write!(f, "{address}"),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
            Place::Inherited(name) => write!(f, "systemd:{name}"),
        }
    }
}

/// A listening address and what was said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where it listens.
    pub place: Place,
    /// What it is for; `None`: the option's own default.
    pub role: Option<Role>,
    /// What it does about TLS; `None`: the option's own default.
    pub tls: Option<TlsMode>,
    /// Whether connections begin with a PROXY header.
    pub proxy: ProxyMode,
    /// LMTP (RFC 2033) instead of SMTP.
    pub lmtp: bool,
}

impl Listen {
    /// An address of which nothing more was said.
    pub fn plain(address: SocketAddr) -> Listen {
        Listen::at(Place::Ip(address))
    }

    fn at(place: Place) -> Listen {
        Listen {
            place,
            role: None,
            tls: None,
            proxy: ProxyMode::Off,
            lmtp: false,
        }
    }

    /// Reads `ADDR[,KEY=VALUE|,lmtp]...`.
    ///
    /// # Errors
    /// A phrase that says what is wrong and what is allowed.
    pub fn parse(text: &str) -> Result<Listen, String> {
        let refused = || format!("{} is not allowed; allowed: {LISTEN_ALLOWED}", quoted(text));
        let mut words = text.split(',');
        let place = words.next().and_then(Place::parse);
        let mut listen = Listen::at(place.ok_or_else(refused)?);
        let mut seen = Vec::new();
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            if seen.contains(&key) {
                return Err(format!("{} gives {key} twice", quoted(text)));
            }
            seen.push(key);
            match key {
                "role" => listen.role = Some(named(&Role::ALL, value).ok_or_else(refused)?),
                "tls" => listen.tls = Some(named(&TlsMode::ALL, value).ok_or_else(refused)?),
                "proxy" => listen.proxy = named(&ProxyMode::ALL, value).ok_or_else(refused)?,
                "lmtp" if value.is_empty() && word == "lmtp" => listen.lmtp = true,
                _ => return Err(refused()),
            }
        }
        Ok(listen)
    }
}

/// The value of this word.
fn named<T: Copy + fmt::Display>(all: &[T], word: &str) -> Option<T> {
    all.iter().copied().find(|value| value.to_string() == word)
}

impl fmt::Display for Listen {
    /// The text [`Listen::parse`] reads back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        if let Some(role) = self.role {
            write!(f, ",role={role}")?;
        }
        if let Some(tls) = self.tls {
            write!(f, ",tls={tls}")?;
        }
        if self.proxy != ProxyMode::Off {
            write!(f, ",proxy={}", self.proxy)?;
        }
        if self.lmtp {
            f.write_str(",lmtp")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_what_is_said_of_it() {
        let text = "[::1]:465,role=submission,tls=implicit,proxy=required,lmtp";
        let listen = Listen::parse(text).unwrap();
        assert_eq!(
            listen,
            Listen {
                place: Place::Ip("[::1]:465".parse().unwrap()),
                role: Some(Role::Submission),
                tls: Some(TlsMode::Implicit),
                proxy: ProxyMode::Required,
                lmtp: true,
            }
        );
        assert_eq!(listen.to_string(), text);
        let plain = Listen::parse("127.0.0.1:25").unwrap();
        assert_eq!(plain, Listen::plain("127.0.0.1:25".parse().unwrap()));
        assert_eq!(plain.to_string(), "127.0.0.1:25");
    }

    #[test]
    fn sockets_of_this_machine_are_named_by_path_or_by_the_service_manager() {
        for (text, place) in [
            (
                "unix:/run/ringmx.sock",
                Place::Unix("/run/ringmx.sock".into()),
            ),
            ("systemd:smtp", Place::Inherited("smtp".to_owned())),
        ] {
            let listen = Listen::parse(text).unwrap();
            assert_eq!(listen, Listen::at(place));
            assert_eq!(listen.to_string(), text);
        }
    }

    #[test]
    fn what_is_not_known_or_said_twice_is_refused() {
        for text in [
            "",
            "localhost:25",
            "127.0.0.1",
            "127.0.0.1:25,",
            "127.0.0.1:25,role",
            "127.0.0.1:25,role=",
            "127.0.0.1:25,role=Sink",
            "127.0.0.1:25,tls=yes",
            "127.0.0.1:25,lmtp=",
            "127.0.0.1:25,lmtp=yes",
            "127.0.0.1:25, role=sink",
            "unix:",
            "systemd:",
            "/run/ringmx.sock",
        ] {
            let error = Listen::parse(text).unwrap_err();
            assert_eq!(
                error,
                format!("\"{text}\" is not allowed; allowed: {LISTEN_ALLOWED}")
            );
        }
        let path = format!("unix:/{}", "p".repeat(254));
        assert_eq!(Listen::parse(&path).unwrap().to_string(), path);
        let error = Listen::parse(&format!("{path}p")).unwrap_err();
        assert_eq!(
            error,
            format!("\"{path}p\" is not allowed; allowed: {LISTEN_ALLOWED}")
        );
        assert_eq!(
            Listen::parse("127.0.0.1:25,role=mx,role=mx").unwrap_err(),
            "\"127.0.0.1:25,role=mx,role=mx\" gives role twice"
        );
    }
}
