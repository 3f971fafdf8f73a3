//! Reading and writing the documents of control: the same four operations for every kind.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ledger::control::{ControlState, Document};
use ledger::ids::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::documents::Resource;
use crate::app::{App, Shared};
use crate::auth::Caller;
use crate::control::{self, Precondition, tag};
use crate::extract::{JsonBody, Params, Segments};
use crate::problem::Problem;

/// The most documents of one page.
const PAGE_MAX: usize = 1_000;
/// How many there are if nothing is said.
const PAGE: usize = 100;

/// A document with its id and its revision.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Known<T> {
    /// Its id.
    pub(crate) id: String,
    /// How many writes it has taken: its entity tag, for `If-Match`.
    pub(crate) revision: u64,
    #[serde(flatten)]
    pub(crate) document: T,
}

/// A part of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Page<T> {
    pub(crate) data: Vec<T>,
    /// For the next page, as `cursor`; absent on the last one.
    pub(crate) next_cursor: Option<String>,
}

/// Which part of a list.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// `next_cursor` of the page before.
    pub(crate) cursor: Option<String>,
    /// How many at most: 1 to 1000, 100 by default.
    pub(crate) limit: Option<usize>,
}

impl PageQuery {
    /// The part of `all`, which is sorted by id, that is meant.
    pub(crate) fn part<T>(&self, all: impl Iterator<Item = (String, T)>) -> Result<Page<T>, Problem> {
        let limit = self.limit.unwrap_or(PAGE);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(Problem::query(format!("`limit` must be 1 to {PAGE_MAX}")));
        }
        let after = |id: &str| self.cursor.as_deref().is_none_or(|cursor| id > cursor);
        let mut rest = all.filter(|(id, _)| after(id));
        let part: Vec<(String, T)> = rest.by_ref().take(limit).collect();
        let more = rest.next().is_some();
        let next_cursor = part.last().filter(|_| more).map(|(id, _)| id.clone());
        Ok(Page { data: part.into_iter().map(|(_, item)| item).collect(), next_cursor })
    }
}

/// Adds the entity tag.
pub(crate) fn tagged(status: StatusCode, revision: u64, body: impl Serialize) -> Response {
    let mut response = (status, Json(body)).into_response();
    if let Ok(value) = HeaderValue::from_str(&tag(revision)) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

fn known<T: Resource>(state: &ControlState, id: &str, document: &Document) -> Option<Known<T>> {
    Some(Known { id: id.to_owned(), revision: state.revision(T::KIND, id), document: T::of(document)? })
}

fn find<T: Resource>(app: &App, id: &str) -> Result<Known<T>, Problem> {
    let control = app.control()?;
    let found = control.state.get(T::KIND, id).and_then(|document| known(&control.state, id, document));
    found.ok_or_else(|| Problem::not_found(T::KIND.as_str(), id))
}

/// A tenant may read its own document; everything else is the admin's.
fn may_read<T: Resource>(caller: &Caller, id: &str) -> Result<(), Problem> {
    match (T::KIND, id.parse::<TenantId>()) {
        (ledger::control::Kind::Tenant, Ok(tenant)) => caller.sees(&tenant),
        _ => caller.admin(),
    }
}

pub(crate) async fn list<T: Resource>(
    State(app): State<Shared>,
    caller: Caller,
    Params(page): Params<PageQuery>,
) -> Result<Json<Page<Known<T>>>, Problem> {
    caller.admin()?;
    let control = app.control()?;
    let all = control
        .state
        .iter()
        .filter_map(|(id, document)| known(&control.state, id, document).map(|document| (id.to_owned(), document)));
    Ok(Json(page.part(all)?))
}

pub(crate) async fn get<T: Resource>(
    State(app): State<Shared>,
    caller: Caller,
    Segments(id): Segments<String>,
) -> Result<Response, Problem> {
    may_read::<T>(&caller, &id)?;
    let found = find::<T>(&app, &id)?;
    Ok(tagged(StatusCode::OK, found.revision, found))
}

pub(crate) async fn put<T: Resource>(
    State(app): State<Shared>,
    caller: Caller,
    Segments(id): Segments<String>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<T>,
) -> Result<Response, Problem> {
    caller.admin()?;
    let when = Precondition::of(&headers)?;
    let document = body.into_document()?;
    let shown = T::of(&document).ok_or_else(|| Problem::internal(&"a document is not of its own kind"))?;
    let put = control::put(&app, &caller.actor(), &id, document, when).await?;
    let status = if put.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(tagged(status, put.revision, Known { id, revision: put.revision, document: shown }))
}

pub(crate) async fn delete<T: Resource>(
    State(app): State<Shared>,
    caller: Caller,
    Segments(id): Segments<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    caller.admin()?;
    let when = Precondition::of(&headers)?;
    let gone = |_: &ControlState, now: Option<&Document>| match now {
        Some(_) => Ok(None),
        None => Err(Problem::not_found(T::KIND.as_str(), &id)),
    };
    control::write(&app, &caller.actor(), T::KIND, &id, when, gone).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The four operations on one kind of document, with what OpenAPI says of them.
macro_rules! resource {
    ($module:ident, $body:ident, $tag:literal, $all:tt, $one:tt) => {
        pub(crate) mod $module {
            use super::*;
            use crate::api::documents::$body;

            /// Lists them, by id. Admin only.
            #[utoipa::path(get, path = $all, tag = $tag, operation_id = concat!("list_", stringify!($module)),
                        params(PageQuery),
                        responses((status = 200, body = Page<Known<$body>>), (status = "default", body = Problem, content_type = "application/problem+json")))]
            pub(crate) async fn list(
                app: State<Shared>,
                caller: Caller,
                page: Params<PageQuery>,
            ) -> Result<Json<Page<Known<$body>>>, Problem> {
                crate::api::resource::list::<$body>(app, caller, page).await
            }

            /// Reads one. Admin only, but a tenant reads its own document.
            #[utoipa::path(get, path = $one, tag = $tag, operation_id = concat!("get_", stringify!($module)),
                        params(("id" = String, Path, description = "Its id")),
                        responses((status = 200, body = Known<$body>, headers(("etag" = String))),
                            (status = "default", body = Problem, content_type = "application/problem+json")))]
            pub(crate) async fn get(
                app: State<Shared>,
                caller: Caller,
                id: Segments<String>,
            ) -> Result<Response, Problem> {
                crate::api::resource::get::<$body>(app, caller, id).await
            }

            /// Makes it what the body says; saying the same twice changes nothing. Without `If-Match` it is written over
            /// whatever is there. Admin only. Answered when its effect has been read back from the control log.
            #[utoipa::path(put, path = $one, tag = $tag, operation_id = concat!("put_", stringify!($module)),
                        params(("id" = String, Path, description = "Its id"),
                            ("if-match" = Option<String>, Header, description = "The entity tag that was read, or *"),
                            ("if-none-match" = Option<String>, Header, description = "* to create only")),
                        request_body = $body,
                        responses((status = 200, body = Known<$body>), (status = 201, body = Known<$body>),
                            (status = "default", body = Problem, content_type = "application/problem+json")))]
            pub(crate) async fn put(
                app: State<Shared>,
                caller: Caller,
                id: Segments<String>,
                headers: HeaderMap,
                body: JsonBody<$body>,
            ) -> Result<Response, Problem> {
                crate::api::resource::put::<$body>(app, caller, id, headers, body).await
            }

            /// Deletes it, if nothing names it. Admin only.
            #[utoipa::path(delete, path = $one, tag = $tag, operation_id = concat!("delete_", stringify!($module)),
                        params(("id" = String, Path, description = "Its id"),
                            ("if-match" = Option<String>, Header, description = "The entity tag that was read, or *")),
                        responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
            pub(crate) async fn delete(
                app: State<Shared>,
                caller: Caller,
                id: Segments<String>,
                headers: HeaderMap,
            ) -> Result<StatusCode, Problem> {
                crate::api::resource::delete::<$body>(app, caller, id, headers).await
            }
        }
    };
}

resource!(tenants, TenantBody, "tenants", "/api/v1/tenants", "/api/v1/tenants/{id}");
resource!(plans, PlanBody, "plans", "/api/v1/plans", "/api/v1/plans/{id}");
resource!(prices, PriceBody, "prices", "/api/v1/prices", "/api/v1/prices/{id}");
resource!(models, ModelBody, "models", "/api/v1/models", "/api/v1/models/{id}");
resource!(pools, PoolBody, "pools", "/api/v1/pools", "/api/v1/pools/{id}");
resource!(replicas, ReplicaBody, "replicas", "/api/v1/replicas", "/api/v1/replicas/{id}");
