//! What a request to ClickHouse's HTTP interface asks for: its URL, headers and form fields, made sense of.

use axum::extract::{FromRequest as _, Multipart, Query, Request};
use axum::http::{HeaderMap, Method, Uri, header};

use super::connection::Parameter;
use super::error::{BAD_ARGUMENTS, Exception, NOT_IMPLEMENTED};

/// Parameters of the interface itself; all others are settings of the engine.
const RESERVED: [&str; 19] = [
    "query",
    "database",
    "default_format",
    "user",
    "password",
    "quota_key",
    "query_id",
    "session_id",
    "session_timeout",
    "session_check",
    "compress",
    "decompress",
    "role",
    "buffer_size",
    "wait_end_of_query",
    "stacktrace",
    "enable_http_compression",
    "http_zlib_compression_level",
    "client_protocol_version",
];

/// How the answer is to be packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    /// `compress=1`
    NativeFrames,
    /// `Accept-Encoding: lz4` with `enable_http_compression=1`
    Lz4,
}

/// A request, except for its body.
#[derive(Debug)]
pub(super) struct Call {
    /// The statement, or its beginning (the body goes on with it, or is the data of its INSERT).
    pub(super) query: String,
    pub(super) parameters: Vec<Parameter>,
    pub(super) session: Session,
    pub(super) default_format: String,
    pub(super) compressed_body: bool,
    pub(super) packing: Packing,
    pub(super) query_id: String,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
}

/// What a connection is told before the statement.
#[derive(Debug, Clone)]
pub(super) struct Session {
    database: String,
    settings: Vec<(String, String)>,
}

impl Session {
    /// The statements that set it up.
    pub(super) fn statements(&self) -> Vec<String> {
        let mut statements = Vec::with_capacity(2);
        if self.database != "default" {
            statements.push(format!("USE `{}`", self.database.replace('\\', "\\\\").replace('`', "\\`")));
        }
        let quoted = |value: &str| value.replace('\\', "\\\\").replace('\'', "\\'");
        let set: Vec<_> = self.settings.iter().map(|(name, value)| format!("{name} = '{}'", quoted(value))).collect();
        statements.push(format!("SET {}", set.join(", ")));
        statements
    }
}

/// The body that is left to read.
pub(super) type Body = Option<axum::body::Body>;

/// Reads URL, headers and, if it is a form, the body.
pub(super) async fn read(request: Request) -> Result<(Call, Body), Exception> {
    let (method, headers) = (request.method().clone(), request.headers().clone());
    let mut pairs = url_pairs(request.uri())?;
    let body = if is_form(&headers) {
        pairs.extend(form_pairs(request).await?);
        None
    } else {
        (method == Method::POST).then(|| request.into_body())
    };
    if body.is_some()
        && let Some(encoding) = text(&headers, header::CONTENT_ENCODING.as_str())
        && !encoding.eq_ignore_ascii_case("identity")
    {
        return Err(Exception::new(NOT_IMPLEMENTED, format!("Content-Encoding {encoding}; send decompress=1 frames")));
    }
    Ok((call(pairs, &method, &headers)?, body))
}

fn url_pairs(uri: &Uri) -> Result<Vec<(String, String)>, Exception> {
    let Query(pairs) = Query::try_from_uri(uri).map_err(|error| Exception::new(BAD_ARGUMENTS, error))?;
    Ok(pairs)
}

fn is_form(headers: &HeaderMap) -> bool {
    text(headers, header::CONTENT_TYPE.as_str()).is_some_and(|kind| kind.starts_with("multipart/form-data"))
}

/// The official crate sends the query so when it has parameters.
async fn form_pairs(request: Request) -> Result<Vec<(String, String)>, Exception> {
    let bad =
        |error: &dyn std::fmt::Display| Exception::new(BAD_ARGUMENTS, format!("the form cannot be read: {error}"));
    let mut form = Multipart::from_request(request, &()).await.map_err(|e| bad(&e))?;
    let mut pairs = Vec::new();
    while let Some(field) = form.next_field().await.map_err(|e| bad(&e))? {
        if field.file_name().is_some() {
            return Err(Exception::new(NOT_IMPLEMENTED, "external tables"));
        }
        let name = field.name().unwrap_or_default().to_owned();
        pairs.push((name, field.text().await.map_err(|e| bad(&e))?));
    }
    Ok(pairs)
}

fn call(pairs: Vec<(String, String)>, method: &Method, headers: &HeaderMap) -> Result<Call, Exception> {
    let get = |name: &str| pairs.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let on = |name: &str| get(name).is_some_and(|value| value != "0" && !value.is_empty());
    if get("session_id").is_some() {
        return Err(Exception::new(NOT_IMPLEMENTED, "sessions over several requests (session_id)"));
    }
    let mut parameters = Vec::new();
    // The host's own time zone must not change what a query means.
    let mut settings = vec![("session_timezone".to_owned(), "UTC".to_owned())];
    for (name, value) in &pairs {
        if let Some(parameter) = name.strip_prefix("param_") {
            parameters.push((parameter.to_owned(), value.clone()));
        } else if !RESERVED.contains(&name.as_str()) {
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(Exception::new(BAD_ARGUMENTS, format!("{name:?} is not the name of a setting")));
            }
            settings.push((name.clone(), value.clone()));
        }
    }
    if method == Method::GET {
        // As in ClickHouse: a GET changes nothing.
        settings.push(("readonly".to_owned(), "2".to_owned()));
    }
    let lz4 = on("enable_http_compression")
        && text(headers, header::ACCEPT_ENCODING.as_str())
            .is_some_and(|list| list.split(',').any(|e| e.trim() == "lz4"));
    let packing = match (on("compress"), lz4) {
        (true, _) => Packing::NativeFrames,
        (_, true) => Packing::Lz4,
        _ => Packing::Plain,
    };
    let database = get("database").or_else(|| text(headers, "x-clickhouse-database").map(str::to_owned));
    let format = get("default_format").or_else(|| text(headers, "x-clickhouse-format").map(str::to_owned));
    let (user, password) = credentials(&get, headers);
    Ok(Call {
        query: get("query").unwrap_or_default(),
        session: Session { database: database.filter(|d| !d.is_empty()).unwrap_or_else(|| "default".into()), settings },
        default_format: format.unwrap_or_else(|| "TabSeparated".into()),
        compressed_body: on("decompress"),
        packing,
        query_id: get("query_id").filter(|id| !id.is_empty()).unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
        parameters,
        user,
        password,
    })
}

/// From ClickHouse's own headers or the URL. (HTTP's basic scheme is not looked at: no client of ours uses it.)
fn credentials(get: &impl Fn(&str) -> Option<String>, headers: &HeaderMap) -> (Option<String>, Option<String>) {
    let header = |name| text(headers, name).map(str::to_owned);
    (header("x-clickhouse-user").or_else(|| get("user")), header("x-clickhouse-key").or_else(|| get("password")))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parsed(uri: &str) -> Result<Call, Exception> {
        let request = Request::builder().uri(uri).method(Method::POST).body("".into()).unwrap();
        read(request).await.map(|(call, _)| call)
    }

    #[tokio::test]
    async fn settings_parameters_and_names_are_told_apart() {
        let call =
            parsed("/?database=it%60s&query=SELECT%201&param_a=x%09y&max_threads=1&role=a&role=b").await.unwrap();
        assert_eq!(call.query, "SELECT 1");
        assert_eq!(call.parameters, [("a".to_owned(), "x\ty".to_owned())]);
        assert_eq!(call.session.statements(), ["USE `it\\`s`", "SET session_timezone = 'UTC', max_threads = '1'"]);
    }

    #[tokio::test]
    async fn a_value_cannot_leave_its_quotes() {
        let call = parsed("/?insert_deduplication_token=a%27%3B%5C").await.unwrap();
        assert!(call.session.statements()[0].ends_with("insert_deduplication_token = 'a\\';\\\\'"));
        assert_eq!(parsed("/?a%20b=1").await.unwrap_err().code, BAD_ARGUMENTS.0);
        assert_eq!(parsed("/?session_id=1").await.unwrap_err().code, NOT_IMPLEMENTED.0);
    }
}
