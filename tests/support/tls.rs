//! A TLS client in memory, and certificates for it and for the server.

#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ringmx::server::Security;
use ringmx::tls::credentials::Sources;
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use crate::support::{Client, Rig};

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A certificate with its key, in files of a directory of its own.
pub struct Identity {
    pub directory: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub der: CertificateDer<'static>,
    pub name: String,
}

impl Identity {
    /// A certificate of its own making (ECDSA, P-256) for these names.
    pub fn new(names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names.clone()).expect("a certificate");
        let name = names[0].trim_start_matches("*.").to_owned();
        Identity::of(
            &made.cert.pem(),
            &made.signing_key.serialize_pem(),
            made.cert.der(),
            name,
        )
    }

    /// One of these texts.
    pub fn of(chain: &str, key: &str, der: &CertificateDer<'_>, name: String) -> Identity {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("ringmx-tls-{}-{serial}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let (certificate, key_file) = (directory.join("cert.pem"), directory.join("key.pem"));
        std::fs::write(&certificate, chain).expect("a file");
        std::fs::write(&key_file, key).expect("a file");
        Identity {
            directory,
            certificate,
            key: key_file,
            der: der.clone().into_owned(),
            name,
        }
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Where these identities are.
pub fn sources(identities: &[&Identity]) -> Sources {
    Sources {
        pairs: identities
            .iter()
            .map(|identity| (identity.certificate.clone(), identity.key.clone()))
            .collect(),
        ..Sources::default()
    }
}

/// TLS for a server with these identities.
pub fn security(identities: &[&Identity]) -> Security {
    Security {
        credentials: Arc::new(sources(identities).load().expect("good files")),
        sources: sources(identities),
        seen: sources(identities).stamps(),
        handshakes_max: 64,
        timeout: Duration::from_secs(30),
    }
}

/// How what the client sends is cut.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    Whole,
    Octets,
    Random(u64),
}

impl Cut {
    /// The pieces of `bytes`.
    pub fn pieces(self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut random = match self {
            Cut::Random(seed) => seed | 1,
            Cut::Whole | Cut::Octets => 1,
        };
        let mut rest = bytes;
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let len = match self {
                Cut::Whole => rest.len(),
                Cut::Octets => 1,
                Cut::Random(_) => 1 + (random % 300) as usize,
            };
            let (piece, behind) = rest.split_at(len.min(rest.len()));
            pieces.push(piece.to_vec());
            rest = behind;
        }
        pieces
    }
}

/// Settings of a client that trusts this identity.
pub fn client_config(
    identity: &Identity,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(identity.der.clone()).expect("a certificate");
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config
}

/// A client that speaks TLS over a connection of the rig.
pub struct TlsClient {
    pub tls: ClientConnection,
    pub plain: Client,
    cut: Cut,
    sends: u64,
    heard: Vec<u8>,
    goodbye: bool,
    pub failed: Option<rustls::Error>,
}

impl TlsClient {
    /// A client that checks the server's certificate.
    pub fn new(plain: Client, identity: &Identity, cut: Cut) -> TlsClient {
        let config = client_config(identity, rustls::DEFAULT_VERSIONS);
        TlsClient::with_config(plain, Arc::new(config), &identity.name, cut)
    }

    /// A client with these settings that asks for this name.
    pub fn with_config(
        plain: Client,
        config: Arc<ClientConfig>,
        name: &str,
        cut: Cut,
    ) -> TlsClient {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        TlsClient {
            tls: ClientConnection::new(config, name).expect("settings"),
            plain,
            cut,
            sends: 0,
            heard: Vec::new(),
            goodbye: false,
            failed: None,
        }
    }

    /// Sends what TLS has to send, takes what the server answers, until neither moves.
    pub fn pump(&mut self, rig: &mut Rig) {
        loop {
            let mut sent = Vec::new();
            while self.tls.wants_write() {
                self.tls.write_tls(&mut sent).expect("memory");
            }
            self.sends += 1;
            for piece in self.next_cut().pieces(&sent) {
                rig.send(&self.plain, &piece);
            }
            let answer = std::mem::take(&mut self.plain.pipe.borrow_mut().output);
            if sent.is_empty() && answer.is_empty() {
                return;
            }
            self.take(&answer);
        }
    }

    /// Takes ciphertext of the server.
    pub fn take(&mut self, answer: &[u8]) {
        let mut rest = answer;
        while !rest.is_empty() && self.failed.is_none() {
            if self.tls.read_tls(&mut rest).expect("memory") == 0 {
                break;
            }
            match self.tls.process_new_packets() {
                Ok(state) => {
                    let mut plain = vec![0; state.plaintext_bytes_to_read()];
                    self.tls
                        .reader()
                        .read_exact(&mut plain)
                        .expect("it is there");
                    self.heard.extend_from_slice(&plain);
                    self.goodbye |= state.peer_has_closed();
                }
                Err(error) => self.failed = Some(error),
            }
        }
    }

    /// Other cuts for each send, where they are random.
    fn next_cut(&self) -> Cut {
        match self.cut {
            Cut::Random(seed) => {
                Cut::Random(seed.wrapping_add(self.sends).wrapping_mul(0x9e37_79b9))
            }
            cut => cut,
        }
    }

    /// Goes through the handshake.
    pub fn shake_hands(&mut self, rig: &mut Rig) {
        self.pump(rig);
        // An answer of the helper comes in a later turn.
        for _ in 0..4 {
            rig.turn();
            self.pump(rig);
        }
        assert_eq!(self.failed, None);
        assert!(!self.tls.is_handshaking(), "the handshake is done");
    }

    /// Sends this as plaintext.
    pub fn say(&mut self, rig: &mut Rig, text: &str) {
        self.tls
            .writer()
            .write_all(text.as_bytes())
            .expect("memory");
        self.pump(rig);
    }

    /// Takes the plaintext that came since the last call.
    pub fn hear(&mut self, rig: &mut Rig) -> String {
        self.pump(rig);
        String::from_utf8(std::mem::take(&mut self.heard)).expect("replies are ASCII")
    }

    /// Whether the server sent close_notify.
    pub fn heard_goodbye(&self) -> bool {
        self.goodbye
    }
}
