//! How large a prompt may be: bounds of its tokens, and an estimate for engines that count none.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::endpoint::{Endpoint, Wire};
use crate::object::{Member, members};

/// A token stands for so many bytes of text, by and large.
const BYTES_PER_TOKEN: u64 = 4;
/// What an image stands for in an estimate: a tile of 336 pixels with patches of 14.
const TOKENS_PER_PART: u64 = 576;

/// What a request gives to read. All sizes are bytes of JSON: a token of a byte-level tokenizer stands for at least one
/// byte, and a text's JSON is never shorter than the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Prompt {
    /// Prompts, each read for itself.
    pub prompts: u64,
    /// Of all prompts together: a bound of the tokens of their text.
    pub bytes: u64,
    /// Images, sounds, videos, files. Bytes, or those of an address, say nothing of their tokens.
    pub parts: u64,
    /// Of `bytes`, those that the parts take.
    pub part_bytes: u64,
}

impl Prompt {
    /// Reads the members of a request.
    pub(crate) fn of(endpoint: &Endpoint, found: &[Member<'_>]) -> Self {
        if endpoint.wire == Wire::Free {
            return Self { prompts: 1, ..Self::default() };
        }
        let lists = found.iter().filter(|member| endpoint.prompts.contains(&member.key.as_ref()));
        let mut prompt =
            Self { prompts: lists.map(|list| prompts_in(list.value)).max().unwrap_or(1), ..Self::default() };
        for member in found.iter().filter(|member| may_be_prompt(member)) {
            // What stands beside a list of documents is read with each of them.
            let times = if endpoint.pairs && prompts_in(member.value) == 1 { prompt.prompts } else { 1 };
            let parts = Parts::of(member);
            prompt.bytes = prompt.bytes.saturating_add((member.value.len() as u64).saturating_mul(times));
            prompt.parts = prompt.parts.saturating_add(parts.parts.saturating_mul(times));
            prompt.part_bytes = prompt.part_bytes.saturating_add(parts.bytes.saturating_mul(times));
        }
        prompt
    }

    /// What it probably is, in tokens.
    pub(crate) fn estimate(&self) -> u64 {
        let text = self.bytes.saturating_sub(self.part_bytes).div_ceil(BYTES_PER_TOKEN);
        text.saturating_add(self.parts.saturating_mul(TOKENS_PER_PART))
    }
}

/// Each text or list in a list is a prompt; all else, a list of token ids too, is one. An object may hold a list in
/// `content`.
fn prompts_in(value: &str) -> u64 {
    if value.starts_with('{') {
        let inner = members(value).unwrap_or_default();
        let content = inner.iter().find(|member| member.key == "content" && member.value.starts_with('['));
        return content.map_or(1, |content| prompts_in(content.value));
    }
    if !value.starts_with('[') {
        return 1;
    }
    let items: Vec<&RawValue> = serde_json::from_str(value).unwrap_or_default();
    let is_prompt = |item: &&&RawValue| item.get().starts_with(['"', '[', '{']);
    (items.iter().filter(is_prompt).count() as u64).max(1)
}

/// Numbers and flags hold no prompt; neither do these.
fn may_be_prompt(member: &Member<'_>) -> bool {
    member.value.starts_with(['"', '[', '{']) && !matches!(member.key.as_ref(), "model" | "stream_options")
}

/// Parts that are no text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Parts {
    parts: u64,
    bytes: u64,
}

/// Members that hold a part, in any of the protocols, and whether only as an object: tools have arguments of such names.
const PART_MEMBERS: [(&str, bool); 12] = [
    ("image_url", false),
    ("video_url", false),
    ("audio_url", false),
    ("file_url", false),
    ("file_data", false),
    ("file_id", false),
    ("input_audio", true),
    ("source", true),
    ("file", true),
    ("image_pil", false),
    ("image_embeds", false),
    ("audio_embeds", false),
];

/// Text in which none of these occurs has no such member. (`\u` may hide any name.)
static HINTS: LazyLock<[Finder<'static>; 7]> = LazyLock::new(|| {
    let hints = ["_url\"", "\"input_audio\"", "\"source\"", "\"file", "\"image_pil\"", "_embeds\"", "\\u"];
    hints.map(Finder::new)
});

impl Parts {
    fn of(member: &Member<'_>) -> Self {
        // A schema may name anything.
        let schema = matches!(member.key.as_ref(), "tools" | "functions" | "response_format" | "metadata" | "text");
        let text = member.value.as_bytes();
        if schema || member.value.starts_with('"') || !HINTS.iter().any(|hint| hint.find(text).is_some()) {
            return Self::default();
        }
        let mut found = Self::default();
        match serde_json::from_str(member.value) {
            Ok(value) => found.add(&value),
            // Too deep, or half a character: no engine takes it, but whatever it holds, it is not more than this.
            Err(_) => found.parts = text.iter().filter(|byte| **byte == b':').count() as u64,
        }
        found
    }

    fn add(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.add(item)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    let part = PART_MEMBERS.iter().find(|(part, _)| part == name);
                    if part.is_some_and(|(_, object)| !value.is_null() && (!object || value.is_object())) {
                        self.parts += 1;
                        self.bytes += value.to_string().len() as u64;
                    } else {
                        self.add(value);
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::endpoint::{CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RERANK, RESPONSES, SCORE, TOKENIZE};

    fn of(endpoint: &Endpoint, body: &Value) -> Prompt {
        let text = body.to_string();
        Prompt::of(endpoint, &members(&text).unwrap())
    }

    #[test]
    fn each_prompt_of_a_list_counts() {
        for (prompt, prompts) in [
            (json!("a"), 1),
            (json!([1, 2, 3]), 1),
            (json!([[1], [2, 3]]), 2),
            (json!([]), 1),
            (json!(null), 1),
            (json!(["a"]), 1),
        ] {
            assert_eq!(of(&COMPLETIONS, &json!({"model": "m", "prompt": prompt})).prompts, prompts);
            assert_eq!(of(&EMBEDDINGS, &json!({"model": "m", "input": prompt})).prompts, prompts);
            assert_eq!(of(&CHAT, &json!({"model": "m", "prompt": prompt})).prompts, 1);
        }
    }

    #[test]
    fn what_is_read_with_each_document_counts_as_often() {
        let ranked = of(&RERANK, &json!({"model": "m", "query": "abcd", "documents": ["x", "yz", {"text": "v"}]}));
        assert_eq!((ranked.prompts, ranked.bytes), (3, 3 * 6 + 23));
        let scored = of(&SCORE, &json!({"text_1": "ab", "text_2": {"content": [{"type": "text"}, {"type": "text"}]}}));
        assert_eq!((scored.prompts, scored.bytes), (2, 2 * 4 + 45));
        assert_eq!(of(&TOKENIZE, &json!({"prompt": "abc"})), Prompt { prompts: 1, ..Prompt::default() }, "it is free");
    }

    #[test]
    fn parts_that_are_no_text_are_found_in_every_protocol() {
        let url = "https://x/y.png";
        for (endpoint, member, content, parts) in [
            (&CHAT, "messages", json!([{"type": "image_url", "image_url": {"url": url}}, {"image_url": url}]), 2),
            (&CHAT, "messages", json!([{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]), 1),
            (&CHAT, "messages", json!("an \"image_url\" in a text"), 0),
            (
                &RESPONSES,
                "input",
                json!([{"type": "input_image", "image_url": url}, {"type": "input_file", "file_url": url}]),
                2,
            ),
            (&MESSAGES, "messages", json!([{"type": "image", "source": {"type": "url", "url": url}}]), 1),
            (&MESSAGES, "messages", json!([{"type": "tool_use", "input": {"source": "a.rs", "file": "b"}}]), 0),
            (&CHAT, "tools", json!([{"function": {"parameters": {"properties": {"image_url": {}}}}}]), 0),
        ] {
            let body = json!({"model": "m", member: [{"role": "user", "content": content}]});
            let found = of(endpoint, &body);
            assert_eq!(found.parts, parts, "{body}");
            assert!(
                found.estimate() >= parts * TOKENS_PER_PART
                    && found.estimate() <= found.bytes + parts * TOKENS_PER_PART
            );
        }
        let hidden = r#"{"messages":[{"content":[{"image\u005furl":"https://x"}]}]}"#;
        assert_eq!(Prompt::of(&CHAT, &members(hidden).unwrap()).parts, 1);
        let deep = format!(r#"{{"messages":[{}{{"image_url":"x"}}{}]}}"#, "[".repeat(200), "]".repeat(200));
        assert_eq!(Prompt::of(&CHAT, &members(&deep).unwrap()).parts, 1);
    }

    #[test]
    fn an_estimate_is_a_token_for_four_bytes() {
        assert_eq!(of(&COMPLETIONS, &json!({"prompt": "abcdefghi"})).estimate(), 3);
    }
}
