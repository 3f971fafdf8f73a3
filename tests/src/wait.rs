//! Waiting for a condition with a deadline: time is never a proof, only a bound.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Asks until the answer is `Ok`, and gives it; after `limit` it fails with the last answer.
pub async fn until<T, E: Debug>(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Result<T, E>) -> T {
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(last) if began.elapsed() >= limit => panic!("waited {limit:?} for {what}; last: {last:?}"),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
