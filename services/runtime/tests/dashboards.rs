//! Alert rules and dashboards speak of metrics that exist, and every metric that is an alarm has a rule.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at what it did not expect")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use runtime::metrics::Name;

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(folder);
    let found: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.into_iter().filter(|path| path.extension().is_some_and(|found| found == ending)).collect()
}

/// The metrics that a text names, each as its name in the code: a histogram's parts are the histogram.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let exists = |name: &str| Name::ALL.iter().any(|known| known.as_str() == name);
    let whole = |word: &str| {
        let part = ["_bucket", "_sum", "_count"].into_iter().find_map(|part| word.strip_suffix(part));
        part.filter(|name| exists(name)).unwrap_or(word).to_owned()
    };
    words.filter(|word| word.starts_with("tollgate_")).map(whole).collect()
}

#[test]
fn every_metric_of_a_rule_or_a_dashboard_exists() {
    let known: BTreeSet<_> = Name::ALL.iter().map(|name| name.as_str().to_owned()).collect();
    let files = [files("prometheus", "yml"), files("grafana", "json")].concat();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let unknown: Vec<_> = named(&text).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{} names what is not in Name::ALL: {unknown:?}", file.display());
    }
}

#[test]
fn every_metric_that_is_an_alarm_has_a_rule() {
    let rules: String = files("prometheus", "yml").iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let ruled = named(&rules);
    let alarms = Name::ALL.iter().filter(|name| name.help().contains("An alarm"));
    let silent: Vec<_> = alarms.map(|name| name.as_str()).filter(|name| !ruled.contains(*name)).collect();
    assert!(silent.is_empty(), "no rule in deploy/prometheus for {silent:?}");
}

#[test]
fn dashboards_are_json_with_panels_that_ask_something() {
    for file in files("grafana", "json") {
        let dashboard: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        let asks =
            |panel: &serde_json::Value| panel["targets"][0]["expr"].as_str().is_some_and(|expr| !expr.is_empty());
        assert!(panels.iter().all(|panel| panel["type"] == "row" || asks(panel)), "{}", file.display());
    }
}
