//! The access log: one line for each request that has ended. No prompt, no key, no answer, nothing that a client chose freely.

use std::time::Duration;

use ledger::ids::RequestId;
use ledger::tokens::TokenCounts;
use opentelemetry::trace::TraceId;
use schemas::event::EndReason;

use crate::admit::policy::Tenant;
use crate::settings::AccessLog;

/// What is known of a request at its end.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub request: RequestId,
    pub trace: Option<TraceId>,
    pub endpoint: Option<&'a str>,
    pub tenant: Option<&'a Tenant>,
    pub project: Option<&'a str>,
    pub model: Option<&'a str>,
    pub replica: Option<&'a str>,
    /// What the client got; 0 for nothing.
    pub status: u16,
    pub reason: EndReason,
    pub code: Option<&'a str>,
    pub tokens: TokenCounts,
    pub attempts: u32,
    pub waited: Option<Duration>,
    pub first_token: Option<Duration>,
    pub took: Duration,
}

macro_rules! line {
    ($level:ident, $line:expr) => {{
        let line: &Line<'_> = $line;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        tracing::$level!(
            target: "gateway::access",
            request = %line.request,
            trace = line.trace.map(tracing::field::display),
            endpoint = line.endpoint,
            tenant = line.tenant.map(|tenant| tracing::field::display(&tenant.id)),
            plan = line.tenant.map(|tenant| tracing::field::display(&tenant.plan_id)),
            project = line.project,
            model = line.model,
            replica = line.replica,
            status = line.status,
            reason = line.reason.as_str(),
            code = line.code,
            input = line.tokens.input,
            cached_input = line.tokens.cached_input,
            output = line.tokens.output,
            reasoning = line.tokens.reasoning,
            attempts = line.attempts,
            waited_ms = line.waited.map(millis),
            first_token_ms = line.first_token.map(millis),
            took_ms = millis(line.took),
            "request"
        )
    }};
}

impl Line<'_> {
    /// Writes it, at the level that the settings give it.
    pub(crate) fn write(&self, level: AccessLog) {
        let failed = matches!(self.reason, EndReason::UpstreamError | EndReason::Deadline | EndReason::Drained);
        match level {
            AccessLog::Off => {}
            AccessLog::Debug if !failed => line!(debug, self),
            AccessLog::Info | AccessLog::Debug => line!(info, self),
        }
    }
}
