//! What a caller is told of its limits: headers on every answer, and words when there is no room.

use std::time::Duration;

use chrono::SecondsFormat;
use http::{HeaderMap, HeaderName, HeaderValue};
use ledger::quota::QuotaError;
use ledger::rate_limit::RateLimited;
use ledger::time::Micros;

use super::levels::{Level, Limited, MinuteStanding, Standing};
use crate::error::Refusal;

/// That a request was served although the period's tokens are used up; its value names the limit.
const QUOTA_EXCEEDED: HeaderName = HeaderName::from_static("x-tollgate-quota-exceeded");
/// The kinds of limits per minute, in OpenAI's names and in Anthropic's.
const REQUESTS: [[HeaderName; 3]; 2] = [
    [
        HeaderName::from_static("x-ratelimit-limit-requests"),
        HeaderName::from_static("x-ratelimit-remaining-requests"),
        HeaderName::from_static("x-ratelimit-reset-requests"),
    ],
    [
        HeaderName::from_static("anthropic-ratelimit-requests-limit"),
        HeaderName::from_static("anthropic-ratelimit-requests-remaining"),
        HeaderName::from_static("anthropic-ratelimit-requests-reset"),
    ],
];
const TOKENS: [[HeaderName; 3]; 2] = [
    [
        HeaderName::from_static("x-ratelimit-limit-tokens"),
        HeaderName::from_static("x-ratelimit-remaining-tokens"),
        HeaderName::from_static("x-ratelimit-reset-tokens"),
    ],
    [
        HeaderName::from_static("anthropic-ratelimit-tokens-limit"),
        HeaderName::from_static("anthropic-ratelimit-tokens-remaining"),
        HeaderName::from_static("anthropic-ratelimit-tokens-reset"),
    ],
];
/// A concurrent request may end at any moment; so long a client waits before it looks again.
const CONCURRENT_AGAIN: Duration = Duration::from_secs(1);

/// Whose names the headers of an answer have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    OpenAi,
    /// OpenAI's and Anthropic's, whose times of reset are points in time.
    Anthropic,
}

/// Puts `x-ratelimit-*` on an answer, for the kinds of limits that there are.
pub(crate) fn show(standing: &Standing, names: Names, now: Micros, headers: &mut HeaderMap) {
    for ([openai, anthropic], standing) in [(REQUESTS, standing.requests), (TOKENS, standing.tokens)] {
        let Some(MinuteStanding { limit, remaining, reset_micros }) = standing else { continue };
        let mut put = |[limit_name, remaining_name, reset_name]: [HeaderName; 3], reset: String| {
            headers.insert(limit_name, HeaderValue::from(limit));
            headers.insert(remaining_name, HeaderValue::from(remaining));
            if let Ok(reset) = HeaderValue::try_from(reset) {
                headers.insert(reset_name, reset);
            }
        };
        put(openai, duration(reset_micros));
        if names == Names::Anthropic {
            put(anthropic, moment(now, reset_micros));
        }
    }
    if standing.over_quota {
        headers.insert(QUOTA_EXCEEDED, HeaderValue::from_static("tokens_per_period"));
    }
}

/// As OpenAI writes durations: `850ms`, `12s`, `1m0s`.
fn duration(micros: u64) -> String {
    let millis = micros.div_ceil(1000);
    match millis {
        0..1000 => format!("{millis}ms"),
        1000..60_000 => format!("{}s", millis.div_ceil(1000)),
        _ => {
            let seconds = millis.div_ceil(1000);
            format!("{}m{}s", seconds / 60, seconds % 60)
        }
    }
}

/// As Anthropic writes them: RFC 3339.
fn moment(now: Micros, later: u64) -> String {
    let at = now.0.saturating_add_unsigned(later);
    let time = chrono::DateTime::from_timestamp_micros(at).unwrap_or(chrono::DateTime::<chrono::Utc>::MAX_UTC);
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Why the caller's limits have no room.
pub(super) fn limited(limited: Limited) -> Refusal {
    match limited {
        Limited::Requests(level, limited) => per_minute(level, "requests", limited),
        Limited::Tokens(level, limited) => per_minute(level, "tokens", limited),
        Limited::Concurrent(level, 0) => {
            let words = format!("No requests are allowed by {}.", subject(level));
            Refusal::concurrent_requests(words, None).limited_by(by(level, "concurrent"))
        }
        Limited::Concurrent(level, limit) => {
            let subject = subject(level);
            let words = format!(
                "{limit} requests are open, as many as {subject} allows at once. Try again when one has ended."
            );
            Refusal::concurrent_requests(words, Some(CONCURRENT_AGAIN)).limited_by(by(level, "concurrent"))
        }
    }
}

fn per_minute(level: Level, what: &'static str, limited: RateLimited) -> Refusal {
    let subject = subject(level);
    let refusal = match limited {
        RateLimited::Wait { limit, asked, wait_micros } => {
            let wait = Duration::from_micros(wait_micros);
            let words = format!(
                "Rate limit reached: {subject} allows {limit} {what} per minute, and this request needs {asked}. Try again in {:.1} s.",
                wait.as_secs_f64()
            );
            Refusal::rate_limited(what, words, Some(wait))
        }
        RateLimited::TooLarge { limit: 0, .. } => {
            Refusal::rate_limited(what, format!("No {what} are allowed by {subject}."), None)
        }
        RateLimited::TooLarge { limit, asked } => {
            let words = format!(
                "The request needs {asked} {what}, more than the {limit} per minute that {subject} allows. \
                 Send a shorter prompt or a smaller `max_tokens`."
            );
            Refusal::rate_limited(what, words, None)
        }
    };
    refusal.limited_by(by(level, what))
}

/// Why the period has no room.
pub(super) fn quota(error: QuotaError) -> Refusal {
    let words = match error {
        QuotaError::Exceeded { limit, spent, reserved, asked } => format!(
            "The quota of {limit} tokens of this period has no room for a request of up to {asked}: {spent} are used, \
             {reserved} are held by open requests."
        ),
        QuotaError::Overflow => "The request may use more tokens than can be counted.".to_owned(),
    };
    Refusal::insufficient_quota(words).limited_by("plan.tokens_per_period")
}

const fn subject(level: Level) -> &'static str {
    match level {
        Level::Plan => "your plan",
        Level::Project => "the project of this API key",
        Level::Key => "this API key",
    }
}

/// Which limit of which level, for headers and metrics.
fn by(level: Level, what: &str) -> &'static str {
    match (level, what) {
        (Level::Plan, "requests") => "plan.requests_per_minute",
        (Level::Plan, "tokens") => "plan.tokens_per_minute",
        (Level::Plan, _) => "plan.concurrent_requests",
        (Level::Project, "requests") => "project.requests_per_minute",
        (Level::Project, "tokens") => "project.tokens_per_minute",
        (Level::Project, _) => "project.concurrent_requests",
        (Level::Key, "requests") => "key.requests_per_minute",
        (Level::Key, "tokens") => "key.tokens_per_minute",
        (Level::Key, _) => "key.concurrent_requests",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_nothing_is_not_called_a_large_request() {
        let none = RateLimited::TooLarge { limit: 0, asked: 1 };
        assert!(
            limited(Limited::Requests(Level::Key, none)).json().contains("No requests are allowed by this API key.")
        );
        let large = RateLimited::TooLarge { limit: 5, asked: 9 };
        assert!(
            limited(Limited::Tokens(Level::Plan, large))
                .json()
                .contains("needs 9 tokens, more than the 5 per minute that your plan allows")
        );
    }

    #[test]
    fn durations_read_as_clients_expect() {
        let written = [0, 1, 850_000, 999_999, 12_000_000, 59_000_001, 60_000_000, 61_500_000].map(duration);
        assert_eq!(written, ["0ms", "1ms", "850ms", "1s", "12s", "60s", "1m0s", "1m2s"]);
        assert_eq!(moment(Micros(1_772_323_200_000_000), 61_500_000), "2026-03-01T00:01:01Z");
        assert!(moment(Micros(i64::MAX), u64::MAX).ends_with('Z'));
    }

    #[test]
    fn each_api_has_its_own_headers() {
        let standing = MinuteStanding { limit: 5, remaining: 2, reset_micros: 36_000_000 };
        let standing = Standing { tokens: Some(standing), over_quota: true, ..Standing::default() };
        let shown = |names| {
            let mut headers = HeaderMap::new();
            show(&standing, names, Micros(0), &mut headers);
            let mut shown: Vec<_> =
                headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
            shown.sort();
            shown
        };
        let openai = [
            "x-ratelimit-limit-tokens: 5",
            "x-ratelimit-remaining-tokens: 2",
            "x-ratelimit-reset-tokens: 36s",
            "x-tollgate-quota-exceeded: tokens_per_period",
        ];
        assert_eq!(shown(Names::OpenAi), openai);
        assert_eq!(
            shown(Names::Anthropic)[..3],
            [
                "anthropic-ratelimit-tokens-limit: 5",
                "anthropic-ratelimit-tokens-remaining: 2",
                "anthropic-ratelimit-tokens-reset: 1970-01-01T00:00:36Z"
            ]
        );
    }
}
