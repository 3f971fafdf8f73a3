//! `[gateway.cors]`: web pages of other origins that may call the API from a browser.

use std::time::Duration;

use http::HeaderValue;
use runtime::config::duration;
use serde::{Deserialize, Serialize};

/// See the module. By default no page may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CorsSettings {
    /// Origins as browsers name them, `https://app.example.com`; or `*` alone for every page there is.
    pub allowed_origins: Vec<String>,
    /// How long a browser may remember what it was allowed.
    #[serde(with = "duration")]
    pub max_age: Duration,
}

impl Default for CorsSettings {
    fn default() -> Self {
        Self { allowed_origins: Vec::new(), max_age: Duration::from_secs(600) }
    }
}

impl CorsSettings {
    /// What is wrong with it; nothing if it can be used.
    pub fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let all = self.allowed_origins.iter().any(|origin| origin == "*");
        if all && self.allowed_origins.len() > 1 {
            wrong.push("allowed_origins must be `*` alone, or name origins".to_owned());
        }
        for origin in self.allowed_origins.iter().filter(|origin| *origin != "*" && !is_origin(origin)) {
            wrong.push(format!("allowed_origins has {origin:?}: an origin is scheme://host or scheme://host:port, in lower case and without a slash at its end"));
        }
        if self.max_age > Duration::from_secs(86_400) {
            wrong.push("max_age must be at most 1d".to_owned());
        }
        wrong
    }
}

/// Browsers compare to the letter, and so do we: one that is written in another way would never match.
fn is_origin(text: &str) -> bool {
    let host = text.split_once("://").filter(|(scheme, _)| !scheme.is_empty()).map(|(_, host)| host);
    host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@']))
        && !text.bytes().any(|byte| byte.is_ascii_uppercase())
        && HeaderValue::from_str(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_written_as_browsers_do() {
        let of = |origins: &[&str]| {
            let allowed_origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
            CorsSettings { allowed_origins, ..CorsSettings::default() }.validate().len()
        };
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&["*"]), 0);
        assert_eq!(of(&["https://app.example.com", "http://localhost:3000", "chrome-extension://abc"]), 0);
        for wrong in
            ["https://a.example/", "https://A.example", "a.example", "https://", "://a", "https://a/b", "null", ""]
        {
            assert_eq!(of(&[wrong]), 1, "{wrong}");
        }
        assert_eq!(of(&["*", "https://a.example"]), 1);
    }
}
