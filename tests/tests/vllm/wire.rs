//! What a client should have got, made from the bytes that the engine sent: the same, without the usage it did not ask for.
//! And what there is to bill of an answer that was cut. Written without the product's code, so that the two can disagree.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::calls::Call;

/// The bytes for the client.
pub(crate) fn expected(call: &Call, engine: &[u8]) -> String {
    let text = String::from_utf8(engine.to_vec()).expect("text");
    let forced = call.path.ends_with("completions") && call.body["stream"] == true;
    if !forced {
        return text;
    }
    let options = &call.body["stream_options"];
    let sum = options["include_usage"] == true;
    let each = sum && options["continuous_usage_stats"] == true;
    let mut kept = String::new();
    for event in text.split_inclusive("\n\n") {
        let json = event.trim_end().strip_prefix("data: ").and_then(|data| serde_json::from_str::<Value>(data).ok());
        let Some(json) = json.filter(|json| json.get("usage").is_some()) else {
            kept.push_str(event);
            continue;
        };
        let is_sum = json["choices"].as_array().is_some_and(Vec::is_empty) && json["usage"].is_object();
        match is_sum {
            true if sum => kept.push_str(event),
            true => {}
            false if each => kept.push_str(event),
            false => kept.push_str(&without_usage(event)),
        }
    }
    kept
}

/// The event without the last `"usage":…` of its outermost object.
fn without_usage(event: &str) -> String {
    let at = event.rfind(",\"usage\":").expect("usage behind another member");
    let rest = &event[at + ",\"usage\":".len()..];
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    values.next().expect("a value").expect("JSON");
    format!("{}{}", &event[..at], &rest[values.byte_offset()..])
}

/// Prompt, cached and generated tokens, as an engine's answer tells them at its end; none if it tells none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Told {
    pub(crate) prompt: u64,
    pub(crate) generated: u64,
}

/// The last usage of an answer, whole or streamed.
pub(crate) fn told(engine: &[u8]) -> Option<Told> {
    let text = String::from_utf8_lossy(engine);
    let of = |json: &Value| {
        // Anthropic's last word is in `message_delta`, that of Responses in the response itself.
        let usage = [&json["usage"], &json["response"]["usage"]].into_iter().find(|usage| usage.is_object())?;
        let number = |names: &[&str]| names.iter().find_map(|name| usage[name].as_u64()).unwrap_or(0);
        let cached = number(&["cache_read_input_tokens"]) + number(&["cache_creation_input_tokens"]);
        Some(Told {
            prompt: number(&["prompt_tokens", "input_tokens"]) + cached,
            generated: number(&["completion_tokens", "output_tokens"]),
        })
    };
    let whole = serde_json::from_str::<Value>(&text).ok();
    let events = text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok());
    whole.into_iter().chain(events).filter_map(|json: Value| of(&json)).next_back()
}

/// How many events are whole, signs of life left out.
pub(crate) fn events(bytes: &[u8]) -> usize {
    whole_events(bytes).count()
}

fn whole_events(bytes: &[u8]) -> impl Iterator<Item = Value> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let whole = text.rfind("\n\n").map_or(0, |end| end);
    let events: Vec<String> = text[..whole].split("\n\n").map(str::to_owned).collect();
    events.into_iter().filter_map(|event| {
        let data = event.lines().find_map(|line| line.strip_prefix("data: "))?;
        serde_json::from_str(data).ok()
    })
}

/// What the first so many events of a stream tell: counts where the engine tells them, else at least a token for each piece
/// of text and at most one for each of its bytes.
pub(crate) fn told_so_far(engine: &[u8], events: usize) -> (Told, Told) {
    let (mut prompt, mut counted, mut pieces, mut bytes) = (0, BTreeMap::new(), 0, 0);
    for event in whole_events(engine).take(events) {
        let usage = if event["usage"].is_object() { &event["usage"] } else { &event["message"]["usage"] };
        let number = |name: &str| usage[name].as_u64().unwrap_or(0);
        prompt = prompt.max(number("prompt_tokens") + number("input_tokens") + number("cache_read_input_tokens"));
        if let (Some(index), Some(tokens)) =
            (event["choices"][0]["index"].as_u64(), usage["completion_tokens"].as_u64())
        {
            counted.insert(index, tokens);
        }
        let delta = &event["delta"];
        if let Some(text) = delta.as_str().or(delta["text"].as_str()).filter(|text| !text.is_empty()) {
            pieces += 1;
            bytes += text.len() as u64;
        }
    }
    let counted: u64 = counted.values().sum();
    (Told { prompt, generated: counted.max(pieces) }, Told { prompt, generated: counted.max(bytes) })
}
