//! Asks replicas for their metrics, so that one that has enough to do gets no more.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::future::join_all;
use ledger::control::ReplicaKind;
use runtime::Shutdown;

use super::guard::Told;
use super::{Pool, Replica, exposition};
use crate::forward::Client;
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

/// Where a kind of engine says how busy it is.
struct Names {
    path: &'static str,
    running: &'static str,
    waiting: &'static str,
    kv_cache: Option<&'static str>,
}

fn names(kind: ReplicaKind) -> Option<Names> {
    let [running, waiting, kv_cache] = match kind {
        ReplicaKind::Vllm => {
            ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"].map(Some)
        }
        ReplicaKind::Sglang => ["sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage"].map(Some),
        ReplicaKind::Tgi => [Some("tgi_batch_current_size"), Some("tgi_queue_size"), None],
        ReplicaKind::OpenaiCompatible => return None,
    };
    Some(Names { path: "/metrics", running: running?, waiting: waiting?, kv_cache })
}

async fn ask(replica: &Replica, client: &Client, guard: &Guard) {
    let Some(names) = names(replica.kind) else { return };
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
