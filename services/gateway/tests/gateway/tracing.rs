//! Traces: what a collector gets of a request, what a replica learns of it, and that nobody waits for a collector.

use std::time::Duration;

use embedded::vllm::{ArmedFault, SimulatorSettings, When};
use http::Method;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use crate::collector::{Collector, Noting, hex, said};
use crate::world::{Answer, CHAT, KEY, MODEL, Setup, World, chat, simulator, stream, until, whole};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT: &str = "b7ad6b7169203331";

fn traced(setup: &mut Setup, endpoint: String) {
    setup.telemetry.otlp.endpoint = Some(endpoint);
    setup.telemetry.otlp.interval = Duration::from_millis(20);
}

async fn ask(world: &World, body: &serde_json::Value, flags: &str) -> Answer {
    let (bearer, parent) = (format!("Bearer {KEY}"), format!("00-{TRACE}-{CLIENT}-{flags}"));
    let headers = [("authorization", bearer.as_str()), ("traceparent", &parent), ("tracestate", "vendor=1")];
    whole(world.send(Method::POST, CHAT, &headers, body.to_string()).await).await
}

/// The spans of one request, found by its id: the one for all of it, and those below it.
fn spans_of(collector: &Collector, id: &str) -> Option<(Span, Vec<Span>)> {
    let spans = collector.spans();
    let root = spans.iter().find(|span| said(span, "tollgate.request_id").as_deref() == Some(id))?.clone();
    let below = spans.into_iter().filter(|span| span.parent_span_id == root.span_id).collect();
    Some((root, below))
}

#[tokio::test]
async fn a_streamed_chat_with_a_retry_is_one_trace_from_the_client_to_the_replica() {
    let (bad, good) = (simulator(SimulatorSettings::default()).await, Noting::start().await);
    bad.arm(vec![ArmedFault { fault: "status:500".parse().unwrap(), when: When::Always, model: None }]);
    let collector = Collector::start().await;
    let mut setup = Setup::new(&[&bad]);
    setup.replicas.push(good.url());
    traced(&mut setup, collector.endpoint());
    let world = setup.start().await;
    let mut answer = ask(&world, &stream("hello", 2, false), "01").await;
    while world.recorded(&answer).finished.attempts < 2 {
        answer = ask(&world, &stream("hello", 2, false), "01").await;
    }
    until("the spans arrive", || spans_of(&collector, &answer.id()).is_some()).await;
    let (root, mut below) = spans_of(&collector, &answer.id()).unwrap();
    assert_eq!((root.name.as_str(), root.kind), (format!("chat {MODEL}").as_str(), SpanKind::Server as i32));
    assert_eq!((hex(&root.trace_id).as_str(), hex(&root.parent_span_id).as_str()), (TRACE, CLIENT));
    for (name, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", MODEL),
        ("gen_ai.response.model", MODEL),
        ("gen_ai.response.finish_reasons", "[stop]"),
        ("gen_ai.usage.input_tokens", "7"),
        ("gen_ai.usage.cache_read.input_tokens", "4"),
        ("gen_ai.usage.output_tokens", "2"),
        ("http.response.status_code", "200"),
        ("tollgate.tenant", "acme"),
        ("tollgate.project", "search"),
        ("tollgate.plan", "plan"),
        ("tollgate.end_reason", "complete"),
        ("tollgate.attempts", "2"),
    ] {
        assert_eq!(said(&root, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(said(&root, "error.type"), None);
    assert_eq!(root.events.iter().map(|event| event.name.as_str()).collect::<Vec<_>>(), ["first token"]);
    below.sort_by_key(|span| span.start_time_unix_nano);
    let names: Vec<_> = below.iter().map(|span| (span.name.as_str(), said(span, "error.type"))).collect();
    assert_eq!(names, [("wait", None), ("attempt", Some("failed".into())), ("attempt", None)]);
    assert_eq!([1, 2].map(|at| said(&below[at], "tollgate.replica").unwrap()), ["r0", "r1"]);
    assert!(
        below.iter().all(|span| hex(&span.trace_id) == TRACE && span.end_time_unix_nano <= root.end_time_unix_nano)
    );
    // The replica learns of the attempt that it is.
    let parent = format!("00-{TRACE}-{}-01", hex(&below[2].span_id));
    let seen = good.seen();
    let last = seen.last().unwrap();
    assert_eq!(
        (last["traceparent"].to_str().unwrap(), last["tracestate"].to_str().unwrap()),
        (parent.as_str(), "vendor=1")
    );
    world.stop().await;
}

#[tokio::test]
async fn refusals_and_failures_are_spans_too_and_what_the_client_left_out_of_its_trace_stays_out() {
    let (bad, collector) = (simulator(SimulatorSettings::default()).await, Collector::start().await);
    bad.arm(vec![ArmedFault { fault: "refuse".parse().unwrap(), when: When::Always, model: None }]);
    let mut setup = Setup::new(&[&bad]);
    traced(&mut setup, collector.endpoint());
    let world = setup.start().await;
    // Not sampled by its client: nothing of it is exported, and those that follow show that it was not merely late.
    let unsampled = ask(&world, &chat("hello", 2), "00").await;
    let failed = ask(&world, &chat("hello", 2), "01").await;
    let refused = whole(world.send(Method::POST, CHAT, &[("authorization", "Bearer tg_wrong")], "{}").await).await;
    assert_eq!((failed.status.as_u16(), refused.status.as_u16()), (502, 401));
    until("the spans arrive", || collector.spans().iter().any(|span| span.name == "chat refused")).await;
    let (root, below) = spans_of(&collector, &failed.id()).unwrap();
    assert_eq!((said(&root, "error.type").as_deref(), root.status.unwrap().code), (Some("upstream_error"), 2));
    assert_eq!(said(&below[1], "error.type").as_deref(), Some("broken"));
    assert_eq!(spans_of(&collector, &unsampled.id()).map(|(root, _)| root.name), None);
    let spans = collector.spans();
    let refused = spans.iter().find(|span| span.name == "chat refused").unwrap();
    assert_eq!(said(refused, "error.type").as_deref(), Some("invalid_api_key"));
    assert!(refused.parent_span_id.is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_ratio_of_nothing_exports_nothing_and_a_replica_still_learns_of_the_clients_trace() {
    let (replica, collector) = (Noting::start().await, Collector::start().await);
    let mut setup = Setup::new(&[]);
    setup.replicas.push(replica.url());
    traced(&mut setup, collector.endpoint());
    (setup.telemetry.otlp.sampling_ratio, setup.telemetry.otlp.follow_clients) = (0.0, false);
    let world = setup.start().await;
    ask(&world, &stream("hello", 2, false), "01").await;
    let parent = replica.seen()[0]["traceparent"].to_str().unwrap().to_owned();
    assert!(parent.starts_with(&format!("00-{TRACE}-")) && parent.ends_with("-00"), "{parent}");
    world.stop().await;
    assert_eq!(collector.spans().len(), 0, "a stop sends all that there is");
}

#[tokio::test]
async fn without_a_collector_setting_a_clients_trace_goes_on_to_the_replica_as_it_came() {
    let replica = Noting::start().await;
    let mut setup = Setup::new(&[]);
    setup.replicas.push(replica.url());
    let world = setup.start().await;
    ask(&world, &stream("hello", 2, false), "01").await;
    assert_eq!(replica.seen()[0]["traceparent"], format!("00-{TRACE}-{CLIENT}-01").as_str());
    world.post(CHAT, &stream("hello", 2, false)).await;
    assert!(replica.seen()[1].get("traceparent").is_none());
    world.stop().await;
}

#[tokio::test]
async fn a_stop_sends_what_waits_and_a_collector_that_is_away_holds_up_nobody() {
    let (replica, collector) = (simulator(SimulatorSettings::default()).await, Collector::start().await);
    let mut setup = Setup::new(&[&replica]);
    traced(&mut setup, collector.endpoint());
    // Far beyond the test: only the stop can send them.
    setup.telemetry.otlp.interval = Duration::from_secs(60);
    let world = setup.start().await;
    for _ in 0..3 {
        world.post(CHAT, &chat("hello", 2)).await;
    }
    assert_eq!(collector.spans().len(), 0);
    world.stop().await;
    assert_eq!(collector.spans().len(), 3 * 3, "request, wait and attempt");

    let mut setup = Setup::new(&[&replica]);
    // A port that nobody listens on, and room for two spans.
    traced(&mut setup, "http://127.0.0.1:1".into());
    setup.telemetry.otlp.queue = 2;
    let world = setup.start().await;
    let metrics = world.metrics.clone();
    let counted = |outcome: &str| {
        let line = format!("tollgate_traces_spans_total{{outcome=\"{outcome}\"}} ");
        metrics.text().lines().find_map(|found| found.strip_prefix(&line)?.parse::<u64>().ok()).unwrap_or(0)
    };
    // Until the first batch is on its way, and waits for its next try, there is room.
    let mut asked = 0;
    while counted("dropped") == 0 {
        assert_eq!(world.post(CHAT, &chat("hello", 2)).await.status, 200);
        asked += 1;
        assert!(asked < 10_000, "there is always room");
    }
    world.stop().await;
    assert_eq!(counted("dropped") + counted("failed"), asked * 3, "each span is counted once");
}
