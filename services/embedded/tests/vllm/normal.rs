//! Takes out of an answer what may differ between two runs of the same server, byte for byte leaving the rest.

/// Values that are replaced by a mark wherever they stand; null stays null.
const VARYING: [&str; 30] = [
    "id",
    "created",
    "content",
    "text",
    "reasoning",
    "system_fingerprint",
    "root",
    "token",
    "logprob",
    "bytes",
    "token_ids",
    "prompt_token_ids",
    "tokens",
    "token_strs",
    "stop_reason",
    "time_to_first_token_ms",
    "generation_time_ms",
    "queue_time_ms",
    "mean_itl_ms",
    "tokens_per_second",
    "arguments",
    "server_load",
    "created_at",
    "delta",
    "item_id",
    "embedding",
    "data",
    "score",
    "relevance_score",
    "prompt",
];

/// Token counts, replaced when the tokenizers differ on the prompt.
const COUNTS: [&str; 10] = [
    "prompt_tokens",
    "total_tokens",
    "completion_tokens",
    "cached_tokens",
    "created_cache_tokens",
    "input_tokens",
    "output_tokens",
    "original_input_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
];

/// How ids begin that are made anew each time. Names of models are ids too, and must not differ.
const IDS: [&str; 7] = ["cmpl-", "modelperm-", "resp_", "msg_", "embd-", "pooling-", "score-"];

/// JSON text (or SSE, or anything) with the varying values replaced.
pub(crate) fn normal(text: &str, counts_too: bool) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (String::new(), 0);
    while at < bytes.len() {
        if bytes[at] != b'"' {
            let next = text[at..].find('"').map_or(text.len(), |quote| at + quote);
            out.push_str(&text[at..next]);
            at = next;
            continue;
        }
        let end = string_end(bytes, at);
        let key = &text[at + 1..end - 1];
        out.push_str(&text[at..end]);
        at = end;
        let varies = VARYING.contains(&key) && key != "id" || COUNTS.contains(&key) && counts_too;
        if bytes.get(at) == Some(&b':') && (varies || key == "id") {
            let end = value_end(bytes, at + 1);
            let value = &text[at + 1..end];
            let replace = value != "null"
                && !value.starts_with('{')
                && (key != "id" || IDS.iter().any(|begin| value.contains(begin)));
            // The list of choices' logprobs is called content as well, and so are blocks of a message.
            let inner = key == "content" && value.starts_with('[') || value.starts_with("[{");
            if replace && !inner {
                out.push_str(":~");
                at = end;
            }
        }
    }
    out
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

fn value_end(bytes: &[u8], start: usize) -> usize {
    match bytes.get(start) {
        Some(b'"') => string_end(bytes, start),
        Some(b'[') => {
            let mut at = start + 1;
            while at < bytes.len() && bytes[at] != b']' {
                at = if bytes[at] == b'"' { string_end(bytes, at) } else { at + 1 };
            }
            at + 1
        }
        _ => start + bytes[start..].iter().take_while(|byte| !matches!(byte, b',' | b'}' | b']' | b'\n')).count(),
    }
}

/// Header lines with their varying values replaced.
pub(crate) fn normal_head(head: &str, own_request_id: bool) -> String {
    let line = |line: &str| match line.split_once(": ") {
        Some((name @ ("date" | "content-length"), _)) => format!("{name}: ~"),
        Some((name @ "x-request-id", _)) if own_request_id => format!("{name}: ~"),
        _ => line.to_owned(),
    };
    head.lines().filter(|line| *line != "connection: close").map(line).collect::<Vec<_>>().join("\n")
}

/// The different forms of event in a stream, in the order of their first appearance, without counts and indexes.
pub(crate) fn forms(text: &str) -> Vec<String> {
    let mut forms: Vec<String> = Vec::new();
    for event in text.split("\n\n").filter(|event| !event.is_empty()) {
        let form = normal(event, true).replace("\"index\":1", "\"index\":0");
        if !forms.contains(&form) {
            forms.push(form);
        }
    }
    forms
}

#[test]
fn only_what_varies_is_replaced() {
    let said = r#"{"id":"chatcmpl-1","x":null,"content":"a\"b","token_ids":[1,2],"prompt_tokens":17,"stop_reason":null,"model":"m"}"#;
    let same = r#"{"id":~,"x":null,"content":~,"token_ids":~,"prompt_tokens":17,"stop_reason":null,"model":"m"}"#;
    assert_eq!(normal(said, false), same);
    assert_eq!(normal(r#"{"id":"llama-3.1-8b"}"#, false), r#"{"id":"llama-3.1-8b"}"#);
}
