//! Takes a request's body into memory, within bounds and in time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;

use crate::error::Refusal;
use crate::queue::{Held, Over};

/// A body that is refused is still read away for so long, so that a client that sends before it reads gets its answer.
const READ_AWAY: Duration = Duration::from_secs(5);
/// And up to so many times the limit.
const READ_AWAY_TIMES: u64 = 4;

/// What is said when bodies hold too much memory.
pub(crate) fn refusal(over: Over) -> Refusal {
    Refusal::too_many_bytes(over == Over::Own)
}

/// The whole body, and what it holds of the memory that bodies may hold. `room`: holds nothing yet.
pub(crate) async fn take<B>(
    headers: &HeaderMap,
    body: B,
    mut room: Held,
    limit: u64,
    deadline: Duration,
) -> Result<(Bytes, Held), Refusal>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let told = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let told = told.unwrap_or(0);
    let too_much = match told > limit {
        true => Some(Refusal::body_too_large(limit)),
        // All that is announced counts before any of it is read.
        false => room.more(told).err().map(refusal),
    };
    if let Some(refusal) = too_much {
        // Whoever asks first whether it may send, does not when it is refused.
        if !headers.contains_key(header::EXPECT) {
            read_away(body, limit).await;
        }
        return Err(refusal);
    }
    match tokio::time::timeout(deadline, collect(body, room, limit)).await {
        Ok(taken) => taken,
        Err(_) => Err(Refusal::body_timeout()),
    }
}

/// `room`: holds what was announced.
async fn collect<B>(mut body: B, mut room: Held, limit: u64) -> Result<(Bytes, Held), Refusal>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let expected = usize::try_from(room.amount()).unwrap_or(0);
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::body_broken())?.into_data() else { continue };
        let length = whole.len() as u64 + data.len() as u64;
        let too_much = match length > limit {
            true => Some(Refusal::body_too_large(limit)),
            false => room.more(length.saturating_sub(room.amount())).err().map(refusal),
        };
        if let Some(refusal) = too_much {
            drop((whole, room));
            read_away(body, limit).await;
            return Err(refusal);
        }
        if whole.is_empty() {
            // Most bodies come in one piece: it is passed on as it is.
            if data.len() >= expected && body.is_end_stream() {
                return Ok((data, room));
            }
            whole.reserve(expected.max(data.len()));
        }
        whole.extend_from_slice(&data);
    }
    Ok((whole.freeze(), room))
}

/// Reads and forgets, within bounds.
async fn read_away<B>(mut body: B, limit: u64)
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let reading = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
            if read > limit.saturating_mul(READ_AWAY_TIMES) {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(READ_AWAY, reading).await;
}
