//! The registry's read API over the wire, as clients of Confluent's registry meet it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

use std::net::SocketAddr;
use std::time::Duration;

use runtime::Shutdown;
use schemas::registry::{SCHEMAS, SchemaVersion};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// An answer's status and its body as JSON.
type Answer = (u16, Value);

async fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> Answer {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: registry\r\nconnection: close\r\naccept: application/vnd.schemaregistry.v1+json\r\n\
         content-type: application/vnd.schemaregistry.v1+json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/vnd.schemaregistry.v1+json"), "{method} {path}: {answer}");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|_| panic!("{method} {path}: {answer}")))
}

/// Serves `schemas` while `client` asks.
async fn with_registry<F: Future<Output = ()>>(
    schemas: &'static [SchemaVersion],
    client: impl FnOnce(SocketAddr) -> F,
) {
    let listener = runtime::http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), Shutdown::new());
    let server =
        runtime::http::serve(listener, embedded::registry::router(schemas), stop.clone(), Duration::from_secs(5));
    let asking = async {
        client(address).await;
        stop.trigger();
    };
    let (served, ()) = tokio::join!(server, asking);
    served.unwrap();
}

fn described(schema: &SchemaVersion) -> Value {
    json!({"subject": schema.subject, "version": schema.version, "id": schema.id, "schema": schema.text})
}

#[tokio::test]
async fn every_schema_is_found_by_its_id_its_subject_and_its_text() {
    with_registry(SCHEMAS, async |registry| {
        let get = async |path: String| ask(registry, "GET", &path, "").await;
        let (status, subjects) = get("/subjects".to_owned()).await;
        let mut expected: Vec<_> = SCHEMAS.iter().map(|schema| schema.subject).collect();
        expected.sort_unstable();
        expected.dedup();
        assert_eq!((status, subjects), (200, json!(expected)));
        assert!(!SCHEMAS.is_empty());
        for schema in SCHEMAS {
            let SchemaVersion { id, subject, version, text, .. } = schema;
            assert_eq!(get(format!("/schemas/ids/{id}")).await, (200, json!({"schema": text})));
            let parsed: Value = serde_json::from_str(text).unwrap();
            assert_eq!(get(format!("/schemas/ids/{id}/schema")).await, (200, parsed));
            let found = json!([{"subject": subject, "version": version}]);
            assert_eq!(get(format!("/schemas/ids/{id}/versions")).await, (200, found));
            assert_eq!(get(format!("/subjects/{subject}/versions/{version}")).await, (200, described(schema)));
            let (status, versions) = get(format!("/subjects/{subject}/versions")).await;
            assert!(status == 200 && versions.as_array().unwrap().contains(&json!(version)), "{subject}");
            // What a serializer does at its start: register, which finds what is there, or look it up.
            let posted = json!({"schema": text}).to_string();
            let registered = ask(registry, "POST", &format!("/subjects/{subject}/versions"), &posted).await;
            assert_eq!(registered, (200, json!({"id": id})));
            let found = ask(registry, "POST", &format!("/subjects/{subject}"), &posted).await;
            assert_eq!(found, (200, described(schema)));
        }
    })
    .await;
}

const FIRST: SchemaVersion =
    SchemaVersion { id: 7, subject: "a-value", version: 1, name: "A", text: r#"{"type": "string"}"# };
const SECOND: SchemaVersion = SchemaVersion { id: 8, version: 2, text: r#"{"type": "bytes"}"#, ..FIRST };

#[tokio::test]
async fn versions_count_up_and_latest_is_the_last() {
    with_registry(&[SECOND, FIRST], async |registry| {
        let get = async |path: &str| ask(registry, "GET", path, "").await;
        assert_eq!(get("/subjects").await, (200, json!(["a-value"])));
        assert_eq!(get("/subjects?subjectPrefix=b").await, (200, json!([])));
        assert_eq!(get("/subjects/a-value/versions").await, (200, json!([1, 2])));
        assert_eq!(get("/subjects/a-value/versions/1").await, (200, described(&FIRST)));
        for latest in ["latest", "-1", "2"] {
            assert_eq!(get(&format!("/subjects/a-value/versions/{latest}")).await, (200, described(&SECOND)));
        }
        assert_eq!(get("/config").await, (200, json!({"compatibilityLevel": "FULL"})));
        assert_eq!(get("/mode").await, (200, json!({"mode": "READONLY"})));
    })
    .await;
}

#[tokio::test]
async fn what_is_not_there_or_not_allowed_has_the_registrys_own_code() {
    with_registry(&[FIRST], async |registry| {
        let other = json!({"schema": "\"long\""}).to_string();
        for (method, path, body, status, code) in [
            ("GET", "/subjects/b-value/versions", "", 404, 40401),
            ("GET", "/subjects/b-value/versions/1", "", 404, 40401),
            ("GET", "/subjects/a-value/versions/2", "", 404, 40402),
            ("GET", "/subjects/a-value/versions/0", "", 422, 42202),
            ("GET", "/subjects/a-value/versions/first", "", 422, 42202),
            ("GET", "/subjects/a-value/versions/99999999999", "", 422, 42202),
            ("GET", "/schemas/ids/9", "", 404, 40403),
            ("GET", "/schemas/ids/x", "", 404, 40403),
            ("GET", "/nowhere", "", 404, 404),
            ("PATCH", "/subjects", "", 405, 405),
            ("POST", "/subjects/a-value", &other, 404, 40403),
            ("POST", "/subjects/b-value", &other, 404, 40401),
            ("POST", "/subjects/a-value/versions", &other, 422, 42205),
            ("POST", "/subjects/a-value/versions", "{}", 422, 42201),
            ("POST", "/subjects/a-value/versions", "no json", 422, 42201),
            ("DELETE", "/subjects/a-value", "", 422, 42205),
            ("DELETE", "/subjects/a-value/versions/1", "", 422, 42205),
            ("PUT", "/mode/a-value", "{\"mode\": \"IMPORT\"}", 422, 42205),
            ("PUT", "/config", "{\"compatibility\": \"NONE\"}", 422, 42205),
            ("GET", "/config/a-value", "", 404, 40408),
        ] {
            let (got, answer) = ask(registry, method, path, body).await;
            assert_eq!((got, &answer["error_code"]), (status, &json!(code)), "{method} {path}: {answer}");
            assert!(answer["message"].as_str().is_some_and(|why| !why.is_empty()), "{method} {path}: {answer}");
        }
    })
    .await;
}
