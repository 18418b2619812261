//! The `ringmx` of this build, ended with SIGKILL.

use crate::support::{Authority, Guard, Place, holds, program, replace, skip, valid, wait_until};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The program; built when it is not there.
pub fn ringmx() -> Option<PathBuf> {
    let program = Path::new(env!("CARGO_BIN_EXE_smtp-loadgen")).with_file_name("ringmx");
    if !program.is_file() {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "-p", "ringmx"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status();
        if !built.is_ok_and(|status| status.success()) {
            skip!("ringmx is not built, and could not be");
            return None;
        }
    }
    program.is_file().then_some(program)
}

/// Starts it with these options; returns where it listens.
pub fn serve(ringmx: &Path, ring: &str, more: &[&str]) -> (Guard, Vec<String>) {
    let mut child = Command::new(ringmx)
        .args(["serve", "--http", "off", "--ring-size", "256MiB"])
        .args(["--full", "defer", "--ring", ring])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let guard = Guard(child);
    let mut line = String::new();
    while !line.starts_with("ringmx ") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "ringmx ended");
    }
    // Whatever else it prints must not block it.
    std::thread::spawn(move || output.read_to_end(&mut Vec::new()));
    let (_, addresses) = line.trim_end().split_once(" on ").unwrap();
    (guard, addresses.split(", ").map(str::to_owned).collect())
}

#[test]
fn ringmx_killed_after_the_last_250_holds_what_the_ledger_says() {
    let Some(ringmx) = ringmx() else {
        return;
    };
    let place = Place::new("ringmx");
    let (ring, ledger) = (place.at("ring"), place.at("ledger"));
    let (guard, targets) = serve(&ringmx, &ring, &["--listen", "127.0.0.1:0"]);
    let target = &targets[0];
    let mut sent = 0;
    for more in [
        &["--size", "600-5000"][..],
        &["--pipelining", "off"],
        &["--chunking"],
        &["--chunk", "1000", "--size", "500-9000"],
        &["--chunk", "300", "--pipelining", "off"],
        &["--messages-per-connection", "1"],
        &["--smtputf8", "--dsn", "never,orcpt"],
        &["--size", "300KiB"],
    ] {
        sent += valid(target, 50, &[&["--ledger", &ledger], more].concat()).1;
    }
    // SIGKILL: a 250 must have been true when it was sent.
    drop(guard);
    let program = ringmx.display().to_string();
    holds(&ledger, &["--ring", &ring, "--ringmx", &program], sent);
}

/// Files change under load: certificates, their keys and recipients, told by SIGHUP and untold. Everybody is served
/// with the old ones until the new ones are whole, so that nothing may be lost, refused or left unsent for it.
#[test]
fn ringmx_loses_and_refuses_nothing_while_certificates_and_recipients_are_read_again() {
    let Some(ringmx) = ringmx() else {
        return;
    };
    let place = Place::new("ringmx-reload");
    let tls = Authority::new(&place);
    let other_place = Place::new("ringmx-reload-other");
    let other = Authority::new(&other_place);
    let (ring, ledger) = (place.at("ring"), place.at("ledger"));
    let recipients = place.write("recipients", "@test.example\n");
    let (guard, targets) = serve(
        &ringmx,
        &ring,
        &[
            "--listen",
            "127.0.0.1:0,role=mx,tls=required",
            "--tls-cert",
            &tls.certificate,
            "--tls-key",
            &tls.key,
            "--recipients-file",
            &recipients,
        ],
    );
    let pid = guard.0.id().to_string();
    let hang_up = || {
        let told = Command::new("kill").args(["-HUP", &pid]).status();
        assert!(told.is_ok_and(|status| status.success()));
    };
    let changes = AtomicU64::new(0);
    let is_done = AtomicBool::new(false);
    let secured = |ca: &str| {
        let fixed = ["--ledger", &ledger, "--tls", "starttls", "--tls-ca", ca];
        let fixed = fixed.map(str::to_owned);
        [
            &fixed[..],
            &["--messages-per-connection".to_owned(), "3".to_owned()],
        ]
        .concat()
    };
    let mut sent = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                let count = changes.fetch_add(1, Ordering::Relaxed);
                // A certificate without its key is there for a moment, and a list that is no good for longer.
                tls.renew(&tls.certificate, &tls.key);
                let bad = if count % 3 == 2 { "two words\n" } else { "" };
                replace(
                    &recipients,
                    &format!("@test.example\nmore{count}@x.example\n{bad}"),
                );
                if count.is_multiple_of(2) {
                    hang_up();
                }
                std::thread::park_timeout(Duration::from_millis(50));
            }
        });
        let more = secured(&tls.ca);
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        while changes.load(Ordering::Relaxed) < 20 {
            sent += valid(&targets[0], 300, &more).1;
        }
        is_done.store(true, Ordering::Relaxed);
    });
    // What is read is used: before long clients that trust the other authority alone are served, without a signal.
    other.renew(&tls.certificate, &tls.key);
    let more = secured(&other.ca);
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let probe = [
        &[
            "run",
            &targets[0],
            "--messages",
            "1",
            "--quiet",
            "--connect-attempts",
            "1",
        ][..],
        &["--tls", "starttls", "--tls-ca", &other.ca],
    ]
    .concat();
    let mut probes = 0;
    wait_until("the new certificate is not used", || {
        let served = program(&probe).status.success();
        probes += u64::from(served);
        served
    });
    sent += valid(&targets[0], 20, &more).1;
    drop(guard);
    let held = ["--ring", &ring, "--ringmx", &ringmx.display().to_string()];
    let verified = program(&[&["verify", "--ledger", &ledger][..], &held].concat());
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    // The probes had no ledger.
    let expected = format!(
        "acknowledged {sent}  found {sent}  lost 0  duplicated 0  corrupted 0  \
         found-but-unacknowledged 0  foreign {probes}"
    );
    assert!(text.contains(&expected), "{expected}: {text}");
}
