//! The console: pages for people, with what the API gives, and the way to sign in.

mod chart;
mod filters;
mod operator;
mod page;

use axum::Router;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use ledger::ids::TenantId;
use serde::Deserialize;

use crate::app::Shared;
use crate::auth::Caller;
use crate::extract::{Params, Segments, bytes};
use crate::figures::dead_letters::DeadLettersQuery;
use crate::problem::Problem;
use operator::{AdjustmentsAsked, AdjustmentsPage, DeadLetterPage, DeadLettersPage};
use page::{Dashboard, SignIn};

/// The cookie that holds the key of who is signed in.
const COOKIE: &str = "tollgate_key";
/// How long a sign-in holds, in seconds: a working day.
const SIGNED_IN: u32 = 12 * 3600;
/// The longest key that is taken.
const KEY_MAX: usize = 256;
/// Nothing from elsewhere, no scripts, no framing.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; \
                      frame-ancestors 'none'";
const STYLE: &str = include_str!("../../assets/console.css");
const ICON: &str = include_str!("../../assets/console.svg");

/// The pages, their style and icon, and signing in and out.
pub(crate) fn router() -> Router<Shared> {
    Router::new()
        .route("/", get(console))
        .route("/console", get(console))
        .route("/console/dead-letters", get(dead_letters))
        .route("/console/dead-letters/{topic}/{partition}/{offset}", get(dead_letter))
        .route("/console/adjustments", get(adjustments))
        .route("/console/style.css", get(style))
        .route("/console/icon.svg", get(icon))
        .route("/console/sign-in", post(sign_in))
        .route("/console/sign-out", post(sign_out))
}

/// What the page is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    /// Whose figures. Only the admin has a choice.
    tenant: Option<TenantId>,
}

async fn style() -> Response {
    let css = HeaderValue::from_static("text/css; charset=utf-8");
    ([(header::CONTENT_TYPE, css)], STYLE).into_response()
}

async fn icon() -> Response {
    let svg = HeaderValue::from_static("image/svg+xml");
    ([(header::CONTENT_TYPE, svg)], ICON).into_response()
}

/// Who is signed in; anybody else is shown the way to sign in.
struct SignedIn(Caller);

impl FromRequestParts<Shared> for SignedIn {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self, Response> {
        let Some(key) = cookie(&parts.headers) else { return Err(sign_in_page(StatusCode::OK, None)) };
        Caller::of(app, key).map(Self).map_err(|problem| match problem.status() {
            StatusCode::UNAUTHORIZED => sign_in_page(StatusCode::UNAUTHORIZED, Some("This key is not valid any more.")),
            status => sign_in_page(status, Some(problem.detail())),
        })
    }
}

/// What a page was asked for.
type Asked<T> = Result<Params<T>, Problem>;

async fn console(State(app): State<Shared>, SignedIn(caller): SignedIn, asked: Asked<PageQuery>) -> Response {
    answer(match asked {
        Ok(Params(PageQuery { tenant })) => Dashboard::of(&app, &caller, tenant).await,
        Err(problem) => Err(problem),
    })
}

async fn dead_letters(
    State(app): State<Shared>,
    SignedIn(caller): SignedIn,
    asked: Asked<DeadLettersQuery>,
) -> Response {
    answer(match asked {
        Ok(Params(asked)) => DeadLettersPage::of(&app, &caller, asked).await,
        Err(problem) => Err(problem),
    })
}

async fn dead_letter(
    State(app): State<Shared>,
    SignedIn(caller): SignedIn,
    place: Result<Segments<(String, String, String)>, Problem>,
) -> Response {
    answer(match place {
        Ok(Segments((topic, partition, offset))) => {
            DeadLetterPage::of(&app, &caller, &format!("{topic}/{partition}/{offset}")).await
        }
        Err(problem) => Err(problem),
    })
}

async fn adjustments(
    State(app): State<Shared>,
    SignedIn(caller): SignedIn,
    asked: Asked<AdjustmentsAsked>,
) -> Response {
    answer(asked.and_then(|Params(asked)| AdjustmentsPage::of(&app, &caller, asked)))
}

/// The page, or why there is none.
fn answer(shown: Result<impl askama::Template, Problem>) -> Response {
    match shown {
        Ok(shown) => page(StatusCode::OK, &shown),
        Err(problem) => page(problem.status(), &page::Failed { title: problem.title(), detail: problem.detail() }),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Credentials {
    key: String,
}

async fn sign_in(State(app): State<Shared>, request: Request) -> Response {
    let body = match bytes(request.into_body()).await {
        Ok(body) => body,
        Err(problem) => return sign_in_page(problem.status(), Some(problem.detail())),
    };
    let key = serde_urlencoded::from_bytes::<Credentials>(&body).map(|form| form.key.trim().to_owned());
    let Some(key) = key.ok().filter(|key| fits_a_cookie(key)) else {
        return sign_in_page(StatusCode::BAD_REQUEST, Some("This is no key."));
    };
    match Caller::of(&app, &key) {
        Ok(_) => signed(&app, &key, SIGNED_IN),
        Err(problem) if problem.status() == StatusCode::UNAUTHORIZED => {
            sign_in_page(StatusCode::UNAUTHORIZED, Some("This key is not known, or is not valid any more."))
        }
        Err(problem) => sign_in_page(problem.status(), Some(problem.detail())),
    }
}

async fn sign_out(State(app): State<Shared>) -> Response {
    signed(&app, "", 0)
}

/// Keeps the key in the browser, out of reach of scripts and of other sites, and shows the page.
fn signed(app: &Shared, key: &str, seconds: u32) -> Response {
    let secure = if app.secure_cookie { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={key}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    let mut response = Redirect::to("/console").into_response();
    match HeaderValue::from_str(&cookie) {
        Ok(mut value) => {
            value.set_sensitive(true);
            response.headers_mut().insert(header::SET_COOKIE, value);
            response
        }
        Err(_) => sign_in_page(StatusCode::BAD_REQUEST, Some("This is no key.")),
    }
}

fn fits_a_cookie(key: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !key.is_empty() && key.len() <= KEY_MAX && key.bytes().all(allowed)
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, key)| *name == COOKIE && fits_a_cookie(key)).map(|(_, key)| key)
}

fn sign_in_page(status: StatusCode, said: Option<&str>) -> Response {
    page(status, &SignIn { said })
}

fn page(status: StatusCode, template: &impl askama::Template) -> Response {
    match template.render() {
        Ok(html) => {
            let headers = [
                (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
                (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
            ];
            (status, headers, html).into_response()
        }
        Err(error) => Problem::internal(&error).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_among_other_cookies() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, text.parse().unwrap());
            cookie(&headers).map(str::to_owned)
        };
        assert_eq!(of("a=b; tollgate_key=tg_1; c=d").as_deref(), Some("tg_1"));
        for none in ["", "a=b", "tollgate_key=", "xtollgate_key=tg_1", "tollgate_key=a b"] {
            assert_eq!(of(none), None, "{none}");
        }
        assert!(!fits_a_cookie("a;b") && !fits_a_cookie("a\r\nb") && !fits_a_cookie(&"x".repeat(257)));
    }
}
