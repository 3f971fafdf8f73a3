//! One request on a connection of its own, with TLS or without: for what is asked now and then.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::handshake;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::tls::TlsClient;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no answer. Says nothing of what was asked: who asks names it.
#[derive(Debug, thiserror::Error)]
pub enum SingleError {
    /// Nobody is there, or nobody who is trusted.
    #[error("it cannot be reached: {0}")]
    Unreachable(std::io::Error),
    /// The connection broke, or what came is no answer, or is too long.
    #[error("its answer cannot be read: {}", innermost(.0.as_ref()))]
    Answer(BoxError),
}

/// "Connection reset by peer" says more than "connection error".
fn innermost<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error)
}

/// Sends `request`, whose address is `http://` or, with `tls`, `https://`, and reads the answer, of at most `largest` bytes. Has no
/// limit of time: who asks sets one.
///
/// # Errors
/// See [`SingleError`].
pub async fn send(
    tls: Option<&TlsClient>,
    request: Request<Full<Bytes>>,
    largest: usize,
) -> Result<Response<Bytes>, SingleError> {
    let url = request.uri();
    let secure = url.scheme_str() == Some("https");
    let tls = tls.filter(|_| secure);
    if secure && tls.is_none() {
        return Err(SingleError::Unreachable(std::io::Error::other("its address is https://, and nobody is trusted")));
    }
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let socket = TcpStream::connect((host.as_str(), port)).await.map_err(SingleError::Unreachable)?;
    let answer = match tls {
        Some(tls) => ask(tls.connect(&host, socket).await.map_err(SingleError::Unreachable)?, request, largest).await,
        None => ask(socket, request, largest).await,
    };
    answer.map_err(SingleError::Answer)
}

async fn ask(
    socket: impl AsyncRead + AsyncWrite + Unpin,
    mut request: Request<Full<Bytes>>,
    largest: usize,
) -> Result<Response<Bytes>, BoxError> {
    let url = std::mem::take(request.uri_mut());
    *request.uri_mut() = url.path_and_query().map_or("/", |path| path.as_str()).parse::<Uri>()?;
    let authority = url.authority().map_or("", |authority| authority.as_str());
    request.headers_mut().insert(HOST, HeaderValue::try_from(authority)?);
    let (mut sender, connection) = handshake(TokioIo::new(socket)).await?;
    let asked = async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, largest).collect().await?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    // What goes wrong with the connection, the question is told.
    let (answer, _) = tokio::join!(asked, connection);
    answer
}
