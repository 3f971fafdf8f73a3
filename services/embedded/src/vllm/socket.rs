//! The accepted socket, with two bad habits that real ones have: short writes, and a reset in place of a close.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use runtime::http::Socket as Accepted;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What an answer may ask of its connection.
#[derive(Debug, Default)]
pub(super) struct SocketControl {
    reset: AtomicBool,
}

impl SocketControl {
    /// Whether the connection ends with a TCP reset.
    pub(super) fn reset_on_close(&self, reset: bool) {
        self.reset.store(reset, Ordering::Release);
    }
}

/// A TCP connection of a client.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Accepted,
    control: Arc<SocketControl>,
    max_write: usize,
}

impl Socket {
    /// `max_write` 0: no bound.
    pub(super) fn new(stream: Accepted, control: Arc<SocketControl>, max_write: usize) -> Self {
        Self { stream, control, max_write }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.control.reset.load(Ordering::Acquire) {
            // Without linger the kernel drops what it holds and sends RST.
            let _ = self.stream.reset_on_close();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let most = if self.max_write == 0 { bytes.len() } else { bytes.len().min(self.max_write) };
        Pin::new(&mut self.stream).poll_write(context, &bytes[..most])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.max_write == 0 {
            return Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        }
        let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
        self.poll_write(context, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.control.reset.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
