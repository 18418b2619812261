//! `ringmx conformance` against a server that keeps the rules and one that breaks many of them.

#[allow(dead_code, reason = "other tests use what this one does not")]
mod process;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use process::{Server, TestDir, ringmx};
use serde_json::Value;

/// Runs the tool against `target` and reads its document; the exit code comes first.
fn conformance(target: SocketAddr, more: &[&str]) -> (i32, Value) {
    let target = target.to_string();
    let mut arguments = vec!["conformance", &target, "--sink", "--json", "-"];
    arguments.extend(["--quiet-time", "200ms", "--timeout", "20s"]);
    arguments.extend(more);
    let output = ringmx(&arguments);
    let document = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code().unwrap(), document)
}

/// Numbers of the cases with this outcome.
fn ids(document: &Value, outcome: &str) -> Vec<String> {
    let cases = document["cases"].as_array().unwrap();
    cases
        .iter()
        .filter(|case| case["outcome"] == outcome)
        .map(|case| case["id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn ringmx_passes_every_case_that_can_be_tried() {
    let dir = TestDir::new();
    let server = Server::start(&dir, &["--server-name", "mx.example"]);
    let html = dir.join("report.html");
    let ring = dir.ring();
    let (code, document) = conformance(server.address, &["--ring", &ring, "--html", &html]);
    let failed = ids(&document, "fail");
    assert!(failed.is_empty(), "{failed:?}: {document:#}");
    assert_eq!(code, 0);
    assert_eq!(document["schema"], "ringmx.conformance.v1");
    assert_eq!(document["failed_must"], 0);
    assert_eq!(document["greeting"], "220 mx.example ESMTP ringmx ready");
    // What is not tried says why; nothing that needs no extension is left out in silence.
    for case in document["cases"].as_array().unwrap() {
        let detail = case["detail"].as_str().unwrap_or_default();
        let known = [
            "is not offered",
            "a sink takes every recipient",
            "takes 20 s",
        ];
        assert!(
            case["outcome"] == "pass" || known.iter().any(|reason| detail.contains(reason)),
            "{case}"
        );
    }
    let passed = ids(&document, "pass").len();
    assert!(passed >= 190, "{passed}");
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>"));
    assert!(
        !page.contains("http://") && !page.contains("https://"),
        "nothing from elsewhere"
    );
    server.stop();
}

/// A server that ends lines and messages at LF, answers 250 to nearly everything, and tells what it was sent.
fn sloppy(stream: TcpStream) -> std::io::Result<()> {
    let mut out = stream.try_clone()?;
    let mut lines = BufReader::new(stream);
    out.write_all(b"220 *** ready\r\n")?;
    loop {
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let verb = line.to_ascii_uppercase();
        if verb.starts_with(b"EHLO") {
            out.write_all(
                b"250-sloppy.example\r\n250-SIZE 100000\r\n250-PIPELINING\r\n250 REQUIRETLS\r\n",
            )?;
        } else if verb.starts_with(b"QUIT") {
            return out.write_all(b"221 bye\r\n");
        } else if verb.starts_with(b"WHAT") {
            out.write_all(&[b"500 no ", &line[..]].concat())?;
        } else if verb.starts_with(b"DATA") {
            out.write_all(b"354 go on\r\n")?;
            loop {
                let mut text = Vec::new();
                if lines.read_until(b'\n', &mut text)? == 0 {
                    return Ok(());
                }
                if text == b".\n" || text == b".\r\n" {
                    break;
                }
            }
            out.write_all(b"250 taken\r\n")?;
        } else {
            out.write_all(b"250 fine\r\n")?;
        }
    }
}

#[test]
fn a_server_that_breaks_rules_is_told_which() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || sloppy(stream));
        }
    });
    let only = "C002,C007,C030,C031,C079,C095,C116,C13,C15,C242,C290,E00";
    let (code, document) = conformance(address, &["--only", only]);
    assert_eq!(code, 1);
    assert_eq!(
        ids(&document, "fail"),
        [
            "C002", "C007", "C030", "C031", "C079", "C095", "C116", "C132", "C134", "C135", "C136",
            "C137", "C138", "C139", "C151", "C152", "C158", "C242", "E001", "E005", "E007"
        ]
    );
    assert_eq!(
        ids(&document, "pass"),
        [
            "C130", "C131", "C133", "C150", "C153", "C154", "C155", "C156", "C157", "C290", "E002",
            "E003", "E004", "E006", "E008", "E009"
        ]
    );
    let cases = document["cases"].as_array().unwrap();
    let smuggled = cases.iter().find(|case| case["id"] == "E001").unwrap();
    let detail = smuggled["detail"].as_str().unwrap();
    assert!(detail.contains("content became commands"), "{detail}");
    let dialogue = smuggled["dialogue"].as_array().unwrap();
    assert!(
        dialogue.iter().any(|line| line == "S: 354 go on"),
        "{dialogue:?}"
    );

    let (code, document) = conformance(address, &["--only", "C003,C046"]);
    assert_eq!(
        ids(&document, "fail"),
        Vec::<String>::new(),
        "an echo is no fault of form"
    );
    assert_eq!(code, 0);
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    drop(listener);
    let output = ringmx(&["conformance", &target]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.starts_with(&format!("ringmx conformance: {target}: ")),
        "{error}"
    );
}
