//! A client of the gateway, as a tenant would write one: a tiny chat, whole or streamed, and what its answer tells of usage.

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::Client;
use super::counts::Counts;

/// How many tokens are asked for.
const TOKENS: u32 = 4;

/// What the answer of a chat tells.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) id: Uuid,
    pub(crate) counts: Counts,
}

/// Sends a chat and reads its answer to the end. The error says why there is none that can be billed exactly.
pub(crate) async fn chat(client: &Client, base: &str, model: &str, stream: bool) -> Result<Told, String> {
    let mut body = json!({
        "model": model, "max_tokens": TOKENS, "stream": stream, "messages": [{"role": "user", "content": "Say yes."}],
    });
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    let url = format!("{}/v1/chat/completions", base.trim_end_matches('/'));
    let answer = client.post(&url, body.to_string()).await.map_err(|why| format!("the gateway: {why}"))?;
    if answer.status != 200 {
        return Err(format!("the gateway answered {}{}", answer.status, code(&answer.text)));
    }
    let id = answer.headers.get("x-request-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let id = id.ok_or("the gateway's answer has no x-request-id that is one of Tollgate's")?;
    let usage = if stream { streamed(&answer.text)? } else { whole(&answer.text)? };
    Ok(Told { id, counts: usage.counts() })
}

/// The code of an error, which says more than its status.
fn code(text: &str) -> String {
    let error: Option<Value> = serde_json::from_str(text).ok();
    let code = error.and_then(|error| error["error"]["code"].as_str().map(|code| format!(" {code}")));
    code.unwrap_or_default()
}

/// Usage as OpenAI has it: cached tokens lie inside of the prompt's, reasoning inside of the completion's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Usage {
    prompt_tokens: i64,
    #[serde(default)]
    completion_tokens: i64,
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: Option<CompletionDetails>,
    /// Where SGLang has them.
    reasoning_tokens: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct CompletionDetails {
    reasoning_tokens: Option<i64>,
}

impl Usage {
    fn counts(&self) -> Counts {
        let cached_input = self.prompt_tokens_details.as_ref().and_then(|of| of.cached_tokens).unwrap_or(0);
        let detail = self.completion_tokens_details.as_ref().and_then(|of| of.reasoning_tokens);
        let reasoning = detail.or(self.reasoning_tokens).unwrap_or(0);
        Counts {
            input: self.prompt_tokens.saturating_sub(cached_input),
            cached_input,
            output: self.completion_tokens.saturating_sub(reasoning),
            reasoning,
            requests: 1,
        }
    }
}

#[derive(Deserialize)]
struct Frame {
    usage: Option<Usage>,
    error: Option<Value>,
}

fn whole(text: &str) -> Result<Usage, String> {
    let frame: Frame = serde_json::from_str(text).map_err(|_| "the gateway's answer is not JSON".to_owned())?;
    frame.usage.ok_or_else(|| "the gateway's answer tells no usage".to_owned())
}

fn streamed(text: &str) -> Result<Usage, String> {
    let (mut usage, mut ended) = (None, false);
    for data in text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim) {
        if data == "[DONE]" {
            ended = true;
            continue;
        }
        let frame: Frame = serde_json::from_str(data).map_err(|_| "a frame of the stream is not JSON".to_owned())?;
        if frame.error.is_some() {
            return Err(format!("the stream tells of an error{}", code(data)));
        }
        usage = frame.usage.or(usage);
    }
    match usage {
        _ if !ended => Err("the stream broke before its end".to_owned()),
        None => Err("the stream tells no usage".to_owned()),
        Some(usage) => Ok(usage),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_disjoint_whole_and_streamed() {
        let usage = r#"{"prompt_tokens":12,"completion_tokens":4,"total_tokens":16,"prompt_tokens_details":{"cached_tokens":8},
                       "completion_tokens_details":{"reasoning_tokens":1}}"#;
        let wanted = Counts { input: 4, cached_input: 8, output: 3, reasoning: 1, requests: 1 };
        let answer = format!(r#"{{"id":"x","choices":[],"usage":{usage}}}"#);
        assert_eq!(whole(&answer).unwrap().counts(), wanted);
        let stream = format!(
            "data: {{\"choices\":[{{}}],\"usage\":null}}\n\ndata: {}\n\ndata: [DONE]\n\n",
            answer.replace('\n', "")
        );
        assert_eq!(streamed(&stream).unwrap().counts(), wanted);
        let plain = r#"{"usage":{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":null}}"#;
        assert_eq!(whole(plain).unwrap().counts(), Counts { input: 3, output: 2, requests: 1, ..Counts::default() });
    }

    #[test]
    fn an_answer_that_cannot_be_held_to_a_bill_says_why() {
        assert!(whole("{}").unwrap_err().contains("no usage") && whole("<html>").unwrap_err().contains("not JSON"));
        assert!(streamed("data: {\"usage\":null}\n\n").unwrap_err().contains("broke"));
        assert!(streamed("data: {}\n\ndata: [DONE]\n\n").unwrap_err().contains("no usage"));
        let failed = "data: {\"error\":{\"code\":\"upstream_error\"}}\n\ndata: [DONE]\n\n";
        assert!(streamed(failed).unwrap_err().ends_with("upstream_error"));
        assert_eq!((code(r#"{"error":{"code":"x"}}"#), code("gone")), (" x".to_owned(), String::new()));
    }
}
