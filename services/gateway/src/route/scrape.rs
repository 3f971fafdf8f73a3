//! Asks replicas for their metrics, so that one that has enough to do gets no more.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::future::join_all;
use runtime::{Shutdown, exposition};

use super::guard::Told;
use super::{Pool, Replica};
use crate::forward::Client;
use crate::kind;
use crate::settings::Guard;

/// Asks all replicas again and again until shutdown, each time all at once.
pub(crate) async fn watch(pool: Arc<Pool>, client: Client, guard: Guard, shutdown: Shutdown) -> Result<(), Infallible> {
    loop {
        let all = pool.all();
        join_all(all.iter().map(|replica| ask(replica, &client, &guard))).await;
        pool.told();
        if !shutdown.sleep(guard.interval).await {
            return Ok(());
        }
    }
}

async fn ask(replica: &Replica, client: &Client, guard: &Guard) {
    let Some(names) = kind::of(replica.kind).metrics else { return };
    match tokio::time::timeout(guard.timeout, client.metrics(replica, names.path)).await {
        Ok(Ok(page)) => {
            let page = String::from_utf8_lossy(&page);
            replica.told(Told {
                running: exposition::sum(&page, names.running),
                waiting: exposition::sum(&page, names.waiting),
                kv_cache: names.kv_cache.and_then(|name| exposition::max(&page, name)),
            });
        }
        Ok(Err(error)) => tracing::debug!(replica = %replica.id, error, "the replica told no metrics"),
        Err(_) => tracing::debug!(replica = %replica.id, "the replica did not tell its metrics in time"),
    }
}
