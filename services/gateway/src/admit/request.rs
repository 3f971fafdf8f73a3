//! What policy must know of a request's body, and the body that is forwarded: the same bytes but for what policy sets.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use ledger::control::ReplicaKind;

use super::prompt::Prompt;
use crate::endpoint::{Endpoint, NoBound, Wire};
use crate::error::Refusal;
use crate::kind;
use crate::object::{Member, members};
use crate::settings::Settings;

/// OpenAI's (and vLLM's) own `max_tokens` of a completion that names none.
const COMPLETION_MAX_TOKENS: u64 = 16;

/// Members that hold a prompt, those first that engines' templates put first.
const PROMPT_MEMBERS: [&[&str]; 3] = [&["tools"], &["system", "instructions"], &["messages", "prompt", "input"]];

/// Where the values of these members lie.
fn in_body(found: &[Member<'_>], names: &[&str]) -> impl Iterator<Item = Range<usize>> {
    found.iter().filter(|member| names.contains(&member.key.as_ref())).map(Member::value_span)
}

/// What the client wants to see of the usage in a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    /// The chunk with the sum, at the end.
    pub sum: bool,
    /// The running counts in each chunk.
    pub each: bool,
}

/// What policy must know of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    pub endpoint: &'static Endpoint,
    pub model: String,
    pub stream: bool,
    pub wants: Wants,
    /// Choices of each prompt.
    pub choices: u64,
    /// What is to be read.
    pub prompt: Prompt,
    /// The most output tokens of each choice, as the client set them; none where nothing is generated.
    pub max_tokens: Option<u64>,
    /// Where that lies which the engine reads, in the order in which its template puts it.
    read: Vec<Range<usize>>,
    places: Places,
}

/// Where the body is changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Places {
    model: Range<usize>,
    stream_options: Option<Range<usize>>,
    /// The client's other options, as members.
    other_options: String,
    /// The bound of the output that policy sets, where it is there and null.
    bound: Option<Range<usize>>,
    /// What is set in each request, where the client set it.
    forced: Vec<(&'static str, Range<usize>)>,
    /// The end of the last member.
    end: usize,
}

impl Ask {
    /// Reads a body. What policy rests on is read strictly: a value that the engine might read in another way is refused.
    pub(crate) fn read(endpoint: &'static Endpoint, body: &[u8]) -> Result<Self, Refusal> {
        let text = std::str::from_utf8(body).map_err(|error| Refusal::invalid_json(&error))?;
        let found = members(text).map_err(|error| Refusal::invalid_json(&error))?;
        let known = Known::of(endpoint, &found)?;
        known.supported(endpoint)?;
        let model = known.model.ok_or_else(|| Refusal::invalid("model", "is required"))?;
        let stream = flag(known.stream, "stream")?;
        let mut places = Places { model: model.value_span(), ..Places::default() };
        places.end = found.last().map_or(0, Member::end);
        places.bound =
            endpoint.bounds.iter().zip(known.bounds).next_back().and_then(|(_, set)| Some(set?.value_span()));
        places.stream_options = known.stream_options.map(Member::value_span);
        for (name, _) in endpoint.forced {
            let set = known.others.iter().find(|member| member.key == *name);
            places.forced.extend(set.map(|member| (*name, member.value_span())));
        }
        let mut wants = Wants::default();
        if let Some(options) = known.stream_options.filter(|options| stream && !options.is_null()) {
            wants = read_options(options.value, &mut places.other_options)?;
        }
        let mut max_tokens = None;
        for (name, set) in endpoint.bounds.iter().zip(known.bounds) {
            max_tokens = max_tokens.or(number(set, name)?);
        }
        if let (NoBound::Refused, None, Some(name)) = (endpoint.no_bound, max_tokens, endpoint.bounds.last()) {
            return Err(Refusal::invalid(name, "is required"));
        }
        Ok(Self {
            endpoint,
            model: serde_json::from_str(model.value).map_err(|_| Refusal::invalid("model", "must be a text"))?,
            stream,
            wants,
            choices: number(known.n, "n")?.unwrap_or(1).max(number(known.best_of, "best_of")?.unwrap_or(1)).max(1),
            prompt: Prompt::of(endpoint, &found),
            max_tokens: max_tokens.or((!endpoint.generates()).then_some(0)),
            read: PROMPT_MEMBERS.iter().flat_map(|names| in_body(&found, names)).collect(),
            places,
        })
    }

    /// What the engine reads, piece by piece, as it stands in the body.
    pub(crate) fn prompt_pieces(&self, body: &Bytes) -> Vec<Bytes> {
        self.read.iter().filter(|span| span.end <= body.len()).map(|span| body.slice((*span).clone())).collect()
    }

    /// The most tokens of output over all choices, if each has at most `max_tokens`. (With `echo`, 0 makes one.)
    pub(crate) fn output_bound(&self, max_tokens: u64) -> u64 {
        if !self.endpoint.generates() {
            return 0;
        }
        max_tokens.max(1).saturating_mul(self.choices).saturating_mul(self.prompt.prompts)
    }

    /// The most tokens of input.
    pub(crate) fn input_bound(&self, settings: &Settings) -> u64 {
        if self.endpoint.wire == Wire::Free {
            return 0;
        }
        let Prompt { prompts, bytes, parts, .. } = self.prompt;
        let overhead = settings.template_overhead_tokens.saturating_mul(prompts);
        bytes.saturating_add(overhead).saturating_add(settings.media_part_tokens.saturating_mul(parts))
    }

    /// The bound of the output to send when the client gave none and one is needed.
    pub(crate) fn default_max_tokens(&self, setting: u64) -> u64 {
        match self.endpoint.no_bound {
            NoBound::Sixteen if self.places.bound.is_none() => COMPLETION_MAX_TOKENS,
            _ => setting,
        }
    }

    /// The body for a replica: with the name that it knows the model by, with as much usage in a stream as its kind
    /// tells, with what is set in each request, and with a bound of the output where policy sets it. All else is the
    /// client's bytes.
    pub(crate) fn forwarded(
        &self,
        body: &[u8],
        served_name: &str,
        kind: ReplicaKind,
        max_tokens: Option<u64>,
    ) -> Bytes {
        let places = &self.places;
        let mut edits = vec![(places.model.clone(), serde_json::Value::from(served_name).to_string())];
        let mut added = String::new();
        let mut set = |name: &str, place: Option<Range<usize>>, value: String| match place {
            Some(span) => edits.push((span, value)),
            None => added.push_str(&format!(",\"{name}\":{value}")),
        };
        if self.stream && self.endpoint.wire == Wire::Chunks {
            let options = format!("{{{}{}}}", kind::of(kind).stream_options, places.other_options);
            set("stream_options", places.stream_options.clone(), options);
        }
        if let (Some(most), Some(name)) = (max_tokens, self.endpoint.bounds.last()) {
            set(name, places.bound.clone(), most.to_string());
        }
        for (name, value) in self.endpoint.forced {
            let place = places.forced.iter().find(|(known, _)| known == name);
            set(name, place.map(|(_, span)| span.clone()), (*value).to_owned());
        }
        edits.push((places.end..places.end, added));
        edited(body, edits)
    }
}

/// The body with these spans replaced.
fn edited(body: &[u8], mut edits: Vec<(Range<usize>, String)>) -> Bytes {
    edits.sort_by_key(|(span, _)| span.start);
    let mut forwarded = BytesMut::with_capacity(body.len() + 160);
    let mut at = 0;
    for (span, text) in edits {
        forwarded.extend_from_slice(body.get(at..span.start).unwrap_or_default());
        forwarded.extend_from_slice(text.as_bytes());
        at = span.end;
    }
    forwarded.extend_from_slice(body.get(at..).unwrap_or_default());
    forwarded.freeze()
}

/// The members that policy reads. One that occurs twice is refused: which of them would the engine take?
#[derive(Default)]
struct Known<'m, 'a> {
    model: Option<&'m Member<'a>>,
    stream: Option<&'m Member<'a>>,
    stream_options: Option<&'m Member<'a>>,
    n: Option<&'m Member<'a>>,
    best_of: Option<&'m Member<'a>>,
    /// As the endpoint's `bounds`.
    bounds: [Option<&'m Member<'a>>; 2],
    /// What the endpoint names beside these.
    others: Vec<&'m Member<'a>>,
}

impl<'m, 'a> Known<'m, 'a> {
    fn of(endpoint: &Endpoint, found: &'m [Member<'a>]) -> Result<Self, Refusal> {
        let mut known = Self::default();
        let chunks = endpoint.wire == Wire::Chunks;
        for member in found {
            let (name, place) = match member.key.as_ref() {
                "model" => ("model", &mut known.model),
                "stream" if endpoint.streams => ("stream", &mut known.stream),
                "stream_options" if chunks => ("stream_options", &mut known.stream_options),
                "n" if chunks => ("n", &mut known.n),
                "best_of" if chunks => ("best_of", &mut known.best_of),
                key => {
                    if let Some((name, place)) = endpoint.bounds.iter().zip(&mut known.bounds).find(|(b, _)| **b == key)
                    {
                        (*name, place)
                    } else if let Some(name) = endpoint.named(key) {
                        if known.others.iter().any(|other| other.key == name) {
                            return Err(Refusal::invalid(name, "occurs twice"));
                        }
                        known.others.push(member);
                        continue;
                    } else {
                        continue;
                    }
                }
            };
            if place.replace(member).is_some() {
                return Err(Refusal::invalid(name, "occurs twice"));
            }
        }
        Ok(known)
    }

    /// Whether the gateway can serve what is asked for.
    fn supported(&self, endpoint: &Endpoint) -> Result<(), Refusal> {
        for rule in endpoint.unsupported {
            let served = |value: &str| value == "null" || rule.unless.contains(&value);
            if self.others.iter().any(|member| member.key == rule.member && !served(member.value)) {
                return Err(Refusal::invalid(rule.member, rule.why));
            }
        }
        Ok(())
    }
}

fn flag(member: Option<&Member<'_>>, name: &'static str) -> Result<bool, Refusal> {
    match member.map_or("null", |member| member.value) {
        "true" => Ok(true),
        "false" | "null" => Ok(false),
        _ => Err(Refusal::invalid(name, "must be true or false")),
    }
}

fn number(member: Option<&Member<'_>>, name: &'static str) -> Result<Option<u64>, Refusal> {
    match member.map_or("null", |member| member.value) {
        "null" => Ok(None),
        digits => {
            digits.parse().map(Some).map_err(|_| Refusal::invalid(name, "must be a whole number that is not negative"))
        }
    }
}

/// What the client asked for, and its other options as they are.
fn read_options(value: &str, others: &mut String) -> Result<Wants, Refusal> {
    let options = members(value).map_err(|_| Refusal::invalid("stream_options", "must be an object"))?;
    let (mut sum, mut each) = (None, None);
    for option in &options {
        let place = match option.key.as_ref() {
            "include_usage" => &mut sum,
            "continuous_usage_stats" => &mut each,
            _ => {
                let raw = value.get(option.start..option.end()).unwrap_or_default();
                others.push(',');
                others.push_str(raw);
                continue;
            }
        };
        if place.replace(option).is_some() {
            return Err(Refusal::invalid("stream_options", "has an option twice"));
        }
    }
    let sum = flag(sum, "stream_options")?;
    // vLLM ignores the running counts without the sum; so do we.
    Ok(Wants { sum, each: flag(each, "stream_options")? && sum })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{ALL, CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, SCORE};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn read(body: &str) -> Result<Ask, Refusal> {
        Ask::read(&CHAT, body.as_bytes())
    }

    fn forwarded(body: &str, max_tokens: Option<u64>) -> String {
        let bytes = read(body).unwrap().forwarded(body.as_bytes(), "served \"x\"", ReplicaKind::Vllm, max_tokens);
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn only_what_policy_sets_is_changed() {
        let body = r#"{ "unknown" : [1, 2.50] , "model":"m","stream" : true, "messages":[{"role":"user","content":"é\u00e9"}] }"#;
        assert_eq!(
            forwarded(body, Some(7)),
            r#"{ "unknown" : [1, 2.50] , "model":"served \"x\"","stream" : true, "messages":[{"role":"user","content":"é\u00e9"}],"stream_options":{"include_usage":true,"continuous_usage_stats":true},"max_tokens":7 }"#
        );
        let body = r#"{"max_tokens":null,"model":"m","max_tokens\u0020":9}"#;
        assert_eq!(forwarded(body, Some(7)), r#"{"max_tokens":7,"model":"served \"x\"","max_tokens\u0020":9}"#);
        let body = r#"{"model":"m","stream":true,"stream_options":{"x":{"y":1},"include_usage":true}}"#;
        assert_eq!(
            forwarded(body, None),
            r#"{"model":"served \"x\"","stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true,"x":{"y":1}}}"#
        );
        assert_eq!(read(body).unwrap().wants, Wants { sum: true, each: false });
        let without_stream = r#"{"model":"m","stream_options":{"include_usage":true}}"#;
        assert_eq!(
            forwarded(without_stream, None),
            without_stream.replace("\"m\"", r#""served \"x\"""#),
            "the engine refuses it"
        );
    }

    #[test]
    fn what_policy_rests_on_is_read_strictly() {
        for (body, param) in [
            (r#"{"messages":[]}"#, "model"),
            (r#"{"model":7}"#, "model"),
            (r#"{"model":"a","model":"b"}"#, "model"),
            (r#"{"model":"a","max_tokens":5,"max\u005ftokens":9000}"#, "max_tokens"),
            (r#"{"model":"a","max_tokens":"9000"}"#, "max_tokens"),
            (r#"{"model":"a","max_tokens":-1}"#, "max_tokens"),
            (r#"{"model":"a","max_completion_tokens":1e3}"#, "max_completion_tokens"),
            (r#"{"model":"a","n":true}"#, "n"),
            (r#"{"model":"a","stream":"true"}"#, "stream"),
            (r#"{"model":"a","stream":true,"stream_options":7}"#, "stream_options"),
            (r#"{"model":"a","stream":true,"stream_options":{"include_usage":1}}"#, "stream_options"),
        ] {
            assert_eq!(
                (read(body).unwrap_err().code, read(body).unwrap_err().param),
                ("invalid_value", Some(param)),
                "{body}"
            );
        }
        for body in ["", "[]", "{\"model\":", "\u{feff}{}"] {
            assert_eq!(read(body).unwrap_err().code, "invalid_json", "{body}");
        }
        assert_eq!(Ask::read(&CHAT, b"{\"model\":\"\xff\"}").unwrap_err().code, "invalid_json");
    }

    #[test]
    fn the_bound_counts_every_choice_of_every_prompt() {
        let of = |endpoint, body: Value| Ask::read(endpoint, body.to_string().as_bytes()).unwrap();
        let chat = of(&CHAT, json!({"model": "m", "max_tokens": 9, "max_completion_tokens": 5, "n": 3}));
        assert_eq!((chat.max_tokens, chat.output_bound(5)), (Some(5), 15));
        let two = of(&COMPLETIONS, json!({"model": "m", "prompt": ["ab", "c"], "n": 2, "best_of": 4, "max_tokens": 0}));
        assert_eq!(
            (two.prompt.prompts, two.output_bound(0), two.input_bound(&Settings::default())),
            (2, 8, 10 + 2 * 64)
        );
        assert_eq!(of(&COMPLETIONS, json!({"model": "m"})).default_max_tokens(4096), 16);
        assert_eq!(of(&COMPLETIONS, json!({"model": "m", "max_tokens": null})).default_max_tokens(4096), 4096);
        assert_eq!(of(&CHAT, json!({"model": "m"})).default_max_tokens(4096), 4096);
        let huge = of(&CHAT, json!({"model": "m", "n": u64::MAX}));
        assert_eq!(huge.output_bound(u64::MAX), u64::MAX, "nothing wraps");
    }

    #[test]
    fn each_endpoint_has_its_own_names_for_what_bounds_it() {
        let of = |endpoint, body: Value| Ask::read(endpoint, body.to_string().as_bytes());
        let sent = |endpoint, body: &str, kind, most| {
            let sent = Ask::read(endpoint, body.as_bytes()).unwrap().forwarded(body.as_bytes(), "s", kind, most);
            String::from_utf8(sent.to_vec()).unwrap()
        };
        let responses =
            of(&RESPONSES, json!({"model": "m", "max_output_tokens": 7, "max_tokens": 900, "n": 5})).unwrap();
        assert_eq!((responses.max_tokens, responses.output_bound(7)), (Some(7), 7));
        assert_eq!(
            sent(&RESPONSES, r#"{"model":"m","store":true,"stream":true}"#, ReplicaKind::Vllm, Some(9)),
            r#"{"model":"s","store":false,"stream":true,"max_output_tokens":9}"#
        );
        assert_eq!(sent(&RESPONSES, r#"{"model":"m"}"#, ReplicaKind::Vllm, None), r#"{"model":"s","store":false}"#);
        assert_eq!(of(&MESSAGES, json!({"model": "m"})).unwrap_err().param, Some("max_tokens"));
        let message = r#"{"model":"m","max_tokens":3,"stream":true,"stream_options":7}"#;
        assert_eq!(sent(&MESSAGES, message, ReplicaKind::Vllm, None), message.replace("\"m\"", "\"s\""));
        let embed =
            of(&EMBEDDINGS, json!({"model": "m", "input": ["ab", "c"], "stream": true, "max_tokens": 9})).unwrap();
        assert_eq!((embed.max_tokens, embed.stream, embed.output_bound(4096)), (Some(0), false, 0));
        for (endpoint, body, param) in [
            (&RESPONSES, json!({"model": "m", "background": true}), "background"),
            (&RESPONSES, json!({"model": "m", "previous_response_id": "resp_1"}), "previous_response_id"),
            (&EMBEDDINGS, json!({"model": "m", "input": "a", "encoding_format": "bytes"}), "encoding_format"),
        ] {
            assert_eq!(of(endpoint, body).unwrap_err().param, Some(param));
        }
        let served = json!({"model": "m", "background": false, "previous_response_id": null, "store": null});
        assert!(of(&RESPONSES, served).is_ok());
        let twice = Ask::read(&RESPONSES, br#"{"model":"m","background":false,"background":true}"#);
        assert_eq!(twice.unwrap_err().param, Some("background"));
        let twice = Ask::read(&SCORE, br#"{"model":"m","text_2":["a"],"text_2":["a","b"]}"#);
        assert_eq!(twice.unwrap_err().param, Some("text_2"));
        for (kind, options) in [
            (ReplicaKind::Tgi, r#"{"include_usage":true}"#),
            (ReplicaKind::OpenaiCompatible, r#"{"include_usage":true}"#),
            (ReplicaKind::Sglang, r#"{"include_usage":true,"continuous_usage_stats":true}"#),
        ] {
            let wanted = format!(r#"{{"model":"s","stream":true,"stream_options":{options}}}"#);
            assert_eq!(sent(&CHAT, r#"{"model":"m","stream":true}"#, kind, None), wanted);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..80)) {
            for endpoint in ALL {
                let _ = Ask::read(endpoint, &body);
            }
        }

        /// The engine reads what the client wrote, but for what policy sets.
        #[test]
        fn the_forwarded_body_says_the_same(
            others in prop::collection::btree_map("[a-z]{1,4}\\PC{0,3}", "\\PC{0,8}", 0..5),
            prompt in "\\PC{0,40}", stream in any::<bool>(), asked in any::<Option<bool>>(), most in any::<Option<u32>>(), set in any::<Option<u32>>(), after in any::<bool>()
        ) {
            let known = ["model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "best_of", "prompt"];
            let mut wanted = serde_json::Map::new();
            for (key, value) in others.iter().filter(|(key, _)| !known.contains(&key.as_str())) {
                wanted.insert(key.clone(), json!(value));
            }
            wanted.insert("prompt".into(), json!(prompt));
            wanted.insert("model".into(), json!("public"));
            wanted.insert("stream".into(), json!(stream));
            if let Some(asked) = asked.filter(|_| stream) {
                wanted.insert("stream_options".into(), json!({"include_usage": asked}));
            }
            if let Some(most) = most {
                wanted.insert("max_tokens".into(), json!(most));
            }
            let mut body = Value::Object(wanted.clone()).to_string();
            if after {
                body = body.replace("\",\"", "\" ,\n\"");
            }
            let Ok(ask) = Ask::read(&COMPLETIONS, body.as_bytes()) else { return Ok(()) };
            let set = set.filter(|_| most.is_none()).map(u64::from);
            let sent: Value = serde_json::from_slice(&ask.forwarded(body.as_bytes(), "served", ReplicaKind::Vllm, set)).unwrap();
            let mut said: Value = serde_json::from_str(&body).unwrap();
            said["model"] = json!("served");
            if stream {
                said["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
            }
            if let Some(set) = set {
                said["max_tokens"] = json!(set);
            }
            prop_assert_eq!(sent, said);
            prop_assert!(ask.prompt.bytes >= prompt.len() as u64);
        }
    }
}
