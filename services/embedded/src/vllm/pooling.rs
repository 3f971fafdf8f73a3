//! What a pooling model answers: embeddings, pooled vectors, scores and ranks, out of vectors that follow from the tokens.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::engine::{ChoicePlan, Plan};
use super::errors::{ApiError, shown};
use super::prompt::{self, Prompt};
use super::render::quote;
use super::request::{cache_salt, integer, unknown_model};
use super::settings::SimulatorSettings;
use super::tasks::Pool;
use super::tokens::mix;

/// A request, read.
#[derive(Debug)]
pub(super) struct PoolAsk {
    kind: Pool,
    pub(super) prompts: Vec<Prompt>,
    /// How many of the prompts, from the first on, are queries.
    queries: usize,
    dimensions: u32,
    base64: bool,
    top_n: usize,
    cache_salt: u64,
}

/// What an answer carries besides its data.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) id: &'a str,
    pub(super) created: i64,
    pub(super) model: &'a str,
    pub(super) tell_usage: bool,
}

impl PoolAsk {
    /// Checks a request.
    pub(super) fn read(
        kind: Pool,
        fields: &Map<String, Value>,
        settings: &SimulatorSettings,
    ) -> Result<Self, ApiError> {
        if let Some(model) = unknown_model(fields, settings) {
            return Err(ApiError::pooling_model(model));
        }
        let (prompts, queries) = match kind {
            Pool::Embeddings | Pool::Pooling if fields.contains_key("messages") => {
                (vec![prompt::chat(fields, settings.model())?], 0)
            }
            Pool::Embeddings | Pool::Pooling => (inputs(fields)?, 0),
            Pool::Rerank if fields.get("query").is_some_and(Value::is_array) => {
                let given = fields.get("query").map_or_else(String::new, shown);
                return Err(ApiError::field("string_type", "body.query.str", "Input should be a valid string", &given));
            }
            Pool::Rerank => pairs(fields, "query", "documents")?,
            Pool::Score => {
                let names =
                    [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")];
                let there = |names: &&(&str, &str)| fields.contains_key(names.0) && fields.contains_key(names.1);
                let (first, second) = names.iter().find(there).copied().unwrap_or(("queries", "documents"));
                pairs(fields, first, second)?
            }
        };
        for prompt in &prompts {
            prompt.check_characters(settings.max_model_len)?;
            prompt.check_tokens(settings.max_model_len, Some(0))?;
        }
        Ok(Self {
            kind,
            prompts,
            queries,
            dimensions: dimensions(kind, fields, settings)?,
            base64: encoding(fields)?,
            top_n: top_n(fields)?,
            cache_salt: cache_salt(fields),
        })
    }

    /// Tokens of all prompts, each once.
    pub(super) fn prompt_tokens(&self) -> u64 {
        self.prompts.iter().map(|prompt| prompt.tokens.len() as u64).sum()
    }

    /// The prompts for the engine, which makes no token.
    pub(super) fn plan(&self) -> Plan {
        let choice = |prompt: &Prompt| ChoicePlan { prompt: prompt.tokens.clone(), limit: 0, natural: None };
        Plan {
            choices: self.prompts.iter().map(choice).collect(),
            stops: Vec::new(),
            include_stop: false,
            cache_salt: self.cache_salt,
            abort_after: None,
        }
    }

    /// The prefix of the answer's id.
    pub(super) fn prefix(&self) -> &'static str {
        match self.kind {
            Pool::Embeddings => "embd",
            Pool::Pooling => "pooling",
            Pool::Rerank | Pool::Score => "score",
        }
    }

    /// The answer.
    pub(super) fn render(&self, head: &Head<'_>) -> String {
        let (id, model, tokens) = (quote(head.id), quote(head.model), self.prompt_tokens());
        if self.kind == Pool::Rerank {
            let usage = format!(r#"{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}"#);
            let usage = if head.tell_usage { usage } else { "null".to_owned() };
            let results = self.ranks().join(",");
            return format!(r#"{{"id":{id},"model":{model},"usage":{usage},"results":[{results}]}}"#);
        }
        let usage = format!(
            r#"{{"prompt_tokens":{tokens},"total_tokens":{tokens},"completion_tokens":0,"prompt_tokens_details":null,"completion_tokens_details":null}}"#
        );
        let usage = if head.tell_usage { usage } else { "null".to_owned() };
        let data = if self.kind == Pool::Score { self.scored() } else { self.vectors() };
        format!(
            r#"{{"id":{id},"object":"list","created":{},"model":{model},"data":[{}],"usage":{usage}}}"#,
            head.created,
            data.join(",")
        )
    }

    fn vectors(&self) -> Vec<String> {
        let (object, name) = match self.kind {
            Pool::Embeddings => ("embedding", "embedding"),
            _ => ("pooling", "data"),
        };
        let item = |(index, prompt): (usize, &Prompt)| {
            let vector = vector(&prompt.tokens, self.dimensions);
            let shown = if self.base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                quote(&STANDARD.encode(bytes))
            } else {
                let numbers: Vec<String> = vector.iter().map(|value| format!("{:?}", f64::from(*value))).collect();
                format!("[{}]", numbers.join(","))
            };
            format!(r#"{{"index":{index},"object":"{object}","{name}":{shown}}}"#)
        };
        self.prompts.iter().enumerate().map(item).collect()
    }

    /// The scores of the pairs: one query for all documents, or one each.
    fn scores(&self) -> Vec<f64> {
        let vectors: Vec<Vec<f32>> =
            self.prompts.iter().map(|prompt| vector(&prompt.tokens, self.dimensions)).collect();
        let (queries, documents) = vectors.split_at(self.queries.min(vectors.len()));
        let product = |(index, document): (usize, &Vec<f32>)| {
            let query = queries.get(index).or_else(|| queries.first());
            let terms = query.into_iter().flatten().zip(document).map(|(left, right)| left * right);
            f64::from(terms.sum::<f32>())
        };
        documents.iter().enumerate().map(product).collect()
    }

    fn scored(&self) -> Vec<String> {
        let item = |(index, score): (usize, f64)| format!(r#"{{"index":{index},"object":"score","score":{score:?}}}"#);
        self.scores().into_iter().enumerate().map(item).collect()
    }

    /// The documents, the best first.
    fn ranks(&self) -> Vec<String> {
        let mut ranked: Vec<(usize, f64)> = self.scores().into_iter().enumerate().collect();
        ranked.sort_by(|left, right| right.1.total_cmp(&left.1));
        if self.top_n > 0 {
            ranked.truncate(self.top_n);
        }
        let item = |(index, score): (usize, f64)| {
            let text = quote(self.prompts.get(self.queries + index).map_or("", |prompt| prompt.text.as_str()));
            format!(
                r#"{{"index":{index},"document":{{"text":{text},"multi_modal":null}},"relevance_score":{score:?}}}"#
            )
        };
        ranked.into_iter().map(item).collect()
    }
}

fn inputs(fields: &Map<String, Value>) -> Result<Vec<Prompt>, ApiError> {
    needed(fields, "input")?;
    prompt::texts(fields, "input")
}

fn needed<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a Value, ApiError> {
    fields.get(name).filter(|value| !value.is_null()).ok_or_else(|| ApiError::missing(name, fields))
}

/// Queries and documents, and how many are queries.
fn pairs(fields: &Map<String, Value>, queries: &str, documents: &str) -> Result<(Vec<Prompt>, usize), ApiError> {
    let texts = |name: &str| {
        let given = needed(fields, name)?;
        let list = given.as_array().map_or_else(|| std::slice::from_ref(given), Vec::as_slice);
        let text = |item: &Value| {
            item.as_str().map(prompt::text_prompt).ok_or_else(|| {
                ApiError::field("string_type", &format!("body.{name}"), "Input should be a valid string", &shown(item))
            })
        };
        list.iter().map(text).collect::<Result<Vec<Prompt>, _>>()
    };
    let (mut prompts, documents) = (texts(queries)?, texts(documents)?);
    let count = prompts.len();
    if count == 0 {
        return Err(ApiError::bad("At least one text element must be given", None));
    }
    if documents.is_empty() {
        return Err(ApiError::bad("At least one text_pair element must be given", None));
    }
    if count > 1 && count != documents.len() {
        return Err(ApiError::bad("Input lengths must be either 1:1, 1:N or N:N", None));
    }
    prompts.extend(documents);
    Ok((prompts, count))
}

/// How many documents are told; 0: all.
fn top_n(fields: &Map<String, Value>) -> Result<usize, ApiError> {
    let asked = integer(fields, "top_n")?.unwrap_or(0);
    usize::try_from(asked).map_err(|_| {
        let message = "Input should be greater than or equal to 0";
        ApiError::field("greater_than_equal", "body.top_n", message, &asked.to_string())
    })
}

/// How long the vectors are: shortened on demand, as by a model that was trained for it.
fn dimensions(kind: Pool, fields: &Map<String, Value>, settings: &SimulatorSettings) -> Result<u32, ApiError> {
    let whole = settings.embedding_size;
    let Some(asked) = integer(fields, "dimensions")? else { return Ok(whole) };
    if kind == Pool::Pooling {
        return Err(ApiError::parameter("dimensions is currently not supported", "dimensions", None));
    }
    match u32::try_from(asked) {
        Ok(asked) if (1..=whole).contains(&asked) => Ok(asked),
        _ => {
            let names: Vec<String> = settings.models.iter().map(|name| format!("'{name}'")).collect();
            let names = names.join(", ");
            Err(ApiError::bad(
                &format!("Model [{names}] only supports dimensions in range [1, {whole}], got {asked}."),
                None,
            ))
        }
    }
}

/// Whether vectors are told in base64. The bare bytes that vLLM has besides are not simulated.
fn encoding(fields: &Map<String, Value>) -> Result<bool, ApiError> {
    match fields.get("encoding_format").filter(|format| !format.is_null()) {
        None => Ok(false),
        Some(format) if format == "float" => Ok(false),
        Some(format) if format == "base64" => Ok(true),
        Some(other) => Err(ApiError::field(
            "literal_error",
            "body.encoding_format",
            "Input should be \\'float\\' or \\'base64\\'",
            &shown(other),
        )),
    }
}

/// A vector of length 1: the sum of one per token, so that texts that share tokens are near.
fn vector(tokens: &[u32], dimensions: u32) -> Vec<f32> {
    let at = |dimension: u32| {
        let part = |id: &u32| (mix(u64::from(*id) ^ mix(u64::from(dimension))) >> 40) as f32 / 8_388_608.0 - 1.0;
        tokens.iter().map(part).sum::<f32>()
    };
    let sum: Vec<f32> = (0..dimensions).map(at).collect();
    let length = sum.iter().map(|value| value * value).sum::<f32>().sqrt();
    sum.into_iter().map(|value| if length > 0.0 { value / length } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tokens::tokenize;
    use super::*;

    #[test]
    fn texts_that_share_tokens_are_near_and_a_shorter_vector_is_as_long() {
        let ids = |text: &str| tokenize(text).into_iter().map(|token| token.id).collect::<Vec<_>>();
        let near = |left: &str, right: &str| {
            vector(&ids(left), 128).iter().zip(vector(&ids(right), 128)).map(|(a, b)| a * b).sum::<f32>()
        };
        assert!((near("hello world", "hello world") - 1.0).abs() < 1e-5);
        assert!(near("hello world", "hello there") > near("hello world", "1234567"));
        let short: f32 = vector(&ids("hello"), 7).iter().map(|value| value * value).sum();
        assert!((short - 1.0).abs() < 1e-5);
    }
}
