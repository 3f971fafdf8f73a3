//! TLS: a certificate that is read again when its files change, and the roots by which other servers are trusted.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::Shutdown;
use crate::config::duration;

/// A server's certificate and key, in the settings of a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// The certificate and those between it and a root, the server's own first, as PEM.
    pub cert_file: PathBuf,
    /// The certificate's private key, as PEM.
    pub key_file: PathBuf,
    /// How often both files are looked at. A new certificate is used for all connections from then on.
    #[serde(with = "duration", default = "often")]
    pub reload_interval: Duration,
}

fn often() -> Duration {
    Duration::from_secs(10)
}

impl TlsSettings {
    /// What is wrong with the settings; nothing if they can be used.
    pub fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, file) in [("cert_file", &self.cert_file), ("key_file", &self.key_file)] {
            if file.as_os_str().is_empty() {
                wrong.push(format!("{name} must name a file of PEM"));
            }
        }
        if self.reload_interval < Duration::from_millis(10) {
            wrong.push("reload_interval must be at least 10ms".to_owned());
        }
        wrong
    }
}

/// Why there is no TLS. Says nothing of what is in a key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", file.display())]
    Read {
        /// Which one.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file holds no certificate.
    #[error("{} holds no certificate: it must have one or more blocks BEGIN CERTIFICATE", .0.display())]
    NoCertificate(PathBuf),
    /// A file holds no private key.
    #[error("{} holds no private key: it must have a block BEGIN PRIVATE KEY", .0.display())]
    NoKey(PathBuf),
    /// Certificate and key cannot be used, or not with each other.
    #[error("the certificate in {} cannot be used with the key in {}: {source}", cert.display(), key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        source: tokio_rustls::rustls::Error,
    },
    /// The library offers no protocol.
    #[error("TLS cannot be set up: {0}")]
    Protocol(#[from] tokio_rustls::rustls::Error),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What the two files held.
#[derive(PartialEq, Eq)]
struct Pair {
    cert: Vec<u8>,
    key: Vec<u8>,
}

/// A server's side of TLS, for HTTP/1.1. Cheap to clone, clones share the certificate.
#[derive(Clone)]
pub struct Tls {
    settings: TlsSettings,
    config: Arc<ArcSwap<ServerConfig>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// When they cannot be read, or not be used with each other.
    pub async fn open(settings: TlsSettings) -> Result<Self, TlsError> {
        let config = Self::config_of(&settings, &Self::read(&settings).await?)?;
        Ok(Self { settings, config: Arc::new(ArcSwap::from_pointee(config)) })
    }

    /// What a new connection is accepted by.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }

    /// Looks at the files again and again until shutdown. What cannot be used is said once, and the certificate before
    /// is used on.
    ///
    /// # Errors
    /// Never; the type is that of a task.
    pub async fn watch(self, shutdown: Shutdown) -> Result<(), Infallible> {
        let mut seen = Self::read(&self.settings).await.ok();
        let mut told = false;
        while shutdown.sleep(self.settings.reload_interval).await {
            let renewed = match Self::read(&self.settings).await {
                Ok(now) if seen.as_ref() == Some(&now) => continue,
                Ok(now) => Self::config_of(&self.settings, &now).map(|config| (now, config)),
                Err(error) => Err(error),
            };
            match renewed {
                Ok((now, config)) => {
                    tracing::info!(cert_file = %self.settings.cert_file.display(), "the certificate has changed: it is used from now on");
                    self.config.store(Arc::new(config));
                    (seen, told) = (Some(now), false);
                }
                // Tried again each time: of two files one is written before the other.
                Err(error) if !told => {
                    tracing::error!(%error, "the changed certificate is not used; the one before is");
                    told = true;
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    async fn read(settings: &TlsSettings) -> Result<Pair, TlsError> {
        Ok(Pair { cert: read(&settings.cert_file).await?, key: read(&settings.key_file).await? })
    }

    fn config_of(settings: &TlsSettings, pair: &Pair) -> Result<ServerConfig, TlsError> {
        let chain = certificates(&settings.cert_file, &pair.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&pair.key).map_err(|_| TlsError::NoKey(settings.key_file.clone()))?;
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let config = builder.with_no_client_auth().with_single_cert(chain, key);
        let mut config = config.map_err(|source| {
            let (cert, key) = (settings.cert_file.clone(), settings.key_file.clone());
            TlsError::Pair { cert, key, source }
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// A client's side of TLS. Cheap to clone.
#[derive(Clone)]
pub struct TlsClient(TlsConnector);

impl std::fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsClient")
    }
}

impl TlsClient {
    /// Servers are trusted by the certificates in `ca_file` alone, or by those of the system. Waits for the disk.
    ///
    /// # Errors
    /// When the file cannot be read or holds no certificate that can be a root.
    pub fn open(ca_file: Option<&Path>) -> Result<Self, TlsError> {
        client_config(ca_file).map(|config| Self(TlsConnector::from(Arc::new(config))))
    }

    /// Agrees on TLS with the server at the other end, which must be `host`: a name or an address.
    ///
    /// # Errors
    /// When it is not, is not trusted, or does not speak TLS.
    pub async fn connect(&self, host: &str, socket: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned());
        self.0.connect(name.map_err(std::io::Error::other)?, socket).await
    }
}

fn client_config(ca_file: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(file) => {
            let pem = std::fs::read(file).map_err(|source| TlsError::Read { file: file.to_owned(), source })?;
            for certificate in certificates(file, &pem)? {
                roots.add(certificate)?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            let (taken, _) = roots.add_parsable_certificates(found.certs);
            tracing::debug!(taken, errors = found.errors.len(), "the system's root certificates are read");
        }
    }
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

async fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    tokio::fs::read(file).await.map_err(|source| TlsError::Read { file: file.to_owned(), source })
}

fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| TlsError::NoCertificate(file.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{self, Listener};
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    fn settings(cert_file: PathBuf, key_file: PathBuf) -> TlsSettings {
        TlsSettings { cert_file, key_file, reload_interval: Duration::from_millis(10) }
    }

    /// Shakes hands and asks for something: the server's certificate, and its answer.
    async fn ask(address: SocketAddr, trusted: ClientConfig) -> std::io::Result<(Vec<u8>, String)> {
        let mut trusted = trusted;
        trusted.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        let socket = TcpStream::connect(address).await?;
        let mut socket = TlsConnector::from(Arc::new(trusted)).connect(name, socket).await?;
        let (_, session) = socket.get_ref();
        assert_eq!(session.alpn_protocol(), Some(&b"http/1.1"[..]));
        let certificate = session.peer_certificates().unwrap()[0].to_vec();
        socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        Ok((certificate, answer))
    }

    fn trusted() -> ClientConfig {
        client_config(Some(&fixture("ca.pem"))).unwrap()
    }

    fn certificate(name: &str) -> Vec<u8> {
        certificates(Path::new(name), &std::fs::read(fixture(name)).unwrap()).unwrap()[0].to_vec()
    }

    #[tokio::test]
    async fn a_certificate_is_replaced_while_it_is_served() {
        let dir = std::env::temp_dir().join(format!("tollgate-tls-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&dir).unwrap();
        let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        let put = |name: &str, to: &Path| assert!(std::fs::copy(fixture(name), to).unwrap() > 0);
        put("first.pem", &cert);
        put("first.key", &key);
        let tls = Tls::open(settings(cert.clone(), key.clone())).await.unwrap();
        let tcp = http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let (shutdown, routes) = (Shutdown::new(), http::routes(Default::default(), Default::default()));
        let listener = Listener::from(tcp).with_tls(Some(tls.clone()));
        let server = http::serve(listener, routes, shutdown.clone(), Duration::from_secs(5));
        let client = async {
            // Who never shakes hands, or does not speak TLS, holds nobody up.
            let _silent = TcpStream::connect(address).await.unwrap();
            let mut plain = TcpStream::connect(address).await.unwrap();
            plain.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            let _ = plain.read_to_end(&mut answer).await;
            assert!(!answer.starts_with(b"HTTP"), "nothing is served without TLS");

            let (seen, answer) = ask(address, trusted()).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert_eq!(seen, certificate("first.pem"));
            // One file is there before the other: what does not fit together is not used.
            put("second.pem", &cert);
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                assert_eq!(ask(address, trusted()).await.unwrap().0, certificate("first.pem"));
            }
            put("second.key", &key);
            while ask(address, trusted()).await.unwrap().0 != certificate("second.pem") {}
            // A client that does not trust the root does not come in.
            assert!(ask(address, client_config(None).unwrap()).await.is_err());
            shutdown.trigger();
        };
        let (served, watched, ()) = tokio::join!(server, tls.watch(shutdown.clone()), client);
        served.unwrap();
        watched.unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_named_and_no_key_is_shown() {
        let missing = PathBuf::from("/no/such/file.pem");
        for (cert, key, said) in [
            (missing.clone(), fixture("first.key"), "/no/such/file.pem cannot be read"),
            (fixture("first.pem"), missing, "/no/such/file.pem cannot be read"),
            (fixture("first.key"), fixture("first.key"), "first.key holds no certificate"),
            (fixture("first.pem"), fixture("first.pem"), "first.pem holds no private key"),
            (fixture("first.pem"), fixture("second.key"), "cannot be used with the key in"),
        ] {
            let error = Tls::open(settings(cert, key)).await.unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("PRIVATE KEY-----\n"), "{error}");
        }
        assert!(client_config(Some(&fixture("first.key"))).is_err());
        assert_eq!(settings(PathBuf::new(), PathBuf::new()).validate().len(), 2);
        assert_eq!(settings(fixture("first.pem"), fixture("first.key")).validate(), Vec::<String>::new());
    }
}
