//! `[gateway.upstream]`: how replicas are trusted, and the keys that they want. Secrets stay here: control never has them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ledger::ids::ReplicaId;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamSettings {
    /// Roots by which replicas at `https://` are trusted, as PEM; those of the system if absent.
    pub ca_file: Option<PathBuf>,
    /// Keys that are sent to replicas.
    pub api_keys: Vec<UpstreamKey>,
}

/// `[[gateway.upstream.api_keys]]`: a key, and who gets it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamKey {
    /// These replicas; all that no other key is for, if none is named.
    pub replicas: Vec<ReplicaId>,
    /// The file that holds the key.
    pub file: Option<PathBuf>,
    /// Or the variable of the environment.
    pub env: Option<String>,
}

impl UpstreamSettings {
    /// What is wrong with it; nothing if it can be used.
    pub fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut seen = BTreeSet::new();
        for (at, key) in self.api_keys.iter().enumerate() {
            if key.file.is_some() == key.env.is_some() {
                wrong.push(format!("api_keys.{at}: set one of file and env: where the key is"));
            }
            let all = key.replicas.is_empty().then_some(None);
            for replica in key.replicas.iter().map(Some).chain(all) {
                if !seen.insert(replica) {
                    wrong.push(format!("api_keys.{at}: another one is for the same replicas"));
                }
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_in_one_place_and_for_somebody_of_its_own() {
        let key = |replicas: &[&str], file: Option<&str>, env: Option<&str>| UpstreamKey {
            replicas: replicas.iter().map(|id| id.parse().unwrap()).collect(),
            file: file.map(PathBuf::from),
            env: env.map(str::to_owned),
        };
        let wrong = |api_keys| UpstreamSettings { api_keys, ..UpstreamSettings::default() }.validate().len();
        assert_eq!(wrong(vec![key(&[], Some("a"), None), key(&["r1", "r2"], None, Some("A"))]), 0);
        assert_eq!(wrong(vec![key(&[], None, None)]), 1);
        assert_eq!(wrong(vec![key(&[], Some("a"), Some("A"))]), 1);
        assert_eq!(wrong(vec![key(&[], Some("a"), None), key(&[], Some("b"), None)]), 1);
        assert_eq!(wrong(vec![key(&["r1", "r2"], Some("a"), None), key(&["r2"], Some("b"), None)]), 1);
    }
}
