//! Where an issuer's keys are: a secret, a file, or a server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::Full;
use jsonwebtoken::Algorithm;
use runtime::http::single::{SingleError, send};
use runtime::tls::{TlsClient, TlsError};

use super::keys::{Keys, KeysError};
use crate::settings::JwtSettings;

/// The most that is read: key sets have some kilobytes.
const SIZE_MAX: usize = 1 << 20;
/// How long a server may take.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Why keys could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("{} cannot be read: {source}", file.display())]
    File { file: PathBuf, source: std::io::Error },
    #[error("{url} cannot be reached: {source}")]
    Unreachable { url: Uri, source: std::io::Error },
    #[error("{url} answered {status}")]
    Status { url: Uri, status: StatusCode },
    #[error("{0} did not answer within 5 s")]
    Slow(Uri),
    #[error("the answer of {url} cannot be read: {source}")]
    Answer { url: Uri, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("what {at} holds cannot be used: {source}")]
    Keys { at: String, source: KeysError },
    #[error("{0:?} is no address")]
    Url(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// See the module.
#[derive(Debug)]
pub(crate) enum Source {
    Secret(PathBuf),
    Set(PathBuf),
    Server { url: Uri, tls: TlsClient },
}

impl Source {
    /// Where the settings say. Nothing is read yet but the roots that a server is trusted by.
    pub(crate) fn of(settings: &JwtSettings) -> Result<Self, SourceError> {
        match (&settings.secret_file, &settings.jwks_file, &settings.jwks_url) {
            (Some(file), ..) => Ok(Self::Secret(file.clone())),
            (None, Some(file), _) => Ok(Self::Set(file.clone())),
            (None, None, url) => {
                let url = url.as_deref().unwrap_or_default();
                let url: Uri = url.parse().map_err(|_| SourceError::Url(url.to_owned()))?;
                Ok(Self::Server { url, tls: TlsClient::open(settings.ca_file.as_deref())? })
            }
        }
    }

    /// What a file holds now; nothing if it is a server's to say. For a start: it waits for the disk.
    pub(crate) fn read_file(&self) -> Result<Option<Bytes>, SourceError> {
        match self {
            Self::Secret(file) | Self::Set(file) => {
                let read = std::fs::read(file).map_err(|source| SourceError::File { file: file.clone(), source })?;
                Ok(Some(read.into()))
            }
            Self::Server { .. } => Ok(None),
        }
    }

    /// What is there now.
    pub(crate) async fn read(&self) -> Result<Bytes, SourceError> {
        match self {
            Self::Secret(file) | Self::Set(file) => {
                let read = tokio::fs::read(file).await;
                read.map(Bytes::from).map_err(|source| SourceError::File { file: file.clone(), source })
            }
            Self::Server { url, tls } => {
                let fetched = tokio::time::timeout(TIME_MAX, fetch(tls, url)).await;
                fetched.unwrap_or_else(|_| Err(SourceError::Slow(url.clone())))
            }
        }
    }

    /// The keys in what was read.
    pub(crate) fn keys(&self, read: &[u8], algorithms: &[Algorithm]) -> Result<Keys, SourceError> {
        let at = |path: &Path| path.display().to_string();
        let (keys, at) = match self {
            Self::Secret(file) => (Keys::of_secret(read), at(file)),
            Self::Set(file) => (Keys::of_set(read, algorithms), at(file)),
            Self::Server { url, .. } => (Keys::of_set(read, algorithms), url.to_string()),
        };
        keys.map_err(|source| SourceError::Keys { at, source })
    }
}

/// A connection for one question: the next one is minutes away.
async fn fetch(tls: &TlsClient, url: &Uri) -> Result<Bytes, SourceError> {
    let mut request = Request::new(Full::default());
    *request.uri_mut() = url.clone();
    request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    let response = send(Some(tls), request, SIZE_MAX).await.map_err(|error| match error {
        SingleError::Unreachable(source) => SourceError::Unreachable { url: url.clone(), source },
        SingleError::Answer(source) => SourceError::Answer { url: url.clone(), source },
    })?;
    match response.status() {
        StatusCode::OK => Ok(response.into_body()),
        status => Err(SourceError::Status { url: url.clone(), status }),
    }
}
