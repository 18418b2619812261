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
    expected: VecDeque<Expect>,
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
    pub finished: bool,
    random: Random,
    /// When the server last read, nanoseconds.
    read_at_ns: u64,
    read_counted: u64,
    silence_max_ns: u64,
    pub connected_ns: u64,
    /// The server's leaving was looked at.
    gone_checked: bool,
    /// Ends in mid-command or mid-content: that has no answer.
    may_stay_unanswered: bool,
    /// Letters whose end has been said, and where in the stream.
    pub completed: Vec<(u64, u64)>,
}

/// What the checker has to know of the server's circumstances.
pub struct Circumstances<'a> {
    pub config: &'a Config,
    pub context: &'a Context,
    pub now_ns: u64,
    pub draining: bool,
    pub storage_failed: bool,
    pub sync_stalled: bool,
}

impl Peer {
    pub fn new(random: &mut Random, config: &Config, ledger: &mut Ledger, now_ns: u64) -> Peer {
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
            expected: VecDeque::from([Expect::Greeting]),
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
            finished: false,
            random,
            read_at_ns: now_ns,
            read_counted: 0,
            silence_max_ns: 0,
            connected_ns: now_ns,
            gone_checked: false,
            may_stay_unanswered: false,
            completed: Vec::new(),
        };
        peer.make_plan(config, ledger);
        peer
    }

    // The plan.

    fn say(&mut self, line: String, expect: Expect) {
        self.plan
            .push_back(Item::Say((line + "\r\n").into_bytes(), expect));
    }

    fn make_plan(&mut self, config: &Config, ledger: &mut Ledger) {
        if self.random.one_in(8) {
            self.plan.push_back(Item::Wait);
        }
        if !self.random.one_in(20) {
            let esmtp = !self.random.one_in(6);
            self.hello(esmtp);
        }
        for _ in 0..1 + self.random.below(config.letters_max) {
            match self.random.below(16) {
                0 => self.noise(),
                1 => self.aborted(config, ledger),
                2 => self.wrong_order(ledger, config),
                3..=6 => self.by_chunks(config, ledger),
                _ => self.by_data(config, ledger),
            }
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
        if self.random.one_in(16) {
            // Gives up in the middle.
            self.may_stay_unanswered = true;
            bytes.truncate(self.random.below(whole as u64 + 3) as usize);
            ledger.letter(letter).is_valid = false;
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
            let end = if self.random.one_in(2) {
                Item::Fin
            } else {
                Item::Reset
            };
            self.plan.push_back(end);
            return;
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
    pub fn act(&mut self, hurry: bool) {
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
        self.write(hurry);
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

    fn write(&mut self, hurry: bool) {
        loop {
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
            self.plan.clear();
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
                self.expected.push_back(expect);
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
                if bytes.ends_with(b"\r\n.\r\n") || bytes == b".\r\n" {
                    self.completed.push((letter, self.queued));
                }
                self.expected.push_back(expect);
            }
            Item::Complete(letter) => self.completed.push((letter, self.queued)),
            Item::Fragment(bytes) => self.queue(&bytes),
            Item::Fin => {
                if self.out_at == self.out.len() {
                    self.wire.borrow_mut().end_sending();
                }
                self.plan.clear();
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
        self.plan.clear();
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
        self.plan.clear();
        self.out.clear();
        self.out_at = 0;
        self.style.deaf_from = 0;
    }

    /// Leaves with the next command.
    pub fn cut_short(&mut self) {
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
        self.partial.extend_from_slice(&bytes);
        while let Some(len) = reply_len(&self.partial) {
            let wire: Vec<u8> = self.partial.drain(..len).collect();
            self.written += len as u64;
            self.reply_ends.push_back(self.written);
            self.reply(&wire, ledger, at);
        }
        if self.wire.borrow().server_read > self.read_counted {
            self.read_counted = self.wire.borrow().server_read;
            self.silence_max_ns = self.silence_ns(at);
            self.read_at_ns = at.now_ns;
        }
        if gone && !self.gone_checked {
            self.gone_checked = true;
            // A client that does not read is left without a word in the end.
            let late = at.now_ns - self.connected_ns >= at.config.linger_ns;
            let reset = self.wire.borrow().client_reset;
            assert!(
                self.partial.is_empty() || reset || late,
                "the server left in mid-reply"
            );
            let excused = self.closing
                || self.unchecked
                || reset
                || self.may_stay_unanswered && self.expected.len() <= 1
                || at.config.pool_is_tight
                || late && (self.says_goodbye() || at.storage_failed)
                || self.silence_ns(at) >= at.config.shortest_timeout_ns
                || at.now_ns - self.connected_ns >= at.config.data_grace_ns
                || self.expected.is_empty();
            assert!(
                excused,
                "the server left without a word: {}; connected {} ns ago, silence {:?}, storage \
                 failed {}, draining {}",
                self.describe(),
                at.now_ns - self.connected_ns,
                (self.silence_ns(at), at.config.timeout),
                at.storage_failed,
                at.draining
            );
        }
    }

    fn reply(&mut self, wire: &[u8], ledger: &mut Ledger, at: &Circumstances<'_>) {
        let text = String::from_utf8_lossy(wire).into_owned();
        if self.unchecked {
            self.expected.pop_front();
            return;
        }
        assert!(!self.closing, "{text:?} behind the last reply");
        let Some(expect) = self.expected.pop_front() else {
            return self.last_words(&text, None, ledger, at);
        };
        let number = stored_number(&text);
        let is = |reply: Reply| reply.row().wire == wire;
        let config = at.config;
        let allowed = self.allowed(&expect, at);
        let found = allowed.iter().copied().find(|reply| match reply {
            Reply::Greeting => wire == at.context.greeting,
            Reply::Helo => wire == at.context.helo_reply,
            Reply::Ehlo => is_ehlo(wire, at.context),
            Reply::Help => wire == at.context.help_reply,
            Reply::Stored => number.is_some(),
            reply => is(*reply),
        });
        match found {
            Some(reply) => self.apply(&expect, reply, number, ledger, config.pool_is_tight),
            None => self.last_words(&text, Some((&expect, allowed)), ledger, at),
        }
    }

    /// Replies that the server may give to this now. The first is what it gives when nothing is scarce.
    fn allowed(&self, expect: &Expect, at: &Circumstances<'_>) -> Vec<Reply> {
        let config = at.config;
        let stage = self.model.stage;
        let mut allowed = Vec::new();
        match expect {
            Expect::Greeting => {
                allowed.push(Reply::Greeting);
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
                allowed.push(Reply::MailOk);
                if at.storage_failed || at.sync_stalled {
                    allowed.push(Reply::StorageDown);
                }
                if config.can_be_full {
                    allowed.push(Reply::NoSpace);
                }
            }
            Expect::Rcpt { syntax, .. } => {
                if let Some(reply) = syntax {
                    return vec![*reply];
                }
                match stage {
                    Stage::None => return vec![Reply::NeedMail],
                    Stage::Envelope => {}
                    Stage::Chunks => return vec![Reply::BdatOpen],
                    Stage::Failed(reply) => return vec![reply],
                }
                if self.model.accepted.len() as u32 >= config.recipients_max {
                    return vec![Reply::TooManyRecipients];
                }
                allowed.push(Reply::RcptOk);
                if config.pool_is_tight {
                    allowed.push(Reply::EnvelopeFull);
                }
            }
            Expect::Data { .. } => {
                match stage {
                    Stage::None => return vec![Reply::NeedMail],
                    Stage::Envelope => {}
                    Stage::Chunks => return vec![Reply::BdatOpen],
                    Stage::Failed(reply) => return vec![reply],
                }
                if self.model.accepted.is_empty() {
                    return vec![Reply::NeedRcpt];
                }
                allowed.push(Reply::DataStart);
                if config.pool_is_tight {
                    allowed.push(Reply::NoSpace);
                }
            }
            Expect::Body {
                octets, is_bare, ..
            } => self.end_of_content(*octets, *is_bare, at, &mut allowed),
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
                }
                let total = self.model.chunk_octets + octets;
                if total > config.message_max {
                    return vec![Reply::TooBig];
                }
                if *last {
                    let is_bare = self.model.chunk_bare || *is_bare;
                    self.end_of_content(total, is_bare, at, &mut allowed);
                } else {
                    allowed.push(Reply::ChunkOk);
                }
                if stage == Stage::Envelope && config.pool_is_tight {
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

    fn end_of_content(
        &self,
        octets: u64,
        is_bare: bool,
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
        if at.storage_failed {
            allowed.extend([Reply::CommitFailed, Reply::StorageDown]);
        }
        if at.config.can_be_full {
            allowed.push(Reply::NoSpace);
        }
    }

    fn apply(
        &mut self,
        expect: &Expect,
        reply: Reply,
        number: Option<u64>,
        ledger: &mut Ledger,
        pool_is_tight: bool,
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
        match expect {
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
                    let began = model.stage == Stage::Chunks
                        || !matches!(refusal, Reply::NeedRcpt | Reply::NoSpace);
                    let ends = *last && (began || refusal == Reply::NoSpace && !pool_is_tight);
                    // Refused at its begin or at its end? Only the server knows.
                    self.unchecked |= *last && !began && refusal == Reply::NoSpace && pool_is_tight;
                    match model.stage {
                        Stage::None | Stage::Failed(_) => {}
                        _ if ends => clear(model),
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
        instead: Option<(&Expect, Vec<Reply>)>,
        ledger: &mut Ledger,
        at: &Circumstances<'_>,
    ) {
        let is = |reply: Reply| reply.row().wire == text.as_bytes();
        let silent_ns = self.silence_ns(at);
        let at_greeting = matches!(instead, Some((Expect::Greeting, _)));
        let reason_holds = if is(Reply::TimedOut) {
            silent_ns >= at.config.shortest_timeout_ns
                || at.now_ns - self.connected_ns >= at.config.request_deadline_ns
        } else if is(Reply::TooSlow) {
            at.now_ns - self.connected_ns >= at.config.data_grace_ns
        } else if is(Reply::ShuttingDown) {
            at.draining
        } else if is(Reply::StorageDownClose) {
            at.storage_failed && at_greeting
        } else if is(Reply::TooManySessions) {
            at_greeting
        } else if is(Reply::NoSpace) {
            at.config.pool_is_tight && at.now_ns - self.connected_ns >= at.config.pool_wait_max_ns
        } else {
            false
        };
        assert!(
            reason_holds,
            "{text:?} is no answer to {instead:?} at {:?}; silent for {silent_ns} ns",
            self.model
        );
        self.closing = true;
        // What stands behind has not been looked at by the server, or was thrown away.
        let first = instead.map(|(expect, _)| expect.clone());
        for expect in first.iter().chain(&self.expected) {
            if let Expect::Body { letter, .. } | Expect::Chunk { letter, .. } = expect
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

    /// The longest time for which the server read nothing.
    fn silence_ns(&self, at: &Circumstances<'_>) -> u64 {
        self.silence_max_ns.max(at.now_ns - self.read_at_ns)
    }

    /// Whether the client has said, one way or another, that it wants to leave.
    fn says_goodbye(&self) -> bool {
        let quits = matches!(self.expected.back(), Some(Expect::Quit));
        quits || self.wire.borrow().client_fin
    }

    /// Whether the server owes a reply to something it has been sent whole.
    pub fn is_owed(&self) -> bool {
        !self.finished
            && !self.closing
            && !self.unchecked
            && !self.may_stay_unanswered
            && !self.expected.is_empty()
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
