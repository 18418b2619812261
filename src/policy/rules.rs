//! The access rules: who may connect, and for whom a listener takes mail.
//!
//! Promises: each answer depends on the rules, the [`Subject`] and the [`Question`] alone, and allocates nothing;
//! whoever may not relay never does (RFC 5321 3.6.2 leaves relaying to policy, and here nobody but an authenticated
//! user of a submission listener may); postmaster of a domain of ours is always reachable (RFC 5321 4.5.1).
//! Does not: count anything (see `limits`), look at content, or judge senders. The null reverse-path is as good as
//! any other: delivery reports come with it (RFC 5321 4.5.5).

use core::net::IpAddr;

use super::networks::Networks;
use super::recipients::{Match, Recipients, literal_address, split};
use crate::smtp::reply::Reply;
use crate::smtp::session::Role;
use crate::smtp::sink::{Question, Verdict};

/// Whom a question is about.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// Address of the client.
    pub client: IpAddr,
    /// What the listener is for.
    pub role: Role,
    /// A user has authenticated (RFC 4954).
    pub is_user: bool,
}

/// The rules. [`Rules::default`] lets everybody connect and makes nobody's mail ours.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Who may connect; `None`: everybody.
    pub allowed: Option<Networks>,
    /// Who may not connect, though `allowed` says otherwise.
    pub denied: Networks,
    /// Clients that no limit applies to.
    pub unlimited: Networks,
    /// For whom mail is taken; `None`: for everybody.
    pub recipients: Option<Recipients>,
    /// Name of this server: its postmaster is ours.
    pub server_name: String,
    /// Addresses of this server: their postmasters are ours (RFC 5321 4.1.3).
    pub addresses: Vec<IpAddr>,
}

impl Rules {
    /// The answer to a question; what no rule is about is accepted.
    ///
    /// A client that may not connect gets 554 (RFC 5321 3.1) and is closed: access that could be regained by
    /// waiting would be 450.
    pub fn decide(&self, subject: &Subject, question: &Question<'_>) -> Verdict {
        match question {
            Question::Connect if !self.may_connect(subject.client) => {
                Verdict::RefuseAndClose(Reply::AccessDenied)
            }
            Question::Rcpt { path } => self.recipient(subject, path),
            _ => Verdict::Accept,
        }
    }

    /// Whether a client may connect. Who is denied may not, whatever else allows it: so the order of entries, and
    /// where they stand, changes nothing.
    pub fn may_connect(&self, client: IpAddr) -> bool {
        let is_allowed = self
            .allowed
            .as_ref()
            .is_none_or(|allowed| allowed.contains(client));
        is_allowed && !self.denied.contains(client)
    }

    fn recipient(&self, subject: &Subject, path: &[u8]) -> Verdict {
        match subject.role {
            Role::Sink => Verdict::Accept,
            Role::Submission if subject.is_user => Verdict::Accept,
            Role::Submission => Verdict::Refuse(Reply::RelayDenied),
            Role::Mx => match self.standing(path) {
                Match::Taken => Verdict::Accept,
                Match::UnknownMailbox => Verdict::Refuse(Reply::UserUnknown),
                Match::Foreign => Verdict::Refuse(Reply::RelayDenied),
            },
        }
    }

    /// What a recipient is to a receiver of its own mail.
    fn standing(&self, path: &[u8]) -> Match {
        let Some(recipients) = &self.recipients else {
            return Match::Taken;
        };
        // RFC 5321 4.5.1: <Postmaster> without a domain is the one path of that form.
        let Some((local, domain)) = split(path) else {
            return Match::Taken;
        };
        match recipients.find(path) {
            Match::Taken => Match::Taken,
            Match::Foreign if !self.is_this_server(domain) => Match::Foreign,
            _ if is_postmaster(local) => Match::Taken,
            _ => Match::UnknownMailbox,
        }
    }

    /// Whether a domain names this server itself.
    fn is_this_server(&self, domain: &[u8]) -> bool {
        let is_own = |address| self.addresses.contains(&address);
        self.server_name.as_bytes().eq_ignore_ascii_case(domain)
            || literal_address(domain).is_some_and(is_own)
    }
}

/// Whether a local part is that of the postmaster, in any case (RFC 5321 4.5.1), quoted or not.
fn is_postmaster(local: &[u8]) -> bool {
    let bare = match local {
        [b'"', inner @ .., b'"'] => inner,
        plain => plain,
    };
    bare.eq_ignore_ascii_case(b"postmaster")
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: Verdict = Verdict::Refuse(Reply::RelayDenied);
    const UNKNOWN: Verdict = Verdict::Refuse(Reply::UserUnknown);

    fn networks(prefixes: &[&str]) -> Networks {
        Networks::new(prefixes.iter().map(|text| text.parse().expect("a prefix")))
    }

    fn rules() -> Rules {
        let mut recipients = Recipients::new(Some(b'+'));
        for entry in ["user@example.org", "all.example", ".below.example"] {
            recipients.add(entry.as_bytes()).expect(entry);
        }
        Rules {
            recipients: Some(recipients),
            server_name: "mx.example.net".to_owned(),
            addresses: vec!["192.0.2.25".parse().expect("an address")],
            ..Rules::default()
        }
    }

    fn rcpt(rules: &Rules, role: Role, is_user: bool, path: &str) -> Verdict {
        let subject = Subject {
            client: "198.51.100.1".parse().expect("an address"),
            role,
            is_user,
        };
        let path = path.as_bytes();
        rules.decide(&subject, &Question::Rcpt { path })
    }

    fn connect(rules: &Rules, client: &str) -> Verdict {
        let subject = Subject {
            client: client.parse().expect("an address"),
            role: Role::Sink,
            is_user: false,
        };
        rules.decide(&subject, &Question::Connect)
    }

    #[test]
    fn an_mx_takes_mail_for_its_own_and_relays_for_nobody() {
        let rules = rules();
        for (path, expected) in [
            ("user@example.org", Verdict::Accept),
            ("user+tag@example.org", Verdict::Accept),
            ("other@example.org", UNKNOWN),
            ("anyone@all.example", Verdict::Accept),
            ("anyone@a.below.example", Verdict::Accept),
            ("anyone@below.example", REFUSED),
            ("user@example.com", REFUSED),
            ("user@mx.example.net", UNKNOWN),
            ("user@[192.0.2.25]", UNKNOWN),
            ("user@[192.0.2.26]", REFUSED),
            // The percent hack and the bang path ask for relaying as well.
            ("user%example.com@example.org", UNKNOWN),
            ("example.com!user@example.org", UNKNOWN),
            ("\"user@example.com\"@example.org", UNKNOWN),
        ] {
            assert_eq!(rcpt(&rules, Role::Mx, false, path), expected, "{path}");
            // A name alone gives no right to relay here.
            assert_eq!(rcpt(&rules, Role::Mx, true, path), expected, "{path}");
        }
    }

    #[test]
    fn postmaster_of_everything_that_is_ours_is_taken() {
        let rules = rules();
        for path in [
            "Postmaster",
            "POSTMASTER@EXAMPLE.ORG",
            "postmaster@all.example",
            "postmaster@x.below.example",
            "\"postmaster\"@example.org",
            "postmaster@MX.example.net",
            "postmaster@[192.0.2.25]",
            "postmaster@[IPv6:::ffff:192.0.2.25]",
        ] {
            assert_eq!(
                rcpt(&rules, Role::Mx, false, path),
                Verdict::Accept,
                "{path}"
            );
        }
        for path in [
            "postmaster@example.com",
            "postmaster@below.example",
            "postmaster@[192.0.2.1]",
        ] {
            assert_eq!(rcpt(&rules, Role::Mx, false, path), REFUSED, "{path}");
        }
        assert_eq!(
            rcpt(&rules, Role::Mx, false, "postmasters@example.org"),
            UNKNOWN
        );
    }

    #[test]
    fn without_a_list_an_mx_takes_mail_for_everybody() {
        assert_eq!(
            rcpt(&Rules::default(), Role::Mx, false, "a@b"),
            Verdict::Accept
        );
        let nobody = Rules {
            recipients: Some(Recipients::new(None)),
            ..Rules::default()
        };
        assert_eq!(rcpt(&nobody, Role::Mx, false, "a@b"), REFUSED);
        assert_eq!(
            rcpt(&nobody, Role::Mx, false, "postmaster"),
            Verdict::Accept
        );
    }

    #[test]
    fn submission_takes_every_recipient_from_a_user_and_none_from_a_stranger() {
        let rules = rules();
        for path in ["user@example.org", "user@example.com", "postmaster"] {
            assert_eq!(rcpt(&rules, Role::Submission, true, path), Verdict::Accept);
            assert_eq!(rcpt(&rules, Role::Submission, false, path), REFUSED);
        }
    }

    #[test]
    fn a_sink_takes_every_recipient_whatever_the_rules_say() {
        assert_eq!(
            rcpt(&rules(), Role::Sink, false, "user@example.com"),
            Verdict::Accept
        );
    }

    #[test]
    fn who_is_denied_may_not_connect_though_he_is_allowed() {
        let refused = Verdict::RefuseAndClose(Reply::AccessDenied);
        let everybody = Rules::default();
        assert_eq!(connect(&everybody, "198.51.100.1"), Verdict::Accept);
        let but_one = Rules {
            denied: networks(&["198.51.100.0/24", "2001:db8::/32"]),
            ..Rules::default()
        };
        for (client, expected) in [
            ("198.51.100.255", refused),
            ("::ffff:198.51.100.1", refused),
            ("198.51.101.0", Verdict::Accept),
            ("2001:db8:ffff::1", refused),
            ("2001:db9::1", Verdict::Accept),
        ] {
            assert_eq!(connect(&but_one, client), expected, "{client}");
        }
        let few = Rules {
            allowed: Some(networks(&["10.0.0.0/8"])),
            denied: networks(&["10.1.0.0/16", "10.2.3.4"]),
            ..Rules::default()
        };
        for (client, expected) in [
            ("10.0.0.1", Verdict::Accept),
            ("10.1.0.1", refused),
            ("10.2.3.4", refused),
            ("10.2.3.5", Verdict::Accept),
            ("11.0.0.1", refused),
            ("::1", refused),
        ] {
            assert_eq!(connect(&few, client), expected, "{client}");
        }
        let nobody = Rules {
            allowed: Some(Networks::default()),
            ..Rules::default()
        };
        assert_eq!(connect(&nobody, "127.0.0.1"), refused);
    }

    #[test]
    fn other_questions_and_the_null_sender_are_accepted() {
        let subject = Subject {
            client: "198.51.100.1".parse().expect("an address"),
            role: Role::Mx,
            is_user: false,
        };
        for question in [
            Question::Helo(b"c.example"),
            Question::Mail {
                path: b"",
                size: None,
            },
            Question::Mail {
                path: b"user@example.org",
                size: Some(1),
            },
            Question::Data { recipients: 1 },
            Question::EndOfData { octets: 1 },
        ] {
            assert_eq!(
                rules().decide(&subject, &question),
                Verdict::Accept,
                "{question:?}"
            );
        }
    }
}
