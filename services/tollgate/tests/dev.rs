//! `tollgate dev` on real Kafka and ClickHouse: what dies is started again, a killed dev takes all with it and loses nothing,
//! and a stop is clean.

#![expect(clippy::unwrap_used, reason = "a test stops at what it cannot read; its helpers are not #[test] functions")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take on a cold, busy machine.
const LONG: Duration = Duration::from_secs(120);

/// A `tollgate dev` and what it says.
struct Dev {
    child: Child,
    output: PathBuf,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

fn tools() -> PathBuf {
    let tools = root().join(".tools");
    assert!(tools.join("kafka/lib").is_dir() && tools.join("chdb/libchdb.so").is_file(), "run make setup");
    tools
}

impl Dev {
    fn start(data: &Path, output: &str, more: &[&str]) -> Self {
        let output = data.parent().unwrap().join(output);
        let file = File::create(&output).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.arg("dev").arg("--data-dir").arg(data).arg("--tools-dir").arg(tools()).args(["--ports-from", "0"]);
        command.args(more).current_dir(data.parent().unwrap()).stdin(Stdio::null());
        command.env_remove("TOLLGATE_CONFIG").stdout(file.try_clone().unwrap()).stderr(file);
        Self { child: command.spawn().unwrap(), output }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap()
    }

    /// Waits until `seen` holds of what it said.
    fn until(&mut self, what: &str, seen: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + LONG;
        while !seen(&self.said()) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "dev ended ({ended:?}) before {what}:\n{}", self.said());
            assert!(Instant::now() < deadline, "{what} did not come:\n{}", self.said());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn up(&mut self) {
        self.until("the table", |said| said.contains("is up"));
    }

    /// Its children, by what they are.
    fn children(&self) -> Vec<(u32, String)> {
        children_of(self.child.id())
    }

    fn child(&self, what: &str) -> Option<u32> {
        self.children().into_iter().find(|(_, command)| command.contains(what)).map(|(pid, _)| pid)
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.said());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// A test that fails leaves nothing behind: children die with their parent.
impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn children_of(parent: u32) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // PID (name) STATE PARENT ...
        let Some((_, fields)) = stat.rsplit_once(')') else { continue };
        if fields.split_whitespace().nth(1) != Some(&parent.to_string()) {
            continue;
        }
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        found.push((pid, String::from_utf8_lossy(&command).replace('\0', " ")));
    }
    found
}

fn is_alive(pid: u32) -> bool {
    // A zombie is as good as gone.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| !fields.trim_start().starts_with('Z'))
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// A value of the settings that dev wrote.
fn setting(data: &Path, section: &str, key: &str) -> String {
    let table: toml::Table = std::fs::read_to_string(data.join("config.toml")).unwrap().parse().unwrap();
    table[section][key].as_str().unwrap().to_owned()
}

/// Asks and returns the answer, head and all; a chunked body is left as it is.
fn ask(address: &str, request: &str, key: &str, body: &str) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    let length = body.len();
    let head = format!(
        "{request} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n"
    );
    socket.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

/// Whether billing says this usage of the demo tenant, to the tenant's own key.
fn used(data: &Path, input: u64, output: u64, requests: u64) -> bool {
    let answer = ask(&setting(data, "billing", "listen"), "GET /api/v1/usage?tenant=demo", "tg_demo", "");
    let wanted = format!(r#""input":{input},"cached_input":0,"output":{output},"reasoning":0,"requests":{requests}"#);
    answer.contains(&wanted)
}

/// Chats through the gateway: 12 tokens in, 5 out.
fn chat(data: &Path) {
    let body = r#"{"model": "llama-3.1-8b", "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}"#;
    let answer = ask(&setting(data, "gateway", "listen"), "POST /v1/chat/completions", "tg_demo", body);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains(r#""prompt_tokens":12"#) && answer.contains(r#""completion_tokens":5"#), "{answer}");
}

fn doctor(data: &Path) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.arg("doctor").arg("--config").arg(data.join("config.toml")).current_dir(data.parent().unwrap());
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn what_dies_comes_back_a_killed_dev_loses_nothing_and_a_stop_is_clean() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");

    let mut dev = Dev::start(&data, "first", &[]);
    dev.up();
    let (well, found) = doctor(&data);
    assert!(well, "{found}");
    assert!(
        found.contains("every model has a price")
            && found.contains("the canary")
            && found.contains("replica sim-mistral"),
        "{found}"
    );

    chat(&data);
    until("the usage", || used(&data, 12, 5, 1));
    until("the canary's first round", || doctor(&data).1.contains("is billed as it is answered"));

    // A second dev on the same data.
    let mut second = Dev::start(&data, "second", &[]);
    assert!(!second.wait().success());
    let refused = second.said();
    assert!(refused.contains(&format!("process {}", dev.child.id())) && refused.contains("--data-dir"), "{refused}");

    // A child that is killed.
    let killed = dev.child("embedded-clickhouse").unwrap();
    signal(killed, "-KILL");
    dev.until("word of the death", |said| said.contains("! clickhouse was killed by signal 9; starting it again"));
    until("another ClickHouse", || dev.child("embedded-clickhouse").is_some_and(|pid| pid != killed));
    until("all to be well again", || doctor(&data).0);

    // Dev itself is killed, with all that it started, the moment an answer is here.
    chat(&data);
    let children = dev.children();
    signal(dev.child.id(), "-KILL");
    assert!(children.len() == 9, "{children:?}");
    dev.wait();
    until("the children's end", || children.iter().all(|(pid, _)| !is_alive(*pid)));

    // The next start finds what was there, loses and writes nothing twice, and stops cleanly.
    let mut again = Dev::start(&data, "again", &[]);
    again.up();
    let (well, found) = doctor(&data);
    assert!(well, "{found}");
    assert!(found.contains("2 tenants, 2 keys, 2 models, 2 replicas"), "{found}");
    until("both requests, once each", || used(&data, 24, 10, 2));
    let children = again.children();
    signal(again.child.id(), "-TERM");
    let ended = again.wait();
    let said = again.said();
    assert!(ended.success() && said.contains("Stopped in"), "{ended}: {said}");
    assert!(!said.contains("is killed"), "every part stopped by itself: {said}");
    assert!(children.iter().all(|(pid, _)| !is_alive(*pid)), "{children:?}");
}

#[test]
fn a_port_in_the_way_is_named_with_its_holder() {
    let folder = tempfile::tempdir().unwrap();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port().to_string();
    let mut dev = Dev::start(&folder.path().join("data"), "output", &["--kafka-port", &port]);
    assert!(!dev.wait().success());
    let said = dev.said();
    let holder = format!("port {port} for Kafka is taken by process {}", std::process::id());
    assert!(said.contains(&holder) && said.contains("--kafka-port PORT"), "{said}");
}
