//! What must be nowhere: prompts, answers and keys, in no line of the log, no metric, no span and no record, whatever goes wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at what it did not expect")]

// The log is the whole process's, so this test has a process of its own; the world is that of the other tests.
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../gateway/collector.rs"]
mod collector;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../gateway/world.rs"]
mod world;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use embedded::vllm::SimulatorSettings;
use http::Method;
use serde_json::{Value, json};
use tracing_subscriber::fmt::MakeWriter;

use crate::collector::Collector;
use crate::world::{CHAT, COMPLETIONS, KEY, MODEL, Setup, World, chat, simulator, stream, until, whole};

/// In every prompt.
const PROMPT: &str = "xyzzyprompt";
/// In every key that is none.
const WRONG: &str = "tg_xyzzykey";
/// In the client's other headers and its address line, which are none of our business either.
const HEADER: &str = "xyzzyheader";

/// The log, as a test reads it.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The access log: the one line of a request.
    fn line(&self, id: &str) -> Value {
        let text = self.text();
        let lines = text.lines().filter(|line| line.contains("\"gateway::access\"") && line.contains(id));
        let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1, "{id}: {lines:?}");
        lines[0].clone()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

async fn everything_that_goes_wrong(world: &World) {
    for fault in [
        "refuse",
        "status:400",
        "status:404",
        "status:429",
        "status:500",
        "overload",
        "no_done:0",
        "no_done:3",
        "malformed:0",
        "malformed:3",
        "error_mid_stream:0",
        "error_mid_stream:3",
        "die_mid_stream:3",
        "reset_mid_stream:3",
        "stall:0:0",
        "stall:3:0",
        "abort:3",
        "no_usage",
    ] {
        let prompt = format!("{PROMPT} [[fault:{fault}]]");
        world.post(CHAT, &stream(&prompt, 9, true)).await;
        world.post(CHAT, &chat(&prompt, 9)).await;
    }
    let bearer = format!("Bearer {WRONG}");
    let many = json!({"model": MODEL, "prompt": [PROMPT, PROMPT], "max_tokens": 1_000_000}).to_string();
    let unknown = json!({"model": "unknown", "messages": [{"role": "user", "content": PROMPT}]}).to_string();
    let broken = format!("{{\"model\": \"{MODEL}\", \"messages\": [{{\"content\": \"{PROMPT}");
    let strange = format!("{{\"model\": \"{MODEL}\", \"max_tokens\": \"{PROMPT}\", \"messages\": \"{PROMPT}\"}}");
    for (path, key, body) in [
        (CHAT, KEY, broken.as_str()),
        (CHAT, KEY, &strange),
        (CHAT, KEY, &unknown),
        (CHAT, KEY, PROMPT),
        (COMPLETIONS, KEY, &many),
        (CHAT, WRONG, &unknown),
        (&format!("/v1/{HEADER}?key={WRONG}"), KEY, PROMPT),
        (&format!("{CHAT}?key={WRONG}"), KEY, PROMPT),
    ] {
        let headers = [("x-api-key", key), ("x-other", HEADER), ("user-agent", HEADER), ("cookie", HEADER)];
        whole(world.send(Method::POST, path, &headers, body.to_owned()).await).await;
    }
    whole(world.send(Method::POST, CHAT, &[("authorization", &bearer)], unknown).await).await;
    whole(world.send(Method::GET, "/v1/models", &[("authorization", &bearer)], "").await).await;
    // Clients that hang up.
    drop(world.open(CHAT, &stream(PROMPT, 5000, true)).await);
}

#[tokio::test]
async fn prompts_and_keys_are_nowhere_whatever_goes_wrong_at_whatever_level_of_the_log() {
    let log = Log::default();
    let lines = tracing_subscriber::fmt().json().flatten_event(true).with_max_level(tracing::Level::TRACE);
    tracing::subscriber::set_global_default(lines.with_writer(log.clone()).finish()).unwrap();
    let (replica, collector) = (simulator(SimulatorSettings::default()).await, Collector::start().await);
    let mut setup = Setup::new(&[&replica]);
    setup.telemetry.otlp.endpoint = Some(collector.endpoint());
    let (soon, deadlines) = (Duration::from_millis(200), &mut setup.settings.deadlines);
    (deadlines.first_byte, deadlines.whole_answer, deadlines.idle) = (soon, soon, soon);
    let world = setup.start().await;
    let good = world.post(CHAT, &chat(PROMPT, 3)).await;
    everything_that_goes_wrong(&world).await;
    until("all that was let in has its end", || world.metric("tollgate_gateway_requests_in_flight") == 0.0).await;
    let line = log.line(&good.id());
    for (field, value) in [
        ("tenant", json!("acme")),
        ("project", json!("search")),
        ("plan", json!("plan")),
        ("model", json!(MODEL)),
        ("endpoint", json!(CHAT)),
        ("status", json!(200)),
        ("reason", json!("complete")),
        ("output", json!(3)),
        ("attempts", json!(1)),
    ] {
        assert_eq!(line[field], value, "{field}: {line}");
    }
    let answer = good.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let (metrics, records) = (world.metrics.text(), world.records());
    world.stop().await;
    let spans = format!("{:?}", collector.spans());
    assert!(spans.contains(&good.id()), "it was traced");
    assert_eq!(line["trace"].as_str().unwrap().len(), 32);
    let records: Vec<u8> = records.into_iter().filter_map(|record| record.value).flatten().collect();
    let records = String::from_utf8_lossy(&records).into_owned();
    for (place, text) in [("log", log.text()), ("metrics", metrics), ("spans", spans), ("records", records)] {
        for secret in [PROMPT, WRONG, HEADER, KEY, &answer] {
            let found = text.lines().find(|line| line.contains(secret));
            assert_eq!(found, None, "{secret} is in the {place}");
        }
    }
}
