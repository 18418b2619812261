//! Handing the listening sockets to another process: the side of the server that gives them away.
//!
//! The other process connects to `DIR/takeover`. It gets a head, then a frame with a descriptor for each socket, then
//! a frame that ends the list; all have [`FRAME_BYTES`] bytes. From then on both processes may accept. When the other
//! one takes mail it sends [`GO`]; this one stops accepting, answers [`RELEASED`], and ends when its sessions have.
//! Until GO nothing has changed here, whatever becomes of the other.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};

use crate::sys::privileges::effective_user;
use crate::sys::{fd_passing, socket};

/// Name of the socket below the directory of the rings.
pub const SOCKET_FILE: &str = "takeover";
/// Begin of the head: what this is, and its version.
pub const MAGIC: [u8; 8] = *b"rmxtake1";
/// Bytes of the head and of every frame behind it.
pub const FRAME_BYTES: usize = 16;
/// What the other process sends when it takes mail.
pub const GO: u8 = b'G';
/// The answer to [`GO`].
pub const RELEASED: u8 = b'R';

/// What is said of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Number of the process that accepts connections, or of the parent of those that do.
    pub pid: u32,
    /// How many workers it has.
    pub workers: u16,
    /// Shard of the first worker; the others follow.
    pub first_shard: u16,
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A listening socket for mail, of this worker.
    Mail(u16),
    /// The listening socket of the status pages.
    Http,
}

impl Head {
    /// The bytes.
    pub fn encode(self) -> [u8; FRAME_BYTES] {
        let mut frame = [0; FRAME_BYTES];
        frame[..8].copy_from_slice(&MAGIC);
        frame[8..12].copy_from_slice(&self.pid.to_le_bytes());
        frame[12..14].copy_from_slice(&self.workers.to_le_bytes());
        frame[14..].copy_from_slice(&self.first_shard.to_le_bytes());
        frame
    }

    /// The head in these bytes; `None` when they are none.
    pub fn decode(frame: [u8; FRAME_BYTES]) -> Option<Head> {
        let rest = frame.strip_prefix(&MAGIC)?;
        let (pid, rest) = rest.split_first_chunk()?;
        let (workers, rest) = rest.split_first_chunk()?;
        let (first_shard, _) = rest.split_first_chunk()?;
        Some(Head {
            pid: u32::from_le_bytes(*pid),
            workers: u16::from_le_bytes(*workers),
            first_shard: u16::from_le_bytes(*first_shard),
        })
    }
}

impl Kind {
    /// The bytes; `None` ends the list.
    pub fn encode(kind: Option<Kind>) -> [u8; FRAME_BYTES] {
        let mut frame = [0; FRAME_BYTES];
        match kind {
            None => {}
            Some(Kind::Mail(worker)) => {
                frame[0] = 1;
                frame[2..4].copy_from_slice(&worker.to_le_bytes());
            }
            Some(Kind::Http) => frame[0] = 2,
        }
        frame
    }

    /// What comes with these bytes, or the end of the list; `None` when they are no frame.
    pub fn decode(frame: [u8; FRAME_BYTES]) -> Option<Option<Kind>> {
        match frame[0] {
            0 => Some(None),
            1 => Some(Some(Kind::Mail(u16::from_le_bytes([frame[2], frame[3]])))),
            2 => Some(Some(Kind::Http)),
            _ => None,
        }
    }
}

/// What the other process asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Nothing that the loop has to do.
    Nothing,
    /// The sockets: to be answered by [`Handover::give`].
    Sockets,
    /// To stop accepting; it takes mail itself.
    Go,
}

struct Peer {
    stream: UnixStream,
    queue: VecDeque<([u8; FRAME_BYTES], Option<OwnedFd>)>,
    /// Bytes of the first frame that have left.
    sent: usize,
}

/// The socket on which others ask, and the one that does.
pub(super) struct Handover {
    listener: UnixListener,
    peer: Option<Peer>,
    peer_token: Token,
    head: Head,
}

impl Handover {
    /// Registers `listener` under `listening`; the connection of a process that asks gets `peer_token`.
    ///
    /// # Errors
    /// Whatever the registration says.
    pub(super) fn new(
        listener: StdUnixListener,
        head: Head,
        registry: &Registry,
        listening: usize,
        peer_token: usize,
    ) -> io::Result<Handover> {
        listener.set_nonblocking(true)?;
        let mut listener = UnixListener::from_std(listener);
        registry.register(&mut listener, Token(listening), Interest::READABLE)?;
        Ok(Handover {
            listener,
            peer: None,
            peer_token: Token(peer_token),
            head,
        })
    }

    /// Takes the connection of a process of the superuser or of this process's user; others, and a second one at the
    /// same time, are closed.
    pub(super) fn accept(&mut self, registry: &Registry) -> Asked {
        let mut asked = Asked::Nothing;
        while let Ok((mut stream, _)) = self.listener.accept() {
            let user = socket::peer_user(stream.as_fd());
            let may = user.is_ok_and(|user| user == 0 || user == effective_user());
            let both = Interest::READABLE | Interest::WRITABLE;
            if !may
                || self.peer.is_some()
                || registry
                    .register(&mut stream, self.peer_token, both)
                    .is_err()
            {
                continue;
            }
            self.peer = Some(Peer {
                stream,
                queue: VecDeque::from([(self.head.encode(), None)]),
                sent: 0,
            });
            asked = Asked::Sockets;
        }
        asked
    }

    /// Sends the sockets to the process that asked.
    pub(super) fn give(&mut self, sockets: Vec<(Kind, OwnedFd)>) -> Asked {
        if let Some(peer) = &mut self.peer {
            for (kind, socket) in sockets {
                let frame = Kind::encode(Some(kind));
                peer.queue.push_back((frame, Some(socket)));
            }
            peer.queue.push_back((Kind::encode(None), None));
        }
        self.event()
    }

    /// Sends what can be sent, reads what has come.
    pub(super) fn event(&mut self) -> Asked {
        let Some(peer) = &mut self.peer else {
            return Asked::Nothing;
        };
        let mut byte = [0];
        let gone = peer.send().is_err();
        match peer.stream.read(&mut byte) {
            Ok(1) if byte == [GO] && peer.queue.is_empty() => return Asked::Go,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !gone => {}
            // It has given up, or speaks something else.
            _ => self.peer = None,
        }
        Asked::Nothing
    }

    /// Tells the other process that nothing is accepted here any more.
    pub(super) fn released(&mut self) {
        if let Some(peer) = &mut self.peer {
            // It takes mail by now, whether it hears this or not.
            let _ = peer.stream.write(&[RELEASED]);
        }
    }
}

impl Peer {
    fn send(&mut self) -> io::Result<()> {
        while let Some((frame, socket)) = self.queue.front() {
            let bytes = &frame[self.sent..];
            let socket = socket.as_ref().filter(|_| self.sent == 0);
            let sent = fd_passing::send(self.stream.as_fd(), bytes, socket.map(AsFd::as_fd));
            match sent {
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
            if self.sent == FRAME_BYTES {
                self.sent = 0;
                self.queue.pop_front();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_frames_come_out_as_they_went_in() {
        let head = Head {
            pid: 70_000,
            workers: 64,
            first_shard: 3,
        };
        assert_eq!(Head::decode(head.encode()), Some(head));
        assert_eq!(Head::decode([0; FRAME_BYTES]), None);
        for kind in [None, Some(Kind::Http), Some(Kind::Mail(300))] {
            assert_eq!(Kind::decode(Kind::encode(kind)), Some(kind));
        }
        assert_eq!(Kind::decode([9; FRAME_BYTES]), None);
    }
}
