//! A certificate of the server's own making, for whoever has none yet: it encrypts, and it proves nothing until a
//! client has been told to trust it.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Names of the two files.
const CERTIFICATE_FILE: &str = "self-signed.crt";
const KEY_FILE: &str = "self-signed.key";

/// The certificate and the key in `directory`; made there, for `names`, when one of them is missing. The directory is
/// closed to others (0700), and so is the key (0600); the certificate may be handed out.
///
/// # Errors
/// The directory or a file can't be made, or one of the names can't stand in a certificate.
pub fn make_once(directory: &Path, names: &[String]) -> io::Result<(PathBuf, PathBuf)> {
    let files = (directory.join(CERTIFICATE_FILE), directory.join(KEY_FILE));
    if files.0.exists() && files.1.exists() {
        return Ok(files);
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let key = rcgen::KeyPair::generate().map_err(io::Error::other)?;
    let mut parameters = rcgen::CertificateParams::new(names).map_err(io::Error::other)?;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(name) = names.first() {
        let common = rcgen::DnType::CommonName;
        parameters.distinguished_name.push(common, name.as_str());
    }
    let made = parameters.self_signed(&key).map_err(io::Error::other)?;
    write(&files.1, 0o600, &key.serialize_pem())?;
    write(&files.0, 0o644, &made.pem())?;
    Ok(files)
}

/// Puts a whole file in place of whatever is there.
fn write(file: &Path, mode: u32, text: &str) -> io::Result<()> {
    let mut fresh = file.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    // One that a killed start left may have another mode.
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut out = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&fresh)?;
    // The umask may have taken more than was meant.
    out.set_permissions(Permissions::from_mode(mode))?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    std::fs::rename(&fresh, file)
}
