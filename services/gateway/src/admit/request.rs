//! What policy must know of a request's body, and the body that is forwarded: the same bytes but for what policy sets.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use serde_json::value::RawValue;

use crate::error::Refusal;
use crate::object::{Member, members};

/// Which of the two endpoints that generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
}

impl Endpoint {
    /// The path, on this side and the other.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

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
    pub endpoint: Endpoint,
    pub model: String,
    pub stream: bool,
    pub wants: Wants,
    /// Choices of each prompt.
    pub choices: u64,
    /// Prompts; more than one only in completions.
    pub prompts: u64,
    /// The most output tokens of each choice, as the client set them.
    pub max_tokens: Option<u64>,
    /// Bytes of JSON of all that may become a prompt: a bound of its tokens, as a token of a byte-level tokenizer stands
    /// for at least one byte, and a text's JSON is never shorter than the text.
    pub prompt_bytes: u64,
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
    /// `max_tokens`, where it is there and null.
    max_tokens: Option<Range<usize>>,
    /// The end of the last member.
    end: usize,
}

impl Ask {
    /// Reads a body. What policy rests on is read strictly: a value that the engine might read in another way is refused.
    pub(crate) fn read(endpoint: Endpoint, body: &[u8]) -> Result<Self, Refusal> {
        let text = std::str::from_utf8(body).map_err(|error| Refusal::invalid_json(&error))?;
        let found = members(text).map_err(|error| Refusal::invalid_json(&error))?;
        let known = Known::of(&found)?;
        let model = known.model.ok_or_else(|| Refusal::invalid("model", "is required"))?;
        let stream = flag(known.stream, "stream")?;
        let mut places = Places { model: model.value_span(), ..Places::default() };
        places.end = found.last().map_or(0, Member::end);
        places.max_tokens = known.max_tokens.map(Member::value_span);
        places.stream_options = known.stream_options.map(Member::value_span);
        let mut wants = Wants::default();
        if let Some(options) = known.stream_options.filter(|options| stream && !options.is_null()) {
            wants = read_options(options.value, &mut places.other_options)?;
        }
        let max_tokens = match (endpoint, number(known.max_completion_tokens, "max_completion_tokens")?) {
            (Endpoint::Chat, Some(most)) => Some(most),
            _ => number(known.max_tokens, "max_tokens")?,
        };
        let choices = number(known.n, "n")?.unwrap_or(1).max(number(known.best_of, "best_of")?.unwrap_or(1)).max(1);
        Ok(Self {
            endpoint,
            model: serde_json::from_str(model.value).map_err(|_| Refusal::invalid("model", "must be a text"))?,
            stream,
            wants,
            choices,
            prompts: known.prompt.map_or(1, |prompt| prompts_in(prompt.value)),
            max_tokens,
            prompt_bytes: found.iter().filter(|member| may_be_prompt(member)).map(|m| m.value.len() as u64).sum(),
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
        max_tokens.max(1).saturating_mul(self.choices).saturating_mul(self.prompts)
    }

    /// The most tokens of input.
    pub(crate) fn input_bound(&self, template_overhead: u64) -> u64 {
        self.prompt_bytes.saturating_add(template_overhead.saturating_mul(self.prompts))
    }

    /// `max_tokens` to send when the client gave none and a bound is needed.
    pub(crate) fn default_max_tokens(&self, setting: u64) -> u64 {
        match self.endpoint {
            Endpoint::Completions if self.places.max_tokens.is_none() => COMPLETION_MAX_TOKENS,
            _ => setting,
        }
    }

    /// The body to forward: with the name that replicas know, with usage in every chunk of a stream, and with
    /// `max_tokens` where policy sets it. All else is the client's bytes.
    pub(crate) fn forwarded(&self, body: &[u8], served_name: &str, max_tokens: Option<u64>) -> Bytes {
        let places = &self.places;
        let name = serde_json::Value::from(served_name).to_string();
        let mut edits = vec![(places.model.clone(), name)];
        let mut added = String::new();
        if self.stream {
            let options = format!("{{\"include_usage\":true,\"continuous_usage_stats\":true{}}}", places.other_options);
            match &places.stream_options {
                Some(span) => edits.push((span.clone(), options)),
                None => added.push_str(&format!(",\"stream_options\":{options}")),
            }
        }
        if let Some(most) = max_tokens {
            match &places.max_tokens {
                Some(span) => edits.push((span.clone(), most.to_string())),
                None => added.push_str(&format!(",\"max_tokens\":{most}")),
            }
        }
        edits.push((places.end..places.end, added));
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
}

/// The members that policy reads. One that occurs twice is refused: which of them would the engine take?
#[derive(Default)]
struct Known<'m, 'a> {
    model: Option<&'m Member<'a>>,
    stream: Option<&'m Member<'a>>,
    stream_options: Option<&'m Member<'a>>,
    max_tokens: Option<&'m Member<'a>>,
    max_completion_tokens: Option<&'m Member<'a>>,
    n: Option<&'m Member<'a>>,
    best_of: Option<&'m Member<'a>>,
    prompt: Option<&'m Member<'a>>,
}

impl<'m, 'a> Known<'m, 'a> {
    fn of(found: &'m [Member<'a>]) -> Result<Self, Refusal> {
        let mut known = Self::default();
        for member in found {
            let (name, place) = match member.key.as_ref() {
                "model" => ("model", &mut known.model),
                "stream" => ("stream", &mut known.stream),
                "stream_options" => ("stream_options", &mut known.stream_options),
                "max_tokens" => ("max_tokens", &mut known.max_tokens),
                "max_completion_tokens" => ("max_completion_tokens", &mut known.max_completion_tokens),
                "n" => ("n", &mut known.n),
                "best_of" => ("best_of", &mut known.best_of),
                "prompt" => ("prompt", &mut known.prompt),
                _ => continue,
            };
            if place.replace(member).is_some() {
                return Err(Refusal::invalid(name, "occurs twice"));
            }
        }
        Ok(known)
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

/// Each text or list in a list is a prompt; all else, a list of token ids too, is one.
fn prompts_in(value: &str) -> u64 {
    let items: Vec<&RawValue> = serde_json::from_str(value).unwrap_or_default();
    let is_prompt = |item: &&&RawValue| item.get().starts_with(['"', '[', '{']);
    (items.iter().filter(is_prompt).count() as u64).max(1)
}

/// Numbers and flags hold no prompt; neither do these.
fn may_be_prompt(member: &Member<'_>) -> bool {
    member.value.starts_with(['"', '[', '{']) && !matches!(member.key.as_ref(), "model" | "stream_options")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn read(body: &str) -> Result<Ask, Refusal> {
        Ask::read(Endpoint::Chat, body.as_bytes())
    }

    fn forwarded(body: &str, max_tokens: Option<u64>) -> String {
        let bytes = read(body).unwrap().forwarded(body.as_bytes(), "served \"x\"", max_tokens);
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
        assert_eq!(Ask::read(Endpoint::Chat, b"{\"model\":\"\xff\"}").unwrap_err().code, "invalid_json");
    }

    #[test]
    fn the_bound_counts_every_choice_of_every_prompt() {
        let of = |endpoint, body: Value| Ask::read(endpoint, body.to_string().as_bytes()).unwrap();
        let chat = of(Endpoint::Chat, json!({"model": "m", "max_tokens": 9, "max_completion_tokens": 5, "n": 3}));
        assert_eq!((chat.max_tokens, chat.output_bound(5)), (Some(5), 15));
        let two = of(
            Endpoint::Completions,
            json!({"model": "m", "prompt": ["ab", "c"], "n": 2, "best_of": 4, "max_tokens": 0}),
        );
        assert_eq!((two.prompts, two.output_bound(0), two.input_bound(10)), (2, 8, 10 + 20));
        for (prompt, prompts) in [
            (json!("a"), 1),
            (json!([1, 2, 3]), 1),
            (json!([[1], [2, 3]]), 2),
            (json!([]), 1),
            (json!(null), 1),
            (json!(["a"]), 1),
        ] {
            assert_eq!(of(Endpoint::Completions, json!({"model": "m", "prompt": prompt})).prompts, prompts);
        }
        assert_eq!(of(Endpoint::Completions, json!({"model": "m"})).default_max_tokens(4096), 16);
        assert_eq!(of(Endpoint::Completions, json!({"model": "m", "max_tokens": null})).default_max_tokens(4096), 4096);
        assert_eq!(of(Endpoint::Chat, json!({"model": "m"})).default_max_tokens(4096), 4096);
        let huge = of(Endpoint::Chat, json!({"model": "m", "n": u64::MAX}));
        assert_eq!(huge.output_bound(u64::MAX), u64::MAX, "nothing wraps");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Ask::read(Endpoint::Completions, &body);
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
            let Ok(ask) = Ask::read(Endpoint::Completions, body.as_bytes()) else { return Ok(()) };
            let set = set.filter(|_| most.is_none()).map(u64::from);
            let sent: Value = serde_json::from_slice(&ask.forwarded(body.as_bytes(), "served", set)).unwrap();
            let mut said: Value = serde_json::from_str(&body).unwrap();
            said["model"] = json!("served");
            if stream {
                said["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
            }
            if let Some(set) = set {
                said["max_tokens"] = json!(set);
            }
            prop_assert_eq!(sent, said);
            prop_assert!(ask.prompt_bytes >= prompt.len() as u64);
        }
    }
}
