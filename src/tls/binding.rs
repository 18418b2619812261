//! What authentication is bound to the TLS channel by: `tls-exporter` (RFC 9266) and `tls-server-end-point` (RFC 5929
//! 4).
//!
//! Only under TLS 1.3. What a client takes for granted under TLS 1.2 is `tls-unique` (RFC 5802 6.1), which rustls does
//! not give: a client that was offered SCRAM-SHA-256-PLUS there could not log in.
//!
//! rustls gives no keying material where it is used without its buffers, but logs the exporter's secret (RFC 8446 7.1)
//! to whoever asks. From it alone the exporter is made (RFC 8446 7.5), and the secret is wiped.

use std::sync::Arc;

use ring::digest::{self, Algorithm};
use ring::hkdf;
use zeroize::Zeroizing;

/// Octets of `tls-exporter` (RFC 9266 2).
pub const EXPORTER_BYTES: usize = 32;
/// Label of the key material (RFC 9266 2); its context is empty.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";
/// Name that rustls logs the exporter's secret under.
pub(super) const EXPORTER_SECRET: &str = "EXPORTER_SECRET";

/// What one channel is bound by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelBindings {
    /// `tls-exporter`.
    pub exporter: [u8; EXPORTER_BYTES],
    /// `tls-server-end-point`; `None` where it is not defined for the certificate.
    pub end_point: Option<Arc<[u8]>>,
}

/// `tls-exporter` of the channel with this exporter secret; `None` for a secret of another length than those of the
/// suites of TLS 1.3.
pub(super) fn exporter(secret: &[u8]) -> Option<[u8; EXPORTER_BYTES]> {
    let (algorithm, hash) = match secret.len() {
        32 => (hkdf::HKDF_SHA256, &digest::SHA256),
        48 => (hkdf::HKDF_SHA384, &digest::SHA384),
        _ => return None,
    };
    let nothing = digest::digest(hash, b"");
    // RFC 8446 7.5: Derive-Secret of the label and no messages, then the exporter proper, its context empty.
    let mut derived = Zeroizing::new(vec![0; secret.len()]);
    expand_label(
        algorithm,
        secret,
        EXPORTER_LABEL,
        nothing.as_ref(),
        &mut derived,
    )?;
    let mut out = [0; EXPORTER_BYTES];
    expand_label(algorithm, &derived, b"exporter", nothing.as_ref(), &mut out)?;
    Some(out)
}

/// HKDF-Expand-Label (RFC 8446 7.1).
fn expand_label(
    algorithm: hkdf::Algorithm,
    secret: &[u8],
    label: &[u8],
    context: &[u8],
    out: &mut [u8],
) -> Option<()> {
    const PREFIX: &[u8] = b"tls13 ";
    let len = [u8::try_from(out.len() >> 8).ok()?, (out.len() & 0xff) as u8];
    let label_len = [u8::try_from(PREFIX.len() + label.len()).ok()?];
    let context_len = [u8::try_from(context.len()).ok()?];
    let info: [&[u8]; 6] = [&len, &label_len, PREFIX, label, &context_len, context];
    let key = hkdf::Prk::new_less_safe(algorithm, secret);
    let material = key.expand(&info, Length(out.len())).ok()?;
    material.fill(out).ok()
}

/// Octets that are wanted.
struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// `tls-server-end-point` of a certificate in DER: its hash by the algorithm that it is signed with, SHA-256 where that
/// is MD5 or SHA-1 (RFC 5929 4.1). `None` where the signature has no such algorithm, as Ed25519, or one that is not
/// known here.
pub(super) fn end_point(certificate: &[u8]) -> Option<Arc<[u8]>> {
    let algorithm = signature_hash(certificate)?;
    Some(digest::digest(algorithm, certificate).as_ref().into())
}

/// Contents of object identifiers (RFC 8017 A.2, RFC 5758 3.2, RFC 5754 2).
const RSA_PKCS1: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01";
const ECDSA_SHA2: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x03";
const ECDSA_SHA1: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x01";
const SHA2: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x02";

/// Tags of DER (X.690 8.1.2).
const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
const CONTEXT_0: u8 = 0xa0;

/// The hash that a certificate's signature is made of.
fn signature_hash(certificate: &[u8]) -> Option<&'static Algorithm> {
    // RFC 5280 4.1: Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signatureValue }
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (_, behind) = element(certificate, SEQUENCE)?;
    let (algorithm, _) = element(behind, SEQUENCE)?;
    let (name, parameters) = element(algorithm, OBJECT_IDENTIFIER)?;
    if name == ECDSA_SHA1 {
        return Some(&digest::SHA256);
    }
    let (family, kind) = name.split_at_checked(name.len().checked_sub(1)?)?;
    match (family, kind) {
        (RSA_PKCS1, [4 | 5 | 11]) | (ECDSA_SHA2, [2]) => Some(&digest::SHA256),
        (RSA_PKCS1, [12]) | (ECDSA_SHA2, [3]) => Some(&digest::SHA384),
        (RSA_PKCS1, [13]) | (ECDSA_SHA2, [4]) => Some(&digest::SHA512),
        // RSASSA-PSS names its hash in a parameter; SHA-1 where it does not (RFC 4055 3.1).
        (RSA_PKCS1, [10]) => {
            let (parameters, _) = element(parameters, SEQUENCE)?;
            let Some((hash, _)) = element(parameters, CONTEXT_0) else {
                return Some(&digest::SHA256);
            };
            let (hash, _) = element(hash, SEQUENCE)?;
            let (name, _) = element(hash, OBJECT_IDENTIFIER)?;
            match name.strip_prefix(SHA2) {
                Some([1]) => Some(&digest::SHA256),
                Some([2]) => Some(&digest::SHA384),
                Some([3]) => Some(&digest::SHA512),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The content of the element of DER in front, if it has this tag, and what follows it.
fn element(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = input.split_first()?;
    if found != tag {
        return None;
    }
    let (&first, rest) = rest.split_first()?;
    // X.690 8.1.3: up to 127 in one octet, otherwise in as many as the low bits say.
    if first < 0x80 {
        return rest.split_at_checked(usize::from(first));
    }
    let (octets, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
    if octets.is_empty() || octets.len() > 4 {
        return None;
    }
    let len = octets
        .iter()
        .fold(0, |len, octet| len << 8 | usize::from(*octet));
    rest.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An element of DER.
    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        match u8::try_from(content.len()) {
            Ok(len @ 0..0x80) => out.push(len),
            _ => {
                out.push(0x82);
                out.extend([(content.len() >> 8) as u8, content.len() as u8]);
            }
        }
        out.extend_from_slice(content);
        out
    }

    fn certificate(algorithm: &[u8]) -> Vec<u8> {
        let parts = [
            der(SEQUENCE, &[7; 300]),
            der(SEQUENCE, algorithm),
            der(3, &[0; 65]),
        ];
        der(SEQUENCE, &parts.concat())
    }

    fn oid(front: &[u8], last: u8) -> Vec<u8> {
        der(OBJECT_IDENTIFIER, &[front, &[last]].concat())
    }

    #[test]
    fn the_end_point_is_hashed_as_its_certificate_is_signed() {
        let pss = |hash: u8| {
            let hash = der(CONTEXT_0, &der(SEQUENCE, &oid(SHA2, hash)));
            [oid(RSA_PKCS1, 10), der(SEQUENCE, &hash)].concat()
        };
        for (algorithm, bytes) in [
            (oid(RSA_PKCS1, 4), 32),
            (oid(RSA_PKCS1, 5), 32),
            (oid(RSA_PKCS1, 11), 32),
            (oid(RSA_PKCS1, 12), 48),
            (oid(RSA_PKCS1, 13), 64),
            (der(OBJECT_IDENTIFIER, ECDSA_SHA1), 32),
            (oid(ECDSA_SHA2, 2), 32),
            (oid(ECDSA_SHA2, 3), 48),
            (oid(ECDSA_SHA2, 4), 64),
            (pss(1), 32),
            (pss(2), 48),
            (pss(3), 64),
            ([oid(RSA_PKCS1, 10), der(SEQUENCE, b"")].concat(), 32),
        ] {
            let certificate = certificate(&algorithm);
            let algorithm = match bytes {
                32 => &digest::SHA256,
                48 => &digest::SHA384,
                _ => &digest::SHA512,
            };
            let expected = digest::digest(algorithm, &certificate);
            assert_eq!(end_point(&certificate).as_deref(), Some(expected.as_ref()));
        }
        // Ed25519 (RFC 8410 3), SHA-224, and no algorithm at all.
        for unknown in [
            der(OBJECT_IDENTIFIER, b"\x2b\x65\x70"),
            oid(RSA_PKCS1, 14),
            pss(4),
            vec![],
        ] {
            assert_eq!(end_point(&certificate(&unknown)), None);
        }
    }

    #[test]
    fn no_certificate_is_read_beyond_its_end() {
        let whole = certificate(&oid(ECDSA_SHA2, 2));
        for end in 0..whole.len() {
            assert_eq!(end_point(&whole[..end]), None, "{end}");
        }
        assert_eq!(element(b"\x30\x80", SEQUENCE), None);
        assert_eq!(element(b"\x30\x85\0\0\0\0\0", SEQUENCE), None);
        assert_eq!(element(b"\x30\x84\xff\xff\xff\xff", SEQUENCE), None);
    }

    #[test]
    fn secrets_of_other_lengths_export_nothing() {
        for len in [0, 31, 33, 64] {
            assert_eq!(exporter(&vec![1; len]), None, "{len}");
        }
        assert_ne!(exporter(&[1; 32]), exporter(&[2; 32]));
    }
}
