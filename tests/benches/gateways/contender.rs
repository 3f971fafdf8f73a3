//! What is measured: nothing in between, and each gateway as a process with one worker.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use promises::system::{MODELS, Role, System, free_port, root};
use promises::wait::until;

use crate::load::{Kind, run};

/// LiteLLM takes half a minute on a busy machine.
const START: Duration = Duration::from_secs(180);

/// Every contender, in the order of the tables.
pub(crate) const ALL: [&str; 5] = ["direct", "nginx", "vllm-router", "litellm", "tollgate"];

/// One of them, running.
pub(crate) struct Contender {
    pub name: &'static str,
    pub address: SocketAddr,
    pub key: Option<String>,
    /// None: there is no process of its own.
    pub pid: Option<u32>,
    child: Option<Child>,
}

impl Drop for Contender {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn bench_tools() -> PathBuf {
    let tools = root().join(".tools/bench");
    assert!(tools.join("litellm/version").exists(), "no gateways in .tools/bench: run deploy/local/gateways.sh");
    tools
}

/// As a plain reverse proxy, tuned as its users tune it: kept-alive connections on both sides, nothing buffered. One process,
/// so that none outlives the other.
fn nginx(dir: &Path, listen: SocketAddr, upstream: SocketAddr) -> Command {
    let dir = dir.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {dir}/nginx_{kind}; "))
        .concat();
    let text = format!(
        "master_process off; daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx.log warn; worker_rlimit_nofile 65536;\n\
         events {{ worker_connections 32768; }}\n\
         http {{ access_log off; {temporary}keepalive_requests 1000000000;\n\
         upstream engine {{ server {upstream}; keepalive 256; keepalive_requests 1000000000; }}\n\
         server {{ listen {listen} backlog=4096; location / {{ proxy_pass http://engine; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_buffering off; proxy_read_timeout 3600; }} }} }}\n"
    );
    let file = PathBuf::from(format!("{dir}/nginx.conf"));
    std::fs::write(&file, text).expect("a file");
    let fetched = bench_tools().join("nginx/usr/sbin/nginx");
    let mut command = Command::new(if fetched.exists() { fetched } else { "nginx".into() });
    command.arg("-c").arg(file).args(["-e", "stderr"]);
    command
}

fn vllm_router(listen: SocketAddr, upstream: SocketAddr) -> Command {
    let mut command = Command::new(bench_tools().join("vllm-router/bin/vllm-router"));
    command.args(["--host", "127.0.0.1", "--port", &listen.port().to_string()]);
    command.args(["--worker-urls", &format!("http://{upstream}"), "--policy", "round_robin", "--log-level", "error"]);
    command.args(["--prometheus-port", &free_port().to_string(), "--max-concurrent-requests", "32768"]);
    command
}

/// Without a database, without logs of spend.
fn litellm(dir: &Path, listen: SocketAddr, upstream: SocketAddr, key: &str) -> Command {
    let text = format!(
        "model_list:\n  - model_name: {}\n    litellm_params: {{ model: hosted_vllm/tiny-model, api_base: \"http://{upstream}/v1\", api_key: none }}\n\
         litellm_settings: {{ telemetry: false, drop_params: false, num_retries: 0, request_timeout: 60 }}\n\
         general_settings: {{ disable_spend_logs: true }}\n",
        MODELS[0]
    );
    let file = dir.join("litellm.yaml");
    std::fs::write(&file, text).expect("a file");
    let mut command = Command::new(bench_tools().join("litellm/bin/litellm"));
    command.arg("--config").arg(file).args(["--host", "127.0.0.1", "--port", &listen.port().to_string()]);
    command.args(["--num_workers", "1", "--telemetry", "False"]);
    command.env("LITELLM_MASTER_KEY", key).env("LITELLM_LOG", "ERROR").env("LITELLM_MODE", "PRODUCTION");
    command.env("LITELLM_LOCAL_MODEL_COST_MAP", "True").env("HF_HUB_OFFLINE", "1").env("NO_PROXY", "*");
    command
}

/// Starts one and waits until it answers. `key`: Tollgate's.
pub(crate) async fn start(name: &'static str, system: &System, upstream: SocketAddr, key: &str) -> Contender {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let dir = system.dir();
    let master = "sk-bench";
    let (mut command, key) = match name {
        "direct" => return Contender { name, address: upstream, key: None, pid: None, child: None },
        "tollgate" => {
            let address = system.url(Role::Gateway, "").trim_start_matches("http://").parse().expect("an address");
            let pid = Some(system.pid(Role::Gateway));
            return Contender { name, address, key: Some(key.to_owned()), pid, child: None };
        }
        "nginx" => (nginx(dir, listen, upstream), None),
        "vllm-router" => (vllm_router(listen, upstream), None),
        "litellm" => (litellm(dir, listen, upstream, master), Some(master.to_owned())),
        _ => panic!("no gateway is called {name}: there are {ALL:?}"),
    };
    let log = std::fs::File::create(dir.join(format!("{name}.log"))).expect("a log");
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
    embedded::die_with_parent(&mut command);
    let child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
    let contender = Contender { name, address: listen, key, pid: Some(child.id()), child: Some(child) };
    contender.wait(dir).await;
    contender
}

impl Contender {
    pub(crate) fn request(&self, kind: Kind) -> Vec<u8> {
        kind.request(MODELS[0], self.key.as_deref())
    }

    async fn wait(&self, dir: &Path) {
        println!("starting {} ...", self.name);
        until(&format!("{} to answer (see {})", self.name, dir.display()), START, async || {
            if std::net::TcpStream::connect(self.address).is_err() {
                return Err("it does not listen".to_owned());
            }
            let (address, request) = (self.address, self.request(Kind::Plain));
            let one = move || run(address, &request, Kind::Plain, 1, Duration::from_millis(1));
            let seen = tokio::task::spawn_blocking(one).await.map_err(|error| error.to_string())?;
            if seen.requests > 0 && seen.failed == 0 { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    }
}
