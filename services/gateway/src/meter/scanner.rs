//! Reads a streamed answer event by event: counts, takes out what the client did not ask for, and finds its end.

use bytes::{Bytes, BytesMut};

use super::counts::{Counts, Totals};
use super::events::{Data, Events, data_of};
use super::said::{Malformed, Part, Place, Said, Usage};
use crate::admit::request::{Ask, Wants};
use crate::endpoint::{Endpoint, Wire};

/// So many ends of choices are remembered, for the trace.
const FINISHES: usize = 64;

/// Where a stream stands after some of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stands {
    /// More is to come.
    Open,
    /// Its end came.
    Done,
}

/// See the module. Pure: the same for the same bytes, however they were cut.
#[derive(Debug)]
pub(crate) struct Scanner {
    events: Events,
    endpoint: &'static Endpoint,
    wants: Wants,
    counts: Counts,
    /// Whether there is but one choice.
    single: bool,
    /// The usage that came before the last word.
    before: Option<Usage>,
    /// Usage beside the end of the only choice: the last word of an engine that has no other.
    closing: Option<Usage>,
    sum: Option<Usage>,
    /// What has the last word on usage, and the end, kept back: a client that has seen it takes the answer for billed.
    held: BytesMut,
    answered: bool,
    aborted: bool,
    /// Why its choices ended.
    finishes: Vec<&'static str>,
    error: Option<String>,
    done: bool,
}

impl Scanner {
    /// For the answer to this request, whose events are at most `limit` bytes long.
    pub(crate) fn new(ask: &Ask, limit: usize) -> Self {
        Self {
            events: Events::new(limit),
            endpoint: ask.endpoint,
            wants: ask.wants,
            counts: Counts::new(ask.choices, ask.prompt.estimate()),
            single: ask.choices == 1 && ask.prompt.prompts == 1,
            before: None,
            closing: None,
            sum: None,
            held: BytesMut::new(),
            answered: false,
            aborted: false,
            finishes: Vec::new(),
            error: None,
            done: false,
        }
    }

    /// Takes bytes of the replica; what the client may see of them goes into `out`. What follows the end is dropped.
    ///
    /// # Errors
    /// At an event that is no part of an answer. `out` then has what came before it.
    pub(crate) fn push(&mut self, data: &[u8], out: &mut BytesMut) -> Result<Stands, Malformed> {
        if self.done {
            return Ok(Stands::Done);
        }
        let mut data = data;
        while let Some(event) = self.events.next(&mut data).map_err(|_| Malformed)? {
            if self.take(&event, out)? == Stands::Done {
                self.done = true;
                return Ok(Stands::Done);
            }
        }
        Ok(Stands::Open)
    }

    fn take(&mut self, event: &[u8], out: &mut BytesMut) -> Result<Stands, Malformed> {
        let wire = self.endpoint.wire;
        let text = std::str::from_utf8(event).map_err(|_| Malformed)?;
        let (said, place) = match data_of(text) {
            Data::None => {
                // A comment stays where it is, behind what is kept back too.
                let behind = if self.held.is_empty() { out } else { &mut self.held };
                behind.extend_from_slice(event);
                return Ok(Stands::Open);
            }
            Data::One(place) => {
                let json = text.get(place.clone()).ok_or(Malformed)?;
                if json == "[DONE]" {
                    self.held.extend_from_slice(event);
                    return Ok(Stands::Done);
                }
                (wire.event(json)?, Some(place))
            }
            Data::Many(json) => (wire.event(&json)?, None),
        };
        self.note(&said);
        match said.place {
            Place::Within => {
                // Never seen, but if something follows the last word, the order stays.
                if !self.held.is_empty() {
                    out.extend_from_slice(&self.held.split());
                }
                let mut from = 0;
                if let Some(place) = place.filter(|_| !self.wants.each) {
                    for usage in &said.shown_usage {
                        out.extend_from_slice(event.get(from..place.start + usage.start).unwrap_or_default());
                        from = place.start + usage.end;
                    }
                }
                out.extend_from_slice(event.get(from..).unwrap_or_default());
            }
            Place::Last if wire == Wire::Chunks && !self.wants.sum => {}
            Place::Last | Place::End => self.held.extend_from_slice(event),
        }
        Ok(if said.place == Place::End { Stands::Done } else { Stands::Open })
    }

    fn note(&mut self, said: &Said) {
        if let Some(code) = &said.error {
            self.error.get_or_insert_with(|| code.clone());
        }
        self.answered |= said.is_answer && !said.choices.is_empty();
        for choice in &said.choices {
            self.aborted |= choice.aborted;
            self.finishes.extend(choice.finish.filter(|_| self.finishes.len() < FINISHES));
        }
        let Some(mut usage) = said.usage else {
            return said.choices.iter().for_each(|choice| self.counts.piece(choice));
        };
        if let (Part::Output, Some(before)) = (said.part, self.before) {
            (usage.prompt_tokens, usage.cached_tokens) = (before.prompt_tokens, before.cached_tokens);
        }
        self.before = Some(usage);
        if let Some(choice) = said.choices.first() {
            self.counts.usage(choice, usage, said.part);
            self.closing = self.closing.or(Some(usage).filter(|_| self.single && choice.finished));
        }
        if said.place != Place::Within {
            self.sum = Some(usage);
        }
    }

    /// What was kept back for the end.
    pub(crate) fn rest(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    /// The endpoint that answers.
    pub(crate) fn endpoint(&self) -> &'static Endpoint {
        self.endpoint
    }

    /// Totals so far, over all choices.
    pub(crate) fn totals(&self) -> Totals {
        self.counts.totals()
    }

    /// Whether any of the totals is an estimate.
    pub(crate) fn is_estimated(&self) -> bool {
        self.counts.is_estimated()
    }

    /// The engine's last word, if it came. At the end of the stream, usage beside the end of the only choice is one too.
    pub(crate) fn sum(&self) -> Option<Usage> {
        self.sum.or(self.closing.filter(|_| self.done))
    }

    /// Whether anything of an answer came.
    pub(crate) fn is_answered(&self) -> bool {
        self.answered
    }

    /// Why choices ended, in the order in which they did.
    pub(crate) fn finishes(&self) -> impl Iterator<Item = &'static str> {
        self.finishes.iter().copied()
    }

    /// Whether the engine gave a choice up.
    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted
    }

    /// The code of the error that came within the stream.
    pub(crate) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{CHAT, MESSAGES};
    use proptest::prelude::*;

    const LIMIT: usize = 1 << 16;

    fn chunk(index: u64, prompt: u64, completion: u64) -> String {
        format!(
            "data: {{\"id\":\"x\",\"choices\":[{{\"index\":{index},\"delta\":{{\"content\":\"a\"}}}}],\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{completion}}}}}\n\n"
        )
    }

    const SUM: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    fn scan(wants: Wants, pieces: &[&[u8]]) -> (Scanner, String, Result<Stands, Malformed>) {
        let Wants { sum, each } = wants;
        let options = format!("{{\"include_usage\":{sum},\"continuous_usage_stats\":{each}}}");
        scan_as(&CHAT, &format!("{{\"model\":\"m\",\"n\":2,\"stream\":true,\"stream_options\":{options}}}"), pieces)
    }

    fn scan_as(
        endpoint: &'static Endpoint,
        ask: &str,
        pieces: &[&[u8]],
    ) -> (Scanner, String, Result<Stands, Malformed>) {
        let ask = Ask::read(endpoint, ask.as_bytes()).unwrap();
        let (mut scanner, mut out) = (Scanner::new(&ask, LIMIT), BytesMut::new());
        let mut stands = Ok(Stands::Open);
        for piece in pieces {
            stands = scanner.push(piece, &mut out);
            if stands != Ok(Stands::Open) {
                break;
            }
        }
        (scanner, String::from_utf8_lossy(&out).into_owned(), stands)
    }

    #[test]
    fn a_client_sees_the_usage_that_it_asked_for_and_the_end_is_kept_back() {
        let stream = format!(": keep-alive\n\n{}{}{SUM}{DONE}junk", chunk(0, 7, 2), chunk(1, 7, 3));
        let bare = "data: {\"id\":\"x\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";
        for (wants, first, rest) in [
            (Wants { sum: false, each: false }, bare.to_owned(), DONE.to_owned()),
            (Wants { sum: true, each: false }, bare.to_owned(), format!("{SUM}{DONE}")),
            (Wants { sum: true, each: true }, chunk(0, 7, 2), format!("{SUM}{DONE}")),
        ] {
            let (mut scanner, out, stands) = scan(wants, &[stream.as_bytes()]);
            assert_eq!(stands, Ok(Stands::Done));
            assert!(out.starts_with(&format!(": keep-alive\n\n{first}data: ")), "{out}");
            assert_eq!(scanner.rest(), rest.as_bytes());
            assert_eq!(scanner.totals(), Totals { input: 7, output: 5, reasoning: 0 });
            assert_eq!(scanner.sum().unwrap().cached_tokens, 4);
            assert!(scanner.is_answered() && scanner.error().is_none() && !scanner.is_aborted());
        }
    }

    #[test]
    fn an_engine_without_a_chunk_for_the_sum_tells_it_beside_the_end_of_its_only_choice() {
        let last = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n";
        let ask = "{\"model\":\"m\",\"stream\":true}";
        let (scanner, _, _) = scan_as(&CHAT, ask, &[last.as_bytes()]);
        assert_eq!(scanner.sum(), None, "the sum may follow");
        let (scanner, _, _) = scan_as(&CHAT, ask, &[last.as_bytes(), DONE.as_bytes()]);
        assert_eq!(scanner.sum().unwrap().cached_tokens, 4);
        let (scanner, _, _) = scan(Wants::default(), &[last.as_bytes(), DONE.as_bytes()]);
        assert_eq!(scanner.sum(), None, "there is another choice");
    }

    #[test]
    fn output_alone_is_added_to_the_input_that_was_told_before() {
        let start = "data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":3,\"cache_read_input_tokens\":4,\"output_tokens\":1}}}\n\n";
        let last = "data: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":5}}\n\n";
        let stop = "data: {\"type\":\"message_stop\"}\n\n";
        let ask = "{\"model\":\"m\",\"stream\":true,\"max_tokens\":9}";
        let (mut scanner, out, stands) = scan_as(&MESSAGES, ask, &[start.as_bytes(), last.as_bytes(), stop.as_bytes()]);
        assert_eq!((out.as_str(), stands, scanner.rest()), (start, Ok(Stands::Done), format!("{last}{stop}").into()));
        let wanted = Usage { prompt_tokens: 7, completion_tokens: 5, cached_tokens: 4, reasoning_tokens: 0 };
        assert_eq!(scanner.sum(), Some(wanted));
        let comment = ": keep-alive\n\n";
        let pieces = [start.as_bytes(), last.as_bytes(), comment.as_bytes(), stop.as_bytes()];
        let (mut scanner, out, _) = scan_as(&MESSAGES, ask, &pieces);
        assert_eq!((out.as_str(), scanner.rest()), (start, format!("{last}{comment}{stop}").into()), "in their order");
    }

    #[test]
    fn what_is_no_chunk_stops_and_an_error_is_known() {
        let (scanner, out, stands) = scan(Wants::default(), &[chunk(0, 7, 2).as_bytes(), b"data: {\"choices\":[{\n\n"]);
        assert_eq!((stands, out.matches("data: ").count()), (Err(Malformed), 1));
        assert_eq!(scanner.totals().output, 2);
        let crash = b"data: {\"error\": {\"message\": \"m\", \"code\": 500}}\n\ndata: [DONE]\n\n";
        let (scanner, out, stands) = scan(Wants::default(), &[crash]);
        assert_eq!((stands, scanner.error(), scanner.is_answered()), (Ok(Stands::Done), Some("500"), false));
        assert!(out.contains("\"error\""), "the client is told in the engine's words");
        assert_eq!(scan(Wants::default(), &[b"data: \xff\n\n"]).2, Err(Malformed));
        assert_eq!(scan(Wants::default(), &[&[b'x'; LIMIT + 1]]).2, Err(Malformed));
    }

    proptest! {
        #[test]
        fn the_cuts_make_no_difference(
            kinds in prop::collection::vec(0usize..7, 0..12), cuts in prop::collection::vec(0usize..2000, 0..12), sum in any::<bool>(), each in any::<bool>()
        ) {
            let mut stream = String::new();
            for (at, kind) in kinds.iter().enumerate() {
                let at = at as u64;
                stream.push_str(&match kind {
                    0 => ": keep-alive\n\n".to_owned(),
                    1 | 2 => chunk(at % 4, 7, at),
                    3 => "data: {\"choices\":[{\"index\":1,\"text\":\"é\"}]}\r\n\r\n".to_owned(),
                    4 => SUM.to_owned(),
                    5 => "event: x\ndata: {\"error\":{\"code\":\"dead\"}}\n\n".to_owned(),
                    _ => DONE.to_owned(),
                });
            }
            let bytes = stream.as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let wants = Wants { sum, each: each && sum };
            let (mut one, out, stands) = scan(wants, &[bytes]);
            let (mut cut, cut_out, cut_stands) = scan(wants, &pieces);
            prop_assert_eq!((out, stands), (cut_out, cut_stands));
            prop_assert_eq!((one.totals(), one.sum(), one.error(), one.is_answered()), (cut.totals(), cut.sum(), cut.error(), cut.is_answered()));
            prop_assert_eq!(one.rest(), cut.rest());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = scan(Wants { sum: true, each: false }, &[&bytes]);
        }
    }
}
