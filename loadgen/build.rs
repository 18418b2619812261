//! Tells the program by which compiler and from which commit it was built, for its reports.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = said(&rustc, &["--version"]).unwrap_or_default();
    println!("cargo::rustc-env=SMTP_LOADGEN_RUSTC={version}");
    // Only figures of a release build are worth a commit; a test build would be made again with each.
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = release.then(|| said("git", &["rev-parse", "--short=12", "HEAD"]));
    if let Some(log) = said("git", &["rev-parse", "--git-path", "logs/HEAD"]).filter(|_| release) {
        println!("cargo::rerun-if-changed={log}");
    }
    let commit = commit.flatten().unwrap_or_default();
    println!("cargo::rustc-env=SMTP_LOADGEN_COMMIT={commit}");
}

/// The first line that a program prints; nothing when it can't be run or fails.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?.trim().to_owned();
    output.status.success().then_some(line)
}
