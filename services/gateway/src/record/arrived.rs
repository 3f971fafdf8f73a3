//! A request as it came, until a meter takes it over: one that is refused, or answered without a replica, has its end here.

use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use ledger::ids::RequestId;
use ledger::tokens::TokenCounts;
use schemas::event::EndReason;
use uuid::Uuid;

use super::Recorder;
use super::access::Line;
use super::trace::Trace;
use crate::admit::policy::Tenant;

/// See the module. Dropped without an end, its client has gone.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub id: RequestId,
    pub begun: Instant,
    /// Where it was sent, if that is a path that is served.
    pub endpoint: Option<&'static str>,
    /// Whose it is, once that is known.
    pub tenant: Option<Arc<Tenant>>,
    /// Why it is refused, if it is.
    pub code: Option<&'static str>,
    trace: Trace,
    recorder: Arc<Recorder>,
    open: bool,
}

impl Arrived {
    /// Its head has just come.
    pub(crate) fn new(recorder: &Arc<Recorder>, headers: &HeaderMap) -> Self {
        let (id, begun) = (RequestId(Uuid::now_v7()), Instant::now());
        let trace = Trace::begin(recorder.traces.as_ref(), headers);
        Self { id, begun, endpoint: None, tenant: None, code: None, trace, recorder: Arc::clone(recorder), open: true }
    }

    /// A meter says its end, and goes on with its trace.
    pub(super) fn taken_over(&mut self) -> Trace {
        self.open = false;
        std::mem::take(&mut self.trace)
    }

    /// The client is about to get an answer with this status.
    pub(crate) fn answered(mut self, status: u16) {
        self.recorder.metrics.answered(status);
        self.end(EndReason::Complete, status);
    }

    fn end(&mut self, reason: EndReason, status: u16) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        self.trace.answered(self.endpoint, self.tenant.as_deref(), status, self.code);
        let line = Line {
            request: self.id,
            trace: self.trace.id(),
            endpoint: self.endpoint,
            tenant: self.tenant.as_deref(),
            project: None,
            model: None,
            replica: None,
            status,
            reason,
            code: self.code,
            tokens: TokenCounts::default(),
            attempts: 0,
            waited: None,
            first_token: None,
            took: self.begun.elapsed(),
        };
        line.write(self.recorder.access_log);
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        self.end(EndReason::ClientCancelled, 0);
    }
}
