//! What replicas want to be asked with: TLS, and the keys that the settings have for them.

use std::path::PathBuf;

use hashbrown::HashMap;
use http::{HeaderMap, HeaderValue, header};
use ledger::ids::ReplicaId;
use runtime::tls::{TlsClient, TlsError};

use crate::settings::{UpstreamKey, UpstreamSettings};

/// Why the settings cannot be used. Says nothing of what is in a key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the key in {} cannot be read: {source}", file.display())]
    File { file: PathBuf, source: std::io::Error },
    #[error("the variable {0} is not set: it is to hold a key")]
    Variable(String),
    #[error("the key in {0} is empty, or has characters that no header may have")]
    Characters(String),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub tls: TlsClient,
    replicas: HashMap<ReplicaId, HeaderValue>,
    all: Option<HeaderValue>,
}

impl Upstream {
    /// Reads the keys, and the roots that replicas are trusted by.
    pub(crate) fn open(settings: &UpstreamSettings) -> Result<Self, UpstreamError> {
        let tls = TlsClient::open(settings.ca_file.as_deref())?;
        let mut upstream = Self { tls, replicas: HashMap::new(), all: None };
        for key in &settings.api_keys {
            let value = read(key)?;
            if key.replicas.is_empty() {
                upstream.all = Some(value);
                continue;
            }
            upstream.replicas.extend(key.replicas.iter().map(|replica| (replica.clone(), value.clone())));
        }
        Ok(upstream)
    }

    /// Shows a replica its key, if there is one.
    pub(crate) fn authorize(&self, replica: &ReplicaId, headers: &mut HeaderMap) {
        if let Some(key) = self.replicas.get(replica).or(self.all.as_ref()) {
            headers.insert(header::AUTHORIZATION, key.clone());
        }
    }
}

fn read(key: &UpstreamKey) -> Result<HeaderValue, UpstreamError> {
    let (text, at) = match (&key.file, &key.env) {
        (Some(file), _) => {
            let read = std::fs::read_to_string(file);
            (read.map_err(|source| UpstreamError::File { file: file.clone(), source })?, file.display().to_string())
        }
        (None, name) => {
            let name = name.clone().unwrap_or_default();
            (std::env::var(&name).map_err(|_| UpstreamError::Variable(name.clone()))?, name)
        }
    };
    let text = text.trim();
    let value = HeaderValue::try_from(format!("Bearer {text}")).ok().filter(|_| !text.is_empty());
    let mut value = value.ok_or(UpstreamError::Characters(at))?;
    value.set_sensitive(true);
    Ok(value)
}
