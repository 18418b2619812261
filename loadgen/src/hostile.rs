//! Misbehaving sessions that run beside the measured ones, on a thread of their own.
//!
//! Promises: each kind follows its script to the end and starts over; nothing of it enters the
//! latencies or counts of the well-behaved; every script is bounded in bytes and every wait in
//! time. Does not: judge the answers; it counts them.

use crate::reply::ReplyReader;
use crate::wire::{Events, Poll, Target, Token, Wire};
use serde_json::{Value, json};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// One thing that a script does.
enum Step {
    /// Send all of this.
    Send(Vec<u8>),
    /// Send one byte each time.
    Drip(Vec<u8>, Duration),
    /// Wait for a reply, whatever it says.
    Reply,
    /// Do nothing for this long, or until the target closes.
    Idle(Duration),
    /// Close the sending side and go on reading.
    HalfClose,
    /// Reset the connection.
    Reset,
}

/// A kind of misbehaviour.
pub struct Kind {
    /// As given to `--hostile`.
    pub name: &'static str,
    /// What it does, for the help.
    pub about: &'static str,
    script: fn() -> Vec<Step>,
}

const HELLO: &[u8] = b"EHLO hostile.example\r\n";
const ENVELOPE: &[u8] = b"MAIL FROM:<hostile@loadgen.example>\r\nRCPT TO:<user1@test.example>\r\n";
/// How long a hostile session holds on when it does nothing.
const HOLD: Duration = Duration::from_secs(60);
/// How long it waits for a reply.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a kind rests between two connections.
const REST: Duration = Duration::from_millis(50);

fn send(bytes: &[u8]) -> Step {
    Step::Send(bytes.to_vec())
}

/// Greets, and gets as far as the reply to DATA.
fn to_data(then: Vec<Step>) -> Vec<Step> {
    let mut steps = vec![Step::Reply, send(HELLO), Step::Reply];
    for line in ENVELOPE
        .split_inclusive(|byte| *byte == b'\n')
        .chain([&b"DATA\r\n"[..]])
    {
        steps.extend([send(line), Step::Reply]);
    }
    steps.extend(then);
    steps
}

/// A message with `end` where a careless receiver sees the end of data, and a second envelope
/// behind it (SMTP smuggling).
fn smuggle(end: &[u8]) -> Vec<Step> {
    let text = [
        b"Subject: outer\r\n\r\nouter",
        end,
        ENVELOPE,
        b"DATA\r\nSubject: inner\r\n\r\nx\r\n.\r\n",
    ];
    to_data(vec![
        Step::Send(text.concat()),
        Step::Reply,
        send(b"QUIT\r\n"),
        Step::Reply,
    ])
}

/// All kinds.
pub const KINDS: [Kind; 24] = [
    Kind {
        name: "slowloris",
        about: "commands, one byte each 100 ms",
        script: || {
            let text = [HELLO, ENVELOPE].concat();
            vec![Step::Reply, Step::Drip(text, Duration::from_millis(100))]
        },
    },
    Kind {
        name: "slow-data",
        about: "message text, one byte each 100 ms",
        script: || {
            let text = b"Subject: slow\r\n\r\n".repeat(40);
            to_data(vec![
                Step::Drip(text, Duration::from_millis(100)),
                Step::Reset,
            ])
        },
    },
    Kind {
        name: "idle",
        about: "connects and says nothing",
        script: || vec![Step::Idle(HOLD)],
    },
    Kind {
        name: "early-talker",
        about: "speaks before the greeting",
        script: || {
            vec![
                send(HELLO),
                Step::Reply,
                Step::Reply,
                send(b"QUIT\r\n"),
                Step::Reply,
            ]
        },
    },
    Kind {
        name: "rst-mid-data",
        about: "resets in the middle of the message",
        script: || to_data(vec![Step::Send(vec![b'x'; 3000]), Step::Reset]),
    },
    Kind {
        name: "half-close",
        about: "closes its sending side in the middle of a command",
        script: || {
            vec![
                Step::Reply,
                send(b"EHLO hos"),
                Step::HalfClose,
                Step::Idle(PATIENCE),
            ]
        },
    },
    Kind {
        name: "long-line",
        about: "a command of 1 MiB without an end",
        script: || vec![Step::Reply, Step::Send(vec![b'A'; 1 << 20]), Step::Reply],
    },
    Kind {
        name: "endless-header",
        about: "4 MiB of header, then a reset",
        script: || {
            to_data(vec![
                Step::Send(b"X-Endless: header\r\n".repeat(220_000)),
                Step::Reset,
            ])
        },
    },
    Kind {
        name: "rcpt-flood",
        about: "5,000 recipients in one go",
        script: || {
            let rcpts = b"RCPT TO:<nobody@test.example>\r\n".repeat(5000);
            let mail = send(b"MAIL FROM:<hostile@loadgen.example>\r\n");
            let mut steps = vec![Step::Reply, send(HELLO), Step::Reply, mail, Step::Reply];
            steps.push(Step::Send(rcpts));
            steps.extend([
                send(b"RSET\r\n"),
                Step::Idle(Duration::from_secs(1)),
                Step::Reset,
            ]);
            steps
        },
    },
    Kind {
        name: "bdat-lie",
        about: "announces more bytes than it sends",
        script: || {
            let text = [ENVELOPE, b"BDAT 100000 LAST\r\nSubject: short\r\n"].concat();
            let hello = [Step::Reply, send(HELLO), Step::Reply];
            hello
                .into_iter()
                .chain([Step::Send(text), Step::HalfClose, Step::Idle(PATIENCE)])
                .collect()
        },
    },
    Kind {
        name: "starttls-inject",
        about: "a command in the clear behind STARTTLS",
        script: || {
            let both = [
                &b"STARTTLS\r\n"[..],
                b"MAIL FROM:<injected@loadgen.example>\r\n",
            ]
            .concat();
            vec![
                Step::Reply,
                send(HELLO),
                Step::Reply,
                Step::Send(both),
                Step::Reply,
                Step::Reset,
            ]
        },
    },
    Kind {
        name: "tls-stall",
        about: "STARTTLS, then silence",
        script: || {
            let hello = [
                Step::Reply,
                send(HELLO),
                Step::Reply,
                send(b"STARTTLS\r\n"),
                Step::Reply,
            ];
            hello.into_iter().chain([Step::Idle(HOLD)]).collect()
        },
    },
    Kind {
        name: "binary",
        about: "NUL, 8-bit bytes and bare line ends as commands",
        script: || {
            let text = b"\0\0\r\xff\xfe\n\rHELO\0x\r\r\n\n\n\x80\r\n".repeat(20);
            vec![Step::Reply, Step::Send(text), Step::Reply, Step::Reset]
        },
    },
    Kind {
        name: "smuggle-lf-lf",
        about: "LF . LF in the message, and an envelope behind it",
        script: || smuggle(b"\n.\n"),
    },
    Kind {
        name: "smuggle-cr-cr",
        about: "CR . CR, likewise",
        script: || smuggle(b"\r.\r"),
    },
    Kind {
        name: "smuggle-lf-crlf",
        about: "LF . CRLF, likewise",
        script: || smuggle(b"\n.\r\n"),
    },
    Kind {
        name: "smuggle-crlf-lf",
        about: "CRLF . LF, likewise",
        script: || smuggle(b"\r\n.\n"),
    },
    Kind {
        name: "smuggle-crlf-cr",
        about: "CRLF . CR, likewise",
        script: || smuggle(b"\r\n.\r"),
    },
    Kind {
        name: "smuggle-nul",
        about: "CRLF NUL . CRLF, likewise",
        script: || smuggle(b"\r\n\0.\r\n"),
    },
    Kind {
        name: "smuggle-nul-after",
        about: "CRLF . NUL CRLF, likewise",
        script: || smuggle(b"\r\n.\0\r\n"),
    },
    Kind {
        name: "smuggle-cr-lf",
        about: "CR . LF, likewise",
        script: || smuggle(b"\r.\n"),
    },
    Kind {
        name: "smuggle-lf-cr",
        about: "LF . CR, likewise",
        script: || smuggle(b"\n.\r"),
    },
    Kind {
        name: "smuggle-cr-crlf",
        about: "CR . CRLF, likewise",
        script: || smuggle(b"\r.\r\n"),
    },
    Kind {
        name: "eager-data",
        about: "DATA, message and QUIT at once, without waiting for 354",
        script: || {
            let text = b"DATA\r\nSubject: eager\r\n\r\nx\r\n.\r\nQUIT\r\n";
            let mut steps = vec![Step::Reply, send(HELLO), Step::Reply];
            for line in ENVELOPE.split_inclusive(|byte| *byte == b'\n') {
                steps.extend([send(line), Step::Reply]);
            }
            steps.extend([send(text), Step::Reply, Step::Reply, Step::Reply]);
            steps
        },
    },
];

/// Reads `slowloris=5%,idle=1%` into kinds and shares.
///
/// **Errors**, in words: an unknown kind, or no percentage.
pub fn parse(text: &str) -> Result<Vec<(usize, f64)>, String> {
    text.split(',')
        .map(|part| {
            let (name, share) = part
                .split_once('=')
                .ok_or(format!("`{part}` is not KIND=N%"))?;
            let kind = KINDS
                .iter()
                .position(|kind| kind.name == name)
                .ok_or_else(|| {
                    let names: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
                    format!("no hostile kind `{name}`: {}", names.join(", "))
                })?;
            let share = share
                .strip_suffix('%')
                .and_then(|share| share.parse::<f64>().ok());
            match share.filter(|share| *share > 0.0 && *share <= 1000.0) {
                Some(share) => Ok((kind, share / 100.0)),
                None => Err(format!("`{part}` is not KIND=N%")),
            }
        })
        .collect()
}

/// Writes what `parse` read in one form, whatever the order and the digits it was given in.
pub fn describe(kinds: &[(usize, f64)]) -> String {
    let mut words: Vec<String> = kinds
        .iter()
        .map(|(kind, share)| format!("{}={}%", KINDS[*kind].name, share * 100.0))
        .collect();
    words.sort();
    words.join(",")
}

fn count(sessions: u32, share: f64) -> u32 {
    ((f64::from(sessions) * share).round() as u32).max(1)
}

/// Returns how many misbehaving sessions stand beside `beside` others.
pub fn sessions(kinds: &[(usize, f64)], beside: u32) -> u64 {
    let each = kinds.iter().map(|(_, share)| count(beside, *share));
    each.map(u64::from).sum()
}

/// What became of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Its name.
    pub name: &'static str,
    /// Sessions at a time.
    pub sessions: u32,
    /// Connections begun.
    pub connections: u64,
    /// Scripts played to their end.
    pub completed: u64,
    /// Connections that the target closed or reset first.
    pub cut: u64,
    /// Connections that could not be made.
    pub refused: u64,
    /// Replies that did not come in time.
    pub unanswered: u64,
    /// Replies by first digit: 2 (and 3), 4, 5.
    pub replies: [u64; 3],
}

impl Tally {
    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "kind": self.name,
            "sessions": self.sessions,
            "connections": self.connections,
            "completed": self.completed,
            "cut_by_target": self.cut,
            "refused": self.refused,
            "unanswered": self.unanswered,
            "replies_2xx_3xx": self.replies[0],
            "replies_4xx": self.replies[1],
            "replies_5xx": self.replies[2],
        })
    }
}

struct Session {
    kind: usize,
    tally: usize,
    wire: Option<Wire>,
    generation: usize,
    steps: std::rc::Rc<Vec<Step>>,
    at: usize,
    /// Bytes of the current step that are sent.
    sent: usize,
    reader: ReplyReader,
    /// Replies that came and no step has waited for yet.
    spare: u32,
    /// When to go on by itself.
    due: Instant,
}

/// What a session does next.
enum Next {
    /// Wait for an event or for `due`.
    Wait,
    /// Rest and start over.
    Again,
}

/// Plays the kinds until `stop`. `sessions` is the number of well-behaved sessions, of which each
/// kind gets its share, at least one.
///
/// **Errors**: the poll failed.
pub fn play(
    target: &Target,
    kinds: &[(usize, f64)],
    sessions: u32,
    stop: &AtomicBool,
) -> io::Result<Vec<Tally>> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(256);
    let mut tallies: Vec<Tally> = Vec::new();
    let mut all: Vec<Session> = Vec::new();
    for (kind, share) in kinds {
        let count = count(sessions, *share);
        let name = KINDS[*kind].name;
        tallies.push(Tally {
            name,
            sessions: count,
            ..Tally::default()
        });
        let steps = std::rc::Rc::new((KINDS[*kind].script)());
        for _ in 0..count {
            all.push(Session {
                kind: *kind,
                tally: tallies.len() - 1,
                wire: None,
                generation: 0,
                steps: steps.clone(),
                at: 0,
                sent: 0,
                reader: ReplyReader::default(),
                spare: 0,
                due: Instant::now(),
            });
        }
    }
    let mut input = vec![0; 16 << 10];
    let mut nth = 0;
    while !stop.load(Ordering::Relaxed) {
        poll.poll(&mut events, Some(Duration::from_millis(20)))
            .or_else(|error| {
                if error.kind() == io::ErrorKind::Interrupted {
                    Ok(())
                } else {
                    Err(error)
                }
            })?;
        let now = Instant::now();
        for event in &events {
            let index = event.token().0 & 0xffff_ffff;
            let session = &mut all[index];
            if session.generation != event.token().0 >> 32 || session.wire.is_none() {
                continue;
            }
            let tally = &mut tallies[session.tally];
            let open = read(session, &mut input, tally);
            match advance(session, now, false, tally) {
                Next::Again => rest(session, now),
                Next::Wait if !open => {
                    tally.cut += 1;
                    rest(session, now);
                }
                Next::Wait => {}
            }
        }
        for (index, session) in all.iter_mut().enumerate() {
            if session.due > now {
                continue;
            }
            let tally = &mut tallies[session.tally];
            if session.wire.is_some() {
                if let Next::Again = advance(session, now, true, tally) {
                    rest(session, now);
                }
                continue;
            }
            session.generation = (session.generation + 1) & 0x7fff_ffff;
            nth += 1;
            tally.connections += 1;
            let token = Token(index | session.generation << 32);
            let opened = Wire::connect(target, nth).and_then(|mut wire| {
                wire.register(poll.registry(), token)?;
                Ok(wire)
            });
            match opened {
                Ok(wire) => {
                    session.wire = Some(wire);
                    (session.at, session.sent, session.spare) = (0, 0, 0);
                    session.reader.reset();
                    session.due = now + PATIENCE;
                }
                Err(_) => {
                    tally.refused += 1;
                    session.due = now + Duration::from_secs(1);
                }
            }
        }
    }
    Ok(tallies)
}

/// Ends the connection; the next begins after a rest.
fn rest(session: &mut Session, now: Instant) {
    debug_assert!(session.kind < KINDS.len());
    session.wire = None;
    session.due = now + REST;
}

/// Reads what is there; returns false when the target has closed.
fn read(session: &mut Session, input: &mut [u8], tally: &mut Tally) -> bool {
    let Some(wire) = &mut session.wire else {
        return false;
    };
    // Bounded: a target that talks without end must not hold the loop.
    for _ in 0..16 {
        match wire.read(input) {
            Ok(0) => return false,
            Ok(len) => {
                let spare = &mut session.spare;
                let fed = session.reader.feed(&input[..len], |line| {
                    if line.last {
                        *spare += 1;
                        tally.replies[usize::from(line.code / 100).clamp(3, 5) - 3] += 1;
                    }
                    true
                });
                if fed.is_err() {
                    session.reader.reset();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A connect that has not finished yet.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return true,
            Err(_) => return false,
        }
    }
    true
}

/// Plays steps until one has to wait. `late` means that `due` has passed.
fn advance(session: &mut Session, now: Instant, late: bool, tally: &mut Tally) -> Next {
    let steps = session.steps.clone();
    let mut late = late;
    loop {
        let Some(wire) = &mut session.wire else {
            return Next::Again;
        };
        let Some(step) = steps.get(session.at) else {
            tally.completed += 1;
            return Next::Again;
        };
        match step {
            Step::Send(bytes) => match wire.send(&bytes[session.sent..]) {
                Ok(len) => {
                    session.sent += len;
                    if session.sent < bytes.len() {
                        continue;
                    }
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected
                    ) =>
                {
                    if late {
                        tally.unanswered += 1;
                        return Next::Again;
                    }
                    session.due = now + PATIENCE;
                    return Next::Wait;
                }
                Err(_) => {
                    tally.cut += 1;
                    return Next::Again;
                }
            },
            Step::Drip(bytes, gap) => {
                if session.sent > 0 && !late {
                    return Next::Wait;
                }
                if session.sent < bytes.len() {
                    if wire.send(&bytes[session.sent..=session.sent]).is_err() {
                        tally.cut += 1;
                        return Next::Again;
                    }
                    session.sent += 1;
                    session.due = now + *gap;
                    return Next::Wait;
                }
            }
            Step::Reply => {
                if session.spare == 0 {
                    if late {
                        tally.unanswered += 1;
                        return Next::Again;
                    }
                    return Next::Wait;
                }
                session.spare -= 1;
            }
            Step::Idle(length) => {
                if session.sent == 0 {
                    session.sent = 1;
                    session.due = now + *length;
                    return Next::Wait;
                }
                if !late {
                    return Next::Wait;
                }
            }
            Step::HalfClose => wire.half_close(),
            Step::Reset => {
                wire.reset_on_close();
                tally.completed += 1;
                return Next::Again;
            }
        }
        late = false;
        session.at += 1;
        session.sent = 0;
        session.due = now + PATIENCE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_and_unknown_kinds_listed() {
        let parsed = parse("slowloris=5%,rst-mid-data=0.5%").unwrap();
        let named: Vec<_> = parsed
            .iter()
            .map(|(kind, share)| (KINDS[*kind].name, *share))
            .collect();
        assert_eq!(named, [("slowloris", 0.05), ("rst-mid-data", 0.005)]);
        assert!(parse("nonsense=5%").unwrap_err().contains("bdat-lie"));
        let one = parse("slowloris=5%,idle=1.0%").unwrap();
        let two = parse("idle=1%,slowloris=5.0%").unwrap();
        assert_eq!(describe(&one), "idle=1%,slowloris=5%");
        assert_eq!(describe(&one), describe(&two));
        assert!(parse("idle=5").is_err());
        assert!(parse("idle").is_err());
    }
}
