//! The mechanisms of AUTH, from the server's side (RFC 4616, RFC 5802, RFC 7677; LOGIN as deployed).
//!
//! Promises: messages in, messages out, base64 undone by the caller; everything kept of an exchange is bounded by
//! [`SCRAM_FIRST_BYTES_MAX`]; a password passes through and is not kept.
//! Does not: know users (the caller looks them up), check passwords (that takes time, and happens elsewhere), or know
//! TLS beyond the octets that a channel is bound by.

use zeroize::Zeroizing;

use crate::base64;
use crate::limits::{
    PASSWORD_BYTES_MAX, SCRAM_FIRST_BYTES_MAX, SCRAM_NONCE_BYTES_MAX, USER_NAME_BYTES_MAX,
};
use crate::users::{KEY_BYTES, Verifier, prepared};

/// A mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// SCRAM-SHA-256-PLUS (RFC 7677), bound to the TLS channel.
    ScramSha256Plus,
    /// SCRAM-SHA-256 (RFC 7677).
    ScramSha256,
    /// PLAIN (RFC 4616).
    Plain,
    /// LOGIN: user name and password, each asked for.
    Login,
}

impl Mechanism {
    /// All, the strongest first, as they are offered.
    pub const ALL: [Mechanism; 4] = [
        Mechanism::ScramSha256Plus,
        Mechanism::ScramSha256,
        Mechanism::Plain,
        Mechanism::Login,
    ];

    /// Registered name.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::Plain => "PLAIN",
            Mechanism::Login => "LOGIN",
        }
    }

    /// The mechanism of this name, in any case.
    pub fn named(name: &[u8]) -> Option<Mechanism> {
        let all = Mechanism::ALL.into_iter();
        all.into_iter()
            .find(|mechanism| mechanism.name().as_bytes().eq_ignore_ascii_case(name))
    }
}

/// A set of mechanisms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mechanisms(u8);

impl Mechanisms {
    /// None: AUTH is not offered.
    pub const NONE: Mechanisms = Mechanisms(0);
    /// Where users are known.
    pub const ALL: Mechanisms = Mechanisms(0b1111);
    /// Where every password is accepted: SCRAM proves to the client that the server knows its password, and this one
    /// does not.
    pub const OF_ANYBODY: Mechanisms =
        Mechanisms(1 << Mechanism::Plain as u8 | 1 << Mechanism::Login as u8);

    /// Whether `mechanism` is in the set.
    pub fn has(self, mechanism: Mechanism) -> bool {
        self.0 & (1 << mechanism as u8) != 0
    }

    /// The set without `mechanism`.
    pub fn without(self, mechanism: Mechanism) -> Mechanisms {
        Mechanisms(self.0 & !(1 << mechanism as u8))
    }

    /// Whether it is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The mechanisms in the order of [`Mechanism::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Mechanism> {
        let all = Mechanism::ALL.into_iter();
        all.filter(move |mechanism| self.has(*mechanism))
    }
}

/// What a channel can be bound by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// `tls-exporter` (RFC 9266): 32 octets that both sides derive, TLS 1.3 only.
    Exporter,
    /// `tls-server-end-point` (RFC 5929 4): hash of the server's certificate.
    ServerEndPoint,
}

/// Longest channel binding, octets: a SHA-512 hash of a certificate.
pub const BINDING_BYTES_MAX: usize = 64;

/// The octets that a channel is bound by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindingData {
    bytes: [u8; BINDING_BYTES_MAX],
    len: u8,
}

impl BindingData {
    /// These octets; `None` when there are more than [`BINDING_BYTES_MAX`].
    pub fn new(data: &[u8]) -> Option<BindingData> {
        let mut bytes = [0; BINDING_BYTES_MAX];
        bytes.get_mut(..data.len())?.copy_from_slice(data);
        Some(BindingData {
            bytes,
            len: data.len() as u8,
        })
    }

    /// The octets.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Longest part of a nonce that the server adds, octets; 24 are in use.
pub const SERVER_NONCE_BYTES_MAX: usize = 32;

/// What an exchange needs from outside.
pub trait Surroundings {
    /// The verifier of a user, or a decoy for a name that nobody has. `None`: no users are known.
    fn verifier(&mut self, user: &str) -> Option<Verifier>;
    /// What the channel is bound by; `None` where it is not, or not by this.
    fn binding(&mut self, binding: Binding) -> Option<BindingData>;
    /// Fresh random text, graphic ASCII without commas, at most [`SERVER_NONCE_BYTES_MAX`] octets.
    fn nonce(&mut self) -> Vec<u8>;
}

/// Why an exchange ends without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A message does not have the syntax of its mechanism.
    Malformed,
    /// The credentials are wrong, or not allowed what they ask for.
    Refused,
}

/// What follows a message of the client.
#[derive(Debug)]
pub enum Next {
    /// This challenge, then the client's answer.
    Challenge(Vec<u8>),
    /// The password has to be checked; it is the rest of the message, from this offset on.
    Password {
        /// Name as [`prepared`] made it.
        user: Box<str>,
        /// Where in the message the password stands.
        from: usize,
    },
    /// Success as this user.
    Success(Box<str>),
    /// The end.
    Failure(Failure),
}

/// One exchange: what the server waits for.
#[derive(Debug)]
pub enum Exchange {
    /// The message of PLAIN.
    Plain,
    /// The user name of LOGIN.
    LoginUser,
    /// The password of LOGIN, for this user; `None`: for a name that can't be one.
    LoginPassword(Option<Box<str>>),
    /// The first message of SCRAM.
    ScramFirst {
        /// The channel has to be bound.
        plus: bool,
        /// The server has offered -PLUS on this channel.
        plus_offered: bool,
    },
    /// The final message of SCRAM.
    ScramFinal(Box<Scram>),
    /// The empty answer to the server's last message of SCRAM, for this user.
    ScramEnd(Box<str>),
}

impl Exchange {
    /// The beginning of an exchange; `plus_offered`: SCRAM-SHA-256-PLUS was offered on this channel.
    pub fn new(mechanism: Mechanism, plus_offered: bool) -> Exchange {
        match mechanism {
            Mechanism::Plain => Exchange::Plain,
            Mechanism::Login => Exchange::LoginUser,
            Mechanism::ScramSha256 => Exchange::ScramFirst {
                plus: false,
                plus_offered,
            },
            Mechanism::ScramSha256Plus => Exchange::ScramFirst {
                plus: true,
                plus_offered,
            },
        }
    }

    /// The challenge of a server that was sent no initial response.
    pub fn first_challenge(&self) -> &'static [u8] {
        match self {
            Exchange::LoginUser => b"Username:",
            _ => b"",
        }
    }

    /// Takes a message of the client. After [`Next::Challenge`] the exchange goes on.
    pub fn step(&mut self, message: &[u8], around: &mut impl Surroundings) -> Next {
        match self {
            Exchange::Plain => plain(message),
            Exchange::LoginUser => {
                // Some clients put a NUL behind the name.
                let name = message.strip_suffix(b"\0").unwrap_or(message);
                *self = Exchange::LoginPassword(user_name(name));
                Next::Challenge(b"Password:".to_vec())
            }
            Exchange::LoginPassword(user) => Next::Password {
                // Nobody has the empty name, so this fails as a wrong password does, after as much work.
                user: user.take().unwrap_or_default(),
                from: 0,
            },
            Exchange::ScramFirst { plus, plus_offered } => {
                match Scram::begin(message, *plus, *plus_offered, around) {
                    Ok((scram, challenge)) => {
                        *self = Exchange::ScramFinal(Box::new(scram));
                        Next::Challenge(challenge)
                    }
                    Err(failure) => Next::Failure(failure),
                }
            }
            Exchange::ScramFinal(scram) => match scram.finish(message) {
                Ok(signature) => {
                    let user = core::mem::take(&mut scram.user);
                    *self = Exchange::ScramEnd(user);
                    let mut challenge = b"v=".to_vec();
                    base64::encode(&signature, &mut challenge);
                    Next::Challenge(challenge)
                }
                Err(failure) => Next::Failure(failure),
            },
            Exchange::ScramEnd(user) if message.is_empty() => Next::Success(core::mem::take(user)),
            Exchange::ScramEnd(_) => Next::Failure(Failure::Malformed),
        }
    }
}

/// A user name as it is looked up; `None` for what nobody can be called.
fn user_name(name: &[u8]) -> Option<Box<str>> {
    let name = core::str::from_utf8(name).ok()?;
    let name = prepared(name).filter(|name| name.len() <= USER_NAME_BYTES_MAX)?;
    Some(name.into())
}

/// RFC 4616 2: authorization identity, NUL, authentication identity, NUL, password.
fn plain(message: &[u8]) -> Next {
    let mut parts = message.splitn(3, |octet| *octet == 0);
    let (Some(authzid), Some(name), Some(password)) = (parts.next(), parts.next(), parts.next())
    else {
        return Next::Failure(Failure::Malformed);
    };
    if password.contains(&0) || name.is_empty() || password.is_empty() {
        return Next::Failure(Failure::Malformed);
    }
    if password.len() > PASSWORD_BYTES_MAX || !may_act_as(authzid, name) {
        return Next::Failure(Failure::Refused);
    }
    Next::Password {
        user: user_name(name).unwrap_or_default(),
        from: message.len() - password.len(),
    }
}

/// Whether this user may act as `authzid`: nobody may act as another.
fn may_act_as(authzid: &[u8], name: &[u8]) -> bool {
    authzid.is_empty() || (user_name(authzid).is_some() && user_name(authzid) == user_name(name))
}

/// A SCRAM exchange between its two messages.
#[derive(Debug)]
pub struct Scram {
    user: Box<str>,
    verifier: Verifier,
    /// The front of AuthMessage (RFC 5802 3): the client's first message without its header, a comma, ours, a comma.
    message: Vec<u8>,
    /// Where in `message` both nonces stand, together.
    nonce: core::ops::Range<usize>,
    /// What the client has to say again: its header and what the channel is bound by.
    binding: Vec<u8>,
}

impl Scram {
    /// Takes the client's first message; returns the exchange and the server's first message.
    fn begin(
        first: &[u8],
        plus: bool,
        plus_offered: bool,
        around: &mut impl Surroundings,
    ) -> Result<(Scram, Vec<u8>), Failure> {
        if first.len() > SCRAM_FIRST_BYTES_MAX {
            return Err(Failure::Malformed);
        }
        let first = core::str::from_utf8(first).map_err(|_| Failure::Malformed)?;
        // RFC 5802 7: gs2-header = gs2-cbind-flag "," [ authzid ] ","
        let mut parts = first.splitn(3, ',');
        let (Some(flag), Some(authzid), Some(bare)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(Failure::Malformed);
        };
        let mut binding = first.as_bytes()[..first.len() - bare.len()].to_vec();
        match (plus, flag) {
            (false, "n") => {}
            // RFC 5802 6: the client would have bound the channel and believes that we can't; if we had said that
            // we can, somebody has taken that out of our list.
            (false, "y") if plus_offered => return Err(Failure::Refused),
            (false, "y") => {}
            (true, flag) => {
                let kind = match flag {
                    "p=tls-exporter" => Binding::Exporter,
                    "p=tls-server-end-point" => Binding::ServerEndPoint,
                    _ if flag.starts_with("p=") => return Err(Failure::Refused),
                    _ => return Err(Failure::Malformed),
                };
                let data = around.binding(kind).ok_or(Failure::Refused)?;
                binding.extend_from_slice(data.as_bytes());
            }
            _ => return Err(Failure::Malformed),
        }
        // client-first-message-bare = [reserved-mext ","] username "," nonce ["," extensions]
        let mut attributes = bare.split(',');
        let name = attributes.next().and_then(|part| part.strip_prefix("n="));
        let nonce = attributes.next().and_then(|part| part.strip_prefix("r="));
        let (Some(name), Some(nonce)) = (name, nonce) else {
            return Err(Failure::Malformed);
        };
        let is_nonce = (1..=SCRAM_NONCE_BYTES_MAX).contains(&nonce.len())
            && nonce.bytes().all(|octet| octet.is_ascii_graphic());
        let extensions_fit = attributes.all(is_attribute);
        let name = unescaped(name).filter(|name| !name.is_empty());
        let (Some(name), true, true) = (name, is_nonce, extensions_fit) else {
            return Err(Failure::Malformed);
        };
        if !authzid.is_empty() {
            let authzid = authzid.strip_prefix("a=").and_then(unescaped);
            let authzid = authzid.ok_or(Failure::Malformed)?;
            if !may_act_as(authzid.as_bytes(), name.as_bytes()) {
                return Err(Failure::Refused);
            }
        }
        // A name that can't be one gets a decoy, as one that nobody has.
        let user = user_name(name.as_bytes()).unwrap_or_default();
        let verifier = around.verifier(&user).ok_or(Failure::Refused)?;
        let mut message = bare.as_bytes().to_vec();
        message.push(b',');
        let server_first = message.len();
        message.extend_from_slice(b"r=");
        let nonce_at = message.len();
        message.extend_from_slice(nonce.as_bytes());
        message.extend_from_slice(&around.nonce());
        let nonce = nonce_at..message.len();
        message.extend_from_slice(b",s=");
        base64::encode(verifier.salt(), &mut message);
        message.extend_from_slice(format!(",i={}", verifier.iterations()).as_bytes());
        let challenge = message[server_first..].to_vec();
        message.push(b',');
        let scram = Scram {
            user,
            verifier,
            message,
            nonce,
            binding,
        };
        Ok((scram, challenge))
    }

    /// Takes the client's final message; returns the server's signature.
    fn finish(&mut self, last: &[u8]) -> Result<[u8; KEY_BYTES], Failure> {
        let last = core::str::from_utf8(last).map_err(|_| Failure::Malformed)?;
        // client-final-message = channel-binding "," nonce ["," extensions] "," proof
        let (without_proof, proof) = last.rsplit_once(",p=").ok_or(Failure::Malformed)?;
        let mut key = [0; KEY_BYTES];
        if base64::decode(proof.as_bytes(), &mut key) != Some(KEY_BYTES) {
            return Err(Failure::Malformed);
        }
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|part| part.strip_prefix("c="));
        let nonce = attributes.next().and_then(|part| part.strip_prefix("r="));
        let binding = binding.and_then(|text| base64::decoded(text.as_bytes()));
        let (Some(binding), Some(nonce), true) = (binding, nonce, attributes.all(is_attribute))
        else {
            return Err(Failure::Malformed);
        };
        if binding != self.binding || nonce.as_bytes() != &self.message[self.nonce.clone()] {
            return Err(Failure::Refused);
        }
        self.message.extend_from_slice(without_proof.as_bytes());
        let signature = self.verifier.scram(&self.message, &key);
        signature.ok_or(Failure::Refused)
    }
}

/// An extension that may be ignored (RFC 5802 7: attr-val): a letter, `=`, and what is not empty. `m=` has to be
/// understood, and nothing is.
fn is_attribute(part: &str) -> bool {
    match part.as_bytes() {
        [b'm' | b'M', b'=', ..] => false,
        [letter, b'=', _, ..] => letter.is_ascii_alphabetic(),
        _ => false,
    }
}

/// RFC 5802 5.1: `=2C` stands for a comma, `=3D` for an equals sign, and no other `=` stands there.
fn unescaped(name: &str) -> Option<String> {
    let mut out = String::with_capacity(name.len());
    let mut parts = name.split('=');
    out.push_str(parts.next()?);
    for part in parts {
        let (character, rest) = match part.split_at_checked(2)? {
            ("2C", rest) => (',', rest),
            ("3D", rest) => ('=', rest),
            _ => return None,
        };
        out.push(character);
        out.push_str(rest);
    }
    Some(out)
}

/// Room for a decoded message of a client; wiped when it is dropped.
pub type Room = Zeroizing<[u8; ROOM_BYTES]>;

/// Octets of the longest message that is decoded.
pub const ROOM_BYTES: usize = crate::limits::AUTH_LINE_BYTES_MAX / 4 * 3;

// The longest message of PLAIN and the longest first message of SCRAM fit, and so does the longest challenge into a
// reply line (RFC 5321 4.5.3.1.5): both nonces, salt, iterations and the names of the attributes, in base64.
const _: () = assert!(2 * USER_NAME_BYTES_MAX + PASSWORD_BYTES_MAX + 2 <= ROOM_BYTES);
const _: () = assert!(SCRAM_FIRST_BYTES_MAX <= ROOM_BYTES);
const _: () = assert!(
    (SCRAM_NONCE_BYTES_MAX + SERVER_NONCE_BYTES_MAX + 88 + 7 + 10).div_ceil(3) * 4 + 6 <= 512
);

#[cfg(test)]
mod tests {
    use super::*;
    use core::num::NonZeroU32;

    /// The server of RFC 7677 3, with a channel that may be bound.
    struct Server {
        binding: Option<&'static [u8]>,
    }

    impl Surroundings for Server {
        fn verifier(&mut self, user: &str) -> Option<Verifier> {
            let salt = base64::decoded(b"W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
            let password = if user == "user" { "pencil" } else { "nobody's" };
            let iterations = NonZeroU32::new(4_096).unwrap();
            Some(Verifier::new(password, &salt, iterations))
        }

        fn binding(&mut self, binding: Binding) -> Option<BindingData> {
            let data = self.binding.filter(|_| binding == Binding::Exporter)?;
            BindingData::new(data)
        }

        fn nonce(&mut self) -> Vec<u8> {
            b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".to_vec()
        }
    }

    const PLAINLY: Server = Server { binding: None };
    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
        s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    /// What follows the last of these messages, as text.
    fn play(mechanism: Mechanism, mut server: Server, messages: &[&[u8]]) -> String {
        let mut exchange = Exchange::new(mechanism, server.binding.is_some());
        let mut next = String::new();
        for message in messages {
            next = match exchange.step(message, &mut server) {
                Next::Challenge(challenge) => String::from_utf8(challenge).unwrap(),
                Next::Password { user, from } => {
                    format!("check {user} {}", message[from..].escape_ascii())
                }
                Next::Success(user) => format!("success {user}"),
                Next::Failure(failure) => format!("{failure:?}"),
            };
        }
        next
    }

    fn scram(messages: &[&str]) -> String {
        let messages: Vec<&[u8]> = messages.iter().map(|message| message.as_bytes()).collect();
        play(Mechanism::ScramSha256, PLAINLY, &messages)
    }

    #[test]
    fn the_exchange_of_rfc_7677_succeeds() {
        assert_eq!(scram(&[FIRST]), SERVER_FIRST);
        assert_eq!(
            scram(&[FIRST, FINAL]),
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
        );
        assert_eq!(scram(&[FIRST, FINAL, ""]), "success user");
        assert_eq!(scram(&[FIRST, FINAL, "x"]), "Malformed");
        assert_eq!(scram(&["y,,n=user,r=rOprNGfwEbeRWgbNEkqO"]), SERVER_FIRST);
        assert_eq!(
            scram(&["n,a=user,n=user,r=rOprNGfwEbeRWgbNEkqO"]),
            SERVER_FIRST
        );
        let extended = format!("{FIRST},x=any");
        assert_eq!(scram(&[&extended]), SERVER_FIRST);
    }

    #[test]
    fn a_proof_that_fits_nobody_or_another_exchange_is_refused() {
        let wrong = FINAL.replace("p=d", "p=e");
        let binding = FINAL.replace("biws", "eSws");
        let nonce = FINAL.replace("k0,p", "k1,p");
        let client_nonce =
            "c=biws,r=rOprNGfwEbeRWgbNEkqO,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        for last in [&wrong[..], &binding, &nonce, client_nonce] {
            assert_eq!(scram(&[FIRST, last]), "Refused", "{last}");
        }
        let nobody = FIRST.replace("user", "nobody");
        assert_eq!(scram(&[&nobody]), SERVER_FIRST);
        assert_eq!(scram(&[&nobody, FINAL]), "Refused");
        assert_eq!(scram(&["n,a=admin,n=user,r=abc"]), "Refused");
    }

    #[test]
    fn messages_of_another_form_are_malformed() {
        let long_nonce = format!("n,,n=user,r={}", "a".repeat(SCRAM_NONCE_BYTES_MAX + 1));
        let long = format!("n,,n={},r=a", "u".repeat(SCRAM_FIRST_BYTES_MAX));
        for first in [
            "",
            "n",
            "n,",
            "n,,",
            "n,,n=user",
            "n,,r=a,n=user",
            "n,,n=user,r=",
            "n,,n=,r=a",
            "n,,n=u=2,r=a",
            "n,,n=u=41,r=a",
            "n,,m=x,n=user,r=a",
            "n,,n=user,r=a,m=x",
            "n,,n=user,r=a,",
            "n,,n=user,r=a b",
            "n,b=user,n=user,r=a",
            "N,,n=user,r=a",
            "p=tls-exporter,,n=user,r=a",
            "n,,n=user,r=\u{e9}",
            &long_nonce,
            &long,
        ] {
            assert_eq!(scram(&[first]), "Malformed", "{first}");
        }
        for last in [
            "",
            "c=biws",
            &FINAL.replace("c=", "d="),
            &FINAL.replace("VQ=", "VQ"),
            &FINAL.replace("p=", "q="),
            &FINAL.replace(",p=", ",m=1,p="),
            &format!("{FINAL},x=y"),
        ] {
            assert_eq!(scram(&[FIRST, last]), "Malformed", "{last}");
        }
        assert_eq!(
            play(Mechanism::ScramSha256, PLAINLY, &[b"n,,n=\xff,r=a"]),
            "Malformed"
        );
    }

    #[test]
    fn commas_and_equals_signs_in_names_are_escaped() {
        assert_eq!(unescaped("a=2Cb=3D"), Some("a,b=".to_owned()));
        for bad in ["a=", "=2", "=2c", "a=b", "==", "=\u{e9}x"] {
            assert_eq!(unescaped(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_bound_channel_has_to_be_the_one_that_the_client_sees() {
        let data: &[u8] = b"thirty-two octets of an exporter";
        let play = |mechanism, first: &str, binding| {
            play(mechanism, Server { binding }, &[first.as_bytes()])
        };
        let plus = Mechanism::ScramSha256Plus;
        let bound = "p=tls-exporter,,n=user,r=rOprNGfwEbeRWgbNEkqO";
        assert_eq!(play(plus, bound, Some(data)), SERVER_FIRST);
        // Not bound, or by something that this channel has not.
        assert_eq!(play(plus, bound, None), "Refused");
        let other = "p=tls-server-end-point,,n=user,r=a";
        assert_eq!(play(plus, other, Some(data)), "Refused");
        assert_eq!(
            play(plus, "p=tls-unique,,n=user,r=a", Some(data)),
            "Refused"
        );
        assert_eq!(play(plus, FIRST, Some(data)), "Malformed");
        // Somebody took -PLUS out of the list that the client saw (RFC 5802 6).
        let downgraded = "y,,n=user,r=rOprNGfwEbeRWgbNEkqO";
        assert_eq!(
            play(Mechanism::ScramSha256, downgraded, Some(data)),
            "Refused"
        );
        assert_eq!(play(Mechanism::ScramSha256, downgraded, None), SERVER_FIRST);

        // The proof covers what the client saw: the octets are part of what it signs.
        let mut server = Server {
            binding: Some(data),
        };
        let mut exchange = Exchange::new(plus, true);
        exchange.step(bound.as_bytes(), &mut server);
        let final_of = |seen: &[u8]| {
            let binding = base64::text(&[b"p=tls-exporter,,", seen].concat());
            let nonce = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
            format!("c={binding},{nonce},p={}", base64::text(&[0; KEY_BYTES]))
        };
        let next = exchange.step(
            final_of(b"what a man in the middle has").as_bytes(),
            &mut server,
        );
        assert!(matches!(next, Next::Failure(Failure::Refused)), "{next:?}");
        let Exchange::ScramFinal(scram) = &mut exchange else {
            panic!("still there")
        };
        assert_eq!(scram.binding, [b"p=tls-exporter,,", data].concat());
    }

    #[test]
    fn plain_gives_a_name_and_a_password_for_nobody_else() {
        let plain = |message: &[u8]| play(Mechanism::Plain, PLAINLY, &[message]);
        assert_eq!(plain(b"\0user\0pencil"), "check user pencil");
        assert_eq!(plain(b"user\0user\0pencil"), "check user pencil");
        assert_eq!(
            plain("\0us\u{ad}er\0p\u{e9}".as_bytes()),
            "check user p\\xc3\\xa9"
        );
        assert_eq!(plain(b"admin\0user\0pencil"), "Refused");
        assert_eq!(plain(b"\xff\0user\0pencil"), "Refused");
        // What can't be a name is checked as a name that nobody has.
        assert_eq!(plain(b"\0\xff\0pencil"), "check  pencil");
        let long = [b"\0user\0", &[b'p'; PASSWORD_BYTES_MAX + 1][..]].concat();
        assert_eq!(plain(&long), "Refused");
        for bad in [
            &b""[..],
            b"user",
            b"\0user",
            b"\0user\0",
            b"\0\0pencil",
            b"\0user\0pen\0cil",
            b"a\0b\0c\0d",
        ] {
            assert_eq!(plain(bad), "Malformed", "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn login_asks_for_a_name_and_then_for_a_password() {
        let login = |messages: &[&[u8]]| play(Mechanism::Login, PLAINLY, messages);
        let exchange = Exchange::new(Mechanism::Login, false);
        assert_eq!(exchange.first_challenge(), b"Username:");
        assert_eq!(login(&[b"user"]), "Password:");
        assert_eq!(login(&[b"user", b"pencil"]), "check user pencil");
        assert_eq!(login(&[b"user\0", b"pencil"]), "check user pencil");
        assert_eq!(login(&[b"\xff", b"pencil"]), "check  pencil");
    }

    #[test]
    fn mechanisms_are_named_in_any_case_and_listed_strongest_first() {
        assert_eq!(Mechanism::named(b"plain"), Some(Mechanism::Plain));
        assert_eq!(Mechanism::named(b"CRAM-MD5"), None);
        let names = |set: Mechanisms| set.iter().map(Mechanism::name).collect::<Vec<_>>();
        assert_eq!(
            names(Mechanisms::ALL),
            ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN"]
        );
        assert_eq!(names(Mechanisms::OF_ANYBODY), ["PLAIN", "LOGIN"]);
        let unbound = Mechanisms::ALL.without(Mechanism::ScramSha256Plus);
        assert!(!unbound.has(Mechanism::ScramSha256Plus) && unbound.has(Mechanism::ScramSha256));
    }
}
