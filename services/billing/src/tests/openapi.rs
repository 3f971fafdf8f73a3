//! The description of the API: complete, served without a key, and checked in as it is.

use std::collections::BTreeSet;

use axum::http::{Method, StatusCode};
use serde_json::Value;

use super::memory::Billing;

/// Routes that are no part of the API proper.
const OTHERS: [&str; 10] = [
    "/",
    "/console",
    "/console/dead-letters",
    "/console/dead-letters/{topic}/{partition}/{offset}",
    "/console/adjustments",
    "/console/style.css",
    "/console/icon.svg",
    "/console/sign-in",
    "/console/sign-out",
    crate::api::OPENAPI,
];

fn described() -> Value {
    serde_json::from_str(&crate::openapi()).unwrap()
}

/// The paths that the router knows, as it writes itself.
fn routed() -> BTreeSet<String> {
    let shown = format!("{:?}", crate::server::routes());
    let quoted = shown.split('"').skip(1).step_by(2);
    quoted.filter(|text| text.starts_with('/') && !text.contains("fallback")).map(str::to_owned).collect()
}

#[test]
fn every_route_is_described_and_every_description_is_a_route() {
    let described: BTreeSet<String> =
        described()["paths"].as_object().unwrap().keys().cloned().chain(OTHERS.map(str::to_owned)).collect();
    assert_eq!(routed(), described);
    assert!(described.len() > 20, "{described:?}");
}

#[tokio::test]
async fn a_method_is_answered_if_and_only_if_it_is_described() {
    let billing = Billing::empty();
    for (path, item) in described()["paths"].as_object().unwrap() {
        let path = path.strip_prefix("/api/v1/").unwrap().replace(['{', '}'], "");
        for method in ["get", "put", "post", "delete", "patch"] {
            let answer = billing.send(method.to_uppercase().parse::<Method>().unwrap(), &path, None, None).await;
            let expected = if item.get(method).is_some() { 401 } else { 405 };
            assert_eq!(answer.problem().0, expected, "{method} {path}");
        }
    }
    assert_eq!(billing.send(Method::GET, "nothing", None, None).await.problem(), (404, "unknown_path".into()));
}

#[test]
fn every_operation_says_its_problems_and_every_reference_is_there() {
    let description = described();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let problem = &operation["responses"]["default"]["content"]["application/problem+json"]["schema"]["$ref"];
            assert_eq!(problem, "#/components/schemas/Problem", "{method} {path}");
            assert!(operation["summary"].is_string() || operation["description"].is_string(), "{method} {path}");
        }
    }
    let text = description.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(description["components"]["schemas"].get(reference).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn it_is_served_without_a_key() {
    let billing = Billing::empty();
    let answer = billing.send(Method::GET, "openapi.json", None, None).await;
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, Some("application/json")));
    assert_eq!(answer.text, crate::openapi());
}

#[test]
fn the_page_in_docs_is_up_to_date() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let now = crate::openapi();
    if std::env::var_os("TOLLGATE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == now,
        "docs/openapi.json is not what the code says: TOLLGATE_WRITE_DOCS=1 cargo test -p billing docs"
    );
}
