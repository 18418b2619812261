//! The HTML page of a run: one file, no script, pictures as inline SVG, light and dark.

use crate::hdr;
use crate::recorder::{CELLS, cell_end};
use crate::report::{grouped, time};
use hdrhistogram::Histogram;
use serde_json::Value;
use std::fmt::Write;

const STYLE: &str = "
:root{color-scheme:light dark;--fg:#1b1f24;--bg:#fff;--dim:#667;--line:#ccd;--a:#1668c4;--b:#c2550a;--c:#2c8a4b;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--fg:#e6e8eb;--bg:#15181c;--dim:#99a;--line:#3a3f47;--a:#6db3ff;--b:#ffa45c;--c:#6fd08c;--bad:#ff8a80}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.3rem}h2{font-size:1.05rem;margin-top:2rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.15rem .8rem .15rem 0;text-align:right;border-bottom:1px solid var(--line)}
td:first-child,th:first-child,td.l,th.l{text-align:left}
.verdict{border:2px solid var(--c);border-radius:.5rem;padding:.6rem 1rem}.verdict.bad{border-color:var(--bad)}
.verdict b{font-size:1.25rem}.dim{color:var(--dim)}
.wide{overflow-x:auto}svg{width:100%;min-width:36rem;height:auto;display:block}pre{overflow-x:auto}svg text{fill:var(--dim);font:11px system-ui,sans-serif}
.axis{stroke:var(--line)}.s0{stroke:var(--a);fill:none;stroke-width:2}.s1{stroke:var(--b);fill:none;stroke-width:2}.s2{stroke:var(--c);fill:none;stroke-width:2}
.f0{fill:var(--a)}.f1{fill:var(--b)}.f2{fill:var(--c)}.stall{fill:var(--bad);opacity:.25}svg text[class]{paint-order:stroke;stroke:var(--bg);stroke-width:5px}svg text.key0{fill:var(--a)}svg text.key1{fill:var(--b)}svg text.key2{fill:var(--c)}
";

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 34.0;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn open_svg(title: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
        escape(title)
    )
}

/// Maps a share of the plot to its place.
fn x(share: f64) -> f64 {
    LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
}

fn y(share: f64) -> f64 {
    HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
}

fn grid_y(svg: &mut String, share: f64, label: &str) {
    let at = y(share);
    let _ = write!(
        svg,
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
         <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        WIDTH - RIGHT,
        LEFT - 6.0,
        at + 4.0,
        escape(label)
    );
}

fn label_x(svg: &mut String, share: f64, label: &str) {
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{}\">{}</text>",
        x(share),
        HEIGHT - BOTTOM + 16.0,
        // A label centred at the right edge would be cut.
        if share > 0.99 { "end" } else { "middle" },
        escape(label)
    );
}

fn key(svg: &mut String, index: usize, label: &str) {
    let place = (LEFT + 12.0, TOP + 14.0);
    key_at(svg, index, label, place, "start");
}

/// In the lower right, where a curve of percentiles never is: it rises.
fn key_below(svg: &mut String, index: usize, label: &str) {
    let place = (WIDTH - RIGHT - 12.0, HEIGHT - BOTTOM - 42.0);
    key_at(svg, index, label, place, "end");
}

fn key_at(svg: &mut String, index: usize, label: &str, place: (f64, f64), anchor: &str) {
    let _ = write!(
        svg,
        "<text class=\"key{index}\" x=\"{}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
        place.0,
        place.1 + 15.0 * index as f64,
        escape(label)
    );
}

/// A time on an axis: short runs have marks between whole seconds.
fn seconds(at: f64) -> String {
    if at.fract() == 0.0 || at >= 100.0 {
        format!("{at:.0} s")
    } else {
        format!("{at:.1} s")
    }
}

/// Latency against percentile, both logarithmic: tails become visible.
fn percentiles(report: &Value) -> String {
    let tables = [
        ("response", "response, from the planned start"),
        ("service", "service, from the first byte"),
        ("end_of_data", "end of data to final reply"),
    ];
    let curves: Vec<(&str, Histogram<u64>)> = tables
        .iter()
        .filter_map(|(name, title)| {
            let text = report["latency"][*name]["hdr_b64"].as_str()?;
            Some((*title, hdr::decode(text)?))
        })
        .filter(|(_, histogram)| !histogram.is_empty())
        .collect();
    if curves.is_empty() {
        return String::new();
    }
    let low = curves
        .iter()
        .map(|(_, h)| h.min().max(1000))
        .min()
        .unwrap_or(1000) as f64;
    let high = curves.iter().map(|(_, h)| h.max()).max().unwrap_or(1000) as f64;
    let (low, high) = (
        low.log10().floor(),
        high.log10().ceil().max(low.log10().floor() + 1.0),
    );
    let most = curves.iter().map(|(_, h)| h.len()).max().unwrap_or(1) as f64;
    let nines = most.log10().clamp(1.0, 7.0);
    let mut svg = open_svg("latency by percentile");
    for power in low as i32..=high as i32 {
        let share = (f64::from(power) - low) / (high - low);
        grid_y(&mut svg, share, &time(10f64.powi(power) as u64));
    }
    for n in 0..=nines as i32 {
        let label = match n {
            0 => "0 %".to_owned(),
            1 => "90 %".to_owned(),
            2 => "99 %".to_owned(),
            n => format!("99.{} %", "9".repeat(n as usize - 2)),
        };
        label_x(&mut svg, f64::from(n) / nines, &label);
    }
    for (index, (title, histogram)) in curves.iter().enumerate() {
        let mut points = String::new();
        for step in 0..=200 {
            let n = f64::from(step) / 200.0 * nines;
            let quantile = 1.0 - 10f64.powf(-n);
            if (1.0 - quantile) * (histogram.len() as f64) < 1.0 {
                break;
            }
            let ns = histogram.value_at_quantile(quantile).max(1000) as f64;
            let share = (ns.log10() - low) / (high - low);
            let _ = write!(points, "{:.1},{:.1} ", x(n / nines), y(share));
        }
        let _ = write!(svg, "<polyline class=\"s{index}\" points=\"{points}\"/>");
        key_below(&mut svg, index, title);
    }
    svg + "</svg>"
}

/// Accepted and offered messages in each second; seconds without any are shaded.
fn rates(report: &Value) -> String {
    let mut series = report["series"].as_array().cloned().unwrap_or_default();
    let window = &report["window"];
    let ns = |name: &str| window[name].as_u64().unwrap_or(0);
    // What comes behind the last full second would look like a fall.
    series.truncate(((ns("warmup_ns") + ns("measured_ns")) / 1_000_000_000) as usize);
    if series.len() < 2 {
        return String::new();
    }
    let value = |row: &Value, name: &str| row[name].as_f64().unwrap_or(0.0);
    let most = series
        .iter()
        .map(|row| value(row, "accepted").max(value(row, "offered")))
        .fold(1.0, f64::max)
        * 1.05;
    let mut svg = open_svg("messages a second over time");
    let last = (series.len() - 1) as f64;
    for part in 0..=4 {
        let share = f64::from(part) / 4.0;
        grid_y(&mut svg, share, &grouped(most * share));
        label_x(&mut svg, share, &seconds(last * share));
    }
    for (second, row) in series.iter().enumerate() {
        if value(row, "accepted") == 0.0 {
            let from = x((second as f64 - 0.5) / last);
            let to = x((second as f64 + 0.5) / last);
            let _ = write!(
                svg,
                "<rect class=\"stall\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\"/>",
                to - from,
                HEIGHT - TOP - BOTTOM
            );
        }
    }
    for (index, name) in ["accepted", "offered"].iter().enumerate() {
        if series.iter().all(|row| value(row, name) == 0.0) {
            continue;
        }
        let mut points = String::new();
        for (second, row) in series.iter().enumerate() {
            let _ = write!(
                points,
                "{:.1},{:.1} ",
                x(second as f64 / last),
                y(value(row, name) / most)
            );
        }
        let _ = write!(svg, "<polyline class=\"s{index}\" points=\"{points}\"/>");
        key(&mut svg, index, &format!("{name} a second"));
    }
    svg + "</svg>"
}

/// Time against latency, darker where more messages were.
fn heat(report: &Value) -> String {
    let series = report["series"].as_array().cloned().unwrap_or_default();
    let cells: Vec<(usize, usize, f64)> = series
        .iter()
        .enumerate()
        .flat_map(|(second, row)| {
            let pairs = row["cells"].as_array().cloned().unwrap_or_default();
            pairs.into_iter().filter_map(move |pair| {
                let cell = pair[0].as_u64()? as usize;
                (cell < CELLS).then_some((second, cell, pair[1].as_f64()?))
            })
        })
        .collect();
    if series.len() < 2 || cells.is_empty() {
        return String::new();
    }
    let low = cells.iter().map(|(_, cell, _)| *cell).min().unwrap_or(0);
    let high = cells.iter().map(|(_, cell, _)| *cell).max().unwrap_or(0) + 1;
    let most = cells.iter().map(|(.., count)| *count).fold(1.0, f64::max);
    let (columns, rows) = (series.len() as f64, (high - low) as f64);
    let mut svg = open_svg("latency over time");
    for part in 0..=4 {
        let cell = low + (rows * f64::from(part) / 4.0) as usize;
        let start = if cell == 0 { 0 } else { cell_end(cell - 1) };
        grid_y(&mut svg, (cell - low) as f64 / rows, &time(start));
        label_x(
            &mut svg,
            f64::from(part) / 4.0,
            &seconds(columns * f64::from(part) / 4.0),
        );
    }
    for (second, cell, count) in cells {
        let (from, to) = (x(second as f64 / columns), x((second + 1) as f64 / columns));
        let (top, bottom) = (
            y((cell + 1 - low) as f64 / rows),
            y((cell - low) as f64 / rows),
        );
        let _ = write!(
            svg,
            "<rect class=\"f0\" opacity=\"{:.2}\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" \
             height=\"{:.1}\"/>",
            0.08 + 0.92 * (count.ln_1p() / most.ln_1p()),
            to - from,
            bottom - top
        );
    }
    svg + "</svg>"
}

/// Median and 99 % of each phase, side by side.
fn phases(report: &Value) -> String {
    let Some(table) = report["latency"]["phases"].as_object() else {
        return String::new();
    };
    let order = crate::client::Phase::ALL;
    let rows: Vec<(&str, f64, f64)> = order
        .iter()
        .filter_map(|phase| {
            let row = table.get(phase.name())?;
            let p50 = row["p50_ns"].as_f64()?;
            Some((phase.name(), p50, row["p99_ns"].as_f64().unwrap_or(p50)))
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let most = rows.iter().map(|(.., p99)| *p99).fold(1.0, f64::max);
    let height = rows.len() as f64 * 26.0 + 8.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"latency by phase\">"
    );
    for (index, (name, p50, p99)) in rows.iter().enumerate() {
        let top = index as f64 * 26.0 + 4.0;
        let _ = write!(
            svg,
            "<text x=\"90\" y=\"{:.0}\" text-anchor=\"end\">{name}</text>",
            top + 14.0
        );
        for (bar, (value, word)) in [(p50, "p50"), (p99, "p99")].iter().enumerate() {
            let width = (*value / most * 640.0).max(1.0);
            let at = top + bar as f64 * 10.0;
            let _ = write!(
                svg,
                "<rect class=\"f{bar}\" x=\"96\" y=\"{at:.0}\" width=\"{width:.1}\" height=\"9\"/>\
                 <text x=\"{:.1}\" y=\"{:.0}\">{word} {}</text>",
                100.0 + width,
                at + 9.0,
                time(**value as u64)
            );
        }
    }
    svg + "</svg>"
}

fn outcomes(report: &Value) -> String {
    if report["outcomes"].as_array().is_none_or(Vec::is_empty) {
        return String::new();
    }
    let mut html = String::from(
        "<table><tr><th>phase</th><th class=\"l\">code</th><th>count</th>\
         <th class=\"l\">first text</th></tr>",
    );
    for row in report["outcomes"].as_array().into_iter().flatten() {
        let word = |name: &str| escape(row[name].as_str().unwrap_or(""));
        let code = match row["fault"].as_str() {
            Some(fault) => escape(fault),
            None => format!("{} {}", row["code"], word("enhanced")),
        };
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"l\">{code}</td><td>{}</td><td class=\"l\">{}</td></tr>",
            word("phase"),
            grouped(row["count"].as_f64().unwrap_or(0.0)),
            word("sample")
        );
    }
    html + "</table>"
}

/// Latency against offered rate, from the steps of `find-max` or `sweep`.
fn steps(report: &Value) -> String {
    let Some(rows) = report["steps"].as_array() else {
        return String::new();
    };
    let mut html = String::from(
        "<h2>Steps</h2><table><tr><th>offered/s</th><th>accepted/s</th><th>p50</th><th>p99</th>\
         <th>max</th><th class=\"l\">verdict</th><th class=\"l\">limits</th></tr>",
    );
    for row in rows {
        let ns = |name: &str| row[name].as_u64().map_or("-".into(), time);
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"l\">{}</td>\
             <td class=\"l\">{}</td></tr>",
            grouped(row["offered_per_s"].as_f64().unwrap_or(0.0)),
            grouped(row["accepted_per_s"].as_f64().unwrap_or(0.0)),
            ns("p50_ns"),
            ns("p99_ns"),
            ns("max_ns"),
            escape(row["verdict"].as_str().unwrap_or("")),
            if row["pass"] == true {
                "met"
            } else {
                "not met"
            },
        );
    }
    html.push_str("</table>");
    let points: Vec<(f64, f64, bool)> = rows
        .iter()
        .filter_map(|row| {
            Some((
                row["offered_per_s"].as_f64()?,
                row["p99_ns"].as_f64()?.max(1000.0),
                row["pass"] == true,
            ))
        })
        .collect();
    if points.len() < 2 {
        return html;
    }
    let most = points.iter().map(|point| point.0).fold(1.0, f64::max) * 1.05;
    let low = points
        .iter()
        .map(|point| point.1.log10())
        .fold(f64::INFINITY, f64::min)
        .floor();
    let high = points
        .iter()
        .map(|point| point.1.log10())
        .fold(0.0, f64::max)
        .ceil()
        .max(low + 1.0);
    html.push_str(&open_svg("p99 response against offered rate"));
    for power in low as i32..=high as i32 {
        let share = (f64::from(power) - low) / (high - low);
        grid_y(&mut html, share, &time(10f64.powi(power) as u64));
    }
    for part in 0..=4 {
        let share = f64::from(part) / 4.0;
        label_x(&mut html, share, &format!("{}/s", grouped(most * share)));
    }
    for (rate, p99, pass) in points {
        let _ = write!(
            html,
            "<circle class=\"{}\" r=\"5\" cx=\"{:.1}\" cy=\"{:.1}\"/>",
            if pass { "f2" } else { "f1" },
            x(rate / most),
            y((p99.log10() - low) / (high - low))
        );
    }
    key(&mut html, 2, "met the limits");
    key(&mut html, 1, "did not");
    html + "</svg>"
}

/// Renders a report as a page.
pub fn page(report: &Value) -> String {
    let state = report["verdict"]["state"].as_str().unwrap_or("?");
    let reasons: Vec<&str> = report["verdict"]["reasons"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let totals = &report["totals"];
    // A search has many runs and no totals of its own.
    let counts = totals["attempted"].as_f64().map_or(String::new(), |n| {
        format!(
            "; {} of {} messages in all",
            grouped(totals["accepted"].as_f64().unwrap_or(0.0)),
            grouped(n)
        )
    });
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>smtp-loadgen {}</title>\
         <style>{STYLE}</style><h1>smtp-loadgen: {}</h1>\
         <div class=\"verdict{}\"><b>{state}</b> <span class=\"dim\">{}</span><br>\
         {} messages a second accepted{counts}</div>",
        escape(state),
        escape(report["target"]["address"].as_str().unwrap_or("")),
        if state == "VALID" { "" } else { " bad" },
        escape(&reasons.join("; ")),
        grouped(totals["accepted_per_s"].as_f64().unwrap_or(0.0)),
    );
    html.push_str(&steps(report));
    let parts = [
        ("Latency by percentile", percentiles(report)),
        ("Rate over time", rates(report)),
        ("Latency over time", heat(report)),
        ("Phases", phases(report)),
        ("Outcomes", outcomes(report)),
    ];
    for (title, part) in parts {
        if !part.is_empty() {
            let _ = write!(html, "<h2>{title}</h2><div class=\"wide\">{part}</div>");
        }
    }
    let text = if report["schema"] == crate::search::SCHEMA {
        crate::search::text(report)
    } else {
        crate::report::text(report)
    };
    let _ = writeln!(
        html,
        "<h2>All figures</h2><pre>{}</pre></html>",
        // About what fits into the page.
        escape(&crate::report::folded(&text, 104))
    );
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_without_data_is_still_a_page_and_escapes_what_the_target_said() {
        let report = serde_json::json!({
            "verdict": { "state": "INVALID", "reasons": ["<script>"] },
            "outcomes": [{ "phase": "mail", "code": 550, "count": 1, "sample": "<b>no</b>" }],
        });
        let html = page(&report);
        assert!(html.starts_with("<!doctype html>"));
        assert!(html.contains("&lt;b&gt;no&lt;/b&gt;") && !html.contains("<b>no"));
        assert!(!html.contains("<script"));
    }

    #[test]
    fn the_page_of_a_search_claims_no_totals_and_no_outcomes() {
        let step = |rate: u64, pass: bool| {
            serde_json::json!({
                "offered_per_s": rate, "accepted_per_s": rate, "p99_ns": rate, "pass": pass,
                "verdict": "VALID",
            })
        };
        let html = page(&serde_json::json!({
            "schema": crate::search::SCHEMA,
            "verdict": { "state": "VALID", "reasons": [] },
            "totals": { "accepted_per_s": 1000 },
            "steps": [step(1000, true), step(2000, false)],
        }));
        assert!(html.contains("1,000 messages a second accepted</div>"));
        assert!(!html.contains("in all") && !html.contains("Outcomes"));
        assert!(html.contains(">met</td>") && html.contains(">not met</td>"));
    }
}
