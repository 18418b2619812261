//! The `ringmx` of this build, ended with SIGKILL.

use crate::support::{Guard, Place, holds, skip, valid};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
