//! What a case can do: say lines, expect replies, deliver messages, and look at what was stored.

use std::time::Duration;

use super::store::Store;
use super::wire::{Broken, Reply, Transcript, Wire, escape};
use super::{Options, TLS_ANY};
use crate::clock::Clock;

/// How a case ends before its end.
#[derive(Debug)]
pub enum Stop {
    /// The server does something else than it should.
    Fail(String),
    /// It can't be tried here; why.
    Skip(String),
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Stop {
        Stop::Fail(broken.text())
    }
}

/// What a step gives.
pub type Step<T = ()> = Result<T, Stop>;

/// The extensions that EHLO named.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    /// Keyword in upper case, and its arguments.
    pub keywords: Vec<(String, String)>,
}

impl Offer {
    /// Reads the reply to EHLO.
    pub fn of(reply: &Reply) -> Offer {
        let keywords = reply
            .texts()
            .skip(1)
            .map(|text| {
                let text = String::from_utf8_lossy(text).into_owned();
                let (keyword, arguments) = text.split_once(' ').unwrap_or((&text, ""));
                (keyword.to_ascii_uppercase(), arguments.to_owned())
            })
            .collect();
        Offer { keywords }
    }

    /// Arguments of a keyword that is offered.
    pub fn get(&self, keyword: &str) -> Option<&str> {
        let found = self.keywords.iter().find(|(name, _)| name == keyword);
        found.map(|(_, arguments)| arguments.as_str())
    }

    /// The maximum that SIZE states, octets; `None` where it states none.
    pub fn size(&self) -> Option<u64> {
        self.get("SIZE")?
            .trim()
            .parse()
            .ok()
            .filter(|size| *size > 0)
    }
}

/// One case under way.
pub struct Dialogue<'a> {
    /// What was asked for.
    pub options: &'a Options,
    /// What EHLO offers in the clear.
    pub offer: &'a Offer,
    wire: Option<Wire>,
    store: Option<&'a mut Store>,
    /// Word that only messages of this case hold.
    pub token: String,
    /// What was said on connections that are over.
    past: Transcript,
    past_replies: Vec<Reply>,
}

impl<'a> Dialogue<'a> {
    /// A dialogue that has not begun.
    pub fn new(
        options: &'a Options,
        offer: &'a Offer,
        store: Option<&'a mut Store>,
        token: String,
    ) -> Dialogue<'a> {
        Dialogue {
            options,
            offer,
            wire: None,
            store,
            token,
            past: Transcript::default(),
            past_replies: Vec::new(),
        }
    }

    /// What was said, and every reply.
    pub fn finish(mut self) -> (Transcript, Vec<Reply>) {
        self.hang_up();
        (self.past, self.past_replies)
    }

    fn hang_up(&mut self) {
        if let Some(mut wire) = self.wire.take() {
            self.past_replies.append(&mut wire.replies);
            // The last connection tells most.
            self.past = wire.transcript;
        }
    }

    /// The connection.
    pub fn wire(&mut self) -> Step<&mut Wire> {
        self.wire
            .as_mut()
            .ok_or_else(|| Stop::Fail("no connection".to_owned()))
    }

    /// Connects without waiting for the greeting; a connection that is open is closed.
    pub fn connect(&mut self) -> Step {
        self.hang_up();
        self.wire = Some(Wire::connect(self.options.address, self.options.timeout)?);
        Ok(())
    }

    /// Connects and takes the greeting.
    pub fn open(&mut self) -> Step<Reply> {
        self.connect()?;
        self.want("220")
    }

    /// Connects and says EHLO.
    pub fn ehlo(&mut self) -> Step<Offer> {
        self.open()?;
        let reply = self.say("EHLO client.example", "250")?;
        Ok(Offer::of(&reply))
    }

    /// Reads a reply that has to match.
    pub fn want(&mut self, patterns: &str) -> Step<Reply> {
        let reply = self.wire()?.reply();
        let reply = match reply {
            Ok(reply) => reply,
            Err(Broken::Closed) if patterns.split('/').any(|word| word == "close") => {
                return Ok(Reply::default());
            }
            Err(broken) => {
                return Err(Stop::Fail(format!("wanted {patterns}: {}", broken.text())));
            }
        };
        if reply.matches(patterns) {
            Ok(reply)
        } else {
            Err(Stop::Fail(format!(
                "wanted {patterns}, got {}",
                reply.shown()
            )))
        }
    }

    /// Sends a line and takes a reply that has to match.
    pub fn say(&mut self, line: &str, patterns: &str) -> Step<Reply> {
        self.send(format!("{line}\r\n").as_bytes())?;
        match self.want(patterns) {
            Err(Stop::Fail(text)) => {
                Err(Stop::Fail(format!("{}: {text}", escape(line.as_bytes()))))
            }
            other => other,
        }
    }

    /// Sends octets.
    pub fn send(&mut self, octets: &[u8]) -> Step {
        Ok(self.wire()?.send(octets)?)
    }

    /// The session still answers.
    pub fn alive(&mut self) -> Step {
        self.say("NOOP", "250").map(drop)
    }

    /// The line that begins a transaction.
    pub fn mail_line(&self) -> String {
        format!("MAIL FROM:<{}>", self.options.from)
    }

    /// The line that names the recipient.
    pub fn rcpt_line(&self) -> String {
        format!("RCPT TO:<{}>", self.options.to)
    }

    /// MAIL and RCPT.
    pub fn envelope(&mut self) -> Step {
        let (mail, rcpt) = (self.mail_line(), self.rcpt_line());
        self.say(&mail, "250")?;
        self.say(&rcpt, "25x").map(drop)
    }

    /// MAIL, RCPT and DATA.
    pub fn data(&mut self) -> Step {
        self.envelope()?;
        self.say("DATA", "354").map(drop)
    }

    /// Header fields of a message of this case, with the empty line.
    pub fn header(&self) -> String {
        format!(
            "From: <{}>\r\nTo: <{}>\r\nSubject: {}\r\n\r\n",
            self.options.from, self.options.to, self.token
        )
    }

    /// Delivers one message by DATA: `body` as it goes over the wire behind the header fields, dots and all.
    pub fn deliver(&mut self, body: &[u8], patterns: &str) -> Step<Reply> {
        self.data()?;
        let message = [self.header().as_bytes(), body, b".\r\n"].concat();
        self.send(&message)?;
        self.want(patterns)
    }

    /// Whether stored messages can be looked at.
    pub fn has_store(&self) -> bool {
        self.store.is_some()
    }

    /// The messages of this case that were stored, once there are `count`, or when time is up.
    fn stored(&mut self, count: usize) -> Step<Vec<Vec<u8>>> {
        let (token, wait) = (self.token.clone(), self.options.timeout);
        let Some(store) = &mut self.store else {
            return Ok(Vec::new());
        };
        let clock = Clock::new();
        let until = clock.now().after(wait);
        loop {
            let found = store.find(&token).map_err(Stop::Skip)?;
            if found.len() >= count || clock.now() >= until {
                return Ok(found);
            }
            store.pause();
        }
    }

    /// So many messages of this case are stored, where that can be looked at.
    pub fn stored_count(&mut self, count: usize) -> Step {
        if !self.has_store() {
            return Ok(());
        }
        let found = self.stored(count)?.len();
        if found == count {
            Ok(())
        } else {
            Err(Stop::Fail(format!(
                "{found} messages stored, wanted {count}"
            )))
        }
    }

    /// No more messages of this case are stored, where that can be looked at.
    pub fn stored_at_most(&mut self, count: usize) -> Step {
        let found = self.stored(0)?.len();
        if found <= count {
            Ok(())
        } else {
            Err(Stop::Fail(format!(
                "{found} messages stored, sent were {count}"
            )))
        }
    }

    /// One message of this case is stored and ends with these octets, where that can be looked at.
    pub fn stored_as(&mut self, content: &[u8]) -> Step {
        if !self.has_store() {
            return Ok(());
        }
        let found = self.stored(1)?;
        let [message] = found.as_slice() else {
            return Err(Stop::Fail(format!(
                "{} messages stored, wanted 1",
                found.len()
            )));
        };
        let lines_end_in_lf = self
            .store
            .as_ref()
            .is_some_and(|store| store.ends_lines_in_lf());
        let (got, wanted) = if lines_end_in_lf {
            (to_lf(message), to_lf(content))
        } else {
            (message.clone(), content.to_vec())
        };
        if got.ends_with(&wanted) {
            return Ok(());
        }
        let common = got
            .iter()
            .rev()
            .zip(wanted.iter().rev())
            .take_while(|(a, b)| a == b);
        let same = common.count();
        Err(Stop::Fail(format!(
            "stored differently: the last {same} of {} octets are the same, then {} instead of {}",
            wanted.len(),
            escape(tail(&got[..got.len() - same])),
            escape(tail(&wanted[..wanted.len() - same])),
        )))
    }

    /// The stored message's own trace fields: what stands before the header fields that were sent.
    pub fn trace(&mut self) -> Step<String> {
        if !self.has_store() {
            return Err(Stop::Skip(NO_STORE.to_owned()));
        }
        let found = self.stored(1)?;
        let first = found
            .first()
            .ok_or_else(|| Stop::Fail("nothing stored".to_owned()))?;
        let text = String::from_utf8_lossy(first).replace("\r\n", "\n");
        Ok(text.split("From: <").next().unwrap_or_default().to_owned())
    }

    /// STARTTLS and the handshake, with any version that is offered here.
    pub fn starttls(&mut self) -> Step {
        self.say("STARTTLS", "220")?;
        self.wire()?.secure(TLS_ANY)?;
        Ok(())
    }

    /// Whether nothing is said for a while.
    pub fn quiet(&mut self) -> Step<bool> {
        let time = self.options.quiet;
        Ok(self.wire()?.is_quiet(time)?)
    }

    /// The server closes, and says nothing but what was read.
    pub fn closed(&mut self) -> Step {
        if self.wire()?.is_closed() {
            Ok(())
        } else {
            Err(Stop::Fail("the connection stays open".to_owned()))
        }
    }

    /// Replies until the server is quiet or closes.
    pub fn replies(&mut self) -> Step<Vec<Reply>> {
        let quiet = self.options.quiet;
        let mut replies = Vec::new();
        while replies.len() < 100 {
            match self.wire()?.is_quiet(quiet) {
                Ok(true) | Err(_) => break,
                Ok(false) => match self.wire()?.reply() {
                    Ok(reply) => replies.push(reply),
                    Err(_) => break,
                },
            }
        }
        Ok(replies)
    }

    /// Time that counts as silence.
    pub fn quiet_time(&self) -> Duration {
        self.options.quiet
    }
}

/// Why a case that looks at stored mail is not tried.
pub const NO_STORE: &str = "stored mail can't be looked at: give --ring, --maildir or --eml";

fn tail(octets: &[u8]) -> &[u8] {
    &octets[octets.len().saturating_sub(32)..]
}

fn to_lf(octets: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(octets.len());
    for (at, octet) in octets.iter().enumerate() {
        if *octet != b'\r' || octets.get(at + 1) != Some(&b'\n') {
            out.push(*octet);
        }
    }
    out
}
