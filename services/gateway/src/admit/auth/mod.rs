//! Whose request it is: an API key that is found by its hash, or a token whose signature and claims hold.

mod cache;
mod claims;
mod crypto;
mod issuer;
mod keys;
mod source;
mod tokens;

use std::sync::Arc;

use http::{HeaderMap, header};
use ledger::time::Micros;
use runtime::Tasks;
use runtime::metrics::IntCounterVec;
use sha2::{Digest, Sha256};

use super::caller::Caller;
use super::policy::Policy;
use crate::error::Refusal;
use crate::settings::JwtSettings;
pub(crate) use claims::Invalid;
use claims::Verified;
pub(crate) use source::SourceError;
use tokens::Tokens;

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

/// Whose a request is, as its credential tells it. What that means is looked up each time: it may change while a request
/// is on its way.
#[derive(Debug, Clone)]
pub(crate) enum Identity {
    /// An API key with this hash, whether there is one or not.
    Key(KeyHash),
    /// A token that was verified.
    Token(Arc<Verified>),
}

impl Identity {
    /// Who asks, as control is now.
    ///
    /// A key's hash is looked up, not the key: how long that takes depends on bits that nobody can choose without having a
    /// text whose hash has them, so the time tells nothing about any key.
    pub(crate) fn caller(&self, policy: &Policy, now: Micros) -> Result<Arc<Caller>, Refusal> {
        match self {
            Self::Key(hash) => {
                let key = policy.key(hash).filter(|key| key.holds(now)).ok_or_else(Refusal::invalid_api_key)?;
                Ok(Arc::clone(&key.caller))
            }
            Self::Token(token) if token.until <= now => Err(Refusal::invalid_token(&Invalid::Expired)),
            Self::Token(token) => {
                let tenant = policy.tenant(&token.tenant).ok_or_else(|| Refusal::invalid_token(&Invalid::Tenant))?;
                let caller = Caller::new(Arc::clone(tenant), token.project.clone(), token.key, token.scopes);
                Ok(Arc::new(caller))
            }
        }
    }
}

/// Tells whose requests are.
#[derive(Debug, Default)]
pub(crate) struct Auth(Tokens);

impl Auth {
    /// With the issuers of the settings. `errors` counts, by issuer, when keys could not be read.
    pub(crate) fn open(settings: &[JwtSettings], errors: &IntCounterVec) -> Result<Self, SourceError> {
        Tokens::open(settings, errors).map(Self)
    }

    /// Keeps the keys of issuers current until shutdown.
    pub(crate) fn follow(&self, tasks: &Tasks) {
        self.0.follow(tasks);
    }

    /// Whose request has these headers. An API key is only ever hashed.
    pub(crate) async fn identify(&self, headers: &HeaderMap, now: Micros) -> Result<Identity, Refusal> {
        let credential = key_in(headers).ok_or_else(Refusal::invalid_api_key)?;
        let hash = hash_of(credential);
        if self.0.knows(credential) {
            return self.0.verify(hash, credential, now).await.map(Identity::Token);
        }
        Ok(Identity::Key(hash))
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
