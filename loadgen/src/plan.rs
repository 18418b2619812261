//! The plan: everything that decides what goes over the wire, fixed before any reply is known.
//!
//! Promises: the size, the addresses and the place of message n are a function of the seed and n;
//! `hash` is equal for two plans exactly when they offer the same workload.
//! Does not: know the target or the clock.

use crate::corpus::Corpus;
use crate::message::{self, Filler, push_decimal};
use crate::rng::{Rng, mix};
use crate::trace::Trace;
use std::fmt;
use std::sync::Arc;

/// How many messages are in flight, or when they start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Each session sends its next message when the last one was answered.
    Closed,
    /// Messages start at planned times, `rate` a second, whatever the target does.
    Open {
        /// Messages a second.
        rate: f64,
        /// Exponential gaps instead of equal ones.
        poisson: bool,
        /// Each arrival opens its own connection.
        by_connection: bool,
    },
}

/// When commands may be sent behind one another (RFC 2920).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pipelining {
    /// When the server offers it.
    Auto,
    /// Never: one command, one reply.
    Off,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 5321.
    Smtp,
    /// RFC 2033: a reply for each accepted recipient.
    Lmtp,
}

/// When TLS starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Never.
    Off,
    /// After STARTTLS (RFC 3207).
    StartTls,
    /// With the first byte (RFC 8314).
    Implicit,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quit {
    /// QUIT, its reply, then wait for the server to close.
    Wait,
    /// QUIT, its reply, then reset the connection.
    Reset,
    /// No QUIT: just close.
    None,
}

/// A distribution of message sizes.
#[derive(Clone, Debug, PartialEq)]
pub enum Sizes {
    /// Always the same.
    Fixed(u64),
    /// One of these, all equally likely.
    List(Vec<u64>),
    /// Evenly spread between two ends.
    Uniform(u64, u64),
    /// Lognormal with this median and this sigma, at most 50 MiB.
    Lognormal(f64, f64),
    /// Points of a cumulative distribution: size, share of messages at most that large.
    Table(Vec<(u64, f64)>),
}

/// The largest message a distribution may give.
pub const SIZE_MAX: u64 = 50 << 20;

impl Sizes {
    fn pick(&self, rng: &mut Rng) -> u64 {
        match self {
            Self::Fixed(size) => *size,
            Self::List(sizes) => sizes[rng.below(sizes.len() as u64) as usize],
            Self::Uniform(low, high) => low + rng.below(high - low + 1),
            Self::Lognormal(median, sigma) => {
                ((median.ln() + sigma * rng.normal()).exp() as u64).min(SIZE_MAX)
            }
            Self::Table(points) => {
                let share = rng.unit();
                let mut before = (points[0].0.max(2) as f64 / 2.0, 0.0);
                for (size, to) in points {
                    if share <= *to {
                        // Between two points the logarithm of the size is evenly spread.
                        let part = (share - before.1) / (to - before.1).max(1e-12);
                        let size = before.0.ln() + part * ((*size as f64).ln() - before.0.ln());
                        return size.exp() as u64;
                    }
                    before = (*size as f64, *to);
                }
                points[points.len() - 1].0
            }
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::List(sizes) => write!(f, "list:{sizes:?}"),
            Self::Uniform(low, high) => write!(f, "uniform:{low}-{high}"),
            Self::Lognormal(median, sigma) => write!(f, "lognormal:{median},{sigma}"),
            Self::Table(points) => write!(f, "table:{points:?}"),
        }
    }
}

/// A whole number that is fixed or varies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Always the same.
    Fixed(u32),
    /// Evenly spread between two ends.
    Range(u32, u32),
}

impl Count {
    /// Picks a number.
    pub fn pick(self, rng: &mut Rng) -> u32 {
        match self {
            Self::Fixed(number) => number,
            Self::Range(low, high) => low + rng.below(u64::from(high - low) + 1) as u32,
        }
    }

    /// The most it can be.
    pub fn most(self) -> u32 {
        match self {
            Self::Fixed(number) | Self::Range(_, number) => number,
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(number) => write!(f, "{number}"),
            Self::Range(low, high) => write!(f, "{low}-{high}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(Vec<u8>),
    Seq,
    Range(u64, u64),
}

/// Addresses from a pattern, `user{1-1000}@test.example` or `{seq}@...`, or from a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Addresses {
    choices: Vec<Vec<Piece>>,
}

impl Addresses {
    /// Reads one pattern.
    pub fn parse(pattern: &str) -> Result<Self, String> {
        Ok(Self {
            choices: vec![Self::pieces(pattern)?],
        })
    }

    /// Reads one pattern a line; empty lines and lines that start with # are skipped.
    pub fn parse_list(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim);
        let choices: Vec<_> = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(Self::pieces)
            .collect::<Result<_, _>>()?;
        if choices.is_empty() {
            Err("no address in the file".into())
        } else {
            Ok(Self { choices })
        }
    }

    fn pieces(pattern: &str) -> Result<Vec<Piece>, String> {
        if pattern
            .bytes()
            .any(|byte| byte <= b' ' || byte == b'<' || byte == b'>' || byte == 127)
        {
            return Err(format!(
                "address `{pattern}` has a character that no path may have"
            ));
        }
        if pattern.len() > 250 {
            return Err(format!("address `{pattern}` is longer than 250 bytes"));
        }
        let mut pieces = Vec::new();
        let mut rest = pattern;
        while let Some(open) = rest.find('{') {
            let close = rest[open..]
                .find('}')
                .ok_or(format!("`{pattern}`: no closing brace"))?
                + open;
            pieces.push(Piece::Text(rest[..open].into()));
            let word = &rest[open + 1..close];
            pieces.push(if word == "seq" {
                Piece::Seq
            } else {
                let range = word.split_once('-').and_then(|(low, high)| {
                    Some((low.parse::<u64>().ok()?, high.parse::<u64>().ok()?))
                });
                match range {
                    Some((low, high)) if low <= high => Piece::Range(low, high),
                    _ => return Err(format!("`{{{word}}}`: write {{seq}} or {{1-1000}}")),
                }
            });
            rest = &rest[close + 1..];
        }
        pieces.push(Piece::Text(rest.into()));
        Ok(pieces)
    }

    /// Appends the address chosen by `rng` for message `seq`.
    pub fn render(&self, seq: u64, rng: &mut Rng, out: &mut Vec<u8>) {
        let pick = if self.choices.len() == 1 {
            0
        } else {
            rng.below(self.choices.len() as u64)
        };
        for piece in &self.choices[pick as usize] {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                Piece::Seq => push_decimal(seq, 1, out),
                Piece::Range(low, high) => push_decimal(low + rng.below(high - low + 1), 1, out),
            }
        }
    }

    /// Returns the one address that there is, if it never varies.
    fn constant(&self) -> Option<&[u8]> {
        match &self.choices[..] {
            [pieces] => match &pieces[..] {
                [Piece::Text(text)] => Some(text),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether every address is ASCII.
    pub fn is_ascii(&self) -> bool {
        self.choices.iter().flatten().all(|piece| match piece {
            Piece::Text(text) => text.is_ascii(),
            _ => true,
        })
    }

    /// Returns the domain of each pattern.
    pub fn domains(&self) -> impl Iterator<Item = String> + '_ {
        self.choices.iter().map(|pieces| {
            let text: Vec<u8> = pieces
                .iter()
                .flat_map(|piece| match piece {
                    Piece::Text(text) => text.clone(),
                    _ => b"0".to_vec(),
                })
                .collect();
            let text = String::from_utf8_lossy(&text).into_owned();
            text.rsplit_once('@')
                .map_or(String::new(), |(_, domain)| domain.to_owned())
        })
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pieces) in self.choices.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            for piece in pieces {
                match piece {
                    Piece::Text(text) => f.write_str(&String::from_utf8_lossy(text))?,
                    Piece::Seq => f.write_str("{seq}")?,
                    Piece::Range(low, high) => write!(f, "{{{low}-{high}}}")?,
                }
            }
        }
        Ok(())
    }
}

/// AUTH with these credentials (RFC 4954).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// LOGIN instead of PLAIN.
    pub login: bool,
    /// Who.
    pub user: String,
    /// With which password.
    pub password: String,
}

/// What to ask of delivery status notifications (RFC 3461).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dsn {
    /// Value of NOTIFY (section 4.1), such as `SUCCESS,FAILURE` or `NEVER`.
    pub notify: String,
    /// Value of RET (section 4.3), `FULL` or `HDRS`.
    pub ret: &'static str,
    /// Whether RCPT states the original recipient (section 4.2).
    pub orcpt: bool,
}

impl Dsn {
    /// Reads `never` or a list of `success`, `failure`, `delay`; `full` or `hdrs` may stand with
    /// either and says what a notification should return, `hdrs` by default; `orcpt` adds ORCPT.
    ///
    /// **Errors**, in words: an unknown or repeated word, `never` with others, or none at all.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut notify, mut ret, mut orcpt) = (Vec::new(), None, false);
        for word in text.split(',') {
            let word = word.trim().to_ascii_uppercase();
            let fresh = match word.as_str() {
                // RFC 3461 4.3: one RET.
                "FULL" => ret.replace("FULL").is_none(),
                "HDRS" => ret.replace("HDRS").is_none(),
                "ORCPT" => !std::mem::replace(&mut orcpt, true),
                "NEVER" | "SUCCESS" | "FAILURE" | "DELAY" => {
                    let fresh = !notify.contains(&word);
                    notify.push(word);
                    fresh
                }
                _ => false,
            };
            if !fresh {
                return Err(format!(
                    "--dsn `{text}`: write never, or success, failure and delay with commas \
                     between, and full or hdrs and orcpt behind them"
                ));
            }
        }
        // RFC 3461 4.1: NEVER stands alone.
        if notify.is_empty() || (notify.len() > 1 && notify.iter().any(|word| word == "NEVER")) {
            return Err(format!(
                "--dsn `{text}` needs never alone, or some of success, failure and delay"
            ));
        }
        Ok(Self {
            notify: notify.join(","),
            ret: ret.unwrap_or("HDRS"),
            orcpt,
        })
    }
}

impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is off by default is named only when it is on: hashes of older reports stay valid.
        let orcpt = if self.orcpt { ":ORCPT" } else { "" };
        write!(f, "{}:{}{orcpt}", self.notify, self.ret)
    }
}

/// One message of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its number.
    pub seq: u64,
    /// How large it should be.
    pub size: u64,
    /// How many recipients it has.
    pub recipients: u32,
}

/// The workload.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Decides everything that varies.
    pub seed: u64,
    /// Marks the messages of this run.
    pub run: u64,
    /// Open or closed loop.
    pub mode: Mode,
    /// The most connections at one time.
    pub sessions: u32,
    /// End after this many.
    pub messages: Option<u64>,
    /// End after this time.
    pub duration_ns: Option<u64>,
    /// Time at the start that is not measured.
    pub warmup_ns: u64,
    /// Time at the end in which what is in flight may finish.
    pub drain_ns: u64,
    /// How long a reply may take.
    pub timeout_ns: u64,
    /// Spreads the starts of the sessions over this time.
    pub ramp_ns: u64,
    /// Closed loop: no message before all sessions are ready, and the clock starts then, as it does in an open one.
    pub connect_first: bool,
    /// Message sizes.
    pub sizes: Sizes,
    /// Recipients of a message.
    pub recipients: Count,
    /// Messages on one connection; 0 means all.
    pub per_connection: Count,
    /// Envelope senders.
    pub from: Addresses,
    /// Envelope recipients.
    pub to: Addresses,
    /// What to say in EHLO.
    pub helo: String,
    /// EHLO keywords to act upon as if the server had not offered them, in upper case; each is one of `EXTENSIONS`.
    pub ignored: Vec<String>,
    /// SMTP or LMTP.
    pub protocol: Protocol,
    /// Whether commands are grouped.
    pub pipelining: Pipelining,
    /// BDAT instead of DATA (RFC 3030).
    pub chunking: bool,
    /// When TLS starts.
    pub tls: TlsMode,
    /// Log in with this.
    pub auth: Option<Auth>,
    /// Attributes of an XCLIENT command.
    pub xclient: Option<String>,
    /// How a connection ends.
    pub quit: Quit,
    /// Open loop: points of a rate that changes, (ns from the start, messages a second), joined by
    /// straight lines. Empty: the rate of `mode` throughout.
    pub shape: Vec<(u64, f64)>,
    /// Open loop: when messages start, how large they are and for how many, instead of rate, sizes and recipients.
    pub trace: Option<Arc<Trace>>,
    /// Hash of the corpus, if one is sent; 0 otherwise.
    pub corpus: u64,
    /// Longest chunk of a message under BDAT, in bytes; 0 sends each message as one chunk.
    pub chunk: u64,
    /// SMTPUTF8 on MAIL when the server offers it (RFC 6531).
    pub smtputf8: bool,
    /// DSN parameters on MAIL and RCPT when the server offers them (RFC 3461).
    pub dsn: Option<Dsn>,
    /// The sessions that misbehave beside the others, as `--hostile` names them; empty without.
    pub hostile: String,
}

impl Plan {
    /// Whether sessions connect, and wait, before the clock starts.
    pub fn connects_first(&self) -> bool {
        match self.mode {
            Mode::Closed => self.connect_first,
            Mode::Open { by_connection, .. } => !by_connection,
        }
    }

    /// Returns message `seq`.
    pub fn message(&self, seq: u64) -> Spec {
        let row = |trace: &Arc<Trace>| trace.rows.get(usize::try_from(seq).ok()?).copied();
        if let Some(row) = self.trace.as_ref().and_then(row) {
            return Spec {
                seq,
                size: u64::from(row.size),
                recipients: row.recipients,
            };
        }
        let mut rng = Rng::keyed(self.seed, 1, seq);
        Spec {
            seq,
            size: self.sizes.pick(&mut rng),
            recipients: self.recipients.pick(&mut rng).max(1),
        }
    }

    /// Returns how many messages the `nth` connection of `session` carries; 0 means all.
    pub fn connection_length(&self, session: u64, nth: u64) -> u32 {
        self.per_connection
            .pick(&mut Rng::keyed(self.seed, mix(2 ^ session), nth))
    }

    /// Appends the sender of message `seq`.
    pub fn sender(&self, seq: u64, out: &mut Vec<u8>) {
        match self.from.constant() {
            Some(text) => out.extend_from_slice(text),
            None => self
                .from
                .render(seq, &mut Rng::keyed(self.seed, 3, seq), out),
        }
    }

    /// Appends the recipient number `index` of message `seq`.
    pub fn recipient(&self, seq: u64, index: u32, out: &mut Vec<u8>) {
        if let Some(text) = self.to.constant() {
            return out.extend_from_slice(text);
        }
        let mut rng = Rng::keyed(self.seed, 4 + u64::from(index), seq);
        self.to.render(seq, &mut rng, out);
    }

    /// Returns the words that `hash` is made from.
    pub fn text(&self) -> String {
        // What is off by default is named only when it is on: hashes of older reports stay valid.
        let mut text = format!(
            "seed={} mode={:?} sessions={} messages={:?} duration={:?} warmup={} ramp={} sizes={} \
             recipients={} per_connection={} from={} to={} helo={} protocol={:?} \
             pipelining={:?} chunking={} tls={:?} auth={} quit={:?} shape={:?} corpus={:016x}",
            self.seed,
            self.mode,
            self.sessions,
            self.messages,
            self.duration_ns,
            self.warmup_ns,
            self.ramp_ns,
            self.sizes,
            self.recipients,
            self.per_connection,
            self.from,
            self.to,
            self.helo,
            self.protocol,
            self.pipelining,
            self.chunking,
            self.tls,
            self.auth.is_some(),
            self.quit,
            self.shape,
            self.corpus,
        );
        if self.connect_first {
            text.push_str(" connect_first");
        }
        if self.chunk > 0 {
            text.push_str(&format!(" chunk={}", self.chunk));
        }
        if !self.ignored.is_empty() {
            text.push_str(&format!(" ignored={}", self.ignored.join(",")));
        }
        if self.smtputf8 {
            text.push_str(" smtputf8");
        }
        if let Some(trace) = &self.trace {
            text.push_str(&format!(" trace={:016x}", trace.hash));
        }
        if let Some(dsn) = &self.dsn {
            text.push_str(&format!(" dsn={dsn}"));
        }
        if !self.hostile.is_empty() {
            text.push_str(" hostile=");
            text.push_str(&self.hostile);
        }
        text
    }

    /// Returns a number that is equal for equal workloads. Run and target are not part of it.
    pub fn hash(&self) -> u64 {
        message::fold(self.text().as_bytes())
    }
}

/// The plan with what is needed to render its messages.
pub struct Workload {
    /// What to offer.
    pub plan: Plan,
    /// The text of the messages.
    pub filler: Filler,
    /// Real messages, to be sent instead of it when there are any.
    pub corpus: Corpus,
}

impl Workload {
    /// Returns which message of the corpus is message `seq`; nothing without a corpus.
    pub fn corpus_index(&self, seq: u64) -> Option<usize> {
        let count = self.corpus.entries.len() as u64;
        (count > 0).then(|| Rng::keyed(self.plan.seed, 8, seq).below(count) as usize)
    }

    /// Prepares the text.
    pub fn new(plan: Plan) -> Self {
        Self {
            plan,
            filler: Filler::new(),
            corpus: Corpus::default(),
        }
    }
}

/// Planned start times of one worker's messages, open loop.
#[derive(Clone, Debug)]
pub struct Schedule {
    rng: Rng,
    poisson: bool,
    /// Messages a second of this worker, when there is no shape.
    rate: f64,
    /// See `Plan::shape`: ns, and messages of this worker in one ns.
    shape: Vec<(f64, f64)>,
    /// Share of a message that is due before the first.
    first: f64,
    at: f64,
    seq: u64,
    step: u64,
    /// Times to keep to instead.
    trace: Option<Arc<Trace>>,
}

impl Schedule {
    /// Plans the share of worker `index` of `workers`.
    pub fn new(seed: u64, rate: f64, poisson: bool, index: u64, workers: u64) -> Self {
        let mut rng = Rng::keyed(seed, 9, index);
        let first = if poisson {
            rng.exponential()
        } else {
            index as f64 / workers as f64
        };
        let rate = rate / workers as f64;
        let at = first * 1e9 / rate;
        Self {
            rng,
            poisson,
            rate,
            shape: Vec::new(),
            first,
            at,
            seq: index,
            step: workers,
            trace: None,
        }
    }

    /// Makes messages start at the times of `trace`, if there is one; behind its last there is none.
    #[must_use]
    pub fn traced(mut self, trace: Option<Arc<Trace>>) -> Self {
        self.trace = trace;
        self
    }

    /// Makes the rate follow `shape` from the start.
    #[must_use]
    pub fn shaped(mut self, shape: &[(u64, f64)]) -> Self {
        if !shape.is_empty() {
            let share = |(at, rate): &(u64, f64)| (*at as f64, rate / self.step as f64 / 1e9);
            self.shape = shape.iter().map(share).collect();
            self.at = 0.0;
            self.at = self.later(self.first);
        }
        self
    }

    /// Returns the time at which `units` more messages than now are due, ns: the area below the
    /// shape from now to then is `units`.
    fn later(&self, mut units: f64) -> f64 {
        let mut at = self.at;
        if units <= 0.0 {
            return at;
        }
        for pair in self.shape.windows(2) {
            let ((from, low), (to, high)) = (pair[0], pair[1]);
            if to <= at || to <= from {
                continue;
            }
            if at < from {
                // Before the first point its rate holds.
                let area = low * (from - at);
                if area >= units {
                    return at + units / low;
                }
                units -= area;
                at = from;
            }
            let slope = (high - low) / (to - from);
            let now = low + slope * (at - from);
            let area = f64::midpoint(now, high) * (to - at);
            if area >= units {
                // now * x + slope * x^2 / 2 = units, in the form that is stable for small slopes.
                return at
                    + 2.0 * units / (now + (now * now + 2.0 * slope * units).max(0.0).sqrt());
            }
            units -= area;
            at = to;
        }
        // Behind the last point its rate holds, at least one an hour.
        let last = self.shape.last().map_or(self.rate / 1e9, |(_, rate)| *rate);
        at + units / last.max(1.0 / 3.6e12)
    }

    /// Returns the number of the next message and when it starts, ns from the start of the run.
    pub fn next(&self) -> (u64, u64) {
        let at = match &self.trace {
            None => self.at as u64,
            Some(trace) => usize::try_from(self.seq)
                .ok()
                .and_then(|seq| trace.rows.get(seq))
                .map_or(u64::MAX, |row| row.at_ns),
        };
        (self.seq, at)
    }

    /// Goes on to the message after it.
    pub fn advance(&mut self) {
        self.seq += self.step;
        let units = if self.poisson {
            self.rng.exponential()
        } else {
            1.0
        };
        self.at = self.later(units);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small plan to start tests from.
    pub fn plan() -> Plan {
        Plan {
            run: 0xabc,
            sessions: 1,
            messages: Some(1),
            drain_ns: 1_000_000_000,
            timeout_ns: 5_000_000_000,
            sizes: Sizes::Fixed(1000),
            to: Addresses::parse("user{seq}@test.example").unwrap(),
            ..crate::cli::default_plan()
        }
    }

    #[test]
    fn message_n_depends_on_the_seed_alone() {
        let mut varied = plan();
        varied.sizes = Sizes::Uniform(1000, 9000);
        varied.recipients = Count::Range(1, 5);
        let list = |plan: &Plan| (0..100).map(|seq| plan.message(seq)).collect::<Vec<_>>();
        let mut other = varied.clone();
        assert_eq!(list(&varied), list(&other));
        assert_eq!(varied.hash(), other.hash());
        other.seed = 2;
        assert_ne!(list(&varied), list(&other));
        assert_ne!(varied.hash(), other.hash());
        assert!(
            list(&varied)
                .iter()
                .all(|m| (1000..=9000).contains(&m.size))
        );
        assert!(
            list(&varied)
                .iter()
                .all(|m| (1..=5).contains(&m.recipients))
        );
    }

    #[test]
    fn dsn_words_become_parameters_and_nonsense_is_refused() {
        let dsn = |text: &str| Dsn::parse(text).map(|dsn| dsn.to_string()).ok();
        assert_eq!(
            dsn("success,failure"),
            Some("SUCCESS,FAILURE:HDRS".to_owned())
        );
        assert_eq!(dsn("full,delay"), Some("DELAY:FULL".to_owned()));
        assert_eq!(dsn("never,orcpt"), Some("NEVER:HDRS:ORCPT".to_owned()));
        assert_eq!(dsn("never,orcpt,orcpt"), None);
        assert_eq!(dsn("NEVER"), Some("NEVER:HDRS".to_owned()));
        for wrong in [
            "",
            "full",
            "never,delay",
            "delay,delay",
            "full,hdrs,delay",
            "x",
        ] {
            assert_eq!(dsn(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn patterns_give_numbers_within_their_range() {
        let addresses = Addresses::parse("u{5-7}+{seq}@x.example").unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for seq in 0..50 {
            let mut out = Vec::new();
            addresses.render(seq, &mut Rng::keyed(1, 0, seq), &mut out);
            let text = String::from_utf8(out).unwrap();
            assert!(text.ends_with(&format!("+{seq}@x.example")), "{text}");
            seen.insert(text[1..2].to_owned());
        }
        assert_eq!(seen.into_iter().collect::<String>(), "567");
        assert!(Addresses::parse("a b@c").is_err());
        assert!(Addresses::parse("a{9-1}@c").is_err());
        assert!(Addresses::parse("a{1@c").is_err());
        assert_eq!(addresses.domains().collect::<Vec<_>>(), ["x.example"]);
    }

    #[test]
    fn a_constant_schedule_is_evenly_spaced_across_workers() {
        let mut times = Vec::new();
        for index in 0..4 {
            let mut schedule = Schedule::new(1, 1000.0, false, index, 4);
            for _ in 0..250 {
                times.push(schedule.next());
                schedule.advance();
            }
        }
        times.sort_unstable();
        for (n, (seq, at)) in times.iter().enumerate() {
            assert_eq!(*seq, n as u64);
            assert!(at.abs_diff(n as u64 * 1_000_000) <= 1, "{n} {at}");
        }
    }

    #[test]
    fn a_shape_gives_the_area_below_it() {
        // Up from 0 to 2,000 in 10 s, then a step to 500 for 10 s: 10,000 and 5,000 messages.
        let second = 1_000_000_000;
        let shape = [
            (0, 0.0),
            (10 * second, 2000.0),
            (10 * second, 500.0),
            (20 * second, 500.0),
        ];
        for poisson in [false, true] {
            let mut counts = [0i64; 2];
            for index in 0..2 {
                let mut schedule = Schedule::new(1, 2000.0, poisson, index, 2).shaped(&shape);
                while schedule.next().1 < 20 * second {
                    counts[(schedule.next().1 / (10 * second)) as usize] += 1;
                    schedule.advance();
                }
            }
            let slack = if poisson { 400 } else { 3 };
            assert!((counts[0] - 10_000).abs() < slack, "{counts:?}");
            assert!((counts[1] - 5000).abs() < slack, "{counts:?}");
        }
    }

    #[test]
    fn a_poisson_schedule_keeps_its_rate() {
        let mut schedule = Schedule::new(1, 1000.0, true, 0, 1);
        for _ in 0..100_000 {
            schedule.advance();
        }
        let seconds = schedule.next().1 as f64 / 1e9;
        assert!((seconds - 100.0).abs() < 2.0, "{seconds}");
    }

    #[test]
    fn a_size_table_gives_its_shares() {
        let mut table = plan();
        table.sizes = Sizes::Table(vec![(2048, 0.25), (4096, 0.5), (65536, 1.0)]);
        let small = (0..10_000)
            .filter(|seq| table.message(*seq).size <= 4096)
            .count();
        assert!((4800..5200).contains(&small), "{small}");
    }
}
