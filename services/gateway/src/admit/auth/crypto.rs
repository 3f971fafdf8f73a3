//! Signatures of tokens, verified by ring: the library that TLS uses too.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::hmac;
use ring::signature::{self as keys, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};
use signature::Verifier;

static PROVIDER: CryptoProvider = CryptoProvider {
    // Nothing here makes tokens.
    signer_factory: |_, _| Err(Error::from(ErrorKind::UnsupportedAlgorithm)),
    verifier_factory: |algorithm, key| {
        if key.family() != algorithm.family() {
            return Err(ErrorKind::InvalidKeyFormat.into());
        }
        Ok(Box::new(OfKey { algorithm: *algorithm, key: key.clone() }))
    },
    key_utils: KeyUtils::new_unimplemented(),
};

/// Has tokens verified by what is here. Harmless to repeat.
pub(super) fn install() {
    // Refused if it was installed before: by us, for nobody else does.
    let _ = PROVIDER.install_default();
}

/// One key, used with one algorithm.
struct OfKey {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl JwtVerifier for OfKey {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for OfKey {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let secret = |algorithm| {
            let key = self.key.try_get_as_bytes().map_err(signature::Error::from_source)?;
            // In constant time.
            hmac::verify(&hmac::Key::new(algorithm, key), message, signature).map_err(refused)
        };
        let point = |algorithm: &'static dyn keys::VerificationAlgorithm| {
            let key = self.key.try_get_as_bytes().map_err(signature::Error::from_source)?;
            UnparsedPublicKey::new(algorithm, key).verify(message, signature).map_err(refused)
        };
        let rsa = |parameters: &RsaParameters| {
            let DecodingKeyKind::RsaModulusExponent { n, e } = self.key.kind() else {
                return Err(signature::Error::new());
            };
            let key = RsaPublicKeyComponents { n: without_zeros(n), e: without_zeros(e) };
            key.verify(parameters, message, signature).map_err(refused)
        };
        match self.algorithm {
            Algorithm::HS256 => secret(hmac::HMAC_SHA256),
            Algorithm::HS384 => secret(hmac::HMAC_SHA384),
            Algorithm::HS512 => secret(hmac::HMAC_SHA512),
            Algorithm::ES256 => point(&keys::ECDSA_P256_SHA256_FIXED),
            Algorithm::ES384 => point(&keys::ECDSA_P384_SHA384_FIXED),
            Algorithm::EdDSA => point(&keys::ED25519),
            Algorithm::RS256 => rsa(&keys::RSA_PKCS1_2048_8192_SHA256),
            Algorithm::RS384 => rsa(&keys::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::RS512 => rsa(&keys::RSA_PKCS1_2048_8192_SHA512),
            Algorithm::PS256 => rsa(&keys::RSA_PSS_2048_8192_SHA256),
            Algorithm::PS384 => rsa(&keys::RSA_PSS_2048_8192_SHA384),
            Algorithm::PS512 => rsa(&keys::RSA_PSS_2048_8192_SHA512),
            _ => Err(signature::Error::new()),
        }
    }
}

/// Why is not told: whoever forges learns nothing from it.
fn refused(_: ring::error::Unspecified) -> signature::Error {
    signature::Error::new()
}

/// Some issuers write a number's leading zeros, which the standard forbids and ring refuses.
fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}
