//! The routes of ClickHouse's HTTP interface, and the one place where a statement meets a connection.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, Response as HttpResponse, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use tokio::sync::Semaphore;

use super::connection::{Connection, Engine, QueryResult};
use super::error::{AUTHENTICATION_FAILED, Exception, TOO_MANY_QUERIES};
use super::frames;
use super::input::Input;
use super::request::{self, Call, Packing, Session};
use super::statement::{Statement, classify};
use super::{insert, select};

/// A statement with its values, when they do not come as a streamed INSERT: it lies in memory as a whole.
const MAX_STATEMENT: usize = 64 << 20;
const MAX_FORM: usize = 16 << 20;
/// How long a request waits for a free place.
const PATIENCE: Duration = Duration::from_secs(30);

/// What every request needs.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) engine: &'static Engine,
    /// As many statements run at once.
    pub(super) places: Arc<Semaphore>,
    pub(super) password: Option<Arc<str>>,
    /// How long a client may pause while it sends a body or reads an answer.
    pub(super) patience: Duration,
}

/// The routes.
pub(super) fn router(server: Server) -> Router {
    Router::new()
        .route("/ping", get(async || "Ok.\n"))
        .route("/replicas_status", get(async || "Ok.\n"))
        .route("/", any(handle))
        .layer(DefaultBodyLimit::max(MAX_FORM))
        .with_state(server)
}

async fn handle(State(server): State<Server>, request: Request) -> Response {
    server.answer(request).await.unwrap_or_else(|exception| {
        tracing::debug!(code = exception.code, text = exception.text, "statement refused");
        exception.into_response()
    })
}

impl Server {
    async fn answer(self, request: Request) -> Result<Response, Exception> {
        let (call, body) = request::read(request).await?;
        self.authenticate(&call)?;
        let body = body.map(|body| Input::new(body, call.compressed_body, self.patience));
        match (classify(&call.query), body) {
            // The engine's insert stream takes no parameters; with some, the data is read like any statement's.
            (Statement::Insert { statement, format }, Some(data)) if call.parameters.is_empty() => {
                insert::run(&self, &call, statement, format, data).await
            }
            (_, body) => {
                let mut sql = call.query.clone().into_bytes();
                if let Some(body) = body {
                    // As ClickHouse does: the statement may begin in the URL and go on in the body.
                    if !sql.is_empty() {
                        sql.push(b'\n');
                    }
                    body.collect(&mut sql, MAX_STATEMENT).await?;
                }
                self.run(&call, sql).await
            }
        }
    }

    async fn run(&self, call: &Call, sql: Vec<u8>) -> Result<Response, Exception> {
        if sql.iter().all(u8::is_ascii_whitespace) {
            return Ok("Ok.\n".into_response());
        }
        if let Ok(Statement::Select { format }) = std::str::from_utf8(&sql).map(classify) {
            let format = format.unwrap_or(&call.default_format).to_owned();
            return select::run(self, call, sql, format).await;
        }
        let (format, parameters) = (call.default_format.clone(), call.parameters.clone());
        let result =
            self.on_connection(&call.session, move |connection| connection.query(&sql, &format, &parameters)).await?;
        Ok(whole(call, &call.default_format, result))
    }

    fn authenticate(&self, call: &Call) -> Result<(), Exception> {
        let Some(password) = self.password.as_deref() else { return Ok(()) };
        // Loopback and a development password: the comparison's timing is no concern.
        if call.password.as_deref() == Some(password) {
            return Ok(());
        }
        let user = call.user.as_deref().unwrap_or("default");
        Err(Exception::new(AUTHENTICATION_FAILED, format!("{user}: Authentication failed: password is incorrect")))
    }

    /// Runs `work` on a connection of its own, on a thread that may block. A connection is a session: with one each, no
    /// setting, `USE` or failed SET of one request can reach another.
    pub(super) async fn on_connection<T: Send + 'static>(
        &self,
        session: &Session,
        work: impl FnOnce(&mut Connection) -> Result<T, Exception> + Send + 'static,
    ) -> Result<T, Exception> {
        let place = tokio::time::timeout(PATIENCE, self.places.clone().acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            return Err(Exception::new(TOO_MANY_QUERIES, "Too many simultaneous queries"));
        };
        let (engine, statements) = (self.engine, session.statements());
        let thread = tokio::task::spawn_blocking(move || {
            let _place = place;
            let mut connection = engine.connect()?;
            for statement in statements {
                connection.query(statement.as_bytes(), "Null", &[])?;
            }
            work(&mut connection)
        });
        thread.await.unwrap_or_else(|panic| Err(Exception::from_engine(panic.to_string())))
    }
}

/// An answer whose bytes are all there.
pub(super) fn whole(call: &Call, format: &str, result: QueryResult) -> Response {
    let summary = result.summary();
    let body: Bytes = match call.packing {
        Packing::Plain => Bytes::from_owner(result),
        Packing::NativeFrames => frames::encode_native(result.as_ref()).into(),
        Packing::Lz4 => frames::encode_lz4_frame(result.as_ref()).into(),
    };
    respond(call, format, Some(summary), body.into())
}

/// The headers of ClickHouse's answers.
pub(super) fn respond(call: &Call, format: &str, summary: Option<String>, body: Body) -> Response {
    let mut response = HttpResponse::new(body);
    let headers = response.headers_mut();
    let mut put = |name: &'static str, value: &str| {
        // A query id is the client's and may hold anything; what is no header value is left out.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    put("x-clickhouse-query-id", &call.query_id);
    put("x-clickhouse-format", format);
    put("x-clickhouse-timezone", "UTC");
    put("x-clickhouse-server-display-name", "tollgate");
    if let Some(summary) = summary {
        put("x-clickhouse-summary", &summary);
    }
    put(header::CONTENT_TYPE.as_str(), content_type(format));
    if call.packing == Packing::Lz4 {
        put(header::CONTENT_ENCODING.as_str(), "lz4");
    }
    response
}

/// The content types that ClickHouse gives its formats.
fn content_type(format: &str) -> &'static str {
    match format {
        f if f.starts_with("TabSeparated") || f.starts_with("TSV") => "text/tab-separated-values; charset=UTF-8",
        f if f.starts_with("CSV") => "text/csv; charset=UTF-8",
        "JSONEachRow" | "JSONLines" | "NDJSON" | "JSONCompactEachRow" => "application/x-ndjson; charset=UTF-8",
        f if f.starts_with("JSON") => "application/json; charset=UTF-8",
        _ => "application/octet-stream",
    }
}
