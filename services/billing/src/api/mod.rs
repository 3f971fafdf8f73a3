//! The API under `/api/v1`, and its description as OpenAPI.

pub(crate) mod adjustments;
mod dead_letters;
pub(crate) mod documents;
mod figures;
mod keys;
pub(crate) mod resource;
mod strict;

use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use axum::routing::get;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Shared;
use resource::{models, plans, pools, prices, replicas, tenants};

/// Where the description is.
pub(crate) const OPENAPI: &str = "/api/v1/openapi.json";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "Tollgate billing", description = "Tenants, keys, plans, prices, models, pools and replicas; usage, its \
        corrections, costs, balances and the running bill; what could not count. Money is a decimal as text, times are RFC 3339, lists are paged by cursor, errors \
        are RFC 9457 problem details with a stable `code`."),
    modifiers(&Bearer),
    security(("key" = []))
)]
struct Description;

struct Bearer;

impl utoipa::Modify for Bearer {
    fn modify(&self, openapi: &mut OpenApi) {
        let description = "The admin's key, or a tenant's API key for its own data";
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(description)).build();
        openapi.components.get_or_insert_default().add_security_scheme("key", SecurityScheme::Http(scheme));
    }
}

fn described() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(tenants::list))
        .routes(routes!(tenants::get, tenants::put, tenants::delete))
        .routes(routes!(keys::list, keys::make))
        .routes(routes!(keys::get, keys::put, keys::revoke))
        .routes(routes!(keys::rotate))
        .routes(routes!(plans::list))
        .routes(routes!(plans::get, plans::put, plans::delete))
        .routes(routes!(prices::list))
        .routes(routes!(prices::get, prices::put, prices::delete))
        .routes(routes!(models::list))
        .routes(routes!(models::get, models::put, models::delete))
        .routes(routes!(pools::list))
        .routes(routes!(pools::get, pools::put, pools::delete))
        .routes(routes!(replicas::list))
        .routes(routes!(replicas::get, replicas::put, replicas::delete))
        .routes(routes!(adjustments::list))
        .routes(routes!(adjustments::get, adjustments::put))
        .routes(routes!(dead_letters::list))
        .routes(routes!(dead_letters::get))
        .routes(routes!(figures::usage))
        .routes(routes!(figures::costs))
        .routes(routes!(figures::balance))
        .routes(routes!(figures::preview))
        .routes(routes!(figures::requests))
        .routes(routes!(figures::reconciliation))
}

/// The API with the route of its own description.
pub(crate) fn router() -> axum::Router<Shared> {
    let (router, openapi) = described().split_for_parts();
    let text = json(&openapi);
    let description = async move || {
        let json = HeaderValue::from_static("application/json");
        ([(header::CONTENT_TYPE, json)], text.clone()).into_response()
    };
    router.route(OPENAPI, get(description))
}

/// The description as the repository keeps it.
pub(crate) fn openapi() -> OpenApi {
    described().into_openapi()
}

pub(crate) fn json(openapi: &OpenApi) -> String {
    openapi.to_pretty_json().unwrap_or_default() + "\n"
}
