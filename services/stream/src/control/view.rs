//! What readers of the control log hold: the newest state, and word of the next one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use ledger::control::{ControlState, Rejected};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

/// A state of the control log.
#[derive(Debug, Clone, Default)]
pub struct ControlSnapshot {
    /// All documents.
    pub state: ControlState,
    /// The next offset: everything below it is in the state.
    pub offset: i64,
    /// When, up to its publication, it was last known to be all that the log holds: microseconds since 1970, 0 for never.
    pub fresh_at: i64,
}

/// What became of a write: the revision after it, and its offset.
pub(super) type Outcome = (i64, Result<u64, Rejected>);

struct Shared {
    current: ArcSwap<ControlSnapshot>,
    offset: watch::Sender<i64>,
    caught_up: watch::Sender<bool>,
    loaded: watch::Sender<bool>,
    pending: Mutex<HashMap<Uuid, oneshot::Sender<Outcome>>>,
}

/// The newest state, for reading. Cheap to clone.
#[derive(Clone)]
pub struct ControlView(Arc<Shared>);

/// The one end that puts new states into a view. [`super::ControlReader`] holds it; a process without a log (a tool, a
/// test) holds it itself.
pub struct ControlPublisher(Arc<Shared>);

impl std::fmt::Debug for ControlView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlView").field("offset", &self.0.current.load().offset).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ControlPublisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlPublisher").field("offset", &self.0.current.load().offset).finish_non_exhaustive()
    }
}

impl ControlView {
    /// A view that shows `first` until something else is published. `loaded`: whether `first` is a state to work from,
    /// and not merely an empty beginning.
    pub fn new(first: ControlSnapshot, loaded: bool) -> (ControlPublisher, Self) {
        let shared = Arc::new(Shared {
            offset: watch::Sender::new(first.offset),
            caught_up: watch::Sender::new(false),
            loaded: watch::Sender::new(loaded),
            current: ArcSwap::from_pointee(first),
            pending: Mutex::default(),
        });
        (ControlPublisher(shared.clone()), Self(shared))
    }

    /// The newest state.
    pub fn load(&self) -> Arc<ControlSnapshot> {
        self.0.current.load_full()
    }

    /// The newest state's next offset, and a wake-up at each new one.
    pub fn subscribe(&self) -> watch::Receiver<i64> {
        self.0.offset.subscribe()
    }

    /// Returns once the state holds everything below `offset`.
    pub async fn wait_for(&self, offset: i64) {
        // The sender lives as long as this view: it cannot be closed.
        let _ = self.0.offset.subscribe().wait_for(|next| *next >= offset).await;
    }

    /// Whether, at least once since the start, everything was read that the log held when its reading began.
    pub fn caught_up(&self) -> bool {
        *self.0.caught_up.borrow()
    }

    /// Returns once [`ControlView::caught_up`].
    pub async fn wait_caught_up(&self) {
        let _ = self.0.caught_up.subscribe().wait_for(|caught_up| *caught_up).await;
    }

    /// Whether there is a state to work from: that of the durable snapshot, or one that was read to the log's end.
    pub fn is_loaded(&self) -> bool {
        *self.0.loaded.borrow()
    }

    /// Returns once [`ControlView::is_loaded`].
    pub async fn wait_loaded(&self) {
        let _ = self.0.loaded.subscribe().wait_for(|loaded| *loaded).await;
    }

    /// Asks to be told what becomes of the write with this id. Forgotten when the answer is dropped.
    pub(super) fn expect(&self, write: Uuid) -> Expected {
        let (sender, receiver) = oneshot::channel();
        pending(&self.0).insert(write, sender);
        Expected { view: self.clone(), write, receiver }
    }
}

impl ControlPublisher {
    /// Shows a new state.
    pub fn publish(&self, snapshot: ControlSnapshot) {
        let offset = snapshot.offset;
        self.0.current.store(Arc::new(snapshot));
        self.0.offset.send_replace(offset);
    }

    /// The state holds all that the log held when its reading began.
    pub fn caught_up(&self) {
        for flag in [&self.0.loaded, &self.0.caught_up] {
            flag.send_if_modified(|flag| !std::mem::replace(flag, true));
        }
    }

    /// Tells whoever waits for this write. Only after the state that it led to is published, so that who is answered
    /// reads what it wrote.
    pub(super) fn tell(&self, write: Uuid, outcome: Outcome) {
        if let Some(waiting) = pending(&self.0).remove(&write) {
            let _ = waiting.send(outcome);
        }
    }

    /// Whether anybody here waits for this write.
    pub(super) fn is_expected(&self, write: Uuid) -> bool {
        pending(&self.0).contains_key(&write)
    }
}

/// A write that somebody waits for.
pub(super) struct Expected {
    view: ControlView,
    write: Uuid,
    receiver: oneshot::Receiver<Outcome>,
}

impl Expected {
    /// What became of it; none if nobody reads the log any more.
    pub(super) async fn outcome(&mut self) -> Option<Outcome> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        pending(&self.view.0).remove(&self.write);
    }
}

/// A map of senders cannot be half changed, so a lock poisoned by a panic elsewhere is as good as any.
fn pending(shared: &Shared) -> std::sync::MutexGuard<'_, HashMap<Uuid, oneshot::Sender<Outcome>>> {
    shared.pending.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_ends_when_the_state_is_there() {
        let (publisher, view) = ControlView::new(ControlSnapshot::default(), false);
        let waits = view.wait_for(3);
        let publishes = async {
            publisher.publish(ControlSnapshot { offset: 2, ..Default::default() });
            publisher.publish(ControlSnapshot { offset: 4, ..Default::default() });
        };
        tokio::join!(waits, publishes);
        assert_eq!(view.load().offset, 4);
        assert!(!view.is_loaded() && !view.caught_up());
        publisher.caught_up();
        view.wait_caught_up().await;
        assert!(view.is_loaded());
    }

    #[tokio::test]
    async fn a_write_that_nobody_waits_for_any_more_is_forgotten() {
        let (publisher, view) = ControlView::new(ControlSnapshot::default(), false);
        let (kept, dropped) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut expected = view.expect(kept);
        drop(view.expect(dropped));
        assert!(publisher.is_expected(kept) && !publisher.is_expected(dropped));
        publisher.tell(dropped, (0, Ok(1)));
        publisher.tell(kept, (7, Ok(3)));
        assert_eq!(expected.outcome().await, Some((7, Ok(3))));
    }
}
