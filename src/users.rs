//! Users and what is kept of their passwords: the stored and the server key of SCRAM-SHA-256 (RFC 5802, RFC 7677) in
//! the form of RFC 5803, from which a password sent in the clear is checked as well.
//!
//! Promises: nothing here holds a password longer than its check; looking up a name that nobody has gives a verifier
//! that looks like any other and that no password matches, the same one every time for as long as the process lives;
//! a file that is wrong anywhere gives no table at all.
//! Does not: read files, or run in the background what takes time ([`Verifier::matches`] does).
//!
//! The file has one user a line, `NAME:SCRAM-SHA-256$ITERATIONS:SALT$STORED-KEY:SERVER-KEY`, the last three in base64.
//! Empty lines and lines that begin with `#` mean nothing.

use core::fmt;
use core::num::NonZeroU32;
use std::borrow::Cow;
use std::collections::BTreeMap;

use ring::{digest, hmac, pbkdf2};
use zeroize::{Zeroize, Zeroizing};

use crate::base64;
use crate::limits::{
    PASSWORD_BYTES_MAX, SALT_BYTES_MAX, SALT_BYTES_MIN, USER_ITERATIONS_DEFAULT,
    USER_ITERATIONS_MAX, USER_ITERATIONS_MIN, USER_NAME_BYTES_MAX, USERS_MAX,
};

/// Length of SHA-256, bytes.
pub const KEY_BYTES: usize = 32;
/// The one scheme, as RFC 5803 names it.
const SCHEME: &str = "SCRAM-SHA-256";
/// Length of the salt of a verifier made here, bytes.
pub const SALT_BYTES: usize = 16;

/// What is kept of a password.
#[derive(Clone)]
pub struct Verifier {
    iterations: NonZeroU32,
    salt: [u8; SALT_BYTES_MAX],
    salt_len: u8,
    stored_key: [u8; KEY_BYTES],
    server_key: [u8; KEY_BYTES],
}

impl Drop for Verifier {
    fn drop(&mut self) {
        // Who has the server key can pose as the server.
        self.stored_key.zeroize();
        self.server_key.zeroize();
    }
}

impl fmt::Debug for Verifier {
    /// Without the keys: they are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("iterations", &self.iterations)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    /// What is to be kept of `password`, which [`prepared`] made. The salt is cut at [`SALT_BYTES_MAX`].
    ///
    /// **Bounds:** the time is proportional to `iterations`, about a microsecond each.
    pub fn new(password: &str, salt: &[u8], iterations: NonZeroU32) -> Verifier {
        let salt_len = salt.len().min(SALT_BYTES_MAX);
        let mut verifier = Verifier {
            iterations,
            salt: [0; SALT_BYTES_MAX],
            salt_len: salt_len as u8,
            stored_key: [0; KEY_BYTES],
            server_key: [0; KEY_BYTES],
        };
        verifier.salt[..salt_len].copy_from_slice(&salt[..salt_len]);
        let salted = verifier.salted(password.as_bytes());
        verifier.stored_key = stored_key(&salted);
        verifier.server_key = mac(&*salted, b"Server Key");
        verifier
    }

    /// Reads the form of RFC 5803.
    ///
    /// # Errors
    /// A phrase that says what is wrong.
    pub fn parse(text: &str) -> Result<Verifier, &'static str> {
        let malformed = "not SCRAM-SHA-256$ITERATIONS:SALT$STORED-KEY:SERVER-KEY";
        let mut parts = text.split('$');
        let (Some(SCHEME), Some(info), Some(value), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed);
        };
        let (iterations, salt_text) = info.split_once(':').ok_or(malformed)?;
        let (stored, server) = value.split_once(':').ok_or(malformed)?;
        if iterations.is_empty() || !iterations.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed);
        }
        let allowed = USER_ITERATIONS_MIN..=USER_ITERATIONS_MAX;
        let iterations = iterations
            .parse()
            .ok()
            .filter(|number| allowed.contains(number))
            .and_then(NonZeroU32::new)
            .ok_or("the iterations are out of bounds")?;
        let mut salt = [0; SALT_BYTES_MAX];
        let salt_len = base64::decode(salt_text.as_bytes(), &mut salt)
            .filter(|len| *len >= SALT_BYTES_MIN)
            .ok_or("the salt is not base64 of 8 to 64 bytes")?;
        let key = |text: &str| {
            let mut key = [0; KEY_BYTES];
            let len = base64::decode(text.as_bytes(), &mut key);
            (len == Some(KEY_BYTES)).then_some(key)
        };
        Ok(Verifier {
            iterations,
            salt,
            salt_len: salt_len as u8,
            stored_key: key(stored).ok_or("the stored key is not base64 of 32 bytes")?,
            server_key: key(server).ok_or("the server key is not base64 of 32 bytes")?,
        })
    }

    /// The form of RFC 5803, as the file has it: a secret.
    pub fn to_text(&self) -> String {
        format!(
            "{SCHEME}${}:{}${}:{}",
            self.iterations,
            base64::text(self.salt()),
            base64::text(&self.stored_key),
            base64::text(&self.server_key)
        )
    }

    /// Salt, sent to whoever asks for this name.
    pub fn salt(&self) -> &[u8] {
        &self.salt[..usize::from(self.salt_len)]
    }

    /// Rounds of PBKDF2.
    pub fn iterations(&self) -> u32 {
        self.iterations.get()
    }

    /// Whether this is the password, before SASLprep. Takes the same time whatever it is.
    ///
    /// **Bounds:** as [`Verifier::new`]; to be run away from the loop.
    pub fn matches(&self, password: &[u8]) -> bool {
        let text = core::str::from_utf8(password).ok().and_then(prepared);
        // What can't be a password costs as much as what can.
        let salted = self.salted(text.as_deref().unwrap_or("").as_bytes());
        let is_equal = constant_time_eq(&stored_key(&salted), &self.stored_key);
        if let Some(Cow::Owned(mut copy)) = text {
            copy.zeroize();
            return is_equal;
        }
        is_equal && text.is_some()
    }

    /// Whether the proof of a SCRAM client fits (RFC 5802 3); the server's signature if so.
    pub fn scram(&self, message: &[u8], proof: &[u8; KEY_BYTES]) -> Option<[u8; KEY_BYTES]> {
        let mut client_key = mac(&self.stored_key, message);
        for (octet, other) in client_key.iter_mut().zip(proof) {
            *octet ^= other;
        }
        let stored = sha256(&client_key);
        client_key.zeroize();
        constant_time_eq(&stored, &self.stored_key).then(|| mac(&self.server_key, message))
    }

    fn salted(&self, password: &[u8]) -> Zeroizing<[u8; KEY_BYTES]> {
        let mut salted = Zeroizing::new([0; KEY_BYTES]);
        let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
        pbkdf2::derive(
            algorithm,
            self.iterations,
            self.salt(),
            password,
            &mut *salted,
        );
        salted
    }
}

fn stored_key(salted: &[u8; KEY_BYTES]) -> [u8; KEY_BYTES] {
    let mut client_key = mac(salted, b"Client Key");
    let stored = sha256(&client_key);
    client_key.zeroize();
    stored
}

fn mac(key: &[u8], message: &[u8]) -> [u8; KEY_BYTES] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    copied(hmac::sign(&key, message).as_ref())
}

fn sha256(message: &[u8]) -> [u8; KEY_BYTES] {
    copied(digest::digest(&digest::SHA256, message).as_ref())
}

fn copied(bytes: &[u8]) -> [u8; KEY_BYTES] {
    let mut out = [0; KEY_BYTES];
    for (place, byte) in out.iter_mut().zip(bytes) {
        *place = *byte;
    }
    out
}

/// Whether both are equal, in a time that says nothing about where they differ.
fn constant_time_eq(a: &[u8; KEY_BYTES], b: &[u8; KEY_BYTES]) -> bool {
    let difference = a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y));
    // The optimiser must not find out that one octet decides.
    core::hint::black_box(difference) == 0
}

/// A name or password as it is compared (SASLprep, RFC 4013); `None` when it holds what neither may, or is empty.
pub fn prepared(text: &str) -> Option<Cow<'_, str>> {
    if text.is_empty() || text.len() > PASSWORD_BYTES_MAX {
        return None;
    }
    stringprep::saslprep(text)
        .ok()
        .filter(|text| !text.is_empty())
}

/// Whether `name`, as [`prepared`] made it, may stand in the file: no control character, no `:`, no blank at an end, no
/// `#` in front, at most [`USER_NAME_BYTES_MAX`] bytes.
pub fn is_user_name(name: &str) -> bool {
    (1..=USER_NAME_BYTES_MAX).contains(&name.len())
        && !name.contains(|c: char| c.is_control() || c == ':')
        && !name.starts_with(['#', ' '])
        && !name.ends_with(' ')
}

/// What is wrong with a file of users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsersError {
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong with it. No part of the line is repeated: it may be a secret.
    pub reason: &'static str,
}

impl fmt::Display for UsersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl core::error::Error for UsersError {}

/// The users of a server.
#[derive(Debug)]
pub struct Users {
    verifiers: BTreeMap<Box<str>, Verifier>,
    decoy: Decoy,
}

/// Makes verifiers for names that nobody has.
#[derive(Debug)]
struct Decoy {
    key: hmac::Key,
    iterations: NonZeroU32,
}

impl Users {
    /// Reads a file of users. `secret` is random: from it come the verifiers of unknown names, so that nobody can tell
    /// them from others; give the same one each time the file is read again.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str, secret: &[u8; KEY_BYTES]) -> Result<Users, UsersError> {
        let mut verifiers = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let fault = |reason| UsersError {
                line: index + 1,
                reason,
            };
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, verifier) = line
                .split_once(':')
                .ok_or(fault("no ':' behind the name"))?;
            if !is_user_name(name) || prepared(name).as_deref() != Some(name) {
                return Err(fault("not a name that 'ringmx users add' would write"));
            }
            let verifier = Verifier::parse(verifier).map_err(fault)?;
            if verifiers.len() >= USERS_MAX {
                return Err(fault("too many users"));
            }
            if verifiers.insert(name.into(), verifier).is_some() {
                return Err(fault("this name stands further up already"));
            }
        }
        let iterations = most_common(&verifiers).unwrap_or(DEFAULT_ITERATIONS);
        Ok(Users {
            verifiers,
            decoy: Decoy {
                key: hmac::Key::new(hmac::HMAC_SHA256, secret),
                iterations,
            },
        })
    }

    /// Number of users.
    pub fn len(&self) -> usize {
        self.verifiers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.verifiers.is_empty()
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.verifiers.keys().map(|name| &**name)
    }

    /// The verifier of this name, as [`prepared`] made it; for a name that nobody has, one that nothing matches, with
    /// the iterations that most users have.
    pub fn verifier(&self, name: &str) -> Verifier {
        let decoy = self.decoy.verifier(name);
        self.verifiers.get(name).cloned().unwrap_or(decoy)
    }

    /// Whether somebody has this name, as [`prepared`] made it.
    pub fn contains(&self, name: &str) -> bool {
        self.verifiers.contains_key(name)
    }
}

const DEFAULT_ITERATIONS: NonZeroU32 = match NonZeroU32::new(USER_ITERATIONS_DEFAULT) {
    Some(number) => number,
    None => NonZeroU32::MIN,
};

fn most_common(verifiers: &BTreeMap<Box<str>, Verifier>) -> Option<NonZeroU32> {
    let mut counts: BTreeMap<NonZeroU32, usize> = BTreeMap::new();
    for verifier in verifiers.values() {
        *counts.entry(verifier.iterations).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    most.map(|(iterations, _)| iterations)
}

impl Decoy {
    fn verifier(&self, name: &str) -> Verifier {
        let derived = |what: &[u8]| {
            let mut context = hmac::Context::with_key(&self.key);
            context.update(what);
            context.update(name.as_bytes());
            copied(context.sign().as_ref())
        };
        let mut salt = [0; SALT_BYTES_MAX];
        salt[..SALT_BYTES].copy_from_slice(&derived(b"salt:")[..SALT_BYTES]);
        Verifier {
            iterations: self.iterations,
            salt,
            salt_len: SALT_BYTES as u8,
            stored_key: derived(b"stored:"),
            server_key: derived(b"server:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; KEY_BYTES] = [7; KEY_BYTES];

    fn iterations(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    /// The user of RFC 7677 3.
    fn pencil() -> Verifier {
        let salt = base64::decoded(b"W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        Verifier::new("pencil", &salt, iterations(4_096))
    }

    #[test]
    fn the_example_of_rfc_7677_gives_its_proof_and_its_signature() {
        let message = "n=user,r=rOprNGfwEbeRWgbNEkqO,\
            r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,\
            c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let proof = base64::decoded(b"dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=").unwrap();
        let proof: [u8; KEY_BYTES] = proof.try_into().unwrap();
        let signature = pencil().scram(message.as_bytes(), &proof).unwrap();
        assert_eq!(
            base64::text(&signature),
            "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
        );
        let mut wrong = proof;
        wrong[31] ^= 1;
        assert_eq!(pencil().scram(message.as_bytes(), &wrong), None);
        assert_eq!(pencil().scram(b"another message", &proof), None);
    }

    #[test]
    fn a_password_is_checked_against_the_same_keys() {
        let verifier = pencil();
        assert!(verifier.matches(b"pencil"));
        for wrong in [
            &b"Pencil"[..],
            b"pencil ",
            b"",
            b"penci",
            b"\xff",
            b"pencil\0",
            &[b'p'; 9_000],
        ] {
            assert!(!verifier.matches(wrong), "{}", wrong.escape_ascii());
        }
    }

    #[test]
    fn passwords_that_mean_the_same_text_are_the_same() {
        // RFC 4013 2: a no-break space is a space, a soft hyphen nothing, and composed forms are one.
        let salt = [1; SALT_BYTES];
        let password = prepared("I\u{ad}X\u{a0}\u{e9}\u{aa}").unwrap();
        assert_eq!(password, "IX \u{e9}a");
        let verifier = Verifier::new(&password, &salt, iterations(4_096));
        assert!(verifier.matches("IX \u{e9}a".as_bytes()));
        assert!(verifier.matches("IX e\u{301}a".as_bytes()));
        assert!(!verifier.matches("IX ea".as_bytes()));
        for forbidden in ["", "a\u{7}", "\u{ad}", "\u{e000}"] {
            assert_eq!(prepared(forbidden), None, "{forbidden:?}");
        }
    }

    #[test]
    fn a_verifier_reads_back_as_written() {
        let text = pencil().to_text();
        assert_eq!(
            text,
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
             wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
        assert_eq!(Verifier::parse(&text).unwrap().to_text(), text);
        assert!(
            !format!("{:?}", pencil()).contains("WG5d"),
            "keys are secrets"
        );
        for bad in [
            "",
            "SCRAM-SHA-1$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d:wfPL",
            "SCRAM-SHA-256$4096$WG5d:wfPL",
            &text.replace("4096", "4095"),
            &text.replace("4096", "+4096"),
            &text.replace("4096", "99999999999"),
            &text.replace("W22ZaJ0SNY7soEsUEjb6gQ==", "W22ZaJ0="),
            &text.replace("W22ZaJ0SNY7soEsUEjb6gQ==", "W22Z*J0SNY7soEsUEjb6gQ=="),
            &text.replace("WG5d8", "WG5"),
            &text.replace("dU=", "dQ=="),
            &format!("{text}$"),
        ] {
            assert!(Verifier::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_that_nobody_has_looks_like_one_that_somebody_has() {
        let file = format!("# users\n\nuser:{}\n", pencil().to_text());
        let users = Users::parse(&file, &SECRET).unwrap();
        assert_eq!(users.names().collect::<Vec<_>>(), ["user"]);
        assert_eq!(users.verifier("user").to_text(), pencil().to_text());
        let nobody = users.verifier("nobody");
        assert_eq!(
            (nobody.iterations(), nobody.salt().len()),
            (4_096, SALT_BYTES)
        );
        assert!(!nobody.matches(b"pencil"));
        // The same each time, also when the file was read again; different for others and with another secret.
        let again = Users::parse(&file, &SECRET).unwrap();
        assert_eq!(nobody.to_text(), again.verifier("nobody").to_text());
        assert_ne!(nobody.salt(), users.verifier("nobody2").salt());
        let other = Users::parse(&file, &[8; KEY_BYTES]).unwrap();
        assert_ne!(nobody.salt(), other.verifier("nobody").salt());
    }

    #[test]
    fn a_line_that_is_wrong_is_named_without_what_it_holds() {
        let good = format!("user:{}", pencil().to_text());
        for (file, line, reason) in [
            (format!("{good}\nuser2"), 2, "no ':' behind the name"),
            (
                format!("{good}\n{good}"),
                2,
                "this name stands further up already",
            ),
            (
                format!("\n\n b{good}"),
                3,
                "not a name that 'ringmx users add' would write",
            ),
            (
                "a\u{ad}b:x".to_owned(),
                1,
                "not a name that 'ringmx users add' would write",
            ),
            (
                "a:pencil".to_owned(),
                1,
                "not SCRAM-SHA-256$ITERATIONS:SALT$STORED-KEY:SERVER-KEY",
            ),
            (
                good.replace("4096", "1"),
                1,
                "the iterations are out of bounds",
            ),
        ] {
            let error = Users::parse(&file, &SECRET).unwrap_err();
            assert_eq!(error, UsersError { line, reason });
        }
    }
}
