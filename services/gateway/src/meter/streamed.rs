//! A streamed answer on its way to the client: counted before it is handed on, settled before its end is.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use schemas::event::EndReason;
use tokio::time::{Instant, Sleep, sleep_until};

use super::scanner::{Scanner, Stands};
use crate::endpoint::ErrorShape;
use crate::error::Refusal;
use crate::forward::Incoming;
use crate::record::{End, Meter};
use crate::route::Lease;

/// After `[DONE]` the replica's end of the body is waited for this long, so that its connection can be used again.
const GRACE: Duration = Duration::from_millis(250);
/// What is there already is handed on together, up to so many bytes and what came with the last of them.
const TOGETHER: usize = 64 << 10;

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

/// See the module: a body.
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
    /// When the client last got something.
    heard: Instant,
    /// Set for a time that mostly has moved on by then: it is set anew when it fires, and not for each frame.
    timer: Option<Pin<Box<Sleep>>>,
    step: Step,
    lease: Option<Lease>,
}

/// How far a stream has come.
enum Step {
    Open,
    /// Its end is made durable before the client gets the last bytes.
    Settling(Pin<Box<dyn Future<Output = ()> + Send>>, Bytes),
    /// The client has it all.
    Over,
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
        Self {
            upstream: Some(upstream),
            read,
            scanner,
            meter: Some(meter),
            times,
            until: times.first_token,
            heard: Instant::now(),
            timer: None,
            step: Step::Open,
            lease: Some(lease),
        }
    }

    /// The next bytes for the client: all that are there. At the end of the answer there are none, and the step is another.
    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        let mut out = BytesMut::new();
        loop {
            let heard = match self.poll_upstream(context) {
                Poll::Ready(heard) => heard,
                Poll::Pending if !out.is_empty() => break,
                Poll::Pending => ready!(self.poll_silence(context)),
            };
            let ended = match heard {
                Heard::Data(data) => self.take(&data, &mut out),
                Heard::Nothing => return Poll::Ready(self.sign_of_life()),
                Heard::Late => Some((EndReason::Deadline, Some(Refusal::deadline()))),
                // An engine that told of its failure has said all.
                Heard::End if self.scanner.error().is_some() => Some((EndReason::UpstreamError, None)),
                Heard::End => Some((EndReason::UpstreamError, Some(Refusal::upstream()))),
            };
            if let Some((reason, refusal)) = ended {
                self.count();
                self.finish(reason, refusal, out);
                return Poll::Ready(Bytes::new());
            }
            if out.len() >= TOGETHER {
                break;
            }
        }
        self.count();
        Poll::Ready(out.freeze())
    }

    /// What the replica says next: first what was read of it before.
    fn poll_upstream(&mut self, context: &mut Context<'_>) -> Poll<Heard> {
        if !self.read.is_empty() {
            return Poll::Ready(Heard::Data(std::mem::take(&mut self.read)));
        }
        let Some(upstream) = &mut self.upstream else { return Poll::Ready(Heard::End) };
        Poll::Ready(match ready!(Pin::new(upstream).poll_frame(context)) {
            None | Some(Err(_)) => Heard::End,
            Some(Ok(frame)) => Heard::Data(frame.into_data().unwrap_or_default()),
        })
    }

    /// That it has said nothing for long, or for too long.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<Heard> {
        let late = self.until.min(self.times.total);
        let quiet = self.times.keepalive.map(|interval| self.heard + interval).filter(|quiet| *quiet < late);
        let due = quiet.unwrap_or(late);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() > due {
            timer.as_mut().reset(due);
        }
        loop {
            ready!(timer.as_mut().poll(context));
            if Instant::now() >= due {
                break;
            }
            timer.as_mut().reset(due);
        }
        Poll::Ready(if quiet.is_some() { Heard::Nothing } else { Heard::Late })
    }

    /// What a client gets that hears nothing else: events come whole, so it never lies within one.
    fn sign_of_life(&mut self) -> Bytes {
        self.heard = Instant::now();
        if let Some(meter) = &self.meter {
            meter.kept_alive();
        }
        // Anthropic's clients know an event for it, and its stream has no comments.
        Bytes::from_static(match self.scanner.endpoint().errors {
            ErrorShape::Anthropic => b"event: ping\ndata: {\"type\": \"ping\"}\n\n",
            ErrorShape::OpenAi | ErrorShape::Responses => b": keep-alive\n\n",
        })
    }

    /// Bytes of the replica. If they end the answer, how.
    fn take(&mut self, data: &[u8], out: &mut BytesMut) -> Option<(EndReason, Option<Refusal>)> {
        match self.scanner.push(data, out) {
            Ok(Stands::Open) => None,
            // An engine that gives up says so in its own words, with its own counts; it has failed all the same.
            Ok(Stands::Done) if self.scanner.error().is_some() || self.scanner.is_aborted() => {
                Some((EndReason::UpstreamError, None))
            }
            Ok(Stands::Done) => Some((EndReason::Complete, None)),
            Err(_) => Some((EndReason::UpstreamError, Some(Refusal::upstream()))),
        }
    }

    /// Stores what was counted, before the bytes it came with are handed on.
    fn count(&mut self) {
        let now = Instant::now();
        self.heard = now;
        if !self.scanner.is_answered() {
            return;
        }
        // Until then it is the first token that is waited for, whatever signs of life an engine sends.
        self.until = now + self.times.idle;
        if let Some(meter) = &mut self.meter {
            meter.received(self.scanner.totals(), self.scanner.is_estimated());
            meter.first_byte();
        }
        if let Some(lease) = &mut self.lease {
            lease.first_token();
        }
    }

    /// The one end of it. With a refusal the replica failed or was too slow: the client is told, in the stream.
    fn finish(&mut self, reason: EndReason, refusal: Option<Refusal>, mut out: BytesMut) {
        out.extend_from_slice(&self.scanner.rest());
        if let Some(refusal) = &refusal {
            out.extend_from_slice(refusal.event(self.scanner.endpoint().errors).as_bytes());
            self.upstream = None;
        }
        self.step = Step::Over;
        let Some(mut meter) = self.meter.take() else { return };
        let code = refusal.map(|refusal| refusal.code).or(self.scanner.error()).map(str::to_owned);
        let usage = self.scanner.sum();
        if self.scanner.is_answered() && self.scanner.is_estimated() && usage.is_none() {
            tracing::warn!(request = %meter.request_id(), trace = meter.trace_id(), model = %meter.model(), "the engine told no usage: pieces of the answer were counted in its place");
        }
        let (spool, status) = (meter.spool(), meter.status());
        meter.finished_by(self.scanner.finishes());
        let finished = meter.finish(End { reason, status, error_code: code.clone(), usage });
        // After that: who is next is decided by what this one has used.
        self.let_go(reason, code.as_deref());
        let settled = async move { Meter::durable(&spool, finished).await };
        self.step = Step::Settling(Box::pin(settled), out.freeze());
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

    /// Reads the rest of the replica's body, which is its end.
    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(upstream) = &mut self.upstream else { return Poll::Ready(()) };
        loop {
            match Pin::new(&mut *upstream).poll_frame(context) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(None | Some(Err(_))) => break,
                Poll::Pending => {
                    let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + GRACE)));
                    ready!(timer.as_mut().poll(context));
                    break;
                }
            }
        }
        self.upstream = None;
        Poll::Ready(())
    }
}

impl HttpBody for Streamed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let streamed = self.get_mut();
        loop {
            let bytes = match &mut streamed.step {
                Step::Open => ready!(streamed.poll_open(context)),
                Step::Settling(settled, last) => {
                    ready!(settled.as_mut().poll(context));
                    let last = std::mem::take(last);
                    (streamed.step, streamed.timer) = (Step::Over, None);
                    last
                }
                Step::Over => {
                    ready!(streamed.poll_rest(context));
                    return Poll::Ready(None);
                }
            };
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
        }
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
