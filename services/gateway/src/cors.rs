//! What browsers ask before a page of another origin may call, and what they want to see on the answer.
//!
//! Callers are known by a key in a header and never by a cookie, so a page can do no more than whoever gave it the key:
//! credentials are not allowed, and every header of an answer may be read.

use http::request::Parts as Head;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

use crate::Body;
use crate::settings::CorsSettings;

/// The methods of the API.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST");

/// See the module.
#[derive(Debug)]
pub(crate) struct Cors {
    every: bool,
    origins: Vec<HeaderValue>,
    max_age: HeaderValue,
}

impl Cors {
    /// Those that the settings name.
    pub(crate) fn of(settings: &CorsSettings) -> Self {
        let every = settings.allowed_origins.iter().any(|origin| origin == "*");
        let origins = settings.allowed_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
        Self { every, origins: origins.collect(), max_age: HeaderValue::from(settings.max_age.as_secs()) }
    }

    /// The origin of a request, as it may be told back; none if it is none of those allowed, or not a page's.
    pub(crate) fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.origins.is_empty() {
            return None;
        }
        let origin = headers.get(header::ORIGIN)?;
        (self.every || self.origins.contains(origin)).then(|| origin.clone())
    }

    /// The answer to a browser that asks before it sends. No key is needed: browsers send none with the question.
    pub(crate) fn preflight(&self, head: &Head, origin: &HeaderValue) -> Option<Response<Body>> {
        let asks = head.method == Method::OPTIONS && head.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if !asks {
            return None;
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        if let Some(asked) = head.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            // Clients send headers of their own, and none of them does anything here but those of the key.
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        self.show(origin.clone(), headers);
        Some(response)
    }

    /// Lets the page see an answer.
    pub(crate) fn show(&self, origin: HeaderValue, headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
}
