//! An issuer of tokens, with the keys that it has now.

use std::convert::Infallible;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation, decode};
use ledger::time::Micros;
use runtime::Shutdown;
use runtime::metrics::IntCounter;
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::claims::{self, Invalid, Verified};
use super::keys::Keys;
use super::source::{Source, SourceError};
use crate::settings::JwtSettings;

/// What was last read of the keys.
#[derive(Debug, Default)]
struct Reading {
    /// When it was last tried.
    tried: Option<Instant>,
    /// What was there when it last went well.
    read: Option<Bytes>,
    /// Whether the last try failed, which is said once.
    failing: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Issuer {
    pub settings: JwtSettings,
    source: Source,
    keys: ArcSwapOption<Keys>,
    reading: Mutex<Reading>,
    errors: IntCounter,
}

impl Issuer {
    /// Reads the keys, if they are in a file; those of a server are read by [`Issuer::follow`] or the first token.
    pub(crate) fn open(settings: JwtSettings, errors: IntCounter) -> Result<Self, SourceError> {
        let source = Source::of(&settings)?;
        let read = source.read_file()?;
        let keys = read.as_ref().map(|read| source.keys(read, &settings.algorithms)).transpose()?;
        let reading = Mutex::new(Reading { read, ..Reading::default() });
        Ok(Self { settings, source, keys: ArcSwapOption::from_pointee(keys), reading, errors })
    }

    /// The keys as they are now; none if they could not be read yet.
    pub(crate) fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.load_full()
    }

    /// Reads the keys again and again, until shutdown.
    pub(crate) async fn follow(self: Arc<Self>, shutdown: Shutdown) -> Result<(), Infallible> {
        let (refresh, retry) = (self.settings.refresh_interval, self.settings.retry_interval);
        let mut well = self.ask_again(None).await.is_some();
        while shutdown.sleep(if well { refresh } else { retry.min(refresh) }).await {
            well = self.renew(&mut *self.reading.lock().await).await;
        }
        Ok(())
    }

    /// Has the keys read again because what is known is not enough, unless that was tried a moment ago. Those that come
    /// while it is read wait for it.
    pub(crate) async fn ask_again(&self, known: Option<&Arc<Keys>>) -> Option<Arc<Keys>> {
        let mut reading = self.reading.lock().await;
        let now = self.keys();
        let changed = now.as_ref().map(Arc::as_ptr) != known.map(Arc::as_ptr);
        let tried = reading.tried.is_some_and(|tried| tried.elapsed() < self.settings.retry_interval);
        if !changed && !tried {
            self.renew(&mut reading).await;
        }
        drop(reading);
        self.keys()
    }

    /// Whether it went well. What fails leaves the keys as they were.
    async fn renew(&self, reading: &mut Reading) -> bool {
        reading.tried = Some(Instant::now());
        let renewed = async {
            let read = self.source.read().await?;
            if reading.read.as_ref() == Some(&read) && self.keys.load().is_some() {
                return Ok(());
            }
            let keys = self.source.keys(&read, &self.settings.algorithms)?;
            self.keys.store(Some(Arc::new(keys)));
            if reading.read.replace(read).is_some() {
                tracing::info!(issuer = self.settings.issuer, "the issuer's keys have changed");
            }
            Ok::<_, SourceError>(())
        };
        match renewed.await {
            Ok(()) => {
                if std::mem::take(&mut reading.failing) {
                    tracing::info!(issuer = self.settings.issuer, "the issuer's keys can be read again");
                }
                true
            }
            Err(error) => {
                self.errors.inc();
                if !std::mem::replace(&mut reading.failing, true) {
                    let kept = self.keys.load().is_some();
                    tracing::error!(issuer = self.settings.issuer, %error, kept, "the issuer's keys cannot be read: those known before are used on");
                }
                false
            }
        }
    }

    /// What a token says, if one of these keys has signed it. [`Invalid::Key`] if none is the one that it names, or it
    /// names none and none has: then newer keys may say otherwise.
    pub(crate) fn verify(&self, token: &[u8], header: &Header, keys: &Keys, now: Micros) -> Result<Verified, Invalid> {
        let validation = self.validation(header.alg);
        let mut invalid = Invalid::Key;
        for key in keys.find(header.kid.as_deref(), header.alg) {
            match decode::<Map<String, Value>>(token, key, &validation).map_err(|error| refused(error.kind())) {
                Ok(token) => return claims::read(&token.claims, &self.settings, now),
                Err(Invalid::Signature) if header.kid.is_none() => {}
                Err(other) => invalid = other,
            }
        }
        Err(invalid)
    }

    /// Times are compared by our own clock, all else by the library.
    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.validate_exp = false;
        validation.set_issuer(&[&self.settings.issuer]);
        validation.set_audience(&self.settings.audience);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation
    }
}

fn refused(error: &ErrorKind) -> Invalid {
    match error {
        ErrorKind::InvalidSignature => Invalid::Signature,
        ErrorKind::InvalidAudience => Invalid::Audience,
        ErrorKind::InvalidIssuer => Invalid::Issuer,
        ErrorKind::InvalidAlgorithm => Invalid::Algorithm,
        ErrorKind::MissingRequiredClaim(name) => Invalid::Claim(name.clone()),
        _ => Invalid::Form,
    }
}
