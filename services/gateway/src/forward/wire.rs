//! HTTP/1.1 as it is spoken with replicas: a request's head written, an answer's head read, its body freed of what frames it. No
//! I/O: RFC 9112 over bytes.

use std::mem::MaybeUninit;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use httparse::{ParserConfig, Status};
use thiserror::Error;

/// No head is longer.
pub(crate) const HEAD_BYTES: usize = 64 << 10;
/// Neither is what stands between two pieces of a body, or after the last one.
const FRAMING_BYTES: usize = 16 << 10;
/// No head has more headers.
const HEADERS: usize = 128;
/// The headers of an answer that are kept: those that are for the client. All others speak of the connection or of the replica.
const KEPT: [HeaderName; 3] = [header::CONTENT_TYPE, header::CACHE_CONTROL, header::RETRY_AFTER];

/// Why bytes are no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum WireError {
    /// It is no HTTP/1.
    #[error("what came is no HTTP/1.1: {0}")]
    Malformed(#[from] httparse::Error),
    /// No such status, or one that nobody asked for.
    #[error("the answer has a status that is none here")]
    Status,
    /// Where the body ends cannot be known.
    #[error("the answer's length is not told in a way that can be trusted")]
    Length,
    /// The pieces of the body are not framed as they must be.
    #[error("the pieces of the answer are not framed as HTTP/1.1 wants it")]
    Framing,
    /// Something that is short in every answer is not.
    #[error("the answer's head, or what is between its pieces, is too long")]
    Long,
    /// It ended before its end.
    #[error("the connection ended before the answer did")]
    Cut,
}

/// What is sent before the body, whose length it tells.
pub(crate) fn request_head(
    method: &Method,
    path: &str,
    host: &HeaderValue,
    headers: &HeaderMap,
    length: usize,
) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    for part in [method.as_str(), " ", path, " HTTP/1.1\r\nhost: "] {
        head.extend_from_slice(part.as_bytes());
    }
    head.extend_from_slice(host.as_bytes());
    for (name, value) in headers {
        for part in [b"\r\n", name.as_str().as_bytes(), b": ", value.as_bytes()] {
            head.extend_from_slice(part);
        }
    }
    if length > 0 || method == Method::POST {
        head.extend_from_slice(format!("\r\ncontent-length: {length}").as_bytes());
    }
    head.extend_from_slice(b"\r\n\r\n");
    head
}

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub status: StatusCode,
    /// See [`KEPT`].
    pub headers: HeaderMap,
    pub body: Body,
    /// Whether the connection can be used again after it.
    pub keeps: bool,
}

/// The head that `bytes` begin with, and its length; none while it is not whole. What comes before the real answer (100, 103) is
/// stepped over.
pub(crate) fn head(bytes: &[u8]) -> Result<Option<(Head, usize)>, WireError> {
    let mut from = 0;
    loop {
        let rest = bytes.get(from..).unwrap_or_default();
        let mut room = [const { MaybeUninit::uninit() }; HEADERS];
        let mut answer = httparse::Response::new(&mut []);
        let parser = ParserConfig::default();
        let parsed = parser.parse_response_with_uninit_headers(&mut answer, rest, &mut room)?;
        let end = if let Status::Complete(length) = parsed { from + length } else { bytes.len() };
        if end > HEAD_BYTES {
            return Err(WireError::Long);
        }
        if parsed.is_partial() {
            return Ok(None);
        }
        from = end;
        let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(WireError::Status)?;
        match status {
            // Nobody asked for another protocol.
            StatusCode::SWITCHING_PROTOCOLS => return Err(WireError::Status),
            _ if status.is_informational() => {}
            _ => return read(status, answer.version == Some(1), answer.headers).map(|head| Some((head, from))),
        }
    }
}

fn read(status: StatusCode, is_current: bool, headers: &[httparse::Header<'_>]) -> Result<Head, WireError> {
    let (mut kept, mut keeps) = (HeaderMap::new(), is_current);
    let (mut length, mut chunked) = (None, false);
    for one in headers {
        let is = |name: &HeaderName| one.name.eq_ignore_ascii_case(name.as_str());
        if is(&header::CONTENT_LENGTH) {
            let told = length_of(one.value)?;
            if length.replace(told).is_some_and(|other| other != told) {
                return Err(WireError::Length);
            }
        } else if is(&header::TRANSFER_ENCODING) {
            // No other coding was asked for, and none comes twice.
            if chunked || !is_current || !one.value.eq_ignore_ascii_case(b"chunked") {
                return Err(WireError::Length);
            }
            chunked = true;
        } else if is(&header::CONNECTION) {
            let mut words = one.value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
            keeps &= !words.any(|word| word.eq_ignore_ascii_case(b"close"));
        } else if let Some(name) = KEPT.iter().find(|name| is(name)) {
            // Of several the first one: an answer has one type.
            if let (false, Ok(value)) = (kept.contains_key(name), HeaderValue::from_bytes(one.value)) {
                kept.insert(name.clone(), value);
            }
        }
    }
    let body = match (chunked, length) {
        _ if status == StatusCode::NOT_MODIFIED => Body::Over,
        // It has no body, whatever it says; one that says otherwise may send it all the same.
        _ if status == StatusCode::NO_CONTENT => {
            keeps &= !chunked && length.is_none_or(|length| length == 0);
            Body::Over
        }
        (true, None) => Body::Chunked(Chunk::Size),
        // A length beside it is not to be believed, and neither is what comes after the answer.
        (true, Some(_)) => {
            keeps = false;
            Body::Chunked(Chunk::Size)
        }
        (false, Some(0)) => Body::Over,
        (false, Some(length)) => Body::Length(length),
        (false, None) => {
            keeps = false;
            Body::UntilClose
        }
    };
    Ok(Head { status, headers: kept, body, keeps })
}

fn length_of(value: &[u8]) -> Result<u64, WireError> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(WireError::Length);
    }
    std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()).ok_or(WireError::Length)
}

/// How far a body has come, and where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    /// So many bytes are to come.
    Length(u64),
    /// Pieces that tell their own lengths.
    Chunked(Chunk),
    /// It ends with the connection.
    UntilClose,
    /// All of it was taken.
    Over,
}

/// What is next in a body of pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// The line with the length of a piece.
    Size,
    /// So many bytes of a piece.
    Data(u64),
    /// The end of its line.
    End,
    /// The headers after the last one. They are not passed on.
    Trailer,
}

impl Body {
    pub(crate) fn is_over(&self) -> bool {
        *self == Self::Over
    }

    /// Takes from `bytes` what is of this body, and puts what is of the answer into `out`. How many were taken: what is left is
    /// the beginning of something, and must be there again with what comes next; of a body that is over it is none of it.
    pub(crate) fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, WireError> {
        let mut rest = bytes;
        loop {
            *self = match *self {
                Self::Length(left) => match data(left, &mut rest, out) {
                    0 => Self::Over,
                    left => Self::Length(left),
                },
                Self::Chunked(chunk) => match chunk.take(&mut rest, out) {
                    Ok(Some(next)) => next,
                    Ok(None) => break,
                    // What came before it was good, and counts. The rest is refused when it is there again.
                    Err(_) if !out.is_empty() => break,
                    Err(error) => return Err(error),
                },
                Self::UntilClose => {
                    out.extend_from_slice(std::mem::take(&mut rest));
                    Self::UntilClose
                }
                Self::Over => break,
            };
            if rest.is_empty() {
                break;
            }
        }
        Ok(bytes.len() - rest.len())
    }

    /// The connection has ended.
    pub(crate) fn end(&mut self) -> Result<(), WireError> {
        match self {
            Self::UntilClose | Self::Over => {
                *self = Self::Over;
                Ok(())
            }
            Self::Length(_) | Self::Chunked(_) => Err(WireError::Cut),
        }
    }
}

impl Chunk {
    /// What is next after the bytes that were taken; none if more must come first.
    fn take(self, rest: &mut &[u8], out: &mut Vec<u8>) -> Result<Option<Body>, WireError> {
        let next = match self {
            // A length is a digit at least: the parser takes none for 0.
            Self::Size if rest.first().is_some_and(|byte| !byte.is_ascii_hexdigit()) => {
                return Err(WireError::Framing);
            }
            Self::Size => match httparse::parse_chunk_size(rest) {
                Err(_) => return Err(WireError::Framing),
                Ok(Status::Partial) => return incomplete(rest.len()),
                Ok(Status::Complete((length, size))) => {
                    incomplete(length)?;
                    skip(rest, length);
                    if size == 0 { Self::Trailer } else { Self::Data(size) }
                }
            },
            Self::Data(left) => match data(left, rest, out) {
                0 => Self::End,
                left => Self::Data(left),
            },
            Self::End => match rest {
                [b'\r', b'\n', ..] => {
                    skip(rest, 2);
                    Self::Size
                }
                [] | [b'\r'] => return Ok(None),
                _ => return Err(WireError::Framing),
            },
            Self::Trailer => match httparse::parse_headers(rest, &mut [httparse::EMPTY_HEADER; HEADERS])? {
                Status::Partial => return incomplete(rest.len()),
                Status::Complete((length, _)) => {
                    incomplete(length)?;
                    skip(rest, length);
                    return Ok(Some(Body::Over));
                }
            },
        };
        Ok(Some(Body::Chunked(next)))
    }
}

/// Takes bytes of the answer; how many of `left` are still to come.
fn data(left: u64, rest: &mut &[u8], out: &mut Vec<u8>) -> u64 {
    let here = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
    out.extend_from_slice(rest.get(..here).unwrap_or_default());
    skip(rest, here);
    left - here as u64
}

fn skip(rest: &mut &[u8], length: usize) {
    *rest = rest.get(length..).unwrap_or_default();
}

/// More must come before so many bytes between two pieces can be read, unless they are too many.
fn incomplete(length: usize) -> Result<Option<Body>, WireError> {
    if length > FRAMING_BYTES { Err(WireError::Long) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(bytes: &str) -> Result<(Head, String, usize), WireError> {
        let (mut head, length) = head(bytes.as_bytes())?.expect("a whole head");
        let mut out = Vec::new();
        let taken = head.body.take(&bytes.as_bytes()[length..], &mut out)?;
        Ok((head, String::from_utf8(out).unwrap(), bytes.len() - length - taken))
    }

    #[test]
    fn a_requests_head_tells_its_length() {
        let mut headers = HeaderMap::new();
        headers.insert("x-request-id", HeaderValue::from_static("r1"));
        let host = HeaderValue::from_static("replica:8000");
        let text = |method, length| String::from_utf8(request_head(&method, "/v1/x", &host, &headers, length)).unwrap();
        assert_eq!(
            text(Method::POST, 12),
            "POST /v1/x HTTP/1.1\r\nhost: replica:8000\r\nx-request-id: r1\r\ncontent-length: 12\r\n\r\n"
        );
        assert_eq!(text(Method::GET, 0), "GET /v1/x HTTP/1.1\r\nhost: replica:8000\r\nx-request-id: r1\r\n\r\n");
    }

    #[test]
    fn a_body_ends_where_its_head_says() {
        let (head, body, left) =
            whole("HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nX-Inside: no\r\nContent-Length: 3\r\n\r\nabcd").unwrap();
        assert_eq!((head.status, head.keeps, body.as_str(), left), (StatusCode::OK, true, "abc", 1));
        assert_eq!((head.headers.len(), head.headers["content-type"].as_bytes()), (1, &b"a/b"[..]));
        assert!(head.body.is_over());
        let (head, body, left) = whole(concat!(
            "HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 200\r\ntransfer-encoding: Chunked\r\n\r\n",
            "3\r\nabc\r\n00002;ext=\"1\"\r\nde\r\n0\r\nx-trailer: 1\r\n\r\nrest"
        ))
        .unwrap();
        assert_eq!((body.as_str(), left, head.keeps, head.body), ("abcde", 4, true, Body::Over));
        let (mut head, body, _) = whole("HTTP/1.1 200 OK\r\n\r\nall").unwrap();
        assert_eq!((body.as_str(), head.keeps, head.body), ("all", false, Body::UntilClose));
        assert_eq!((head.body.end(), head.body), (Ok(()), Body::Over));
        for none in [
            "204 No Content",
            "304 Not Modified\r\ncontent-length: 5",
            "304 Not Modified",
            "200 OK\r\ncontent-length: 0",
        ] {
            let (head, body, _) = whole(&format!("HTTP/1.1 {none}\r\n\r\n")).unwrap();
            assert_eq!((body.as_str(), head.body, head.keeps), ("", Body::Over, true), "{none}");
        }
    }

    #[test]
    fn a_connection_that_is_not_to_be_trusted_is_not_used_again() {
        for (head, keeps) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 1", true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\nconnection: keep-alive", true),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1", false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\nConnection: x, Close", false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked", false),
            ("HTTP/1.1 204 No Content\r\ncontent-length: 5", false),
            ("HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked", false),
        ] {
            let (read, _) = super::head(format!("{head}\r\n\r\n").as_bytes()).unwrap().unwrap();
            assert_eq!(read.keeps, keeps, "{head}");
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for (bytes, why) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", WireError::Length),
            ("HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\n", WireError::Length),
            ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n", WireError::Length),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", WireError::Length),
            ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", WireError::Length),
            ("HTTP/1.1 101 Switching\r\n\r\n", WireError::Status),
            ("HTTP/1.1 099 What\r\n\r\n", WireError::Status),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n", WireError::Framing),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n", WireError::Framing),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\n\r\n", WireError::Framing),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n 0\r\n\r\n", WireError::Framing),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n;x\r\n\r\n", WireError::Framing),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10000000000000000\r\n", WireError::Framing),
            ("HTTP/2 200\r\n\r\n", WireError::Malformed(httparse::Error::Version)),
            ("SSH-2.0-OpenSSH\r\n", WireError::Malformed(httparse::Error::Version)),
        ] {
            assert_eq!(whole(bytes).unwrap_err(), why, "{bytes}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(HEAD_BYTES));
        for long in [long.clone(), long + "\r\n\r\n"] {
            assert_eq!(head(long.as_bytes()), Err(WireError::Long), "however much of it is there");
        }
        let (mut body, mut out) = (Body::Chunked(Chunk::Size), Vec::new());
        assert_eq!(body.take(b"1\r\nabc", &mut out), Ok(4), "what is good of it is taken");
        assert_eq!(body.take(b"bc", &mut Vec::new()), Err(WireError::Framing));
        let mut body = Body::Chunked(Chunk::Size);
        assert_eq!(
            body.take(format!("1;{}", "x".repeat(FRAMING_BYTES)).as_bytes(), &mut Vec::new()),
            Err(WireError::Long)
        );
        for mut cut in [Body::Length(1), Body::Chunked(Chunk::Size), Body::Chunked(Chunk::Data(1))] {
            assert_eq!(cut.end(), Err(WireError::Cut));
        }
    }

    proptest! {
        /// However an answer is cut on its way, and whatever the lengths of its pieces.
        #[test]
        fn pieces_are_put_together_again(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            cut in 1usize..50,
        ) {
            let mut sent = Vec::new();
            for piece in &pieces {
                sent.extend_from_slice(format!("{:X}\r\n", piece.len()).as_bytes());
                sent.extend_from_slice(piece);
                sent.extend_from_slice(b"\r\n");
            }
            sent.extend_from_slice(b"0\r\n\r\n");
            let (mut body, mut out, mut held) = (Body::Chunked(Chunk::Size), Vec::new(), Vec::new());
            for part in sent.chunks(cut) {
                prop_assert!(!body.is_over());
                held.extend_from_slice(part);
                let taken = body.take(&held, &mut out).unwrap();
                held.drain(..taken);
            }
            prop_assert!(body.is_over() && held.is_empty());
            prop_assert_eq!(out, pieces.concat());
        }
    }
}
