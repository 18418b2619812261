//! A simulated client: what it plans to say, how it says it, and what it must hear.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use ringmx::conn::Token;
use ringmx::smtp::data::BareNewlines;
use ringmx::smtp::parameter::Offered;
use ringmx::smtp::reply::Reply;
use ringmx::smtp::session::Context;

use crate::config::Config;
use crate::ledger::{Fate, Ledger, Letter};
use crate::net::Wire;
use crate::random::Random;

/// What the next reply answers.
#[derive(Clone, Debug)]
pub enum Expect {
    Greeting,
    Hello {
        esmtp: bool,
    },
    Mail {
        declared: u64,
        syntax: Option<Reply>,
    },
    Rcpt {
        path: String,
        syntax: Option<Reply>,
    },
    /// `waits`: the body follows only behind a 354.
    Data {
        waits: bool,
    },
    Body {
        letter: u64,
        octets: u64,
        is_bare: bool,
    },
    Chunk {
        letter: u64,
        octets: u64,
        last: bool,
        is_bare: bool,
    },
    Rset,
    Help,
    Quit,
    Fixed(Reply),
}

/// A reply that is to come.
#[derive(Clone, Debug)]
struct Awaited {
    expect: Expect,
    /// Octets of the client's stream up to the end of what it answers; `u64::MAX` when that never comes.
    ends_at: u64,
    /// The turn in which the server had read all of it.
    read_in: Option<usize>,
}

/// One thing to be said.
#[derive(Debug)]
enum Item {
    Say(Vec<u8>, Expect),
    /// Waits until every reply came.
    Wait,
    /// Content of a letter, if there was a 354 or nobody asked.
    Body {
        bytes: Vec<u8>,
        expect: Expect,
        letter: u64,
        only_if_asked: bool,
    },
    /// The end of a BDAT letter, which is complete when the bytes said before it have been read.
    Complete(u64),
    /// Bytes without an end, then nothing more.
    Fragment(Vec<u8>),
    Fin,
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    None,
    Envelope,
    Chunks,
    Failed(Reply),
    /// A last chunk was refused for want of space. Was it refused before its octets came, so that the transaction
    /// has failed, or at its end, so that there is none? The next reply tells.
    NoneOrFailed,
}

impl Stage {
    /// The reply to a command that belongs into an open envelope, when there is none.
    fn reply_without_envelope(self) -> Option<Reply> {
        match self {
            Stage::None => Some(Reply::NeedMail),
            Stage::Envelope => None,
            Stage::Chunks => Some(Reply::BdatOpen),
            Stage::Failed(reply) => Some(reply),
            Stage::NoneOrFailed => unreachable!("looked at one by one"),
        }
    }
}

/// The session as the client sees it, command by command.
#[derive(Debug)]
struct Model {
    hello: bool,
    esmtp: bool,
    stage: Stage,
    accepted: Vec<String>,
    mails: u32,
    chunk_octets: u64,
    chunk_bare: bool,
}

/// How a client behaves.
#[derive(Clone, Copy, Debug)]
struct Style {
    /// Commands on their way at once.
    window: usize,
    /// Bytes sent at once.
    piece_max: u64,
    /// Bytes read at once.
    gulp_max: u64,
    /// Acts once in so many turns.
    pace: u64,
    /// Reads nothing from this octet on, until told otherwise.
    deaf_from: u64,
}

pub struct Peer {
    pub wire: Rc<RefCell<Wire>>,
    pub token: Option<Token>,
    /// The listener refused it.
    pub refused: bool,
    /// Letters of this client.
    pub letters: Vec<u64>,
    plan: VecDeque<Item>,
    out: Vec<u8>,
    out_at: usize,
    /// Octets put into `out` since the start.
    queued: u64,
    /// Replies that are to come.
    expected: VecDeque<Awaited>,
    /// Letters that are still to be planned.
    letters_left: u64,
    /// The end of the session is planned.
    end_planned: bool,
    /// Where replies that were written and not read end in the stream.
    reply_ends: VecDeque<u64>,
    written: u64,
    partial: Vec<u8>,
    /// The reply to the last DATA asked for the content.
    asked: bool,
    model: Model,
    style: Style,
    /// No reply is checked any more: the client broke the rules.
    unchecked: bool,
    /// The last reply that the server sends has been written.
    closing: bool,
    /// The 452 that was taken for the answer to a chunk may have been the last word to a message that had waited too
    /// long for the pool. Another reply says that it was not.
    perhaps_closing: bool,
    pub finished: bool,
    random: Random,
    /// Bytes that the server had read and written when it was last looked at, and since when neither grew.
    read_counted: u64,
    read_at_ns: u64,
    active_counted: u64,
    active_at_ns: u64,
    /// The same, but while a commit is awaited time stands still.
    idle_since_ns: u64,
    /// Longest time without a byte read, and without a byte read or written.
    unread_max_ns: u64,
    silence_max_ns: u64,
    /// Since when the server has the beginning of something whose end it has not read.
    partial_since_ns: u64,
    /// Where a command begins that is never sent whole.
    fragment_at: Option<u64>,
    partial_max_ns: u64,
    /// When a timer should have ended the session.
    overdue_since_ns: Option<u64>,
    pub connected_ns: u64,
    /// The server's leaving was looked at.
    pub gone_checked: bool,
    /// Letters whose end has been said, and where in the stream.
    pub completed: Vec<(u64, u64)>,
}

/// What was true of the server at some time in one turn, as far as it can be known from outside. What changes within
/// a turn has two bounds.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Nobody holds anything: space for a message is only a sync away.
    pub frees_itself: bool,
    /// Below the high-water mark of the ring, with hysteresis.
    pub accepting: bool,
    /// Bytes of the ring that are held.
    pub held_min: u64,
    pub held_max: u64,
    /// Bytes that the ring can take at least, once everything is free that nobody holds.
    pub room_min: u64,
    /// Bytes of the pool that are free.
    pub pool_min: u64,
    pub pool_max: u64,
    /// The log had failed before the turn began, and when it ended.
    pub failed_before: bool,
    pub failed: bool,
    /// A sync took too long at some time, and all the time.
    pub stalled: bool,
    pub stalled_throughout: bool,
}

/// What the checker has to know of the server's circumstances.
pub struct Circumstances<'a> {
    pub config: &'a Config,
    pub context: &'a Context,
    pub now_ns: u64,
    pub draining: bool,
    /// The process died in this turn.
    pub dead: bool,
    /// All turns of this life, the last of which just ended.
    pub moments: &'a [Moment],
}

impl Circumstances<'_> {
    /// The turns in which a reply that was written in the last one can have been decided.
    fn since(&self, read_in: Option<usize>) -> &[Moment] {
        let last = self.moments.len() - 1;
        &self.moments[read_in.unwrap_or(last).min(last)..]
    }

    fn storage_failed(&self) -> bool {
        self.moments.last().is_some_and(|moment| moment.failed)
    }

    fn pool_mark(&self, percent: u64) -> u64 {
        self.config.pool_reserve() + self.config.pool_total() * percent / 100
    }

    /// Whether MAIL may be refused for want of space.
    fn may_refuse(&self, moment: &Moment, declared: u64) -> bool {
        let mark = self.config.data_size / 100 * 90;
        let ring = !moment.frees_itself && (!moment.accepting || moment.held_max + declared > mark);
        ring || self.config.pool_is_tight && moment.pool_min < self.pool_mark(10)
    }

    /// Whether MAIL may be accepted.
    fn may_admit(&self, moment: &Moment, declared: u64) -> bool {
        let mark = self.config.data_size / 100 * 90;
        let ring = moment.frees_itself || moment.accepting && moment.held_min + declared <= mark;
        let storage = !moment.failed_before && !moment.stalled_throughout;
        ring && storage && moment.pool_max >= self.pool_mark(5)
    }

    /// Whether the pool may have had no chunk for an envelope or the begin of a body.
    fn pool_is_dry(&self, moment: &Moment) -> bool {
        self.config.pool_is_tight && moment.pool_min < self.config.pool_reserve() + 2 * CHUNK_BYTES
    }

    /// Whether the ring may have had no place for a message of so many octets. It is never for want of chunks that a
    /// message is refused behind its end.
    fn ring_is_out(&self, moment: &Moment, octets: u64) -> bool {
        !moment.frees_itself && octets + ENVELOPE_BYTES > moment.room_min
    }
}

/// A chunk of the pool.
pub const CHUNK_BYTES: u64 = 65_536;
/// Envelope, trace field, headers and page filling of a letter at most.
const ENVELOPE_BYTES: u64 = 2 * 4_096;
/// Time within which a timer that is due has been looked at: the shortest limit, and the tick of the wheel.
const TIMER_STEP_NS: u64 = 2_000_000_000 + 2 * 50_000_000;

impl Peer {
    pub fn new(random: &mut Random, config: &Config, now_ns: u64) -> Peer {
        let mut random = random.fork();
        let unread_max = [512, 4_096, 65_536, 262_144][random.below(4) as usize];
        let window_max = [40, 300, 2_000, 65_536][random.below(4) as usize];
        let wire = Wire::new(random.fork(), unread_max, window_max);
        let style = Style {
            window: [1, 1, 2, 5, 20, 200][random.below(6) as usize],
            piece_max: [3, 100, 1_460, 1 << 20][random.below(4) as usize],
            gulp_max: [1, 50, 1 << 20, 1 << 20][random.below(4) as usize],
            pace: 1 + random.below(4),
            deaf_from: if random.one_in(12) {
                random.below(2_000)
            } else {
                u64::MAX
            },
        };
        let mut peer = Peer {
            wire: Rc::new(RefCell::new(wire)),
            token: None,
            refused: false,
            letters: Vec::new(),
            plan: VecDeque::new(),
            out: Vec::new(),
            out_at: 0,
            queued: 0,
            expected: VecDeque::from([Awaited {
                expect: Expect::Greeting,
                ends_at: 0,
                read_in: None,
            }]),
            letters_left: 0,
            end_planned: false,
            reply_ends: VecDeque::new(),
            written: 0,
            partial: Vec::new(),
            asked: false,
            model: Model {
                hello: false,
                esmtp: false,
                stage: Stage::None,
                accepted: Vec::new(),
                mails: 0,
                chunk_octets: 0,
                chunk_bare: false,
            },
            style,
            unchecked: false,
            closing: false,
            perhaps_closing: false,
            finished: false,
            random,
            read_counted: 0,
            read_at_ns: now_ns,
            active_counted: 0,
            active_at_ns: now_ns,
            idle_since_ns: now_ns,
            unread_max_ns: 0,
            silence_max_ns: 0,
            partial_since_ns: now_ns,
            fragment_at: None,
            partial_max_ns: 0,
            overdue_since_ns: None,
            connected_ns: now_ns,
            gone_checked: false,
            completed: Vec::new(),
        };
        peer.begin_plan(config);
        peer
    }

    // The plan.

    fn say(&mut self, line: String, expect: Expect) {
        self.plan
            .push_back(Item::Say((line + "\r\n").into_bytes(), expect));
    }

    fn begin_plan(&mut self, config: &Config) {
        if self.random.one_in(8) {
            self.plan.push_back(Item::Wait);
        }
        if !self.random.one_in(20) {
            let esmtp = !self.random.one_in(6);
            self.hello(esmtp);
        }
        self.letters_left = 1 + self.random.below(config.letters_max);
    }

    /// Plans the next letter, or the end.
    fn plan_on(&mut self, config: &Config, ledger: &mut Ledger) {
        if self.letters_left > 0 {
            self.letters_left -= 1;
            return match self.random.below(16) {
                0 => self.noise(),
                1 => self.aborted(config, ledger),
                2 => self.wrong_order(ledger, config),
                3..=6 => self.by_chunks(config, ledger),
                _ => self.by_data(config, ledger),
            };
        }
        if std::mem::replace(&mut self.end_planned, true) {
            return;
        }
        match self.random.below(12) {
            0 => self.plan.push_back(Item::Reset),
            1 => self.plan.push_back(Item::Fin),
            2 => {
                self.plan
                    .push_back(Item::Fragment(b"MAIL FROM:<half".to_vec()));
                self.plan.push_back(Item::Fin);
            }
            3 => {
                self.say("QUIT".into(), Expect::Quit);
                self.plan.push_back(Item::Fin);
            }
            _ => self.say("QUIT".into(), Expect::Quit),
        }
    }

    /// Nothing more is said.
    fn forget_plan(&mut self) {
        self.plan.clear();
        self.letters_left = 0;
        self.end_planned = true;
    }

    fn hello(&mut self, esmtp: bool) {
        let verb = if esmtp { "EHLO" } else { "HELO" };
        self.say(
            format!("{verb} client.sim.example"),
            Expect::Hello { esmtp },
        );
    }

    /// Commands that change nothing, and lines that are none.
    fn noise(&mut self) {
        for _ in 0..1 + self.random.below(4) {
            match self.random.below(9) {
                0 => self.say("NOOP".into(), Expect::Fixed(Reply::Noop)),
                1 => self.say("noop  ignored".into(), Expect::Fixed(Reply::Noop)),
                2 => self.say("VRFY someone".into(), Expect::Fixed(Reply::VrfyUnverified)),
                3 => self.say("EXPN list".into(), Expect::Fixed(Reply::NotImplemented)),
                4 => self.say("HELP".into(), Expect::Help),
                5 => self.say("XYZZY".into(), Expect::Fixed(Reply::CommandUnknown)),
                6 => {
                    let line = "x".repeat(2_048 + self.random.below(4_000) as usize);
                    self.say(line, Expect::Fixed(Reply::LineTooLong));
                }
                7 => self.plan.push_back(Item::Say(
                    b"NOOP\n".to_vec(),
                    Expect::Fixed(Reply::LineEndsInLf),
                )),
                _ => self.say("RSET".into(), Expect::Rset),
            }
        }
    }

    /// Adds a letter and says its envelope.
    fn envelope(
        &mut self,
        config: &Config,
        ledger: &mut Ledger,
        body: Vec<u8>,
        is_bare: bool,
        parameters: &str,
    ) -> u64 {
        let octets = body.len() as u64;
        let is_valid = !is_bare && octets <= config.message_max;
        let recipients = match self.random.below(8) {
            0 => 1 + self.random.below(u64::from(config.recipients_max) + 2),
            n => 1 + n % 3,
        };
        let offered: Vec<String> = (0..recipients)
            .map(|index| format!("r{index}.{}@sim.example", self.random.below(1_000)))
            .collect();
        let letter = ledger.add(|key| Letter {
            from: format!("m{key}@sim.example"),
            offered: offered.clone(),
            accepted: None,
            body: Rc::new(body),
            is_valid,
            ends_at: u64::MAX,
            fate: Fate::Open,
        });
        self.letters.push(letter);
        let from = format!("m{letter}@sim.example");
        let mut declared = 0;
        let mut size = String::new();
        if octets > 0 && self.random.one_in(3) {
            declared = octets;
            size = format!(" SIZE={octets}");
        }
        if self.random.one_in(30) {
            self.say(
                format!("MAIL FROM:{from}"),
                Expect::Mail {
                    declared: 0,
                    syntax: Some(Reply::MailSyntax),
                },
            );
        }
        self.say(
            format!("MAIL FROM:<{from}>{size}{parameters}"),
            Expect::Mail {
                declared,
                syntax: None,
            },
        );
        for path in offered {
            self.say(
                format!("RCPT TO:<{path}>"),
                Expect::Rcpt { path, syntax: None },
            );
        }
        if self.random.one_in(30) {
            self.say(
                "RCPT TO:<two words@sim.example>".into(),
                Expect::Rcpt {
                    path: String::new(),
                    syntax: Some(Reply::RecipientMalformed),
                },
            );
        }
        letter
    }

    fn by_data(&mut self, config: &Config, ledger: &mut Ledger) {
        let (body, is_bare) = self.content(config, true);
        let octets = body.len() as u64;
        let mut bytes = Vec::with_capacity(body.len() + 64);
        let mut at_line_start = true;
        for piece in body.split_inclusive(|byte| *byte == b'\n') {
            if at_line_start && piece[0] == b'.' {
                bytes.push(b'.');
            }
            bytes.extend_from_slice(piece);
            at_line_start = piece.ends_with(b"\r\n");
        }
        let whole = bytes.len();
        bytes.extend_from_slice(b".\r\n");
        let letter = self.envelope(config, ledger, body, is_bare, "");
        let eager = self.random.one_in(10);
        self.say("DATA".into(), Expect::Data { waits: !eager });
        if !eager {
            self.plan.push_back(Item::Wait);
        }
        let gives_up = self.random.one_in(16);
        if gives_up {
            bytes.truncate(self.random.below(whole as u64 + 3) as usize);
            ledger.letter(letter).is_valid = false;
        }
        self.plan.push_back(Item::Body {
            bytes,
            expect: Expect::Body {
                letter,
                octets,
                is_bare,
            },
            letter,
            only_if_asked: !eager,
        });
        if gives_up {
            let end = if self.random.one_in(2) {
                Item::Fin
            } else {
                Item::Reset
            };
            self.plan.push_back(end);
            return;
        }
        if eager {
            // If the content was not asked for, nobody knows what the server makes of what follows.
            self.plan.push_back(Item::Wait);
        }
    }

    fn by_chunks(&mut self, config: &Config, ledger: &mut Ledger) {
        let (body, is_bare) = self.content(config, false);
        let letter = self.envelope(config, ledger, body.clone(), is_bare, "");
        let mut rest = &body[..];
        let bare_at = |upto: usize| is_bare && upto == body.len();
        loop {
            let last = self.random.one_in(3);
            let take = if last {
                rest.len()
            } else {
                self.random.below(rest.len() as u64 + 1) as usize
            };
            let (chunk, behind) = rest.split_at(take);
            rest = behind;
            let mut bytes =
                format!("BDAT {take}{}\r\n", if last { " LAST" } else { "" }).into_bytes();
            bytes.extend_from_slice(chunk);
            let expect = Expect::Chunk {
                letter,
                octets: take as u64,
                last,
                is_bare: bare_at(body.len() - rest.len()),
            };
            self.plan.push_back(Item::Say(bytes, expect));
            if last {
                self.plan.push_back(Item::Complete(letter));
                return;
            }
            if self.random.one_in(24) {
                ledger.letter(letter).is_valid = false;
                match self.random.below(3) {
                    0 => self.say("RSET".into(), Expect::Rset),
                    1 => self.hello(true),
                    _ => {
                        self.say("QUIT".into(), Expect::Quit);
                        self.plan.push_back(Item::Fin);
                    }
                }
                return;
            }
        }
    }

    /// A transaction that is given up before any content.
    fn aborted(&mut self, config: &Config, ledger: &mut Ledger) {
        let letter = self.envelope(config, ledger, Vec::new(), false, "");
        ledger.letter(letter).is_valid = false;
        match self.random.below(4) {
            0 => self.hello(true),
            1 => self.hello(false),
            _ => self.say("RSET".into(), Expect::Rset),
        }
    }

    /// Commands where they may not stand; the model knows the replies.
    fn wrong_order(&mut self, ledger: &mut Ledger, config: &Config) {
        match self.random.below(4) {
            0 => self.say(
                "RCPT TO:<early@sim.example>".into(),
                Expect::Rcpt {
                    path: "early@sim.example".into(),
                    syntax: None,
                },
            ),
            1 => {
                self.say("DATA".into(), Expect::Data { waits: true });
                self.plan.push_back(Item::Wait);
            }
            2 => {
                let letter = self.envelope(config, ledger, Vec::new(), false, "");
                ledger.letter(letter).is_valid = false;
                self.say(
                    "MAIL FROM:<nested@sim.example>".into(),
                    Expect::Mail {
                        declared: 0,
                        syntax: None,
                    },
                );
                self.say("RSET".into(), Expect::Rset);
            }
            _ => {
                let octets = self.random.below(300);
                let mut bytes = format!("BDAT {octets} LAST\r\n").into_bytes();
                bytes.resize(bytes.len() + octets as usize, b'q');
                self.plan.push_back(Item::Say(
                    bytes,
                    Expect::Chunk {
                        letter: 0,
                        octets,
                        last: true,
                        is_bare: false,
                    },
                ));
                self.say("RSET".into(), Expect::Rset);
            }
        }
    }

    /// Message content, and whether it holds what `--bare-newlines reject` refuses.
    fn content(&mut self, config: &Config, by_lines: bool) -> (Vec<u8>, bool) {
        let octets = match self.random.below(16) {
            0 => 0,
            1..=11 if config.pool_is_tight => self.random.below(config.message_max),
            1..=6 => self.random.below(300),
            7..=11 => self.random.below(6_000),
            12 if config.exceeds => config.message_max + self.random.below(2_000),
            _ => self.random.below(config.message_max),
        }
        .min(config.message_max + 2_000) as usize;
        let salt = self.random.below(64) as usize;
        let mut body = Vec::with_capacity(octets + 80);
        let mut line = 0_usize;
        while body.len() < octets {
            let len = (salt * 7 + line * 13) % 78;
            if len.is_multiple_of(11) {
                body.push(b'.');
            }
            body.extend_from_slice(&TEXT[salt..salt + len]);
            body.extend_from_slice(b"\r\n");
            line += 1;
        }
        body.truncate(octets);
        if by_lines && !body.is_empty() && !body.ends_with(b"\r\n") {
            let end = body.len();
            if end == 1 {
                body.clear();
            } else {
                body[end - 2..].copy_from_slice(b"\r\n");
                if end > 2 && body[end - 3] == b'\r' {
                    body[end - 3] = b'x';
                }
            }
        }
        if !by_lines && body.ends_with(b"\r") {
            body.pop();
        }
        let mut is_bare = false;
        if self.random.one_in(24) && body.len() > 8 && config.bare == BareNewlines::Reject {
            let last = body.len() - 1;
            if body[last - 3] != b'\r' && body[last - 2] != b'\r' && body[last - 2] != b'\n' {
                body[last - 2] = [b'\n', b'\r', 0][self.random.below(3) as usize];
                is_bare = true;
            }
        }
        (body, is_bare)
    }

    // Talking.

    /// Sends, reads, or does nothing. `hurry`: as fast as it can, and nothing rude.
    pub fn act(&mut self, hurry: bool, config: &Config, ledger: &mut Ledger) {
        if self.finished {
            return;
        }
        if !hurry && !self.random.one_in(self.style.pace) {
            return;
        }
        self.read(hurry);
        if self.wire.borrow().is_over() {
            self.finish();
            return;
        }
        if !hurry && self.random.one_in(600) {
            // Gone, wherever it stands.
            return self.reset();
        }
        self.write(hurry, config, ledger);
        let mut wire = self.wire.borrow_mut();
        if hurry || self.random.one_in(2) {
            wire.deliver(hurry);
        }
    }

    fn read(&mut self, hurry: bool) {
        let mut wire = self.wire.borrow_mut();
        if !hurry && wire.client_read >= self.style.deaf_from {
            return;
        }
        let most = if hurry {
            usize::MAX
        } else {
            1 + self.random.below(self.style.gulp_max) as usize
        };
        wire.receive(most);
        while self
            .reply_ends
            .front()
            .is_some_and(|end| *end <= wire.client_read)
        {
            self.reply_ends.pop_front();
        }
    }

    /// Commands whose replies have not been read.
    fn under_way(&self) -> usize {
        self.expected.len() + self.reply_ends.len()
    }

    fn write(&mut self, hurry: bool, config: &Config, ledger: &mut Ledger) {
        loop {
            if self.plan.is_empty() && !self.end_planned {
                self.plan_on(config, ledger);
            }
            if self.out_at < self.out.len() {
                let rest = &self.out[self.out_at..];
                let most = if hurry {
                    rest.len()
                } else {
                    rest.len()
                        .min(1 + self.random.below(self.style.piece_max) as usize)
                };
                let mut wire = self.wire.borrow_mut();
                if wire.client_fin || wire.client_reset || wire.server_gone {
                    return;
                }
                self.out_at += wire.send(&rest[..most]);
                if self.out_at < self.out.len() {
                    return;
                }
                self.out.clear();
                self.out_at = 0;
            }
            if !self.prepare(hurry) {
                return;
            }
        }
    }

    fn queue(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.queued += bytes.len() as u64;
    }

    /// Puts the next item into `out`. False when nothing can be said now.
    fn prepare(&mut self, hurry: bool) -> bool {
        if self.unchecked {
            self.forget_plan();
            self.wire.borrow_mut().end_sending();
            return false;
        }
        let waits = match self.plan.front() {
            None => return false,
            Some(Item::Wait) => self.under_way() > 0,
            Some(Item::Say(..)) => self.under_way() >= self.style.window,
            _ => false,
        };
        if waits {
            return false;
        }
        match self.plan.pop_front().expect("looked at") {
            Item::Wait => {}
            Item::Say(bytes, expect) => {
                self.queue(&bytes);
                self.expected.push_back(Awaited {
                    expect,
                    ends_at: self.queued,
                    read_in: None,
                });
            }
            Item::Body {
                bytes,
                expect,
                letter,
                only_if_asked,
            } => {
                if only_if_asked && !self.asked {
                    return true;
                }
                self.queue(&bytes);
                let mut ends_at = u64::MAX;
                if bytes.ends_with(b"\r\n.\r\n") || bytes == b".\r\n" {
                    ends_at = self.queued;
                    self.completed.push((letter, ends_at));
                }
                self.expected.push_back(Awaited {
                    expect,
                    ends_at,
                    read_in: None,
                });
            }
            Item::Complete(letter) => self.completed.push((letter, self.queued)),
            Item::Fragment(bytes) => {
                self.fragment_at = Some(self.queued);
                self.queue(&bytes);
            }
            Item::Fin => {
                if self.out_at == self.out.len() {
                    self.wire.borrow_mut().end_sending();
                }
                self.forget_plan();
                return false;
            }
            Item::Reset => {
                if hurry || self.random.one_in(2) {
                    self.reset();
                } else {
                    self.plan.push_front(Item::Reset);
                }
                return false;
            }
        }
        true
    }

    /// Ends the connection without a word.
    pub fn reset(&mut self) {
        let mut wire = self.wire.borrow_mut();
        if !wire.server_gone && !wire.client_reset {
            wire.reset();
        }
        drop(wire);
        self.finish();
    }

    /// The client is done; its socket is closed.
    fn finish(&mut self) {
        self.finished = true;
        self.forget_plan();
        let mut wire = self.wire.borrow_mut();
        if !wire.client_reset && !wire.client_fin {
            wire.end_sending();
        }
        wire.deliver(true);
    }

    /// The server is gone without a word.
    pub fn server_died(&mut self) {
        self.finished = true;
    }

    /// Says nothing more and reads nothing more.
    pub fn fall_silent(&mut self) {
        self.forget_plan();
        self.out.clear();
        self.out_at = 0;
        self.style.deaf_from = 0;
    }

    /// Leaves with the next command.
    pub fn cut_short(&mut self) {
        self.letters_left = self.letters_left.min(1);
        self.style.deaf_from = u64::MAX;
    }

    // What the server says.

    /// Looks at what the server wrote in this turn.
    pub fn check(&mut self, ledger: &mut Ledger, at: &Circumstances<'_>) {
        for (letter, end) in self.completed.drain(..) {
            ledger.letter(letter).ends_at = end;
        }
        let (bytes, gone) = {
            let mut wire = self.wire.borrow_mut();
            (std::mem::take(&mut wire.unchecked), wire.server_gone)
        };
        self.count_progress(at);
        self.partial.extend_from_slice(&bytes);
        while let Some(len) = reply_len(&self.partial) {
            let wire: Vec<u8> = self.partial.drain(..len).collect();
            self.written += len as u64;
            self.reply_ends.push_back(self.written);
            self.reply(&wire, ledger, at);
        }
        self.check_timers(at);
        if gone && !self.gone_checked {
            self.gone_checked = true;
            self.check_leaving(at);
        }
    }

    /// Notes what the server has read and written by the end of this turn, and since when it has not.
    fn count_progress(&mut self, at: &Circumstances<'_>) {
        let wire = self.wire.borrow();
        let (read, active) = (wire.server_read, wire.server_read + wire.server_wrote);
        drop(wire);
        let turn = at.moments.len() - 1;
        let mut completed = false;
        let mut is_partial = false;
        for awaited in &mut self.expected {
            if awaited.read_in.is_none() {
                if awaited.ends_at > read {
                    is_partial = true;
                    break;
                }
                awaited.read_in = Some(turn);
                completed = true;
            }
        }
        is_partial |= self.fragment_at.is_some_and(|begin| begin < read);
        self.unread_max_ns = self.unread_max_ns.max(at.now_ns - self.read_at_ns);
        self.silence_max_ns = self.silence_max_ns.max(at.now_ns - self.active_at_ns);
        self.partial_max_ns = self.partial_max_ns.max(at.now_ns - self.partial_since_ns);
        if completed || !is_partial {
            self.partial_since_ns = at.now_ns;
        }
        if read > self.read_counted {
            self.read_counted = read;
            self.read_at_ns = at.now_ns;
        }
        if active > self.active_counted {
            self.active_counted = active;
            self.active_at_ns = at.now_ns;
            self.idle_since_ns = at.now_ns;
            self.overdue_since_ns = None;
        }
        if self.awaits_commit() {
            self.idle_since_ns = at.now_ns;
            self.overdue_since_ns = None;
        }
    }

    /// Whether the server has a whole message of this client that it has not answered.
    fn awaits_commit(&self) -> bool {
        self.expected.iter().any(|awaited| {
            awaited.read_in.is_some()
                && matches!(
                    awaited.expect,
                    Expect::Body { .. } | Expect::Chunk { last: true, .. }
                )
        })
    }

    /// No session outlives its timers: silent for longer than any of them, it has been told so; and then it lingers
    /// only for so long.
    fn check_timers(&mut self, at: &Circumstances<'_>) {
        if at.dead || self.token.is_none() || self.wire.borrow().server_gone {
            return;
        }
        let config = at.config;
        let longest = config.shortest_timeout_ns.max(config.pool_wait_max_ns);
        if at.now_ns - self.idle_since_ns <= longest + TIMER_STEP_NS {
            return;
        }
        let since_ns = *self.overdue_since_ns.get_or_insert(at.now_ns);
        assert!(
            at.now_ns - since_ns <= config.linger_ns + 2 * TIMER_STEP_NS,
            "a session outlives its timers: idle since {}, overdue since {since_ns}, now {}, unread since {:?}; {}",
            self.idle_since_ns,
            at.now_ns,
            self.wire.borrow().stuck_since_ns,
            self.describe()
        );
    }

    /// The server dropped the connection: its last reply said why, or there is a reason to say nothing.
    fn check_leaving(&mut self, at: &Circumstances<'_>) {
        let wire = self.wire.borrow();
        // Replies that the client does not read are kept until a time-out, or until a closing session has lingered.
        let unread = wire
            .stuck_since_ns
            .is_some_and(|since_ns| at.now_ns - since_ns >= at.config.linger_ns);
        let answered = self
            .expected
            .iter()
            .all(|awaited| awaited.ends_at > wire.server_read);
        let half_closed = wire.client_fin && answered;
        let excused = wire.client_reset
            || unread
            // A server that drains does not wait for what a closing session may still send.
            || self.perhaps_closing && (wire.server_fin || at.draining)
            || self.partial.is_empty() && (self.closing || self.unchecked || half_closed);
        let stuck = wire.stuck_since_ns;
        drop(wire);
        assert!(
            excused,
            "the server left without a word: {}; partial {:?}, connected {} ns ago, unread since {stuck:?}, \
             storage failed {}, draining {}, {:?}",
            self.describe(),
            String::from_utf8_lossy(&self.partial),
            at.now_ns - self.connected_ns,
            at.storage_failed(),
            at.draining,
            at.moments.last(),
        );
    }

    fn reply(&mut self, wire: &[u8], ledger: &mut Ledger, at: &Circumstances<'_>) {
        let text = String::from_utf8_lossy(wire);
        let number = stored_number(&text);
        if self.unchecked {
            // What the server makes of content that it did not ask for is not foreseen, but it holds no message.
            assert_eq!(number, None, "nothing was sent");
            self.expected.pop_front();
            return;
        }
        assert!(!self.closing, "{text:?} behind the last reply");
        self.perhaps_closing = false;
        let Some(awaited) = self.expected.pop_front() else {
            return self.last_words(&text, None, ledger, at);
        };
        let possible: &[Stage] = match self.model.stage {
            Stage::NoneOrFailed => &[Stage::None, Stage::Failed(Reply::BdatFailed)],
            _ => &[self.model.stage],
        };
        let mut fits = [None; 2];
        for (stage, fit) in possible.iter().zip(&mut fits) {
            let allowed = self.allowed(&awaited, *stage, at);
            *fit = allowed.iter().copied().find(|reply| match reply {
                Reply::Greeting => wire == at.context.greeting,
                Reply::Helo => wire == at.context.helo_reply,
                Reply::Ehlo => is_ehlo(wire, at.context),
                Reply::Help => wire == at.context.help_reply,
                Reply::Stored => number.is_some(),
                reply => reply.row().wire == wire,
            });
        }
        let stage = match fits {
            [Some(_), Some(_)] => self.model.stage,
            [None, Some(_)] => possible[1],
            _ => possible[0],
        };
        match fits[0].or(fits[1]) {
            Some(reply) => {
                self.model.stage = stage;
                self.apply(&awaited, reply, number, ledger, at);
            }
            None => self.last_words(&text, Some(&awaited), ledger, at),
        }
    }

    /// Replies that the server may give to this. The first is what it gives when nothing is scarce.
    fn allowed(&self, awaited: &Awaited, stage: Stage, at: &Circumstances<'_>) -> Vec<Reply> {
        let config = at.config;
        let moments = at.since(awaited.read_in);
        let mut allowed = Vec::new();
        match &awaited.expect {
            Expect::Greeting => {
                if moments.iter().any(|moment| !moment.failed_before) {
                    allowed.push(Reply::Greeting);
                }
            }
            Expect::Hello { esmtp: true } => allowed.push(Reply::Ehlo),
            Expect::Hello { esmtp: false } => allowed.push(Reply::Helo),
            Expect::Mail {
                syntax, declared, ..
            } => {
                if let Some(reply) = syntax {
                    return vec![*reply];
                }
                if !self.model.hello {
                    return vec![Reply::NeedHelo];
                }
                match stage {
                    Stage::None => {}
                    Stage::Envelope => return vec![Reply::NestedMail],
                    Stage::Chunks => return vec![Reply::BdatOpen],
                    Stage::Failed(reply) => return vec![reply],
                    Stage::NoneOrFailed => unreachable!("looked at one by one"),
                }
                if *declared > 0 && !self.model.esmtp {
                    return vec![Reply::ParameterUnknown];
                }
                if *declared > config.message_max {
                    return vec![Reply::TooBig];
                }
                if self.model.mails >= config.messages_max {
                    return vec![Reply::TooManyMessages];
                }
                if moments.iter().any(|moment| at.may_admit(moment, *declared)) {
                    allowed.push(Reply::MailOk);
                }
                if moments.iter().any(|moment| moment.failed || moment.stalled) {
                    allowed.push(Reply::StorageDown);
                }
                if moments
                    .iter()
                    .any(|moment| at.may_refuse(moment, *declared))
                {
                    allowed.push(Reply::NoSpace);
                }
            }
            Expect::Rcpt { syntax, .. } => {
                if let Some(reply) = syntax {
                    return vec![*reply];
                }
                if let Some(reply) = stage.reply_without_envelope() {
                    return vec![reply];
                }
                if self.model.accepted.len() as u32 >= config.recipients_max {
                    return vec![Reply::TooManyRecipients];
                }
                allowed.push(Reply::RcptOk);
                if moments.iter().any(|moment| at.pool_is_dry(moment)) {
                    allowed.push(Reply::EnvelopeFull);
                }
            }
            Expect::Data { .. } => {
                if let Some(reply) = stage.reply_without_envelope() {
                    return vec![reply];
                }
                if self.model.accepted.is_empty() {
                    return vec![Reply::NeedRcpt];
                }
                allowed.push(Reply::DataStart);
                if moments.iter().any(|moment| at.pool_is_dry(moment)) {
                    allowed.push(Reply::NoSpace);
                }
            }
            Expect::Body {
                octets, is_bare, ..
            } => end_of_content(*octets, *is_bare, moments, at, &mut allowed),
            Expect::Chunk {
                octets,
                last,
                is_bare,
                ..
            } => {
                match stage {
                    Stage::None => return vec![Reply::NeedMail],
                    Stage::Envelope if self.model.accepted.is_empty() => {
                        return vec![Reply::NeedRcpt];
                    }
                    Stage::Envelope | Stage::Chunks => {}
                    Stage::Failed(reply) => return vec![reply],
                    Stage::NoneOrFailed => unreachable!("looked at one by one"),
                }
                let total = self.model.chunk_octets + octets;
                if total > config.message_max {
                    return vec![Reply::TooBig];
                }
                if *last {
                    let is_bare = self.model.chunk_bare || *is_bare;
                    end_of_content(total, is_bare, moments, at, &mut allowed);
                } else {
                    allowed.push(Reply::ChunkOk);
                }
                if stage == Stage::Envelope && moments.iter().any(|moment| at.pool_is_dry(moment)) {
                    allowed.push(Reply::NoSpace);
                }
            }
            Expect::Rset => allowed.push(Reply::Rset),
            Expect::Help => allowed.push(Reply::Help),
            Expect::Quit => allowed.push(Reply::Quit),
            Expect::Fixed(reply) => allowed.push(*reply),
        }
        allowed
    }

    fn apply(
        &mut self,
        awaited: &Awaited,
        reply: Reply,
        number: Option<u64>,
        ledger: &mut Ledger,
        at: &Circumstances<'_>,
    ) {
        let model = &mut self.model;
        let clear = |model: &mut Model| {
            model.stage = Stage::None;
            model.accepted.clear();
            model.chunk_octets = 0;
            model.chunk_bare = false;
        };
        let refuse = |ledger: &mut Ledger, letter: u64| {
            if letter == 0 {
                return;
            }
            let letter = ledger.letter(letter);
            if letter.fate == Fate::Open && reply != Reply::CommitFailed {
                letter.fate = Fate::Never;
            }
        };
        match &awaited.expect {
            Expect::Hello { esmtp } => {
                clear(model);
                model.hello = true;
                model.esmtp = *esmtp;
            }
            Expect::Mail { .. } if reply == Reply::MailOk => {
                clear(model);
                model.stage = Stage::Envelope;
                model.mails += 1;
            }
            Expect::Mail { .. } => {}
            Expect::Rcpt { path, .. } if reply == Reply::RcptOk => {
                model.accepted.push(path.clone());
            }
            Expect::Data { waits } => {
                self.asked = reply == Reply::DataStart;
                // Content that nobody asked for is taken for commands; nothing can be foreseen then.
                self.unchecked |= !self.asked && !waits;
            }
            Expect::Body { letter, .. } => {
                match number {
                    Some(number) => ledger.promise(*letter, number, &model.accepted),
                    None => refuse(ledger, *letter),
                }
                clear(model);
            }
            Expect::Chunk {
                letter,
                octets,
                last,
                is_bare,
            } => match (reply, number) {
                (_, Some(number)) => {
                    ledger.promise(*letter, number, &model.accepted);
                    clear(model);
                }
                (Reply::ChunkOk, None) => {
                    model.stage = Stage::Chunks;
                    model.chunk_octets += octets;
                    model.chunk_bare |= is_bare;
                }
                (refusal, None) => {
                    refuse(ledger, *letter);
                    // RFC 3030 2: a refused chunk spoils the transaction; a refused last one ends it.
                    let no_space = refusal == Reply::NoSpace;
                    self.perhaps_closing =
                        no_space && self.unread_max_ns >= at.config.pool_wait_max_ns;
                    let began =
                        model.stage == Stage::Chunks || refusal != Reply::NeedRcpt && !no_space;
                    let moments = at.since(awaited.read_in);
                    let total = model.chunk_octets + octets;
                    let at_end =
                        no_space && moments.iter().any(|moment| at.ring_is_out(moment, total));
                    let at_begin = no_space && moments.iter().any(|moment| at.pool_is_dry(moment));
                    match model.stage {
                        Stage::None | Stage::Failed(_) => {}
                        Stage::NoneOrFailed => {}
                        _ if *last && (began || at_end && !at_begin) => clear(model),
                        _ if *last && at_end => {
                            clear(model);
                            model.stage = Stage::NoneOrFailed;
                        }
                        _ => model.stage = Stage::Failed(Reply::BdatFailed),
                    }
                }
            },
            Expect::Rset => clear(model),
            Expect::Quit => self.closing = true,
            _ => {}
        }
    }

    /// A reply that answers nothing: the server ends the session for a reason of its own.
    fn last_words(
        &mut self,
        text: &str,
        instead: Option<&Awaited>,
        ledger: &mut Ledger,
        at: &Circumstances<'_>,
    ) {
        let is = |reply: Reply| reply.row().wire == text.as_bytes();
        let config = at.config;
        let greeting = instead.filter(|awaited| matches!(awaited.expect, Expect::Greeting));
        let reason_holds = if is(Reply::TimedOut) {
            self.silence_max_ns >= config.shortest_timeout_ns
                || self.partial_max_ns >= config.request_deadline_ns
        } else if is(Reply::TooSlow) {
            // When the content began is not known here; the session is older than that.
            at.now_ns - self.connected_ns >= config.data_grace_ns
        } else if is(Reply::ShuttingDown) {
            at.draining
        } else if is(Reply::StorageDownClose) {
            greeting.is_some_and(|awaited| {
                let mut moments = at.since(awaited.read_in).iter();
                moments.any(|moment| moment.failed)
            })
        } else if is(Reply::TooManySessions) {
            greeting.is_some()
        } else if is(Reply::NoSpace) {
            // A message that waits for chunks is not read.
            config.pool_is_tight && self.unread_max_ns >= config.pool_wait_max_ns
        } else {
            false
        };
        assert!(
            reason_holds,
            "{text:?} is no answer to {instead:?}: {}; silent for {} of {} ns, a command begun for {} of {} ns, unread \
             for {} ns; {:?}",
            self.describe(),
            self.silence_max_ns,
            config.shortest_timeout_ns,
            self.partial_max_ns,
            config.request_deadline_ns,
            self.unread_max_ns,
            at.since(instead.and_then(|awaited| awaited.read_in)),
        );
        self.closing = true;
        // What stands behind has not been looked at by the server, or was thrown away.
        for awaited in instead.into_iter().chain(&self.expected) {
            if let Expect::Body { letter, .. } | Expect::Chunk { letter, .. } = &awaited.expect
                && *letter != 0
            {
                let letter = ledger.letter(*letter);
                if letter.fate == Fate::Open {
                    letter.fate = Fate::Never;
                }
            }
        }
        self.expected.clear();
    }

    /// Whether the server owes a reply to something it has been sent whole.
    pub fn is_owed(&self) -> bool {
        !self.finished
            && !self.closing
            && !self.unchecked
            && self
                .expected
                .iter()
                .any(|awaited| awaited.ends_at != u64::MAX)
    }

    /// What this client still waits for, for messages of failed checks.
    pub fn describe(&self) -> String {
        let wire = self.wire.borrow();
        format!(
            "{:?} {:?} under way, {} replies unread, plan {}, sent {} of {}, server read {}, unread {}, \
             model {:?}, wire fin {} reset {} server fin {} gone {}",
            self.style,
            self.expected,
            self.reply_ends.len(),
            self.plan.len(),
            self.out_at,
            self.out.len(),
            wire.server_read,
            wire.unread(),
            self.model,
            wire.client_fin,
            wire.client_reset,
            wire.server_fin,
            wire.server_gone,
        )
    }
}

fn end_of_content(
    octets: u64,
    is_bare: bool,
    moments: &[Moment],
    at: &Circumstances<'_>,
    allowed: &mut Vec<Reply>,
) {
    if octets > at.config.message_max {
        allowed.push(Reply::TooBig);
        return;
    }
    if is_bare {
        allowed.push(Reply::BareNewline);
        return;
    }
    allowed.push(Reply::Stored);
    if at.storage_failed() {
        allowed.extend([Reply::CommitFailed, Reply::StorageDown]);
    }
    if moments.iter().any(|moment| at.ring_is_out(moment, octets)) {
        allowed.push(Reply::NoSpace);
    }
}

/// Length of the reply at the front, if it is whole.
fn reply_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = bytes[at..].iter().position(|byte| *byte == b'\n')? + 1;
        let is_last = bytes[at + 3] == b' ';
        assert!(
            bytes[at..at + line].ends_with(b"\r\n"),
            "a reply line ends in CRLF"
        );
        at += line;
        if is_last {
            return Some(at);
        }
    }
}

/// The number in a 250 that promises a message.
fn stored_number(text: &str) -> Option<u64> {
    text.strip_prefix("250 2.0.0 Ok: stored as 0-")?
        .strip_suffix("\r\n")?
        .parse()
        .ok()
}

const TEXT: &[u8; 192] = b"abcdefghijklmnopqrstuvwxyz0123456789.-ABCDEFGHIJKLMNOPQRSTUVWXYZ\
    the quick brown fox jumps over the lazy dog and finds sixty-four bytes of text in ring 7 or 8, \
    then thirty-two more bytes and so";

/// Whether this is the reply to EHLO, whenever it was sent: one line names a time.
fn is_ehlo(wire: &[u8], context: &Context) -> bool {
    let expected = context.ehlo_reply(context.services(false, Offered::PROMISES, false), 0);
    let lines = |text: &[u8]| -> Vec<Vec<u8>> {
        let all = text.split_inclusive(|octet| *octet == b'\n');
        all.filter(|line| !line.starts_with(b"250-FUTURERELEASE "))
            .map(<[u8]>::to_vec)
            .collect()
    };
    lines(wire) == lines(expected.as_bytes())
}
