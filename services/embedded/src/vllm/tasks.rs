//! Which paths there are: what a model that generates serves, and what one that pools.

use super::request;
use super::settings::Runner;

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Generate(Generate),
    Pool(Pool),
    Tokens(Tokens),
}

/// Makes text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Generate {
    Chat,
    Completions,
    Messages,
    Responses,
}

/// Reads prompts only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    Embeddings,
    Pooling,
    Rerank,
    Score,
}

/// Asks the tokenizer only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tokens {
    Tokenize,
    Detokenize,
    /// `/v1/messages/count_tokens`
    Count,
}

impl Task {
    /// What is posted to this path; nothing, if the model has no such path.
    pub(super) fn find(path: &str, runner: Runner) -> Option<Self> {
        let generates = runner == Runner::Generate;
        let task = match path {
            "/v1/chat/completions" | "/invocations" if generates => Self::Generate(Generate::Chat),
            "/v1/completions" => Self::Generate(Generate::Completions),
            "/v1/messages" => Self::Generate(Generate::Messages),
            "/v1/responses" => Self::Generate(Generate::Responses),
            "/v1/messages/count_tokens" => Self::Tokens(Tokens::Count),
            "/v1/embeddings" | "/invocations" => Self::Pool(Pool::Embeddings),
            "/pooling" => Self::Pool(Pool::Pooling),
            "/rerank" | "/v1/rerank" | "/v2/rerank" => Self::Pool(Pool::Rerank),
            "/score" | "/v1/score" => Self::Pool(Pool::Score),
            "/tokenize" => Self::Tokens(Tokens::Tokenize),
            "/detokenize" => Self::Tokens(Tokens::Detokenize),
            _ => return None,
        };
        let there = match task {
            Self::Generate(_) | Self::Tokens(Tokens::Count) => generates,
            Self::Pool(_) => !generates,
            Self::Tokens(Tokens::Tokenize | Tokens::Detokenize) => true,
        };
        there.then_some(task)
    }

    /// `/invocations` is whatever its body looks like.
    pub(super) fn invoked(self, path: &str, body: &[u8]) -> Self {
        if path != "/invocations" {
            return self;
        }
        let Ok(fields) = request::parse(body) else { return self };
        match self {
            Self::Generate(_) if fields.contains_key("prompt") => Self::Generate(Generate::Completions),
            Self::Pool(_) if fields.contains_key("query") => Self::Pool(Pool::Rerank),
            Self::Pool(_) if !fields.contains_key("input") && !fields.contains_key("messages") => {
                Self::Pool(Pool::Score)
            }
            task => task,
        }
    }

    /// Whether its errors have Anthropic's shape.
    pub(super) fn is_message(self) -> bool {
        matches!(self, Self::Generate(Generate::Messages) | Self::Tokens(Tokens::Count))
    }
}
