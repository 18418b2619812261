//! Files of users and of certificates: read again when they change, and when SIGHUP asks for it.
//!
//! Every [`FILES_LOOK_MS`] the helper looks at device, inode, length and time of change of each file, and reads those
//! that changed: the loop itself touches no file. What is no good changes nothing, is told once, and looked at again
//! when it changes again: a certificate that came before its key is taken when the key is there.

use std::sync::Arc;

use super::Server;
use super::auth::UsersSource;
use super::secure::Answer;
use super::storage::Committer;
use crate::clock::Instant;
use crate::conn::Stream;
use crate::limits::FILES_LOOK_MS;
use crate::offload::Job;
use crate::ringlog::backing::Backing;
use crate::sys::file::Stamps;
use crate::tls::credentials::{Credentials, LoadError, Part, Sources};
use crate::users::Users;

/// Files that were looked at; what changed was read.
#[derive(Default)]
pub struct Look {
    users: Option<Reading<Box<Users>, String>>,
    credentials: Option<Reading<Box<Credentials>, LoadError>>,
}

/// The state that files were in before they were read, and what became of it.
struct Reading<T, E> {
    stamps: Option<Stamps>,
    outcome: Result<T, E>,
}

/// What is known of the looks.
#[derive(Default)]
pub(super) struct Watch {
    /// A clone of it is in the job that is under way.
    job: Arc<()>,
    looked_at: Instant,
}

/// One kind of file: its state when it was last read, and how to read it.
struct Watched<T, E> {
    seen: Option<Stamps>,
    now: Option<Stamps>,
    load: Box<dyn FnOnce() -> Result<T, E> + Send>,
}

impl<T, E> Watched<T, E> {
    /// Reads where something changed, or where it `must`. Files that can't be looked at, as where the user that serves
    /// may not enter a directory of keys, are taken for unchanged.
    fn read(self, must: bool) -> Option<Reading<T, E>> {
        let has_changed = self.now.is_some() && self.now != self.seen;
        (must || has_changed).then(|| Reading {
            stamps: self.now,
            outcome: (self.load)(),
        })
    }
}

fn look(
    users: Option<UsersSource>,
    sources: Option<(Sources, Option<Stamps>)>,
    must: bool,
) -> Look {
    // The state is taken before the file is read: what changes meanwhile is seen the next time.
    let users = users.map(|source| Watched {
        seen: source.seen.clone(),
        now: source.stamps(),
        load: Box::new(move || source.load().map(Box::new)),
    });
    let credentials = sources.map(|(sources, seen)| Watched {
        seen,
        now: sources.stamps(),
        load: Box::new(move || sources.load().map(Box::new)),
    });
    Look {
        users: users.and_then(|users| users.read(must)),
        credentials: credentials.and_then(|credentials| credentials.read(must)),
    }
}

impl<S: Stream, B: Backing, C: Committer> Server<S, B, C> {
    /// Has the helper read users, certificates and keys again. Connections that are open or in their handshake keep
    /// theirs, users that are authenticated stay so.
    pub fn reload(&mut self) {
        if !self.submit_look(true) {
            // The operator asks again.
            let busy = "the helper is busy; ask again";
            if self.shared.users_source.is_some() {
                self.users_loaded(Err(busy.to_owned()));
            }
            self.credentials_loaded(Err(LoadError {
                part: Part::Whole,
                file: "TLS".into(),
                reason: busy.to_owned(),
            }));
        }
    }

    /// Has the helper look whether files of users, certificates or keys have changed, when it is time for that.
    pub(super) fn look_at_files(&mut self) {
        let watch = &mut self.shared.watch;
        let waited_ns = self.shared.now.since_ns(watch.looked_at);
        let is_under_way = Arc::strong_count(&watch.job) > 1;
        if is_under_way || waited_ns < FILES_LOOK_MS * 1_000_000 {
            return;
        }
        watch.looked_at = self.shared.now;
        // A helper that is busy is asked again the next time.
        self.submit_look(false);
    }

    /// False when the helper takes no more.
    fn submit_look(&mut self, must: bool) -> bool {
        let shared = &mut self.shared;
        let users = shared.users_source.clone();
        let security = shared.secure.security.as_ref();
        let sources = security.map(|security| (security.sources.clone(), security.seen.clone()));
        if users.is_none() && sources.is_none() {
            return true;
        }
        let under_way = Arc::clone(&shared.watch.job);
        let job: Job<Answer> = Box::new(move |_| {
            let looked = look(users, sources, must);
            drop(under_way);
            Answer::Files(Box::new(looked))
        });
        shared.offload.submit(Instant(u64::MAX), job).is_ok()
    }

    /// Takes over what a look has brought.
    pub(super) fn files_looked_at(&mut self, looked: Look) {
        if let Some(users) = looked.users {
            if let Some(source) = &mut self.shared.users_source {
                source.seen = users.stamps;
            }
            self.users_loaded(users.outcome);
        }
        if let Some(credentials) = looked.credentials {
            if let Some(security) = &mut self.shared.secure.security {
                security.seen = credentials.stamps;
            }
            self.credentials_loaded(credentials.outcome);
        }
    }
}
