//! How to reach ClickHouse: the section `[clickhouse]` of the settings.

use runtime::config::Secret;
use serde::Deserialize;

/// `[clickhouse]` of the configuration. The password shows in no log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClickHouseSettings {
    /// Its HTTP interface, `http://host:port`.
    pub url: String,
    /// Who asks.
    pub user: String,
    /// The user's password; none if empty.
    pub password: Secret,
    /// The database that holds our tables. `migrate` creates it.
    pub database: String,
}

impl Default for ClickHouseSettings {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:8123".to_owned(),
            user: "default".to_owned(),
            password: Secret::default(),
            database: "tollgate".to_owned(),
        }
    }
}

impl ClickHouseSettings {
    /// What is wrong with the settings; nothing if they can be used.
    pub fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let url = self.url.parse::<http::Uri>().ok();
        let usable = |url: &http::Uri| {
            url.scheme_str() == Some("http")
                && url.authority().is_some_and(|at| !at.as_str().contains('@'))
                && matches!(url.path(), "" | "/")
                && url.query().is_none()
        };
        if !url.as_ref().is_some_and(usable) {
            wrong.push(
                "clickhouse.url must be http://host:port, the HTTP interface (8123 by default), without a path; user \
                 and password have settings of their own"
                    .to_owned(),
            );
        }
        if self.user.is_empty() {
            wrong.push("clickhouse.user must not be empty: ClickHouse's own first user is \"default\"".to_owned());
        }
        let name = self.database.as_bytes();
        let first = name.first().is_some_and(|c| c.is_ascii_alphabetic() || *c == b'_');
        let rest = name.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'_');
        if !first || !rest || name.len() > 64 {
            wrong.push(
                "clickhouse.database must be 1 to 64 of a-z, A-Z, 0-9 and '_', and begin with no digit".to_owned(),
            );
        }
        if ["system", "information_schema", "default"].contains(&self.database.to_ascii_lowercase().as_str()) {
            wrong.push(format!("clickhouse.database must be a database of its own, not {:?}", self.database));
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_named_all_at_once() {
        assert_eq!(ClickHouseSettings::default().validate(), Vec::<String>::new());
        let wrong = ClickHouseSettings {
            url: "https://user:word@somewhere".into(),
            user: String::new(),
            password: Secret::new("hunter2"),
            database: "system".into(),
        };
        let said = wrong.validate();
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(!format!("{wrong:?} {said:?}").contains("hunter2"));
        for url in ["localhost:8123", "http://", "http://a:8123/db", "http://a:8123/?user=b", "ftp://a"] {
            let settings = ClickHouseSettings { url: url.into(), ..ClickHouseSettings::default() };
            assert_eq!(settings.validate().len(), 1, "{url}");
        }
        for database in ["", "9a", "a-b", "a;DROP", &"x".repeat(65)] {
            let settings = ClickHouseSettings { database: database.into(), ..ClickHouseSettings::default() };
            assert_eq!(settings.validate().len(), 1, "{database}");
        }
    }
}
