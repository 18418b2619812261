//! Who the server is, and what it gives up, between binding its sockets and opening its ring.

use crate::cli::{EXIT_FAILURE, EXIT_USAGE};
use crate::config::Config;
use crate::daemon::{StartError, reason, start_error};
use crate::sys::{group, privileges};

/// Becomes the user that was asked for and gives up ever gaining privileges. Sockets are bound by now and keys read;
/// everything that is opened from here on is opened as that user.
///
/// # Errors
/// There is no such user or group, or the system refuses.
pub(super) fn drop_privileges(config: &Config) -> Result<(), StartError> {
    let refused = |what: &str, error: std::io::Error| {
        start_error(EXIT_FAILURE, format!("{what}: {}", reason(&error)))
    };
    privileges::no_new_privileges().map_err(|error| refused("giving up new privileges", error))?;
    if config.user.is_empty() {
        return Ok(());
    }
    let user = user(config)?;
    if privileges::effective_user() == user.uid {
        return Ok(());
    }
    let groups = reader_group(config)?;
    privileges::become_user(user, groups.as_slice()).map_err(|error| {
        let text = format!("becoming user {}: {}", config.user, reason(&error));
        start_error(EXIT_FAILURE, text)
    })?;
    allow_opening()
}

/// Lets this process open its own descriptors again: a change of user, and [`refuse_core_dumps`] in a parent, make
/// /proc/self another user's, and the ring is opened a second time through it.
///
/// # Errors
/// Whatever the system says.
pub(super) fn allow_opening() -> Result<(), StartError> {
    privileges::set_dumpable(true).map_err(|error| {
        let text = format!("opening the ring for readers: {}", reason(&error));
        start_error(EXIT_FAILURE, text)
    })
}

/// Keeps mail out of core files, unless they were asked for. Call it when the ring is open.
///
/// # Errors
/// Whatever the system says.
pub(super) fn refuse_core_dumps(config: &Config) -> Result<(), StartError> {
    privileges::set_dumpable(config.core_dumps).map_err(|error| {
        let text = format!("core dumps: {}", reason(&error));
        start_error(EXIT_FAILURE, text)
    })
}

/// Whether this machine knows the user and the group that the settings name.
///
/// # Errors
/// There is no such user or group, or their database can't be read.
pub(super) fn look_up_names(config: &Config) -> Result<(), StartError> {
    if !config.user.is_empty() {
        user(config)?;
    }
    reader_group(config).map(|_| ())
}

fn user(config: &Config) -> Result<privileges::User, StartError> {
    let found = privileges::user_named(&config.user).map_err(|error| {
        let text = format!("the user database: {}", reason(&error));
        start_error(EXIT_FAILURE, text)
    })?;
    found.ok_or_else(|| {
        let reason = format!("there is no user '{}'", config.user);
        start_error(EXIT_USAGE, config.fault("user", reason).to_string())
    })
}

/// The group that may read the ring, if one is named: the server has to be in it to give files to it.
///
/// # Errors
/// There is no such group, or the database can't be read.
pub(super) fn reader_group(config: &Config) -> Result<Option<u32>, StartError> {
    if config.group.is_empty() {
        return Ok(None);
    }
    let found = group::number_of(&config.group).map_err(|error| {
        let text = format!("the group database: {}", reason(&error));
        start_error(EXIT_FAILURE, text)
    })?;
    match found {
        Some(number) => Ok(Some(number)),
        None => {
            let reason = format!("there is no group '{}'", config.group);
            let fault = config.fault("group", reason);
            Err(start_error(EXIT_USAGE, fault.to_string()))
        }
    }
}
