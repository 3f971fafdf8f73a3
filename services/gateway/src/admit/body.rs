//! Takes a request's body into memory, within a bound and in time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;

use crate::error::Refusal;

/// A body that is refused is still read away for so long, so that a client that sends before it reads gets its answer.
const READ_AWAY: Duration = Duration::from_secs(5);
/// And up to so many times the limit.
const READ_AWAY_TIMES: u64 = 4;

/// The whole body.
pub(crate) async fn take<B>(headers: &HeaderMap, body: B, limit: u64, deadline: Duration) -> Result<Bytes, Refusal>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let told = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if told.is_some_and(|length| length > limit) {
        // Whoever asks first whether it may send, does not when it is refused.
        if !headers.contains_key(header::EXPECT) {
            read_away(body, limit).await;
        }
        return Err(Refusal::body_too_large(limit));
    }
    let expected = usize::try_from(told.unwrap_or(0)).unwrap_or(0);
    match tokio::time::timeout(deadline, collect(body, limit, expected)).await {
        Ok(taken) => taken,
        Err(_) => Err(Refusal::body_timeout()),
    }
}

async fn collect<B>(mut body: B, limit: u64, expected: usize) -> Result<Bytes, Refusal>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::body_broken())?.into_data() else { continue };
        if whole.len() as u64 + data.len() as u64 > limit {
            drop(whole);
            read_away(body, limit).await;
            return Err(Refusal::body_too_large(limit));
        }
        if whole.is_empty() {
            // Most bodies come in one piece: it is passed on as it is.
            if data.len() >= expected && body.is_end_stream() {
                return Ok(data);
            }
            whole.reserve(expected.max(data.len()));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
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
