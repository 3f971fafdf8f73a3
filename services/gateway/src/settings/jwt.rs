//! `[[gateway.jwt]]`: an issuer whose tokens are taken in place of API keys, and what their claims mean here.

use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::{Algorithm, AlgorithmFamily};
use ledger::ids::{ProjectId, TenantId};
use runtime::config::duration;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JwtSettings {
    /// `iss`, to the letter.
    pub issuer: String,
    /// A token must name one of these in `aud`: it was made for this service.
    pub audience: Vec<String>,
    /// How its tokens may be signed: `HS256`, `RS256`, `ES256`, `EdDSA`, and their like with longer hashes.
    pub algorithms: Vec<Algorithm>,
    /// The secret of an issuer that signs by HMAC, at least 32 bytes. Read again when it changes.
    pub secret_file: Option<PathBuf>,
    /// The public keys of any other, as a JSON Web Key Set. Read again when it changes.
    pub jwks_file: Option<PathBuf>,
    /// Or where it serves them.
    pub jwks_url: Option<String>,
    /// Roots by which `jwks_url` is trusted, as PEM; those of the system if absent.
    pub ca_file: Option<PathBuf>,
    /// How often the keys are read again.
    #[serde(with = "duration")]
    pub refresh_interval: Duration,
    /// A token that names a key that is not known has them read again, but not sooner after the last time than this.
    #[serde(with = "duration")]
    pub retry_interval: Duration,
    /// By how much the issuer's clock may differ from this one.
    #[serde(with = "duration")]
    pub leeway: Duration,
    /// The tenant of all its tokens.
    pub tenant: Option<TenantId>,
    /// Or the claim that names it. A dotted path, as `realm.tenant`; a claim whose own name has dots is found by that first.
    pub tenant_claim: Option<String>,
    /// The project of tokens that name none.
    pub project: ProjectId,
    /// The claim that names the project.
    pub project_claim: Option<String>,
    /// The claim that names what a token may do: a list, or a text with spaces. A token without it may do nothing. If no
    /// claim is set, a token may do all that a key can.
    pub scopes_claim: Option<String>,
    /// What the names of scopes begin with in that claim: with `tollgate:`, `tollgate:generate` is the scope `generate`.
    pub scope_prefix: String,
}

impl Default for JwtSettings {
    fn default() -> Self {
        Self {
            issuer: String::new(),
            audience: Vec::new(),
            algorithms: Vec::new(),
            secret_file: None,
            jwks_file: None,
            jwks_url: None,
            ca_file: None,
            refresh_interval: Duration::from_secs(300),
            retry_interval: Duration::from_secs(10),
            leeway: Duration::from_secs(30),
            tenant: None,
            tenant_claim: None,
            project: default_project(),
            project_claim: None,
            scopes_claim: None,
            scope_prefix: String::new(),
        }
    }
}

#[expect(clippy::expect_used, reason = "a constant that is a slug")]
fn default_project() -> ProjectId {
    ProjectId::new("default").expect("a slug")
}

impl JwtSettings {
    /// What is wrong with it; nothing if it can be used.
    pub fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |good: bool, said: &str| {
            if !good {
                wrong.push(said.to_owned());
            }
        };
        check(!self.issuer.is_empty(), "issuer must be what tokens say in `iss`");
        let audience = !self.audience.is_empty() && self.audience.iter().all(|name| !name.is_empty());
        check(audience, "audience must name what tokens for this service say in `aud`");
        check(!self.algorithms.is_empty(), "algorithms must name at least one, as RS256");
        let sources = [self.secret_file.is_some(), self.jwks_file.is_some(), self.jwks_url.is_some()];
        check(
            sources.iter().filter(|set| **set).count() == 1,
            "set one of secret_file, jwks_file and jwks_url: where its keys are",
        );
        let shared = |algorithm: &Algorithm| algorithm.family() == AlgorithmFamily::Hmac;
        let fit = self.algorithms.iter().all(|algorithm| shared(algorithm) == self.secret_file.is_some());
        // A public key that was taken for a secret would let anybody sign.
        check(
            fit,
            "algorithms must all be HS256, HS384, HS512 with secret_file, and none of them with jwks_file and jwks_url",
        );
        let url = self.jwks_url.as_deref().map(str::parse::<http::Uri>);
        let reachable = url.is_none_or(|url| {
            url.is_ok_and(|url| matches!(url.scheme_str(), Some("http" | "https")) && url.authority().is_some())
        });
        check(reachable, "jwks_url must be http://... or https://...");
        let secure = self.jwks_url.as_deref().is_some_and(|url| url.starts_with("https:"));
        check(self.ca_file.is_none() || secure, "ca_file is of no use without a jwks_url of https");
        check(
            self.tenant.is_some() != self.tenant_claim.is_some(),
            "set one of tenant and tenant_claim: who is billed for its tokens",
        );
        check(
            self.scope_prefix.is_empty() || self.scopes_claim.is_some(),
            "scope_prefix is of no use without scopes_claim",
        );
        for (name, claim) in [
            ("tenant_claim", &self.tenant_claim),
            ("project_claim", &self.project_claim),
            ("scopes_claim", &self.scopes_claim),
        ] {
            check(claim.as_deref() != Some(""), &format!("{name} must name a claim, or be left out"));
        }
        let (least, day) = (Duration::from_millis(10), Duration::from_secs(86_400));
        for (name, time) in [("refresh_interval", self.refresh_interval), ("retry_interval", self.retry_interval)] {
            check((least..=day).contains(&time), &format!("{name} must be 10ms to 1d"));
        }
        check(self.leeway <= Duration::from_secs(600), "leeway must be at most 10m");
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> JwtSettings {
        JwtSettings {
            issuer: "https://id.example.com".into(),
            audience: vec!["tollgate".into()],
            algorithms: vec![Algorithm::RS256],
            jwks_file: Some("keys.json".into()),
            tenant_claim: Some("tenant".into()),
            ..JwtSettings::default()
        }
    }

    #[test]
    fn an_issuer_says_who_signs_how_and_who_is_billed() {
        assert_eq!(good().validate(), Vec::<String>::new());
        assert_eq!(JwtSettings::default().validate().len(), 5, "{:?}", JwtSettings::default().validate());
        for bad in [
            JwtSettings { algorithms: vec![Algorithm::RS256, Algorithm::HS256], ..good() },
            JwtSettings { algorithms: vec![Algorithm::HS256], ..good() },
            JwtSettings { jwks_file: None, secret_file: Some("secret".into()), ..good() },
            JwtSettings { jwks_url: Some("https://id.example.com/keys".into()), ..good() },
            JwtSettings { jwks_file: None, jwks_url: Some("ftp://id.example.com".into()), ..good() },
            JwtSettings { ca_file: Some("ca.pem".into()), ..good() },
            JwtSettings { tenant: Some("acme".parse().unwrap()), ..good() },
            JwtSettings { scope_prefix: "tollgate:".into(), ..good() },
            JwtSettings { project_claim: Some(String::new()), ..good() },
            JwtSettings { retry_interval: Duration::ZERO, ..good() },
            JwtSettings { leeway: Duration::from_secs(3600), ..good() },
        ] {
            assert_eq!(bad.validate().len(), 1, "{:?}", bad.validate());
        }
    }

    #[test]
    fn no_setting_allows_tokens_without_a_signature() {
        for name in ["none", "None", "NONE", ""] {
            assert!(serde_json::from_value::<Algorithm>(serde_json::json!(name)).is_err(), "{name}");
        }
    }
}
