//! The keys by which an issuer's tokens are verified.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde::Deserialize;

/// The least bytes of a secret: a shorter one is easier to guess than what it signs.
const SECRET_MIN: usize = 32;

/// Why there are no keys in what was read. Says nothing of what it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeysError {
    #[error("the secret has {0} bytes: it must have at least 32")]
    Short(usize),
    #[error("it is no JSON Web Key Set: {0}")]
    Json(String),
    #[error("none of its {0} keys is a public one for signatures by the algorithms that are set")]
    None(usize),
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Option<Algorithm>,
    curve: Option<EllipticCurve>,
    key: DecodingKey,
}

impl Key {
    fn fits(&self, algorithm: Algorithm) -> bool {
        let curve = match algorithm {
            Algorithm::ES256 => Some(EllipticCurve::P256),
            Algorithm::ES384 => Some(EllipticCurve::P384),
            Algorithm::EdDSA => Some(EllipticCurve::Ed25519),
            _ => None,
        };
        self.key.family() == algorithm.family()
            && self.curve == curve
            && self.algorithm.is_none_or(|only| only == algorithm)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Keys(Vec<Key>);

impl Keys {
    /// A shared secret, as a file holds it: an end of line is not part of it.
    pub(crate) fn of_secret(file: &[u8]) -> Result<Self, KeysError> {
        let secret = file.strip_suffix(b"\n").unwrap_or(file);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        if secret.len() < SECRET_MIN {
            return Err(KeysError::Short(secret.len()));
        }
        Ok(Self(vec![Key { id: None, algorithm: None, curve: None, key: DecodingKey::from_secret(secret) }]))
    }

    /// The keys of a set that can verify a signature by one of `algorithms`. All others are passed over: a set may hold
    /// keys for other uses, and kinds of keys that nobody here knows.
    pub(crate) fn of_set(json: &[u8], algorithms: &[Algorithm]) -> Result<Self, KeysError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(json).map_err(|error| KeysError::Json(error.to_string()))?;
        let count = set.keys.len();
        let usable = |key: &Key| algorithms.iter().any(|algorithm| key.fits(*algorithm));
        let keys: Vec<Key> = set.keys.into_iter().filter_map(public).filter(usable).collect();
        if keys.is_empty() { Err(KeysError::None(count)) } else { Ok(Self(keys)) }
    }

    /// Those that may have made this signature: the one that the token names, or all that fit if it names none.
    pub(crate) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &DecodingKey> {
        // A shared secret is the only one there is, whatever the token calls it.
        let named =
            move |key: &Key| id.is_none() || key.id.as_deref() == id || key.key.family() == AlgorithmFamily::Hmac;
        self.0.iter().filter(move |key| named(key) && key.fits(algorithm)).map(|key| &key.key)
    }
}

/// A public key for signatures. A shared secret in a set is none.
fn public(value: serde_json::Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value).ok()?;
    let common = &jwk.common;
    let signs = common.public_key_use.as_ref().is_none_or(|used| *used == PublicKeyUse::Signature);
    let verifies = common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
    let algorithm = common.key_algorithm.map(Algorithm::try_from).transpose().ok()?;
    let curve = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => None,
        AlgorithmParameters::EllipticCurve(point) => Some(point.curve.clone()),
        AlgorithmParameters::OctetKeyPair(point) => Some(point.curve.clone()),
        _ => return None,
    };
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    (signs && verifies).then_some(Key { id: common.key_id.clone(), algorithm, curve, key })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const BOTH: [Algorithm; 2] = [Algorithm::ES256, Algorithm::RS256];

    fn point(id: &str) -> serde_json::Value {
        json!({"kty": "EC", "crv": "P-256", "kid": id, "x": "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0", "y": "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps"})
    }

    fn set(keys: &[serde_json::Value]) -> Result<Keys, KeysError> {
        Keys::of_set(json!({ "keys": keys }).to_string().as_bytes(), &BOTH)
    }

    fn count(keys: &Keys, id: Option<&str>, algorithm: Algorithm) -> usize {
        keys.find(id, algorithm).count()
    }

    #[test]
    fn a_key_is_found_by_its_name_and_used_for_its_own_algorithm_alone() {
        let rsa = json!({"kty": "RSA", "kid": "r", "alg": "RS256", "use": "sig", "n": "AQAB", "e": "AQAB"});
        let keys = set(&[point("a"), point("b"), rsa]).unwrap();
        assert_eq!(count(&keys, Some("a"), Algorithm::ES256), 1);
        assert_eq!(count(&keys, None, Algorithm::ES256), 2);
        assert_eq!(count(&keys, Some("c"), Algorithm::ES256), 0);
        for (id, algorithm) in [
            ("a", Algorithm::ES384),
            ("a", Algorithm::HS256),
            ("a", Algorithm::RS256),
            ("r", Algorithm::RS512),
            ("r", Algorithm::HS256),
        ] {
            assert_eq!(count(&keys, Some(id), algorithm), 0, "{id} {algorithm:?}");
        }
    }

    #[test]
    fn what_is_no_public_key_for_signatures_is_passed_over() {
        let with = |name: &str, value: serde_json::Value| {
            let mut key = point("x");
            key[name] = value;
            key
        };
        let others = [
            with("use", json!("enc")),
            with("key_ops", json!(["sign"])),
            with("alg", json!("ES384")),
            with("alg", json!("RSA-OAEP")),
            with("crv", json!("P-521")),
            with("kty", json!("FUTURE")),
            json!({"kty": "oct", "kid": "x", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}),
            json!(7),
        ];
        for other in &others {
            assert_eq!(set(std::slice::from_ref(other)).unwrap_err(), KeysError::None(1), "{other}");
        }
        let mut all = others.to_vec();
        all.push(point("x"));
        assert_eq!(count(&set(&all).unwrap(), Some("x"), Algorithm::ES256), 1, "and harms no other");
    }

    #[test]
    fn a_secret_is_long_enough_and_has_no_end_of_line() {
        assert_eq!(Keys::of_secret(b"0123456789012345678901234567890\n").unwrap_err(), KeysError::Short(31));
        let keys = Keys::of_secret(b"01234567890123456789012345678901\r\n").unwrap();
        let secret = keys.find(Some("any"), Algorithm::HS256).next().unwrap();
        assert_eq!(secret.try_get_as_bytes().unwrap().len(), 32);
        assert_eq!(count(&keys, None, Algorithm::RS256), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_set_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80), text in "\\PC{0,60}") {
            let _ = Keys::of_set(&bytes, &BOTH);
            let _ = Keys::of_set(format!(r#"{{"keys":[{{"kty":"RSA","n":"{text}","e":"{text}"}}]}}"#).as_bytes(), &BOTH);
        }
    }
}
