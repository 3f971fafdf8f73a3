//! The engine behind every gateway: fixed bytes on one thread, so that it costs next to nothing and is the same for all.
//!
//! It does as vLLM does: usage in the last chunk of a stream where it is asked for, and in every chunk where that is asked for
//! too. Words in the prompt choose the manner: `[[paced]]` spreads the frames out, each with the time at which it was sent;
//! `[[idle]]` falls silent after the first.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use promises::system::MODELS;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};

/// Frames of a stream with content; after them come the sum and `[DONE]`.
pub(crate) const FRAMES: usize = 20;
/// Between two frames of a paced stream.
const PACE: Duration = Duration::from_millis(10);
/// What stands before the time of a paced frame.
pub(crate) const STAMP: &[u8] = b"\"content\":\"@";
/// Digits of it.
pub(crate) const STAMP_DIGITS: usize = 16;

const PLAIN: &str = r#"{"id":"chatcmpl-bd2ac49e50f4e018","object":"chat.completion","created":1795324489,"model":"llama-3.1-8b","choices":[{"index":0,"message":{"role":"assistant","content":"zake quonalaljumps keph anbaing lior moingse anbaing","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}],"service_tier":null,"system_fingerprint":"vllm-0.32.0-def0d56e","usage":{"prompt_tokens":17,"total_tokens":37,"completion_tokens":20,"prompt_tokens_details":null,"completion_tokens_details":null},"prompt_logprobs":null,"kv_transfer_params":null}"#;

/// Nanoseconds since this process first asked.
pub(crate) fn nanos() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    u64::try_from(BEGAN.get_or_init(Instant::now).elapsed().as_nanos()).expect("five centuries")
}

fn frame(number: usize, content: &str, each_counts: bool) -> Bytes {
    let role = if number == 0 { "\"role\":\"assistant\"," } else { "" };
    let finish = if number + 1 == FRAMES { "\"length\"" } else { "null" };
    let (made, all) = (number + 1, number + 18);
    let usage = if each_counts {
        format!(r#","usage":{{"prompt_tokens":17,"total_tokens":{all},"completion_tokens":{made}}}"#)
    } else {
        String::new()
    };
    Bytes::from(format!(
        "data: {{\"id\":\"chatcmpl-a31e38cbb8352085\",\"object\":\"chat.completion.chunk\",\"created\":1795324519,\"model\":\"llama-3.1-8b\",\"choices\":[{{\"index\":0,\"delta\":{{{role}\"content\":\"{content}\"}},\"logprobs\":null,\"finish_reason\":{finish},\"token_ids\":null}}]{usage}}}\n\n"
    ))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    AtOnce,
    Paced,
    Idle,
}

/// A stream. Every frame is a write of its own: between two of them it says that there is none yet.
struct Stream {
    manner: Manner,
    each_counts: bool,
    frames: Arc<[Vec<Bytes>; 2]>,
    at: usize,
    flushed: bool,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(bytes) = self.frames[usize::from(self.each_counts)].get(self.at).cloned() else {
            return Poll::Ready(None);
        };
        match self.manner {
            Manner::Idle if self.at > 0 => return Poll::Pending,
            Manner::Paced if self.at > 0 && self.at < FRAMES => {
                let waiting = self.sleep.get_or_insert_with(|| Box::pin(sleep(PACE)));
                if waiting.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.sleep = None;
            }
            _ if !self.flushed => {
                self.flushed = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            _ => {}
        }
        self.flushed = false;
        let number = self.at;
        self.at += 1;
        let stamped = self.manner == Manner::Paced && number < FRAMES;
        let bytes = if stamped { frame(number, &format!("@{:016}", nanos()), self.each_counts) } else { bytes };
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

fn has(body: &[u8], words: &str) -> bool {
    body.windows(words.len()).any(|window| window == words.as_bytes())
}

async fn answer(
    request: Request<Incoming>,
    frames: Arc<[Vec<Bytes>; 2]>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    let json = |text: String| {
        let body = Full::new(Bytes::from(text)).boxed();
        Response::builder().header("content-type", "application/json").body(body).expect("an answer")
    };
    // What routers ask before they send anything.
    Ok(match path.as_str() {
        "/v1/models" => json(format!(
            r#"{{"object":"list","data":[{{"id":"{0}","object":"model","created":1795324489,"owned_by":"vllm","root":"{0}","parent":null,"max_model_len":8192}}]}}"#,
            MODELS[0]
        )),
        "/v1/chat/completions" if has(&body, "\"stream\":true") || has(&body, "\"stream\": true") => {
            let manner = if has(&body, "[[paced]]") {
                Manner::Paced
            } else if has(&body, "[[idle]]") {
                Manner::Idle
            } else {
                Manner::AtOnce
            };
            let each_counts = has(&body, "continuous_usage_stats");
            let stream = Stream { manner, each_counts, frames, at: 0, flushed: false, sleep: None };
            let response = Response::builder().header("content-type", "text/event-stream; charset=utf-8");
            response.body(stream.boxed()).expect("an answer")
        }
        "/v1/chat/completions" => json(PLAIN.to_owned()),
        _ => json("{}".to_owned()),
    })
}

async fn connection(socket: TcpStream, frames: Arc<[Vec<Bytes>; 2]>) {
    socket.set_nodelay(true).expect("TCP_NODELAY");
    let service = service_fn(move |request| answer(request, Arc::clone(&frames)));
    // A gateway that hangs up is nothing to tell.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
}

async fn serve(listener: TcpListener) {
    let frames = [false, true].map(|each_counts| {
        let mut all: Vec<Bytes> = (0..FRAMES).map(|number| frame(number, " anbaing", each_counts)).collect();
        all.push(Bytes::from_static(b"data: {\"id\":\"chatcmpl-a31e38cbb8352085\",\"object\":\"chat.completion.chunk\",\"created\":1795324519,\"model\":\"llama-3.1-8b\",\"choices\":[],\"usage\":{\"prompt_tokens\":17,\"total_tokens\":37,\"completion_tokens\":20},\"system_fingerprint\":\"vllm-0.32.0-def0d56e\"}\n\n"));
        all.push(Bytes::from_static(b"data: [DONE]\n\n"));
        all
    });
    let frames = Arc::new(frames);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (socket, _) = accepted.expect("a connection");
                connections.spawn(connection(socket, Arc::clone(&frames)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Starts it on a thread of its own; it ends with the process.
pub(crate) fn start() -> SocketAddr {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("an address");
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async { serve(TcpListener::from_std(listener).expect("a socket")).await });
    };
    std::thread::Builder::new().name("upstream".into()).spawn(run).expect("a thread");
    address
}
