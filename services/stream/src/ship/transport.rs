//! What shipping asks of Kafka, so that a test can acknowledge in any order, fail, and lose what it likes.

use std::fmt::Debug;

/// One record on its way. Its partition is explicit: a resend goes where the first went.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// Comes back in its [`Report`].
    pub id: u64,
    /// The topic's name.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// The key; marks have none.
    pub key: Option<&'a [u8]>,
    /// The value; marks have none.
    pub value: Option<&'a [u8]>,
    /// Headers, in order.
    pub headers: &'a [(String, Vec<u8>)],
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// See [`Outgoing::id`].
    pub id: u64,
    /// The offset at which it stands in the log for ever, or why it does not.
    pub result: Result<i64, String>,
}

/// Why a record was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// There is no room now: it can be handed over again, after a poll.
    Busy,
    /// It never will be taken.
    Failed(String),
}

/// A connection of its own to the log, which keeps the order of each partition without gaps: if a record fails, none
/// that was sent later to the same partition through the same connection is appended. When it is dropped, what was not
/// sent yet never will be; what is under way may still arrive, and comes again through the next one.
pub trait Transport: Debug + Send {
    /// Takes a record without waiting for anything.
    ///
    /// # Errors
    /// See [`Refused`].
    fn send(&mut self, record: Outgoing<'_>) -> Result<(), Refused>;

    /// Adds what is known of the records that were taken, in any order. Waits for nothing.
    ///
    /// # Errors
    /// Why this connection cannot go on.
    fn poll(&mut self, reports: &mut Vec<Report>) -> Result<(), String>;
}

/// Makes connections.
pub trait Connect: Debug + Send {
    /// A new one. Does not wait for the log to be reachable.
    ///
    /// # Errors
    /// Why there can be none now.
    fn connect(&mut self) -> Result<Box<dyn Transport>, String>;
}
