//! `INSERT … FORMAT X` with the data as the body: handed to the engine as it comes, committed only at a clean end.

use axum::body::Bytes;
use axum::response::Response;
use tokio::sync::mpsc;

use super::connection::Connection;
use super::error::{Exception, NETWORK_ERROR};
use super::input::Input;
use super::request::Call;
use super::server::{Server, whole};

/// How many pieces may wait for the engine. With a piece of at most one frame this bounds the memory of an insert.
const WAITING: usize = 4;

/// From the socket to the engine's thread.
enum Piece {
    Data(Bytes),
    /// The body ended cleanly. Without it nothing is committed: a client that vanished has not finished its insert.
    End,
}

/// Runs the insert.
pub(super) async fn run(
    server: &Server,
    call: &Call,
    statement: &str,
    format: &str,
    data: Input,
) -> Result<Response, Exception> {
    let (to_engine, pieces) = mpsc::channel(WAITING);
    let (statement, data_format) = (statement.to_owned(), format.to_owned());
    let engine =
        server.on_connection(&call.session, move |connection| append_all(connection, &statement, &data_format, pieces));
    // If this future is dropped (the client is gone), `to_engine` is dropped with it, and the engine's thread cancels.
    let (pumped, inserted) = tokio::join!(pump(data, to_engine), engine);
    // What broke the body is why the engine saw it end early, so it is told first.
    pumped.and(inserted).map(|result| whole(call, format, result))
}

/// Body to channel. An engine that gave up early has its own error; then the rest of the body is only read away.
async fn pump(mut data: Input, to_engine: mpsc::Sender<Piece>) -> Result<(), Exception> {
    while let Some(piece) = data.next().await? {
        if to_engine.send(Piece::Data(piece)).await.is_err() {
            data.ignore().await;
            return Ok(());
        }
    }
    // The engine may be gone already: then its error stands.
    let _ = to_engine.send(Piece::End).await;
    Ok(())
}

/// Channel to engine, on a thread that may block.
fn append_all(
    connection: &mut Connection,
    statement: &str,
    format: &str,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<super::connection::QueryResult, Exception> {
    let mut insert = connection.insert(statement, format)?;
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Data(data)) => insert.append(&data)?,
            Some(Piece::End) => return insert.finish(),
            // Dropping `insert` cancels it.
            None => return Err(Exception::new(NETWORK_ERROR, "the client went away; nothing of its insert is kept")),
        }
    }
}
