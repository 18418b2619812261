//! Certificates, their keys and what clients are checked against; read from files at start, and again when asked.
//!
//! Promises: what is loaded is complete and consistent, or nothing is and the error names file and reason; the right
//! certificate for the name a client asks for (RFC 6066 3), the first one for everybody else.

use std::collections::HashMap;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    CipherSuite, DigitallySignedStruct, DistinguishedName, Error, KeyLog, RootCertStore,
    ServerConfig, SignatureAlgorithm, SignatureScheme, SupportedCipherSuite,
};

use super::ClientCertificate;
use super::binding::{self, ChannelBindings, EXPORTER_BYTES, EXPORTER_SECRET};
use crate::choice::choices;
use crate::limits::{TLS_CERTIFICATES_MAX, TLS_CHAIN_BYTES_MAX, TLS_FILE_BYTES_MAX};
use crate::sys::file::Stamps;

choices! {
    /// What is asked of clients.
    #[derive(Default)]
    ClientCertificates {
        /// Nothing.
        #[default]
        Off = "off",
        /// A certificate, if the client has one; any is taken, and stored with the mail as verified or not.
        Request = "request",
        /// A certificate that leads to one of the authorities; without it there is no session.
        Require = "require",
    }
}

/// Where certificates and keys are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Certificate chain and private key, both PEM. The first is for clients that ask for no name, or an unknown one.
    pub pairs: Vec<(PathBuf, PathBuf)>,
    /// Authorities that clients' certificates may come from, PEM.
    pub client_ca: Option<PathBuf>,
    /// What is asked of clients.
    pub client_certificates: ClientCertificates,
}

/// What a file is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A certificate with its chain.
    Certificate,
    /// The key of one.
    Key,
    /// Authorities that clients' certificates may come from.
    ClientAuthorities,
    /// No file: what all of them are put together to.
    Whole,
}

/// Why nothing was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// What the file is there for; the same file may be named for several things.
    pub part: Part,
    /// The file, as it was named.
    pub file: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.reason)
    }
}

impl std::error::Error for LoadError {}

fn wrong(part: Part, file: &Path, reason: impl fmt::Display) -> LoadError {
    LoadError {
        part,
        file: file.to_owned(),
        reason: reason.to_string(),
    }
}

impl Sources {
    /// The state of all these files now; `None` when one of them can't be looked at.
    pub fn stamps(&self) -> Option<Stamps> {
        let pairs = self.pairs.iter().flat_map(|(chain, key)| [chain, key]);
        Stamps::of(pairs.chain(&self.client_ca).map(PathBuf::as_path))
    }

    /// Reads and checks everything. Blocks on files.
    ///
    /// # Errors
    /// A file can't be read, is too large or holds nothing of its kind, a key does not belong to its certificate, or
    /// there are more than [`TLS_CERTIFICATES_MAX`] pairs.
    pub fn load(&self) -> Result<Credentials, LoadError> {
        let provider = Arc::new(ring::default_provider());
        let mut table = Table::default();
        let mut warnings = Vec::new();
        if self.pairs.len() > TLS_CERTIFICATES_MAX {
            let reason = format!("more than {TLS_CERTIFICATES_MAX} certificates");
            return Err(wrong(
                Part::Certificate,
                &self.pairs[TLS_CERTIFICATES_MAX].0,
                reason,
            ));
        }
        for (chain_file, key_file) in &self.pairs {
            let chain = certificates(Part::Certificate, chain_file)?;
            let bytes: usize = chain.iter().map(|certificate| certificate.len()).sum();
            if bytes > TLS_CHAIN_BYTES_MAX {
                let reason =
                    format!("a chain of {bytes} bytes; allowed: up to {TLS_CHAIN_BYTES_MAX}");
                return Err(wrong(Part::Certificate, chain_file, reason));
            }
            warnings.extend(readable_by_others(key_file));
            let key =
                PrivateKeyDer::from_pem_slice(&read(Part::Key, key_file)?).map_err(|error| {
                    wrong(
                        Part::Key,
                        key_file,
                        format!("no private key in PEM: {error}"),
                    )
                })?;
            let key = provider
                .key_provider
                .load_private_key(key)
                .map_err(|error| wrong(Part::Key, key_file, error))?;
            let certified = CertifiedKey::new(chain, key);
            certified.keys_match().map_err(|_| {
                let reason = format!("the key does not belong to {}", chain_file.display());
                wrong(Part::Key, key_file, reason)
            })?;
            table
                .add(certified)
                .map_err(|reason| wrong(Part::Certificate, chain_file, reason))?;
        }
        let authorities = match &self.client_ca {
            Some(file) => Some(self.authorities(file, &provider)?),
            None => None,
        };
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(Part::Whole, Path::new("TLS"), error))?;
        let builder = match (&authorities, self.client_certificates) {
            (Some(authorities), asked) if asked != ClientCertificates::Off => builder
                .with_client_cert_verifier(Arc::new(Asks {
                    authorities: Arc::clone(authorities),
                    is_required: asked == ClientCertificates::Require,
                })),
            _ => builder.with_no_client_auth(),
        };
        let table = Arc::new(table);
        let mut config = builder.with_cert_resolver(Arc::new(Choice::new(&table)));
        // Tickets hold what a resumption needs, sealed with a key that changes every six hours: nothing is kept here.
        config.ticketer = ring::Ticketer::new().map_err(|error| {
            wrong(
                Part::Whole,
                Path::new("TLS"),
                format!("a key for tickets: {error}"),
            )
        })?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Credentials {
            config,
            table,
            authorities,
            warnings,
        })
    }

    fn authorities(
        &self,
        file: &Path,
        provider: &Arc<rustls::crypto::CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, LoadError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(Part::ClientAuthorities, file)? {
            roots
                .add(root)
                .map_err(|error| wrong(Part::ClientAuthorities, file, error))?;
        }
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|error| wrong(Part::ClientAuthorities, file, error))
    }
}

/// A file, no larger than [`TLS_FILE_BYTES_MAX`].
fn read(part: Part, file: &Path) -> Result<Vec<u8>, LoadError> {
    use std::io::Read;
    let failed = |error: std::io::Error| {
        let text = error.to_string();
        let end = text.find(" (os error").unwrap_or(text.len());
        wrong(part, file, text[..end].to_lowercase())
    };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(failed)?;
    let limit = TLS_FILE_BYTES_MAX + 1;
    opened.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > TLS_FILE_BYTES_MAX {
        let reason = format!("larger than {TLS_FILE_BYTES_MAX} bytes");
        return Err(wrong(part, file, reason));
    }
    Ok(bytes)
}

fn certificates(part: Part, file: &Path) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let bytes = read(part, file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(chain) if chain.is_empty() => Err(wrong(part, file, "no certificate in PEM")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(wrong(part, file, format!("no certificate in PEM: {error}"))),
    }
}

/// A sentence about a key that every user of the machine can read. No reason to refuse it: where secrets are mounted
/// into a container, they often are.
fn readable_by_others(file: &Path) -> Option<String> {
    let mode = std::fs::metadata(file).ok()?.permissions().mode();
    (mode & 0o004 != 0).then(|| {
        format!(
            "{}: everybody on this machine can read this key; chmod o-rwx ends that",
            file.display()
        )
    })
}

/// What connections are opened with. Replaced as a whole when files are read again; connections keep theirs.
pub struct Credentials {
    config: ServerConfig,
    table: Arc<Table>,
    authorities: Option<Arc<dyn ClientCertVerifier>>,
    warnings: Vec<String>,
}

impl Credentials {
    /// Settings for one connection, and what tells afterwards which name its client asked for: rustls tells only
    /// whoever chooses the certificate.
    pub(super) fn for_one_connection(&self) -> (Arc<ServerConfig>, Arc<Choice>) {
        let choice = Arc::new(Choice::new(&self.table));
        let mut config = self.config.clone();
        config.cert_resolver = Arc::clone(&choice) as Arc<dyn ResolvesServerCert>;
        config.key_log = Arc::clone(&choice) as Arc<dyn KeyLog>;
        (Arc::new(config), choice)
    }

    /// Whether a key is of a kind whose signatures take longer than the loop can wait: RSA.
    pub fn has_slow_key(&self) -> bool {
        let slow = |key: &Arc<CertifiedKey>| key.key.algorithm() == SignatureAlgorithm::RSA;
        self.table.keys.iter().any(slow)
    }

    /// The names of all certificates, in the order they were given; each once.
    pub fn names(&self) -> &[String] {
        &self.table.names
    }

    /// What an operator should know of the files.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What a chain that a client gave is worth.
    pub(super) fn judge(&self, chain: &[CertificateDer<'_>]) -> Option<ClientCertificate> {
        let (end_entity, intermediates) = chain.split_first()?;
        let verified = self.authorities.as_ref().is_some_and(|authorities| {
            authorities
                .verify_client_cert(end_entity, intermediates, UnixTime::now())
                .is_ok()
        });
        Some(ClientCertificate {
            sha256: sha256(end_entity),
            verified,
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("names", &self.table.names)
            .finish_non_exhaustive()
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let suite = ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let hash = suite
        .tls13()
        .map(|suite| suite.common.hash_provider.hash(bytes));
    let mut out = [0; 32];
    if let Some(hash) = hash
        && let Some(octets) = hash.as_ref().get(..32)
    {
        out.copy_from_slice(octets);
    }
    out
}

/// The suites of the provider and their names in the registry of IANA (RFC 8314 4.3 wants that one in trace fields).
static NAMES: [(CipherSuite, &str); 9] = [
    (
        CipherSuite::TLS13_AES_256_GCM_SHA384,
        "TLS_AES_256_GCM_SHA384",
    ),
    (
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        "TLS_AES_128_GCM_SHA256",
    ),
    (
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        "TLS_CHACHA20_POLY1305_SHA256",
    ),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    ),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    ),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    ),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    ),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    ),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    ),
];

/// A cipher suite's registered name.
pub(super) fn registered_name(suite: Option<SupportedCipherSuite>) -> &'static &'static str {
    let suite = suite.map(|suite| suite.suite());
    NAMES
        .iter()
        .find(|(known, _)| Some(*known) == suite)
        .map_or(&"TLS_UNKNOWN", |(_, name)| name)
}

/// Keys by the names in their certificates.
#[derive(Debug, Default)]
struct Table {
    keys: Vec<Arc<CertifiedKey>>,
    /// What the certificate of each key binds a channel by.
    end_points: Vec<Option<Arc<[u8]>>>,
    names: Vec<String>,
    /// Indexes into `keys`, by a name in lower case.
    exact: HashMap<String, Vec<usize>>,
    /// The same for `*.NAME`, by NAME.
    wildcard: HashMap<String, Vec<usize>>,
}

impl Table {
    fn add(&mut self, certified: CertifiedKey) -> Result<(), String> {
        let first = certified.chain_names()?;
        let index = self.keys.len();
        for name in first {
            let name = name.to_ascii_lowercase();
            let (map, key) = match name.strip_prefix("*.") {
                Some(parent) => (&mut self.wildcard, parent),
                None => (&mut self.exact, name.as_str()),
            };
            map.entry(key.to_owned()).or_default().push(index);
            if !self.names.contains(&name) {
                self.names.push(name);
            }
        }
        let end_entity = certified.end_entity_cert().ok();
        self.end_points
            .push(end_entity.and_then(|certificate| binding::end_point(certificate)));
        self.keys.push(Arc::new(certified));
        Ok(())
    }

    /// The index of the first key for this name that the client can check, or else the first it can check at all: a
    /// client that takes any certificate is better served with the wrong one than with none.
    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<usize> {
        let fits = |index: &usize| {
            let key = self.keys.get(*index);
            key.is_some_and(|key| key.key.choose_scheme(schemes).is_some())
        };
        let named = name.map(str::to_ascii_lowercase).and_then(|name| {
            let exact = self.exact.get(&name);
            let wildcard = name
                .split_once('.')
                .and_then(|(_, parent)| self.wildcard.get(parent));
            exact
                .into_iter()
                .chain(wildcard)
                .flatten()
                .copied()
                .find(fits)
        });
        named.or_else(|| (0..self.keys.len()).find(fits))
    }
}

/// The names of a certificate.
trait ChainNames {
    fn chain_names(&self) -> Result<Vec<String>, String>;
}

impl ChainNames for CertifiedKey {
    fn chain_names(&self) -> Result<Vec<String>, String> {
        let end_entity = self.end_entity_cert().map_err(|error| error.to_string())?;
        let parsed = webpki::EndEntityCert::try_from(end_entity)
            .map_err(|error| format!("the first certificate can't be used: {error}"))?;
        Ok(parsed.valid_dns_names().map(str::to_owned).collect())
    }
}

/// Chooses the certificate of one connection and remembers the name it was chosen for; hears the secret of the
/// exporter.
pub(super) struct Choice {
    table: Arc<Table>,
    asked: OnceLock<Box<str>>,
    chosen: OnceLock<usize>,
    /// `tls-exporter` of the channel, as soon as there is one.
    exporter: OnceLock<[u8; EXPORTER_BYTES]>,
}

impl fmt::Debug for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Choice")
            .field("asked", &self.asked)
            .finish_non_exhaustive()
    }
}

impl Choice {
    fn new(table: &Arc<Table>) -> Choice {
        Choice {
            table: Arc::clone(table),
            asked: OnceLock::new(),
            chosen: OnceLock::new(),
            exporter: OnceLock::new(),
        }
    }

    /// What the channel is bound by; `None` under TLS 1.2, and before the handshake has got that far.
    pub(super) fn bindings(&self) -> Option<ChannelBindings> {
        let chosen = self.chosen.get().copied();
        let end_point = chosen.and_then(|index| self.table.end_points.get(index));
        Some(ChannelBindings {
            exporter: *self.exporter.get()?,
            end_point: end_point.cloned().flatten(),
        })
    }

    /// The name the client asked for, in lower case.
    pub(super) fn server_name(&self) -> Option<Box<str>> {
        self.asked.get().cloned()
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let Some(name) = hello.server_name() {
            let _ = self.asked.set(name.to_ascii_lowercase().into());
        }
        let chosen = self
            .table
            .choose(hello.server_name(), hello.signature_schemes())?;
        let _ = self.chosen.set(chosen);
        self.table.keys.get(chosen).cloned()
    }
}

impl KeyLog for Choice {
    fn will_log(&self, label: &str) -> bool {
        label == EXPORTER_SECRET
    }

    /// Takes the one secret from which nothing of the traffic can be decrypted, and keeps what is derived from it.
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        if label == EXPORTER_SECRET
            && let Some(exporter) = binding::exporter(secret)
        {
            let _ = self.exporter.set(exporter);
        }
    }
}

/// Asks clients for a certificate.
#[derive(Debug)]
struct Asks {
    authorities: Arc<dyn ClientCertVerifier>,
    is_required: bool,
}

impl ClientCertVerifier for Asks {
    fn client_auth_mandatory(&self) -> bool {
        self.is_required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.authorities.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.is_required {
            return self
                .authorities
                .verify_client_cert(end_entity, intermediates, now);
        }
        // Between mail servers a certificate of one's own making is no offence: what it is worth is told with the mail.
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_of_the_provider_has_a_registered_name() {
        let suites = ring::default_provider().cipher_suites;
        assert_eq!(suites.len(), NAMES.len());
        for suite in suites {
            let name = registered_name(Some(suite));
            assert_ne!(*name, "TLS_UNKNOWN", "{suite:?}");
            let ours = suite
                .suite()
                .as_str()
                .map(|name| name.replace("TLS13_", "TLS_"));
            assert_eq!(Some((*name).to_owned()), ours);
        }
        assert_eq!(*registered_name(None), "TLS_UNKNOWN");
    }
}
