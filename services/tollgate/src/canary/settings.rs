//! The section `[canary]`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use runtime::config::Secret;
use serde::Deserialize;

/// `[canary]` of the configuration. Without a key there is no canary.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CanarySettings {
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    pub(crate) listen: SocketAddr,
    /// Where the gateway is, as its clients know it, without a path.
    pub(crate) gateway: String,
    /// Where billing is, as its clients know it, without a path.
    pub(crate) billing: String,
    /// A key of a tenant that is there for the canary alone, with the scopes `generate` and `usage`.
    pub(crate) key: Secret,
    /// The model that is asked: one that generates, and is cheap.
    pub(crate) model: String,
    /// So many seconds lie between the beginnings of two rounds.
    pub(crate) interval_seconds: u64,
    /// Within so many seconds of its answer a request must be in the usage API.
    pub(crate) bound_seconds: u64,
    /// The roots by which gateway and billing are trusted, as PEM; those of the system without it.
    pub(crate) ca_file: Option<PathBuf>,
}

impl Default for CanarySettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8083)),
            gateway: "http://127.0.0.1:8080".to_owned(),
            billing: "http://127.0.0.1:8081".to_owned(),
            key: Secret::default(),
            model: String::new(),
            interval_seconds: 60,
            bound_seconds: 30,
            ca_file: None,
        }
    }
}

impl CanarySettings {
    /// Whether there is to be a canary.
    pub(crate) fn is_there(&self) -> bool {
        !self.key.is_empty()
    }

    /// What is wrong with what is set; nothing if it can be used.
    pub(crate) fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |holds: bool, said: String| {
            if !holds {
                wrong.push(said);
            }
        };
        for (name, url) in [("gateway", &self.gateway), ("billing", &self.billing)] {
            check(is_base(url), format!("{name} must be an http:// or https:// address without a path, not {url:?}"));
        }
        let bounds =
            [("interval_seconds", self.interval_seconds, 86_400), ("bound_seconds", self.bound_seconds, 3_600)];
        for (name, is, high) in bounds {
            check((1..=high).contains(&is), format!("{name} must be 1 to {high}, not {is}"));
        }
        let key = self.key.expose();
        check(
            key.bytes().all(|byte| byte.is_ascii_graphic()),
            "key holds what no key does: a space, or the like".into(),
        );
        let secure = [&self.gateway, &self.billing].into_iter().any(|url| url.starts_with("https:"));
        check(self.ca_file.is_none() || secure, "ca_file is of no use without an address of https".into());
        wrong
    }

    /// What must be set before there can be a canary, and is not.
    pub(crate) fn missing(&self) -> Vec<String> {
        let wanted = [
            (
                self.key.is_empty(),
                "key must be set: a key of the canary's own tenant (docs/canary.md says how to make it)",
            ),
            (self.model.is_empty(), "model must be set: the name of a model that generates"),
        ];
        wanted.iter().filter(|(missing, _)| *missing).map(|(_, said)| (*said).to_owned()).collect()
    }

    pub(crate) const fn interval(&self) -> Duration {
        Duration::from_secs(self.interval_seconds)
    }

    pub(crate) const fn bound(&self) -> Duration {
        Duration::from_secs(self.bound_seconds)
    }
}

fn is_base(url: &str) -> bool {
    let parsed = url.parse::<Uri>();
    parsed.is_ok_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some() && matches!(url.path(), "" | "/")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_named_all_at_once_and_no_key() {
        let settings = CanarySettings::default();
        assert_eq!((settings.validate(), settings.missing().len(), settings.is_there()), (Vec::new(), 2, false));
        let wrong = CanarySettings {
            gateway: "127.0.0.1:8080".into(),
            billing: "https://billing.example/api/v1".into(),
            key: Secret::new("tg_hunter2 "),
            interval_seconds: 0,
            bound_seconds: 4_000,
            ..CanarySettings::default()
        };
        let said = wrong.validate();
        assert!(said.len() == 5 && !said.join("").contains("hunter2"), "{said:?}");
        let useless = CanarySettings { ca_file: Some("ca.pem".into()), ..CanarySettings::default() };
        assert_eq!(useless.validate().len(), 1);
    }
}
