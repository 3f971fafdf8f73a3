//! How an answer's bytes reach the connection: cut, joined, slowed, broken; and what the oracle notes of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::answer::{Answer, Event};
use super::errors::ENGINE_DEAD;
use super::faults::Fault;
use super::record::Entry;
use super::settings::SimulatorSettings;
use super::socket::SocketControl;

/// The connection is to be closed in the middle of an answer: a fault, not a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fault closes the connection")]
pub(super) struct Broken;

/// Notes that the client has gone, unless the request ended otherwise before.
#[derive(Debug)]
pub(super) struct EndGuard(pub(super) Arc<Entry>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.end("client_gone");
    }
}

/// Where events come from.
pub(super) enum Source {
    Stream(Box<Answer>),
    Whole(VecDeque<Event>),
}

impl Source {
    async fn next(&mut self) -> Option<Event> {
        match self {
            Self::Stream(answer) => answer.next().await,
            Self::Whole(events) => events.pop_front(),
        }
    }

    fn ended(&self) -> bool {
        match self {
            Self::Stream(answer) => answer.ended(),
            Self::Whole(events) => events.is_empty(),
        }
    }

    /// The last words of a stream whose engine died, if it has any.
    fn broken(&self) -> Option<String> {
        match self {
            Self::Stream(answer) => answer.broken(ENGINE_DEAD),
            Self::Whole(_) => None,
        }
    }

    fn cached_tokens(&self) -> Option<u32> {
        match self {
            Self::Stream(answer) => Some(answer.cached_tokens()),
            Self::Whole(_) => None,
        }
    }
}

/// The body of an answer.
pub(super) struct Wire {
    source: Source,
    fault: Option<Fault>,
    socket: Arc<SocketControl>,
    guard: Arc<EndGuard>,
    events: u32,
    pieces: VecDeque<Event>,
    piece_bytes: usize,
    join: u32,
    pause: Duration,
    paced: bool,
    closing: bool,
}

impl Wire {
    pub(super) fn new(
        source: Source,
        fault: Option<Fault>,
        socket: Arc<SocketControl>,
        guard: Arc<EndGuard>,
        settings: &SimulatorSettings,
    ) -> Self {
        let (piece_bytes, pause) = match fault {
            Some(Fault::SlowDrip { bytes, ms }) => (bytes, Duration::from_millis(ms)),
            _ => (settings.split_bytes, Duration::ZERO),
        };
        Self {
            source,
            fault,
            socket,
            guard,
            events: 0,
            pieces: VecDeque::new(),
            piece_bytes: usize::try_from(piece_bytes).unwrap_or(0),
            join: settings.events_per_chunk,
            pause,
            paced: false,
            closing: false,
        }
    }

    /// The next bytes for the connection, or the order to break it.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        if self.pieces.is_empty() {
            match self.fill().await {
                Ok(()) => {}
                Err(broken) => {
                    // Let what was handed over leave first.
                    tokio::task::yield_now().await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    return Some(Err(broken));
                }
            }
        } else if self.paced {
            if self.pause.is_zero() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(self.pause).await;
            }
        }
        let piece = self.pieces.pop_front()?;
        self.paced = true;
        self.guard.0.wire_tokens.fetch_add(piece.tokens, Ordering::AcqRel);
        if self.pieces.is_empty() && self.source.ended() && !self.breaks_later() {
            self.finish();
        }
        Some(Ok(piece.bytes))
    }

    /// A fault that is still to come although all events are out: dying after the last one.
    fn breaks_later(&self) -> bool {
        matches!(self.fault, Some(Fault::Die { after, .. }) if after == self.events)
    }

    fn finish(&mut self) {
        let outcome =
            match self.fault {
                Some(Fault::Abort { .. }) => "abort",
                Some(
                    fault @ (Fault::Malformed { after } | Fault::NoDone { after } | Fault::ErrorMidStream { after }),
                ) if after < self.events => fault.name(),
                _ => "complete",
            };
        self.guard.0.end(outcome);
    }

    /// Gets the next events, as many as travel together.
    async fn fill(&mut self) -> Result<(), Broken> {
        let mut joined = BytesMut::new();
        let mut tokens = 0;
        for _ in 0..self.join {
            let Some(event) = self.next_event().await? else { break };
            self.events += 1;
            self.guard.0.wire_events.fetch_add(1, Ordering::AcqRel);
            tokens += event.tokens;
            joined.extend_from_slice(&event.bytes);
            if let Some(cached) = self.source.cached_tokens() {
                self.guard.0.cached.store(u64::from(cached), Ordering::Release);
            }
        }
        let mut rest = joined.freeze();
        while self.piece_bytes > 0 && rest.len() > self.piece_bytes {
            self.pieces.push_back(Event { bytes: rest.split_to(self.piece_bytes), tokens: 0 });
        }
        if !rest.is_empty() {
            self.pieces.push_back(Event { bytes: rest, tokens });
        }
        Ok(())
    }

    async fn next_event(&mut self) -> Result<Option<Event>, Broken> {
        if self.closing {
            return Ok(None);
        }
        match self.fault {
            Some(Fault::Stall { after, ms }) if after == self.events && after > 0 => stall(ms).await,
            Some(Fault::Die { after, reset }) if after == self.events => {
                self.guard.0.end(if reset { "reset_mid_stream" } else { "die_mid_stream" });
                self.socket.reset_on_close(reset);
                return Err(Broken);
            }
            Some(Fault::NoDone { after }) if after == self.events => {
                self.close("no_done");
                return Ok(None);
            }
            Some(Fault::ErrorMidStream { after }) if after == self.events => {
                let last = self.source.broken();
                self.close("error_mid_stream");
                return last.map(|text| Some(Event::new(text, 0))).ok_or(Broken);
            }
            Some(Fault::Malformed { after }) if after == self.events => {
                return Ok(self.source.next().await.map(|event| cut(&event)));
            }
            _ => {}
        }
        Ok(self.source.next().await)
    }

    /// Nothing more will come; the engine is told by dropping what it fills.
    fn close(&mut self, outcome: &str) {
        self.closing = true;
        self.guard.0.end(outcome);
        self.source = Source::Whole(VecDeque::new());
    }
}

/// Silence; 0 is for ever (until the client goes).
pub(super) async fn stall(ms: u64) {
    if ms == 0 {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// An event whose JSON breaks off in the middle.
fn cut(event: &Event) -> Event {
    let data = event.bytes.windows(6).position(|window| window == b"data: ").map_or(0, |at| at + 6);
    let mut bytes = BytesMut::from(&event.bytes[..data + (event.bytes.len() - data) / 2]);
    bytes.extend_from_slice(b"\n\n");
    Event { bytes: bytes.freeze(), tokens: event.tokens }
}
