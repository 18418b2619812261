//! Named workloads, each with the source of its figures, and sizes learnt from a user's own mail.

use crate::corpus;
use crate::plan::{Addresses, Count, Pipelining, Plan, Quit, Sizes};
use std::io;
use std::path::Path;

/// A named workload.
pub struct Profile {
    /// As given to `--profile`.
    pub name: &'static str,
    /// What it stands for and where its figures come from.
    pub source: &'static str,
    apply: fn(&mut Plan),
}

fn addresses(pattern: &str) -> Addresses {
    Addresses::parse(pattern).expect("invariant: the pattern is valid")
}

/// Cumulative sizes of 2002.
const INET_2002: [(u64, f64); 12] = [
    (2 << 10, 0.2353),
    (4 << 10, 0.4917),
    (8 << 10, 0.676),
    (16 << 10, 0.7958),
    (32 << 10, 0.8536),
    (64 << 10, 0.9047),
    (128 << 10, 0.933),
    (256 << 10, 0.9574),
    (512 << 10, 0.9724),
    (1 << 20, 0.9849),
    (2 << 20, 0.9996),
    (3 << 20, 1.0),
];

/// All profiles.
pub const PROFILES: [Profile; 6] = [
    Profile {
        name: "tiny",
        source: "1 KiB, kept connections: the hot path and nothing else. Stands for no real traffic.",
        apply: |plan| plan.sizes = Sizes::Fixed(1024),
    },
    Profile {
        name: "inet2002",
        source: "Sizes: cumulative distribution by powers of two, posted to freebsd-net in October \
                 2002 (median 4 kB, mean about 53 kB; the largest here is 3 MiB). One recipient. \
                 One to three messages on a connection: an assumption, after postal's manual page \
                 (two to three for a server that faces the net).",
        apply: |plan| {
            plan.sizes = Sizes::Table(INET_2002.to_vec());
            plan.per_connection = Count::Range(1, 3);
        },
    },
    Profile {
        name: "relay",
        source: "4 to 64 KiB evenly, pipelined, 100 messages on a connection: a front end that \
                 hands on. Connection length after a figure that one provider names; the sizes \
                 are an assumption.",
        apply: |plan| {
            plan.sizes = Sizes::Uniform(4 << 10, 64 << 10);
            plan.per_connection = Count::Fixed(100);
            plan.pipelining = Pipelining::Auto;
        },
    },
    Profile {
        name: "bulk",
        source: "60 to 100 kB, one recipient, 50 messages on a connection: newsletters. The sizes \
                 are those that KumoMTA's documents test with; the rest is an assumption.",
        apply: |plan| {
            plan.sizes = Sizes::Uniform(60_000, 100_000);
            plan.per_connection = Count::Fixed(50);
            plan.to = addresses("subscriber{1-1000000}@list.example");
        },
    },
    Profile {
        name: "spamflood",
        source: "Lognormal with a median of 2 kB, one message on a connection, no QUIT, one to ten \
                 recipients out of many. Gomes et al. (2004, 2007) find ham 6 to 8 times larger \
                 than spam, exponential gaps and many recipients; Shah and Noble (2007) find spam \
                 larger: the sources disagree.",
        apply: |plan| {
            plan.sizes = Sizes::Lognormal(2000.0, 1.0);
            plan.per_connection = Count::Fixed(1);
            plan.quit = Quit::None;
            plan.recipients = Count::Range(1, 10);
            plan.to = addresses("guess{1-10000000}@test.example");
        },
    },
    Profile {
        name: "mstone",
        source: "1, 5 and 17 KiB with equal weights, one recipient, one message on a connection: \
                 the stock workload of mstone (conf/sample.wld).",
        apply: |plan| {
            plan.sizes = Sizes::List(vec![1 << 10, 5 << 10, 17 << 10]);
            plan.per_connection = Count::Fixed(1);
        },
    },
];

/// Changes `plan` to the profile called `name`.
///
/// **Errors**: there is none of that name; the text lists all.
pub fn apply(name: &str, plan: &mut Plan) -> Result<(), String> {
    match PROFILES.iter().find(|profile| profile.name == name) {
        Some(profile) => {
            (profile.apply)(plan);
            Ok(())
        }
        None => {
            let names: Vec<_> = PROFILES.iter().map(|profile| profile.name).collect();
            Err(format!("no profile `{name}`: {}", names.join(", ")))
        }
    }
}

/// Turns the sizes of messages into a table for `--sizes`, at most 20 points.
pub fn table(mut sizes: Vec<u64>) -> String {
    sizes.sort_unstable();
    let mut text = format!("# SIZE,SHARE of {} messages\n", sizes.len());
    let mut last = 0;
    for point in 1..=20 {
        let Some(index) = (sizes.len() * point / 20).checked_sub(1) else {
            continue;
        };
        let size = sizes[index];
        let share = sizes.partition_point(|known| *known <= size) as f64 / sizes.len() as f64;
        if size > last {
            text.push_str(&format!("{size},{share:.6}\n"));
            last = size;
        }
    }
    text
}

/// Reads the sizes of all files below `path`, or of the messages of an mbox.
///
/// **Errors**: something can't be read.
pub fn learn(path: &Path) -> io::Result<Vec<u64>> {
    let mut sizes = Vec::new();
    if path.is_file() {
        corpus::split_mbox(&std::fs::read(path)?, |message| {
            // Lone LF in the file is CRLF on the wire.
            let ends = memchr::memchr_iter(b'\n', message);
            let lone = ends
                .filter(|at| *at == 0 || message[at - 1] != b'\r')
                .count();
            sizes.push((message.len() + lone) as u64);
        });
        return Ok(sizes);
    }
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        for entry in std::fs::read_dir(&path)? {
            let entry = entry?;
            let kind = entry.metadata()?;
            if kind.is_dir() {
                waiting.push(entry.path());
            } else {
                sizes.push(kind.len());
            }
        }
    }
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::parse_size_table;

    #[test]
    fn a_learnt_table_is_one_that_the_option_reads() {
        let text = table((1..=1000).map(|n| n * 10).collect());
        let Sizes::Table(points) = parse_size_table(&text).unwrap() else {
            panic!("{text}")
        };
        assert_eq!(points.len(), 20);
        assert_eq!(points[9], (5000, 0.5));
        assert_eq!(points[19], (10_000, 1.0));
        let equal = parse_size_table(&table(vec![7; 50])).unwrap();
        assert_eq!(equal, Sizes::Table(vec![(7, 1.0)]));
    }

    #[test]
    fn every_profile_changes_the_plan_it_is_applied_to() {
        let base = crate::plan::tests::plan();
        for profile in &PROFILES {
            let mut plan = base.clone();
            apply(profile.name, &mut plan).unwrap();
            assert_ne!(plan.hash(), base.hash(), "{}", profile.name);
        }
        assert!(
            apply("none", &mut base.clone())
                .unwrap_err()
                .contains("inet2002")
        );
    }
}
