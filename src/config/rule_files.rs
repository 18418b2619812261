//! The access rules as files hold them, read at the start and again when they change.
//!
//! One entry a line; what follows a `#` at the start of a line or behind a blank is a comment, except behind a
//! quoted local part, where it is part of the fault. A file that can't be read whole, or holds one bad line, gives
//! no rules at all: half a list would refuse mail of half of the users.
//! Whoever writes such a file should write a new one and rename it: then it is never seen half written.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::units::quoted;
use super::{Config, ConfigError, SubaddressSeparator, printable};
use crate::ip_prefix::IpPrefix;
use crate::limits::{NETWORK_ENTRIES_MAX, RULE_FILE_BYTES_MAX, RULE_LINE_BYTES_MAX};
use crate::policy::networks::Networks;
use crate::policy::recipients::Recipients;
use crate::policy::rules::Rules;
use crate::sys::file::Stamps;

/// What the rules are made of.
#[derive(Clone, Debug)]
pub struct RuleFiles {
    server_name: String,
    addresses: Vec<IpAddr>,
    accept_domain: Vec<String>,
    recipients_file: Option<PathBuf>,
    separator: SubaddressSeparator,
    allow_from: Vec<IpPrefix>,
    allow_from_file: Option<PathBuf>,
    deny_from: Vec<IpPrefix>,
    deny_from_file: Option<PathBuf>,
    unlimited_from: Vec<IpPrefix>,
}

impl RuleFiles {
    /// The rules of `config`. `addresses` are those that the server listens to.
    pub fn new(config: &Config, addresses: impl IntoIterator<Item = IpAddr>) -> RuleFiles {
        RuleFiles {
            server_name: config.server_name.clone(),
            addresses: addresses
                .into_iter()
                .map(|address| address.to_canonical())
                .filter(|address| !address.is_unspecified())
                .collect(),
            accept_domain: config.accept_domain.clone(),
            recipients_file: config.recipients_file.clone(),
            separator: config.subaddress_separator,
            allow_from: config.allow_from.clone(),
            allow_from_file: config.allow_from_file.clone(),
            deny_from: config.deny_from.clone(),
            deny_from_file: config.deny_from_file.clone(),
            unlimited_from: config.unlimited_from.clone(),
        }
    }

    /// Whether some of the rules are in files.
    pub fn has_files(&self) -> bool {
        self.files().any(|file| file.is_some())
    }

    /// The state of the files; one that differs from the last asks for a new [`RuleFiles::load`].
    pub fn stamps(&self) -> Option<Stamps> {
        Stamps::of(self.files().flatten().map(PathBuf::as_path))
    }

    /// Reads the files and makes the rules.
    ///
    /// # Errors
    /// The first fault, with its file and line.
    pub fn load(&self) -> Result<Rules, ConfigError> {
        let denied = self.networks("deny-from-file", &self.deny_from, &self.deny_from_file)?;
        let is_closed = !self.allow_from.is_empty() || self.allow_from_file.is_some();
        let allowed = match is_closed {
            true => {
                Some(self.networks("allow-from-file", &self.allow_from, &self.allow_from_file)?)
            }
            false => None,
        };
        let knows_recipients = !self.accept_domain.is_empty() || self.recipients_file.is_some();
        Ok(Rules {
            allowed: allowed.map(Networks::new),
            denied: Networks::new(denied),
            unlimited: Networks::new(self.unlimited_from.iter().copied()),
            recipients: match knows_recipients {
                true => Some(self.recipients()?),
                false => None,
            },
            server_name: self.server_name.clone(),
            addresses: self.addresses.clone(),
        })
    }

    fn files(&self) -> impl Iterator<Item = &Option<PathBuf>> {
        [
            &self.recipients_file,
            &self.allow_from_file,
            &self.deny_from_file,
        ]
        .into_iter()
    }

    fn recipients(&self) -> Result<Recipients, ConfigError> {
        let separator = match self.separator {
            SubaddressSeparator::Off => None,
            word => word.name().bytes().next(),
        };
        let mut recipients = Recipients::new(separator);
        for entry in &self.accept_domain {
            let added = recipients.add(entry.as_bytes());
            added.map_err(|error| fault("accept-domain", None, error.to_string()))?;
        }
        if let Some(path) = &self.recipients_file {
            let key = "recipients-file";
            each_entry(key, path, |entry| {
                recipients.add(entry).map_err(|error| error.to_string())
            })?;
        }
        recipients.shrink();
        Ok(recipients)
    }

    fn networks(
        &self,
        key: &str,
        given: &[IpPrefix],
        file: &Option<PathBuf>,
    ) -> Result<Vec<IpPrefix>, ConfigError> {
        let mut networks = given.to_vec();
        if let Some(path) = file {
            each_entry(key, path, |entry| {
                if networks.len() >= NETWORK_ENTRIES_MAX {
                    return Err(format!(
                        "too many networks; allowed: up to {NETWORK_ENTRIES_MAX}"
                    ));
                }
                let text = core::str::from_utf8(entry).unwrap_or_default();
                networks.push(text.parse().map_err(|error| format!("{error}"))?);
                Ok(())
            })?;
        }
        Ok(networks)
    }
}

fn fault(key: &str, at: Option<(&Path, usize)>, reason: String) -> ConfigError {
    ConfigError {
        file: at.map(|(path, _)| path.to_owned()),
        line: at.map(|(_, line)| line).filter(|line| *line > 0),
        key: Some(key.to_owned()),
        reason,
    }
}

/// Gives each entry of a file to `add`.
fn each_entry(
    key: &str,
    path: &Path,
    mut add: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), ConfigError> {
    let unreadable =
        |error: std::io::Error| fault(key, Some((path, 0)), format!("can't be read: {error}"));
    let file = File::open(path).map_err(unreadable)?;
    // A pipe or a directory has no end or no lines.
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(fault(key, Some((path, 0)), "is not a file".to_owned()));
    }
    let mut reader = BufReader::new(file.take(RULE_FILE_BYTES_MAX + 1));
    let mut line = Vec::with_capacity(RULE_LINE_BYTES_MAX);
    let mut octets = 0;
    for number in 1.. {
        line.clear();
        let most = RULE_LINE_BYTES_MAX as u64 + 1;
        let len = (&mut reader)
            .take(most)
            .read_until(b'\n', &mut line)
            .map_err(unreadable)?;
        octets += len as u64;
        if len == 0 {
            return Ok(());
        }
        let here = Some((path, number));
        if len > RULE_LINE_BYTES_MAX {
            let reason = format!("a line of more than {RULE_LINE_BYTES_MAX} bytes");
            return Err(fault(key, here, reason));
        }
        if octets > RULE_FILE_BYTES_MAX {
            let reason = format!("the file has more than {RULE_FILE_BYTES_MAX} bytes");
            return Err(fault(key, here, reason));
        }
        let entry = entry_of(&line);
        if entry.is_empty() {
            continue;
        }
        add(entry).map_err(|reason| {
            let shown = quoted(&printable(&String::from_utf8_lossy(entry)));
            fault(key, here, format!("{shown}: {reason}"))
        })?;
    }
    Ok(())
}

/// A line without its end, its comment and the blanks around what is left.
fn entry_of(line: &[u8]) -> &[u8] {
    let line = line.trim_ascii();
    if line.first() == Some(&b'"') {
        return line;
    }
    // A local part may hold the sign, and none begins with a blank.
    let is_comment = |at: &usize| *at == 0 || line[at - 1].is_ascii_whitespace();
    match memchr::memchr_iter(b'#', line).find(is_comment) {
        Some(at) => line[..at].trim_ascii_end(),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_blanks_are_no_part_of_an_entry() {
        for (line, entry) in [
            ("", ""),
            ("\r\n", ""),
            ("# nothing\n", ""),
            ("  \t # nothing\n", ""),
            ("a@b", "a@b"),
            ("  a@b\t\r\n", "a@b"),
            ("a@b # Jane\n", "a@b"),
            ("a@b\t#Jane\n", "a@b"),
            ("a#1@b\n", "a#1@b"),
            ("\"a #1\"@b\n", "\"a #1\"@b"),
        ] {
            assert_eq!(entry_of(line.as_bytes()), entry.as_bytes(), "{line:?}");
        }
    }
}
