//! Cuts a stream of server-sent events into whole events, however the bytes came.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr_iter;

/// An event longer than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong;

/// See the module. Lines end with LF or CRLF; an empty line ends an event.
#[derive(Debug)]
pub(crate) struct Events {
    /// The beginning of an event whose end has not come.
    waiting: Vec<u8>,
    limit: usize,
}

impl Events {
    /// No event is longer than `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { waiting: Vec::new(), limit }
    }

    /// Takes the next whole event, with the empty line that ends it, from what came. None once all of it is taken. An event
    /// that came in one piece, as nearly all do, is not copied.
    ///
    /// # Errors
    /// At more bytes than the limit without an end.
    pub(crate) fn next<'a>(&mut self, data: &mut &'a [u8]) -> Result<Option<Cow<'a, [u8]>>, TooLong> {
        let came = *data;
        for end in memchr_iter(b'\n', came) {
            // The byte that stands so many before this end of a line, if the event began before it.
            let before = |back: usize| match end.checked_sub(back + 1) {
                Some(at) => came.get(at),
                None => self.waiting.iter().nth_back(back - end),
            };
            let carriage_return = usize::from(before(0) == Some(&b'\r'));
            if matches!(before(carriage_return), None | Some(b'\n')) {
                let (event, rest) = came.split_at(end + 1);
                *data = rest;
                return self.whole(event).map(Some);
            }
        }
        *data = &[];
        self.waiting.extend_from_slice(came);
        if self.waiting.len() > self.limit { Err(TooLong) } else { Ok(None) }
    }

    fn whole<'a>(&mut self, last: &'a [u8]) -> Result<Cow<'a, [u8]>, TooLong> {
        if self.waiting.len() + last.len() > self.limit {
            return Err(TooLong);
        }
        if self.waiting.is_empty() {
            return Ok(Cow::Borrowed(last));
        }
        let mut event = std::mem::take(&mut self.waiting);
        event.extend_from_slice(last);
        Ok(Cow::Owned(event))
    }
}

/// Where the event's data stands, if it has exactly one line of it; that is how engines write JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Data {
    /// Comments and fields that carry none.
    None,
    /// One line.
    One(Range<usize>),
    /// Several lines, joined.
    Many(String),
}

/// The data of an event.
pub(crate) fn data_of(text: &str) -> Data {
    let mut data = Data::None;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim_end_matches('\n').trim_end_matches('\r');
        if let Some(value) = content.strip_prefix("data:") {
            let value = value.strip_prefix(' ').unwrap_or(value);
            let from = start + content.len() - value.len();
            data = match data {
                Data::None => Data::One(from..from + value.len()),
                Data::One(first) => Data::Many(format!("{}\n{value}", text.get(first).unwrap_or_default())),
                Data::Many(all) => Data::Many(format!("{all}\n{value}")),
            };
        }
        start += line.len();
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(events: &mut Events, mut data: &[u8]) -> Result<Vec<String>, TooLong> {
        let mut seen = Vec::new();
        while let Some(event) = events.next(&mut data)? {
            seen.push(String::from_utf8(event.into_owned()).unwrap());
        }
        Ok(seen)
    }

    #[test]
    fn events_end_with_an_empty_line() {
        let mut events = Events::new(100);
        let stream = b": keep-alive\n\ndata: a\r\n\r\nid: 1\ndata:b\ndata: c\n\ndata: un";
        let seen = all(&mut events, stream).unwrap();
        assert_eq!((seen[0].as_str(), data_of(&seen[0])), (": keep-alive\n\n", Data::None));
        assert_eq!((seen[1].as_str(), data_of(&seen[1])), ("data: a\r\n\r\n", Data::One(6..7)));
        assert_eq!(data_of(&seen[2]), Data::Many("b\nc".into()));
        assert_eq!((&events.waiting[..], seen.len()), (&b"data: un"[..], 3));
        assert_eq!(all(&mut events, &[b'x'; 100]), Err(TooLong));
        assert_eq!(all(&mut Events::new(5), b"data\n\n"), Err(TooLong), "whole or not");
        assert_eq!(all(&mut Events::new(6), b"data\n\n\n"), Ok(vec!["data\n\n".into(), "\n".into()]));
    }

    proptest! {
        #[test]
        fn the_cuts_make_no_difference(text in "(data: |[a-c:]|\r?\n|\r){0,60}", cuts in prop::collection::vec(0usize..100, 0..8)) {
            let whole = |pieces: Vec<&[u8]>| {
                let mut events = Events::new(1000);
                let seen: Vec<_> = pieces.into_iter().flat_map(|piece| all(&mut events, piece).unwrap()).collect();
                (seen, events.waiting)
            };
            let bytes = text.as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let (cut, rest) = whole(pieces);
            let together: Vec<u8> = cut.iter().flat_map(|event| event.bytes()).chain(rest.clone()).collect();
            prop_assert_eq!(&together, bytes, "nothing is lost");
            for event in &cut {
                let lines: Vec<_> = event.split_inclusive('\n').collect();
                let empty = |line: &&&str| matches!(**line, "\n" | "\r\n");
                prop_assert_eq!(lines.iter().filter(empty).count(), 1, "an event ends at its first empty line: {:?}", event);
            }
            prop_assert_eq!((cut, rest), whole(vec![bytes]));
        }
    }
}
