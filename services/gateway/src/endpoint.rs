//! The endpoints: one table says of each where it is, who may use it, how its answers are read, and what bounds them.
//!
//! A path that is not in it is refused, though replicas may serve it: what the gateway cannot count is not served.

use http::Method;
use ledger::control::Scope;

/// How requests and answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// OpenAI's chats and completions: choices, and `usage` beside them; a stream of chunks that ends with `[DONE]`.
    Chunks,
    /// OpenAI's responses: a stream of events that ends with `response.completed`, which holds the whole answer.
    Responses,
    /// Anthropic's messages: a stream of events that ends with `message_stop`; cached tokens lie outside of the input.
    Messages,
    /// What is read and not generated: embeddings, scores. Whole, with `usage`.
    Vectors,
    /// What costs no tokens: whole, without usage.
    Free,
    /// Answered by the gateway itself.
    Own,
}

/// How errors are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ErrorShape {
    /// `{"error": {"message", "type", "param", "code"}}`.
    #[default]
    OpenAi,
    /// OpenAI's, but inside of a stream as an event of its responses.
    Responses,
    /// `{"type": "error", "error": {"type", "message"}}`.
    Anthropic,
}

/// The bound of a choice's output when the client names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoBound {
    /// The rest of the context; where a plan limits tokens, the setting `default_max_tokens` is sent.
    Setting,
    /// OpenAI's own for completions, and vLLM's.
    Sixteen,
    /// It is refused: the protocol wants a bound.
    Refused,
}

/// Members that the gateway cannot serve, whatever the engine does with them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unsupported {
    pub member: &'static str,
    /// Values that are served all the same, as JSON; `null` always is.
    pub unless: &'static [&'static str],
    pub why: &'static str,
}

/// One endpoint. See the module.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// What usage is booked under.
    pub name: &'static str,
    /// Paths that clients use, each with the path that is asked of replicas.
    pub paths: &'static [(&'static str, &'static str)],
    pub method: Method,
    pub scope: Scope,
    pub wire: Wire,
    pub errors: ErrorShape,
    /// Whether `"stream": true` makes a stream of it.
    pub streams: bool,
    /// Members that bound the output of one choice: the first that is there counts, policy writes the last. None: nothing
    /// is generated.
    pub bounds: &'static [&'static str],
    pub no_bound: NoBound,
    /// Members that may be a list of prompts, each answered for itself.
    pub prompts: &'static [&'static str],
    /// Whether each of these is read together with the other members (a query with each document).
    pub pairs: bool,
    /// Headers of the client that replicas get.
    pub headers: &'static [&'static str],
    /// What is set in each request, whatever the client says.
    pub forced: &'static [(&'static str, &'static str)],
    pub unsupported: &'static [Unsupported],
}

impl Endpoint {
    /// Whether an answer may have output.
    pub(crate) const fn generates(&self) -> bool {
        !self.bounds.is_empty()
    }

    /// The member of this name, if the table names it beside those that all have.
    pub(crate) fn named(&self, key: &str) -> Option<&'static str> {
        let forced = self.forced.iter().map(|(name, _)| *name);
        let unsupported = self.unsupported.iter().map(|rule| rule.member);
        self.prompts.iter().copied().chain(forced).chain(unsupported).find(|name| *name == key)
    }
}

/// What most have in common.
const BASE: Endpoint = Endpoint {
    name: "",
    paths: &[],
    method: Method::POST,
    scope: Scope::Generate,
    wire: Wire::Chunks,
    errors: ErrorShape::OpenAi,
    streams: false,
    bounds: &[],
    no_bound: NoBound::Setting,
    prompts: &[],
    pairs: false,
    headers: &[],
    forced: &[],
    unsupported: &[],
};

pub(crate) static CHAT: Endpoint = Endpoint {
    name: "/v1/chat/completions",
    paths: &[("/v1/chat/completions", "/v1/chat/completions")],
    streams: true,
    bounds: &["max_completion_tokens", "max_tokens"],
    ..BASE
};

pub(crate) static COMPLETIONS: Endpoint = Endpoint {
    name: "/v1/completions",
    paths: &[("/v1/completions", "/v1/completions")],
    streams: true,
    bounds: &["max_tokens"],
    no_bound: NoBound::Sixteen,
    prompts: &["prompt"],
    ..BASE
};

pub(crate) static RESPONSES: Endpoint = Endpoint {
    name: "/v1/responses",
    paths: &[("/v1/responses", "/v1/responses")],
    wire: Wire::Responses,
    errors: ErrorShape::Responses,
    streams: true,
    bounds: &["max_output_tokens"],
    // A replica would keep the answers of all tenants together, for whoever knows an id.
    forced: &[("store", "false")],
    unsupported: &[
        Unsupported {
            member: "background",
            unless: &["false"],
            why: "is not supported: what runs after its request could not be counted. Use `stream`, or wait for the answer",
        },
        Unsupported {
            member: "previous_response_id",
            unless: &[],
            why: "is not supported: responses are not stored. Send the conversation so far in `input`",
        },
    ],
    ..BASE
};

pub(crate) static MESSAGES: Endpoint = Endpoint {
    name: "/v1/messages",
    paths: &[("/v1/messages", "/v1/messages")],
    wire: Wire::Messages,
    errors: ErrorShape::Anthropic,
    streams: true,
    bounds: &["max_tokens"],
    no_bound: NoBound::Refused,
    headers: &["anthropic-version", "anthropic-beta"],
    ..BASE
};

pub(crate) static COUNT_TOKENS: Endpoint = Endpoint {
    name: "/v1/messages/count_tokens",
    paths: &[("/v1/messages/count_tokens", "/v1/messages/count_tokens")],
    scope: Scope::Models,
    wire: Wire::Free,
    errors: ErrorShape::Anthropic,
    headers: &["anthropic-version", "anthropic-beta"],
    ..BASE
};

pub(crate) static EMBEDDINGS: Endpoint = Endpoint {
    name: "/v1/embeddings",
    paths: &[("/v1/embeddings", "/v1/embeddings")],
    scope: Scope::Embed,
    wire: Wire::Vectors,
    prompts: &["input"],
    unsupported: &[Unsupported {
        member: "encoding_format",
        unless: &["\"float\"", "\"base64\""],
        why: "must be \"float\" or \"base64\": the usage of other formats cannot be read",
    }],
    ..BASE
};

pub(crate) static RERANK: Endpoint = Endpoint {
    name: "/v1/rerank",
    paths: &[("/v1/rerank", "/v1/rerank"), ("/v2/rerank", "/v2/rerank"), ("/rerank", "/rerank")],
    scope: Scope::Embed,
    wire: Wire::Vectors,
    prompts: &["documents"],
    pairs: true,
    ..BASE
};

pub(crate) static SCORE: Endpoint = Endpoint {
    name: "/v1/score",
    paths: &[("/v1/score", "/v1/score"), ("/score", "/score")],
    scope: Scope::Embed,
    wire: Wire::Vectors,
    prompts: &["text_1", "text_2", "queries", "documents", "data_1", "data_2", "items"],
    pairs: true,
    ..BASE
};

pub(crate) static TOKENIZE: Endpoint = Endpoint {
    name: "/tokenize",
    paths: &[("/tokenize", "/tokenize"), ("/v1/tokenize", "/tokenize")],
    scope: Scope::Models,
    wire: Wire::Free,
    ..BASE
};

pub(crate) static DETOKENIZE: Endpoint = Endpoint {
    name: "/detokenize",
    paths: &[("/detokenize", "/detokenize"), ("/v1/detokenize", "/detokenize")],
    scope: Scope::Models,
    wire: Wire::Free,
    ..BASE
};

/// The list, and each model below it.
pub(crate) static MODELS: Endpoint = Endpoint {
    name: "/v1/models",
    paths: &[("/v1/models", "/v1/models")],
    method: Method::GET,
    scope: Scope::Models,
    wire: Wire::Own,
    ..BASE
};

/// All of them.
pub(crate) static ALL: [&Endpoint; 11] = [
    &CHAT,
    &COMPLETIONS,
    &RESPONSES,
    &MESSAGES,
    &COUNT_TOKENS,
    &EMBEDDINGS,
    &RERANK,
    &SCORE,
    &TOKENIZE,
    &DETOKENIZE,
    &MODELS,
];

/// The paths that are served, and whether an answer can be streamed.
pub fn endpoints() -> impl Iterator<Item = (&'static str, bool)> {
    ALL.into_iter().flat_map(|endpoint| endpoint.paths.iter().map(|(path, _)| (*path, endpoint.streams)))
}

/// A path that clients use, found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found<'p> {
    pub endpoint: &'static Endpoint,
    /// The path that is asked of replicas.
    pub path: &'static str,
    /// What follows the path: a model's name.
    pub below: Option<&'p str>,
}

/// The endpoint of a path, if there is one. (The method is another matter.)
pub(crate) fn find(path: &str) -> Option<Found<'_>> {
    for endpoint in ALL {
        if let Some((_, sent)) = endpoint.paths.iter().find(|(asked, _)| *asked == path) {
            return Some(Found { endpoint, path: sent, below: None });
        }
    }
    let below = path.strip_prefix("/v1/models/").filter(|name| !name.is_empty())?;
    Some(Found { endpoint: &MODELS, path: "/v1/models", below: Some(below) })
}

/// How errors of a path that is no endpoint are written: Anthropic's clients ask below `/v1/messages` only.
pub(crate) fn errors_below(path: &str) -> ErrorShape {
    if path.starts_with("/v1/messages/") { ErrorShape::Anthropic } else { ErrorShape::OpenAi }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_path_is_one_endpoints_and_each_endpoint_can_be_served() {
        let mut seen = BTreeSet::new();
        for endpoint in ALL {
            assert_eq!(endpoint.name, endpoint.paths[0].0, "booked under its first path");
            assert!(endpoint.bounds.len() <= 2, "as many as a request's reader has room for");
            for (asked, sent) in endpoint.paths {
                assert!(seen.insert(asked), "{asked} is there twice");
                assert_eq!(find(asked), Some(Found { endpoint, path: sent, below: None }));
            }
            let generates = matches!(endpoint.wire, Wire::Chunks | Wire::Responses | Wire::Messages);
            assert_eq!((endpoint.generates(), endpoint.streams), (generates, generates), "{}", endpoint.name);
            let scope = match endpoint.wire {
                Wire::Chunks | Wire::Responses | Wire::Messages => Scope::Generate,
                Wire::Vectors => Scope::Embed,
                Wire::Free | Wire::Own => Scope::Models,
            };
            assert_eq!(endpoint.scope, scope, "{}", endpoint.name);
        }
    }

    #[test]
    fn what_is_not_counted_is_not_found() {
        for path in [
            "/v1/audio/transcriptions",
            "/invocations",
            "/pooling",
            "/classify",
            "/v1/chat/completions/batch",
            "/inference/v1/generate",
            "/generate",
            "/v1/load_lora_adapter",
            "/v1/responses/resp_1",
            "/v1/models/",
            "/v1/chat/completions/",
            "//v1/chat/completions",
            "/V1/chat/completions",
        ] {
            assert_eq!(find(path), None, "{path}");
        }
        assert_eq!(find("/v1/models/org/name").and_then(|found| found.below), Some("org/name"));
        assert_eq!(errors_below("/v1/messages/batches"), ErrorShape::Anthropic);
        assert_eq!(errors_below("/nowhere"), ErrorShape::OpenAi);
    }
}
