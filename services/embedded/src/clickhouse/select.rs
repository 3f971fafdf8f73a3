//! SELECTs whose answer is sent while it is computed, so that a large one does not lie in memory as a whole.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::response::Response;
use futures_util::stream;
use tokio::sync::mpsc;

use super::connection::{Connection, Parameter, QueryResult};
use super::error::Exception;
use super::frames;
use super::request::{Call, Packing};
use super::server::{Server, respond, whole};

/// How many pieces (about 1 MB each) may wait for the client.
const WAITING: usize = 2;

/// How long a written exception has to leave before the connection is broken.
const FLUSH: Duration = Duration::from_millis(50);

const WITH_NAMES_AND_TYPES: &str = "RowBinaryWithNamesAndTypes";

/// The engine gives every piece as a document of its own. In these formats documents can be put one after the other
/// (from the one with names and types its header is cut off); all others are computed as a whole.
const IN_PIECES: [&str; 12] = [
    WITH_NAMES_AND_TYPES,
    "RowBinary",
    "TabSeparated",
    "TSV",
    "TabSeparatedRaw",
    "TSVRaw",
    "CSV",
    "JSONEachRow",
    "JSONLines",
    "NDJSON",
    "JSONCompactEachRow",
    "Native",
];

/// How a SELECT went.
enum Outcome {
    /// It is small: this is all of it.
    Whole(Option<QueryResult>),
    /// It went through the channel.
    Sent,
}

/// `None` is the end of the answer. A channel that closes without it is no end: the engine's thread broke, or gave up.
type Piece = Result<Option<Bytes>, Exception>;

/// From the engine's thread to the client.
struct Outlet {
    sender: mpsc::Sender<Piece>,
    patience: Duration,
}

impl Outlet {
    /// False if the client is gone, or has read nothing for so long that its place is better given to another. On a
    /// thread that may block.
    fn send(&self, piece: Piece) -> bool {
        let sent = async { tokio::time::timeout(self.patience, self.sender.send(piece)).await };
        matches!(tokio::runtime::Handle::current().block_on(sent), Ok(Ok(())))
    }
}

/// Runs the SELECT.
pub(super) async fn run(server: &Server, call: &Call, sql: Vec<u8>, format: String) -> Result<Response, Exception> {
    let (default_format, parameters) = (call.default_format.clone(), call.parameters.clone());
    // An LZ4 frame is made of the whole answer: who asks for it has chosen size over memory.
    if !IN_PIECES.contains(&format.as_str()) || call.packing == Packing::Lz4 {
        let work = move |connection: &mut Connection| connection.query(&sql, &default_format, &parameters);
        return server.on_connection(&call.session, work).await.map(|result| whole(call, &format, result));
    }
    let (to_client, mut pieces) = mpsc::channel(WAITING);
    let (has_header, patience) = (format == WITH_NAMES_AND_TYPES, server.patience);
    let mut engine = Box::pin(server.on_connection(&call.session, move |connection| {
        let to_client = Outlet { sender: to_client, patience };
        fetch_all(connection, &sql, &default_format, &parameters, has_header, &to_client)
    }));
    // Once a piece has come the engine's thread goes on by itself, until the end or until nobody receives any more.
    let first = tokio::select! {
        biased;
        Some(piece) = pieces.recv() => Some(piece),
        outcome = &mut engine => match outcome? {
            Outcome::Whole(Some(result)) => return Ok(whole(call, &format, result)),
            Outcome::Whole(None) => return Ok(respond(call, &format, None, Body::empty())),
            Outcome::Sent => None,
        },
    };
    Ok(streamed(call, &format, first, pieces))
}

/// On a thread that may block: pieces from the engine into the channel.
fn fetch_all(
    connection: &mut Connection,
    sql: &[u8],
    format: &str,
    parameters: &[Parameter],
    has_header: bool,
    to_client: &Outlet,
) -> Result<Outcome, Exception> {
    let mut select = connection.select(sql, format, parameters)?;
    let Some(first) = select.next()? else { return Ok(Outcome::Whole(None)) };
    let Some(second) = select.next()? else { return Ok(Outcome::Whole(Some(first))) };
    let header =
        if has_header { first.as_ref().get(..header_length(first.as_ref())).map(<[u8]>::to_vec) } else { None };
    let header = header.unwrap_or_default();
    let rest = |piece: QueryResult| {
        let skipped = if piece.as_ref().starts_with(&header) { header.len() } else { 0 };
        Bytes::from_owner(piece).slice(skipped..)
    };
    let mut more = to_client.send(Ok(Some(Bytes::from_owner(first)))) && to_client.send(Ok(Some(rest(second))));
    while more {
        let piece = select.next().map(|piece| piece.map(rest));
        let last = !matches!(piece, Ok(Some(_)));
        // Where nobody reads any more, dropping `select` cancels it.
        more = to_client.send(piece) && !last;
    }
    Ok(Outcome::Sent)
}

/// The length of the header of `RowBinaryWithNamesAndTypes`: how many columns, their names, their types. 0 if it is none.
fn header_length(bytes: &[u8]) -> usize {
    let length = || {
        let (columns, mut at) = varint(bytes, 0)?;
        for _ in 0..columns.checked_mul(2)? {
            let (text, start) = varint(bytes, at)?;
            at = start.checked_add(text).filter(|&end| end <= bytes.len())?;
        }
        Some(at)
    };
    length().unwrap_or(0)
}

/// A LEB128 number at `at`, and where it ends.
fn varint(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let (mut value, mut shift) = (0_usize, 0);
    for (i, byte) in bytes.get(at..)?.iter().enumerate().take(9) {
        value |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return Some((value, at + i + 1));
        }
    }
    None
}

/// Where an answer under way stands.
enum Stage {
    Open,
    /// The exception is written; what follows is the broken end of the connection.
    Failed(String),
    Done,
}

/// The pieces as a body. A failure after the first piece is written as ClickHouse does, with a tag that the headers
/// announce, and then breaks the connection, so that no client takes the answer for whole.
fn streamed(call: &Call, format: &str, first: Option<Piece>, pieces: mpsc::Receiver<Piece>) -> Response {
    let tag: String = uuid::Uuid::new_v4().simple().to_string().chars().take(16).collect();
    let header = HeaderValue::from_str(&tag);
    let packing = call.packing;
    let pack = move |raw: Bytes| match packing {
        Packing::NativeFrames => Bytes::from(frames::encode_native(&raw)),
        _ => raw,
    };
    let body = stream::unfold((first, pieces, Stage::Open), move |(first, mut pieces, stage)| {
        let tag = tag.clone();
        async move {
            if let Stage::Failed(text) = stage {
                // A body that fails takes what is still buffered with it: first let the exception out.
                tokio::time::sleep(FLUSH).await;
                return Some((Err(std::io::Error::other(text)), (None, pieces, Stage::Done)));
            }
            if matches!(stage, Stage::Done) {
                return None;
            }
            let piece = match first {
                Some(piece) => Some(piece),
                None => pieces.recv().await,
            };
            Some(match piece {
                Some(Ok(Some(raw))) => (Ok(pack(raw)), (None, pieces, Stage::Open)),
                Some(Ok(None)) => return None,
                Some(Err(exception)) => {
                    let written = pack(tagged(&exception, &tag).into());
                    (Ok(written), (None, pieces, Stage::Failed(exception.text)))
                }
                None => (Err(std::io::Error::other("the answer broke off")), (None, pieces, Stage::Done)),
            })
        }
    });
    let mut response = respond(call, format, None, Body::from_stream(body));
    if let Ok(tag) = header {
        response.headers_mut().insert("x-clickhouse-exception-tag", tag);
    }
    response
}

/// How ClickHouse (25.11 and later) writes an exception into an answer that has begun.
fn tagged(exception: &Exception, tag: &str) -> String {
    let text = exception.text.trim_end();
    let length = text.len() + 1;
    format!("\r\n__exception__\r\n{tag}\r\n{text}\n{length} {tag}\r\n__exception__\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_measured() {
        assert_eq!(header_length(b"\x01\x011\x05UInt8"), 9);
        assert_eq!(header_length(b"\x01\x011\x05UInt8\x07"), 9);
        assert_eq!(header_length(b"\x02\x011\x05UInt8"), 0, "cut short");
        assert_eq!(header_length(b""), 0);
        assert_eq!(header_length(&[255; 20]), 0);
    }
}
