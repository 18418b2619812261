//! Pre-flight: what the plan needs against what this machine has, before the first connection.
//!
//! Promises: each finding names its fix; only a plan that can't run as asked is refused.
//! Does not: look at the target (see `probe`).

use crate::plan::{Mode, Plan, Quit};
use std::path::Path;

/// What this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// File descriptors this process may open.
    pub files: u64,
    /// Ports that a connection may leave from, on each address.
    pub ports: u64,
    /// CPUs this process may use.
    pub cpus: u64,
    /// Memory available, in bytes; `u64::MAX` when unknown.
    pub memory: u64,
    /// Longest listen queue that the kernel allows (net.core.somaxconn); `u64::MAX` when unknown.
    pub listen_queue: u64,
    /// Space free where the ledger goes, in bytes; `u64::MAX` when unknown or without a ledger.
    pub disk: u64,
}

impl Machine {
    /// Asks this machine. `files` is the limit that `sys::raise_descriptor_limit` reached.
    pub fn here(files: u64, ledger: Option<&Path>) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let range = read("/proc/sys/net/ipv4/ip_local_port_range");
        let mut ends = range.split_whitespace().map(str::parse::<u64>);
        let ports = match (ends.next(), ends.next()) {
            (Some(Ok(low)), Some(Ok(high))) => (high + 1).saturating_sub(low),
            // The default of Linux.
            _ => 28_232,
        };
        let memory = read("/proc/meminfo")
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .map_or(u64::MAX, |kib| kib.saturating_mul(1024));
        let place = ledger.map(|path| match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        });
        Self {
            files,
            ports,
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
            memory,
            listen_queue: read("/proc/sys/net/core/somaxconn")
                .trim()
                .parse()
                .unwrap_or(u64::MAX),
            disk: place.and_then(crate::sys::disk_free).unwrap_or(u64::MAX),
        }
    }
}

/// How the plan is to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Event loops of all processes.
    pub threads: u64,
    /// Processes that share the sessions.
    pub processes: u64,
    /// Sessions that misbehave beside the others.
    pub hostile: u64,
    /// Addresses to connect from; 0 for a UNIX socket, which needs no port.
    pub sources: u64,
    /// The target is on this machine.
    pub local: bool,
    /// Connects that may be under way at one time, by all event loops.
    pub connecting: u64,
}

/// Bytes of a ledger line, with a reply of usual length.
const LEDGER_LINE: u64 = 128;
/// Seconds that Linux keeps a closed port in TIME_WAIT.
const TIME_WAIT_S: f64 = 60.0;

/// Returns how many messages the plan has, as far as it says.
fn messages(plan: &Plan) -> Option<u64> {
    let planned = match (plan.mode, plan.duration_ns) {
        (Mode::Open { rate, .. }, Some(ns)) => {
            Some((rate * (ns + plan.warmup_ns) as f64 / 1e9) as u64)
        }
        _ => None,
    };
    plan.messages.into_iter().chain(planned).min()
}

/// Returns the most connections the plan makes in one TIME_WAIT, as far as it says.
fn connections(plan: &Plan) -> Option<f64> {
    let each = match plan.mode {
        Mode::Open {
            by_connection: true,
            ..
        } => 1.0,
        _ => f64::from(plan.per_connection.most()),
    };
    if each == 0.0 {
        return None;
    }
    let most = match plan.mode {
        Mode::Open { rate, .. } => Some(rate * TIME_WAIT_S / each),
        Mode::Closed => None,
    };
    let planned = plan.messages.map(|messages| messages as f64 / each);
    most.into_iter().chain(planned).min_by(f64::total_cmp)
}

/// Compares; returns warnings.
///
/// **Errors**, in words: the plan can't run as asked.
pub fn judge(plan: &Plan, setting: Setting, machine: Machine) -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    let sessions = u64::from(plan.sessions);
    let each = sessions.div_ceil(setting.processes.max(1));
    let files = each + setting.hostile + 32;
    if files > machine.files {
        let room = machine.files.saturating_sub(setting.hostile + 32).max(1);
        return Err(format!(
            "{each} sessions need {files} file descriptors and {} are allowed in one process; \
             raise `ulimit -n`, or use --processes {}",
            machine.files,
            sessions.div_ceil(room)
        ));
    }
    let ports = machine.ports.saturating_mul(setting.sources);
    if setting.sources > 0 && sessions > ports {
        return Err(format!(
            "{sessions} sessions need as many ports and there are {ports}; connect from more \
             addresses, on loopback --source 127.0.0.0/8, or widen net.ipv4.ip_local_port_range"
        ));
    }
    // The side that closes first keeps the port; on loopback either side is this machine.
    let keeps = match plan.quit {
        Quit::Wait => setting.local,
        Quit::Reset => false,
        Quit::None => true,
    };
    if let Some(connections) = connections(plan)
        && setting.sources > 0
        && keeps
        && connections > ports as f64
    {
        warnings.push(format!(
            "up to {connections:.0} connections a minute leave their ports in TIME_WAIT and there \
             are {ports}; use --quit reset, or on loopback --source 127.0.0.0/8"
        ));
    }
    let connecting = setting.connecting.min(sessions);
    if setting.local && connecting > machine.listen_queue {
        warnings.push(format!(
            "{connecting} connects may be under way at one time, and a listen queue here holds at most \
             {}; what overflows waits a second for its next SYN: use a smaller --connect-burst, or \
             raise net.core.somaxconn and the target's backlog",
            machine.listen_queue
        ));
    }
    if setting.threads > machine.cpus {
        warnings.push(format!(
            "{} event loops share {} CPUs; use fewer --threads or --processes",
            setting.threads, machine.cpus
        ));
    } else if setting.local && setting.threads == machine.cpus {
        warnings.push(format!(
            "{} event loops leave the target none of the {} CPUs of this machine; use fewer \
             --threads, and bind both with --cpus and taskset",
            setting.threads, machine.cpus
        ));
    }
    if let Some(messages) = messages(plan) {
        let ledger = messages.saturating_mul(LEDGER_LINE);
        if ledger > machine.disk {
            return Err(format!(
                "the ledger of {messages} messages takes about {} and {} are free there; use \
                 another file system or fewer --messages",
                bytes(ledger),
                bytes(machine.disk)
            ));
        }
        let samples = messages.clamp(1, 1000);
        let sum: u64 = (0..samples).map(|seq| plan.message(seq).size).sum();
        let payload = (messages as f64 * sum as f64 / samples as f64) as u64;
        if setting.local && payload > machine.memory {
            warnings.push(format!(
                "the messages are about {} and this machine, which is also the target, has {} of \
                 memory available; what it does not write to disk will not fit: use fewer \
                 --messages or a smaller --size",
                bytes(payload),
                bytes(machine.memory)
            ));
        }
    }
    if plan.chunk > 0 && plan.corpus == 0 {
        let largest = (0..1000).map(|seq| plan.message(seq).size).max();
        let held = largest.unwrap_or(0).saturating_mul(2 * sessions);
        if held > machine.memory {
            return Err(format!(
                "with --chunk each session holds its message: {sessions} of them up to {}, and {} \
                 of memory are available; use fewer --sessions or a smaller --size",
                bytes(held),
                bytes(machine.memory)
            ));
        }
    }
    Ok(warnings)
}

fn bytes(count: u64) -> String {
    match count as f64 {
        count if count >= 1e9 => format!("{:.1} GB", count / 1e9),
        count => format!("{:.1} MB", count / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::plan;
    use crate::plan::{Count, Sizes};

    const MACHINE: Machine = Machine {
        files: 1024,
        ports: 28_000,
        cpus: 4,
        memory: 1_000_000_000,
        listen_queue: 4096,
        disk: u64::MAX,
    };
    const SETTING: Setting = Setting {
        threads: 1,
        processes: 1,
        hostile: 0,
        sources: 1,
        local: true,
        connecting: 64,
    };

    #[test]
    fn a_plan_that_fits_raises_no_finding() {
        assert_eq!(judge(&plan(), SETTING, MACHINE), Ok(Vec::new()));
    }

    #[test]
    fn more_connects_at_a_time_than_a_listen_queue_holds_are_named() {
        let mut many = plan();
        many.sessions = 900;
        let short = Machine {
            listen_queue: 128,
            ..MACHINE
        };
        let burst = Setting {
            connecting: 500,
            ..SETTING
        };
        assert_eq!(judge(&many, SETTING, short), Ok(Vec::new()));
        let warnings = judge(&many, burst, short).unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].starts_with("500 connects may be under way")
                && warnings[0].contains("--connect-burst")
                && warnings[0].contains("net.core.somaxconn"),
            "{warnings:?}"
        );
        let remote = Setting {
            local: false,
            ..burst
        };
        assert_eq!(judge(&many, remote, short), Ok(Vec::new()));
    }

    #[test]
    fn a_plan_that_cannot_run_is_refused_with_the_fix() {
        let refusal = |plan: &Plan, machine: Machine| judge(plan, SETTING, machine).unwrap_err();
        let mut many = plan();
        many.sessions = 1000;
        assert_eq!(
            refusal(&many, MACHINE),
            "1000 sessions need 1032 file descriptors and 1024 are allowed in one process; raise \
             `ulimit -n`, or use --processes 2"
        );
        many.sessions = 30_000;
        let wide = Machine {
            files: 1 << 20,
            ..MACHINE
        };
        assert!(refusal(&many, wide).contains("there are 28000; connect from more addresses"));
        let spread = Setting {
            sources: 2,
            ..SETTING
        };
        assert_eq!(judge(&many, spread, wide), Ok(Vec::new()));
        let mut long = plan();
        long.messages = Some(1_000_000);
        let full = Machine {
            disk: 100_000_000,
            ..MACHINE
        };
        assert_eq!(
            refusal(&long, full),
            "the ledger of 1000000 messages takes about 128.0 MB and 100.0 MB are free there; use \
             another file system or fewer --messages"
        );
        let mut held = plan();
        (held.chunk, held.sessions, held.sizes) = (1000, 900, Sizes::Fixed(1 << 20));
        assert!(refusal(&held, MACHINE).starts_with("with --chunk each session holds its message"));
    }

    #[test]
    fn what_will_disturb_is_a_warning_with_the_fix() {
        let mut brief = plan();
        (brief.per_connection, brief.messages) = (Count::Fixed(1), Some(40_000));
        let said = |plan: &Plan, setting: Setting| judge(plan, setting, MACHINE).unwrap();
        let ports = "up to 40000 connections a minute leave their ports in TIME_WAIT and there \
                     are 28000; use --quit reset, or on loopback --source 127.0.0.0/8";
        assert_eq!(said(&brief, SETTING), [ports]);
        let away = Setting {
            local: false,
            ..SETTING
        };
        assert_eq!(said(&brief, away), Vec::<String>::new());
        brief.quit = Quit::Reset;
        assert_eq!(said(&brief, SETTING), Vec::<String>::new());
        let threads = |threads: u64| Setting { threads, ..SETTING };
        assert_eq!(
            said(&plan(), threads(5)),
            ["5 event loops share 4 CPUs; use fewer --threads or --processes"]
        );
        assert!(said(&plan(), threads(4))[0].starts_with("4 event loops leave the target none"));
        let mut heavy = plan();
        (heavy.messages, heavy.sizes) = (Some(2000), Sizes::Fixed(1_000_000));
        assert!(said(&heavy, SETTING)[0].starts_with(
            "the messages are about 2.0 GB and this machine, which is also the target, has 1.0 GB"
        ));
    }

    #[test]
    fn this_machine_answers() {
        let place = std::env::temp_dir().join("ledger");
        let here = Machine::here(100, Some(&place));
        assert!(here.ports > 0 && here.cpus > 0 && here.memory > 0);
        assert_ne!(here.disk, u64::MAX);
    }
}
