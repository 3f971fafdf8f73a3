//! Which replica answers: the one with the fewest open requests among those that are up.

pub(crate) mod health;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderValue;
use http::uri::{Authority, Scheme, Uri};
use ledger::control::Replica as ReplicaDocument;
use ledger::ids::{ModelId, ReplicaId};
use prometheus::{IntGauge, IntGaugeVec};

/// A server that answers for a model.
#[derive(Debug)]
pub(crate) struct Replica {
    pub id: ReplicaId,
    url: String,
    authority: Authority,
    host: HeaderValue,
    active: AtomicUsize,
    up: AtomicBool,
    active_gauge: IntGauge,
    up_gauge: IntGauge,
}

impl Replica {
    /// Host and port.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The same as a header.
    pub(crate) fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// Whether it may be given requests.
    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Notes whether it answers. Said in the log once per change.
    pub(crate) fn seen(&self, up: bool, why: &str) {
        self.up_gauge.set(i64::from(up));
        if self.up.swap(up, Ordering::Relaxed) != up {
            if up {
                tracing::info!(replica = %self.id, "the replica is up");
            } else {
                tracing::warn!(replica = %self.id, why, "the replica is down: it gets no requests until it is healthy");
            }
        }
    }
}

/// A request open at a replica; closed when dropped.
#[derive(Debug)]
pub(crate) struct Lease(Arc<Replica>);

impl Lease {
    fn new(replica: &Arc<Replica>) -> Self {
        replica.active.fetch_add(1, Ordering::Relaxed);
        replica.active_gauge.inc();
        Self(Arc::clone(replica))
    }
}

impl std::ops::Deref for Lease {
    type Target = Replica;
    fn deref(&self) -> &Replica {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
        self.0.active_gauge.dec();
    }
}

/// All replicas that control names. They outlive the snapshots that name them, with what is open there and who is up.
#[derive(Debug)]
pub(crate) struct Pool {
    replicas: Mutex<HashMap<ReplicaId, Arc<Replica>>>,
    active: IntGaugeVec,
    up: IntGaugeVec,
    turn: AtomicUsize,
}

impl Pool {
    /// No replicas yet. The gauges have one label, the replica.
    pub(crate) fn new(active: IntGaugeVec, up: IntGaugeVec) -> Self {
        Self { replicas: Mutex::default(), active, up, turn: AtomicUsize::new(0) }
    }

    /// Takes the replicas that control names now, and forgets all others. One that is new counts as up until it is seen
    /// to be down.
    pub(crate) fn take<'a>(
        &self,
        documents: impl Iterator<Item = (ReplicaId, &'a ReplicaDocument)>,
    ) -> HashMap<ModelId, Vec<Arc<Replica>>> {
        let mut known = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = HashMap::new();
        let mut by_model: HashMap<ModelId, Vec<Arc<Replica>>> = HashMap::new();
        for (id, document) in documents {
            let same = known.get(&id).filter(|replica| replica.url == document.url).cloned();
            let Some(replica) = same.or_else(|| self.create(&id, &document.url)) else { continue };
            by_model.entry(document.model.clone()).or_default().push(Arc::clone(&replica));
            now.insert(id, replica);
        }
        for gone in known.keys().filter(|id| !now.contains_key(*id)) {
            // What is still open there goes on with its own handle on the gauge, which nobody reads any more.
            for gauges in [&self.up, &self.active] {
                let _ = gauges.remove_label_values(&[gone.as_str()]);
            }
        }
        *known = now;
        by_model
    }

    fn create(&self, id: &ReplicaId, url: &str) -> Option<Arc<Replica>> {
        let known =
            authority_of(url).and_then(|authority| Some((HeaderValue::try_from(authority.as_str()).ok()?, authority)));
        let Some((host, authority)) = known else {
            tracing::error!(replica = %id, "its address is not http://host:port: it gets no requests");
            return None;
        };
        let (active_gauge, up_gauge) =
            (self.active.with_label_values(&[id.as_str()]), self.up.with_label_values(&[id.as_str()]));
        up_gauge.set(1);
        let (active, up) = (AtomicUsize::new(0), AtomicBool::new(true));
        Some(Arc::new(Replica {
            id: id.clone(),
            url: url.to_owned(),
            authority,
            host,
            active,
            up,
            active_gauge,
            up_gauge,
        }))
    }

    /// All of them, to be asked for their health.
    pub(crate) fn all(&self) -> Vec<Arc<Replica>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The one to ask next, if any is up that was not tried yet.
    pub(crate) fn pick(&self, among: &[Arc<Replica>], tried: &[ReplicaId]) -> Option<Lease> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = among.len();
        // Beginning at another one each time shares the load where all are equal.
        let in_turn = (0..count).filter_map(|step| among.get((turn.wrapping_add(step)) % count));
        let fit = in_turn.filter(|replica| replica.is_up() && !tried.contains(&replica.id));
        fit.min_by_key(|replica| replica.active.load(Ordering::Relaxed)).map(Lease::new)
    }
}

/// Host and port of `http://host:port`.
fn authority_of(url: &str) -> Option<Authority> {
    let uri: Uri = url.parse().ok()?;
    let bare = uri.scheme() == Some(&Scheme::HTTP) && uri.path() == "/" && uri.query().is_none();
    uri.authority().filter(|_| bare).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::Metrics;
    use runtime::metrics::Name;

    fn pool() -> Pool {
        pool_in(&Metrics::new())
    }

    fn pool_in(metrics: &Metrics) -> Pool {
        Pool::new(
            metrics.gauges(Name::GatewayReplicaActive, &["replica"]).unwrap(),
            metrics.gauges(Name::GatewayReplicaUp, &["replica"]).unwrap(),
        )
    }

    fn taken(pool: &Pool, urls: &[(&str, &str)]) -> Vec<Arc<Replica>> {
        let model: ModelId = "llama".parse().unwrap();
        let documents: Vec<_> =
            urls.iter().map(|(id, url)| (id.parse().unwrap(), ReplicaDocument::new(model.clone(), *url))).collect();
        pool.take(documents.iter().map(|(id, document): &(ReplicaId, _)| (id.clone(), document)))
            .remove(&model)
            .unwrap_or_default()
    }

    #[test]
    fn the_least_loaded_that_is_up_is_asked_and_none_twice() {
        let pool = pool();
        let two = taken(&pool, &[("a", "http://h:1"), ("b", "http://h:2")]);
        let (first, second) = (pool.pick(&two, &[]).unwrap(), pool.pick(&two, &[]).unwrap());
        assert_ne!(first.id, second.id);
        let free = first.id.clone();
        drop(first);
        assert_eq!(pool.pick(&two, &[]).unwrap().id, free);
        assert_eq!(pool.pick(&two, std::slice::from_ref(&free)).unwrap().id, second.id);
        two.iter().find(|replica| replica.id == free).unwrap().seen(false, "test");
        assert_eq!(pool.pick(&two, &[]).unwrap().id, second.id);
        assert!(pool.pick(&two, std::slice::from_ref(&second.id)).is_none());
        assert!(pool.pick(&[], &[]).is_none());
    }

    #[test]
    fn a_replica_that_is_gone_has_no_metrics() {
        let metrics = Metrics::new();
        let pool = pool_in(&metrics);
        let lease = pool.pick(&taken(&pool, &[("a", "http://h:1"), ("b", "http://h:2")]), &[]).unwrap();
        assert_eq!(metrics.text().matches("replica=\"").count(), 4);
        taken(&pool, &[]);
        drop(lease);
        assert_eq!(metrics.text().matches("replica=\"").count(), 0, "{}", metrics.text());
    }

    #[test]
    fn what_is_open_is_known_after_control_changes_and_bad_addresses_get_nothing() {
        let pool = pool();
        let before = taken(&pool, &[("a", "http://h:1"), ("b", "http://h:2")]);
        let lease = pool.pick(&before, &[]).unwrap();
        let after = taken(
            &pool,
            &[("a", "http://h:1"), ("b", "http://h:2"), ("c", "https://h:3"), ("d", "http://h:1/x"), ("e", "h")],
        );
        assert_eq!(after.len(), 2);
        assert_ne!(pool.pick(&after, &[]).unwrap().id, lease.id);
        assert_eq!(format!("http://{}", after[0].authority()), after[0].url);
        assert_eq!(pool.all().len(), 2);
    }
}
