//! Looks at the first event of a stream before anything of it is handed on. An engine that fails at once says so inside of a
//! 200; as long as the client has nothing, that can still become the status that it is, or another replica's answer.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use super::{Incoming, ReplicaError};
use crate::meter::events::{Data, Events, data_of};
use crate::object::{Member, members};

/// What came first.
#[derive(Debug)]
pub(crate) enum First {
    /// No error, or nothing for as long as the head is held: what was read, to be handed on before the rest.
    Answer(Bytes),
    /// The engine's own words on why there is no answer.
    Error(Box<ReplicaError>),
    /// The connection broke, the answer ended, or what came is none.
    Broken,
    /// Nothing came in time.
    Deadline,
}

/// Reads the first event until `hold` is over, and not beyond the deadline. No event is longer than `limit` bytes.
pub(crate) async fn first(body: &mut Incoming, hold: Instant, deadline: Instant, limit: usize) -> First {
    let (mut events, mut read) = (Events::new(limit), BytesMut::new());
    loop {
        let data = match timeout_at(hold.min(deadline), body.frame()).await {
            Err(_) if hold < deadline => return First::Answer(read.freeze()),
            Err(_) => return First::Deadline,
            Ok(None | Some(Err(_))) => return First::Broken,
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        };
        read.extend_from_slice(&data);
        match said(&mut events, &data) {
            Said::Nothing => {}
            Said::Answer => return First::Answer(read.freeze()),
            Said::Error(error) => return First::Error(Box::new(error)),
            Said::Junk => return First::Broken,
        }
    }
}

/// What a stream's first event says.
#[derive(Debug)]
enum Said {
    /// Comments only, so far.
    Nothing,
    Answer,
    Error(ReplicaError),
    Junk,
}

fn said(events: &mut Events, mut data: &[u8]) -> Said {
    loop {
        let event = match events.next(&mut data) {
            Ok(Some(event)) => event,
            Ok(None) => return Said::Nothing,
            Err(_) => return Said::Junk,
        };
        let Ok(text) = std::str::from_utf8(&event) else { return Said::Junk };
        let joined;
        let json = match data_of(text) {
            Data::None => continue,
            Data::One(place) => text.get(place).unwrap_or(""),
            Data::Many(lines) => {
                joined = lines;
                &joined
            }
        };
        return match members(json) {
            Ok(members) => error_of(json, &members).map_or(Said::Answer, Said::Error),
            Err(_) if json == "[DONE]" => Said::Answer,
            Err(_) => Said::Junk,
        };
    }
}

/// The error that an event is, in any of the protocols: a member `error` and nothing of an answer, or the type `error`.
fn error_of(json: &str, event: &[Member<'_>]) -> Option<ReplicaError> {
    let of = |name: &str| event.iter().find(|member| member.key == name && !member.is_null());
    let error = of("error").filter(|_| of("choices").is_none());
    let is_typed = of("type").is_some_and(|kind| kind.value == "\"error\"");
    if error.is_none() && !is_typed {
        return None;
    }
    let inner = error.and_then(|error| members(error.value).ok()).unwrap_or_default();
    let code = inner.iter().chain(event).find(|member| member.key == "code");
    let status = code.and_then(|code| code.value.parse().ok()).filter(|code| (400..600).contains(code));
    let status = status.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = match error {
        Some(_) => Bytes::copy_from_slice(json.as_bytes()),
        None => wrapped(event),
    };
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    Some(ReplicaError { status, headers, body })
}

/// An event of the type `error` that is the error itself, as an answer has it.
fn wrapped(event: &[Member<'_>]) -> Bytes {
    let of = |name: &str| {
        let found = event.iter().find(|member| member.key == name);
        found.and_then(|member| serde_json::from_str::<&RawValue>(member.value).ok())
    };
    let error = serde_json::json!({
        "error": {"message": of("message"), "type": "server_error", "param": of("param"), "code": of("code")}
    });
    error.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(stream: &str) -> Said {
        said(&mut Events::new(1 << 16), stream.as_bytes())
    }

    fn error(stream: &str) -> (u16, serde_json::Value) {
        match of(stream) {
            Said::Error(error) => (error.status.as_u16(), serde_json::from_slice(&error.body).unwrap()),
            other => panic!("{other:?}: {stream}"),
        }
    }

    #[test]
    fn an_error_is_known_in_each_protocol_and_keeps_its_words() {
        let (status, body) =
            error(": keep-alive\n\ndata: {\"error\": {\"message\": \"dead\", \"code\": 500}}\n\ndata: [DONE]\n\n");
        assert_eq!((status, &body["error"]["message"]), (500, &"dead".into()));
        assert_eq!(
            error("data: {\"error\":{\"message\":\"schema\",\"type\":\"BadRequestError\",\"code\":400}}\n\n").0,
            400
        );
        assert_eq!(error("data: {\"error\":\"Unauthorized\"}\n\n").0, 500);
        let (status, body) = error(
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"m\"}}\n\n",
        );
        assert_eq!((status, &body["error"]["type"]), (500, &"overloaded_error".into()));
        let (status, body) = error(
            "event: error\ndata: {\"type\":\"error\",\"code\":\"server_error\",\"message\":\"m\",\"param\":null}\n\n",
        );
        assert_eq!(
            (status, &body["error"]["message"], &body["error"]["code"]),
            (500, &"m".into(), &"server_error".into())
        );
    }

    #[test]
    fn an_answer_is_no_error_and_what_is_neither_is_junk() {
        for answer in [
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\\\"error\\\"\"}}],\"error\":null}\n\n",
            "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"error\":{\"code\":1}}}\n\n",
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{}}\n\n",
            "data: [DONE]\n\n",
        ] {
            assert!(matches!(of(answer), Said::Answer), "{answer}");
        }
        assert!(matches!(of(": a\n\n: b\n\ndata: {\"x\""), Said::Nothing));
        for junk in ["data: {\"choices\":[{\n\n", "data: 7\n\n"] {
            assert!(matches!(of(junk), Said::Junk), "{junk}");
        }
    }
}
