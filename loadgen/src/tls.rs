//! TLS settings of a run, on rustls.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// What the command line says about TLS.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// PEM file of the roots to trust.
    pub ca: Option<PathBuf>,
    /// Trust anything.
    pub insecure: bool,
    /// Name to ask for and to check.
    pub name: Option<String>,
    /// Never resume a session.
    pub no_resumption: bool,
}

/// Makes the TLS side of connections; they share tickets for resumption.
#[derive(Clone)]
pub struct Security {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Security {
    /// Prepares TLS towards `target`, HOST:PORT.
    ///
    /// **Errors**, in words: nothing to trust was named, a file is unreadable, or the name is none.
    pub fn new(options: &TlsOptions, target: &str) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match (&options.ca, options.insecure) {
            (_, true) => Arc::new(TrustAll(provider.clone())),
            (Some(path), false) => {
                let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
                let mut roots = RootCertStore::empty();
                for root in CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))? {
                    roots
                        .add(root.map_err(|e| wrong(&e))?)
                        .map_err(|error| wrong(&error))?;
                }
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                    .build()
                    .map_err(|error| wrong(&error))?
            }
            (None, false) => {
                return Err("TLS needs --tls-ca FILE, or --tls-insecure to trust anything".into());
            }
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        if options.no_resumption {
            config.resumption = Resumption::disabled();
        }
        let host = match &options.name {
            Some(name) => name.as_str(),
            None if target.starts_with("unix:") => "localhost",
            None => target.rsplit_once(':').map_or(target, |(host, _)| host),
        };
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(host).map_err(|error| format!("--tls-name: {error}"))?;
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    /// Makes one connection's state.
    ///
    /// **Errors**: rustls refuses the settings.
    pub fn connection(&self) -> io::Result<ClientConnection> {
        ClientConnection::new(self.config.clone(), self.name.clone()).map_err(io::Error::other)
    }
}

/// Takes any certificate; still checks that the server holds its key.
#[derive(Debug)]
struct TrustAll(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
