//! A request open at a replica: closed when dropped, and what it says of the replica's health.

use std::sync::Arc;

use ledger::ids::ModelVersion;

use super::replica::{Reading, Replica};
use super::table::{Routes, Version};
use crate::settings::Ejection;

/// See the module. Dropped without a word, it says nothing of the replica: the client went away, for one.
#[derive(Debug)]
pub(crate) struct Lease {
    replica: Arc<Replica>,
    routes: Arc<Routes>,
    place: usize,
    reading: Reading,
    max_ejected_percent: u8,
}

impl Lease {
    /// None if the replica has so many requests already.
    pub(super) fn open(
        replica: &Arc<Replica>,
        limit: u32,
        routes: &Arc<Routes>,
        place: usize,
        (uncached, streamed): (u64, bool),
        ejection: &Ejection,
    ) -> Option<Self> {
        replica.open(limit).then(|| Self {
            replica: Arc::clone(replica),
            routes: Arc::clone(routes),
            place,
            reading: replica.reads(uncached, streamed),
            max_ejected_percent: ejection.max_percent,
        })
    }

    fn served_version(&self) -> &Version {
        self.routes.version(self.place)
    }

    /// The version of the model that is served.
    pub(crate) fn version(&self) -> &ModelVersion {
        &self.served_version().version
    }

    /// What the replica knows it as.
    pub(crate) fn served_name(&self) -> &str {
        &self.served_version().served_name
    }

    /// The model is an adapter, which a replica may be without and yet serve others.
    pub(crate) fn is_of_adapter(&self) -> bool {
        self.routes.is_adapter
    }

    /// The first token of a stream came: the prompt was read.
    pub(crate) fn first_token(&mut self) {
        self.replica.has_read(&mut self.reading, true);
    }

    /// The answer came to its end.
    pub(crate) fn served(self) {
        self.replica.served();
    }

    /// The replica failed.
    pub(crate) fn failed(self, why: &str) {
        let peers = &self.routes.replicas;
        self.replica.failed(why, |now| {
            let ejected = peers.iter().filter(|peer| peer.is_ejected(now)).count();
            (ejected + 1) * 100 <= peers.len() * usize::from(self.max_ejected_percent)
        });
    }

    /// The replica refused the request because it has too much to do.
    pub(crate) fn overloaded(self) {
        self.replica.overloaded();
    }
}

impl std::ops::Deref for Lease {
    type Target = Replica;
    fn deref(&self) -> &Replica {
        &self.replica
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.replica.has_read(&mut self.reading, false);
        self.replica.close();
    }
}
