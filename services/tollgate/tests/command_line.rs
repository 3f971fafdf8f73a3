//! The command line as people and scripts use it: help with examples, all that is wrong said at once, exit codes.

#![expect(clippy::unwrap_used, reason = "a test stops at what it cannot read; its helpers are not #[test] functions")]

use std::process::{Command, Output};

use serde_json::Value;

/// Runs the binary with these variables only.
fn tollgate(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(arguments).env_clear().envs(variables.iter().copied()).current_dir(folder.path());
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).concat()
}

/// The subcommands, as the help lists them.
fn subcommands() -> Vec<String> {
    let help = said(&tollgate(&["--help"], &[]));
    let list = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn every_subcommand_has_help_with_an_example() {
    let all = subcommands();
    assert!(all.len() > 5, "{all:?}");
    for name in all.iter().filter(|name| *name != "help") {
        let output = tollgate(&[name, "--help"], &[]);
        let help = said(&output);
        assert!(output.status.success(), "{name}: {help}");
        assert!(help.contains("Usage: tollgate") && help.contains(&format!("  tollgate {name}")), "{name}: {help}");
    }
}

#[test]
fn all_that_is_wrong_with_the_settings_is_said_at_once_and_no_secret() {
    let variables = [
        ("TOLLGATE__KAFKA__BROKERS", "nowhere"),
        ("TOLLGATE__KAFKA__PARTITIONS", "many"),
        ("TOLLGATE__CLICKHOUSE__URL", "https://user:hunter2@far"),
        ("TOLLGATE__CLICKHUOSE__URL", "http://far:8123"),
        ("TOLLGATE__LOG__FILTER", "tollgate=loud"),
    ];
    let output = tollgate(&["migrate", "--validate"], &variables);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    // A value of the wrong type is a hole, so rules between fields wait until it is mended.
    assert!(said.contains("[kafka] partitions") && said.contains("[clickhuose]"), "{said}");
    assert!(said.starts_with("tollgate: 2 problems"), "{said}");

    let output = tollgate(&["migrate", "--validate"], &[variables[0], variables[2], variables[4]]);
    let said = self::said(&output);
    for wanted in ["[kafka] brokers", "[clickhouse] url", "[log] filter", "3 problems"] {
        assert!(said.contains(wanted), "{wanted} in {said}");
    }
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn sound_settings_are_said_to_be_and_nothing_is_started() {
    for role in ["gateway", "fold", "billing", "migrate", "dev"] {
        let output = tollgate(&[role, "--validate"], &[]);
        let said = said(&output);
        assert!(output.status.success(), "{role}: {said}");
        assert!(said.contains(&format!("the settings of tollgate {role} are sound")), "{said}");
    }
}

#[test]
fn a_canary_without_a_key_says_what_it_needs_and_what_was_set_is_looked_at() {
    for arguments in [&["canary", "--validate"][..], &["canary", "--once"]] {
        let output = tollgate(arguments, &[("TOLLGATE__CANARY__BOUND_SECONDS", "0")]);
        let said = said(&output);
        assert!(!output.status.success(), "{said}");
        for wanted in ["[canary] key must be set", "[canary] model must be set", "[canary] bound_seconds"] {
            assert!(said.contains(wanted), "{wanted} in {said}");
        }
    }
    let set = [("TOLLGATE__CANARY__KEY", "tg_hunter2"), ("TOLLGATE__CANARY__MODEL", "m")];
    assert!(tollgate(&["canary", "--validate"], &set).status.success());
    let nowhere =
        [set[0], set[1], ("TOLLGATE__CANARY__BILLING", "http://127.0.0.1:1"), ("TOLLGATE__CANARY__BOUND_SECONDS", "1")];
    let output = tollgate(&["canary", "--once", "--json"], &nowhere);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["outcome"]), (Some(2), &"unread".into()), "{report:#}");
    assert!(!said(&output).contains("hunter2"), "{report:#}");
}

#[test]
fn dev_refuses_what_cannot_take_effect() {
    let output = tollgate(&["dev", "--validate"], &[("TOLLGATE__KAFKA__BROKERS", "127.0.0.1:1")]);
    let said = said(&output);
    assert!(
        !output.status.success() && said.contains("TOLLGATE__KAFKA__BROKERS") && said.contains("--kafka-port"),
        "{said}"
    );
}

#[test]
fn doctor_tells_programs_what_is_wrong_and_what_to_do() {
    let variables = [
        ("TOLLGATE__KAFKA__BROKERS", "127.0.0.1:1"),
        ("TOLLGATE__CLICKHOUSE__URL", "http://127.0.0.1:1"),
        ("TOLLGATE__GATEWAY__LISTEN", "127.0.0.1:1"),
        ("TOLLGATE__FOLD__LISTEN", "127.0.0.1:1"),
        ("TOLLGATE__BILLING__LISTEN", "127.0.0.1:1"),
    ];
    let output = tollgate(&["doctor", "--json"], &variables);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    let failures: Vec<_> = report["findings"].as_array().unwrap().iter().filter(|f| f["level"] == "fail").collect();
    for wanted in ["Kafka at 127.0.0.1:1", "ClickHouse at http://127.0.0.1:1"] {
        let finding = failures.iter().find(|f| f["found"].as_str().unwrap().contains(wanted));
        assert!(finding.is_some_and(|f| !f["remedy"].as_str().unwrap().is_empty()), "{wanted}: {report:#}");
    }
    let text = said(&tollgate(&["doctor"], &variables));
    assert!(text.contains("FAIL   Kafka at 127.0.0.1:1") && text.trim_end().ends_with("2 wrong"), "{text}");
}

#[test]
fn doctor_says_all_that_is_wrong_with_the_settings() {
    let output = tollgate(&["doctor"], &[("TOLLGATE__KAFKA__BROKERS", "x"), ("TOLLGATE__SPOOL__SLOTS", "0")]);
    let said = said(&output);
    assert!(!output.status.success() && said.contains("[kafka] brokers") && said.contains("[spool] slots"), "{said}");
}

#[test]
fn the_schemas_are_listed_and_keep_their_promise() {
    let listed = said(&tollgate(&["schemas", "list"], &[]));
    assert!(listed.contains("7001") && listed.contains("tollgate.v1.TokensCounted"), "{listed}");
    let checked = tollgate(&["schemas", "check"], &[]);
    assert!(checked.status.success(), "{}", said(&checked));
    let nobody = tollgate(&["schemas", "register", "--registry", "http://127.0.0.1:1"], &[]);
    assert!(!nobody.status.success() && said(&nobody).contains("refused"), "{}", said(&nobody));
}
