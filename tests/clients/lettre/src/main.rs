//! Sends the message on standard input with lettre, as a user:
//!
//!     ringmx-lettre PORT IMPLICIT AUTHORITY USER SENDER RECIPIENT
//!
//! The password is in RINGMX_PASSWORD. Exit code 0 when the server took the message.

use std::error::Error;
use std::io::Read;

use lettre::address::Envelope;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{SmtpTransport, Transport};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, implicit, authority, user, sender, recipient] = &arguments[..] else {
        return Err("usage: ringmx-lettre PORT IMPLICIT AUTHORITY USER SENDER RECIPIENT".into());
    };
    let mut message = String::new();
    std::io::stdin().read_to_string(&mut message)?;
    let message = message.replace('\n', "\r\n");
    let parameters = TlsParameters::builder("localhost".to_owned())
        .certificate_store(CertificateStore::None)
        .add_root_certificate(Certificate::from_pem(&std::fs::read(authority)?)?)
        .build_rustls()?;
    let tls = match implicit.as_str() {
        "yes" => Tls::Wrapper(parameters),
        _ => Tls::Required(parameters),
    };
    let password = std::env::var("RINGMX_PASSWORD")?;
    let transport = SmtpTransport::builder_dangerous("localhost")
        .port(port.parse()?)
        .hello_name(ClientId::Domain("localhost".to_owned()))
        .tls(tls)
        .credentials(Credentials::new(user.clone(), password))
        .build();
    let envelope = Envelope::new(Some(sender.parse()?), vec![recipient.parse()?])?;
    let response = transport.send_raw(&envelope, message.as_bytes())?;
    if response.is_positive() {
        Ok(())
    } else {
        Err("the message was not taken".into())
    }
}
