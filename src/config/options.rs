//! The one table of options. Flags, keys of the configuration file, the help text, `check-config` and the table
//! in `docs/operations.md` all come from [`OPTIONS`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::listen::{LISTEN_ALLOWED, Listen};
use super::units::{
    DURATION_ALLOWED, SIZE_ALLOWED, duration_text, parse_duration, parse_size, quoted, size_text,
};
use super::{
    AuthBy, BareNewlines, CommitAlign, Config, Full, LogFormat, LogLevel, OnStorageFailure,
    RingWrite, SubaddressSeparator, Survive,
};
use crate::ip_prefix::IpPrefix;
use crate::limits::{GIB, HOLD_S_MAX, HOPS_MAX_MAX, KIB, MIB, RING_BYTES_MIN, WORKERS_MAX};
use crate::policy::clients::Limit;
use crate::policy::recipients::Recipients;
use crate::tls::credentials::ClientCertificates;

/// One option of `ringmx serve`.
pub struct Opt {
    /// Name: `--name` on the command line, `name` in the file.
    pub name: &'static str,
    /// Heading it stands under.
    pub group: Group,
    /// What its value may be.
    pub kind: Kind,
    /// What it does, one line.
    pub help: &'static str,
    /// Stores checked values; one for every kind that is no list, see [`Kind::is_list`].
    set: fn(&mut Config, &[Setting]),
    /// The values stored now.
    show: fn(&Config) -> Vec<Setting>,
}

/// Headings of the help text, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Addresses and names.
    Addresses,
    /// TLS.
    Tls,
    /// Who may connect, and for whom mail is taken.
    Access,
    /// Ring log and durability.
    Storage,
    /// What is accepted.
    Limits,
    /// What one client may use.
    Clients,
    /// Time limits.
    Time,
    /// Latency against processor time.
    Speed,
    /// Log lines.
    Log,
}

impl Group {
    /// All groups in the order of the help text.
    pub const ALL: [Group; 9] = [
        Group::Addresses,
        Group::Tls,
        Group::Access,
        Group::Storage,
        Group::Limits,
        Group::Clients,
        Group::Time,
        Group::Speed,
        Group::Log,
    ];

    /// Heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::Addresses => "Addresses",
            Group::Tls => "TLS and authentication",
            Group::Access => "Who may send",
            Group::Storage => "Storage",
            Group::Limits => "Limits",
            Group::Clients => "Limits per client",
            Group::Time => "Time limits",
            Group::Speed => "Speed",
            Group::Log => "Log",
        }
    }
}

/// What the value of an option may be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Present or absent; `true` or `false` in the file.
    Flag,
    /// Listening address and what is said of it; may be given more than once, an array in the file.
    Listen,
    /// Network in CIDR notation; may be given more than once, an array in the file.
    Networks,
    /// Domain, address or address literal that mail is taken for; may be given more than once, an array in the
    /// file.
    Recipients,
    /// IP address and port, or `off`.
    AddressOrOff,
    /// Path of a file or directory.
    Path,
    /// Path of a file; may be given more than once, an array in the file.
    Paths,
    /// Path of a file, or `off`.
    PathOrOff,
    /// Text of at most 255 bytes without control characters; the word names it in the help.
    Text(&'static str),
    /// Whole number within bounds.
    Integer {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// Limit with its value for stress: two whole numbers, or two sizes.
    Limit {
        /// Largest.
        max: u64,
        /// Whether they are bytes.
        bytes: bool,
    },
    /// Bytes within bounds.
    Size {
        /// Smallest, bytes.
        min: u64,
        /// Largest, bytes.
        max: u64,
    },
    /// Time within bounds.
    Duration {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
        /// Whether `off` is allowed.
        off: bool,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// A value that passed the checks of its [`Kind`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `off`, or nothing.
    Off,
    /// Flag.
    Flag(bool),
    /// Address.
    Address(SocketAddr),
    /// Listening address.
    Listen(Box<Listen>),
    /// Network.
    Network(IpPrefix),
    /// Path or text.
    Text(String),
    /// Integer or bytes.
    Number(u64),
    /// Limit.
    Limit(Limit),
    /// Time.
    Time(Duration),
    /// Index into the words of a [`Kind::Choice`].
    Choice(usize),
}

impl Kind {
    /// Whether the option may be given more than once.
    pub fn is_list(self) -> bool {
        matches!(
            self,
            Kind::Listen | Kind::Networks | Kind::Recipients | Kind::Paths
        )
    }

    /// The values that one argument of a flag holds: networks and recipients may be separated by commas.
    pub(super) fn words(self, text: &str) -> impl Iterator<Item = &str> {
        let most = match self {
            Kind::Networks | Kind::Recipients => usize::MAX,
            _ => 1,
        };
        text.splitn(most, ',')
    }

    /// Word that stands for the value in the help; empty for a flag.
    pub fn value_name(self) -> String {
        match self {
            Kind::Flag => String::new(),
            Kind::Listen => "ADDR[,...]".to_owned(),
            Kind::Networks => "CIDR".to_owned(),
            Kind::Recipients => "NAME".to_owned(),
            Kind::PathOrOff => "FILE|off".to_owned(),
            Kind::AddressOrOff => "ADDR|off".to_owned(),
            Kind::Path | Kind::Paths => "PATH".to_owned(),
            Kind::Text(name) => name.to_owned(),
            Kind::Integer { .. } => "N".to_owned(),
            Kind::Limit { bytes: false, .. } => "N[,N]|off".to_owned(),
            Kind::Limit { bytes: true, .. } => "SIZE[,SIZE]|off".to_owned(),
            Kind::Size { .. } => "SIZE".to_owned(),
            Kind::Duration { off: false, .. } => "TIME".to_owned(),
            Kind::Duration { off: true, .. } => "TIME|off".to_owned(),
            Kind::Choice(words) => words.join("|"),
        }
    }

    /// What is allowed, as error messages and documents say it.
    pub fn allowed(self) -> String {
        match self {
            Kind::Flag => "true or false".to_owned(),
            Kind::Listen => LISTEN_ALLOWED.to_owned(),
            Kind::Networks => NETWORK_ALLOWED.to_owned(),
            Kind::Recipients => RECIPIENT_ALLOWED.to_owned(),
            Kind::PathOrOff => "off, or a path".to_owned(),
            Kind::AddressOrOff => format!("off, or {ADDRESS_ALLOWED}"),
            Kind::Path | Kind::Paths => "a path".to_owned(),
            Kind::Text(_) => "text of 1 to 255 bytes without control characters".to_owned(),
            Kind::Integer { min, max } => format!("{min} to {max}"),
            Kind::Limit { max, bytes } => {
                let most = limit_text(max, bytes);
                format!(
                    "off, or up to {most}, and behind a comma no more than that for stress (a fifth if not given)"
                )
            }
            Kind::Size { min, max } => format!("{} to {}", size_text(min), size_text(max)),
            Kind::Duration { min, max, off } => format!(
                "{}{} to {}",
                if off { "off, or " } else { "" },
                duration_text(min),
                duration_text(max)
            ),
            Kind::Choice(words) => words.join(", "),
        }
    }

    /// Checks one value.
    ///
    /// # Errors
    /// A phrase that says what is wrong and what is allowed.
    pub fn parse(self, text: &str) -> Result<Setting, String> {
        match self {
            Kind::Flag => match text {
                "true" => Ok(Setting::Flag(true)),
                "false" => Ok(Setting::Flag(false)),
                _ => Err(refused(text, &self.allowed())),
            },
            Kind::AddressOrOff if text == "off" => Ok(Setting::Off),
            Kind::Listen => Listen::parse(text).map(|listen| Setting::Listen(Box::new(listen))),
            Kind::Networks | Kind::Recipients if text == "none" => Ok(Setting::Off),
            Kind::Networks => match text.parse() {
                Ok(network) => Ok(Setting::Network(network)),
                Err(error) => Err(format!("{}: {error}", quoted(text))),
            },
            Kind::Recipients => match Recipients::new(None).add(text.as_bytes()) {
                Ok(()) => Ok(Setting::Text(text.to_owned())),
                Err(_) => Err(refused(text, &self.allowed())),
            },
            Kind::AddressOrOff => parse_address(text).map(Setting::Address),
            Kind::PathOrOff if text == "off" => Ok(Setting::Off),
            Kind::Path | Kind::Paths | Kind::PathOrOff
                if text.is_empty() || text.contains('\0') =>
            {
                Err(refused(text, &self.allowed()))
            }
            Kind::Path | Kind::Paths | Kind::PathOrOff => Ok(Setting::Text(text.to_owned())),
            Kind::Text(_) => {
                if (1..=255).contains(&text.len()) && !text.contains(char::is_control) {
                    Ok(Setting::Text(text.to_owned()))
                } else {
                    Err(refused(text, &self.allowed()))
                }
            }
            Kind::Integer { min, max } => match text.parse() {
                Ok(number) if (min..=max).contains(&number) && !text.starts_with('+') => {
                    Ok(Setting::Number(number))
                }
                _ => Err(refused(text, &self.allowed())),
            },
            Kind::Limit { max, bytes } => {
                parse_limit(text, max, bytes).ok_or_else(|| refused(text, &self.allowed()))
            }
            Kind::Size { min, max } => match parse_size(text)? {
                bytes if (min..=max).contains(&bytes) => Ok(Setting::Number(bytes)),
                _ => Err(refused(text, &self.allowed())),
            },
            Kind::Duration { off: true, .. } if text == "off" => Ok(Setting::Off),
            Kind::Duration { min, max, .. } => match parse_duration(text)? {
                time if (min..=max).contains(&time) => Ok(Setting::Time(time)),
                _ => Err(refused(text, &self.allowed())),
            },
            Kind::Choice(words) => words
                .iter()
                .position(|word| *word == text)
                .map(Setting::Choice)
                .ok_or_else(|| refused(text, &self.allowed())),
        }
    }

    /// The text [`Kind::parse`] reads back as `setting`; for a file, quoted where TOML wants it.
    fn text(self, setting: &Setting) -> String {
        match (self, setting) {
            (_, Setting::Off) => "off".to_owned(),
            (_, Setting::Flag(on)) => on.to_string(),
            (_, Setting::Address(address)) => address.to_string(),
            (_, Setting::Listen(listen)) => listen.to_string(),
            (_, Setting::Network(network)) => network.to_string(),
            (_, Setting::Text(text)) => text.clone(),
            (Kind::Size { .. }, Setting::Number(bytes)) => size_text(*bytes),
            (Kind::Limit { bytes, .. }, Setting::Limit(limit)) => match limit {
                Limit {
                    normal: 0,
                    stress: 0,
                } => "off".to_owned(),
                Limit { normal, stress } => {
                    format!(
                        "{},{}",
                        limit_text(*normal, bytes),
                        limit_text(*stress, bytes)
                    )
                }
            },
            (_, Setting::Limit(limit)) => format!("{},{}", limit.normal, limit.stress),
            (_, Setting::Number(number)) => number.to_string(),
            (_, Setting::Time(time)) => duration_text(*time),
            (Kind::Choice(words), Setting::Choice(at)) => {
                (*words.get(*at).unwrap_or(&"")).to_owned()
            }
            (_, Setting::Choice(at)) => at.to_string(),
        }
    }
}

impl Opt {
    /// The option of this name.
    pub fn named(name: &str) -> Option<&'static Opt> {
        OPTIONS.iter().find(|option| option.name == name)
    }

    /// Stores `values`, which [`Kind::parse`] of this option made.
    pub fn store(&self, config: &mut Config, values: &[Setting]) {
        (self.set)(config, values);
    }

    /// The value in `config` as a flag's argument would be written; several listening addresses, which are flags of
    /// their own, are separated by a comma and a space.
    pub fn text(&self, config: &Config) -> String {
        let shown = (self.show)(config);
        let texts: Vec<String> = shown.iter().map(|s| self.kind.text(s)).collect();
        texts.join(if matches!(self.kind, Kind::Listen) {
            ", "
        } else {
            ","
        })
    }

    /// The value in `config` as a line of a configuration file; `None` where there is none to write.
    pub fn toml(&self, config: &Config) -> Option<String> {
        let shown = (self.show)(config);
        let is_unset = matches!(self.kind, Kind::Text(_)) && shown == [Setting::Off];
        // A list that is empty by default needs no line; one that is not needs one to be empty.
        let is_empty = shown.is_empty() && (self.show)(&Config::default()).is_empty();
        if is_unset || is_empty {
            return None;
        }
        let literal = |setting: &Setting| match (self.kind, setting) {
            (Kind::Flag, _) | (Kind::Integer { .. }, _) => self.kind.text(setting),
            _ => toml_string(&self.kind.text(setting)),
        };
        let value = match self.kind {
            kind if kind.is_list() => {
                let items: Vec<String> = shown.iter().map(literal).collect();
                format!("[{}]", items.join(", "))
            }
            _ => shown.first().map(literal).unwrap_or_default(),
        };
        Some(format!("{} = {value}", self.name))
    }
}

/// A TOML basic string.
fn toml_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// One part of a limit; `off` for none.
fn limit_text(value: u64, bytes: bool) -> String {
    match value {
        0 => "off".to_owned(),
        value if bytes => size_text(value),
        value => value.to_string(),
    }
}

/// `off`, `N`, `N,M` with an M that is not above N, or `off,M`.
fn parse_limit(text: &str, max: u64, bytes: bool) -> Option<Setting> {
    let value = |text: &str| match text {
        "off" => Some(0),
        text if bytes => parse_size(text).ok(),
        text if text.starts_with('+') => None,
        text => text.parse().ok(),
    };
    let in_bounds = |value: &u64| (0..=max).contains(value);
    let (normal_text, stress_text) = match text.split_once(',') {
        Some((normal, stress)) => (normal, Some(stress)),
        None => (text, None),
    };
    let normal: u64 = value(normal_text).filter(in_bounds)?;
    let stress = match stress_text {
        Some(text) => value(text).filter(in_bounds)?,
        None => normal.div_ceil(STRESS_PART),
    };
    // A nought would be no limit, which has a word of its own.
    let says_zero = |text: &str, value: u64| value == 0 && text != "off";
    if says_zero(normal_text, normal) || stress_text.is_some_and(|text| says_zero(text, stress)) {
        return None;
    }
    // Stress narrows a limit, and never lifts it.
    if normal != 0 && (stress == 0 || stress > normal) {
        return None;
    }
    Some(Setting::Limit(Limit { normal, stress }))
}

fn first_limit(values: &[Setting]) -> Limit {
    match values {
        [Setting::Limit(limit), ..] => *limit,
        _ => Limit::default(),
    }
}

/// Under stress a limit for which nothing else was said is this part of itself.
const STRESS_PART: u64 = 5;
/// Most of anything that is counted for a client.
const COUNT_MAX: u64 = 1_000_000_000;

const fn count_limit() -> Kind {
    Kind::Limit {
        max: COUNT_MAX,
        bytes: false,
    }
}

fn refused(text: &str, allowed: &str) -> String {
    format!("{} is not allowed; allowed: {allowed}", quoted(text))
}

/// What an entry of a list of recipients may be, as the manual says it.
const RECIPIENT_ALLOWED: &str = "example.org for all of a domain, .example.org for all domains below it, user@example.org, \
     or [192.0.2.1] for an address literal";
/// What a network may be, as the manual says it.
const NETWORK_ALLOWED: &str = "an IP address, or one with the number of bits that count, such as 192.0.2.0/24 or 2001:db8::/32";
const ADDRESS_ALLOWED: &str =
    "an IP address and a port, such as 127.0.0.1:2525 or [::1]:2525 (names are not looked up)";

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| refused(text, ADDRESS_ALLOWED))
}

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

const fn time_limit() -> Kind {
    Kind::Duration {
        min: SECOND,
        max: DAY,
        off: false,
    }
}

fn first_number(values: &[Setting]) -> u64 {
    match values {
        [Setting::Number(number), ..] => *number,
        _ => 0,
    }
}

fn first_u32(values: &[Setting]) -> u32 {
    u32::try_from(first_number(values)).unwrap_or(u32::MAX)
}

fn first_flag(values: &[Setting]) -> bool {
    matches!(values, [Setting::Flag(true), ..])
}

fn first_text(values: &[Setting]) -> String {
    match values {
        [Setting::Text(text), ..] => text.clone(),
        _ => String::new(),
    }
}

fn first_time(values: &[Setting]) -> Option<Duration> {
    match values {
        [Setting::Time(time), ..] => Some(*time),
        _ => None,
    }
}

fn first_choice<T: Copy + Default>(values: &[Setting], all: &[T]) -> T {
    match values {
        [Setting::Choice(at), ..] => all.get(*at).copied().unwrap_or_default(),
        _ => T::default(),
    }
}

fn addresses(values: &[Setting]) -> Vec<SocketAddr> {
    values
        .iter()
        .filter_map(|value| match value {
            Setting::Address(address) => Some(*address),
            _ => None,
        })
        .collect()
}

fn listens(values: &[Setting]) -> Vec<Listen> {
    values
        .iter()
        .filter_map(|value| match value {
            Setting::Listen(listen) => Some(Listen::clone(listen)),
            _ => None,
        })
        .collect()
}

fn networks(values: &[Setting]) -> Vec<IpPrefix> {
    values
        .iter()
        .filter_map(|value| match value {
            Setting::Network(network) => Some(*network),
            _ => None,
        })
        .collect()
}

fn paths(values: &[Setting]) -> Vec<PathBuf> {
    values
        .iter()
        .filter_map(|value| match value {
            Setting::Text(text) => Some(PathBuf::from(text)),
            _ => None,
        })
        .collect()
}

fn texts(values: &[Setting]) -> Vec<String> {
    values
        .iter()
        .filter_map(|value| match value {
            Setting::Text(text) => Some(text.clone()),
            _ => None,
        })
        .collect()
}

fn path_settings(paths: &[PathBuf]) -> Vec<Setting> {
    let texts = paths.iter().map(|path| path.display().to_string());
    texts.map(Setting::Text).collect()
}

fn text_settings(texts: &[String]) -> Vec<Setting> {
    texts.iter().cloned().map(Setting::Text).collect()
}

fn network_settings(networks: &[IpPrefix]) -> Vec<Setting> {
    networks.iter().copied().map(Setting::Network).collect()
}

fn path_or_none(values: &[Setting]) -> Option<PathBuf> {
    texts(values).first().map(PathBuf::from)
}

fn path_setting(path: &Option<PathBuf>) -> Vec<Setting> {
    vec![match path {
        Some(path) => Setting::Text(path.display().to_string()),
        None => Setting::Off,
    }]
}

fn listen_settings(listens: &[Listen]) -> Vec<Setting> {
    let settings = listens.iter().cloned().map(Box::new);
    settings.map(Setting::Listen).collect()
}

fn time_or_zero(values: &[Setting]) -> Duration {
    first_time(values).unwrap_or_default()
}

fn text_or_off(text: &str) -> Vec<Setting> {
    vec![if text.is_empty() {
        Setting::Off
    } else {
        Setting::Text(text.to_owned())
    }]
}

fn time_or_off(time: Option<Duration>) -> Vec<Setting> {
    vec![time.map_or(Setting::Off, Setting::Time)]
}

/// Every option but `--config`, in the order of the help text.
pub static OPTIONS: &[Opt] = &[
    Opt {
        name: "listen",
        group: Group::Addresses,
        kind: Kind::Listen,
        help: "address that takes mail; may be given up to 16 times; none if only the next two are given",
        set: |c, v| c.listen = listens(v),
        show: |c| listen_settings(&c.listen),
    },
    Opt {
        name: "listen-tls",
        group: Group::Addresses,
        kind: Kind::Listen,
        help: "address where connections begin with a TLS handshake; as --listen with tls=implicit",
        set: |c, v| c.listen_tls = listens(v),
        show: |c| listen_settings(&c.listen_tls),
    },
    Opt {
        name: "listen-submission",
        group: Group::Addresses,
        kind: Kind::Listen,
        help: "address that takes mail from users; as --listen with role=submission,tls=required",
        set: |c, v| c.listen_submission = listens(v),
        show: |c| listen_settings(&c.listen_submission),
    },
    Opt {
        name: "http",
        group: Group::Addresses,
        kind: Kind::AddressOrOff,
        help: "address of the status page, /healthz, /readyz, /status and /metrics",
        set: |c, v| c.http = addresses(v).first().copied(),
        show: |c| vec![c.http.map_or(Setting::Off, Setting::Address)],
    },
    Opt {
        name: "proxy-from",
        group: Group::Addresses,
        kind: Kind::Networks,
        help: "network whose PROXY headers are believed, where a listener says proxy=; may be given up to 256 times",
        set: |c, v| c.proxy_from = networks(v),
        show: |c| network_settings(&c.proxy_from),
    },
    Opt {
        name: "xclient-from",
        group: Group::Addresses,
        kind: Kind::Networks,
        help: "network whose clients may say by XCLIENT who theirs are; may be given up to 256 times",
        set: |c, v| c.xclient_from = networks(v),
        show: |c| {
            c.xclient_from
                .iter()
                .copied()
                .map(Setting::Network)
                .collect()
        },
    },
    Opt {
        name: "xforward-from",
        group: Group::Addresses,
        kind: Kind::Networks,
        help: "network whose clients may say by XFORWARD where mail came from; may be given up to 256 times",
        set: |c, v| c.xforward_from = networks(v),
        show: |c| {
            c.xforward_from
                .iter()
                .copied()
                .map(Setting::Network)
                .collect()
        },
    },
    Opt {
        name: "server-name",
        group: Group::Addresses,
        kind: Kind::Text("DOMAIN"),
        help: "name in the greeting and in Received fields; the system's host name if not given",
        set: |c, v| c.server_name = first_text(v),
        show: |c| text_or_off(&c.server_name),
    },
    Opt {
        name: "group",
        group: Group::Addresses,
        kind: Kind::Text("NAME"),
        help: "system group whose members may read the ring; nobody else if not given",
        set: |c, v| c.group = first_text(v),
        show: |c| text_or_off(&c.group),
    },
    Opt {
        name: "user",
        group: Group::Addresses,
        kind: Kind::Text("NAME"),
        help: "system user to become when the sockets are bound; the starting user if not given",
        set: |c, v| c.user = first_text(v),
        show: |c| text_or_off(&c.user),
    },
    Opt {
        name: "core-dumps",
        group: Group::Addresses,
        kind: Kind::Flag,
        help: "a crash may write memory, with the mail in it, to a core file",
        set: |c, v| c.core_dumps = first_flag(v),
        show: |c| vec![Setting::Flag(c.core_dumps)],
    },
    Opt {
        name: "tls-cert",
        group: Group::Tls,
        kind: Kind::Paths,
        help: "certificate chain in PEM, server's first; may be given up to 256 times, chosen by the name asked for",
        set: |c, v| c.tls_cert = paths(v),
        show: |c| path_settings(&c.tls_cert),
    },
    Opt {
        name: "tls-key",
        group: Group::Tls,
        kind: Kind::Paths,
        help: "private key in PEM; one for each --tls-cert, in their order",
        set: |c, v| c.tls_key = paths(v),
        show: |c| path_settings(&c.tls_key),
    },
    Opt {
        name: "tls-self-signed",
        group: Group::Tls,
        kind: Kind::Flag,
        help: "use a certificate that the first start makes and keeps in the ring's directory",
        set: |c, v| c.tls_self_signed = first_flag(v),
        show: |c| vec![Setting::Flag(c.tls_self_signed)],
    },
    Opt {
        name: "tls-client-ca",
        group: Group::Tls,
        kind: Kind::PathOrOff,
        help: "authorities in PEM that clients' certificates are checked against",
        set: |c, v| c.tls_client_ca = path_or_none(v),
        show: |c| path_setting(&c.tls_client_ca),
    },
    Opt {
        name: "tls-client-cert",
        group: Group::Tls,
        kind: Kind::Choice(&ClientCertificates::NAMES),
        help: "certificate of the client: not asked for, asked for and stored with the mail, or a must",
        set: |c, v| c.tls_client_cert = first_choice(v, &ClientCertificates::ALL),
        show: |c| vec![Setting::Choice(c.tls_client_cert as usize)],
    },
    Opt {
        name: "tls-handshakes",
        group: Group::Tls,
        kind: Kind::Integer {
            min: 1,
            max: 100_000,
        },
        help: "TLS handshakes under way at the same time; further ones are refused",
        set: |c, v| c.tls_handshakes = usize::try_from(first_number(v)).unwrap_or(usize::MAX),
        show: |c| vec![Setting::Number(c.tls_handshakes as u64)],
    },
    Opt {
        name: "users",
        group: Group::Tls,
        kind: Kind::PathOrOff,
        help: "file of users for AUTH, made by `ringmx users add`; read again when it changes and on SIGHUP",
        set: |c, v| c.users = path_or_none(v),
        show: |c| path_setting(&c.users),
    },
    Opt {
        name: "auth",
        group: Group::Tls,
        kind: Kind::Choice(&AuthBy::NAMES),
        help: "who may authenticate: the users of --users, or anybody with any password (sinks only)",
        set: |c, v| c.auth = first_choice(v, &AuthBy::ALL),
        show: |c| vec![Setting::Choice(c.auth as usize)],
    },
    Opt {
        name: "auth-without-tls",
        group: Group::Tls,
        kind: Kind::Flag,
        help: "offer AUTH in the clear too: whoever listens in reads the passwords",
        set: |c, v| c.auth_without_tls = first_flag(v),
        show: |c| vec![Setting::Flag(c.auth_without_tls)],
    },
    Opt {
        name: "accept-domain",
        group: Group::Access,
        kind: Kind::Recipients,
        help: "for whom role=mx takes mail, separated by commas; may be given up to 1024 times",
        set: |c, v| c.accept_domain = texts(v),
        show: |c| text_settings(&c.accept_domain),
    },
    Opt {
        name: "recipients-file",
        group: Group::Access,
        kind: Kind::PathOrOff,
        help: "the same, one a line, read again when it changes and on SIGHUP",
        set: |c, v| c.recipients_file = path_or_none(v),
        show: |c| path_setting(&c.recipients_file),
    },
    Opt {
        name: "subaddress-separator",
        group: Group::Access,
        kind: Kind::Choice(&SubaddressSeparator::NAMES),
        help: "what begins the part of a local part that does not name the mailbox (RFC 5233)",
        set: |c, v| c.subaddress_separator = first_choice(v, &SubaddressSeparator::ALL),
        show: |c| vec![Setting::Choice(c.subaddress_separator as usize)],
    },
    Opt {
        name: "accept-any-recipient",
        group: Group::Access,
        kind: Kind::Flag,
        help: "take mail for everybody, also from beyond this machine",
        set: |c, v| c.accept_any_recipient = first_flag(v),
        show: |c| vec![Setting::Flag(c.accept_any_recipient)],
    },
    Opt {
        name: "allow-from",
        group: Group::Access,
        kind: Kind::Networks,
        help: "network that may connect, and no other; may be given up to 256 times, separated by commas",
        set: |c, v| c.allow_from = networks(v),
        show: |c| network_settings(&c.allow_from),
    },
    Opt {
        name: "allow-from-file",
        group: Group::Access,
        kind: Kind::PathOrOff,
        help: "the same, one a line, read again when it changes and on SIGHUP",
        set: |c, v| c.allow_from_file = path_or_none(v),
        show: |c| path_setting(&c.allow_from_file),
    },
    Opt {
        name: "deny-from",
        group: Group::Access,
        kind: Kind::Networks,
        help: "network that may not connect, whatever allows it; up to 256 times, separated by commas",
        set: |c, v| c.deny_from = networks(v),
        show: |c| network_settings(&c.deny_from),
    },
    Opt {
        name: "deny-from-file",
        group: Group::Access,
        kind: Kind::PathOrOff,
        help: "the same, one a line, read again when it changes and on SIGHUP",
        set: |c, v| c.deny_from_file = path_or_none(v),
        show: |c| path_setting(&c.deny_from_file),
    },
    Opt {
        name: "ring",
        group: Group::Storage,
        kind: Kind::Path,
        help: "directory of the ring log; created if missing",
        set: |c, v| c.ring = PathBuf::from(first_text(v)),
        show: |c| vec![Setting::Text(c.ring.display().to_string())],
    },
    Opt {
        name: "ring-size",
        group: Group::Storage,
        kind: Kind::Size {
            min: RING_BYTES_MIN,
            max: 16 * 1024 * GIB,
        },
        help: "size of the ring when it is created, rounded up to 2MiB",
        set: |c, v| c.ring_size = first_number(v),
        show: |c| vec![Setting::Number(c.ring_size)],
    },
    Opt {
        name: "survive",
        group: Group::Storage,
        kind: Kind::Choice(&Survive::NAMES),
        help: "what an acknowledged message survives: nothing, kill -9, or power loss",
        set: |c, v| c.survive = first_choice(v, &Survive::ALL),
        show: |c| vec![Setting::Choice(c.survive as usize)],
    },
    Opt {
        name: "full",
        group: Group::Storage,
        kind: Kind::Choice(&Full::NAMES),
        help: "a full ring: defer new mail, overwrite the oldest, or auto: defer if a consumer is registered",
        set: |c, v| c.full = first_choice(v, &Full::ALL),
        show: |c| vec![Setting::Choice(c.full as usize)],
    },
    Opt {
        name: "keep-for",
        group: Group::Storage,
        kind: Kind::Duration {
            min: SECOND,
            max: Duration::from_secs(86_400 * 36_500),
            off: true,
        },
        help: "mail that no consumer holds is removed at this age, sooner where its space is needed",
        set: |c, v| c.keep_for = first_time(v),
        show: |c| time_or_off(c.keep_for),
    },
    Opt {
        name: "ring-write",
        group: Group::Storage,
        kind: Kind::Choice(&RingWrite::NAMES),
        help: "how the ring is written; auto: map in memory, pwrite on disk",
        set: |c, v| c.ring_write = first_choice(v, &RingWrite::ALL),
        show: |c| vec![Setting::Choice(c.ring_write as usize)],
    },
    Opt {
        name: "commit-align",
        group: Group::Storage,
        kind: Kind::Choice(&CommitAlign::NAMES),
        help: "with survive power, 4096: never write a page again that holds acknowledged mail",
        set: |c, v| c.commit_align = first_choice(v, &CommitAlign::ALL),
        show: |c| vec![Setting::Choice(c.commit_align as usize)],
    },
    Opt {
        name: "discard",
        group: Group::Storage,
        kind: Kind::Flag,
        help: "accept mail and store nothing: for protocol benchmarks",
        set: |c, v| c.discard = first_flag(v),
        show: |c| vec![Setting::Flag(c.discard)],
    },
    Opt {
        name: "on-storage-failure",
        group: Group::Storage,
        kind: Kind::Choice(&OnStorageFailure::NAMES),
        help: "after a failed write or sync: exit with 74, or stay and answer 421",
        set: |c, v| c.on_storage_failure = first_choice(v, &OnStorageFailure::ALL),
        show: |c| vec![Setting::Choice(c.on_storage_failure as usize)],
    },
    Opt {
        name: "failed-grace",
        group: Group::Storage,
        kind: Kind::Duration {
            min: Duration::ZERO,
            max: Duration::from_secs(3_600),
            off: false,
        },
        help: "time between a storage failure and the exit, for waiting sessions to get their 451",
        set: |c, v| c.failed_grace = time_or_zero(v),
        show: |c| vec![Setting::Time(c.failed_grace)],
    },
    Opt {
        name: "accept-loss",
        group: Group::Storage,
        kind: Kind::Flag,
        help: "start although acknowledged mail in the ring is damaged; the ranges are written to DIR/shard-0/lost",
        set: |c, v| c.accept_loss = first_flag(v),
        show: |c| vec![Setting::Flag(c.accept_loss)],
    },
    Opt {
        name: "max-sessions",
        group: Group::Limits,
        kind: Kind::Integer {
            min: 1,
            max: 1_000_000,
        },
        help: "sessions at the same time; more get 421",
        set: |c, v| c.max_sessions = usize::try_from(first_number(v)).unwrap_or(usize::MAX),
        show: |c| vec![Setting::Number(c.max_sessions as u64)],
    },
    Opt {
        name: "max-message",
        group: Group::Limits,
        kind: Kind::Size {
            min: 64 * KIB,
            max: 2 * GIB,
        },
        help: "largest message; if not given, less where an eighth of the ring or half the pool is less",
        set: |c, v| c.max_message = first_number(v),
        show: |c| vec![Setting::Number(c.max_message)],
    },
    Opt {
        name: "max-recipients",
        group: Group::Limits,
        kind: Kind::Integer {
            min: 1,
            max: 999_999,
        },
        help: "recipients of one message (RFC 5321 wants 100 or more)",
        set: |c, v| c.max_recipients = first_u32(v),
        show: |c| vec![Setting::Number(u64::from(c.max_recipients))],
    },
    Opt {
        name: "max-messages-per-session",
        group: Group::Limits,
        kind: Kind::Integer {
            min: 1,
            max: 999_999,
        },
        help: "messages in one session",
        set: |c, v| c.max_messages_per_session = first_u32(v),
        show: |c| vec![Setting::Number(u64::from(c.max_messages_per_session))],
    },
    Opt {
        name: "max-hops",
        group: Group::Limits,
        kind: Kind::Integer {
            min: 0,
            max: HOPS_MAX_MAX as u64,
        },
        help: "Received fields of a message, more are a loop; 0 for any number, as on sinks if not given",
        set: |c, v| c.max_hops = u16::try_from(first_number(v)).unwrap_or(HOPS_MAX_MAX),
        show: |c| vec![Setting::Number(u64::from(c.max_hops))],
    },
    Opt {
        name: "max-hold",
        group: Group::Limits,
        kind: Kind::Duration {
            min: SECOND,
            max: Duration::from_secs(HOLD_S_MAX as u64),
            off: false,
        },
        help: "longest time that a client may ask a message to be held for (FUTURERELEASE)",
        set: |c, v| c.max_hold = time_or_zero(v),
        show: |c| vec![Setting::Time(c.max_hold)],
    },
    Opt {
        name: "hide",
        group: Group::Limits,
        kind: Kind::Text("EXT,..."),
        help: "EHLO keywords that sinks do not offer, as if they had never heard of them",
        set: |c, v| c.hide = first_text(v),
        show: |c| text_or_off(&c.hide),
    },
    Opt {
        name: "only",
        group: Group::Limits,
        kind: Kind::Text("EXT,..."),
        help: "the only EHLO keywords that sinks offer",
        set: |c, v| c.only = first_text(v),
        show: |c| text_or_off(&c.only),
    },
    Opt {
        name: "pool",
        group: Group::Limits,
        kind: Kind::Size {
            min: 4 * MIB,
            max: 1024 * GIB,
        },
        help: "memory for messages on their way in, all sessions together",
        set: |c, v| c.pool = first_number(v),
        show: |c| vec![Setting::Number(c.pool)],
    },
    Opt {
        name: "bare-newlines",
        group: Group::Limits,
        kind: Kind::Choice(&BareNewlines::NAMES),
        help: "bare CR, bare LF and NUL in content: refuse with 550, make them CRLF, or keep them",
        set: |c, v| c.bare_newlines = first_choice(v, &BareNewlines::ALL),
        show: |c| vec![Setting::Choice(c.bare_newlines as usize)],
    },
    Opt {
        name: "limit-sinks",
        group: Group::Clients,
        kind: Kind::Flag,
        help: "the limits per client hold on sinks as well",
        set: |c, v| c.limit_sinks = first_flag(v),
        show: |c| vec![Setting::Flag(c.limit_sinks)],
    },
    Opt {
        name: "unlimited-from",
        group: Group::Clients,
        kind: Kind::Networks,
        help: "network that no limit per client holds for, or none; up to 256 times, separated by commas",
        set: |c, v| c.unlimited_from = networks(v),
        show: |c| network_settings(&c.unlimited_from),
    },
    Opt {
        name: "client-sessions",
        group: Group::Clients,
        kind: count_limit(),
        help: "sessions at the same time from one client: an IPv4 address or an IPv6 /64",
        set: |c, v| c.client_sessions = first_limit(v),
        show: |c| vec![Setting::Limit(c.client_sessions)],
    },
    Opt {
        name: "client-connections",
        group: Group::Clients,
        kind: count_limit(),
        help: "connections in a minute from one client",
        set: |c, v| c.client_connections = first_limit(v),
        show: |c| vec![Setting::Limit(c.client_connections)],
    },
    Opt {
        name: "client-messages",
        group: Group::Clients,
        kind: count_limit(),
        help: "messages in a minute from one client",
        set: |c, v| c.client_messages = first_limit(v),
        show: |c| vec![Setting::Limit(c.client_messages)],
    },
    Opt {
        name: "client-recipients",
        group: Group::Clients,
        kind: count_limit(),
        help: "recipients in a minute from one client, refused ones included",
        set: |c, v| c.client_recipients = first_limit(v),
        show: |c| vec![Setting::Limit(c.client_recipients)],
    },
    Opt {
        name: "client-bytes",
        group: Group::Clients,
        kind: Kind::Limit {
            max: 1024 * GIB,
            bytes: true,
        },
        help: "octets in a minute from one client; beyond it MAIL is refused",
        set: |c, v| c.client_bytes = first_limit(v),
        show: |c| vec![Setting::Limit(c.client_bytes)],
    },
    Opt {
        name: "client-handshakes",
        group: Group::Clients,
        kind: count_limit(),
        help: "TLS handshakes in a minute from one client",
        set: |c, v| c.client_handshakes = first_limit(v),
        show: |c| vec![Setting::Limit(c.client_handshakes)],
    },
    Opt {
        name: "network-factor",
        group: Group::Clients,
        kind: Kind::Integer {
            min: 0,
            max: 1000000,
        },
        help: "an IPv4 /24 or IPv6 /48 may use this times as much; 0 for no limit on networks",
        set: |c, v| c.network_factor = first_number(v),
        show: |c| vec![Setting::Number(c.network_factor)],
    },
    Opt {
        name: "session-errors",
        group: Group::Clients,
        kind: count_limit(),
        help: "errors of a session, beyond which it is closed",
        set: |c, v| c.session_errors = first_limit(v),
        show: |c| vec![Setting::Limit(c.session_errors)],
    },
    Opt {
        name: "session-idle-commands",
        group: Group::Clients,
        kind: count_limit(),
        help: "commands between two messages that bring none, beyond which a session is closed",
        set: |c, v| c.session_idle_commands = first_limit(v),
        show: |c| vec![Setting::Limit(c.session_idle_commands)],
    },
    Opt {
        name: "tarpit",
        group: Group::Clients,
        kind: Kind::Duration {
            min: Duration::ZERO,
            max: Duration::from_secs(60),
            off: false,
        },
        help: "how long each refusal beyond tarpit-after is held back; never under stress",
        set: |c, v| c.tarpit = time_or_zero(v),
        show: |c| vec![Setting::Time(c.tarpit)],
    },
    Opt {
        name: "tarpit-after",
        group: Group::Clients,
        kind: Kind::Integer {
            min: 0,
            max: 1000000,
        },
        help: "refusals of a session that are sent at once",
        set: |c, v| c.tarpit_after = first_u32(v),
        show: |c| vec![Setting::Number(u64::from(c.tarpit_after))],
    },
    Opt {
        name: "greeting-delay",
        group: Group::Clients,
        kind: Kind::Duration {
            min: Duration::ZERO,
            max: Duration::from_secs(60),
            off: false,
        },
        help: "how long the greeting is held back; who talks before it is refused; never under stress",
        set: |c, v| c.greeting_delay = time_or_zero(v),
        show: |c| vec![Setting::Time(c.greeting_delay)],
    },
    Opt {
        name: "timeout-greeting",
        group: Group::Time,
        kind: time_limit(),
        help: "silence after the greeting before the first command",
        set: |c, v| c.timeout_greeting = time_or_zero(v),
        show: |c| vec![Setting::Time(c.timeout_greeting)],
    },
    Opt {
        name: "timeout-command",
        group: Group::Time,
        kind: time_limit(),
        help: "silence between commands (RFC 5321 4.5.3.2.7 wants 5 minutes or more)",
        set: |c, v| c.timeout_command = time_or_zero(v),
        show: |c| vec![Setting::Time(c.timeout_command)],
    },
    Opt {
        name: "timeout-data",
        group: Group::Time,
        kind: time_limit(),
        help: "silence within a message",
        set: |c, v| c.timeout_data = time_or_zero(v),
        show: |c| vec![Setting::Time(c.timeout_data)],
    },
    Opt {
        name: "timeout-reply",
        group: Group::Time,
        kind: time_limit(),
        help: "a client reads none of its replies",
        set: |c, v| c.timeout_reply = time_or_zero(v),
        show: |c| vec![Setting::Time(c.timeout_reply)],
    },
    Opt {
        name: "timeout-tls",
        group: Group::Time,
        kind: time_limit(),
        help: "time for a TLS handshake",
        set: |c, v| c.timeout_tls = time_or_zero(v),
        show: |c| vec![Setting::Time(c.timeout_tls)],
    },
    Opt {
        name: "request-deadline",
        group: Group::Time,
        kind: time_limit(),
        help: "one command, from its first octet to its CRLF",
        set: |c, v| c.request_deadline = time_or_zero(v),
        show: |c| vec![Setting::Time(c.request_deadline)],
    },
    Opt {
        name: "min-data-rate",
        group: Group::Time,
        kind: Kind::Size { min: 0, max: GIB },
        help: "bytes per second that a message has to arrive with, averaged; 0 for no minimum",
        set: |c, v| c.min_data_rate = first_number(v),
        show: |c| vec![Setting::Number(c.min_data_rate)],
    },
    Opt {
        name: "min-data-rate-grace",
        group: Group::Time,
        kind: time_limit(),
        help: "time of a message during which its rate is not judged",
        set: |c, v| c.min_data_rate_grace = time_or_zero(v),
        show: |c| vec![Setting::Time(c.min_data_rate_grace)],
    },
    Opt {
        name: "pool-wait-max",
        group: Group::Time,
        kind: time_limit(),
        help: "a message waits for memory; then 452 and the session is closed",
        set: |c, v| c.pool_wait_max = time_or_zero(v),
        show: |c| vec![Setting::Time(c.pool_wait_max)],
    },
    Opt {
        name: "drain-deadline",
        group: Group::Time,
        kind: Kind::Duration {
            min: Duration::ZERO,
            max: DAY,
            off: false,
        },
        help: "after SIGTERM, open messages may go on this long; then they are cut",
        set: |c, v| c.drain_deadline = time_or_zero(v),
        show: |c| vec![Setting::Time(c.drain_deadline)],
    },
    Opt {
        name: "workers",
        group: Group::Speed,
        kind: Kind::Integer {
            min: 1,
            max: WORKERS_MAX as u64,
        },
        help: "processes that take mail on the same addresses, each with a ring of its own in DIR/shard-N",
        set: |c, v| c.workers = usize::try_from(first_number(v)).unwrap_or(WORKERS_MAX),
        show: |c| vec![Setting::Number(c.workers as u64)],
    },
    Opt {
        name: "takeover",
        group: Group::Addresses,
        kind: Kind::Flag,
        help: "take the listening sockets of the server that runs on this ring directory, and let it end",
        set: |c, v| c.takeover = first_flag(v),
        show: |c| vec![Setting::Flag(c.takeover)],
    },
    Opt {
        name: "spin-us",
        group: Group::Speed,
        kind: Kind::Integer {
            min: 0,
            max: 10_000,
        },
        help: "microseconds to poll before the loop sleeps; 50 helps a single session",
        set: |c, v| c.spin = Duration::from_micros(first_number(v)),
        show: |c| {
            vec![Setting::Number(
                u64::try_from(c.spin.as_micros()).unwrap_or(u64::MAX),
            )]
        },
    },
    Opt {
        name: "busy-poll",
        group: Group::Speed,
        kind: Kind::Flag,
        help: "never sleep; takes a whole core",
        set: |c, v| c.busy_poll = first_flag(v),
        show: |c| vec![Setting::Flag(c.busy_poll)],
    },
    Opt {
        name: "log-format",
        group: Group::Log,
        kind: Kind::Choice(&LogFormat::NAMES),
        help: "form of the log lines on standard error",
        set: |c, v| c.log_format = first_choice(v, &LogFormat::ALL),
        show: |c| vec![Setting::Choice(c.log_format as usize)],
    },
    Opt {
        name: "log-level",
        group: Group::Log,
        kind: Kind::Choice(&LogLevel::NAMES),
        help: "least important lines that are written",
        set: |c, v| c.log_level = first_choice(v, &LogLevel::ALL),
        show: |c| vec![Setting::Choice(c.log_level as usize)],
    },
];

/// Help for sizes and durations, below the options.
pub fn units_help() -> String {
    format!("SIZE: {SIZE_ALLOWED}\nTIME: {DURATION_ALLOWED}\n")
}
