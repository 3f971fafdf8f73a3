//! A request's body as raw bytes, piece by piece: unpacked, and with an end that is told apart from a broken connection.

use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use futures_util::StreamExt as _;

use super::error::{Exception, NETWORK_ERROR, REQUEST_TOO_LARGE, SOCKET_TIMEOUT};
use super::frames::Decoder;

/// How much of a body is read on after the answer is known, so that the client gets to read it.
const MAX_IGNORED: usize = 256 << 20;

/// The body of one request.
pub(super) struct Input {
    body: BodyDataStream,
    decoder: Option<Decoder>,
    /// How long the client may pause.
    patience: Duration,
}

impl Input {
    pub(super) fn new(body: Body, compressed: bool, patience: Duration) -> Self {
        Self { body: body.into_data_stream(), decoder: compressed.then(Decoder::default), patience }
    }

    /// The next raw bytes; `None` at the clean end of the body, and only there.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Exception> {
        loop {
            let piece = tokio::time::timeout(self.patience, self.body.next()).await.map_err(|_| {
                Exception::new(SOCKET_TIMEOUT, format!("the body paused for more than {} s", self.patience.as_secs()))
            })?;
            let Some(piece) = piece else {
                return self.decoder.as_ref().map_or(Ok(()), Decoder::end).map(|()| None);
            };
            let piece = piece.map_err(|error| Exception::new(NETWORK_ERROR, format!("the body broke off: {error}")))?;
            let Some(decoder) = &mut self.decoder else { return Ok(Some(piece)) };
            let mut raw = Vec::new();
            decoder.push(&piece, &mut raw)?;
            if !raw.is_empty() {
                return Ok(Some(raw.into()));
            }
        }
    }

    /// Appends everything to `whole`, as long as it stays below `most` bytes.
    pub(super) async fn collect(mut self, whole: &mut Vec<u8>, most: usize) -> Result<(), Exception> {
        while let Some(piece) = self.next().await? {
            if whole.len() + piece.len() > most {
                return Err(Exception::new(
                    REQUEST_TOO_LARGE,
                    format!(
                        "a statement of more than {most} bytes; send INSERT … FORMAT … in the URL and the data as the body"
                    ),
                ));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(())
    }

    /// Reads on and forgets: a client that is still sending would otherwise get a reset instead of the answer.
    pub(super) async fn ignore(mut self) {
        let mut ignored = 0;
        while ignored < MAX_IGNORED {
            match tokio::time::timeout(self.patience, self.body.next()).await {
                Ok(Some(Ok(piece))) => ignored += piece.len(),
                _ => return,
            }
        }
    }
}
