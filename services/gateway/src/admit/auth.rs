//! Whose request it is: the API key in its headers, found by its hash.

use std::sync::Arc;

use http::{HeaderMap, header};
use ledger::time::Micros;
use sha2::{Digest, Sha256};

use super::caller::Caller;
use super::policy::Policy;
use crate::error::Refusal;

/// SHA-256 of an API key, by which it is known.
pub(crate) type KeyHash = [u8; 32];

/// The hash of a key's text.
pub(crate) fn hash_of(key: &[u8]) -> KeyHash {
    Sha256::digest(key).into()
}

/// The key that the headers carry: `Authorization: Bearer`, else `X-API-Key`.
fn key_in(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        return scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii()).filter(|key| !key.is_empty());
    }
    headers.get("x-api-key").map(|value| value.as_bytes().trim_ascii()).filter(|key| !key.is_empty())
}

/// What a request is authenticated by. The secret itself is only ever hashed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Credential {
    hash: KeyHash,
}

impl Credential {
    /// What the headers carry.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let hash = hash_of(key_in(headers).ok_or_else(Refusal::invalid_api_key)?);
        Ok(Self { hash })
    }

    /// Who asks, as control is now.
    ///
    /// The hash is looked up, not the secret: how long that takes depends on bits that nobody can choose without knowing
    /// a text that has them, so the time tells nothing about any key.
    pub(crate) fn caller(&self, policy: &Policy, now: Micros) -> Result<Arc<Caller>, Refusal> {
        let key = policy.key(&self.hash).filter(|key| key.holds(now)).ok_or_else(Refusal::invalid_api_key)?;
        Ok(Arc::clone(&key.caller))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &'static str, value: &str) -> Option<Vec<u8>> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        key_in(&headers).map(<[u8]>::to_vec)
    }

    #[test]
    fn keys_come_in_either_header() {
        assert_eq!(found("authorization", "Bearer tg_demo"), Some(b"tg_demo".to_vec()));
        assert_eq!(found("authorization", "bearer  tg_demo "), Some(b"tg_demo".to_vec()));
        assert_eq!(found("x-api-key", "tg_demo"), Some(b"tg_demo".to_vec()));
        for (name, value) in [
            ("authorization", "Basic dGc6"),
            ("authorization", "tg_demo"),
            ("authorization", "Bearer "),
            ("x-api-key", ""),
        ] {
            assert_eq!(found(name, value), None, "{name}: {value}");
        }
    }
}
