//! Passwords of AUTH: they are checked by the helper, and the sessions that wait for that go on.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::secure::Answer;
use super::storage::Committer;
use super::{Server, Shared};
use crate::conn::{Io, Stream, Token};
use crate::limits::{
    KIB, PASSWORD_CHECKS_CLIENT_MAX, PASSWORD_CHECKS_MAX, PASSWORD_WAIT_MAX, USERS_FILE_BYTES_MAX,
};
use crate::logger::{Class, Value};
use crate::offload::{Job, Timing};
use crate::ringlog::backing::Backing;
use crate::smtp::sink::PasswordVerdict;
use crate::sys::file::Stamps;
use crate::users::{KEY_BYTES, Users, Verifier};
use zeroize::Zeroizing;

/// Who may authenticate.
#[derive(Debug)]
pub enum Accounts {
    /// Whoever says a name and a password, where AUTH is offered at all.
    Anybody,
    /// These.
    Users(Box<Users>),
}

/// Where users are read from.
#[derive(Clone)]
pub struct UsersSource {
    /// The file.
    pub path: PathBuf,
    /// From it come the verifiers of names that nobody has; random, the same for the life of the process.
    pub secret: [u8; KEY_BYTES],
    /// State of the file before it was read, from [`UsersSource::stamps`].
    pub seen: Option<Stamps>,
}

impl UsersSource {
    /// The state of the file now; `None` when it can't be looked at.
    pub fn stamps(&self) -> Option<Stamps> {
        Stamps::of([self.path.as_path()])
    }

    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong, with the file and the line.
    pub fn load(&self) -> Result<Users, String> {
        let shown = self.path.display();
        let text = read(&self.path).map_err(|error| format!("{shown}: {error}"))?;
        Users::parse(&text, &self.secret)
            .map_err(|error| format!("{shown}:{}: {}", error.line, error.reason))
    }
}

/// The text of a file of users.
///
/// # Errors
/// It can't be read, is longer than [`USERS_FILE_BYTES_MAX`], or is no UTF-8.
pub fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = File::open(path)?;
    file.take(USERS_FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > USERS_FILE_BYTES_MAX {
        return Err(io::Error::other("the file is too long"));
    }
    Ok(text)
}

impl<B: Backing, C> Shared<B, C> {
    /// Hands a password to the helper. False when too many wait already, of all clients or of this one.
    /// **Bounds:** looks at [`PASSWORD_CHECKS_MAX`] entries.
    pub(super) fn check_password(
        &mut self,
        token: Token,
        io: &Io,
        verifier: Verifier,
        password: &[u8],
    ) -> bool {
        let client = io.client().ip();
        let bucket = io.flags.is_limited.then(|| self.prefixes.bucket(client));
        let of_client = || {
            let theirs = self.passwords.iter().filter(|(_, of)| *of == bucket);
            theirs.count()
        };
        if self.passwords.len() >= PASSWORD_CHECKS_MAX
            || (bucket.is_some() && of_client() >= PASSWORD_CHECKS_CLIENT_MAX)
        {
            return false;
        }
        let password = Zeroizing::new(password.to_vec());
        let job: Job<Answer> = Box::new(move |timing| Answer::Password {
            token,
            verdict: match timing {
                Timing::Late => PasswordVerdict::Busy,
                Timing::InTime if verifier.matches(&password) => PasswordVerdict::Right,
                Timing::InTime => PasswordVerdict::Wrong,
            },
        });
        let deadline = self.now.after(PASSWORD_WAIT_MAX);
        let taken = self.offload.submit(deadline, job).is_ok();
        if taken {
            self.passwords.push((token, bucket));
        }
        taken
    }
}

impl<S: Stream, B: Backing, C: Committer> Server<S, B, C> {
    /// A password was checked: its session goes on, if it still waits.
    pub(super) fn password_checked(&mut self, token: Token, verdict: PasswordVerdict) {
        let mut waiting = self.shared.passwords.iter();
        if let Some(at) = waiting.position(|(of, _)| *of == token) {
            self.shared.passwords.swap_remove(at);
        }
        self.resume(token, |session, _, out| {
            session.password_checked(verdict, out);
        });
    }

    /// Takes users that were read, or says why the old ones stay.
    pub(super) fn users_loaded(&mut self, loaded: Result<Box<Users>, String>) {
        let shared = &mut self.shared;
        match loaded {
            Ok(users) => {
                let fields = [("users", Value::Number(users.len() as u64))];
                shared
                    .logger
                    .line(Class::UsersReloaded, &fields, shared.now);
                shared.accounts = Accounts::Users(users);
            }
            Err(reason) => {
                let fields = [("reason", Value::Str(&reason))];
                shared
                    .logger
                    .line(Class::UsersReloadFailed, &fields, shared.now);
            }
        }
    }
}

// A job owns its password and a verifier: all of them together stay small.
const _: () = assert!(PASSWORD_CHECKS_MAX as u64 * 2 * KIB <= 1024 * KIB);
