//! Real vLLM processes on free ports, and what each says of itself in its metrics.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use promises::client::Client;
use promises::system::{free_port, root};
use promises::wait::until;

/// A cold start on a busy machine reads gigabytes and compiles.
const START: Duration = Duration::from_secs(1800);
/// How long an engine may take to notice that nobody wants an answer any more.
const SETTLE: Duration = Duration::from_secs(120);

/// What an engine is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runs {
    /// Generates, and has an adapter.
    Generate,
    /// Embeds, ranks and scores.
    Pool,
}

/// One process. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Engine {
    child: Child,
    killed: bool,
    pub(crate) port: u16,
    log: PathBuf,
}

/// The counters that an engine bills itself by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Totals {
    pub(crate) prompt: u64,
    pub(crate) generated: u64,
}

impl std::ops::Sub for Totals {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        Self { prompt: self.prompt - before.prompt, generated: self.generated - before.generated }
    }
}

impl std::ops::Add for Totals {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { prompt: self.prompt + other.prompt, generated: self.generated + other.generated }
    }
}

fn tools() -> PathBuf {
    let tools = root().join(".tools/vllm");
    assert!(tools.join("sha256").exists(), "vLLM is not there: run make test-vllm, which fetches it");
    tools
}

impl Engine {
    /// Starts one and does not wait for it.
    pub(crate) fn spawn(name: &str, runs: Runs, logs: &Path) -> Self {
        let (tools, port) = (tools(), free_port());
        let log = logs.join(format!("vllm-{name}.log"));
        let out = std::fs::File::create(&log).unwrap();
        let mut command = Command::new(tools.join("env/bin/vllm"));
        command.arg("serve").arg(tools.join("models/tiny-llama"));
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--enforce-eager", "--max-model-len", "1024", "--dtype", "bfloat16", "--max-num-seqs", "32"]);
        match runs {
            Runs::Generate => {
                let adapter = format!("tiny-lora={}", tools.join("models/tiny-lora").display());
                command.args(["--served-model-name", "tiny-llama", "--enable-prompt-tokens-details"]);
                command.args(["--enable-lora", "--lora-modules", &adapter]);
                command.args(["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]);
                command.args(["--scheduling-policy", "priority"]);
            }
            Runs::Pool => {
                command.args(["--served-model-name", "tiny-embed", "--runner", "pooling", "--convert", "embed"]);
            }
        }
        for (name, value) in [
            ("HF_HUB_OFFLINE", "1"),
            ("TRANSFORMERS_OFFLINE", "1"),
            ("VLLM_NO_USAGE_STATS", "1"),
            ("DO_NOT_TRACK", "1"),
            ("VLLM_CPU_KVCACHE_SPACE", "1"),
            // A model this small gains nothing from compiling a part of it when a request first needs it, nor from more
            // threads; and a busy machine may take longer for a step than a healthy server does.
            ("TORCHDYNAMO_DISABLE", "1"),
            ("OMP_NUM_THREADS", "1"),
            ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
            ("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "3600"),
        ] {
            command.env(name, value);
        }
        command.env_remove("PYTHONDONTWRITEBYTECODE");
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        // It is several processes, in a group of their own; if this one is killed, the first of them ends the others.
        command.process_group(0);
        embedded::signal_with_parent(&mut command, libc::SIGTERM);
        let child = command.spawn().expect("vLLM's command starts");
        Self { child, killed: false, port, log }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns when it answers for its health.
    pub(crate) async fn ready(&mut self, client: &Client) {
        let url = format!("{}/health", self.url());
        until("vLLM to be ready", START, async || {
            if let Some(ended) = self.child.try_wait().unwrap() {
                let text = std::fs::read_to_string(&self.log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                panic!("vLLM ended: {ended}\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            }
            match client.get(&url, None).await {
                Ok(answer) if answer.status.is_success() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// kill -9 of all its processes.
    pub(crate) fn kill(&mut self) {
        let group = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: kill takes no pointers, and the group is ours.
        unsafe { libc::kill(-group, libc::SIGKILL) };
        self.child.wait().unwrap();
        self.killed = true;
    }

    /// What it has counted once it works on nothing any more.
    pub(crate) async fn settled(&self, client: &Client) -> Totals {
        let mut last = None;
        until("an engine to work on nothing", SETTLE, async || {
            let text = self.metrics(client).await;
            let busy = sum(&text, "vllm:num_requests_running") + sum(&text, "vllm:num_requests_waiting");
            let now = Totals {
                prompt: sum(&text, "vllm:prompt_tokens_total"),
                generated: sum(&text, "vllm:generation_tokens_total"),
            };
            // Twice the same with nothing to do: the counters follow the last step of the engine.
            let same = last.replace(now) == Some(now);
            if busy == 0 && same { Ok(now) } else { Err((busy, now)) }
        })
        .await
    }

    /// All that it says of itself.
    pub(crate) async fn metrics(&self, client: &Client) -> String {
        let url = format!("{}/metrics", self.url());
        // It closes connections that were not used for 5 s, maybe while one is.
        let answer = until("an engine's metrics", SETTLE, async || client.get(&url, None).await).await;
        String::from_utf8(answer.body.to_vec()).unwrap()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // One that has ended may have left others behind; one that was killed has not.
        if !self.killed {
            self.kill();
        }
    }
}

/// The sum of a metric over all of its labels.
fn sum(text: &str, name: &str) -> u64 {
    let of = |line: &str| {
        let rest = line.strip_prefix(name)?.strip_prefix('{')?;
        let value: f64 = rest.rsplit_once("} ")?.1.trim().parse().ok()?;
        Some(value as u64)
    };
    text.lines().filter_map(of).sum()
}
