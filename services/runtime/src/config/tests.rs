//! What people do to configuration files and variables, and what they are told.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use serde::Deserialize;

use super::*;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct All {
    server: Server,
    kafka: Kafka,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Server {
    port: u16,
    tls: bool,
    hosts: Vec<String>,
    weights: Vec<u32>,
    #[serde(with = "duration")]
    timeout: Duration,
    #[serde(with = "byte_size")]
    room: u64,
    mode: Mode,
    password: Secret,
    limit: Option<i64>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            port: 8080,
            tls: false,
            hosts: Vec::new(),
            weights: Vec::new(),
            timeout: Duration::from_secs(1),
            room: 1,
            mode: Mode::Soft,
            password: Secret::default(),
            limit: None,
        }
    }
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Soft,
    Hard,
}

#[derive(Debug, Default, Deserialize)]
struct Kafka {
    brokers: String,
    #[serde(default)]
    properties: BTreeMap<String, String>,
}

impl Validate for All {
    fn validate(&self) -> Vec<String> {
        let wrong = self.server.tls && self.server.port == 80;
        within(
            "server",
            wrong.then(|| "tls does not go with port 80; choose another port".to_owned()).into_iter().collect(),
        )
    }
}

fn with(toml: &str, variables: &[(&str, &str)]) -> Result<All, String> {
    let path = std::env::temp_dir().join(format!("tollgate-config-{}.toml", uuid::Uuid::new_v4()));
    std::fs::File::create(&path).unwrap().write_all(toml.as_bytes()).unwrap();
    let variables: Vec<_> = variables.iter().map(|(k, v)| (OsString::from(k), OsString::from(v))).collect();
    let loaded = load_from(Some(&path), variables);
    std::fs::remove_file(&path).unwrap();
    loaded.map_err(|e| e.to_string().replace(&path.display().to_string(), "FILE"))
}

#[test]
fn file_then_variables_by_the_wanted_type() {
    let all = with(
        "[server]\nport = 81\nhosts = [\"a\"]\ntimeout = \"300ms\"\nroom = \"2KiB\"\nmode = \"hard\"\n[kafka]\nbrokers = \"x:1\"\n\
         [kafka.properties]\n\"security.protocol\" = \"ssl\"",
        &[
            ("TOLLGATE__SERVER__PORT", "9000"),
            ("TOLLGATE__SERVER__TLS", "true"),
            ("TOLLGATE__SERVER__HOSTS", "b, c"),
            ("TOLLGATE__SERVER__WEIGHTS", "1,2"),
            ("TOLLGATE__SERVER__LIMIT", "-5"),
            ("TOLLGATE__SERVER__PASSWORD", "12345"),
            ("TOLLGATE__SERVER__MODE", ""),
            ("TOLLGATE_CONFIG", "elsewhere"),
            ("PATH", "/bin"),
        ],
    )
    .unwrap();
    assert_eq!((all.server.port, all.server.tls, all.server.limit), (9000, true, Some(-5)));
    assert_eq!((all.server.hosts, all.server.weights), (vec!["b".to_owned(), "c".into()], vec![1, 2]));
    assert_eq!((all.server.timeout, all.server.room, all.server.mode), (Duration::from_millis(300), 2048, Mode::Hard));
    assert_eq!(
        (all.server.password.expose(), format!("{:?}", all.server.password)),
        ("12345", "Secret(set)".to_owned())
    );
    assert_eq!(all.kafka.brokers, "x:1");
    assert_eq!(all.kafka.properties.get("security.protocol").map(String::as_str), Some("ssl"));
}

#[test]
fn nothing_given_is_the_defaults() {
    let all: All = load_from(None, []).unwrap();
    assert_eq!(all.server.port, 8080);
}

#[test]
fn everything_wrong_is_said_at_once() {
    let said = with(
        "[server]\nport = \"no\"\ntls = 1\nhosts = [1]\ntimeout = \"5 weeks\"\nroom = \"1GB\"\nmode = \"firm\"\ncolour = 1\n[sevrer]\nport = 1\n[kafka]\n",
        &[
            ("TOLLGATE__SERVER__LIMIT", "many"),
            ("TOLLGATE__SERVER__COLOR", "x"),
            ("TOLLGATE_SERVER__PORT", "1"),
            ("TOLLGATE__", "1"),
        ],
    )
    .unwrap_err();
    for wanted in [
        "[server] port: expected u16, found a string",
        "[server] tls: expected a boolean, found an integer",
        "[server] hosts.0: expected a string, found an integer",
        "[server] timeout: \"5 weeks\" is not a duration; write a whole number and us, ms, s, m, h or d, e.g. \"300ms\"",
        "[server] room: \"1GB\" is not a size",
        "[server] mode: unknown variant `firm`, expected `soft` or `hard`",
        "[server] limit (from the variable TOLLGATE__SERVER__LIMIT): the variable's text is not a whole number",
        "[server] colour: there is no such setting",
        "[server] color (from the variable TOLLGATE__SERVER__COLOR): there is no such setting",
        "[sevrer]: there is no such section",
        "[kafka] brokers: is missing; set it in the file, or as the variable TOLLGATE__KAFKA__BROKERS",
        "the variable TOLLGATE_SERVER__PORT: is not a setting",
        "the variable TOLLGATE__: is not a setting",
    ] {
        assert!(said.contains(wanted), "{wanted}\n--- is not in\n{said}");
    }
    assert!(said.starts_with("13 problems in the configuration (FILE and the environment):"), "{said}");
}

#[test]
fn cross_field_checks_come_last_and_name_their_section() {
    let said = with("[server]\nport = 80\ntls = true\nextra = 1", &[]).unwrap_err();
    assert!(said.contains("[server] tls does not go with port 80"), "{said}");
    assert!(said.contains("[server] extra: there is no such setting"), "{said}");
}

#[test]
fn secrets_never_show_in_errors() {
    for toml in [
        "[server]\npassword = \"hunter2",
        "[server]\npassword = [\"hunter2\"]",
        "[server]\nport = \"hunter2\"",
        "password = hunter2",
        "[server]\npassword = \"a\"\npassword = \"hunter2\"",
    ] {
        let said = with(toml, &[("TOLLGATE__SERVER__WEIGHTS", "hunter2")]).unwrap_err();
        assert!(!said.contains("hunter2"), "{said}");
    }
    let said = with("[server]\npassword = \"hunter2", &[]).unwrap_err();
    assert!(said.contains("not valid TOML: TOML parse error at line 2"), "{said}");
}

#[test]
fn a_missing_file_says_what_to_do() {
    let said = load_from::<All>(Some(Path::new("/no/such/file.toml")), []).unwrap_err().to_string();
    assert!(said.contains("/no/such/file.toml") && said.contains("--config"), "{said}");
}

#[test]
fn durations_come_back() {
    for text in ["300ms", "2s", "5m", "36h", "1d", "1500us", "0s"] {
        assert_eq!(duration::format(duration::parse(text).unwrap()), text);
    }
    for text in ["", "5", "s", "-1s", "1.5s", "99999999999999999999d", "9999999999999d"] {
        assert!(duration::parse(text).is_err(), "{text}");
    }
}
