//! `[billing]` of the configuration.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::Deserialize;

/// See the module. Each setting has a default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the API and the console are served, and `/healthz`, `/readyz`, `/metrics`.
    pub listen: SocketAddr,
    /// SHA-256 of the admin's key, in hex. Without it nobody is admin: tenants see their own data, and nothing can be written.
    pub admin_key_sha256: Option<String>,
    /// Where the durable snapshots of control and balances lie, so that a restart does not need Kafka. None are kept without.
    pub dir: Option<PathBuf>,
    /// The console's cookie is sent over TLS only. For billing behind a proxy that ends TLS.
    pub secure_cookie: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8081)),
            admin_key_sha256: None,
            dir: None,
            secure_cookie: false,
        }
    }
}

impl Settings {
    /// What is wrong with the settings; nothing if they can be used.
    pub fn validate(&self) -> Vec<String> {
        let wrong = self.admin_key_sha256.as_deref().is_some_and(|hash| !is_sha256(hash));
        let said = "billing.admin_key_sha256 must be the SHA-256 of the admin's key: 64 hex digits in lower case, as \
                    `printf %s KEY | sha256sum` prints them";
        wrong.then(|| said.to_owned()).into_iter().collect()
    }
}

/// Whether this is how hashes of keys are written.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_hash_is_taken_for_the_admins_key() {
        let with = |hash: &str| Settings { admin_key_sha256: Some(hash.to_owned()), ..Settings::default() };
        assert_eq!(Settings::default().validate(), Vec::<String>::new());
        assert_eq!(with(&"0a".repeat(32)).validate(), Vec::<String>::new());
        for wrong in ["", "tg_admin", &"0A".repeat(32), &"0g".repeat(32), &"0a".repeat(31)] {
            assert_eq!(with(wrong).validate().len(), 1, "{wrong}");
        }
    }
}
