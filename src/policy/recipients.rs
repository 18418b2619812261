//! Recipients that a receiver takes mail for.
//!
//! Promises: a lookup allocates nothing and hashes each question at most once per dot of its domain; loading is
//! linear in the size of the list; no allocation per entry. What matches does not depend on the order of entries.
//! Does not: read files, or look domains up. It compares octets: a domain of U-labels and the same in A-labels
//! (`xn--`) are two entries (RFC 5891 5.1 would need tables of Unicode that no receiver should depend on for
//! access control), so a list that wants both names both.
//!
//! | entry | matches |
//! |---|---|
//! | `user@example.org` | this mailbox, and `user+anything@example.org` where `+` separates sub-addresses (RFC 5233) |
//! | `example.org`, `@example.org` | every mailbox of this domain |
//! | `.example.org`, `@.example.org` | every mailbox of every domain below it, not of itself |
//! | `[192.0.2.1]`, `user@[192.0.2.1]` | the same for an address literal (RFC 5321 4.1.3) |
//!
//! Domains are compared without regard to the case of ASCII letters (RFC 5321 2.4, RFC 1035 2.3.3). So are local
//! parts: RFC 5321 2.4 leaves their case to the receiving host, and no system in use has two mailboxes that differ
//! in nothing else. A quoted local part is compared by what it stands for: `"user"` is `user` (RFC 5321 4.1.2).
//!
//! Memory: an entry takes its length, 3 bytes, and 8 to 16 bytes of the hash table; each domain is kept once more.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;

use crate::limits::{DOMAIN_BYTES_MAX, LOCAL_PART_BYTES_MAX, RECIPIENT_ENTRIES_MAX};
use crate::smtp::path::is_forward_mailbox;

/// Longest key: a local part, `@.`, a domain.
const KEY_BYTES_MAX: usize = LOCAL_PART_BYTES_MAX + 2 + DOMAIN_BYTES_MAX;
/// Slots of the smallest table; a power of two.
const SLOTS_MIN: usize = 16;
/// Length in front of each key in the arena, and the octet that says what it is.
const KEY_HEADER_BYTES: usize = 3;
/// Octets of the arena; offsets are 32 bits wide.
const ARENA_BYTES_MAX: usize = u32::MAX as usize;

/// What a key in the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// `local@domain`.
    Mailbox,
    /// A domain all mailboxes of which are taken.
    Domain,
    /// A domain all subdomains of which are taken.
    Below,
    /// A domain of which some mailbox is known.
    Known,
}

/// A set of recipients.
#[derive(Clone, Debug, Default)]
pub struct Recipients {
    /// Keys, each behind its kind and its length.
    arena: Vec<u8>,
    /// Offset of a key in the arena plus 1, or 0. INVARIANT: empty, or a power of two at most half full.
    slots: Vec<u32>,
    keys: usize,
    entries: usize,
    /// Some key is a [`Kind::Below`].
    has_below: bool,
    /// Octets that begin a sub-address; not a letter or a digit.
    separator: Option<u8>,
}

/// What is known of a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// Mail for it is taken.
    Taken,
    /// Its domain is one of ours, and the mailbox is not.
    UnknownMailbox,
    /// Its domain is not one of ours.
    Foreign,
}

/// Why an entry can't be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryError {
    /// It is neither an address nor a domain.
    Malformed,
    /// There are too many.
    TooMany,
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EntryError::Malformed => f.write_str(
                "not a recipient; allowed: user@example.org, example.org for all of a domain, .example.org for all \
                 domains below it, [192.0.2.1] for an address literal",
            ),
            EntryError::TooMany => {
                write!(f, "too many recipients; allowed: up to {RECIPIENT_ENTRIES_MAX}")
            }
        }
    }
}

impl core::error::Error for EntryError {}

impl Recipients {
    /// No recipients. `separator` begins a sub-address; `None`: there are none.
    pub fn new(separator: Option<u8>) -> Recipients {
        Recipients {
            separator,
            ..Recipients::default()
        }
    }

    /// Adds an entry, see the table above. One that is there already changes nothing.
    ///
    /// # Errors
    /// It is none, or there are [`RECIPIENT_ENTRIES_MAX`] already; then nothing was added.
    pub fn add(&mut self, entry: &[u8]) -> Result<(), EntryError> {
        let (kind, local, domain) = match entry {
            [b'@', b'.', domain @ ..] | [b'.', domain @ ..] => (Kind::Below, None, domain),
            [b'@', domain @ ..] => (Kind::Domain, None, domain),
            mailbox => match split(mailbox) {
                Some((local, domain)) => (Kind::Mailbox, Some(local), domain),
                None => (Kind::Domain, None, mailbox),
            },
        };
        let is_literal = domain.first() == Some(&b'[');
        // The parser of RCPT decides what an address is: what it would refuse can't be meant.
        let mut probe = Key::new();
        let is_good = match local {
            Some(_) => is_forward_mailbox(entry),
            None => {
                probe.push(b"x@").is_some()
                    && probe.push(domain).is_some()
                    && is_forward_mailbox(probe.as_bytes())
            }
        };
        if !is_good || (is_literal && kind == Kind::Below) {
            return Err(EntryError::Malformed);
        }
        let host = Key::of_domain(domain).ok_or(EntryError::Malformed)?;
        let key = match local {
            Some(local) => Key::of_mailbox(local, host.as_bytes()).ok_or(EntryError::Malformed)?,
            None => host,
        };
        let room = self.arena.len() + 2 * (KEY_HEADER_BYTES + KEY_BYTES_MAX);
        if self.entries >= RECIPIENT_ENTRIES_MAX || room > ARENA_BYTES_MAX {
            return Err(EntryError::TooMany);
        }
        if self.insert(kind, key.as_bytes()) {
            self.entries += 1;
            self.has_below |= kind == Kind::Below;
        }
        if kind == Kind::Mailbox {
            self.insert(Kind::Known, host.as_bytes());
        }
        Ok(())
    }

    /// What is known of a recipient, as RCPT gave it, without brackets and source route.
    ///
    /// **Bounds:** at most 2 hashes and one for each dot of the domain.
    pub fn find(&self, recipient: &[u8]) -> Match {
        let Some((local, domain)) = split(recipient) else {
            return Match::Foreign;
        };
        let Some(host) = Key::of_domain(domain) else {
            return Match::Foreign;
        };
        if self.takes_all(host.as_bytes()) {
            return Match::Taken;
        }
        if !self.has(Kind::Known, host.as_bytes()) {
            return Match::Foreign;
        }
        let Some(key) = Key::of_mailbox(local, host.as_bytes()) else {
            return Match::UnknownMailbox;
        };
        if self.has(Kind::Mailbox, key.as_bytes()) {
            return Match::Taken;
        }
        // What stands behind the first separator is the sub-address; one in front of everything is a name.
        let local = &key.as_bytes()[..key.len - host.len - 1];
        let at = self
            .separator
            .and_then(|separator| local.iter().skip(1).position(|byte| *byte == separator));
        let main = at.and_then(|at| {
            let mut main = Key::new();
            main.push(&local[..=at])?;
            main.push(b"@")?;
            main.push(host.as_bytes())?;
            Some(main)
        });
        match main {
            Some(main) if self.has(Kind::Mailbox, main.as_bytes()) => Match::Taken,
            _ => Match::UnknownMailbox,
        }
    }

    /// Whether some recipient of this domain or address literal is taken.
    pub fn has_domain(&self, domain: &[u8]) -> bool {
        Key::of_domain(domain).is_some_and(|host| {
            self.takes_all(host.as_bytes()) || self.has(Kind::Known, host.as_bytes())
        })
    }

    /// Entries, each counted once.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Memory that the entries take, bytes.
    pub fn memory_bytes(&self) -> usize {
        self.arena.capacity() + self.slots.capacity() * size_of::<u32>()
    }

    /// Gives memory back that growing has left over.
    pub fn shrink(&mut self) {
        self.arena.shrink_to_fit();
    }

    /// Whether every mailbox of this domain, in the form of a key, is taken.
    fn takes_all(&self, host: &[u8]) -> bool {
        if self.has(Kind::Domain, host) {
            return true;
        }
        if !self.has_below {
            return false;
        }
        let mut dots = host.iter().enumerate().filter(|(_, byte)| **byte == b'.');
        dots.any(|(at, _)| self.has(Kind::Below, &host[at + 1..]))
    }

    fn has(&self, kind: Kind, key: &[u8]) -> bool {
        !self.slots.is_empty() && self.slots[self.slot_of(kind, key)] != 0
    }

    /// The slot that holds this key, or the empty one where it belongs.
    fn slot_of(&self, kind: Kind, key: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = hash(kind, key) as usize & mask;
        // INVARIANT: half of the slots are empty, so that this ends.
        loop {
            match self.slots[at] {
                0 => return at,
                offset if self.key_at(offset) == (kind as u8, key) => return at,
                _ => at = (at + 1) & mask,
            }
        }
    }

    fn key_at(&self, slot: u32) -> (u8, &[u8]) {
        let at = slot as usize - 1;
        let len = usize::from(u16::from_le_bytes([self.arena[at + 1], self.arena[at + 2]]));
        let start = at + KEY_HEADER_BYTES;
        (self.arena[at], &self.arena[start..start + len])
    }

    /// False when it is there already.
    fn insert(&mut self, kind: Kind, key: &[u8]) -> bool {
        if (self.keys + 1) * 2 > self.slots.len() {
            self.grow();
        }
        let at = self.slot_of(kind, key);
        if self.slots[at] != 0 {
            return false;
        }
        self.slots[at] = self.arena.len() as u32 + 1;
        self.arena.push(kind as u8);
        self.arena
            .extend_from_slice(&(key.len() as u16).to_le_bytes());
        self.arena.extend_from_slice(key);
        self.keys += 1;
        true
    }

    /// Doubles the table.
    fn grow(&mut self) {
        let len = (self.slots.len() * 2).max(SLOTS_MIN);
        let old = std::mem::replace(&mut self.slots, vec![0; len]);
        for slot in old.into_iter().filter(|slot| *slot != 0) {
            let (kind, key) = self.key_at(slot);
            let mut at = hash_octets(kind, key) as usize & (len - 1);
            while self.slots[at] != 0 {
                at = (at + 1) & (len - 1);
            }
            self.slots[at] = slot;
        }
    }
}

/// Local part and domain, split at the last `@`: a quoted local part may hold others.
pub(super) fn split(mailbox: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memrchr(b'@', mailbox)?;
    Some((&mailbox[..at], &mailbox[at + 1..]))
}

/// The address of a literal with its brackets (RFC 5321 4.1.3); `None` for any other domain.
pub(super) fn literal_address(domain: &[u8]) -> Option<IpAddr> {
    let inner = domain.strip_prefix(b"[")?.strip_suffix(b"]")?;
    let text = core::str::from_utf8(inner).ok()?;
    match text.split_at_checked(5) {
        Some((tag, v6)) if tag.eq_ignore_ascii_case("ipv6:") => {
            Some(IpAddr::V6(v6.parse::<Ipv6Addr>().ok()?).to_canonical())
        }
        // RFC 5321 4.1.3 allows leading zeros, which the parser of the standard library refuses.
        _ => {
            let mut numbers = text.split('.').map(|number| number.parse::<u8>().ok());
            let mut next = || numbers.next().flatten();
            let address = Ipv4Addr::new(next()?, next()?, next()?, next()?);
            numbers.next().is_none().then_some(IpAddr::V4(address))
        }
    }
}

fn hash(kind: Kind, key: &[u8]) -> u64 {
    hash_octets(kind as u8, key)
}

/// The questions come from strangers, the keys from the operator: nobody can make a key's chain longer, so the hash
/// needs no secret.
fn hash_octets(kind: u8, key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u8(kind);
    hasher.write(key);
    hasher.finish()
}

/// A key in the form in which it is compared.
#[derive(Clone, Copy)]
struct Key {
    bytes: [u8; KEY_BYTES_MAX],
    len: usize,
}

impl fmt::Write for Key {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes()).ok_or(fmt::Error)
    }
}

impl Key {
    fn new() -> Key {
        Key {
            bytes: [0; KEY_BYTES_MAX],
            len: 0,
        }
    }

    /// Lower case; an address literal in the one form that its address has.
    fn of_domain(domain: &[u8]) -> Option<Key> {
        let mut key = Key::new();
        if let Some(address) = literal_address(domain) {
            fmt::Write::write_fmt(&mut key, format_args!("[{address}]")).ok()?;
        } else {
            key.push(domain)?;
            key.bytes[..key.len].make_ascii_lowercase();
        }
        (key.len > 0).then_some(key)
    }

    /// Lower case and without quotes, in front of a domain that is a key.
    fn of_mailbox(local: &[u8], host: &[u8]) -> Option<Key> {
        let mut key = Key::new();
        match local {
            [b'"', inner @ .., b'"'] => {
                let mut rest = inner.iter();
                while let Some(byte) = rest.next() {
                    // RFC 5321 4.1.2: a backslash quotes the octet behind it.
                    let meant = if *byte == b'\\' { rest.next()? } else { byte };
                    key.push(&[*meant])?;
                }
            }
            plain => key.push(plain)?,
        }
        key.bytes[..key.len].make_ascii_lowercase();
        key.push(b"@")?;
        key.push(host)?;
        Some(key)
    }

    fn push(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.len + bytes.len();
        self.bytes.get_mut(self.len..end)?.copy_from_slice(bytes);
        self.len = end;
        Some(())
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipients(entries: &[&str]) -> Recipients {
        let mut recipients = Recipients::new(Some(b'+'));
        for entry in entries {
            recipients.add(entry.as_bytes()).expect(entry);
        }
        recipients
    }

    fn assert_found(recipients: &Recipients, expected: Match, mailboxes: &[&str]) {
        for mailbox in mailboxes {
            assert_eq!(recipients.find(mailbox.as_bytes()), expected, "{mailbox}");
        }
    }

    #[test]
    fn nobody_is_found_in_an_empty_set() {
        let nobody = Recipients::new(None);
        assert_found(
            &nobody,
            Match::Foreign,
            &["a@b", "postmaster", "", "@", "a@", "a@[127.0.0.1]"],
        );
        assert!(nobody.is_empty() && !nobody.has_domain(b"b") && !nobody.has_domain(b""));
    }

    #[test]
    fn a_mailbox_is_found_whatever_its_case_and_its_quotes() {
        let set = recipients(&[
            "Jane.Doe@Example.ORG",
            "\"with space\"@example.org",
            "plain@example.org",
        ]);
        let taken = [
            "jane.doe@example.org",
            "JANE.DOE@EXAMPLE.ORG",
            "\"Jane.Doe\"@example.org",
            "\"jane\\.doe\"@example.org",
            "\"with\\ space\"@example.org",
            "\"plain\"@example.org",
        ];
        assert_found(&set, Match::Taken, &taken);
        let unknown = [
            "jane@example.org",
            "doe@example.org",
            "\"\"@example.org",
            "withspace@example.org",
        ];
        assert_found(&set, Match::UnknownMailbox, &unknown);
        let foreign = [
            "jane.doe@example.com",
            "jane.doe@mail.example.org",
            "jane.doe@org",
            "jane.doe@xample.org",
        ];
        assert_found(&set, Match::Foreign, &foreign);
        assert!(set.has_domain(b"EXAMPLE.org") && !set.has_domain(b"example.com"));
    }

    #[test]
    fn a_domain_takes_every_mailbox_and_no_subdomain() {
        for entry in ["example.org", "@example.org", "EXAMPLE.ORG"] {
            let set = recipients(&[entry]);
            assert_found(
                &set,
                Match::Taken,
                &[
                    "a@example.org",
                    "\"b c\"@Example.Org",
                    "postmaster@example.org",
                ],
            );
            assert_found(
                &set,
                Match::Foreign,
                &[
                    "a@sub.example.org",
                    "a@example.org.example",
                    "a@anexample.org",
                ],
            );
        }
    }

    #[test]
    fn a_leading_dot_takes_every_subdomain_and_not_the_domain() {
        for entry in [".example.org", "@.example.org"] {
            let set = recipients(&[entry]);
            assert_found(
                &set,
                Match::Taken,
                &["a@b.example.org", "a@c.b.Example.org"],
            );
            assert_found(
                &set,
                Match::Foreign,
                &["a@example.org", "a@anexample.org", "a@b.example.org.net"],
            );
            assert!(set.has_domain(b"b.example.org") && !set.has_domain(b"example.org"));
        }
    }

    #[test]
    fn a_sub_address_is_that_of_its_mailbox() {
        let set = recipients(&[
            "user@example.org",
            "list+owner@example.org",
            "+odd@example.org",
        ]);
        let taken = [
            "user+tag@example.org",
            "user+@example.org",
            "user+a+b@example.org",
            "USER+tag@example.org",
            "\"user+two words\"@example.org",
            "list+owner@example.org",
            "+odd@example.org",
            "+odd+tag@example.org",
        ];
        assert_found(&set, Match::Taken, &taken);
        let unknown = [
            "list@example.org",
            "list+other@example.org",
            "user-tag@example.org",
            "+tag@example.org",
        ];
        assert_found(&set, Match::UnknownMailbox, &unknown);
        let mut dash = Recipients::new(Some(b'-'));
        let mut none = Recipients::new(None);
        for set in [&mut dash, &mut none] {
            set.add(b"user@example.org").expect("an address");
        }
        assert_found(&dash, Match::Taken, &["user-tag@example.org"]);
        assert_found(&dash, Match::UnknownMailbox, &["user+tag@example.org"]);
        assert_found(
            &none,
            Match::UnknownMailbox,
            &["user+tag@example.org", "user-tag@example.org"],
        );
    }

    #[test]
    fn an_address_literal_is_compared_as_an_address() {
        let set = recipients(&["[192.0.2.1]", "ops@[IPv6:2001:db8::1]"]);
        assert_found(
            &set,
            Match::Taken,
            &[
                "a@[192.0.2.1]",
                "a@[192.000.002.001]",
                "a@[IPv6:::ffff:192.0.2.1]",
            ],
        );
        assert_found(
            &set,
            Match::Taken,
            &["ops@[ipv6:2001:DB8:0::1]", "ops+x@[IPv6:2001:db8::1]"],
        );
        assert_found(&set, Match::UnknownMailbox, &["a@[IPv6:2001:db8::1]"]);
        assert_found(
            &set,
            Match::Foreign,
            &["a@[192.0.2.2]", "a@192.0.2.1", "a@[X-tag:a@b]", "ops@[]"],
        );
    }

    #[test]
    fn u_labels_and_a_labels_are_two_domains() {
        let set = recipients(&["b\u{fc}cher.example", "us\u{e9}r@xn--bcher-kva.example"]);
        assert_found(
            &set,
            Match::Taken,
            &["a@b\u{fc}cher.example", "a@B\u{fc}CHER.example"],
        );
        assert_found(&set, Match::Taken, &["us\u{e9}r@XN--bcher-kva.example"]);
        assert_found(&set, Match::UnknownMailbox, &["a@xn--bcher-kva.example"]);
        assert_found(&set, Match::Foreign, &["a@b\u{dc}cher.example"]);
    }

    #[test]
    fn what_rcpt_could_not_name_is_no_entry() {
        let long_local = "l".repeat(65);
        let long = format!("{long_local}@example.org");
        for entry in [
            "",
            "@",
            ".",
            "@.",
            "a@",
            "@@example.org",
            "a@b@c",
            "a b@example.org",
            "a@example.org ",
            "-a.example",
            "example..org",
            "example.org.",
            "a@.example.org",
            ".[192.0.2.1]",
            "[192.0.2.256]",
            "[192.0.2.1",
            "<a@example.org>",
            "a@example.org,b@example.org",
            "a@ex\u{0}ample.org",
            "a:b",
            &long,
        ] {
            let mut set = recipients(&["a@example.org"]);
            assert_eq!(
                set.add(entry.as_bytes()),
                Err(EntryError::Malformed),
                "{entry:?}"
            );
            assert_eq!(set.len(), 1);
        }
        let mut set = Recipients::new(None);
        assert_eq!(set.add(b"a@b\xfcd.example"), Err(EntryError::Malformed));
    }

    #[test]
    fn an_entry_given_twice_counts_once() {
        let set = recipients(&["a@b", "A@B", "\"a\"@b", "b", "@b", "@.b", ".B"]);
        assert_eq!(set.len(), 3);
    }

    /// What the table must answer, found by looking at every entry.
    fn naive(entries: &[(String, String)], local: &str, domain: &str) -> Match {
        let mut known = false;
        for (entry_local, entry_domain) in entries {
            match (entry_local.as_str(), entry_domain.strip_prefix('.')) {
                ("", Some(below)) if domain.ends_with(&format!(".{below}")) => return Match::Taken,
                ("", None) if entry_domain == domain => return Match::Taken,
                _ => {}
            }
        }
        for (entry_local, entry_domain) in entries {
            if entry_domain == domain && !entry_local.is_empty() {
                known = true;
                let main = local.split('+').next().unwrap_or_default();
                if entry_local == local || entry_local == main {
                    return Match::Taken;
                }
            }
        }
        if known {
            Match::UnknownMailbox
        } else {
            Match::Foreign
        }
    }

    #[test]
    fn the_table_agrees_with_looking_at_every_entry() {
        let mut state = 7_u64;
        let mut next = move |below: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 33) % below
        };
        let locals = ["a", "b", "a+b", "c+d", "dd"];
        let domains = ["x", "y.x", "z.y.x", "w", "y.w", "xx"];
        for _ in 0..300 {
            let mut set = Recipients::new(Some(b'+'));
            let entries: Vec<(String, String)> = (0..next(12))
                .map(|_| {
                    let domain = domains[next(6) as usize].to_owned();
                    match next(4) {
                        0 => (String::new(), domain),
                        1 => (String::new(), format!(".{domain}")),
                        _ => (locals[next(5) as usize].to_owned(), domain),
                    }
                })
                .collect();
            for (local, domain) in &entries {
                let entry = if local.is_empty() {
                    domain.clone()
                } else {
                    format!("{local}@{domain}")
                };
                set.add(entry.as_bytes()).expect("a good entry");
            }
            for local in ["a", "b", "a+b", "a+x", "c+d", "c", "dd", "d"] {
                for domain in domains {
                    let mailbox = format!("{local}@{domain}");
                    let expected = naive(&entries, local, domain);
                    assert_eq!(
                        set.find(mailbox.as_bytes()),
                        expected,
                        "{mailbox} in {entries:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_million_recipients_take_their_length_and_nineteen_bytes_each_at_most() {
        const COUNT: usize = 1_000_000;
        let name = |at: usize, room: &mut Vec<u8>| {
            room.clear();
            let written =
                std::io::Write::write_fmt(room, format_args!("user{at}@d{}.example", at % 1_000));
            written.expect("memory takes it");
        };
        let mut set = Recipients::new(None);
        let (mut room, mut octets) = (Vec::new(), 0);
        for at in 0..COUNT {
            name(at, &mut room);
            octets += room.len();
            set.add(&room).expect("a good entry");
        }
        set.shrink();
        assert_eq!(set.len(), COUNT);
        // 4 bytes of a table that is between a quarter and half full, and 3 in front of the text.
        let most = octets + COUNT * (3 + 16) + 1_000 * 40;
        assert!(set.memory_bytes() <= most, "{} bytes", set.memory_bytes());
        for at in (0..COUNT).step_by(997) {
            name(at, &mut room);
            assert_eq!(set.find(&room), Match::Taken);
            room.insert(0, b'x');
            assert_eq!(set.find(&room), Match::UnknownMailbox);
        }
        // Most steps that any question can take: nobody chooses the keys but the operator.
        let chain = set.slots.split(|slot| *slot == 0).map(<[u32]>::len).max();
        assert!(chain.is_some_and(|chain| chain < 200), "{chain:?}");
    }
}
