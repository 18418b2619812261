//! Frames between a parent process and its workers, over a pair of UNIX sockets that both are born with.
//!
//! A frame is its length (4 bytes, little-endian, of what follows), a type (1 byte) and a payload. Both ends are one
//! program, so that there are no versions; a frame that is none ends the link all the same, and with it the worker.

use crate::limits::LINK_FRAME_BYTES_MAX;

const DRAIN: u8 = 1;
const RELOAD: u8 = 2;
const TELL: u8 = 3;
const HAND_OVER: u8 = 4;
const READY: u8 = 129;
const FAILED: u8 = 130;
const STATE: u8 = 131;
const DONE: u8 = 132;

/// What a parent says to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Take no more connections, let messages end, and end.
    Drain,
    /// Another server accepts connections: take no more, let sessions end for a while, then drain.
    HandOver,
    /// Read again what SIGHUP has read again.
    Reload,
    /// Tell the state, with the newest messages or without.
    Tell {
        /// With the newest messages.
        newest: bool,
    },
}

/// What a worker says to its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// It takes mail.
    Ready(Ready),
    /// It can't start; it ends with this exit code.
    Failed {
        /// Exit code.
        code: i32,
        /// One sentence.
        text: String,
    },
    /// Its state, as `status::snapshot` has it.
    State(Vec<u8>),
    /// It has drained and is about to end.
    Done(Done),
}

/// What the start lines say of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// Size of the ring's data area, bytes; 0 with `--discard`.
    pub ring_bytes: u64,
    /// Free of it, bytes.
    pub free_bytes: u64,
    /// Messages in it.
    pub messages: u64,
    /// Largest message that the ring takes, bytes; 0 with `--discard`.
    pub message_bytes_max: u64,
    /// Whether the ring is written through a map.
    pub maps: bool,
    /// What becomes of mail, in words.
    pub retention: String,
    /// What is worth a warning about the storage, or nothing.
    pub warning: String,
}

/// What the last lines say of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Messages accepted.
    pub accepted: u64,
    /// Commands and messages refused.
    pub refused: u64,
    /// Connections.
    pub connections: u64,
    /// Sessions cut at the deadline.
    pub cut: u64,
    /// Messages in the ring.
    pub stored: u64,
}

impl Order {
    /// Appends the frame.
    pub fn put(self, out: &mut Vec<u8>) {
        match self {
            Order::Drain => put_frame(out, DRAIN, &[]),
            Order::HandOver => put_frame(out, HAND_OVER, &[]),
            Order::Reload => put_frame(out, RELOAD, &[]),
            Order::Tell { newest } => put_frame(out, TELL, &[u8::from(newest)]),
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Option<Order> {
        Some(match (kind, payload) {
            (DRAIN, []) => Order::Drain,
            (HAND_OVER, []) => Order::HandOver,
            (RELOAD, []) => Order::Reload,
            (TELL, [newest @ (0 | 1)]) => Order::Tell {
                newest: *newest == 1,
            },
            _ => return None,
        })
    }
}

impl Report {
    /// Appends the frame. A text that would not fit is cut.
    pub fn put(&self, out: &mut Vec<u8>) {
        let mut payload = Vec::new();
        let kind = match self {
            Report::Ready(ready) => {
                let numbers = [
                    ready.ring_bytes,
                    ready.free_bytes,
                    ready.messages,
                    ready.message_bytes_max,
                    u64::from(ready.maps),
                ];
                put_numbers(&mut payload, &numbers);
                put_text(&mut payload, &ready.retention);
                put_text(&mut payload, &ready.warning);
                READY
            }
            Report::Failed { code, text } => {
                payload.extend_from_slice(&code.to_le_bytes());
                put_text(&mut payload, text);
                FAILED
            }
            Report::State(bytes) => {
                payload.extend_from_slice(bytes);
                STATE
            }
            Report::Done(done) => {
                let numbers = [
                    done.accepted,
                    done.refused,
                    done.connections,
                    done.cut,
                    done.stored,
                ];
                put_numbers(&mut payload, &numbers);
                DONE
            }
        };
        put_frame(out, kind, &payload);
    }

    fn decode(kind: u8, payload: &[u8]) -> Option<Report> {
        let mut input = Input(payload);
        let report = match kind {
            READY => Report::Ready(Ready {
                ring_bytes: input.number()?,
                free_bytes: input.number()?,
                messages: input.number()?,
                message_bytes_max: input.number()?,
                maps: input.number()? != 0,
                retention: input.text()?,
                warning: input.text()?,
            }),
            FAILED => Report::Failed {
                code: i32::from_le_bytes(input.take()?),
                text: input.text()?,
            },
            STATE => {
                input.0 = &[];
                Report::State(payload.to_vec())
            }
            DONE => Report::Done(Done {
                accepted: input.number()?,
                refused: input.number()?,
                connections: input.number()?,
                cut: input.number()?,
                stored: input.number()?,
            }),
            _ => return None,
        };
        input.0.is_empty().then_some(report)
    }
}

/// The other end sent what is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Puts frames together from bytes as they come. INVARIANT: holds less than one frame.
#[derive(Debug, Default)]
pub struct Receiver {
    partial: Vec<u8>,
}

impl Receiver {
    /// Nothing has come yet.
    pub fn new() -> Receiver {
        Receiver::default()
    }

    /// The orders that `bytes` complete.
    ///
    /// # Errors
    /// [`Broken`]: the link is of no more use.
    pub fn orders(&mut self, bytes: &[u8]) -> Result<Vec<Order>, Broken> {
        self.frames(bytes, Order::decode)
    }

    /// The reports that `bytes` complete.
    ///
    /// # Errors
    /// [`Broken`]: the link is of no more use.
    pub fn reports(&mut self, bytes: &[u8]) -> Result<Vec<Report>, Broken> {
        self.frames(bytes, Report::decode)
    }

    fn frames<T>(
        &mut self,
        bytes: &[u8],
        decode: fn(u8, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Broken> {
        self.partial.extend_from_slice(bytes);
        let mut found = Vec::new();
        let mut rest = &self.partial[..];
        while let Some((head, behind)) = rest.split_first_chunk::<4>() {
            let len = u32::from_le_bytes(*head) as usize;
            if !(1..=LINK_FRAME_BYTES_MAX).contains(&len) {
                return Err(Broken);
            }
            let Some((frame, behind)) = behind.split_at_checked(len) else {
                break;
            };
            found.push(decode(frame[0], &frame[1..]).ok_or(Broken)?);
            rest = behind;
        }
        let taken = self.partial.len() - rest.len();
        self.partial.drain(..taken);
        Ok(found)
    }
}

/// Longest text of a frame, bytes.
const TEXT_BYTES_MAX: usize = 4_096;

fn put_frame(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    debug_assert!(payload.len() < LINK_FRAME_BYTES_MAX);
    out.extend_from_slice(&(payload.len() as u32 + 1).to_le_bytes());
    out.push(kind);
    out.extend_from_slice(payload);
}

fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Reads the parts of a payload; every method is `None` past the end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let len = u32::from_le_bytes(self.take()?) as usize;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports() -> Vec<Report> {
        vec![
            Report::Ready(Ready {
                ring_bytes: 1,
                free_bytes: 2,
                messages: 3,
                message_bytes_max: 4,
                maps: true,
                retention: "kept".to_owned(),
                warning: String::new(),
            }),
            Report::Failed {
                code: 74,
                text: "the ring: \u{e9}".to_owned(),
            },
            Report::State(vec![0; 70_000]),
            Report::State(Vec::new()),
            Report::Done(Done {
                accepted: 1,
                refused: 2,
                connections: 3,
                cut: 4,
                stored: u64::MAX,
            }),
        ]
    }

    #[test]
    fn reports_and_orders_come_out_as_they_went_in_wherever_they_are_cut() {
        let mut bytes = Vec::new();
        reports().iter().for_each(|report| report.put(&mut bytes));
        for piece in [1, 7, 4_096, bytes.len()] {
            let mut receiver = Receiver::new();
            let mut found = Vec::new();
            for part in bytes.chunks(piece) {
                found.extend(receiver.reports(part).expect("frames"));
            }
            assert_eq!(found, reports(), "in pieces of {piece}");
            assert!(receiver.partial.is_empty());
        }
        let orders = [
            Order::Drain,
            Order::HandOver,
            Order::Reload,
            Order::Tell { newest: true },
            Order::Tell { newest: false },
        ];
        let mut bytes = Vec::new();
        orders.iter().for_each(|order| order.put(&mut bytes));
        assert_eq!(Receiver::new().orders(&bytes), Ok(orders.to_vec()));
    }

    #[test]
    fn what_is_no_frame_breaks_the_link() {
        let broken: [&[u8]; 6] = [
            &[0, 0, 0, 0],
            &[255, 255, 255, 255],
            &[1, 0, 0, 0, 99],
            &[2, 0, 0, 0, DRAIN, 0],
            &[2, 0, 0, 0, TELL, 2],
            &[1, 0, 0, 0, READY],
        ];
        for bytes in broken {
            assert_eq!(Receiver::new().orders(bytes), Err(Broken), "{bytes:?}");
        }
        for bytes in &broken[..3] {
            assert_eq!(Receiver::new().reports(bytes), Err(Broken), "{bytes:?}");
        }
        // A text that claims to be longer than its frame.
        let mut bytes = vec![9, 0, 0, 0, FAILED, 1, 0, 0, 0, 200, 0, 0, 0];
        assert_eq!(Receiver::new().reports(&bytes), Err(Broken));
        bytes[9] = 0;
        let empty = Report::Failed {
            code: 1,
            text: String::new(),
        };
        assert_eq!(Receiver::new().reports(&bytes), Ok(vec![empty]));
    }
}
