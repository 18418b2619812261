//! The options of Postfix's smtp-source, turned into ours; each is said aloud.

/// What became of a command line.
#[derive(Debug, PartialEq, Eq)]
pub struct Translated {
    /// Arguments of `run`.
    pub arguments: Vec<String>,
    /// One line for each option: what it became, or why it is left out.
    pub notes: Vec<String>,
}

/// Translates smtp-source's arguments.
///
/// **Errors**, in words: an option that smtp-source does not have, or one without its value.
pub fn translate(arguments: &[String]) -> Result<Translated, String> {
    let mut out: Vec<String> = Vec::new();
    let mut notes = Vec::new();
    let (mut keep, mut counter) = (false, false);
    let mut recipient = "user@test.example".to_owned();
    let mut messages = "1".to_owned();
    let mut sessions = "1".to_owned();
    let mut target = None;
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let Some(cluster) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
            target = Some(word.clone());
            continue;
        };
        for (at, letter) in cluster.char_indices() {
            let mut note = |became: &str| notes.push(format!("-{letter}: {became}"));
            let takes_value = "CfFlmMrRsStTw".contains(letter);
            if !takes_value {
                match letter {
                    '4' | '6' => note("the address of the target decides"),
                    'A' => note("always so: replies are counted, nothing aborts"),
                    'c' => note("the display shows a counter"),
                    'd' => {
                        keep = true;
                        note("kept connections, the default of run");
                    }
                    'L' => {
                        out.push("--lmtp".into());
                        note("--lmtp");
                    }
                    'N' => {
                        counter = true;
                        note("{seq} before the recipient");
                    }
                    'o' => note("left out: messages always have a header, sessions a greeting"),
                    'v' => note("left out: the report has the replies"),
                    _ => return Err(format!("smtp-source has no option -{letter}")),
                }
                continue;
            }
            let rest = &cluster[at + letter.len_utf8()..];
            let value = match rest.is_empty() {
                false => rest.to_owned(),
                true => words
                    .next()
                    .ok_or(format!("-{letter} needs a value"))?
                    .clone(),
            };
            let flag = match letter {
                'C' => "--connect-attempts",
                'f' => "--from",
                'l' => "--size",
                'M' => "--helo",
                'r' => "--rcpts",
                _ => "",
            };
            match letter {
                'm' => messages = value,
                's' => sessions = value,
                't' => recipient = value,
                'F' => {
                    note(&format!("--corpus {value}"));
                    out.extend(["--corpus".to_owned(), value]);
                }
                'S' => note("left out: the subject names run and number"),
                'R' | 'w' => note("left out: pauses after replies hide stalls; use run --rate"),
                'T' => note("left out: the kernel sizes the window"),
                _ => {
                    note(&format!("{flag} {value}"));
                    out.extend([flag.to_owned(), value]);
                }
            }
            if letter == 'l' {
                notes.push("-l counts the body in smtp-source; here the whole message".into());
            }
            break;
        }
    }
    if counter {
        recipient.insert_str(0, "{seq}");
    }
    if !keep {
        out.extend(["--messages-per-connection".into(), "1".into()]);
        notes.push("without -d: one message on each connection".into());
    }
    let target = target.unwrap_or_else(|| "127.0.0.1:25".into());
    let target = match target.strip_prefix("inet:").unwrap_or(&target) {
        path if path.starts_with("unix:") => path.to_owned(),
        host if host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok()) =>
        {
            host.to_owned()
        }
        host => format!("{host}:25"),
    };
    for (flag, value) in [
        ("--messages", messages),
        ("--sessions", sessions),
        ("--to", recipient),
    ] {
        out.extend([flag.to_owned(), value]);
    }
    // smtp-source knows no PIPELINING.
    out.extend(["--pipelining".into(), "off".into()]);
    notes.push("smtp-source does not pipeline: --pipelining off".into());
    // It closes with SO_LINGER at 0, which leaves nothing in TIME_WAIT.
    out.extend(["--quit".into(), "reset".into()]);
    notes.push("smtp-source resets connections after QUIT: --quit reset".into());
    out.insert(0, target);
    Ok(Translated {
        arguments: out,
        notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_usual_command_line_keeps_its_meaning() {
        let done = translate(&words(
            "-cd -s 20 -m5000 -l 10240 -f a@x.example -N -t b@y.example host:2525",
        ))
        .unwrap();
        assert_eq!(
            done.arguments,
            words(
                "host:2525 --size 10240 --from a@x.example --messages 5000 --sessions 20 --to \
                 {seq}b@y.example --pipelining off --quit reset"
            )
        );
        assert!(
            done.notes
                .iter()
                .any(|note| note.starts_with("-l counts the body"))
        );
    }

    #[test]
    fn what_has_no_meaning_is_said_and_what_is_unknown_is_an_error() {
        let done = translate(&words("-w 2 inet:host")).unwrap();
        assert_eq!(
            done.arguments,
            words(
                "host:25 --messages-per-connection 1 --messages 1 --sessions 1 --to \
                 user@test.example --pipelining off --quit reset"
            )
        );
        assert!(done.notes[0].starts_with("-w: left out"));
        let done = translate(&words("-F message.eml host")).unwrap();
        assert_eq!(
            done.arguments,
            words(
                "host:25 --corpus message.eml --messages-per-connection 1 --messages 1 --sessions \
                 1 --to user@test.example --pipelining off --quit reset"
            )
        );
        assert_eq!(done.notes[0], "-F: --corpus message.eml");
        assert!(translate(&words("-Z host")).is_err());
        assert!(translate(&words("-s")).is_err());
    }
}
