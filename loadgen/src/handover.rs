//! What one process of a run tells the process that started it: a recorder as JSON, and back.
//!
//! Promises: `read` of what `write` made gives a recorder that merges and reports as the first
//! would. Does not: last beyond the run; both ends are one build of this program.

use crate::client::{Fault, PHASES, Phase};
use crate::hdr;
use crate::recorder::{CELLS, Kind, Load, Recorder, Row};
use crate::wire::Agreed;
use hdrhistogram::Histogram;
use rustls::{CipherSuite, ProtocolVersion};
use serde_json::{Value, json};

/// Describes all that a process measured.
pub fn write(recorder: &Recorder) -> Value {
    let mut totals = recorder.totals;
    let place = |fault: Fault| Fault::ALL.iter().position(|known| *known == fault);
    json!({
        "phases": recorder.phases.iter().map(hdr::encode).collect::<Vec<_>>(),
        "others": others(recorder).map(hdr::encode),
        "totals": totals.counts().map(|count| *count),
        "kinds": recorder.kinds.iter().map(|kind| json!([
            kind.phase as usize, kind.code, kind.fault.and_then(place), kind.enhanced, kind.count,
            kind.sample,
        ])).collect::<Vec<_>>(),
        "tls": recorder.tls.iter().map(|(agreed, count)| json!([
            u16::from(agreed.version), u16::from(agreed.cipher), agreed.resumed, count,
        ])).collect::<Vec<_>>(),
        "congestion": recorder.congestion,
        "rows": recorder.rows.iter().map(row).collect::<Vec<_>>(),
        "loads": recorder.loads.iter().map(|load| [load.cpu_ns, load.waited_ns, load.wall_ns])
            .collect::<Vec<_>>(),
        "window": [recorder.window.0, recorder.window.1],
        "last_ns": recorder.last_ns,
    })
}

fn others(recorder: &Recorder) -> [&Histogram<u64>; 3] {
    [
        &recorder.lag_generator,
        &recorder.lag_target,
        &recorder.refused,
    ]
}

fn row(row: &Row) -> Value {
    let mut copy = row.clone();
    let (sums, peaks) = copy.numbers();
    let (sums, peaks) = (sums.map(|n| *n), peaks.map(|n| *n));
    let cells = row.cells.iter().enumerate().filter(|(_, n)| **n > 0);
    json!([
        sums,
        peaks,
        cells
            .map(|(at, n)| [at as u64, u64::from(*n)])
            .collect::<Vec<_>>()
    ])
}

/// Reads what `write` wrote; nothing if it is anything else. `open` tells of an open loop.
pub fn read(value: &Value, open: bool) -> Option<Recorder> {
    let list = |name: &str| value[name].as_array();
    let window: Vec<u64> = numbers(&value["window"])?;
    let mut recorder = Recorder::new(*window.first()?, *window.get(1)?, open);
    recorder.phases = histograms(list("phases")?)?;
    if recorder.phases.len() != PHASES {
        return None;
    }
    let [lag_generator, lag_target, refused] =
        <[_; 3]>::try_from(histograms(list("others")?)?).ok()?;
    (recorder.lag_generator, recorder.lag_target) = (lag_generator, lag_target);
    recorder.refused = refused;
    fill(recorder.totals.counts(), &numbers(&value["totals"])?)?;
    for kind in list("kinds")? {
        let fault = match &kind[2] {
            Value::Null => None,
            place => Some(*Fault::ALL.get(index(place)?)?),
        };
        recorder.kinds.push(Kind {
            phase: *Phase::ALL.get(index(&kind[0])?)?,
            code: u16::try_from(kind[1].as_u64()?).ok()?,
            fault,
            enhanced: kind[3].as_str()?.to_owned(),
            count: kind[4].as_u64()?,
            sample: kind[5].as_str()?.to_owned(),
        });
    }
    for tls in list("tls")? {
        let number = |value: &Value| u16::try_from(value.as_u64()?).ok();
        let agreed = Agreed {
            version: ProtocolVersion::from(number(&tls[0])?),
            cipher: CipherSuite::from(number(&tls[1])?),
            resumed: tls[2].as_bool()?,
        };
        recorder.secured(agreed, tls[3].as_u64()?);
    }
    recorder.congestion = value["congestion"].as_str().map(str::to_owned);
    for row in list("rows")? {
        let mut read = Row::default();
        let (sums, peaks) = read.numbers();
        fill(sums, &numbers(&row[0])?)?;
        fill(peaks, &numbers(&row[1])?)?;
        for cell in row[2].as_array()? {
            let at = index(&cell[0]).filter(|at| *at < CELLS)?;
            read.cells[at] = u32::try_from(cell[1].as_u64()?).ok()?;
        }
        recorder.rows.push(read);
    }
    for load in list("loads")? {
        let [cpu_ns, waited_ns, wall_ns] = <[u64; 3]>::try_from(numbers(load)?).ok()?;
        recorder.loads.push(Load {
            cpu_ns,
            waited_ns,
            wall_ns,
        });
    }
    recorder.last_ns = value["last_ns"].as_u64()?;
    Some(recorder)
}

fn index(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

fn numbers(value: &Value) -> Option<Vec<u64>> {
    value.as_array()?.iter().map(Value::as_u64).collect()
}

fn histograms(list: &[Value]) -> Option<Vec<Histogram<u64>>> {
    list.iter()
        .map(|text| hdr::decode(text.as_str()?))
        .collect()
}

/// Sets each place; nothing when there are not as many values.
fn fill<const COUNT: usize>(places: [&mut u64; COUNT], values: &[u64]) -> Option<()> {
    for (place, value) in places
        .into_iter()
        .zip(<&[u64; COUNT]>::try_from(values).ok()?)
    {
        *place = *value;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Finished, Outcome};
    use crate::plan::Spec;

    fn recorder() -> Recorder {
        let mut recorder = Recorder::new(1_000, u64::MAX, true);
        for (number, place) in recorder.totals.counts().into_iter().enumerate() {
            *place = 100 + number as u64;
        }
        for phase in Phase::ALL {
            recorder.latency(phase, 1_000 * (phase as u64 + 1));
        }
        recorder.lag_generator.record(7_000).unwrap();
        recorder.lag_target.record(8_000).unwrap();
        recorder.refused.record(9_000).unwrap();
        recorder.reply(Phase::Rcpt, 451, b"4.7.1 later");
        recorder.fault(Phase::Connect, Fault::Local, "no");
        let agreed = Agreed {
            version: ProtocolVersion::TLSv1_3,
            cipher: CipherSuite::TLS13_AES_128_GCM_SHA256,
            resumed: true,
        };
        recorder.secured(agreed, 3);
        recorder.congestion = Some("reno".into());
        let (sums, peaks) = recorder.row(2_000_000_000).numbers();
        for (number, place) in sums.into_iter().chain(peaks).enumerate() {
            *place = 200 + number as u64;
        }
        recorder.row(0).cells[17] = 5;
        recorder.loads.push(Load {
            cpu_ns: 1,
            waited_ns: 2,
            wall_ns: 3,
        });
        recorder.last_ns = 4_000;
        recorder
    }

    #[test]
    fn a_recorder_survives_the_hand_over() {
        let before = recorder();
        let text = write(&before).to_string();
        let after = read(&serde_json::from_str(&text).unwrap(), true).unwrap();
        assert_eq!(write(&after).to_string(), text);
        assert_eq!(after.totals, before.totals);
        assert_eq!(after.kinds, before.kinds);
        assert_eq!(after.tls, before.tls);
        assert_eq!(after.window, before.window);
        for phase in Phase::ALL {
            let values = |r: &Recorder| {
                let h = &r.phases[phase as usize];
                (h.len(), h.min(), h.max(), h.mean().to_bits())
            };
            assert_eq!(values(&after), values(&before), "{}", phase.name());
        }
    }

    #[test]
    fn what_was_handed_over_merges_as_what_was_not() {
        let (mut one, mut two) = (recorder(), recorder());
        one.merge(&recorder());
        two.merge(&read(&write(&recorder()), true).unwrap());
        assert_eq!(write(&one), write(&two));
        assert_eq!(one.totals.attempted, 200);
    }

    #[test]
    fn what_is_cut_or_changed_is_refused() {
        let whole = write(&recorder());
        for name in whole
            .as_object()
            .unwrap()
            .keys()
            .filter(|n| *n != "congestion")
        {
            let mut cut = whole.clone();
            cut.as_object_mut().unwrap().remove(name);
            assert!(read(&cut, true).is_none(), "{name}");
        }
        let mut short = whole.clone();
        short["totals"].as_array_mut().unwrap().pop();
        assert!(read(&short, true).is_none());
        let mut far = whole;
        far["rows"][0][2][0][0] = (CELLS as u64).into();
        assert!(read(&far, true).is_none());
    }

    #[test]
    fn a_row_that_was_handed_over_still_counts() {
        let mut after = read(&write(&recorder()), false).unwrap();
        let before = after.totals.accepted;
        after.finished(&Finished {
            spec: Spec {
                seq: 1,
                size: 1,
                recipients: 1,
            },
            stamp: None,
            len: 1,
            outcome: Outcome::Accepted,
            text: b"",
            started_ns: 5,
            intended_ns: 5,
            now_ns: 6,
            steps: crate::client::Steps::default(),
        });
        assert_eq!(after.totals.accepted, before + 1);
    }
}
