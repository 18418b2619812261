//! Trace fields in front of a message: how many hosts it has passed (RFC 5321 6.3).
//!
//! Promises: the content may be cut at any octet; no allocation; only the header is looked at, each of its lines from
//! its front until it is clear that it is no trace field, the rest of it for its end alone.
//! Does not: check what the fields say (RFC 5321 3.7.2 forbids refusing a message for the form of one), or decide how
//! many are too many.
//!
//! Any LF ends a line here: counting too many fields in a message with bare newlines is harmless, missing some is not.

use memchr::memchr;

/// Name of a trace field, in lower case.
const NAME: &[u8] = b"received";

/// Counts the Received fields of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hops {
    count: u16,
    at: Place,
}

/// Where the counter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Behind so many octets of a line that are the front of [`NAME`]; 0: at the start of a line.
    Name(u8),
    /// Behind the name, and blanks behind it (RFC 5322 4.5.8: older mail may have some); a colon makes it a field.
    Colon,
    /// Behind a CR at the start of a line; LF makes the line an empty one.
    Cr,
    /// In a line that is no trace field, or of which all that matters is known.
    Rest,
    /// Behind the empty line that ends the header (RFC 5322 2.1).
    Body,
}

const _: () = assert!(size_of::<Hops>() <= 4);

impl Hops {
    /// A counter in front of a message.
    pub const NONE: Hops = Hops {
        count: 0,
        at: Place::Name(0),
    };

    /// Trace fields so far; stays at `u16::MAX` behind that many.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Whether what comes is counted no more: the header is over.
    pub fn is_done(&self) -> bool {
        self.at == Place::Body
    }

    /// Takes octets of the message, in order, as they are stored.
    ///
    /// # Bounds
    /// Linear in the octets of the header among them; nothing is done for those behind it.
    pub fn take(&mut self, mut octets: &[u8]) {
        loop {
            // Most lines are there to their end, and looked at once.
            while self.at == Place::Name(0)
                && let Some((front, behind)) = octets.split_first_chunk::<FRONT_BYTES>()
            {
                let letters = u64::from_le_bytes(*front) | LOWER_CASE;
                if letters == NAME_LETTERS && behind.first() == Some(&b':') {
                    self.count = self.count.saturating_add(1);
                } else if letters == NAME_LETTERS || matches!(front[0], b'\r' | b'\n') {
                    break;
                }
                octets = self.next_line(octets);
            }
            let Some((&octet, behind)) = octets.split_first() else {
                return;
            };
            match (self.at, octet) {
                (Place::Body, _) => return,
                (Place::Name(0), b'\r') => self.at = Place::Cr,
                (Place::Name(0) | Place::Cr, b'\n') => self.at = Place::Body,
                (Place::Name(len), _)
                    if NAME.get(usize::from(len)) == Some(&octet.to_ascii_lowercase()) =>
                {
                    self.at = match usize::from(len) + 1 {
                        all if all == NAME.len() => Place::Colon,
                        _ => Place::Name(len + 1),
                    };
                }
                (Place::Colon, b' ' | b'\t') => {}
                (Place::Colon, b':') => {
                    self.count = self.count.saturating_add(1);
                    self.at = Place::Rest;
                }
                _ => {
                    octets = self.next_line(octets);
                    continue;
                }
            }
            octets = behind;
        }
    }

    /// Goes to the start of the next line, or to the end of the octets.
    fn next_line<'a>(&mut self, octets: &'a [u8]) -> &'a [u8] {
        match memchr(b'\n', octets) {
            Some(end) => {
                self.at = Place::Name(0);
                &octets[end + 1..]
            }
            None => {
                self.at = Place::Rest;
                &[]
            }
        }
    }
}

/// Octets of a line that are compared at once: those of [`NAME`].
const FRONT_BYTES: usize = 8;
/// [`NAME`] as one number, first octet lowest.
const NAME_LETTERS: u64 = u64::from_le_bytes(*b"received");
/// Makes lower case letters of upper case ones, and letters of nothing else.
const LOWER_CASE: u64 = 0x2020_2020_2020_2020;

#[cfg(test)]
mod tests {
    use super::*;

    fn count(message: &[u8]) -> u16 {
        let mut hops = Hops::NONE;
        hops.take(message);
        hops.count()
    }

    #[test]
    fn received_fields_of_the_header_are_counted_in_any_case() {
        for (message, expected) in [
            (&b""[..], 0),
            (b"Received:", 1),
            (b"Received", 0),
            (b"Received from x\r\n\r\n", 0),
            (b"Received: a\r\nRECEIVED: b\r\nreceived:\r\n\r\n", 3),
            (b"Received \t: a\r\n\r\n", 1),
            (b"Received: a\r\n\tReceived: b\r\n Received: c\r\n\r\n", 1),
            (
                b"X-Received: a\r\nReceived-SPF: pass\r\nReceive: b\r\nReceivedd: c\r\n\r\n",
                0,
            ),
            (b"To: Received: a\r\n\r\n", 0),
            (b"\r\nReceived: a\r\n", 0),
            (b"A: b\r\n\r\nReceived: a\r\n", 0),
            (b"A: b\r\n\rReceived: a\r\nReceived: b\r\n", 1),
            (b"\r\r\nReceived: a\r\n", 1),
            // A bare LF ends lines as well, so that none of them hides a field.
            (b"A: b\nReceived: a\n\nReceived: b\n", 1),
            (b"R\nReceived: a\r\n\nReceived: b\n", 1),
            (b"Received\r\nReceived: a\r\n", 1),
            (b"Received \nReceived: a\r\n", 1),
        ] {
            assert_eq!(count(message), expected, "{}", message.escape_ascii());
        }
    }

    #[test]
    fn the_count_is_the_same_wherever_the_message_is_cut() {
        let message = b"Received: one\r\n\tand more\r\nX: y\r\nreceived : two\r\nReceive\r\nReceived:three\r\n\
            \rx\r\nReceived: four\r\n\r\nReceived: none\r\n";
        assert_eq!(count(message), 4);
        for first in 0..=message.len() {
            for second in first..=message.len() {
                let mut hops = Hops::NONE;
                hops.take(&message[..first]);
                hops.take(&message[first..second]);
                hops.take(&message[second..]);
                assert_eq!(
                    (hops.count(), hops.is_done()),
                    (4, true),
                    "{first} {second}"
                );
            }
        }
    }

    #[test]
    fn the_count_stays_at_its_end() {
        let message = b"Received:\n".repeat(70_000);
        assert_eq!(count(&message), u16::MAX);
    }
}
