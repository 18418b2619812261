//! The results as text, as JSON, and as a page.

use serde_json::json;

use super::cases::Case;
use super::{Outcome, Run};
use crate::clock::calendar;

/// All cases, one a line.
pub fn list(cases: &[Case]) -> String {
    let mut out = String::new();
    for case in cases {
        out += &format!(
            "{} {:<6} {:<20} {}\n",
            case.id,
            case.level.name(),
            case.source,
            case.what
        );
    }
    out
}

fn date(ns: u64) -> String {
    let date = calendar(ns / 1_000_000_000);
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02} UTC",
        date.year, date.month, date.day, date.hour, date.minute
    )
}

fn summary(run: &Run) -> String {
    let [passed, must, should, skipped] = run.counts();
    format!(
        "{passed} passed, {must} MUST failed, {should} SHOULD failed, {skipped} not tried, in {:.1} s",
        run.took_ns as f64 / 1e9
    )
}

/// What a terminal shows: failures with their dialogue, what was not tried, the sum. `all`: passed cases as well.
pub fn text(run: &Run, all: bool) -> String {
    let mut out = format!("{}  {}\n\n", run.options.target, run.greeting);
    for finding in &run.findings {
        let case = finding.case;
        let line = |word: &str| {
            format!(
                "{word} {} {:<6} {} ({})\n",
                case.id,
                case.level.name(),
                case.what,
                case.source
            )
        };
        match &finding.outcome {
            Outcome::Pass if all => out += &line("pass"),
            Outcome::Pass => {}
            Outcome::Fail(text) => {
                out += &line("FAIL");
                out += &format!("     {text}\n");
                for line in &finding.transcript {
                    out += &format!("       {line}\n");
                }
            }
            Outcome::Skip(text) => {
                out += &line("skip");
                out += &format!("     {text}\n");
            }
        }
    }
    out += &format!("{}\n", summary(run));
    out
}

/// One JSON document.
pub fn json(run: &Run) -> String {
    let cases: Vec<_> = run
        .findings
        .iter()
        .map(|finding| {
            let (outcome, detail) = match &finding.outcome {
                Outcome::Pass => ("pass", None),
                Outcome::Fail(text) => ("fail", Some(text)),
                Outcome::Skip(text) => ("skip", Some(text)),
            };
            json!({
                "id": finding.case.id,
                "source": finding.case.source,
                "level": finding.case.level.name(),
                "what": finding.case.what,
                "outcome": outcome,
                "detail": detail,
                "dialogue": finding.transcript,
            })
        })
        .collect();
    let [passed, must, should, skipped] = run.counts();
    let keywords: Vec<String> = run
        .offer
        .keywords
        .iter()
        .map(|(keyword, arguments)| format!("{keyword} {arguments}").trim_end().to_owned())
        .collect();
    let document = json!({
        "schema": "ringmx.conformance.v1",
        "version": env!("CARGO_PKG_VERSION"),
        "target": run.options.target,
        "greeting": run.greeting,
        "offered": keywords,
        "started_ns": run.started_ns,
        "took_ns": run.took_ns,
        "passed": passed,
        "failed_must": must,
        "failed_should": should,
        "skipped": skipped,
        "cases": cases,
    });
    format!("{document:#}\n")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

const STYLE: &str = "\
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.25rem .6rem;\
border-bottom:1px solid #8884}td:first-child{white-space:nowrap}.pass{color:#28763f}.fail{color:#b3261e;font-weight:600}\
.skip{color:#777}pre{font-size:12px;overflow-x:auto;margin:.3rem 0}\
@media(prefers-color-scheme:dark){.pass{color:#7fce98}.fail{color:#ff8a80}.skip{color:#aaa}}";

/// One page without anything from elsewhere.
pub fn html(run: &Run) -> String {
    let mut rows = String::new();
    for finding in &run.findings {
        let case = finding.case;
        let (class, detail) = match &finding.outcome {
            Outcome::Pass => ("pass", ""),
            Outcome::Fail(text) => ("fail", text.as_str()),
            Outcome::Skip(text) => ("skip", text.as_str()),
        };
        let dialogue = if finding.transcript.is_empty() {
            String::new()
        } else {
            format!(
                "<details><summary>dialogue</summary><pre>{}</pre></details>",
                escaped(&finding.transcript.join("\n"))
            )
        };
        rows += &format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"{class}\">{class}</td><td>{}{dialogue}</td></tr>\n",
            case.id,
            case.level.name(),
            escaped(case.source),
            escaped(case.what),
            escaped(detail),
        );
    }
    let target = escaped(&run.options.target);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>SMTP conformance of {target}</title>\
         <style>{STYLE}</style></head><body>\n<h1>SMTP conformance of {target}</h1>\n<p><code>{}</code></p>\n\
         <p>{}, {}</p>\n<table><thead><tr><th>case</th><th>level</th><th>source</th><th>what</th><th>outcome</th>\
         <th>detail</th></tr></thead><tbody>\n{rows}</tbody></table>\n</body></html>\n",
        escaped(&run.greeting),
        date(run.started_ns),
        escaped(&summary(run)),
    )
}
