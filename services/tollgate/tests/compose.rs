//! The compose file is held to the binary: every role in it is a subcommand, and takes the settings that it is given there.

#![expect(clippy::unwrap_used, reason = "a test stops at what it cannot read; its helpers are not #[test] functions")]
#![expect(clippy::panic, reason = "a helper fails its test with what it saw")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_yaml_ng::{Mapping, Value};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn read(name: &str) -> Value {
    let text = std::fs::read_to_string(root().join(name)).unwrap();
    let mut yaml: Value = serde_yaml_ng::from_str(&text).unwrap();
    yaml.apply_merge().unwrap();
    yaml
}

fn services(of: &Value) -> BTreeMap<String, Mapping> {
    let services = of["services"].as_mapping().unwrap();
    services.iter().map(|(name, service)| (text(name), service.as_mapping().unwrap().clone())).collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => panic!("{other:?} is no text"),
    }
}

fn texts(service: &Mapping, key: &str) -> Vec<String> {
    service.get(key).and_then(Value::as_sequence).map(|all| all.iter().map(text).collect()).unwrap_or_default()
}

/// `${NAME:-default}` becomes the default, `${NAME:?why}` a value, as if it were set.
fn filled(value: &str) -> String {
    let Some((before, rest)) = value.split_once("${") else { return value.to_owned() };
    let (variable, after) = rest.split_once('}').unwrap();
    let put = match (variable.split_once(":-"), variable.split_once(":?")) {
        (Some((_, default)), _) => default,
        // What is demanded today is the hash of a key.
        (None, Some(_)) => "5e884898da28047151d0e56f8dc6292773603d0d6aabbd62a11ef721d1542d8e",
        (None, None) => panic!("${{{variable}}} is neither given a default nor demanded"),
    };
    format!("{before}{put}{}", filled(after))
}

/// The file of the repository that a container sees at `path`.
fn mounted(service: &Mapping, path: &str) -> PathBuf {
    let volumes = texts(service, "volumes");
    let of = |volume: &String| {
        let mut parts = volume.split(':');
        let (here, there) = (parts.next().unwrap().to_owned(), parts.next().unwrap().to_owned());
        (there == path).then_some(here)
    };
    let here = volumes.iter().find_map(of).unwrap_or_else(|| panic!("nothing is mounted at {path}: {volumes:?}"));
    root().join(here)
}

#[test]
fn every_role_takes_the_settings_that_it_is_given() {
    let mut roles = Vec::new();
    for (name, service) in services(&read("docker-compose.yml")) {
        if !service.get("image").is_some_and(|image| text(image).starts_with("tollgate:")) {
            continue;
        }
        let command = texts(&service, "command");
        let mut tollgate = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        tollgate.args(&command).arg("--validate").env_clear();
        for (variable, value) in service["environment"].as_mapping().unwrap() {
            let (variable, value) = (text(variable), filled(&text(value)));
            match variable.as_str() {
                "TOLLGATE_CONFIG" => tollgate.env(variable, mounted(&service, &value)),
                _ => tollgate.env(variable, value),
            };
        }
        let output = tollgate.output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        roles.push(command[0].clone());
    }
    roles.sort();
    assert_eq!(roles, ["billing", "canary", "fold", "gateway", "migrate"]);
}

#[test]
fn services_and_files_that_are_named_are_there() {
    let main = read("docker-compose.yml");
    let all = services(&main);
    let volumes = main["volumes"].as_mapping().unwrap();
    for (name, service) in &all {
        for other in service.get("depends_on").and_then(Value::as_mapping).into_iter().flat_map(Mapping::keys) {
            assert!(all.contains_key(&text(other)), "{name} depends on {other:?}");
        }
        for volume in texts(service, "volumes") {
            let here = volume.split(':').next().unwrap();
            let known = if here.starts_with('.') { root().join(here).exists() } else { volumes.contains_key(here) };
            assert!(known, "{name}: {volume}");
        }
        if let Some(build) = service.get("build") {
            assert!(root().join(text(&build["dockerfile"])).is_file(), "{name}: {build:?}");
        }
    }
    let gpu = services(&read("deploy/compose.gpu.yml"));
    assert!(!gpu.is_empty() && gpu.keys().all(|name| all.contains_key(name)), "{gpu:?}");
}
