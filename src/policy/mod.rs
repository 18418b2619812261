//! Who may connect, send, to whom and how much: pure answers to a session's questions.
//!
//! A loopback listener is a sink and takes everything; the rules of the edge go here.

pub mod clients;
pub mod networks;
pub mod recipients;
pub mod rules;
pub mod stress;

use crate::smtp::sink::{Question, Verdict};

/// Answers a question at once, or `None` when the answer comes later, through `Server::answer`.
pub type Policy = fn(&Question<'_>) -> Option<Verdict>;

/// The policy of a sink: everything is taken.
pub fn accept_all(_question: &Question<'_>) -> Option<Verdict> {
    Some(Verdict::Accept)
}
