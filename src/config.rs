//! Settings of `ringmx serve`: defaults, then a TOML file, then flags, then the checks between them.
//!
//! This module reads files and the system's host name; it changes nothing.

pub mod listen;
pub mod options;
pub mod rule_files;
pub mod units;

use std::fmt;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::choice::choices;
use crate::ip_prefix::IpPrefix;
use crate::limits::{
    ACCEPTED_DOMAINS_MAX, DOMAIN_BYTES_MAX, ENVELOPE_BYTES_MAX, GIB, HOLD_S_DEFAULT,
    HOPS_MAX_DEFAULT, MESSAGE_BYTES_MAX_DEFAULT, MESSAGES_PER_SESSION_MAX_DEFAULT, MIB,
    NETWORKS_MAX, POOL_BYTES_DEFAULT, RECIPIENTS_MAX_DEFAULT, RING_BYTES_DEFAULT, RING_BYTES_STEP,
    SESSIONS_MAX_DEFAULT, TLS_CERTIFICATES_MAX, TLS_HANDSHAKES_DEFAULT,
};
pub use crate::logger::{LogFormat, LogLevel};
use crate::policy::clients::Limit;
use crate::server::listener::{Listener, ProxyMode, TlsMode};
use crate::smtp::extension::{self, EXTENSIONS};
use crate::smtp::parameter::Offered;
use crate::smtp::sasl::Mechanisms;
use crate::smtp::session::Role;
use crate::sys::process::host_name;
use crate::tls::credentials::ClientCertificates;
use listen::{Listen, Place};
use options::{Kind, OPTIONS, Opt, Setting};
use units::{quoted, size_text};

/// A configuration file longer than this is refused, bytes.
const FILE_BYTES_MAX: u64 = MIB;
/// Listening addresses of one server.
const LISTEN_MAX: usize = 16;
/// Defaults of the limits per client: several times what the busiest of well-behaved senders uses, and the fifth or
/// less of it under stress.
const CLIENT_SESSIONS_DEFAULT: Limit = limit(50, 10);
const CLIENT_CONNECTIONS_DEFAULT: Limit = limit(600, 60);
const CLIENT_MESSAGES_DEFAULT: Limit = limit(1_200, 120);
const CLIENT_RECIPIENTS_DEFAULT: Limit = limit(12_000, 1_200);
const CLIENT_BYTES_DEFAULT: Limit = limit(2 * GIB, 256 * MIB);
const CLIENT_HANDSHAKES_DEFAULT: Limit = limit(600, 60);
const NETWORK_FACTOR_DEFAULT: u64 = 4;
const SESSION_ERRORS_DEFAULT: Limit = limit(20, 3);
const SESSION_IDLE_COMMANDS_DEFAULT: Limit = limit(100, 10);
const TARPIT_AFTER_DEFAULT: u32 = 5;

const fn limit(normal: u64, stress: u64) -> Limit {
    Limit { normal, stress }
}

/// RFC 5321 4.5.3.1.8: a server handles at least this many recipients.
const RECIPIENTS_ASKED_BY_RFC: u32 = 100;
/// RFC 5321 2.3.10: the port of SMTP.
const SMTP_PORT: u16 = 25;
/// RFC 5321 4.5.3.2.7: a server waits at least this long for a command.
const COMMAND_TIMEOUT_ASKED_BY_RFC: Duration = Duration::from_secs(300);

choices! {
    /// What a message survives once its 250 was sent.
    #[derive(Default)]
    Survive {
        /// Nothing: the log is in memory.
        Nothing = "nothing",
        /// The end of the process, kill -9 included, but not power loss.
        Process = "process",
        /// Power loss: an fdatasync that covers it returned (RFC 5321 6.1).
        #[default]
        Power = "power",
    }
}

choices! {
    /// What happens when the ring is full.
    #[derive(Default)]
    Full {
        /// `Defer` once a consumer is registered, otherwise `Overwrite`.
        #[default]
        Auto = "auto",
        /// New mail gets 452 4.3.1 until there is room.
        Defer = "defer",
        /// The oldest messages give way.
        Overwrite = "overwrite",
    }
}

choices! {
    /// What the device leaves whole when power fails amid a write.
    #[derive(Default)]
    CommitAlign {
        /// Every sector.
        #[default]
        Sector = "512",
        /// Nothing of a page of 4,096 bytes.
        Page = "4096",
    }
}

choices! {
    /// How the ring is written.
    #[derive(Default)]
    RingWrite {
        /// `Map` for a ring in memory, `Pwrite` for a ring on disk.
        #[default]
        Auto = "auto",
        /// pwritev(2).
        Pwrite = "pwrite",
        /// Stores through a shared mapping.
        Map = "map",
    }
}

choices! {
    /// What becomes of a message with a bare CR, a bare LF or NUL in its content.
    #[derive(Default)]
    BareNewlines {
        /// 550 5.6.0 after its real end.
        #[default]
        Reject = "reject",
        /// Bare CR and bare LF become CRLF.
        Normalize = "normalize",
        /// Stored as it came.
        Keep = "keep",
    }
}

choices! {
    /// Who may authenticate.
    #[derive(Default)]
    AuthBy {
        /// The users of the file.
        #[default]
        Users = "users",
        /// Anybody, with any password.
        Any = "any",
    }
}

choices! {
    /// What begins a sub-address.
    #[derive(Default)]
    SubaddressSeparator {
        /// `user+tag`
        #[default]
        Plus = "+",
        /// `user-tag`
        Hyphen = "-",
        /// `user=tag`
        Equals = "=",
        /// `user_tag`
        Underscore = "_",
        /// There are no sub-addresses.
        Off = "off",
    }
}

choices! {
    /// What the server does after a write or a sync failed.
    #[derive(Default)]
    OnStorageFailure {
        /// Answers for `failed_grace`, then exits with 74.
        #[default]
        Exit = "exit",
        /// Goes on answering 421.
        Stay = "stay",
    }
}

/// Where a setting came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A flag.
    Flag,
    /// A line of the configuration file, counted from 1.
    File {
        /// Line number.
        line: usize,
    },
}

/// All settings of a server. [`Config::default`] is what `ringmx serve` without flags does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Addresses that take mail, none twice. [`validate`](Config::validate) leaves none of the default where only the
    /// other two were given.
    pub listen: Vec<Listen>,
    /// Addresses that take mail over TLS from the first octet.
    pub listen_tls: Vec<Listen>,
    /// Addresses that take mail from authenticated users.
    pub listen_submission: Vec<Listen>,
    /// Certificate chains, PEM.
    pub tls_cert: Vec<PathBuf>,
    /// Their keys, in the same order.
    pub tls_key: Vec<PathBuf>,
    /// Uses a certificate of the server's own making.
    pub tls_self_signed: bool,
    /// Authorities of clients' certificates, PEM.
    pub tls_client_ca: Option<PathBuf>,
    /// What is asked of clients.
    pub tls_client_cert: ClientCertificates,
    /// TLS handshakes under way at the same time.
    pub tls_handshakes: usize,
    /// Networks whose PROXY headers are believed.
    pub proxy_from: Vec<IpPrefix>,
    /// Networks whose XCLIENT is believed.
    pub xclient_from: Vec<IpPrefix>,
    /// Networks whose XFORWARD is believed.
    pub xforward_from: Vec<IpPrefix>,
    /// File of users; `None`: there are none.
    pub users: Option<PathBuf>,
    /// Who may authenticate.
    pub auth: AuthBy,
    /// Offers AUTH without TLS too.
    pub auth_without_tls: bool,
    /// Address of the HTTP server; `None` turns it off.
    pub http: Option<SocketAddr>,
    /// Name in the greeting and in Received fields: a domain (RFC 5321 4.1.2). Empty before
    /// [`Config::validate`] where it was not given.
    pub server_name: String,
    /// Group whose members may read the ring; empty for none.
    pub group: String,
    /// User to become once the sockets are bound; empty to stay who started the server.
    pub user: String,
    /// A crash may write memory to a file.
    pub core_dumps: bool,
    /// For whom a listener with the role mx takes mail, as `policy::recipients` writes it.
    pub accept_domain: Vec<String>,
    /// File with more of them.
    pub recipients_file: Option<PathBuf>,
    /// What begins a sub-address.
    pub subaddress_separator: SubaddressSeparator,
    /// Take mail for everybody.
    pub accept_any_recipient: bool,
    /// Networks that may connect; with `allow_from_file`: all, where none is given.
    pub allow_from: Vec<IpPrefix>,
    /// File with more of them.
    pub allow_from_file: Option<PathBuf>,
    /// Networks that may not connect.
    pub deny_from: Vec<IpPrefix>,
    /// File with more of them.
    pub deny_from_file: Option<PathBuf>,
    /// Directory of the ring log.
    pub ring: PathBuf,
    /// Size of the data area of a new ring, bytes, a multiple of [`RING_BYTES_STEP`] after [`Config::validate`].
    pub ring_size: u64,
    /// Durability level.
    pub survive: Survive,
    /// Policy for a full ring.
    pub full: Full,
    /// Age at which mail that nobody holds is removed; `None` keeps it until its space is needed.
    pub keep_for: Option<Duration>,
    /// How the ring is written.
    pub ring_write: RingWrite,
    /// What the device leaves whole when power fails amid a write.
    pub commit_align: CommitAlign,
    /// Accept and store nothing.
    pub discard: bool,
    /// What follows a storage failure.
    pub on_storage_failure: OnStorageFailure,
    /// Time from a storage failure to the exit.
    pub failed_grace: Duration,
    /// Start although acknowledged mail is damaged.
    pub accept_loss: bool,
    /// Sessions at the same time.
    pub max_sessions: usize,
    /// Largest message, bytes. [`Config::validate`] lowers a default to fit ring and pool.
    pub max_message: u64,
    /// Recipients of one message.
    pub max_recipients: u32,
    /// Messages of one session.
    pub max_messages_per_session: u32,
    /// Received fields that a message may come with; 0: any number. See [`Config::hops_max`].
    pub max_hops: u16,
    /// Longest time that a client may ask a message to be held for (RFC 4865).
    pub max_hold: Duration,
    /// EHLO keywords that sinks do not offer, separated by commas.
    pub hide: String,
    /// The only EHLO keywords that sinks offer, separated by commas; empty for all.
    pub only: String,
    /// Memory for messages on their way in, bytes.
    pub pool: u64,
    /// Policy for bare CR, bare LF and NUL.
    pub bare_newlines: BareNewlines,
    /// Limits per client hold on sinks as well.
    pub limit_sinks: bool,
    /// Networks that no limit per client holds for.
    pub unlimited_from: Vec<IpPrefix>,
    /// Sessions of a client at the same time.
    pub client_sessions: Limit,
    /// Connections of a client per minute.
    pub client_connections: Limit,
    /// Messages of a client per minute.
    pub client_messages: Limit,
    /// Recipients of a client per minute.
    pub client_recipients: Limit,
    /// Octets of a client per minute.
    pub client_bytes: Limit,
    /// TLS handshakes of a client per minute.
    pub client_handshakes: Limit,
    /// How many times as much a client's network may use; 0 for no limit.
    pub network_factor: u64,
    /// Errors of a session.
    pub session_errors: Limit,
    /// Commands between two messages that bring none.
    pub session_idle_commands: Limit,
    /// How long a refusal is held back.
    pub tarpit: Duration,
    /// Refusals of a session that are not held back.
    pub tarpit_after: u32,
    /// How long a greeting is held back.
    pub greeting_delay: Duration,
    /// Silence allowed before the first command.
    pub timeout_greeting: Duration,
    /// Silence allowed between commands.
    pub timeout_command: Duration,
    /// Silence allowed within a message.
    pub timeout_data: Duration,
    /// Time a client may leave its replies unread.
    pub timeout_reply: Duration,
    /// Time for a TLS handshake.
    pub timeout_tls: Duration,
    /// Time from the first octet of a command to its end.
    pub request_deadline: Duration,
    /// Least average rate of a message, bytes per second; 0 for none.
    pub min_data_rate: u64,
    /// Time of a message during which its rate is not judged.
    pub min_data_rate_grace: Duration,
    /// Time a message may wait for pool memory.
    pub pool_wait_max: Duration,
    /// Time open messages may go on after SIGTERM.
    pub drain_deadline: Duration,
    /// Processes that take mail.
    pub workers: usize,
    /// Take the sockets of the server that runs.
    pub takeover: bool,
    /// Time to poll before the loop sleeps.
    pub spin: Duration,
    /// Never sleep.
    pub busy_poll: bool,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// Least important lines that are written.
    pub log_level: LogLevel,
    /// The configuration file, if one was given.
    pub file: Option<PathBuf>,
    /// Options that were given, with their source; the last one given counts.
    pub given: Vec<(&'static str, Source)>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: vec![Listen::plain(SocketAddr::from((Ipv4Addr::LOCALHOST, 2525)))],
            listen_tls: Vec::new(),
            listen_submission: Vec::new(),
            tls_cert: Vec::new(),
            tls_key: Vec::new(),
            tls_self_signed: false,
            tls_client_ca: None,
            tls_client_cert: ClientCertificates::Off,
            tls_handshakes: TLS_HANDSHAKES_DEFAULT,
            proxy_from: Vec::new(),
            xclient_from: Vec::new(),
            xforward_from: Vec::new(),
            users: None,
            auth: AuthBy::Users,
            auth_without_tls: false,
            http: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 8025))),
            server_name: String::new(),
            group: String::new(),
            user: String::new(),
            core_dumps: false,
            accept_domain: Vec::new(),
            recipients_file: None,
            subaddress_separator: SubaddressSeparator::Plus,
            accept_any_recipient: false,
            allow_from: Vec::new(),
            allow_from_file: None,
            deny_from: Vec::new(),
            deny_from_file: None,
            ring: PathBuf::from("./ringmx-data"),
            ring_size: RING_BYTES_DEFAULT,
            survive: Survive::Power,
            full: Full::Auto,
            keep_for: Some(Duration::from_secs(7 * 86_400)),
            ring_write: RingWrite::Auto,
            commit_align: CommitAlign::Sector,
            discard: false,
            on_storage_failure: OnStorageFailure::Exit,
            failed_grace: Duration::from_secs(5),
            accept_loss: false,
            max_sessions: SESSIONS_MAX_DEFAULT,
            max_message: MESSAGE_BYTES_MAX_DEFAULT,
            max_recipients: RECIPIENTS_MAX_DEFAULT,
            max_messages_per_session: MESSAGES_PER_SESSION_MAX_DEFAULT,
            max_hops: HOPS_MAX_DEFAULT,
            max_hold: Duration::from_secs(u64::from(HOLD_S_DEFAULT)),
            hide: String::new(),
            only: String::new(),
            pool: POOL_BYTES_DEFAULT,
            bare_newlines: BareNewlines::Reject,
            limit_sinks: false,
            unlimited_from: vec![
                IpPrefix::of(Ipv4Addr::LOCALHOST.into(), 8),
                IpPrefix::single(Ipv6Addr::LOCALHOST.into()),
            ],
            client_sessions: CLIENT_SESSIONS_DEFAULT,
            client_connections: CLIENT_CONNECTIONS_DEFAULT,
            client_messages: CLIENT_MESSAGES_DEFAULT,
            client_recipients: CLIENT_RECIPIENTS_DEFAULT,
            client_bytes: CLIENT_BYTES_DEFAULT,
            client_handshakes: CLIENT_HANDSHAKES_DEFAULT,
            network_factor: NETWORK_FACTOR_DEFAULT,
            session_errors: SESSION_ERRORS_DEFAULT,
            session_idle_commands: SESSION_IDLE_COMMANDS_DEFAULT,
            tarpit: Duration::from_secs(1),
            tarpit_after: TARPIT_AFTER_DEFAULT,
            greeting_delay: Duration::ZERO,
            timeout_greeting: Duration::from_secs(300),
            timeout_command: Duration::from_secs(300),
            timeout_data: Duration::from_secs(180),
            timeout_reply: Duration::from_secs(300),
            timeout_tls: Duration::from_secs(30),
            request_deadline: Duration::from_secs(300),
            min_data_rate: 500,
            min_data_rate_grace: Duration::from_secs(60),
            pool_wait_max: Duration::from_secs(60),
            drain_deadline: Duration::from_secs(30),
            workers: 1,
            takeover: false,
            spin: Duration::ZERO,
            busy_poll: false,
            log_format: LogFormat::Text,
            log_level: LogLevel::Info,
            file: None,
            given: Vec::new(),
        }
    }
}

/// What is wrong with flags or with a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, if the fault is in one.
    pub file: Option<PathBuf>,
    /// Line of the file, counted from 1, where one is to blame.
    pub line: Option<usize>,
    /// Option, without `--`, where one is to blame.
    pub key: Option<String>,
    /// What is wrong and what is allowed.
    pub reason: String,
}

impl fmt::Display for ConfigError {
    /// `FILE:LINE: KEY: REASON` for a file, `--KEY: REASON` for a flag. One line, no control characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", printable(&file.display().to_string()))?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            f.write_str(" ")?;
        }
        match (&self.key, &self.file) {
            (Some(key), Some(_)) => write!(f, "{}: ", printable(key))?,
            (Some(key), None) => write!(f, "--{}: ", printable(key))?,
            (None, _) => {}
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for ConfigError {}

/// `text` with control characters escaped.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// What the arguments of `ringmx serve` ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `--help` was among them.
    Help,
    /// Run with these settings, which [`Config::validate`] approved.
    Run(Box<Config>),
}

impl Config {
    /// Settings from the arguments behind `serve`, the file that `--config` names, and the defaults.
    ///
    /// # Errors
    /// Unknown flag or key, a bad value, an unreadable file, or settings that do not fit together.
    pub fn from_args(args: &[String]) -> Result<Request, ConfigError> {
        let Some((file, flags)) = split_args(args)? else {
            return Ok(Request::Help);
        };
        let mut config = Config::default();
        if let Some(path) = file {
            let text = read_file(&path)?;
            config.apply_file(&path, &text)?;
        }
        config.apply_flags(&flags)?;
        config.validate(&host_name())?;
        Ok(Request::Run(Box::new(config)))
    }

    /// Applies the text of a configuration file. `path` is for messages.
    ///
    /// # Errors
    /// The first fault in the order of the file.
    pub fn apply_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        self.file = Some(path.to_owned());
        let line_at = |offset: usize| {
            let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
            1 + before.iter().filter(|byte| **byte == b'\n').count()
        };
        let fault = |line: Option<usize>, key: Option<&str>, reason: String| ConfigError {
            file: Some(path.to_owned()),
            line,
            key: key.map(str::to_owned),
            reason,
        };
        let document = toml_edit::Document::parse(text).map_err(|error| {
            let line = error.span().map(|span| line_at(span.start));
            let reason = error.message().replace('\n', "; ");
            fault(line, None, format!("not TOML: {}", printable(&reason)))
        })?;
        let table = document.as_table();
        for (name, item) in table.iter() {
            let key_span = table.get_key_value(name).and_then(|(key, _)| key.span());
            let key_line = key_span.or(item.span()).map(|span| line_at(span.start));
            let value_line = item.span().map(|span| line_at(span.start)).or(key_line);
            let option = match find(name, "") {
                Ok(option) => option,
                Err(reason) => return Err(fault(key_line, Some(name), reason)),
            };
            let values = file_values(option, item)
                .map_err(|reason| fault(value_line, Some(name), reason))?;
            option.store(self, &values);
            let line = key_line.unwrap_or(1);
            self.given.push((option.name, Source::File { line }));
        }
        Ok(())
    }

    /// Applies flags, `(name, value)` each; a flag without a value has `None`.
    fn apply_flags(&mut self, flags: &[(String, Option<String>)]) -> Result<(), ConfigError> {
        let mut lists: Vec<(&'static Opt, Vec<Setting>)> = Vec::new();
        for (name, value) in flags {
            let fault = |reason: String| flag_fault(name, reason);
            let option = find(name, "--").map_err(fault)?;
            let text = value.as_deref().unwrap_or("true");
            let settings: Vec<Setting> = option
                .kind
                .words(text)
                .map(|word| option.kind.parse(word).map_err(fault))
                .collect::<Result<_, _>>()?;
            match lists.iter_mut().find(|(seen, _)| seen.name == option.name) {
                Some((_, values)) if option.kind.is_list() => values.extend(settings),
                Some(_) => return Err(fault("given twice".to_owned())),
                None => lists.push((option, settings)),
            }
        }
        for (option, values) in lists {
            option.store(self, &values);
            self.given.push((option.name, Source::Flag));
        }
        Ok(())
    }

    /// Where the value of option `name` came from; `None` for a default.
    pub fn source(&self, name: &str) -> Option<Source> {
        let found = self.given.iter().rev().find(|(given, _)| *given == name);
        found.map(|(_, source)| *source)
    }

    /// Whether option `name` was given.
    pub fn is_given(&self, name: &str) -> bool {
        self.source(name).is_some()
    }

    /// Settles what depends on other settings and checks what has to fit together. `host_name` stands in for a
    /// server name that was not given; `localhost` stands in for one that is no domain.
    ///
    /// # Errors
    /// The first pair of settings that do not fit, blamed on the one that was given last.
    pub fn validate(&mut self, host_name: &str) -> Result<(), ConfigError> {
        // Who asks for a listener that wants AUTH did not ask for a sink beside it that wants nothing.
        let others_given = ["listen-tls", "listen-submission"].map(|name| self.is_given(name));
        if !self.is_given("listen") && others_given.contains(&true) {
            self.listen.clear();
        }
        if self.server_name.is_empty() {
            let usable = is_domain(host_name);
            self.server_name = if usable { host_name } else { "localhost" }.to_owned();
        } else if !is_domain(&self.server_name) {
            let reason = format!(
                "{} is not a domain; allowed: labels of letters, digits and inner hyphens, up to 63 \
                 bytes each, joined by dots, up to {DOMAIN_BYTES_MAX} bytes",
                quoted(&self.server_name)
            );
            return Err(self.fault("server-name", reason));
        }
        self.validate_tls()?;
        self.validate_addresses()?;
        self.validate_extensions()?;
        self.validate_auth()?;
        self.validate_access()?;
        self.validate_sizes()?;
        if self.takeover && self.discard {
            let reason = "discard keeps no directory in which the running server could be found";
            return Err(self.fault("takeover", reason.to_owned()));
        }
        let mut places = self.listeners().into_iter().map(|(_, place, _)| place);
        if self.takeover && places.any(|place| matches!(place, Place::Inherited(_))) {
            let reason = "sockets that systemd opened stay open over a restart: restart instead";
            return Err(self.fault("takeover", reason.to_owned()));
        }
        if self.busy_poll && !self.spin.is_zero() {
            let reason = "busy-poll never sleeps, so spin-us has no use beside it; give one";
            return Err(self.fault("spin-us", reason.to_owned()));
        }
        Ok(())
    }

    fn validate_addresses(&self) -> Result<(), ConfigError> {
        let listeners = self.listeners();
        let count = listeners.len();
        if count == 0 || count > LISTEN_MAX {
            let reason = format!("{count} addresses; allowed: 1 to {LISTEN_MAX}");
            return Err(self.fault("listen", reason));
        }
        for (at, (key, place, listener)) in listeners.iter().enumerate() {
            self.validate_listener(key, place, listener)?;
            // Port 0 asks the system for any free port, as often as it is given. Several sockets may have one name.
            if matches!(place, Place::Ip(address) if address.port() == 0)
                || matches!(place, Place::Inherited(_))
            {
                continue;
            }
            if listeners[..at].iter().any(|(_, other, _)| other == place) {
                return Err(self.fault(key, format!("{place} is given twice")));
            }
            if self.http.map(Place::Ip).as_ref() == Some(place) {
                let reason = format!("{place} is a listen address as well");
                return Err(self.fault("http", reason));
            }
        }
        let proxied = listeners
            .iter()
            .find(|(.., listener)| listener.proxy != ProxyMode::Off);
        match proxied {
            Some((key, place, listener)) if self.proxy_from.is_empty() => {
                let reason = format!(
                    "{place}: proxy={} needs --proxy-from, the networks whose proxies are believed",
                    listener.proxy
                );
                Err(self.fault(key, reason))
            }
            None if !self.proxy_from.is_empty() => {
                let reason = "no listener says proxy=required or proxy=detect";
                Err(self.fault("proxy-from", reason.to_owned()))
            }
            _ if self.proxy_from.len() > NETWORKS_MAX => {
                let count = self.proxy_from.len();
                let reason = format!("{count} networks; allowed: up to {NETWORKS_MAX}");
                Err(self.fault("proxy-from", reason))
            }
            _ => Ok(()),
        }
    }

    /// Who may send mail to whom must have been said wherever strangers can connect.
    fn validate_access(&self) -> Result<(), ConfigError> {
        let has_rule = !self.accept_domain.is_empty() || self.recipients_file.is_some();
        let listeners = self.listeners();
        for (key, place, Listener { address, role, .. }) in &listeners {
            let is_open = !address.ip().to_canonical().is_loopback();
            let reason = match role {
                _ if self.accept_any_recipient => continue,
                Role::Mx if !has_rule => format!(
                    "{place}: role=mx does not know for whom to take mail; add --accept-domain NAME or \
                     --recipients-file FILE, or --accept-any-recipient if it is meant to take mail for everybody"
                ),
                Role::Sink if is_open => format!(
                    "{place}: a sink that others than this machine can reach takes mail for everybody; add \
                     --accept-any-recipient if that is meant, otherwise \"{place},role=mx\" and \
                     --accept-domain NAME"
                ),
                _ => continue,
            };
            return Err(self.fault(key, reason));
        }
        if has_rule
            && listeners
                .iter()
                .all(|(_, _, listener)| listener.role != Role::Mx)
        {
            let key = match self.accept_domain.is_empty() {
                true => "recipients-file",
                false => "accept-domain",
            };
            let reason = "no listener says role=mx, and only that asks for whom mail is";
            return Err(self.fault(key, reason.to_owned()));
        }
        for (key, count, most) in [
            (
                "accept-domain",
                self.accept_domain.len(),
                ACCEPTED_DOMAINS_MAX,
            ),
            ("allow-from", self.allow_from.len(), NETWORKS_MAX),
            ("deny-from", self.deny_from.len(), NETWORKS_MAX),
            ("unlimited-from", self.unlimited_from.len(), NETWORKS_MAX),
        ] {
            if count > most {
                let reason = format!("{count} entries; allowed: up to {most}, and more in a file");
                return Err(self.fault(key, reason));
            }
        }
        Ok(())
    }

    /// Whether some listener has limits per client.
    pub fn limits_clients(&self) -> bool {
        self.limit_sinks
            || self
                .listeners()
                .iter()
                .any(|(_, _, listener)| listener.role != Role::Sink)
    }

    /// What no listener may be.
    fn validate_listener(
        &self,
        key: &str,
        place: &Place,
        listener: &Listener,
    ) -> Result<(), ConfigError> {
        if listener.lmtp && place.address().port() == SMTP_PORT {
            // RFC 2033 5: clients of that port speak SMTP.
            return Err(self.fault(key, format!("{place}: LMTP must not be on port 25")));
        }
        Ok(())
    }

    fn validate_auth(&self) -> Result<(), ConfigError> {
        for (key, networks) in [
            ("xclient-from", &self.xclient_from),
            ("xforward-from", &self.xforward_from),
        ] {
            if networks.len() > NETWORKS_MAX {
                let count = networks.len();
                let reason = format!("{count} networks; allowed: up to {NETWORKS_MAX}");
                return Err(self.fault(key, reason));
            }
        }
        let listeners = self.listeners();
        let submission = listeners.iter().find(|(.., l)| l.role == Role::Submission);
        let is_any = self.auth == AuthBy::Any;
        if is_any && self.users.is_some() {
            let reason = "any takes every password, so users has no use beside it; give one";
            return Err(self.fault("auth", reason.to_owned()));
        }
        if let Some((key, place, listener)) = submission {
            if is_any {
                let reason = "any is for sinks; whoever connects to a listener for submission \
                              could send what he likes";
                return Err(self.fault("auth", reason.to_owned()));
            }
            if self.users.is_none() {
                let reason = format!("{place}: a listener for submission needs --users");
                return Err(self.fault(key, reason));
            }
            // RFC 8314 4.1: submission is under TLS.
            if listener.tls == TlsMode::Off && !self.auth_without_tls {
                let reason = format!(
                    "{place}: submission without TLS needs --auth-without-tls, or nobody could authenticate"
                );
                return Err(self.fault(key, reason));
            }
        }
        if self.auth_without_tls && !is_any && self.users.is_none() {
            let reason = "nobody may authenticate: give --users, or --auth any";
            return Err(self.fault("auth-without-tls", reason.to_owned()));
        }
        Ok(())
    }

    /// The mechanisms of AUTH that a listener offers.
    pub fn mechanisms(&self, listener: &Listener) -> Mechanisms {
        let is_hidden = listener.role == Role::Sink && !self.sink_offers().has(Offered::AUTH);
        match (listener.role, self.auth, &self.users) {
            _ if is_hidden => Mechanisms::NONE,
            // Servers hand mail to each other without passwords.
            (Role::Mx, ..) => Mechanisms::NONE,
            (_, AuthBy::Any, _) => Mechanisms::OF_ANYBODY,
            (_, AuthBy::Users, Some(_)) => Mechanisms::ALL,
            (_, AuthBy::Users, None) => Mechanisms::NONE,
        }
    }

    fn validate_extensions(&self) -> Result<(), ConfigError> {
        let listeners = self.listeners();
        for (key, keywords) in [("hide", &self.hide), ("only", &self.only)] {
            if keywords.is_empty() {
                continue;
            }
            extensions(keywords).map_err(|reason| self.fault(key, reason))?;
            if !listeners.iter().any(|(.., l)| l.role == Role::Sink) {
                let reason = "only sinks choose what they offer, and no listener is one";
                return Err(self.fault(key, reason.to_owned()));
            }
        }
        if !self.hide.is_empty() && !self.only.is_empty() {
            let reason = "hide and only exclude each other; give one";
            return Err(self.fault("only", reason.to_owned()));
        }
        // RFC 2033 5: LMTP without these two is none.
        let demanded = Offered::PIPELINING.with(Offered::ENHANCED_STATUS_CODES);
        let speaks_lmtp = |l: &Listener| l.lmtp && l.role == Role::Sink;
        if listeners.iter().any(|(.., l)| speaks_lmtp(l)) && !self.sink_offers().has(demanded) {
            let key = if self.hide.is_empty() { "only" } else { "hide" };
            let reason = "a listener speaks LMTP, which needs PIPELINING and ENHANCEDSTATUSCODES";
            return Err(self.fault(key, reason.to_owned()));
        }
        Ok(())
    }

    /// What sinks offer, as far as each session allows it.
    pub fn sink_offers(&self) -> Offered {
        let all = Offered::from_bits(u32::MAX);
        if !self.only.is_empty() {
            extensions(&self.only).unwrap_or(Offered::NONE)
        } else {
            all.without(extensions(&self.hide).unwrap_or(Offered::NONE))
        }
    }

    /// Every listener, with the option that asked for it, in the order listen, listen-tls, listen-submission.
    /// `--listen` is a sink that offers STARTTLS where there is a certificate, unless it says otherwise, `--listen-tls`
    /// a sink that begins with the handshake, `--listen-submission` takes mail from users and wants STARTTLS first
    /// (RFC 6409, RFC 8314).
    pub fn listeners(&self) -> Vec<(&'static str, Place, Listener)> {
        let usual = match self.has_certificates() {
            true => TlsMode::Offered,
            false => TlsMode::Off,
        };
        let groups = [
            ("listen", &self.listen, Role::Sink, usual),
            (
                "listen-tls",
                &self.listen_tls,
                Role::Sink,
                TlsMode::Implicit,
            ),
            (
                "listen-submission",
                &self.listen_submission,
                Role::Submission,
                TlsMode::Required,
            ),
        ];
        let mut listeners = Vec::new();
        for (key, group, role, tls) in groups {
            listeners.extend(group.iter().map(|listen| {
                let listener = Listener {
                    address: listen.place.address(),
                    role: listen.role.unwrap_or(role),
                    tls: listen.tls.unwrap_or(tls),
                    proxy: listen.proxy,
                    lmtp: listen.lmtp,
                };
                (key, listen.place.clone(), listener)
            }));
        }
        listeners
    }

    /// Whether there is a certificate.
    pub fn has_certificates(&self) -> bool {
        !self.tls_cert.is_empty() || self.tls_self_signed
    }

    fn validate_tls(&self) -> Result<(), ConfigError> {
        let (certificates, keys) = (self.tls_cert.len(), self.tls_key.len());
        if certificates != keys {
            let key = if certificates < keys {
                "tls-key"
            } else {
                "tls-cert"
            };
            let reason = format!(
                "{certificates} of --tls-cert and {keys} of --tls-key; each certificate needs its key"
            );
            return Err(self.fault(key, reason));
        }
        if certificates > TLS_CERTIFICATES_MAX {
            let reason =
                format!("{certificates} certificates; allowed: up to {TLS_CERTIFICATES_MAX}");
            return Err(self.fault("tls-cert", reason));
        }
        if certificates > 0 && self.tls_self_signed {
            let reason = "there is a --tls-cert; give one or the other";
            return Err(self.fault("tls-self-signed", reason.to_owned()));
        }
        let asks = self.tls_client_cert != ClientCertificates::Off;
        if asks && self.tls_client_ca.is_none() {
            let reason = "needs --tls-client-ca, the authorities to check against";
            return Err(self.fault("tls-client-cert", reason.to_owned()));
        }
        if !asks && self.tls_client_ca.is_some() {
            let reason = "has no use without --tls-client-cert request or require";
            return Err(self.fault("tls-client-ca", reason.to_owned()));
        }
        let listeners = self.listeners();
        let wanted = listeners
            .iter()
            .find(|(.., listener)| listener.tls != TlsMode::Off);
        match wanted {
            Some((key, place, listener)) if !self.has_certificates() => {
                let reason = format!(
                    "{place}: tls={} needs --tls-cert and --tls-key, or --tls-self-signed",
                    listener.tls
                );
                Err(self.fault(key, reason))
            }
            None if self.has_certificates() => {
                let key = if self.tls_self_signed {
                    "tls-self-signed"
                } else {
                    "tls-cert"
                };
                Err(self.fault(key, "every listener says tls=off".to_owned()))
            }
            None if asks => {
                let reason = "no listener has TLS".to_owned();
                Err(self.fault("tls-client-cert", reason))
            }
            _ => Ok(()),
        }
    }

    fn validate_sizes(&mut self) -> Result<(), ConfigError> {
        self.ring_size = self
            .ring_size
            .div_ceil(RING_BYTES_STEP)
            .saturating_mul(RING_BYTES_STEP);
        let max = self.message_bytes_max();
        if !self.is_given("max-message") {
            self.max_message = self.max_message.min(max);
        } else if self.max_message > max {
            let reason = format!(
                "{} is more than an eighth of the ring ({}) or half of the pool ({}); \
                 allowed here: up to {}",
                size_text(self.max_message),
                size_text(self.ring_size),
                size_text(self.pool),
                size_text(max)
            );
            return Err(self.fault("max-message", reason));
        }
        Ok(())
    }

    /// Most Received fields of a message that a listener of this role takes; `None`: any number. A sink hands nothing
    /// on, so that nothing can go round through it: it counts only when it is told to.
    pub fn hops_max(&self, role: Role) -> Option<u16> {
        let counts = role != Role::Sink || self.is_given("max-hops");
        (counts && self.max_hops > 0).then_some(self.max_hops)
    }

    /// The largest `max_message` that ring and pool allow, bytes. A message stays in the pool until it ends, the
    /// oldest may always go on, and a ring of fewer than eight messages would stand still too often.
    pub fn message_bytes_max(&self) -> u64 {
        let of_pool = (self.pool / 2).min(self.pool.saturating_sub(ENVELOPE_BYTES_MAX as u64));
        if self.discard {
            of_pool
        } else {
            of_pool.min(self.ring_size / 8)
        }
    }

    /// Settings that work and may not be what is wanted, one sentence each. `cores` is the number of processors
    /// that the process may use.
    pub fn warnings(&self, cores: usize) -> Vec<String> {
        let mut out = Vec::new();
        if self.discard {
            out.push(format!(
                "discard: accepted mail is stored nowhere, whatever survive says ({})",
                self.survive
            ));
        } else if self.survive == Survive::Nothing {
            out.push("survive nothing: accepted mail is lost when the server ends".to_owned());
        }
        let spins = self.busy_poll || !self.spin.is_zero();
        if spins && self.survive == Survive::Power && !self.discard && cores < 2 {
            let name = if self.busy_poll {
                "busy-poll"
            } else {
                "spin-us"
            };
            out.push(format!(
                "{name} with survive power needs a second core for the sync thread; there is one"
            ));
        }
        if self.max_recipients < RECIPIENTS_ASKED_BY_RFC {
            out.push(format!(
                "max-recipients {} is less than the {RECIPIENTS_ASKED_BY_RFC} that RFC 5321 4.5.3.1.8 asks for",
                self.max_recipients
            ));
        }
        if self.timeout_command < COMMAND_TIMEOUT_ASKED_BY_RFC {
            out.push(format!(
                "timeout-command {} is less than the 5 minutes that RFC 5321 4.5.3.2.7 asks for",
                units::duration_text(self.timeout_command)
            ));
        }
        out
    }

    /// All settings as a configuration file that gives the same server.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        for option in OPTIONS {
            if let Some(line) = option.toml(self) {
                out.push_str(&line);
                out.push('\n');
            }
        }
        out
    }

    /// A fault of the option `key`, with file and line where a file says it.
    pub fn fault(&self, key: &str, reason: String) -> ConfigError {
        let line = match self.source(key) {
            Some(Source::File { line }) => Some(line),
            _ => None,
        };
        ConfigError {
            file: line.and(self.file.clone()),
            line,
            key: Some(key.to_owned()),
            reason,
        }
    }
}

/// The extensions that these EHLO keywords, separated by commas, name; none for an empty text.
///
/// # Errors
/// A phrase that says what is wrong and what is allowed.
fn extensions(keywords: &str) -> Result<Offered, String> {
    let words = keywords.split(',').filter(|_| !keywords.is_empty());
    words.map(str::trim).try_fold(Offered::NONE, |all, word| {
        let bit = extension::named(word).ok_or_else(|| {
            let known: Vec<&str> = EXTENSIONS.iter().map(|row| row.keyword).collect();
            format!(
                "{} is not allowed; allowed: {}",
                quoted(word),
                known.join(", ")
            )
        })?;
        if all.has(bit) {
            return Err(format!("{} is given twice", quoted(word)));
        }
        Ok(all.with(bit))
    })
}

/// Whether `name` is a domain as RFC 5321 4.1.2 writes one: labels of letters, digits and inner hyphens.
pub fn is_domain(name: &str) -> bool {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            && bytes.first() != Some(&b'-')
            && bytes.last() != Some(&b'-')
    };
    name.len() <= DOMAIN_BYTES_MAX && name.split('.').all(label)
}

/// The name of `known` that is closest to `name`, if one is close enough to be a slip of the fingers.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Bounds the work on a hostile argument; no name is nearly as long.
    if name.len() > 64 {
        return None;
    }
    let allowed = 1 + name.len() / 4;
    known
        .into_iter()
        .map(|candidate| (distance(name.as_bytes(), candidate.as_bytes()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits between `a` and `b` (Levenshtein), in time |a| * |b|.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// The option of this name; `prefix` is what the operator writes in front of a name.
fn find(name: &str, prefix: &str) -> Result<&'static Opt, String> {
    if let Some(option) = Opt::named(name) {
        return Ok(option);
    }
    if name == "config" {
        return Err("is a flag only; a file can't name another".to_owned());
    }
    let known = OPTIONS.iter().map(|option| option.name);
    Err(match nearest(name, known) {
        Some(near) => format!("unknown option; did you mean {prefix}{near}?"),
        None => "unknown option; `ringmx serve --help` lists all".to_owned(),
    })
}

fn flag_fault(name: &str, reason: String) -> ConfigError {
    ConfigError {
        file: None,
        line: None,
        key: Some(name.to_owned()),
        reason,
    }
}

/// Name and value of each flag, with the file of `--config` apart.
type SplitArgs = (Option<PathBuf>, Vec<(String, Option<String>)>);

/// `None` when help is asked for.
fn split_args(args: &[String]) -> Result<Option<SplitArgs>, ConfigError> {
    let mut file = None;
    let mut flags = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--help" || arg == "-h" {
            return Ok(None);
        }
        let Some(flag) = arg.strip_prefix("--").filter(|flag| !flag.is_empty()) else {
            return Err(ConfigError {
                file: None,
                line: None,
                key: None,
                reason: format!("unexpected argument {}", quoted(arg)),
            });
        };
        let (name, mut value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let is_config = name == "config";
        let takes_value = is_config
            || !matches!(
                find(name, "--")
                    .map_err(|reason| flag_fault(name, reason))?
                    .kind,
                Kind::Flag
            );
        if takes_value && value.is_none() {
            // A value may start with one hyphen, never with two: a forgotten value is then not a strange one.
            value = rest.next().filter(|next| !next.starts_with("--")).cloned();
            if value.is_none() {
                return Err(flag_fault(name, "needs a value".to_owned()));
            }
        }
        if !is_config {
            flags.push((name.to_owned(), value));
        } else if file.is_some() {
            return Err(flag_fault(name, "given twice".to_owned()));
        } else {
            file = value.map(PathBuf::from);
        }
    }
    Ok(Some((file, flags)))
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let fault = |reason: String| ConfigError {
        file: Some(path.to_owned()),
        line: None,
        key: None,
        reason,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| fault(format!("can't read the configuration file: {error}")))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let allowed = size_text(FILE_BYTES_MAX);
        return Err(fault(format!("too long; allowed: up to {allowed}")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let before = &error.as_bytes()[..valid];
        let mut error = fault("not TOML: not UTF-8".to_owned());
        error.line = Some(1 + before.iter().filter(|byte| **byte == b'\n').count());
        error
    })
}

fn file_values(option: &Opt, item: &toml_edit::Item) -> Result<Vec<Setting>, String> {
    let wrong = |found: &str| {
        let wanted = match option.kind {
            Kind::Flag => "true or false",
            Kind::Integer { .. } => "an integer",
            kind if kind.is_list() => "an array of strings",
            _ => "a string",
        };
        Err(format!(
            "{found} where {wanted} should be; allowed: {}",
            option.kind.allowed()
        ))
    };
    match (option.kind, item.as_value()) {
        (kind, Some(toml_edit::Value::Array(array))) if kind.is_list() => {
            let mut values = Vec::new();
            for element in array {
                match element.as_str() {
                    Some(text) => values.push(option.kind.parse(text)?),
                    None => return wrong(&format!("{} in the array", toml_type(element))),
                }
            }
            Ok(values)
        }
        (Kind::Flag, Some(toml_edit::Value::Boolean(on))) => Ok(vec![Setting::Flag(*on.value())]),
        (Kind::Flag, Some(value)) => wrong(toml_type(value)),
        (Kind::Integer { .. }, Some(toml_edit::Value::Integer(number)))
        | (Kind::Size { .. }, Some(toml_edit::Value::Integer(number))) => {
            Ok(vec![option.kind.parse(&number.value().to_string())?])
        }
        (Kind::Integer { .. }, Some(value)) => wrong(toml_type(value)),
        (kind, Some(toml_edit::Value::String(text))) => Ok(vec![kind.parse(text.value())?]),
        (_, Some(value)) => wrong(toml_type(value)),
        (_, None) => wrong("a table"),
    }
}

fn toml_type(value: &toml_edit::Value) -> &'static str {
    match value {
        toml_edit::Value::String(_) => "a string",
        toml_edit::Value::Integer(_) => "an integer",
        toml_edit::Value::Float(_) => "a float",
        toml_edit::Value::Boolean(_) => "a boolean",
        toml_edit::Value::Datetime(_) => "a date",
        toml_edit::Value::Array(_) => "an array",
        toml_edit::Value::InlineTable(_) => "a table",
    }
}

#[cfg(test)]
mod tests;
