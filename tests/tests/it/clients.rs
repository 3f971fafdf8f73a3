//! The official clients, unchanged: OpenAI's and Anthropic's for Python and JavaScript. Each runs a script of its own in
//! `tests/clients`, which ends with a failure at what it did not expect; what it was told is what is billed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use embedded::vllm::{Runner, Simulator, SimulatorSettings};
use promises::figures::{ByModel, Counts};
use promises::system::{MODELS, Role, System, root};
use promises::wait::until;
use serde_json::{Value, json};
use tokio::process::Command;

use promises::tenants::{models, put, tenant, usable};

const EMBEDDER: &str = "bge-m3";

const SCRIPTS: [&str; 4] = ["openai_client.py", "openai_client.mjs", "anthropic_client.py", "anthropic_client.mjs"];

/// Fast, but a stream of thousands of tokens is still running when its client hangs up.
const PACE_US: u64 = 2_000;

/// The longest that a script may take on a cold, busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// The tenant whose usage a script is told.
fn mine(script: &str) -> String {
    format!("mine-{}", script.replace(['_', '.'], "-"))
}

/// The scripts beside the packages that they import: Node looks for those in the folders above a script, nowhere else.
fn workplace(system: &System) -> PathBuf {
    let tools = root().join(".tools/clients");
    assert!(
        tools.join("locks.sha256").exists(),
        "the official clients are not in {}: run deploy/local/clients.sh, as make test does",
        tools.display()
    );
    let place = system.dir().join("clients");
    std::fs::create_dir(&place).expect("a folder");
    for file in std::fs::read_dir(root().join("tests/clients")).expect("the scripts") {
        let file = file.expect("a script");
        std::fs::copy(file.path(), place.join(file.file_name())).expect("a copy");
    }
    for packages in ["node_modules", "python"] {
        std::os::unix::fs::symlink(tools.join(packages), place.join(packages)).expect("a link");
    }
    place
}

/// Runs a script; gives what it said at its end.
async fn run(place: &Path, script: &str, given: &Value) -> Result<Value, String> {
    let mut command = Command::new(if script.ends_with(".py") { "python3" } else { "node" });
    // Nothing of this shell tells the clients where to go.
    command.env_clear().envs(std::env::var("PATH").map(|path| ("PATH", path)));
    command.env("PYTHONPATH", place.join("python")).env("TOLLGATE_TEST", given.to_string());
    command.arg(place.join(script)).current_dir(place).stdin(Stdio::null()).kill_on_drop(true);
    let done = tokio::time::timeout(PATIENCE, command.output()).await;
    let done = done.map_err(|_| format!("{script} does not end"))?.map_err(|error| format!("{script}: {error}"))?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    if !done.status.success() {
        return Err(format!("{script}: {}\n{said}{}", done.status, String::from_utf8_lossy(&done.stderr)));
    }
    let last = said.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|error| format!("{script} said {last:?}: {error}"))
}

/// A pooling model beside the two that every system has.
async fn embedder(system: &System) -> Simulator {
    let settings = SimulatorSettings {
        listen: ([127, 0, 0, 1], 0).into(),
        models: vec![EMBEDDER.to_owned()],
        runner: Runner::Pooling,
        ..SimulatorSettings::default()
    };
    let simulator = Simulator::start(settings).await.expect("a simulator");
    put(system, &format!("models/{EMBEDDER}"), &json!({"version": "v1", "served_name": EMBEDDER})).await;
    put(system, "replicas/bge-m3-1", &json!({"model": EMBEDDER, "url": simulator.url()})).await;
    simulator
}

/// The keys that a script is given, by what it is to see with them.
async fn keys(system: &System, script: &str, shared: &BTreeMap<&str, String>) -> BTreeMap<&'static str, String> {
    let slow = format!("slow-{}", mine(script));
    BTreeMap::from([
        ("mine", tenant(system, &mine(script), &json!({"name": "All"})).await),
        ("slow", tenant(system, &slow, &json!({"name": "Slow", "requests_per_minute": 1})).await),
        ("hasty", shared["hasty"].clone()),
        ("narrow", shared["narrow"].clone()),
        ("spent", shared["spent"].clone()),
        ("wrong", "tg_nobody".to_owned()),
    ])
}

/// Usage as a script was told it, as it is to be billed.
fn told(script: &str, said: &Value) -> ByModel {
    let number = |row: &Value, name: &str| row[name].as_u64().expect("a number");
    let rows = said["told"].as_object().expect("rows").iter();
    rows.map(|(model, row)| {
        let counts = Counts {
            input: number(row, "prompt"),
            output: number(row, "completion"),
            requests: number(row, "requests"),
            ..Counts::default()
        };
        ((mine(script), model.clone()), counts)
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn official_clients_work_unchanged_and_what_they_are_told_is_billed() {
    let system = System::start(PACE_US).await;
    models(&system).await;
    let _embedder = embedder(&system).await;
    let mut shared = BTreeMap::from([("hasty", tenant(&system, "hasty", &json!({"name": "Hasty"})).await)]);
    let narrow = json!({"name": "One model", "models": [MODELS[0]]});
    shared.insert("narrow", tenant(&system, "narrow", &narrow).await);
    shared.insert("spent", tenant(&system, "spent", &json!({"name": "Spent", "tokens_per_period": 1})).await);
    let place = workplace(&system);
    let mut given = Vec::new();
    for script in SCRIPTS {
        let keys = keys(&system, script, &shared).await;
        given.push((
            script,
            keys["mine"].clone(),
            json!({
                "url": system.url(Role::Gateway, ""), "models": [MODELS[0], MODELS[1], EMBEDDER], "keys": keys,
            }),
        ));
    }
    let known: Vec<String> = given.iter().map(|(_, key, _)| key.clone()).chain([shared["hasty"].clone()]).collect();
    usable(&system, &known).await;
    let url = system.url(Role::Gateway, &format!("/v1/models/{EMBEDDER}"));
    assert_eq!(system.client.get(&url, Some(&known[0])).await.unwrap().status.as_u16(), 200);

    let runs = given.iter().map(|(script, _, given)| run(&place, script, given));
    let ended = futures_util::future::join_all(runs).await;
    let failed: Vec<&String> = ended.iter().filter_map(|ended| ended.as_ref().err()).collect();
    assert!(failed.is_empty(), "{}", failed.iter().map(|words| words.as_str()).collect::<Vec<_>>().join("\n"));
    let said: Vec<(&str, Value)> = SCRIPTS.into_iter().zip(ended.into_iter().map(Result::unwrap)).collect();

    let hung_up: u64 = said.iter().map(|(_, said)| said["hung_up"].as_u64().unwrap()).sum();
    until("the engine to notice every client that hung up", Duration::from_secs(60), async || {
        let requests = system.simulators[MODELS[0]].requests();
        let gone = requests.iter().filter(|request| request.outcome == "client_gone").count() as u64;
        if gone == hung_up { Ok(()) } else { Err(gone) }
    })
    .await;
    let expected: ByModel = said.iter().flat_map(|(script, said)| told(script, said)).collect();
    until("what was told to be billed", Duration::from_secs(180), async || {
        let mut billed = system.raw().await;
        billed.retain(|(tenant, _), _| tenant.starts_with("mine-"));
        for counts in billed.values_mut() {
            // The clients add up what Anthropic keeps apart.
            *counts = Counts {
                input: counts.prompt(),
                output: counts.generated(),
                requests: counts.requests,
                ..Counts::default()
            };
        }
        if billed == expected { Ok(()) } else { Err((billed, expected.clone())) }
    })
    .await;
}
