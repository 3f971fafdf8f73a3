//! A streamed answer on its way to the client: counted before it is handed on, settled before its end is.

use std::convert::Infallible;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::unfold;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use schemas::event::EndReason;
use stream::spool::{Finished, Spool};
use tokio::time::Instant;

use super::scanner::{Scanner, Stands};
use crate::Body;
use crate::error::Refusal;
use crate::forward::Incoming;
use crate::record::{End, Meter};
use crate::route::Lease;

/// After `[DONE]` the replica's end of the body is waited for this long, so that its connection can be used again.
const GRACE: Duration = Duration::from_millis(250);

/// How long a replica may be silent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// Until the first byte.
    pub first_byte: Instant,
    /// Between two frames.
    pub idle: Duration,
    /// Until the end of it all.
    pub total: Instant,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Streamed {
    /// Gone once nothing of it matters any more: its connection is then closed.
    upstream: Option<Incoming>,
    scanner: Scanner,
    /// Gone once the request has ended. Dropped with the client's connection, it ends the request.
    meter: Option<Meter>,
    times: Times,
    until: Instant,
    done: bool,
    lease: Option<Lease>,
}

impl Streamed {
    /// The answer whose head has come.
    pub(crate) fn new(upstream: Incoming, lease: Lease, scanner: Scanner, meter: Meter, times: Times) -> Self {
        let until = times.first_byte;
        Self { upstream: Some(upstream), scanner, meter: Some(meter), times, until, done: false, lease: Some(lease) }
    }

    /// As a body.
    pub(crate) fn into_body(self) -> Body {
        let frames = unfold(self, async |mut streamed| {
            let bytes = streamed.next().await?;
            Some((Ok::<_, Infallible>(Frame::data(bytes)), streamed))
        });
        Body::new(StreamBody::new(frames))
    }

    /// The next bytes for the client; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.done {
                self.see_off().await;
                return None;
            }
            let mut out = BytesMut::new();
            let until = self.until.min(self.times.total);
            let Some(upstream) = &mut self.upstream else { return None };
            let ended = match tokio::time::timeout_at(until, upstream.frame()).await {
                Err(_) => self.broken(EndReason::Deadline, &Refusal::deadline(), &mut out),
                Ok(None | Some(Err(_))) => self.broken(EndReason::UpstreamError, &Refusal::upstream(), &mut out),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.take(&data, &mut out),
                    Err(_) => continue,
                },
            };
            if let Some(finished) = ended {
                self.done = true;
                let Some(spool) = finished.0 else { return Some(out.freeze()) };
                Meter::durable(&spool, finished.1).await;
            }
            if !out.is_empty() {
                return Some(out.freeze());
            }
        }
    }

    /// Bytes of the replica. Their counts are stored before they are handed on.
    fn take(&mut self, data: &[u8], out: &mut BytesMut) -> Option<Ended> {
        self.until = Instant::now() + self.times.idle;
        let stands = self.scanner.push(data, out);
        if let Some(meter) = &mut self.meter
            && self.scanner.is_answered()
        {
            meter.received(self.scanner.totals());
            meter.first_byte();
            if let Some(lease) = &mut self.lease {
                lease.first_token();
            }
        }
        match stands {
            Ok(Stands::Open) => None,
            Ok(Stands::Done) => Some(self.complete(out)),
            Err(_) => self.broken(EndReason::UpstreamError, &Refusal::upstream(), out),
        }
    }

    /// `[DONE]` came.
    fn complete(&mut self, out: &mut BytesMut) -> Ended {
        let rest = self.scanner.rest();
        out.extend_from_slice(&rest);
        let error = self.scanner.error().map(str::to_owned);
        // An engine that gives up says so in its own words, with its own counts; it has failed all the same.
        let failed = error.is_some() || self.scanner.is_aborted();
        let reason = if failed { EndReason::UpstreamError } else { EndReason::Complete };
        self.finish(reason, error)
    }

    /// The replica failed, or was too slow: the client is told, in the stream.
    fn broken(&mut self, reason: EndReason, refusal: &Refusal, out: &mut BytesMut) -> Option<Ended> {
        let held = self.scanner.rest();
        out.extend_from_slice(&held);
        out.extend_from_slice(refusal.event().as_bytes());
        self.upstream = None;
        Some(self.finish(reason, Some(refusal.code.to_owned())))
    }

    fn finish(&mut self, reason: EndReason, error_code: Option<String>) -> Ended {
        let Some(meter) = self.meter.take() else { return Ended(None, None) };
        let code = error_code.clone();
        let (spool, status) = (meter.spool(), meter.status());
        let usage = self.scanner.sum();
        if self.scanner.is_estimated() && usage.is_none() {
            tracing::warn!(request = %meter.request_id(), model = %meter.model(), "the engine told no usage: pieces of the answer were counted in its place");
        }
        let finished = meter.finish(End { reason, status, error_code, usage });
        // After that: who is next is decided by what this one has used.
        self.let_go(reason, code.as_deref());
        Ended(Some(spool), finished)
    }

    /// The replica is free, and what became of its answer says how it does.
    fn let_go(&mut self, reason: EndReason, error: Option<&str>) {
        let Some(lease) = self.lease.take() else { return };
        let clients_fault = error.is_some_and(|code| code.starts_with('4'));
        match reason {
            EndReason::Complete => lease.served(),
            EndReason::UpstreamError if !clients_fault => lease.failed("its stream broke off"),
            EndReason::Deadline if Instant::now() < self.times.total => lease.failed("it fell silent"),
            _ => {}
        }
    }

    /// The rest of the replica's body, which is its end.
    async fn see_off(&mut self) {
        let Some(mut upstream) = self.upstream.take() else { return };
        let rest = async { while let Some(Ok(_)) = upstream.frame().await {} };
        let _ = tokio::time::timeout(GRACE, rest).await;
    }
}

/// A request that has its end, and what of it must be durable.
struct Ended(Option<Spool>, Option<Finished>);
