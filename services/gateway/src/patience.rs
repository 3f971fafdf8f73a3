//! Ends a connection whose client takes nothing of what it is sent. Its answer waits in a bounded buffer, the replica is read no
//! further, and while nothing is read no deadline of the answer runs: this one does.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a client may take nothing, and who counts those that are cut off.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    pub most: Duration,
    pub stalled: Option<IntCounter>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Patient<S> {
    io: S,
    patience: Patience,
    /// While the client takes nothing.
    until: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// Writes to `io`.
    pub(crate) fn new(io: S, patience: Patience) -> Self {
        Self { io, patience, until: None }
    }

    fn judge<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.until = None;
            return polled;
        }
        let most = self.patience.most;
        let until = self.until.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + most)));
        ready!(until.as_mut().poll(context));
        self.until = None;
        if let Some(stalled) = &self.patience.stalled {
            stalled.inc();
        }
        tracing::info!("a client takes nothing of its answer: it is cut off");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(context, buf);
        self.judge(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(context, bufs);
        self.judge(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(context);
        self.judge(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::Metrics;
    use runtime::metrics::Name;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_slow_reader_is_waited_for_and_one_that_reads_nothing_is_not() {
        let stalled = Metrics::new().counter(Name::GatewayClientsStalled).unwrap();
        let (near, mut far) = tokio::io::duplex(10);
        let patience = Patience { most: Duration::from_secs(60), stalled: Some(stalled.clone()) };
        let mut patient = Patient::new(near, patience);
        let slowly = async {
            let mut byte = [0];
            for _ in 0..20 {
                tokio::task::yield_now().await;
                far.read_exact(&mut byte).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(patient.write_all(&[7; 30]), slowly);
        written.unwrap();
        assert_eq!((stalled.get(), patient.until.is_none()), (0, true));
        patient.patience.most = Duration::from_millis(10);
        let cut = patient.write_all(&[7; 30]).await.unwrap_err();
        assert_eq!((cut.kind(), stalled.get()), (io::ErrorKind::TimedOut, 1));
        drop(far);
    }
}
