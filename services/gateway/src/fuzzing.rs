//! What fuzz targets drive: the readers of foreign bytes, each with what must hold of them whatever the bytes are.

use bytes::BytesMut;
use ledger::control::ReplicaKind;

use crate::admit::request::Ask;
use crate::endpoint::{ALL, CHAT, Endpoint, MESSAGES, RESPONSES};
use crate::forward::wire::{self, Head, WireError};
use crate::meter::events::{Events, data_of};
use crate::meter::said::Malformed;
use crate::meter::scanner::{Scanner, Stands};
use crate::meter::whole;

/// No event of a target's input is longer.
const LIMIT: usize = 1 << 16;

/// A request's body, at every endpoint: it is read or refused, and what is forwarded of it is read in the same way.
pub fn request(body: &[u8]) {
    for endpoint in ALL {
        let Ok(ask) = Ask::read(endpoint, body) else { continue };
        for kind in ReplicaKind::ALL {
            let set = ask.max_tokens.is_none().then_some(7);
            let sent = ask.forwarded(body, "served \"x\"", kind, set);
            let Ok(again) = Ask::read(endpoint, &sent) else {
                panic!("{} forwards what it would refuse: {}", endpoint.name, String::from_utf8_lossy(&sent))
            };
            assert_eq!(again.model, "served \"x\"");
            assert_eq!((again.stream, again.choices), (ask.stream, ask.choices));
            assert_eq!(again.max_tokens, ask.max_tokens.or(set));
            assert_eq!(again.prompt.prompts, ask.prompt.prompts);
        }
    }
}

/// Pieces of a few bytes, by the data itself: the same input is always cut in the same way.
fn pieces(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.chunks(1 + data.len() % 13)
}

/// A stream of events: the cuts make no difference, and no byte is lost.
pub fn events(data: &[u8]) {
    let all = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut events, mut seen) = (Events::new(LIMIT), Vec::new());
        for mut piece in pieces {
            while let Ok(Some(event)) = events.next(&mut piece) {
                seen.push((std::str::from_utf8(&event).map(data_of).ok(), event.into_owned()));
            }
        }
        seen
    };
    let whole = all(&mut std::iter::once(data));
    assert!(whole == all(&mut pieces(data)), "the cuts make a difference");
    let together: Vec<u8> = whole.iter().flat_map(|(_, event)| event.iter().copied()).collect();
    assert!(data.starts_with(&together), "bytes are lost");
}

/// An answer as it comes over a connection, read until its end or the first error.
fn answered<'a>(pieces: &mut dyn Iterator<Item = &'a [u8]>) -> (Option<Head>, Vec<u8>, Option<WireError>) {
    let (mut head, mut held, mut out): (Option<Head>, _, _) = (None, Vec::new(), Vec::new());
    for piece in pieces {
        held.extend_from_slice(piece);
        if head.is_none() {
            match wire::head(&held) {
                Ok(None) => continue,
                Ok(Some((found, length))) => {
                    held.drain(..length);
                    head = Some(found);
                }
                Err(error) => return (None, out, Some(error)),
            }
        }
        let Some(Head { body, .. }) = &mut head else { continue };
        loop {
            let mut more = Vec::new();
            match body.take(&held, &mut more) {
                Err(error) => return (head, out, Some(error)),
                Ok(taken) => held.drain(..taken),
            };
            if more.is_empty() {
                break;
            }
            out.append(&mut more);
        }
    }
    (head, out, None)
}

/// An answer of a replica: the cuts make no difference, and no byte is made up.
pub fn answer(data: &[u8]) {
    let whole = answered(&mut std::iter::once(data));
    assert!(whole == answered(&mut pieces(data)), "the cuts make a difference");
    assert!(whole.1.len() <= data.len(), "more comes out than went in");
}

fn scan<'a>(ask: &Ask, pieces: &mut dyn Iterator<Item = &'a [u8]>) -> (Scanner, Vec<u8>, Result<Stands, Malformed>) {
    let (mut scanner, mut out, mut stands) = (Scanner::new(ask, LIMIT), BytesMut::new(), Ok(Stands::Open));
    for piece in pieces {
        stands = scanner.push(piece, &mut out);
        if stands != Ok(Stands::Open) {
            break;
        }
    }
    out.extend_from_slice(&scanner.rest());
    (scanner, out.to_vec(), stands)
}

/// A streamed and a whole answer of every wire: the cuts make no difference to the counts or to what the client gets, and
/// who asked for all of it gets all of it.
pub fn usage(data: &[u8]) {
    let all = br#"{"model":"m","stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#;
    let asks: [(&'static Endpoint, &[u8], bool); 4] = [
        (&CHAT, all, true),
        (&CHAT, br#"{"model":"m","n":2,"stream":true}"#, false),
        (&MESSAGES, br#"{"model":"m","max_tokens":9,"stream":true}"#, true),
        (&RESPONSES, br#"{"model":"m","stream":true}"#, true),
    ];
    for (endpoint, ask, shown) in asks {
        let Ok(ask) = Ask::read(endpoint, ask) else { panic!("the targets' own request is refused") };
        let (one, out, stands) = scan(&ask, &mut std::iter::once(data));
        let (cut, cut_out, cut_stands) = scan(&ask, &mut pieces(data));
        assert!((&out, stands, one.totals(), one.sum()) == (&cut_out, cut_stands, cut.totals(), cut.sum()));
        assert!(
            (one.error(), one.is_answered(), one.is_aborted()) == (cut.error(), cut.is_answered(), cut.is_aborted())
        );
        assert!(!shown || data.starts_with(&out), "the client gets other bytes than came");
    }
    for endpoint in ALL {
        if let Ok(said) = whole::read(endpoint.wire, data) {
            let Ok(ask) = Ask::read(&CHAT, all) else { continue };
            let _ = whole::estimate(endpoint, &ask.prompt, &said, data);
        }
    }
}
