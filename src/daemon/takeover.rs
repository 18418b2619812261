//! `serve --takeover`: taking the listening sockets of the server that runs on the same directory.
//!
//! The new server uses the other shards of a pair: with N workers, the first N of the directory and the N behind them
//! take turns. So the old one ends on its own rings in its own time, nothing but sockets changes hands, and mail is
//! taken at every moment.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{StartError, reason, start_error};
use crate::cli::{EXIT_FAILURE, EXIT_USAGE};
use crate::config::Config;
use crate::ctl::with_short_path;
use crate::net::handover::{FRAME_BYTES, GO, Head, Kind, RELEASED, SOCKET_FILE};
use crate::net::listener::{self, ListeningSocket, TcpListener};
use crate::sys::fd_passing;

/// Time within which the old server has to answer: its loop may stand behind a slow write.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Sockets that are taken at most: 16 addresses of 64 workers, and the pages.
const SOCKETS_MAX: usize = 16 * 64 + 1;

/// What an old server has given.
pub(super) struct Takeover {
    stream: UnixStream,
    head: Head,
    mail: Vec<(u16, ListeningSocket, Local)>,
    http: Option<OwnedFd>,
}

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Local {
    Ip(SocketAddr),
    Unix(PathBuf),
}

impl Takeover {
    /// Asks the server of this directory for its sockets.
    ///
    /// # Errors
    /// None runs, it refuses, or it has another number of workers.
    pub(super) fn begin(config: &Config) -> Result<Takeover, StartError> {
        let path = config.ring.join(SOCKET_FILE);
        let failed = |error: io::Error| {
            let text = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
                    "takeover: no server runs on {}; start without --takeover",
                    config.ring.display()
                ),
                io::ErrorKind::UnexpectedEof => format!(
                    "takeover: the server on {} refuses: it is another user's, or is being taken over already",
                    config.ring.display()
                ),
                _ => format!("takeover: {}: {}", path.display(), reason(&error)),
            };
            start_error(EXIT_FAILURE, text)
        };
        let stream = with_short_path(&path, |path| UnixStream::connect(path)).map_err(failed)?;
        let timeouts = stream
            .set_read_timeout(Some(ANSWER_WAIT))
            .and_then(|()| stream.set_write_timeout(Some(ANSWER_WAIT)));
        timeouts.map_err(failed)?;
        let (frame, _) = receive(&stream).map_err(failed)?;
        let head = Head::decode(frame).ok_or_else(|| {
            let text = "takeover: the running server speaks another version; restart instead";
            start_error(EXIT_FAILURE, text)
        })?;
        if usize::from(head.workers) != config.workers {
            let text = format!(
                "takeover: the running server has {0} workers; start with --workers {0}",
                head.workers
            );
            return Err(start_error(EXIT_USAGE, text));
        }
        let mut takeover = Takeover {
            stream,
            head,
            mail: Vec::new(),
            http: None,
        };
        takeover.receive_sockets().map_err(failed)?;
        Ok(takeover)
    }

    fn receive_sockets(&mut self) -> io::Result<()> {
        for _ in 0..=SOCKETS_MAX {
            let (frame, socket) = receive(&self.stream)?;
            let kind = Kind::decode(frame).ok_or(io::ErrorKind::InvalidData)?;
            let Some(kind) = kind else {
                return Ok(());
            };
            let socket = socket.ok_or(io::ErrorKind::InvalidData)?;
            match kind {
                Kind::Http => self.http = Some(socket),
                Kind::Mail(worker) => {
                    let local = local(&socket)?;
                    self.mail.push((worker, listener::adopt(socket)?, local));
                }
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Number of the process that is taken over.
    pub(super) fn pid(&self) -> u32 {
        self.head.pid
    }

    /// Shard of the first worker of the new server.
    pub(super) fn first_shard(&self) -> u16 {
        match self.head.first_shard {
            0 => self.head.workers,
            _ => 0,
        }
    }

    /// The sockets that listen on this address, in the order of the workers; empty where the old server did not. Port 0
    /// is whatever port the old server got.
    pub(super) fn take_ip(&mut self, address: SocketAddr) -> Vec<ListeningSocket> {
        let found = self.mail.iter().find_map(|(_, _, local)| match local {
            Local::Ip(at) if *at == address => Some(*at),
            Local::Ip(at) if address.port() == 0 && at.ip() == address.ip() => Some(*at),
            _ => None,
        });
        match found {
            Some(at) => self.take(&Local::Ip(at)),
            None => Vec::new(),
        }
    }

    /// The same for the socket with this file.
    pub(super) fn take_unix(&mut self, path: &Path) -> Vec<ListeningSocket> {
        self.take(&Local::Unix(path.to_owned()))
    }

    fn take(&mut self, wanted: &Local) -> Vec<ListeningSocket> {
        let (taken, left) = std::mem::take(&mut self.mail)
            .into_iter()
            .partition(|(_, _, local)| local == wanted);
        self.mail = left;
        let mut taken: Vec<(u16, ListeningSocket, Local)> = taken;
        taken.sort_by_key(|(worker, ..)| *worker);
        taken.into_iter().map(|(_, socket, _)| socket).collect()
    }

    /// The socket of the status pages, if the old server had it at this address.
    pub(super) fn take_http(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let socket = StdTcpListener::from(self.http.take()?);
        let local = socket.local_addr().ok()?;
        let same = local == address || address.port() == 0 && local.ip() == address.ip();
        (same && socket.set_nonblocking(true).is_ok()).then(|| TcpListener::from_std(socket))
    }

    /// Tells the old server that this one takes mail, and waits until it has stopped accepting.
    ///
    /// # Errors
    /// It has gone or does not answer; mail is taken all the same.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.stream.write_all(&[GO])?;
        let mut byte = [0];
        self.stream.read_exact(&mut byte)?;
        match byte[0] {
            RELEASED => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// One frame, with the descriptor that came with it.
fn receive(stream: &UnixStream) -> io::Result<([u8; FRAME_BYTES], Option<OwnedFd>)> {
    let mut frame = [0; FRAME_BYTES];
    let mut socket = None;
    let mut len = 0;
    while len < FRAME_BYTES {
        let (got, came) = fd_passing::receive(stream.as_fd(), &mut frame[len..])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        len += got;
        socket = socket.or(came);
    }
    Ok((frame, socket))
}

fn local(socket: &OwnedFd) -> io::Result<Local> {
    let socket = socket2::SockRef::from(socket);
    let address = socket.local_addr()?;
    if let Some(ip) = address.as_socket() {
        return Ok(Local::Ip(ip));
    }
    let path = address.as_pathname().map(Path::to_owned);
    path.map(Local::Unix)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether a server runs on this directory, and on which shards it works.
pub(super) fn running(ring: &Path) -> Option<(u32, u16)> {
    let path = ring.join(SOCKET_FILE);
    let stream = with_short_path(&path, |path| UnixStream::connect(path)).ok()?;
    stream.set_read_timeout(Some(ANSWER_WAIT)).ok()?;
    let (frame, _) = receive(&stream).ok()?;
    let head = Head::decode(frame)?;
    Some((head.pid, head.first_shard))
}

/// Binds the socket on which this server can be taken over, in place of that of an earlier one. Nobody but this user
/// and the superuser may connect.
pub(super) fn bind(ring: &Path) -> Result<UnixListener, StartError> {
    let path = ring.join(SOCKET_FILE);
    let bound = match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => with_short_path(&path, |path| UnixListener::bind(path)),
    };
    let made = bound.and_then(|socket| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(socket)
    });
    made.map_err(|error| {
        let text = format!("{}: {}", path.display(), reason(&error));
        start_error(EXIT_FAILURE, text)
    })
}

/// Removes the file of that socket at the end.
pub(super) fn remove(config: &Config) {
    if !config.discard {
        // What is left is replaced by the next start.
        let _ = std::fs::remove_file(config.ring.join(SOCKET_FILE));
    }
}
