//! One connection to a replica. Whoever waits for an answer runs it: what comes then wakes that one task, and all of it that is
//! there already is read in one go.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// See the module. Dropped, it is closed.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Gone once the connection has ended.
    driver: Option<Driver>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("is_ready", &self.is_ready()).finish_non_exhaustive()
    }
}

impl Connection {
    /// Speaks HTTP over a socket.
    ///
    /// # Errors
    /// None that is known.
    pub(super) async fn over(socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> hyper::Result<Self> {
        let (sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        Ok(Self { sender, driver: Some(Box::pin(connection)) })
    }

    /// Whether a request can be sent, as far as is known without asking.
    pub(super) fn is_ready(&self) -> bool {
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Reads and writes what there is to read and to write.
    pub(super) fn run(&mut self, context: &mut Context<'_>) {
        let Some(driver) = &mut self.driver else { return };
        if let Poll::Ready(ended) = driver.as_mut().poll(context) {
            self.driver = None;
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to a replica ended early");
            }
        }
    }

    /// Sends a request; the answer's head.
    ///
    /// # Errors
    /// When the connection broke. The request comes back if nothing of it was sent.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>> {
        let mut answer = pin!(self.sender.try_send_request(request));
        std::future::poll_fn(|context| {
            self.run(context);
            answer.as_mut().poll(context)
        })
        .await
    }
}
