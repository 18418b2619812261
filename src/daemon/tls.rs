//! TLS of a server that comes up: the files it was given, or a certificate of its own making.

use std::path::PathBuf;
use std::sync::Arc;

use super::{StartError, reason, start_error};
use crate::cli::{EXIT_FAILURE, EXIT_USAGE, complain};
use crate::config::Config;
use crate::server::Security;
use crate::tls::credentials::{Credentials, LoadError, Part, Sources};
use crate::tls::self_signed;

/// Directory of the certificate that the server made, in that of the ring.
const SELF_SIGNED_DIR: &str = "tls";

/// Reads the files that were given. Before the user is changed: only the first one may be allowed to read keys.
pub(super) fn load(config: &Config) -> Result<Option<Security>, StartError> {
    if config.tls_cert.is_empty() {
        return Ok(None);
    }
    let keys = config.tls_key.iter().cloned();
    security(config, config.tls_cert.iter().cloned().zip(keys).collect()).map(Some)
}

/// Uses the server's own certificate, which is made on the first start. Behind the change of user: it is kept beside
/// the ring.
pub(super) fn self_signed(config: &Config) -> Result<Option<Security>, StartError> {
    if !config.tls_self_signed {
        return Ok(None);
    }
    let mut names = vec![config.server_name.clone()];
    if config.server_name != "localhost" {
        names.push("localhost".to_owned());
    }
    let directory = config.ring.join(SELF_SIGNED_DIR);
    let pair = self_signed::make_once(&directory, &names).map_err(|error| {
        let text = format!(
            "tls-self-signed: {}: {}",
            directory.display(),
            reason(&error)
        );
        start_error(EXIT_FAILURE, text)
    })?;
    let certificate = pair.0.display().to_string();
    let security = security(config, vec![pair])?;
    if !security
        .credentials
        .names()
        .contains(&config.server_name.to_ascii_lowercase())
    {
        complain(&format!(
            "ringmx: warning: {certificate} is for {}, not for {}; without that file the next start makes one\n",
            security.credentials.names().join(", "),
            config.server_name
        ));
    }
    Ok(Some(security))
}

/// A fault of a file, with the option that names it, where one does.
fn named(config: &Config, error: &LoadError) -> String {
    let option = match error.part {
        Part::Certificate if config.tls_cert.contains(&error.file) => "tls-cert",
        Part::Key if config.tls_key.contains(&error.file) => "tls-key",
        Part::ClientAuthorities => "tls-client-ca",
        _ => return error.to_string(),
    };
    config.fault(option, error.to_string()).to_string()
}

fn security(config: &Config, pairs: Vec<(PathBuf, PathBuf)>) -> Result<Security, StartError> {
    let sources = Sources {
        pairs,
        client_ca: config.tls_client_ca.clone(),
        client_certificates: config.tls_client_cert,
    };
    // Before they are read: what changes meanwhile is seen later.
    let seen = sources.stamps();
    let credentials: Credentials = sources
        .load()
        .map_err(|error| start_error(EXIT_USAGE, named(config, &error)))?;
    for warning in credentials.warnings() {
        complain(&format!("ringmx: warning: {warning}\n"));
    }
    Ok(Security {
        credentials: Arc::new(credentials),
        sources,
        seen,
        handshakes_max: config.tls_handshakes,
        timeout: config.timeout_tls,
    })
}
