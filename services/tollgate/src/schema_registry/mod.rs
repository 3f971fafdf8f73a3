//! `tollgate schemas`: lists the schemas, holds them to their promise, imports them into a registry.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use hyper::Method;
use runtime::http::client::{self, Answer, Question};
use schemas::compatibility::{self, EVIDENCE};
use schemas::registry::{SCHEMAS, SchemaVersion};
use serde_json::{Value, json};

use crate::cli::SchemasCommand;

const LIMIT: Duration = Duration::from_secs(10);

pub(crate) async fn run(command: SchemasCommand) -> ExitCode {
    let done = match command {
        SchemasCommand::List => list(),
        SchemasCommand::Check => check(),
        SchemasCommand::Register { registry } => register(SCHEMAS, registry.trim_end_matches('/')).await,
    };
    match done {
        Ok(said) => {
            let _ = writeln!(std::io::stdout().lock(), "{said}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("tollgate schemas: {why}");
            ExitCode::FAILURE
        }
    }
}

fn list() -> Result<String, String> {
    let mut lines = vec![format!("{:<8}{:<34}{:<9}{}", "ID", "SUBJECT", "VERSION", "RECORD")];
    lines.extend(SCHEMAS.iter().map(|s| format!("{:<8}{:<34}{:<9}{}", s.id, s.subject, s.version, s.name)));
    Ok(lines.join("\n"))
}

fn check() -> Result<String, String> {
    let checked = compatibility::check(SCHEMAS, EVIDENCE)
        .map_err(|broken| broken.iter().map(|one| format!("\n  - {one}")).collect::<String>())?;
    Ok(format!(
        "{} schemas; every version reads what every other of its subject wrote ({} pairs), and the {} byte forms ever written",
        checked.schemas, checked.pairs, checked.golden
    ))
}

fn shown(schema: &SchemaVersion) -> String {
    format!("{} version {} (id {})", schema.subject, schema.version, schema.id)
}

/// Looks at all first, so that a clash changes nothing; then imports what is missing.
async fn register(known: &[SchemaVersion], registry: &str) -> Result<String, String> {
    let mut missing = Vec::new();
    for schema in known {
        if !is_there(schema, registry).await? {
            missing.push(schema);
        }
    }
    for schema in &missing {
        import(schema, registry).await?;
    }
    Ok(format!(
        "{} schemas imported into {registry}, {} were there already",
        missing.len(),
        known.len() - missing.len()
    ))
}

/// Whether the registry has this very schema under this subject, version and id. Another one in its place is an error.
async fn is_there(schema: &SchemaVersion, registry: &str) -> Result<bool, String> {
    let wanted: Value = serde_json::from_str(schema.text).map_err(|error| format!("{}: {error}", shown(schema)))?;
    let by_id = get(format!("/schemas/ids/{}", schema.id), registry).await?;
    match by_id.status {
        404 => {}
        200 if text_of(&by_id).as_ref() == Some(&wanted) => {}
        200 => {
            return Err(format!(
                "the registry has another schema with the id {}: {} cannot be imported. Use a registry, or a context of \
                 one (URL/contexts/...), in which the ids from 7000 on are free. Nothing was changed",
                schema.id,
                shown(schema)
            ));
        }
        _ => return Err(refused(registry, &by_id)),
    }
    let by_version = get(format!("/subjects/{}/versions/{}", schema.subject, schema.version), registry).await?;
    match by_version.status {
        404 => Ok(false),
        200 if text_of(&by_version) == Some(wanted) && json_of(&by_version)["id"] == schema.id => Ok(true),
        200 => Err(format!(
            "the registry has another schema, or another id, as {} version {}. Nothing was changed",
            schema.subject, schema.version
        )),
        _ => Err(refused(registry, &by_version)),
    }
}

/// A registry takes ids from outside only in the mode IMPORT; the subject is put back into the mode it had, whatever happens.
async fn import(schema: &SchemaVersion, registry: &str) -> Result<(), String> {
    let mode = format!("/mode/{}", schema.subject);
    let before = get(mode.clone(), registry).await?;
    let put =
        |mode_name: Value| send(Method::PUT, format!("{mode}?force=true"), Some(json!({"mode": mode_name})), registry);
    put("IMPORT".into()).await?;
    let versions = format!("/subjects/{}/versions", schema.subject);
    let body = json!({"schema": schema.text, "schemaType": "AVRO", "id": schema.id, "version": schema.version});
    let imported = send(Method::POST, versions, Some(body), registry).await;
    let restored = match before.status {
        200 => put(json_of(&before)["mode"].clone()).await,
        _ => send(Method::DELETE, mode.clone(), None, registry).await,
    };
    imported.and(restored)
}

async fn get(path: String, registry: &str) -> Result<Answer, String> {
    ask(Method::GET, path, None, registry).await
}

async fn send(method: Method, path: String, body: Option<Value>, registry: &str) -> Result<(), String> {
    let answer = ask(method, path, body, registry).await?;
    if answer.is_success() { Ok(()) } else { Err(refused(registry, &answer)) }
}

async fn ask(method: Method, path: String, body: Option<Value>, registry: &str) -> Result<Answer, String> {
    let url = format!("{registry}{path}");
    let body = body.map(|body| ("application/vnd.schemaregistry.v1+json", body.to_string()));
    let answer = client::ask(Question { tls: None, method, url: &url, headers: &[], body, limit: LIMIT }).await;
    answer.map_err(|error| format!("{registry}: {error}"))
}

fn refused(registry: &str, answer: &Answer) -> String {
    format!("{registry} answered {}: {}", answer.status, answer.text.trim())
}

fn json_of(answer: &Answer) -> Value {
    serde_json::from_str(&answer.text).unwrap_or_default()
}

/// The schema inside an answer: JSON in a JSON string.
fn text_of(answer: &Answer) -> Option<Value> {
    serde_json::from_str(json_of(answer)["schema"].as_str()?).ok()
}

#[cfg(test)]
mod tests;
