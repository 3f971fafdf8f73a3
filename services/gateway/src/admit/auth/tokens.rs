//! Tokens in place of API keys: found by their issuer, verified once, and remembered until they expire.

use std::sync::Arc;

use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::decode_header;
use ledger::time::Micros;
use runtime::Tasks;
use runtime::metrics::IntCounterVec;
use serde::Deserialize;

use super::KeyHash;
use super::cache::{Cache, Entry};
use super::claims::{Invalid, Verified};
use super::crypto;
use super::issuer::Issuer;
use super::source::SourceError;
use crate::error::Refusal;
use crate::settings::JwtSettings;

/// How long reading keys may take to stop.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(6);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    issuers: Vec<Arc<Issuer>>,
    verified: Cache,
}

/// All that is read of a token before it is verified: by whose keys that is to be.
#[derive(Deserialize)]
struct Unverified {
    iss: String,
}

impl Tokens {
    /// The issuers of the settings. `errors` has one label, the issuer.
    pub(crate) fn open(settings: &[JwtSettings], errors: &IntCounterVec) -> Result<Self, SourceError> {
        crypto::install();
        let open = |one: &JwtSettings| {
            Issuer::open(one.clone(), errors.with_label_values(&[one.issuer.as_str()])).map(Arc::new)
        };
        let issuers = settings.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { issuers, verified: Cache::default() })
    }

    /// Keeps the keys of all issuers current.
    pub(crate) fn follow(&self, tasks: &Tasks) {
        for issuer in &self.issuers {
            let name = format!("keys of {}", issuer.settings.issuer);
            tasks.spawn(name, DRAIN, Arc::clone(issuer).follow(tasks.shutdown().clone()));
        }
    }

    /// Whether a credential is to be verified here: it has a token's form, and there are issuers.
    pub(crate) fn knows(&self, credential: &[u8]) -> bool {
        !self.issuers.is_empty()
            && credential.starts_with(b"eyJ")
            && credential.iter().filter(|byte| **byte == b'.').count() == 2
    }

    /// What a token says. Its keys may be read for it, which takes some seconds at most.
    pub(crate) async fn verify(&self, hash: KeyHash, token: &[u8], now: Micros) -> Result<Arc<Verified>, Refusal> {
        if let Some(Entry { verified, issuer, keys }) = self.verified.get(&hash) {
            let current = self.issuers.get(issuer).and_then(|issuer| issuer.keys());
            if now < verified.until && current.is_some_and(|current| Arc::ptr_eq(&current, &keys)) {
                return Ok(verified);
            }
            self.verified.forget(&hash);
        }
        let entry = self.check(token, now).await?;
        let verified = Arc::clone(&entry.verified);
        self.verified.put(hash, entry, now);
        Ok(verified)
    }

    async fn check(&self, token: &[u8], now: Micros) -> Result<Entry, Refusal> {
        let refused = |invalid: Invalid| Refusal::invalid_token(&invalid);
        let header = decode_header(token).map_err(|_| refused(Invalid::Form))?;
        if header.crit.is_some() {
            // An extension that must be understood, and no extension is.
            return Err(refused(Invalid::Form));
        }
        let Unverified { iss } = insecure_decode_claims(token).map_err(|_| refused(Invalid::Issuer))?;
        let mut issuers = self.issuers.iter().enumerate();
        let (at, issuer) =
            issuers.find(|(_, issuer)| issuer.settings.issuer == iss).ok_or_else(|| refused(Invalid::Issuer))?;
        if !issuer.settings.algorithms.contains(&header.alg) {
            return Err(refused(Invalid::Algorithm));
        }
        let known = issuer.keys();
        let mut said = known.as_ref().map_or(Err(Invalid::Key), |keys| issuer.verify(token, &header, keys, now));
        let mut keys = known;
        if said == Err(Invalid::Key) {
            // Apart, as its state is large, and it is rare.
            keys = Box::pin(issuer.ask_again(keys.as_ref())).await;
            let Some(keys) = &keys else { return Err(Refusal::token_keys_unavailable()) };
            said = issuer.verify(token, &header, keys, now);
        }
        match (said, keys) {
            (Ok(verified), Some(keys)) => Ok(Entry { verified: Arc::new(verified), issuer: at, keys }),
            (Err(invalid), _) => Err(refused(invalid)),
            (Ok(_), None) => Err(Refusal::token_keys_unavailable()),
        }
    }
}
