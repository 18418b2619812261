//! `ringmx serve`: the order in which a server comes up, runs and ends.
//!
//! Up: descriptor limit, sockets, another user if asked for, ring (created or recovered), control socket, sync
//! thread, loop. Whatever can't be had ends the start with one sentence and an exit code, and nothing is touched that
//! was there before.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::cli::{EXIT_CUT, EXIT_FAILURE, EXIT_OK, EXIT_STORAGE, EXIT_USAGE, complain, print};
use crate::clock::Clock;
use crate::config::rule_files::RuleFiles;
use crate::config::units;
use crate::config::{CommitAlign, Config, Full, OnStorageFailure, RingWrite, Survive};
use crate::ctl;
use crate::http::NEWEST_MAX;
use crate::limits::{GIB, HOLD_S_MAX, KIB, MIB, OFFLOAD_JOBS_MAX, TLS_HANDSHAKE_BYTES_MAX};
use crate::link::{Done, Ready, Report};
use crate::log_cli::view::{RingSource, read_superblock, registered, shards};
use crate::logger::{Class, Logger, Value};
use crate::metrics::Metrics;
use crate::net::handover::Head;
use crate::net::listener::TcpListener;
use crate::net::reactor::{self, Outcome, Reactor, Side, Wake};
use crate::net::stream::MioStream;
use crate::offload::Offload;
use crate::policy::clients::{ClientLimits, ClientTable};
use crate::policy::rules::Rules;
use crate::ringlog::backing::{FileBacking, WriteMethod};
use crate::ringlog::commit::SyncThread;
use crate::ringlog::directory::{self, CTL_FILE, CreateOptions, RING_FILE};
use crate::ringlog::format::ConsumerName;
use crate::ringlog::reader::{NewestFirst, Reader, Source, Window};
use crate::ringlog::recover::{OpenError, OpenOptions, Recovery};
use crate::ringlog::writer::{FullPolicy, Log, StartAt};
use crate::server::limiter::Limiter;
use crate::server::listener::TlsMode;
use crate::server::{self, Accounts, Listener, Security, Server, Storage, UsersSource};
use crate::smtp::data::BareNewlines;
use crate::smtp::extension;
use crate::smtp::parameter::Offered;
use crate::smtp::reply;
use crate::smtp::session::{Context, ContextOptions, Role};
use crate::smtp::sink::Verb;
use crate::status::{About, Summary};
use crate::sys::descriptors;
use crate::sys::file::Stamps;
use crate::sys::signal::Signals;
use crate::tls::credentials::ClientCertificates;
use crate::users::Users;

mod first_steps;
mod privileges;
mod sockets;
mod takeover;
mod tls;
mod workers;

use self::first_steps::first_steps;
use self::sockets::{Bound, SocketFile};
use self::takeover::Takeover;

/// Bytes of one session at most: its entries in the slab, in the timer wheel and in the table of messages, what it
/// keeps of a message under way, and the longest names of HELO and of a user, each with what the allocator adds.
const SESSION_BYTES: u64 = 1_280;
/// Bytes of TLS for one open session: the state of rustls, what is known of the client.
const TLS_SESSION_BYTES: u64 = 8 * KIB;
/// Bytes of a handshake under way, beside those of the session: what came and was not used, our answer to it.
const TLS_HANDSHAKE_BYTES: u64 = 48 * KIB;
/// Bytes of everything else: program, histograms, buffers, control and HTTP sessions.
const BASE_BYTES: u64 = 16 * MIB;
/// How often, and after what time, a ring in use is tried again.
const RING_LOCK_TRIES: u32 = 20;
const RING_LOCK_WAIT: Duration = Duration::from_millis(100);
/// Time for the last sync at the end.
const CLOSE_WAIT: Duration = Duration::from_secs(10);
/// Time for the last log lines at the end.
const LOG_WAIT: Duration = Duration::from_secs(1);
/// Descriptors beside those of the sessions.
const DESCRIPTORS_ASIDE: u64 = 256;
/// Time a closing connection may take to take its last reply.
const LINGER: Duration = Duration::from_secs(5);
/// A sync that takes longer refuses new mail.
const SYNC_STALL: Duration = Duration::from_secs(5);

/// Why a server did not start, and the exit code for it.
struct StartError {
    code: i32,
    text: String,
}

fn start_error(code: i32, text: impl Into<String>) -> StartError {
    StartError {
        code,
        text: text.into(),
    }
}

/// Runs a server until it is told to stop; returns the exit code.
pub fn serve(config: Config) -> i32 {
    match run(&config) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("ringmx: {}\n", error.text));
            error.code
        }
    }
}

/// Looks at everything that a start with these settings reads and that is there before it: user, group, certificates,
/// keys, authorities, users, access rules. Takes nothing up and changes nothing.
///
/// # Errors
/// The sentence with which [`serve`] would end.
pub fn check(config: &Config) -> Result<(), String> {
    let text = |error: StartError| error.text;
    privileges::look_up_names(config).map_err(text)?;
    tls::load(config).map_err(text)?;
    load_users(config).map_err(text)?;
    let addresses = config.listeners().into_iter();
    let addresses = addresses.map(|(_, _, listener)| listener.address.ip());
    let rules = RuleFiles::new(config, addresses).load();
    rules.map(|_| ()).map_err(|error| error.to_string())
}

/// What is done before the ring is opened, by the starting user where it has to be.
struct Up {
    config: Config,
    /// The server that is taken over.
    takeover: Option<Takeover>,
    /// Shard of the first worker.
    first_shard: u16,
    clock: Clock,
    bound: Vec<Bound>,
    http: Option<(TcpListener, SocketAddr)>,
    security: Option<Security>,
    users: Option<(UsersSource, Users)>,
    rule_files: RuleFiles,
    stamps: Option<Stamps>,
    rules: Rules,
}

/// Which part of a server a process is.
struct Place {
    /// Its number among several workers, and the way to their parent; `None` when it is all of the server.
    worker: Option<(usize, UnixStream)>,
    /// Number of its shard.
    shard: u16,
}

impl Place {
    fn index(&self) -> usize {
        self.worker.as_ref().map_or(0, |(index, _)| *index)
    }

    fn shard_dir(&self, ring: &Path) -> PathBuf {
        ring.join(format!("shard-{}", self.shard))
    }

    /// How a warning begins.
    fn warning(&self) -> String {
        match self.worker {
            Some((index, _)) => format!("ringmx: warning: worker {index}:"),
            None => "ringmx: warning:".to_owned(),
        }
    }
}

fn run(given: &Config) -> Result<i32, StartError> {
    let clock = Clock::new();
    if given.workers > 1 {
        return workers::run(given.clone(), clock);
    }
    let descriptors = raise_descriptor_limit(given);
    reserve_descriptors(given);
    let mut logger = Logger::start(io::stderr(), given.log_format, given.log_level, clock)
        .map_err(|error| start_error(EXIT_FAILURE, format!("the log thread: {error}")))?;
    log_descriptor_limit(given, descriptors, &mut logger, &clock);
    let up = come_up(given.clone(), clock)?;
    let place = Place {
        worker: None,
        shard: up.first_shard,
    };
    take_mail(up, place, logger)
}

/// Sockets, keys, another user, access rules: what all workers have in common.
fn come_up(config: Config, clock: Clock) -> Result<Up, StartError> {
    // First, because nothing is touched where a setting is wrong.
    privileges::look_up_names(&config)?;
    let mut takeover = None;
    if config.takeover {
        takeover = Some(Takeover::begin(&config)?);
    } else if !config.discard {
        refuse_beside_another(&config)?;
    }
    let bound = sockets::bind_all(&config, takeover.as_mut())?;
    let http = sockets::bind_http(&config, takeover.as_mut())?;
    let security = tls::load(&config)?;
    let users = load_users(&config)?;
    privileges::drop_privileges(&config)?;
    // Read by the user that has to read them again.
    let addresses = bound.iter().map(|bound| bound.listener.address.ip());
    let rule_files = RuleFiles::new(&config, addresses);
    let stamps = rule_files.stamps();
    let rules = rule_files
        .load()
        .map_err(|error| start_error(EXIT_USAGE, error.to_string()))?;
    Ok(Up {
        config,
        first_shard: takeover.as_ref().map_or(0, Takeover::first_shard),
        takeover,
        clock,
        bound,
        http,
        security,
        users,
        rule_files,
        stamps,
        rules,
    })
}

/// A server that has taken another one over works on other shards than one that starts; locks do not keep them apart.
fn refuse_beside_another(config: &Config) -> Result<(), StartError> {
    match takeover::running(&config.ring) {
        Some((pid, first_shard)) if first_shard > 0 => {
            let text = format!(
                "a server (process {pid}) runs on {} already; --takeover takes its place",
                config.ring.display()
            );
            Err(start_error(EXIT_FAILURE, text))
        }
        _ => Ok(()),
    }
}

/// What a server says of itself to one that takes it over.
fn head(config: &Config, first_shard: u16) -> Head {
    Head {
        pid: std::process::id(),
        workers: config.workers as u16,
        first_shard,
    }
}

/// Tells the server that is taken over to stop accepting. One that has gone by now is no fault.
fn finish_takeover(takeover: Option<Takeover>) {
    if let Some(takeover) = takeover {
        let pid = takeover.pid();
        if let Err(error) = takeover.finish() {
            complain(&format!(
                "ringmx: warning: takeover: process {pid} does not answer: {}\n",
                reason(&error)
            ));
        }
    }
}

/// What the service manager is told when mail is taken: behind a takeover, another process is the main one.
fn ready_state(took_over: bool) -> String {
    match took_over {
        true => format!("MAINPID={}\nREADY=1", std::process::id()),
        false => "READY=1".to_owned(),
    }
}

fn about(config: &Config, bound: &[Bound], clock: &Clock, ring_write: &'static str) -> About {
    About {
        server_name: config.server_name.clone(),
        started_ns: clock.wall_ns(),
        listen: bound.iter().map(|bound| bound.shown.clone()).collect(),
        survive: if config.discard {
            "discard"
        } else {
            config.survive.name()
        },
        full: config.full.name(),
        keep_for_s: config.keep_for.map_or(0, |age| age.as_secs()),
        ring_directory: config.ring.display().to_string(),
        ring_write,
        sessions_max: (config.max_sessions * config.workers) as u64,
    }
}

fn install_signals() -> Result<Signals, StartError> {
    Signals::install()
        .map_err(|error| start_error(EXIT_FAILURE, format!("signal handlers: {error}")))
}

/// Opens the ring and runs the loop: all of a server, or one of its workers.
fn take_mail(up: Up, place: Place, mut logger: Logger) -> Result<i32, StartError> {
    let Up {
        mut config,
        takeover,
        first_shard,
        clock,
        bound,
        http,
        mut security,
        users,
        rule_files,
        stamps,
        rules,
    } = up;
    let config = &mut config;
    let signals = install_signals()?;
    let wake = Wake::new().map_err(|error| start_error(EXIT_FAILURE, format!("epoll: {error}")))?;
    let opened = if config.discard {
        None
    } else {
        Some(open_storage(config, &place, &clock, &wake)?)
    };
    if security.is_none() {
        security = tls::self_signed(config)?;
    }
    if let Some(opened) = &opened {
        fit_message_to_ring(config, &place, opened.storage.log.payload_bytes_max());
    }
    let recovery = opened.as_ref().map(|opened| opened.recovery.clone());
    let method = opened.as_ref().map(|o| o.storage.log.backing().method());
    let maps = matches!(method, Some(WriteMethod::Map));
    let about = about(config, &bound, &clock, if maps { "map" } else { "pwrite" });
    let find_newest = match &opened {
        Some(opened) => Some(
            find_newest(&opened.ring, u32::from(place.shard))
                .map_err(|error| start_error(EXIT_STORAGE, format!("reading the ring: {error}")))?,
        ),
        None => None,
    };
    privileges::refuse_core_dumps(config)?;
    let ready = ready(config, opened.as_ref(), maps);
    let start_lines = place.worker.is_none().then(|| {
        start_lines(
            config,
            &bound,
            http.as_ref().map(|(_, address)| *address),
            std::slice::from_ref(&ready),
            security.as_ref(),
            &leftover_shards(config, first_shard),
        )
    });
    if let Some(recovery) = recovery.filter(|recovery| !recovery.clean) {
        log_recovery(&recovery, &mut logger, &clock);
    }
    if place.worker.is_none() {
        log_started(&about, &mut logger, &clock);
    }
    let (storage, ctl, ring) = match opened {
        Some(opened) => (Some(opened.storage), Some(opened.ctl), Some(opened.ring)),
        None => (None, None, None),
    };
    let mut server = new_server(config, &place, &bound, storage, logger, &clock)?;
    server.shared.rules = Arc::new(rules);
    if security.is_some() || users.is_some() {
        let handshakes = security.as_ref().map_or(0, |s| s.handshakes_max);
        let helper = Offload::start(handshakes + OFFLOAD_JOBS_MAX, clock, wake.handle())
            .map_err(|error| start_error(EXIT_FAILURE, format!("the helper thread: {error}")))?;
        server.set_offload(helper);
    }
    if let Some(security) = security {
        server.secure(security);
    }
    if let Some((source, users)) = users {
        server.shared.accounts = Accounts::Users(Box::new(users));
        server.shared.users_source = Some(source);
    }
    let mut files = Vec::new();
    let mut smtp = Vec::new();
    for mut bound in bound {
        files.extend(bound.file.take());
        let taken = bound.take(place.index());
        smtp.push(taken.ok_or_else(|| start_error(EXIT_FAILURE, "a listening socket is closed"))?);
    }
    let own_link = match &place.worker {
        Some((_, link)) => Some(
            link.try_clone()
                .map_err(|error| start_error(EXIT_FAILURE, format!("a descriptor: {error}")))?,
        ),
        None => None,
    };
    let side = Side {
        smtp,
        signals,
        http: http.map(|(socket, _)| socket),
        find_newest,
        ctl,
        ring,
        load_rules: rule_files
            .has_files()
            .then(|| load_rules(rule_files, stamps)),
        link: own_link,
    };
    let mut reactor = Reactor::new(wake, clock, server, side, loop_options(config), about)
        .map_err(|error| start_error(EXIT_FAILURE, format!("the event loop: {error}")))?;
    if let Some(lines) = start_lines {
        announce(config, first_shard, takeover, &mut reactor, &lines)?;
    }
    reactor.report(&Report::Ready(ready));
    let outcome = reactor
        .run()
        .map_err(|error| start_error(EXIT_FAILURE, format!("the event loop: {error}")))?;
    Ok(leave(config, place, reactor, outcome, files))
}

/// A server for these listeners, with what the configuration says of clients.
fn new_server(
    config: &Config,
    place: &Place,
    bound: &[Bound],
    storage: Option<Storage<FileBacking, SyncThread>>,
    logger: Logger,
    clock: &Clock,
) -> Result<Server<MioStream, FileBacking, SyncThread>, StartError> {
    let mut contexts = Vec::new();
    let mut listeners = Vec::new();
    for bound in bound {
        contexts.push(context(config, bound.listener)?);
        listeners.push(bound.listener);
    }
    let mut server = Server::new(
        server_options(config, place.shard),
        contexts,
        listeners,
        storage,
        Metrics::new(Verb::COUNT, reply::ROWS.len()),
        logger,
        clock.now(),
    );
    server.shared.proxy_from = config.proxy_from.clone();
    server.shared.xclient_from = config.xclient_from.clone();
    server.shared.xforward_from = config.xforward_from.clone();
    server.shared.limiter = config.limits_clients().then(|| Box::new(limiter(config)));
    Ok(server)
}

fn loop_options(config: &Config) -> reactor::Options {
    reactor::Options {
        spin: config.spin,
        busy_poll: config.busy_poll,
        drain_deadline: config.drain_deadline,
        failed_grace: match config.on_storage_failure {
            OnStorageFailure::Exit => Some(config.failed_grace),
            OnStorageFailure::Stay => None,
        },
    }
}

/// Ends the server that was taken over, lets the next one take over from this one, and says that mail is taken.
fn announce(
    config: &Config,
    first_shard: u16,
    takeover: Option<Takeover>,
    reactor: &mut Reactor<FileBacking, SyncThread>,
    lines: &str,
) -> Result<(), StartError> {
    // Connections wait in the sockets until the loop runs: whoever reads these lines may send.
    let took_over = takeover.is_some();
    finish_takeover(takeover);
    if !config.discard {
        let listener = takeover::bind(&config.ring)?;
        reactor
            .offer_handover(listener, head(config, first_shard))
            .map_err(|error| start_error(EXIT_FAILURE, format!("the event loop: {error}")))?;
    }
    print(lines);
    sockets::notify(&ready_state(took_over));
    Ok(())
}

/// Removes what others would look for, closes the log, and says what was done; returns the exit code.
fn leave(
    config: &Config,
    place: Place,
    reactor: Reactor<FileBacking, SyncThread>,
    outcome: Outcome,
    files: Vec<SocketFile>,
) -> i32 {
    if place.worker.is_none() && !reactor.is_handed_over() {
        for file in files {
            file.remove();
        }
        takeover::remove(config);
    }
    if !config.discard {
        let _ = std::fs::remove_file(place.shard_dir(&config.ring).join(CTL_FILE));
    }
    let (code, done, lines) = finish(reactor, outcome);
    match place.worker {
        None => print_end(config, &[done], &lines),
        Some((index, link)) => {
            for line in lines {
                complain(&format!("ringmx: worker {index}: {line}\n"));
            }
            // A parent that has gone asks for nothing.
            let _ = workers::say(&link, &Report::Done(done));
        }
    }
    code
}

/// What the start lines say of the storage.
fn ready(config: &Config, opened: Option<&Opened>, maps: bool) -> Ready {
    let Some(opened) = opened else {
        return Ready::default();
    };
    let log = &opened.storage.log;
    let warning = match config.survive {
        Survive::Power => file_system_warning(log),
        _ => None,
    };
    Ready {
        ring_bytes: log.data_size(),
        free_bytes: log.free_bytes(),
        messages: log.messages(),
        message_bytes_max: config.max_message,
        maps,
        retention: retention(config, log),
        warning: warning.unwrap_or_default(),
    }
}

fn log_started(about: &About, logger: &mut Logger, clock: &Clock) {
    let started = [
        ("version", Value::Str(env!("CARGO_PKG_VERSION"))),
        (
            "listen",
            Value::Str(about.listen.first().map_or("", |s| s.as_str())),
        ),
        ("survive", Value::Str(about.survive)),
    ];
    logger.line(Class::Started, &started, clock.now());
}

/// Closes the log. Returns the exit code, what was done, and sentences about what went wrong.
fn finish(reactor: Reactor<FileBacking, SyncThread>, outcome: Outcome) -> (i32, Done, Vec<String>) {
    let metrics = &reactor.server.shared.metrics;
    let storage = reactor.server.shared.storage.as_ref();
    let done = Done {
        accepted: metrics.messages_accepted,
        refused: metrics
            .replies
            .iter()
            .zip(reply::ROWS)
            .filter(|(_, row)| row.code >= 400)
            .map(|(count, _)| count)
            .sum(),
        connections: metrics.connections_accepted,
        cut: match outcome {
            Outcome::Cut(count) => count,
            _ => 0,
        },
        stored: storage.map_or(0, |storage| storage.log.messages()),
    };
    let mut code = match outcome {
        Outcome::Drained => EXIT_OK,
        Outcome::Cut(0) => EXIT_OK,
        Outcome::Cut(_) => EXIT_CUT,
        Outcome::StorageFailed => EXIT_STORAGE,
    };
    let mut lines = Vec::new();
    if outcome == Outcome::StorageFailed {
        let shared = reactor.into_server().shared;
        let storage = shared.storage.as_ref();
        lines.push(
            match storage.is_some_and(|s| s.log.backing().is_removed()) {
                true => "The ring was removed, and the mail in it.".into(),
                false => {
                    "Storage failed. Nothing that was acknowledged is lost; see the log lines."
                        .into()
                }
            },
        );
        // Those lines are the only ones that say what failed: the process must not end before they are written.
        shared.logger.close(LOG_WAIT);
    } else if let Err(error) = reactor.close(CLOSE_WAIT).map(|server| {
        let mut shared = server.shared;
        let fields = [
            ("accepted", Value::Number(done.accepted)),
            ("refused", Value::Number(done.refused)),
        ];
        shared
            .logger
            .line(Class::Stopped, &fields, Clock::new().now());
        shared.logger.close(LOG_WAIT);
    }) {
        lines.push(format!(
            "The log could not be closed: {error}. The next start recovers it."
        ));
        code = EXIT_STORAGE;
    }
    (code, done, lines)
}

/// The last lines: what was done, by all workers together.
fn print_end(config: &Config, done: &[Done], lines: &[String]) {
    let sum = |of: fn(&Done) -> u64| done.iter().map(of).sum::<u64>();
    let mut text = String::new();
    let cut = sum(|done| done.cut);
    if cut > 0 {
        text += &format!("Cut {cut} sessions that did not end in time.\n");
    }
    for line in lines {
        text += &format!("{line}\n");
    }
    text += &format!(
        "Accepted {} messages over {} connections; {} commands or messages refused.\n",
        sum(|done| done.accepted),
        sum(|done| done.connections),
        sum(|done| done.refused),
    );
    if config.survive == Survive::Nothing && !config.discard {
        text += "The messages were kept in memory and are gone.\n";
    } else if !config.discard {
        // Behind a takeover, and with fewer workers than there were, others have mail as well.
        let found = shards(&config.ring).map_or(0, |found| found.len());
        let others = match found.saturating_sub(config.workers) {
            0 => String::new(),
            n => format!(" (not counted: {n} of its shards, to which this server did not write)"),
        };
        text += &format!(
            "Stored: {} messages in {}{others}. Read them with: ringmx log{}\n",
            sum(|done| done.stored),
            config.ring.display(),
            ring_option(config),
        );
    }
    print(&text);
}

/// What `max_sessions` need, and what the process has beside them.
fn wanted_descriptors(config: &Config) -> u64 {
    config.max_sessions as u64 + DESCRIPTORS_ASIDE
}

/// Raises the limit as far as sessions need it and the system allows; returns it.
fn raise_descriptor_limit(config: &Config) -> u64 {
    descriptors::raise_limit(wanted_descriptors(config)).unwrap_or(0)
}

/// Takes room for the descriptors of all sessions before there are threads, so that no session waits for it later.
fn reserve_descriptors(config: &Config) {
    let limit = descriptors::raise_limit(0).unwrap_or(0);
    // Without it, the table grows when it has to.
    let _ = descriptors::reserve(wanted_descriptors(config).min(limit));
}

fn log_descriptor_limit(config: &Config, got: u64, logger: &mut Logger, clock: &Clock) {
    let wanted = wanted_descriptors(config);
    if got < wanted {
        let fields = [
            ("setting", Value::Str("max-sessions")),
            ("wanted_descriptors", Value::Number(wanted)),
            ("limit", Value::Number(got)),
            (
                "remedy",
                Value::Str("raise the limit (ulimit -n) or lower --max-sessions"),
            ),
        ];
        logger.line(Class::Setting, &fields, clock.now());
    }
}

/// The system's text without its number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

struct Opened {
    storage: Storage<FileBacking, SyncThread>,
    recovery: Recovery,
    ctl: UnixListener,
    ring: OwnedFd,
}

fn open_storage(
    config: &Config,
    place: &Place,
    clock: &Clock,
    wake: &Wake,
) -> Result<Opened, StartError> {
    let dir = place.shard_dir(&config.ring);
    let survive = match config.survive {
        Survive::Nothing => crate::ringlog::writer::Survive::Nothing,
        Survive::Process => crate::ringlog::writer::Survive::Process,
        Survive::Power => crate::ringlog::writer::Survive::Power,
    };
    let options = OpenOptions {
        full: match config.full {
            Full::Auto => FullPolicy::Auto,
            Full::Defer => FullPolicy::Defer,
            Full::Overwrite => FullPolicy::Overwrite,
        },
        keep_for: config.keep_for,
        accept_loss: config.accept_loss,
        commit_align: match config.commit_align {
            CommitAlign::Sector => crate::ringlog::writer::CommitAlign::Sector,
            CommitAlign::Page => crate::ringlog::writer::CommitAlign::Page,
        },
        ..OpenOptions::new(survive, clock.wall_ns())
    };
    let method = match config.ring_write {
        RingWrite::Auto => None,
        RingWrite::Pwrite => Some(WriteMethod::Pwrite),
        RingWrite::Map => Some(WriteMethod::Map),
    };
    let failed = |error: OpenError| {
        let text = format!("the ring {}: {error}", dir.join("ring").display());
        start_error(open_error_code(&error), text)
    };
    let (log, recovery) = if config.survive == Survive::Nothing {
        std::fs::create_dir_all(&dir).map_err(|error| {
            start_error(
                EXIT_STORAGE,
                format!("{}: {}", dir.display(), reason(&error)),
            )
        })?;
        directory::memory_ring(config.ring_size, &options).map_err(failed)?
    } else {
        match open_when_free(&dir, &options, method) {
            Err(OpenError::Missing) => {
                // Asked first: a ring that is made and then has no consumers would let mail go that they want.
                let names = registered_elsewhere(config, &dir)?;
                create(&dir, config, place, clock).map_err(failed)?;
                let mut opened = directory::open_ring(&dir, &options, method).map_err(failed)?;
                for name in names {
                    let registered = opened.0.register(name, StartAt::Oldest);
                    registered.map_err(|error| {
                        let text = format!("{}: consumer {name}: {error}", dir.display());
                        start_error(EXIT_STORAGE, text)
                    })?;
                }
                opened
            }
            other => other.map_err(failed)?,
        }
    };
    let handle = |error: io::Error| start_error(EXIT_STORAGE, format!("the ring: {error}"));
    let committer = SyncThread::start(
        Box::new(log.backing().flusher().map_err(handle)?),
        wake.handle(),
        *clock,
    )
    .map_err(|error| start_error(EXIT_FAILURE, format!("the sync thread: {error}")))?;
    let ring = read_only(&log, &dir).map_err(handle)?;
    let ctl = bind_ctl(&dir.join(CTL_FILE), !config.group.is_empty()).map_err(|error| {
        let text = format!("{}: {}", dir.join(CTL_FILE).display(), reason(&error));
        start_error(EXIT_FAILURE, text)
    })?;
    share_with_group(config, &dir)?;
    Ok(Opened {
        storage: Storage { log, committer },
        recovery,
        ctl,
        ring,
    })
}

/// Gives directories, ring and control socket to the group that may read them.
fn share_with_group(config: &Config, dir: &Path) -> Result<(), StartError> {
    let Some(number) = privileges::reader_group(config)? else {
        return Ok(());
    };
    for path in [&config.ring, dir, &dir.join(RING_FILE), &dir.join(CTL_FILE)] {
        match std::os::unix::fs::chown(path, None, Some(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let text = format!(
                    "giving {} to group {}: {error}",
                    path.display(),
                    config.group
                );
                return Err(start_error(EXIT_FAILURE, text));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Opens the ring, waiting a little while it is in use: a consumer that works without a server holds the lock for
/// moments, and a server that was just killed may not be gone yet.
fn open_when_free(
    dir: &Path,
    options: &OpenOptions,
    method: Option<WriteMethod>,
) -> Result<(Log<FileBacking>, Recovery), OpenError> {
    let (_never, nothing) = std::sync::mpsc::channel::<()>();
    for _ in 0..RING_LOCK_TRIES {
        match directory::open_ring(dir, options, method) {
            Err(OpenError::InUse) => drop(nothing.recv_timeout(RING_LOCK_WAIT)),
            other => return other,
        }
    }
    directory::open_ring(dir, options, method)
}

fn open_error_code(error: &OpenError) -> i32 {
    match error {
        OpenError::ConsumersRegistered { .. } | OpenError::ConsumerRequired => EXIT_USAGE,
        OpenError::InUse => EXIT_FAILURE,
        _ => EXIT_STORAGE,
    }
}

/// The consumers of the other shards of this directory. A consumer has one name in all of them, and a new shard begins
/// with those that there are.
fn registered_elsewhere(config: &Config, dir: &Path) -> Result<Vec<ConsumerName>, StartError> {
    let mut names = Vec::new();
    for shard in shards(&config.ring).unwrap_or_default() {
        if shard.path == dir {
            continue;
        }
        let found = registered(&shard).map_err(|failure| {
            let text = format!("the consumers of {}: {failure}", shard.path.display());
            start_error(EXIT_STORAGE, text)
        })?;
        for name in found {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    Ok(names)
}

/// The shards that are there and have no worker: numbers outside of those from `first` on.
fn leftover_shards(config: &Config, first: u16) -> Vec<u32> {
    let first = u32::from(first);
    let worked = first..first + config.workers as u32;
    let found = match config.discard {
        true => Vec::new(),
        false => shards(&config.ring).unwrap_or_default(),
    };
    let numbers = found.iter().map(|dir| dir.shard);
    numbers.filter(|shard| !worked.contains(shard)).collect()
}

/// Creates the ring and shows how far that is.
fn create(dir: &Path, config: &Config, place: &Place, clock: &Clock) -> Result<(), OpenError> {
    let options = CreateOptions {
        data_size: config.ring_size,
        group: !config.group.is_empty(),
        wall_ns: clock.wall_ns(),
    };
    // Several of them would write over each other's line.
    let terminal = place.worker.is_none() && io::stderr().is_terminal();
    let what = format!(
        "Creating a ring of {} in {}",
        size(config.ring_size),
        dir.display()
    );
    if !terminal {
        complain(&format!("{what} ...\n"));
    }
    let mut shown = 101;
    let result = directory::create_ring(dir, &options, &mut |written, all| {
        let percent = written * 100 / all.max(1);
        if terminal && percent != shown {
            shown = percent;
            complain(&format!("\r{what} ... {percent} %"));
        }
    });
    if terminal {
        complain("\n");
    }
    result
}

/// A descriptor that readers can be handed: it can't write.
#[cfg(target_os = "linux")]
fn read_only(log: &Log<FileBacking>, _dir: &Path) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", log.backing().file().as_raw_fd());
    Ok(std::fs::File::open(path)?.into())
}

/// A descriptor that readers can be handed: it can't write. The file is opened by its name again, and has to be the
/// same.
#[cfg(not(target_os = "linux"))]
fn read_only(log: &Log<FileBacking>, dir: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::fs::MetadataExt;
    let own = std::fs::File::from(log.backing().file().try_clone_to_owned()?).metadata()?;
    let file = std::fs::File::open(dir.join(RING_FILE))?;
    let found = file.metadata()?;
    if (found.dev(), found.ino()) != (own.dev(), own.ino()) {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(file.into())
}

/// Binds the control socket in place of one that a dead server left.
fn bind_ctl(path: &Path, group: bool) -> io::Result<UnixListener> {
    // The ring's lock is held: no other server can be alive behind this path.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The directory is closed to others, so nobody connects before the mode is set.
    let socket = ctl::with_short_path(path, |path| UnixListener::bind(path))?;
    let mode = if group { 0o660 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn context(config: &Config, listener: Listener) -> Result<Context, StartError> {
    Context::new(ContextOptions {
        server_name: config.server_name.clone(),
        role: listener.role,
        message_bytes_max: config.max_message,
        recipients_max: config.max_recipients,
        messages_max: config.max_messages_per_session,
        bare_newlines: match config.bare_newlines {
            crate::config::BareNewlines::Reject => BareNewlines::Reject,
            crate::config::BareNewlines::Normalize => BareNewlines::Normalize,
            crate::config::BareNewlines::Keep => BareNewlines::Keep,
        },
        offered: match listener.role {
            Role::Sink => offered(&listener).and(config.sink_offers()),
            Role::Mx | Role::Submission => offered(&listener),
        },
        needs_tls: listener.tls == TlsMode::Required,
        hold_max_s: u32::try_from(config.max_hold.as_secs()).unwrap_or(HOLD_S_MAX),
        lmtp: listener.lmtp,
        mechanisms: config.mechanisms(&listener),
        auth_without_tls: config.auth_without_tls,
        hops_max: config.hops_max(listener.role),
    })
    .map_err(|error| start_error(EXIT_USAGE, format!("server-name: {error}")))
}

/// The extensions of a listener. REQUIRETLS promises what a next hop has to keep, so that only a sink, which has
/// none, may offer it by itself (RFC 8689 2).
fn offered(listener: &Listener) -> Offered {
    let mut offered = extension::ALL;
    if matches!(listener.tls, TlsMode::Offered | TlsMode::Required) {
        offered = offered.with(Offered::STARTTLS);
    }
    if listener.tls != TlsMode::Off {
        offered = offered.with(Offered::REQUIRETLS);
    }
    offered
}

/// Reads the file of users, if one is named.
fn load_users(config: &Config) -> Result<Option<(UsersSource, Users)>, StartError> {
    let Some(path) = &config.users else {
        return Ok(None);
    };
    let mut source = UsersSource {
        path: path.clone(),
        secret: Default::default(),
        seen: None,
    };
    source.seen = source.stamps();
    crate::sys::file::random(&mut source.secret)
        .map_err(|error| start_error(EXIT_FAILURE, format!("random octets: {error}")))?;
    let users = source
        .load()
        .map_err(|reason| start_error(EXIT_USAGE, config.fault("users", reason).to_string()))?;
    Ok(Some((source, users)))
}

fn server_options(config: &Config, shard: u16) -> server::Options {
    server::Options {
        sessions_max: config.max_sessions,
        pool_bytes: config.pool,
        message_bytes_max: config.max_message,
        discard: config.discard,
        shard,
        timeout_greeting: config.timeout_greeting,
        timeout_command: config.timeout_command,
        timeout_data: config.timeout_data,
        timeout_reply: config.timeout_reply,
        request_deadline: config.request_deadline,
        data_rate_min: config.min_data_rate,
        data_grace: config.min_data_rate_grace,
        pool_wait_max: config.pool_wait_max,
        linger: LINGER,
        sync_stall: SYNC_STALL,
        prefix_key: random_number(),
    }
}

/// The limits per client.
fn limiter(config: &Config) -> Limiter {
    let limits = ClientLimits {
        sessions: config.client_sessions,
        rates: [
            config.client_connections,
            config.client_messages,
            config.client_recipients,
            config.client_bytes,
            config.client_handshakes,
        ],
        network_factor: config.network_factor,
    };
    let keys = (random_number(), random_number());
    let mut limiter = Limiter::new(ClientTable::new(config.max_sessions, keys, limits));
    limiter.on_sinks = config.limit_sinks;
    limiter.session_errors = config.session_errors;
    limiter.session_idle_commands = config.session_idle_commands;
    limiter.tarpit = config.tarpit;
    limiter.tarpit_after = config.tarpit_after;
    limiter.greeting_delay = config.greeting_delay;
    limiter
}

/// A number nobody else knows. Without the system's randomness the start time has to do: a guessed bucket only
/// lets one network slow another's large messages down.
fn random_number() -> u64 {
    let mut bytes = [0; 8];
    match crate::sys::file::random(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => Clock::new().wall_ns(),
    }
}

/// The ring that is there may be smaller than the options say: no message may be larger than it can take.
fn fit_message_to_ring(config: &mut Config, place: &Place, payload_bytes_max: u64) {
    if config.max_message <= payload_bytes_max {
        return;
    }
    if config.is_given("max-message") {
        complain(&format!(
            "{} max-message is lowered to {}: an eighth of the ring that is there\n",
            place.warning(),
            size(payload_bytes_max)
        ));
    }
    config.max_message = payload_bytes_max;
}

/// Loads the access rules again when a file has changed; the reactor runs it on a thread of its own.
fn load_rules(files: RuleFiles, mut loaded: Option<Stamps>) -> reactor::LoadRules {
    Box::new(move |must| {
        // Taken before the files are read: what changes meanwhile is seen the next time.
        let stamps = files.stamps();
        if stamps == loaded && !must {
            return None;
        }
        loaded = stamps;
        Some(files.load().map_err(|error| error.to_string()))
    })
}

/// Looks up the newest messages; the reactor runs it on a thread of its own.
fn find_newest(ring: &OwnedFd, shard: u32) -> io::Result<reactor::FindNewest> {
    let file = std::fs::File::from(ring.try_clone()?);
    let superblock = read_superblock(&file, Path::new("ring"))
        .map_err(|failure| io::Error::other(failure.text))?;
    let mut reader = Reader::new(RingSource::new(file, &superblock), &superblock, shard);
    Ok(Box::new(move |window| newest(&mut reader, window)))
}

/// The newest messages of a window, newest first. What can't be read is left out: the page has no reader that
/// could do anything about it, `ringmx log verify` has.
fn newest<S: Source>(reader: &mut Reader<S>, window: Window) -> Vec<Summary> {
    let mut walk = NewestFirst::new(window);
    let mut found = Vec::new();
    while found.len() < NEWEST_MAX
        && let Ok(Some(position)) = walk.next(reader, window)
    {
        let Ok(Some(message)) = reader.message_at(window, position) else {
            continue;
        };
        let envelope = message.envelope();
        found.push(Summary {
            shard: reader.shard(),
            number: message.number,
            received_ns: message.received_ns,
            octets: message.body().len() as u64,
            from: envelope.reverse_path.unwrap_or_default().to_vec(),
            to: envelope
                .recipients
                .first()
                .map(|first| first.path.to_vec())
                .unwrap_or_default(),
            recipients: envelope.recipients.len() as u32,
        });
    }
    found
}

fn log_recovery(recovery: &Recovery, logger: &mut Logger, clock: &Clock) {
    let fields = [
        ("messages", Value::Number(recovery.messages)),
        (
            "discarded_records",
            Value::Number(recovery.discarded_records),
        ),
        ("discarded_bytes", Value::Number(recovery.discarded_bytes)),
        ("lost_ranges", Value::Number(recovery.lost.len() as u64)),
        ("tail_moved_bytes", Value::Number(recovery.tail_moved_bytes)),
        ("next_number", Value::Number(recovery.next_number)),
        ("epoch", Value::Number(u64::from(recovery.epoch))),
    ];
    logger.line(Class::Recovered, &fields, clock.now());
}

fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes >= GIB && bytes.is_multiple_of(GIB) => format!("{} GiB", bytes / GIB),
        _ if bytes >= MIB => format!("{} MiB", bytes / MIB),
        _ => format!("{} KiB", bytes / KIB),
    }
}

/// The option that names the ring, where it is not the default.
fn ring_option(config: &Config) -> String {
    if config.ring == Path::new("./ringmx-data") {
        String::new()
    } else {
        format!(" --ring {}", config.ring.display())
    }
}

/// The first lines: what the server does, what it may use, and what to try next. One [`Ready`] for each worker.
fn start_lines(
    config: &Config,
    bound: &[Bound],
    http: Option<SocketAddr>,
    ready: &[Ready],
    security: Option<&Security>,
    leftover: &[u32],
) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for warning in config.warnings(cores) {
        complain(&format!("ringmx: warning: {warning}\n"));
    }
    let mut text = format!("ringmx {} on {}\n", env!("CARGO_PKG_VERSION"), join(bound));
    let several = ready.len() > 1;
    if several {
        text += &format!(
            "  workers     {} processes, each with its own sessions, pool and limits per client\n",
            ready.len()
        );
    }
    if config.discard {
        text += "  storage     none: --discard answers 250 and throws every message away\n";
    } else {
        storage_lines(config, ready, leftover, &mut text);
    }
    let memory = memory_bound(config);
    let largest = ready.iter().map(|ready| ready.message_bytes_max).max();
    text += &format!(
        "  memory      at most about {}: {}{} sessions, pool {}, messages up to {}\n",
        size(memory * ready.len() as u64),
        match several {
            true => format!("{} x {}, each with ", ready.len(), size(memory)),
            false => String::new(),
        },
        config.max_sessions,
        size(config.pool),
        size(
            largest
                .filter(|bytes| *bytes > 0)
                .unwrap_or(config.max_message)
        ),
    );
    if let Some(security) = security {
        let names = security.credentials.names().join(", ");
        text += &format!("  tls         certificate for {names}\n");
    }
    if let Some(http) = http {
        text += &format!("  status      http://{http}/\n");
    }
    let listeners: Vec<Listener> = bound
        .iter()
        .filter(|bound| bound.tcp().is_some())
        .map(|bound| bound.listener)
        .collect();
    text += &first_steps(config, &listeners);
    if !config.discard {
        text += &format!("Then: ringmx log{}\n", ring_option(config));
    }
    text
}

/// What the rings promise, how large they are, and how long they keep what.
fn storage_lines(config: &Config, ready: &[Ready], leftover: &[u32], text: &mut String) {
    let promise = match config.survive {
        Survive::Power => "power: 250 means that the message is on stable storage",
        Survive::Process => "process: a 250 survives kill -9, not power loss",
        Survive::Nothing => "nothing: messages are kept in memory and end with the process",
    };
    *text += &format!("  durability  {promise}\n");
    let sum = |of: fn(&Ready) -> u64| ready.iter().map(of).sum::<u64>();
    *text += &format!(
        "  ring        {}{} in {}, {} messages kept, {} free\n",
        match ready.len() > 1 {
            true => format!("{} rings, together ", ready.len()),
            false => String::new(),
        },
        size(sum(|ready| ready.ring_bytes)),
        match config.survive {
            Survive::Nothing => "memory".to_owned(),
            _ => config.ring.display().to_string(),
        },
        sum(|ready| ready.messages),
        size(sum(|ready| ready.free_bytes)),
    );
    let mut said: Vec<&str> = Vec::new();
    for ready in ready {
        if !said.contains(&ready.retention.as_str()) {
            said.push(&ready.retention);
            *text += &format!("  retention   {}\n", ready.retention);
        }
    }
    if !leftover.is_empty() {
        let names: Vec<String> = leftover.iter().map(|n| format!("shard-{n}")).collect();
        let it = if names.len() == 1 { "it" } else { "them" };
        *text += &format!(
            "  shards      no worker writes to {}: ringmx log reads {it}, ringmx consume empties {it}\n",
            names.join(", ")
        );
    }
    if let Some(ready) = ready.iter().find(|ready| !ready.warning.is_empty()) {
        complain(&format!("ringmx: warning: {}\n", ready.warning));
    }
}

fn join(bound: &[Bound]) -> String {
    let shown: Vec<&str> = bound.iter().map(|bound| bound.shown.as_str()).collect();
    shown.join(", ")
}

fn retention(config: &Config, log: &Log<FileBacking>) -> String {
    let names: Vec<&str> = log
        .consumers()
        .map(|consumer| consumer.name.as_str())
        .collect();
    let mut text = match config.full {
        Full::Auto if names.is_empty() => {
            "no consumer is registered: the newest mail is kept, the oldest gives way".to_owned()
        }
        Full::Overwrite => "the newest mail is kept, the oldest gives way".to_owned(),
        Full::Auto | Full::Defer if names.is_empty() => {
            "nothing is overwritten: when the ring is full, mail gets 452".to_owned()
        }
        Full::Auto | Full::Defer => format!(
            "mail is kept until {} acknowledged it; when the ring is full, mail gets 452",
            names.join(", ")
        ),
    };
    if let Some(age) = config.keep_for
        && !(config.full == Full::Defer && names.is_empty())
    {
        text += &format!("; mail older than {} is removed", units::duration_text(age));
    }
    text
}

/// A file system on which fdatasync promises less than it says.
fn file_system_warning(log: &Log<FileBacking>) -> Option<String> {
    use crate::sys::file::FileSystem;
    let file = std::fs::File::from(log.backing().file().try_clone_to_owned().ok()?);
    let name = match crate::sys::file::file_system(&file).ok()? {
        FileSystem::Memory => "a file system in memory: nothing on it survives a power loss",
        FileSystem::Remote => "a network file system: what a sync means is up to its server",
        FileSystem::Overlay => "an overlay file system: what a sync means is up to the layer below",
        FileSystem::Local => return None,
    };
    Some(format!("survive power: the ring is on {name}"))
}

/// Worst-case memory, bytes; docs/operations.md has the formula.
fn memory_bound(config: &Config) -> u64 {
    let ring_in_memory = if config.survive == Survive::Nothing && !config.discard {
        config.ring_size
    } else {
        0
    };
    let clients = if config.limits_clients() {
        ClientTable::memory_bytes(config.max_sessions)
    } else {
        0
    };
    config.pool
        + config.pool / 128
        + clients
        + config.max_sessions as u64 * SESSION_BYTES
        + if config.has_certificates() {
            // rustls keeps the certificates that a client gave.
            let kept = match config.tls_client_cert {
                ClientCertificates::Off => 0,
                _ => TLS_HANDSHAKE_BYTES_MAX as u64,
            };
            config.max_sessions as u64 * (TLS_SESSION_BYTES + kept)
                + config.tls_handshakes.min(config.max_sessions) as u64 * TLS_HANDSHAKE_BYTES
        } else {
            0
        }
        + BASE_BYTES
        + ring_in_memory
}
