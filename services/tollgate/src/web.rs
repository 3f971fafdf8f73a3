//! What doctor, dev and the schema registration ask of other processes.

use runtime::http::client::{AskError, get};

/// Whether a GET is answered with success; if not, a short reason.
pub(crate) async fn answers(url: &str) -> Result<(), String> {
    match get(url).await.map_err(|error| error.to_string())? {
        answer if answer.is_success() => Ok(()),
        answer => Err(format!("{} {}", answer.status, answer.text.trim())),
    }
}

/// Whether a role says on `/readyz` that it is ready; if not, its reasons.
pub(crate) async fn ready(url: &str) -> Result<(), Unready> {
    #[derive(serde::Deserialize)]
    struct Answer {
        conditions: Vec<Condition>,
    }
    #[derive(serde::Deserialize)]
    struct Condition {
        name: String,
        reason: Option<String>,
    }
    let answer = get(url).await?;
    if answer.is_success() {
        return Ok(());
    }
    let reasons = serde_json::from_str::<Answer>(&answer.text).map(|answer| {
        let unmet = answer.conditions.into_iter().filter_map(|condition| Some((condition.name, condition.reason?)));
        unmet.map(|(name, reason)| format!("{name}: {reason}")).collect::<Vec<_>>().join("; ")
    });
    Err(Unready::Waits(reasons.unwrap_or_else(|_| format!("{} {}", answer.status, answer.text.trim()))))
}

/// Why a role is not ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unready {
    /// Nobody answers there.
    #[error(transparent)]
    Absent(#[from] AskError),
    /// It says what it waits for.
    #[error("{0}")]
    Waits(String),
}
