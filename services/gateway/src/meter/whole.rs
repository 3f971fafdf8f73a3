//! An answer that is not streamed: held until its usage is read and recorded, then passed on as it is.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::chunk::{Chunk, Malformed};
use crate::forward::Incoming;

/// Why a whole answer did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The connection broke, or the answer is longer than allowed.
    Broken,
    /// The replica was silent for too long, or the request's time is over.
    Deadline,
}

/// The whole body.
pub(crate) async fn collect(mut body: Incoming, limit: u64, idle: Duration, total: Instant) -> Result<Bytes, Cut> {
    let mut whole = BytesMut::new();
    loop {
        let until = total.min(Instant::now() + idle);
        let frame = tokio::time::timeout_at(until, body.frame()).await.map_err(|_| Cut::Deadline)?;
        let Some(frame) = frame else { return Ok(whole.freeze()) };
        let Ok(data) = frame.map_err(|_| Cut::Broken)?.into_data() else { continue };
        if whole.len() as u64 + data.len() as u64 > limit {
            return Err(Cut::Broken);
        }
        whole.extend_from_slice(&data);
    }
}

/// What a whole answer says of itself.
pub(crate) fn read(body: &[u8]) -> Result<Chunk, Malformed> {
    let chunk = Chunk::read(std::str::from_utf8(body).map_err(|_| Malformed)?)?;
    if chunk.is_answer { Ok(chunk) } else { Err(Malformed) }
}
