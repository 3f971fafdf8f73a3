//! Registration against the embedded read API, and against a double that takes imports as Confluent's registry does over HTTP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};

use super::*;

const FOREIGN: SchemaVersion = SchemaVersion {
    id: 1,
    subject: "a-value",
    version: 1,
    name: "A",
    text: r#"{"type": "record", "name": "A", "fields": [{"name": "x", "type": "long"}]}"#,
};

/// Serves `router` while `asking` asks it.
async fn against<F: Future<Output = ()>>(router: Router, asking: impl FnOnce(String) -> F) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stop = runtime::Shutdown::new();
    let serving = runtime::http::serve(listener, router, stop.clone(), LIMIT);
    let asking = async {
        asking(url).await;
        stop.trigger();
    };
    let (served, ()) = tokio::join!(serving, asking);
    served.unwrap();
}

#[tokio::test]
async fn a_registry_that_has_them_all_is_left_alone_and_a_clash_is_refused() {
    against(embedded::registry::router(SCHEMAS), async |url| {
        let said = register(SCHEMAS, &url).await.unwrap();
        assert!(said.starts_with("0 schemas imported"), "{said}");
        // A read-only registry refuses what it does not have, in words.
        let foreign = [SchemaVersion { subject: "other-value", id: 9, ..FOREIGN }];
        let said = register(&foreign, &url).await.unwrap_err();
        assert!(said.contains("answered 422") || said.contains("answered 405"), "{said}");
        let clash = [SchemaVersion { id: SCHEMAS[0].id, ..FOREIGN }];
        let said = register(&clash, &url).await.unwrap_err();
        assert!(said.contains("another schema with the id") && said.contains("Nothing was changed"), "{said}");
    })
    .await;
}

/// What the double keeps.
#[derive(Default)]
struct Kept {
    schemas: BTreeMap<(String, u64), (u64, String)>,
    modes: BTreeMap<String, String>,
}

type Double = State<Arc<Mutex<Kept>>>;
type Answered = (StatusCode, Json<Value>);

fn not_found(code: u32) -> Answered {
    (StatusCode::NOT_FOUND, Json(json!({"error_code": code})))
}

async fn take(State(kept): Double, Path(subject): Path<String>, Json(body): Json<Value>) -> Answered {
    let mut kept = kept.lock().unwrap();
    let (id, version) = (body["id"].as_u64(), body["version"].as_u64());
    let (Some(id), Some(version), Some("IMPORT")) = (id, version, kept.modes.get(&subject).map(String::as_str)) else {
        let why = format!("Subject {subject} is not in import mode");
        return (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({"error_code": 42205, "message": why})));
    };
    kept.schemas.insert((subject, version), (id, body["schema"].as_str().unwrap().to_owned()));
    (StatusCode::OK, Json(json!({"id": id})))
}

async fn by_id(State(kept): Double, Path(id): Path<u64>) -> Answered {
    let kept = kept.lock().unwrap();
    let found = kept.schemas.values().find(|(known, _)| *known == id);
    found.map_or_else(|| not_found(40403), |(_, text)| (StatusCode::OK, Json(json!({"schema": text}))))
}

async fn by_version(State(kept): Double, Path(of): Path<(String, u64)>) -> Answered {
    let kept = kept.lock().unwrap();
    let found = kept.schemas.get(&of);
    found.map_or_else(|| not_found(40401), |(id, text)| (StatusCode::OK, Json(json!({"id": id, "schema": text}))))
}

async fn mode(State(kept): Double, Path(subject): Path<String>) -> Answered {
    let kept = kept.lock().unwrap();
    kept.modes.get(&subject).map_or_else(|| not_found(40409), |mode| (StatusCode::OK, Json(json!({"mode": mode}))))
}

async fn set_mode(State(kept): Double, Path(subject): Path<String>, Json(body): Json<Value>) -> Answered {
    kept.lock().unwrap().modes.insert(subject, body["mode"].as_str().unwrap().to_owned());
    (StatusCode::OK, Json(body))
}

async fn unset_mode(State(kept): Double, Path(subject): Path<String>) -> Answered {
    let before = kept.lock().unwrap().modes.remove(&subject);
    before.map_or_else(|| not_found(40409), |mode| (StatusCode::OK, Json(json!(mode))))
}

fn double(kept: Arc<Mutex<Kept>>) -> Router {
    Router::new()
        .route("/subjects/{subject}/versions", post(take))
        .route("/subjects/{subject}/versions/{version}", get(by_version))
        .route("/schemas/ids/{id}", get(by_id))
        .route("/mode/{subject}", get(mode).put(set_mode).delete(unset_mode))
        .with_state(kept)
}

#[tokio::test]
async fn schemas_are_imported_with_their_ids_and_modes_are_put_back() {
    let kept = Arc::new(Mutex::new(Kept::default()));
    let own = SCHEMAS[1].subject.to_owned();
    kept.lock().unwrap().modes.insert(own.clone(), "READONLY".into());
    against(double(kept.clone()), async |url| {
        let said = register(SCHEMAS, &url).await.unwrap();
        assert!(said.starts_with(&format!("{} schemas imported", SCHEMAS.len())), "{said}");
        let said = register(SCHEMAS, &url).await.unwrap();
        assert!(said.starts_with("0 schemas imported"), "the second time changes nothing: {said}");
    })
    .await;
    let kept = kept.lock().unwrap();
    for schema in SCHEMAS {
        let (id, text) = &kept.schemas[&(schema.subject.to_owned(), u64::from(schema.version))];
        assert_eq!((*id, text.as_str()), (u64::from(schema.id), schema.text));
    }
    assert_eq!(kept.modes, BTreeMap::from([(own, "READONLY".to_owned())]));
}

#[tokio::test]
async fn one_clash_and_nothing_is_imported() {
    let kept = Arc::new(Mutex::new(Kept::default()));
    let last = SCHEMAS[SCHEMAS.len() - 1];
    kept.lock().unwrap().schemas.insert((last.subject.to_owned(), 1), (9, FOREIGN.text.to_owned()));
    against(double(kept.clone()), async |url| {
        let said = register(SCHEMAS, &url).await.unwrap_err();
        assert!(said.contains(last.subject) && said.contains("Nothing was changed"), "{said}");
    })
    .await;
    assert_eq!(kept.lock().unwrap().schemas.len(), 1);
}
