//! Asks every replica for its health, so that none gets requests that it cannot answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use runtime::Shutdown;

use super::{Pool, Replica};
use crate::forward::Client;

/// Asks all replicas again and again until shutdown, each time all at once; at once when control names others.
pub(crate) async fn watch(
    pool: Arc<Pool>,
    client: Client,
    interval: Duration,
    timeout: Duration,
    shutdown: Shutdown,
) -> Result<(), Infallible> {
    loop {
        let all = pool.all();
        join_all(all.iter().map(|replica| ask(replica, &client, timeout))).await;
        tokio::select! {
            goes_on = shutdown.sleep(interval) => if !goes_on {
                return Ok(());
            },
            () = pool.renewed() => {}
        }
    }
}

async fn ask(replica: &Replica, client: &Client, timeout: Duration) {
    match tokio::time::timeout(timeout, client.health(replica)).await {
        Ok(Ok(status)) if status.is_success() => replica.seen(true, ""),
        Ok(Ok(status)) => replica.seen(false, &format!("its health check says {status}")),
        Ok(Err(error)) => replica.seen(false, &format!("its health check failed: {error}")),
        Err(_) => replica.seen(false, "its health check did not answer in time"),
    }
}
