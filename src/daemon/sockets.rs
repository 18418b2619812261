//! The sockets of a server: bound here, or handed over by the service manager.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use crate::cli::{EXIT_FAILURE, EXIT_USAGE, complain};
use crate::config::Config;
use crate::config::listen::Place;
use crate::daemon::takeover::Takeover;
use crate::daemon::{StartError, reason, start_error};
use crate::net::listener::{self, ListeningSocket, TcpListener};
use crate::server::Listener;
use crate::sys::socket::take_inherited;

/// First descriptor that a service manager hands over (sd_listen_fds(3)).
const INHERITED_FIRST: i32 = 3;
/// Most that are looked at.
const INHERITED_MAX: i32 = 64;

/// A listener with its sockets.
pub(super) struct Bound {
    /// A socket for each worker, or one that they share.
    sockets: Vec<Option<ListeningSocket>>,
    /// What is known of it; its address is the one the socket really has.
    pub(super) listener: Listener,
    /// Where it listens, for people.
    pub(super) shown: String,
    /// The socket's file, to be removed at the end.
    pub(super) file: Option<SocketFile>,
}

/// The file of a UNIX socket.
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and number, as far as they could be read.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: PathBuf) -> SocketFile {
        let identity = SocketFile::identity(&path);
        SocketFile { path, identity }
    }

    fn identity(path: &Path) -> Option<(u64, u64)> {
        let found = std::fs::symlink_metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    }

    /// Removes it, unless another server's stands there by now. One that can't be removed is replaced by the next
    /// start: its directory may belong to another user.
    pub(super) fn remove(&self) {
        if self.identity.is_some() && SocketFile::identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Bound {
    /// The address that `ringmx send` and the like can connect to.
    pub(super) fn tcp(&self) -> Option<SocketAddr> {
        match self.sockets.first()? {
            Some(ListeningSocket::Tcp(_)) => Some(self.listener.address),
            _ => None,
        }
    }

    /// The socket of a worker, 0 where there is only one, and closes those of the others.
    pub(super) fn take(mut self, worker: usize) -> Option<ListeningSocket> {
        let at = if self.sockets.len() == 1 { 0 } else { worker };
        self.sockets.get_mut(at).and_then(Option::take)
    }

    /// Further descriptors of its sockets, with the worker of each.
    pub(super) fn duplicates(&self) -> Vec<(u16, OwnedFd)> {
        let sockets = self.sockets.iter().zip(0..);
        sockets
            .filter_map(|(socket, worker)| Some((worker, socket.as_ref()?.duplicate().ok()?)))
            .collect()
    }

    /// Closes the socket of a worker, unless they share it.
    pub(super) fn close(&mut self, worker: usize) {
        if self.sockets.len() > 1
            && let Some(socket) = self.sockets.get_mut(worker)
        {
            *socket = None;
        }
    }

    /// Closes all.
    pub(super) fn close_all(&mut self) {
        self.sockets.clear();
    }
}

/// Binds all listeners, in the order of [`Config::listeners`], or takes them from the server that is taken over.
///
/// # Errors
/// The first that can't be had.
pub(super) fn bind_all(
    config: &Config,
    mut takeover: Option<&mut Takeover>,
) -> Result<Vec<Bound>, StartError> {
    let mut inherited = Inherited::from_environment();
    let mut bound = Vec::new();
    for (_, place, listener) in config.listeners() {
        let taken = match (&mut takeover, &place) {
            (Some(takeover), Place::Ip(address)) => takeover.take_ip(*address),
            (Some(takeover), Place::Unix(path)) => takeover.take_unix(path),
            _ => Vec::new(),
        };
        let sockets = match &place {
            _ if !taken.is_empty() => Ok(taken),
            Place::Ip(address) if config.workers > 1 => {
                listener::bind_group(*address, config.workers)
                    .map(|sockets| sockets.into_iter().map(ListeningSocket::Tcp).collect())
            }
            Place::Ip(address) => listener::bind(*address).map(|s| vec![ListeningSocket::Tcp(s)]),
            Place::Unix(path) => listener::bind_unix(path).map(|socket| vec![socket]),
            Place::Inherited(name) => {
                let socket = inherited.take(name).map_err(|text| {
                    start_error(EXIT_USAGE, format!("can't listen on {place}: {text}"))
                })?;
                socket.map(|socket| vec![socket])
            }
        };
        let failed = |error| {
            let text = format!("can't listen on {place}: {}", reason(&error));
            start_error(EXIT_FAILURE, text)
        };
        let sockets: Vec<ListeningSocket> = sockets.map_err(failed)?;
        let address = sockets[0].local_addr().map_err(failed)?;
        bound.push(Bound {
            listener: Listener {
                address,
                ..listener
            },
            shown: match &place {
                Place::Ip(_) => address.to_string(),
                Place::Unix(_) => place.to_string(),
                Place::Inherited(_) if matches!(sockets[0], ListeningSocket::Tcp(_)) => {
                    format!("{address} ({place})")
                }
                Place::Inherited(_) => place.to_string(),
            },
            file: match place {
                Place::Unix(path) => Some(SocketFile::new(path)),
                Place::Ip(_) | Place::Inherited(_) => None,
            },
            sockets: sockets.into_iter().map(Some).collect(),
        });
    }
    for (_, name) in &inherited.left {
        complain(&format!(
            "ringmx: warning: no listener takes the socket {name:?} that was handed over: who connects there gets no \
             answer; '--listen systemd:{name}' would take it\n"
        ));
    }
    Ok(bound)
}

/// Binds the HTTP listener, if there is to be one.
///
/// # Errors
/// An address that was asked for can't be had; the default one is a warning.
pub(super) fn bind_http(
    config: &Config,
    takeover: Option<&mut Takeover>,
) -> Result<Option<(TcpListener, SocketAddr)>, StartError> {
    let Some(address) = config.http else {
        return Ok(None);
    };
    let taken = takeover.and_then(|takeover| takeover.take_http(address));
    match taken.map_or_else(|| listener::bind(address), Ok) {
        Ok(socket) => {
            let actual = socket.local_addr().unwrap_or(address);
            Ok(Some((socket, actual)))
        }
        Err(error) if config.is_given("http") => Err(start_error(
            EXIT_FAILURE,
            format!("can't listen on {address} for HTTP: {}", reason(&error)),
        )),
        Err(error) => {
            complain(&format!(
                "ringmx: warning: no status pages: {address}: {} (--http HOST:PORT chooses another address)\n",
                reason(&error)
            ));
            Ok(None)
        }
    }
}

/// What a service manager handed over: numbers and names.
struct Inherited {
    left: Vec<(i32, String)>,
}

impl Inherited {
    /// What LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES say (sd_listen_fds(3)), if they are meant for this process.
    fn from_environment() -> Inherited {
        let variable = |name: &str| std::env::var(name).ok();
        let is_mine =
            variable("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
        let count = variable("LISTEN_FDS").and_then(|count| count.parse::<i32>().ok());
        let count = count
            .filter(|_| is_mine)
            .unwrap_or(0)
            .clamp(0, INHERITED_MAX);
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let left = (0..count)
            .map(|at| {
                let name = names.next().unwrap_or("unknown");
                (INHERITED_FIRST + at, name.to_owned())
            })
            .collect();
        Inherited { left }
    }

    /// The next socket of this name.
    fn take(&mut self, name: &str) -> Result<io::Result<ListeningSocket>, String> {
        let Some(at) = self.left.iter().position(|(_, known)| known == name) else {
            let names: Vec<&str> = self.left.iter().map(|(_, name)| name.as_str()).collect();
            return Err(if names.is_empty() {
                "no socket was handed over (LISTEN_FDS and LISTEN_PID of socket activation)"
                    .to_owned()
            } else {
                format!(
                    "no socket of this name is left; there is: {}",
                    names.join(", ")
                )
            });
        };
        let (number, _) = self.left.remove(at);
        Ok(take_inherited(number).and_then(listener::adopt))
    }
}

/// Tells the service manager how this server stands, where one listens (sd_notify(3)). Nobody listening is no
/// fault.
pub(super) fn notify(state: &str) {
    let Some(target) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let bytes = target.as_encoded_bytes();
    let address = match bytes.strip_prefix(b"@") {
        #[cfg(target_os = "linux")]
        Some(name) => UnixAddr::from_abstract_name(name),
        #[cfg(not(target_os = "linux"))]
        Some(_) => Err(std::io::ErrorKind::Unsupported.into()),
        None => UnixAddr::from_pathname(&target),
    };
    let sent = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = sent {
        complain(&format!(
            "ringmx: warning: NOTIFY_SOCKET: {}\n",
            reason(&error)
        ));
    }
}
