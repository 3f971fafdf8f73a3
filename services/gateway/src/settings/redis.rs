//! `[gateway.redis]` of the configuration: limits kept together with other gateways.

use std::time::Duration;

use redis::io::tcp::TcpSettings;
use redis::{Client, IntoConnectionInfo};
use runtime::config::{Secret, duration};
use serde::{Deserialize, Serialize};

/// See the module. Each setting but the address has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisSettings {
    /// `redis://[user:password@]host[:port][/database]`, or `unix:///path`. One server, or what stands for one.
    #[serde(skip_serializing)]
    pub url: Secret,
    /// An answer that takes longer is none: this gateway then keeps to its share of each limit, until Redis is well again.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Connecting.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// What a gateway has open is counted so long after it was last heard of.
    #[serde(with = "duration")]
    pub lease: Duration,
    /// Stands before every key. Gateways with the same one keep limits together.
    pub prefix: String,
    /// Gateways that share the limits, for as long as Redis has never said how many there are.
    pub gateways: u32,
}

impl Default for RedisSettings {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            timeout: Duration::from_millis(25),
            connect_timeout: Duration::from_secs(1),
            lease: Duration::from_secs(3),
            prefix: "tollgate".to_owned(),
            gateways: 1,
        }
    }
}

impl RedisSettings {
    /// A client that is not connected yet.
    pub(crate) fn client(&self) -> Result<Client, redis::RedisError> {
        let info = self.url.expose().into_connection_info()?;
        // Without it what a request asks may wait for the acknowledgement of what another one told.
        Client::open(info.set_tcp_settings(TcpSettings::default().set_nodelay(true)))
    }

    /// What is wrong with the settings.
    pub(crate) fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.url.is_empty() {
            wrong.push("redis.url must be set: redis://host:6379, for one".to_owned());
        } else if self.client().is_err() {
            // Its error could repeat the password.
            wrong.push(
                "redis.url is no address of Redis: write redis://[user:password@]host[:port][/database]".to_owned(),
            );
        }
        for (name, time, least) in
            [("timeout", self.timeout, 1), ("connect_timeout", self.connect_timeout, 1), ("lease", self.lease, 100)]
        {
            let most = Duration::from_secs(60);
            if !(Duration::from_millis(least)..=most).contains(&time) {
                wrong.push(format!("redis.{name} must be {least}ms to 60s"));
            }
        }
        if self.lease < self.timeout * 3 {
            wrong.push(
                "redis.lease must be at least three times redis.timeout, or it ends while it is renewed".to_owned(),
            );
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
        if self.prefix.is_empty() || self.prefix.len() > 64 || !self.prefix.chars().all(plain) {
            wrong.push("redis.prefix must be 1 to 64 of a-z, A-Z, 0-9, '.', '_', '-', ':'".to_owned());
        }
        if !(1..=1000).contains(&self.gateways) {
            wrong.push("redis.gateways must be 1 to 1000".to_owned());
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_at_once_and_no_secret_with_it() {
        let url = |url: &str| RedisSettings { url: Secret::new(url), ..RedisSettings::default() };
        assert!(url("redis://127.0.0.1:6379").validate().is_empty());
        assert!(url("redis://:hunter2@redis.internal/1").validate().is_empty());
        assert!(url("unix:///run/redis.sock").validate().is_empty());
        for bad in ["", "http://hunter2", "redis://:hunter2@", "hunter2"] {
            let said = url(bad).validate();
            assert_eq!(said.len(), 1, "{bad}: {said:?}");
            assert!(!said[0].contains("hunter2"), "{said:?}");
        }
        assert!(!format!("{:?}", url("redis://:hunter2@a")).contains("hunter2"));
        let bad = RedisSettings {
            timeout: Duration::ZERO,
            prefix: "a b".into(),
            gateways: 0,
            lease: Duration::from_millis(1),
            ..url("redis://a")
        };
        assert_eq!(bad.validate().len(), 4, "{:?}", bad.validate());
    }
}
