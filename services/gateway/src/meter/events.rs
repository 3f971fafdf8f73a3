//! Cuts a stream of server-sent events into whole events, however the bytes came.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

/// An event longer than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong;

/// See the module. Lines end with LF or CRLF; an empty line ends an event.
#[derive(Debug)]
pub(crate) struct Events {
    waiting: BytesMut,
    /// So far the waiting bytes were searched.
    searched: usize,
    limit: usize,
}

impl Events {
    /// No event is longer than `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { waiting: BytesMut::new(), searched: 0, limit }
    }

    /// Takes what came.
    pub(crate) fn push(&mut self, data: &[u8]) {
        self.waiting.extend_from_slice(data);
    }

    /// The next whole event, with the empty line that ends it.
    ///
    /// # Errors
    /// When more bytes than the limit wait without an end.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        while let Some(found) = self.waiting.get(self.searched..).and_then(|rest| rest.iter().position(|b| *b == b'\n'))
        {
            let at = self.searched + found;
            self.searched = at + 1;
            if is_empty_line(&self.waiting[..at]) {
                let event = self.waiting.split_to(at + 1).freeze();
                self.searched = 0;
                return Ok(Some(event));
            }
        }
        self.searched = self.waiting.len();
        if self.waiting.remaining() > self.limit { Err(TooLong) } else { Ok(None) }
    }
}

/// Whether the line that ends after these bytes is empty.
fn is_empty_line(before: &[u8]) -> bool {
    let before = before.strip_suffix(b"\r").unwrap_or(before);
    before.is_empty() || before.ends_with(b"\n")
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

/// The data of an event. None if it is not UTF-8.
pub(crate) fn data_of(event: &[u8]) -> Option<Data> {
    let text = std::str::from_utf8(event).ok()?;
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
    Some(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn events_end_with_an_empty_line() {
        let mut events = Events::new(100);
        events.push(b": keep-alive\n\ndata: a\r\n\r\nid: 1\ndata:b\ndata: c\n\ndata: un");
        let mut seen = Vec::new();
        while let Some(event) = events.next().unwrap() {
            seen.push((data_of(&event).unwrap(), event));
        }
        assert_eq!(seen[0], (Data::None, Bytes::from_static(b": keep-alive\n\n")));
        assert_eq!(seen[1], (Data::One(6..7), Bytes::from_static(b"data: a\r\n\r\n")));
        assert_eq!(seen[2].0, Data::Many("b\nc".into()));
        assert_eq!((&events.waiting[..], seen.len()), (&b"data: un"[..], 3));
        events.push(&[b'x'; 100]);
        assert_eq!(events.next(), Err(TooLong));
    }

    proptest! {
        #[test]
        fn the_cuts_make_no_difference(text in "(data: |[a-c:]|\r?\n|\r){0,60}", cuts in prop::collection::vec(0usize..100, 0..8)) {
            let whole = |pieces: Vec<&[u8]>| {
                let (mut events, mut seen) = (Events::new(1000), Vec::new());
                for piece in pieces {
                    events.push(piece);
                    while let Some(event) = events.next().unwrap() {
                        seen.push((data_of(&event), event));
                    }
                }
                (seen, events.waiting)
            };
            let bytes = text.as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let (cut, rest) = whole(pieces);
            let together: Vec<u8> = cut.iter().flat_map(|(_, event)| event.to_vec()).chain(rest.to_vec()).collect();
            prop_assert_eq!(&together, bytes, "nothing is lost");
            prop_assert_eq!((cut, rest), whole(vec![bytes]));
        }
    }
}
