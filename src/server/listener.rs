//! What a server knows of the addresses it listens to.

use core::net::SocketAddr;

use crate::choice::choices;
use crate::smtp::session::Role;

choices! {
    /// What a listener does about TLS.
    #[derive(Default)]
    TlsMode {
        /// None: STARTTLS is not offered.
        #[default]
        Off = "off",
        /// STARTTLS is offered (RFC 3207).
        Offered = "offered",
        /// STARTTLS is offered, and mail is refused with 530 before it.
        Required = "required",
        /// The connection begins with the handshake (RFC 8314 3).
        Implicit = "implicit",
    }
}

choices! {
    /// Whether connections begin with a header of the PROXY protocol that names the client.
    #[derive(Default)]
    ProxyMode {
        /// Never; one that comes is garbage.
        #[default]
        Off = "off",
        /// Always; a connection without it is closed.
        Required = "required",
        /// Where the first octets are one.
        Detect = "detect",
    }
}

/// One listener.
#[derive(Clone, Copy, Debug)]
pub struct Listener {
    /// The address it is bound to.
    pub address: SocketAddr,
    /// What it is for.
    pub role: Role,
    /// What it does about TLS.
    pub tls: TlsMode,
    /// Whether a proxy stands in front of it.
    pub proxy: ProxyMode,
    /// LMTP (RFC 2033) instead of SMTP.
    pub lmtp: bool,
}

impl Listener {
    /// A sink without TLS at this address.
    pub fn sink(address: SocketAddr) -> Listener {
        Listener {
            address,
            role: Role::Sink,
            tls: TlsMode::Off,
            proxy: ProxyMode::Off,
            lmtp: false,
        }
    }
}
