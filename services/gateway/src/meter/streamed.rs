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
use crate::endpoint::ErrorShape;
use crate::error::Refusal;
use crate::forward::Incoming;
use crate::record::{End, Meter};
use crate::route::Lease;

/// After `[DONE]` the replica's end of the body is waited for this long, so that its connection can be used again.
const GRACE: Duration = Duration::from_millis(250);

/// How long a replica may be silent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// Until the first token.
    pub first_token: Instant,
    /// Between two frames.
    pub idle: Duration,
    /// How often a client hears something, if nothing comes.
    pub keepalive: Option<Duration>,
    /// Until the end of it all.
    pub total: Instant,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Streamed {
    /// Gone once nothing of it matters any more: its connection is then closed.
    upstream: Option<Incoming>,
    /// What was read of it before.
    read: Bytes,
    scanner: Scanner,
    /// Gone once the request has ended. Dropped with the client's connection, it ends the request.
    meter: Option<Meter>,
    times: Times,
    until: Instant,
    done: bool,
    lease: Option<Lease>,
}

impl Streamed {
    /// The answer whose head has come, and of its body so much.
    pub(crate) fn new(
        (upstream, read): (Incoming, Bytes),
        lease: Lease,
        scanner: Scanner,
        meter: Meter,
        times: Times,
    ) -> Self {
        let (until, upstream) = (times.first_token, Some(upstream));
        Self { upstream, read, scanner, meter: Some(meter), times, until, done: false, lease: Some(lease) }
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
            let ended = match self.hear().await {
                Heard::Data(data) => self.take(&data, &mut out),
                Heard::Nothing => return Some(self.sign_of_life()),
                Heard::Late => self.broken(EndReason::Deadline, &Refusal::deadline(), &mut out),
                // An engine that told of its failure has said all.
                Heard::End if self.scanner.error().is_some() => Some(self.complete(&mut out)),
                Heard::End => self.broken(EndReason::UpstreamError, &Refusal::upstream(), &mut out),
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

    /// What the replica says next: first what was read of it before.
    async fn hear(&mut self) -> Heard {
        if !self.read.is_empty() {
            return Heard::Data(std::mem::take(&mut self.read));
        }
        let Some(upstream) = &mut self.upstream else { return Heard::End };
        let until = self.until.min(self.times.total);
        let quiet = self.times.keepalive.map(|interval| Instant::now() + interval).filter(|quiet| *quiet < until);
        match tokio::time::timeout_at(quiet.unwrap_or(until), upstream.frame()).await {
            Err(_) if quiet.is_some() => Heard::Nothing,
            Err(_) => Heard::Late,
            Ok(None | Some(Err(_))) => Heard::End,
            Ok(Some(Ok(frame))) => Heard::Data(frame.into_data().unwrap_or_default()),
        }
    }

    /// What a client gets that hears nothing else: events come whole, so it never lies within one.
    fn sign_of_life(&self) -> Bytes {
        if let Some(meter) = &self.meter {
            meter.kept_alive();
        }
        // Anthropic's clients know an event for it, and its stream has no comments.
        Bytes::from_static(match self.scanner.endpoint().errors {
            ErrorShape::Anthropic => b"event: ping\ndata: {\"type\": \"ping\"}\n\n",
            ErrorShape::OpenAi | ErrorShape::Responses => b": keep-alive\n\n",
        })
    }

    /// Bytes of the replica. Their counts are stored before they are handed on.
    fn take(&mut self, data: &[u8], out: &mut BytesMut) -> Option<Ended> {
        let stands = self.scanner.push(data, out);
        if self.scanner.is_answered() {
            // Until then it is the first token that is waited for, whatever signs of life an engine sends.
            self.until = Instant::now() + self.times.idle;
        }
        if let Some(meter) = &mut self.meter
            && self.scanner.is_answered()
        {
            meter.received(self.scanner.totals(), self.scanner.is_estimated());
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

    /// The stream's own end came.
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
        out.extend_from_slice(refusal.event(self.scanner.endpoint().errors).as_bytes());
        self.upstream = None;
        Some(self.finish(reason, Some(refusal.code.to_owned())))
    }

    fn finish(&mut self, reason: EndReason, error_code: Option<String>) -> Ended {
        let Some(meter) = self.meter.take() else { return Ended(None, None) };
        let code = error_code.clone();
        let (spool, status) = (meter.spool(), meter.status());
        let usage = self.scanner.sum();
        if self.scanner.is_answered() && self.scanner.is_estimated() && usage.is_none() {
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

/// What came of a replica, or did not.
enum Heard {
    Data(Bytes),
    /// Silence, for so long that the client is to hear something.
    Nothing,
    /// Silence for too long.
    Late,
    /// The end of the body, or of the connection.
    End,
}

/// A request that has its end, and what of it must be durable.
struct Ended(Option<Spool>, Option<Finished>);
