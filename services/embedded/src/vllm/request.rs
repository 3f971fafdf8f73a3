//! Reads and checks the body of what generates text, with vLLM's refusals.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::engine::{ChoicePlan, Plan};
use super::errors::{ApiError, shown};
use super::faults::Fault;
use super::markers::Markers;
use super::messages;
use super::prompt::{self, Prompt};
use super::responses;
use super::settings::SimulatorSettings;
use super::tasks::Generate;
use super::tokens::mix;
use super::tools::{CALL_TOKENS, ToolCall};

/// What the engine gets: a chat or a completion. Messages and responses are chats to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Completions,
}

/// What an answer must know of its request.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) continuous_usage: bool,
    pub(super) choices_per_prompt: u32,
    pub(super) prompts: Vec<Prompt>,
    pub(super) echo: bool,
    /// Echo with `max_tokens` 0: one token is made and counted, and not shown.
    pub(super) echo_only: bool,
    pub(super) stream_interval: u32,
    pub(super) return_token_ids: bool,
    pub(super) logprobs: Option<u32>,
    pub(super) reasoning_tokens: u32,
    pub(super) request_id: Option<String>,
    pub(super) fault: Option<Fault>,
    /// The call that the answer is to be.
    pub(super) tool: Option<ToolCall>,
}

impl Ask {
    /// Prompt tokens as usage tells them: each prompt once.
    pub(super) fn prompt_tokens(&self) -> u64 {
        self.prompts.iter().map(|prompt| prompt.tokens.len() as u64).sum()
    }
}

/// The body as a JSON object.
pub(super) fn parse(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    if body.is_empty() {
        return Err(ApiError::field("missing", "body", "Field required", "None"));
    }
    let text = std::str::from_utf8(body)
        .map_err(|_| ApiError::detail(http::StatusCode::BAD_REQUEST, "There was an error parsing the body"))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(other) => Err(ApiError::field(
            "model_attributes_type",
            "body",
            "Input should be a valid dictionary or object to extract fields from",
            &shown(&other),
        )),
        Err(error) if error.to_string().contains("hex escape") => Err(ApiError::bad(
            "TextEncodeInput must be Union[TextInputSequence, Tuple[InputSequence, InputSequence]]",
            None,
        )),
        Err(error) => Err(ApiError::json(text, &error)),
    }
}

/// Checks a request and plans its generation.
pub(super) fn read(
    form: Generate,
    fields: &Map<String, Value>,
    settings: &SimulatorSettings,
) -> Result<(Ask, Plan), ApiError> {
    match form {
        Generate::Chat => read_as(Endpoint::Chat, fields, settings),
        Generate::Completions => read_as(Endpoint::Completions, fields, settings),
        Generate::Messages => read_as(Endpoint::Chat, &messages::as_chat(fields, true)?, settings),
        Generate::Responses => {
            let (mut ask, plan) = read_as(Endpoint::Chat, &responses::as_chat(fields)?, settings)?;
            ask.include_usage = true;
            ask.request_id = fields.get("request_id").and_then(Value::as_str).map(str::to_owned);
            Ok((ask, plan))
        }
    }
}

fn read_as(
    endpoint: Endpoint,
    fields: &Map<String, Value>,
    settings: &SimulatorSettings,
) -> Result<(Ask, Plan), ApiError> {
    if fields.get("messages").is_none_or(Value::is_null) && endpoint == Endpoint::Chat {
        return Err(ApiError::missing("messages", fields));
    }
    let limits = Limits::read(endpoint, fields)?;
    let stream = flag(fields, "stream");
    let options = fields.get("stream_options").filter(|options| !options.is_null());
    if options.is_some() && !stream {
        return Err(ApiError::parameter(
            "Stream options can only be defined when `stream=True`.",
            "stream_options",
            None,
        ));
    }
    if let Some(model) = unknown_model(fields, settings) {
        return Err(ApiError::model(model, &settings.models));
    }
    let prompts = match endpoint {
        Endpoint::Completions => prompt::texts(fields, "prompt")?,
        Endpoint::Chat => vec![prompt::chat(fields, settings.model())?],
    };
    let markers = Markers::find(prompts.iter().map(|prompt| prompt.text.as_str()));
    let tool = if endpoint == Endpoint::Chat { ToolCall::find(fields, settings)? } else { None };
    let option = |name| options.and_then(Value::as_object).is_some_and(|options| flag(options, name));
    let force = settings.enable_force_include_usage;
    let asked_tokens = fields.get("return_token_ids").and_then(Value::as_bool).unwrap_or(false);
    let ask = Ask {
        stream,
        include_usage: option("include_usage") || force,
        continuous_usage: (option("include_usage") && option("continuous_usage_stats")) || force,
        choices_per_prompt: limits.choices,
        echo: endpoint == Endpoint::Completions && flag(fields, "echo"),
        echo_only: limits.echo_only,
        stream_interval: integer(fields, "stream_interval")?
            .and_then(|k| u32::try_from(k).ok())
            .filter(|k| *k > 0)
            .unwrap_or(settings.stream_interval),
        return_token_ids: asked_tokens,
        logprobs: (endpoint == Endpoint::Chat && flag(fields, "logprobs")).then(|| {
            fields.get("top_logprobs").and_then(Value::as_u64).and_then(|k| u32::try_from(k).ok()).unwrap_or(0)
        }),
        reasoning_tokens: markers.reasoning.unwrap_or(settings.reasoning_tokens),
        request_id: fields.get("request_id").and_then(Value::as_str).map(str::to_owned),
        fault: markers.fault,
        tool,
        prompts,
    };
    let plan = plan(&ask, fields, settings, &limits, &markers)?;
    Ok((ask, plan))
}

/// Fields of a request under the names that a chat has for them.
pub(super) fn renamed(fields: &Map<String, Value>, names: &[(&str, &str)]) -> Map<String, Value> {
    let found = |(theirs, ours): &(&str, &str)| {
        let value = fields.get(*theirs).filter(|value| !value.is_null())?;
        Some(((*ours).to_owned(), value.clone()))
    };
    names.iter().filter_map(found).collect()
}

/// The model that a request names, if it is none of those served.
pub(super) fn unknown_model<'a>(fields: &'a Map<String, Value>, settings: &SimulatorSettings) -> Option<&'a str> {
    let model = fields.get("model").and_then(Value::as_str)?;
    (!settings.models.iter().any(|served| served == model)).then_some(model)
}

/// Numbers that bound a request.
struct Limits {
    choices: u32,
    max_tokens: Option<u32>,
    echo_only: bool,
}

impl Limits {
    fn read(endpoint: Endpoint, fields: &Map<String, Value>) -> Result<Self, ApiError> {
        let choices = match integer(fields, "n")?.unwrap_or(1) {
            n if n < 1 => return Err(ApiError::bad(&format!("n must be at least 1, got {n}."), None)),
            n if n > 16_384 => {
                let message = format!(
                    "n must be at most 16384, got {n}. To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable."
                );
                return Err(ApiError::bad(&message, None));
            }
            n => u32::try_from(n).unwrap_or(1),
        };
        let (name, asked) = match integer(fields, "max_completion_tokens")? {
            Some(asked) if endpoint == Endpoint::Chat => ("max_completion_tokens", Some(asked)),
            _ => ("max_tokens", integer(fields, "max_tokens")?),
        };
        // A completion has 16 tokens unless told otherwise; a chat goes on to the end of the context.
        let asked = asked
            .or((endpoint == Endpoint::Completions && !matches!(fields.get("max_tokens"), Some(Value::Null)))
                .then_some(16));
        let echo_only = asked == Some(0) && endpoint == Endpoint::Completions && flag(fields, "echo");
        if let Some(asked) = asked.filter(|asked| *asked < 1 && !echo_only) {
            return Err(ApiError::parameter(
                &format!("{name} must be at least 1, got {asked}."),
                name,
                Some(&asked.to_string()),
            ));
        }
        if let Some(temperature) = fields.get("temperature").and_then(Value::as_f64).filter(|t| *t < 0.0) {
            let value = format!("{temperature:?}");
            return Err(ApiError::parameter(
                &format!("temperature must be non-negative, got {value}."),
                "temperature",
                Some(&value),
            ));
        }
        Ok(Self { choices, max_tokens: asked.map(|asked| u32::try_from(asked.max(1)).unwrap_or(u32::MAX)), echo_only })
    }
}

fn plan(
    ask: &Ask,
    fields: &Map<String, Value>,
    settings: &SimulatorSettings,
    limits: &Limits,
    markers: &Markers,
) -> Result<Plan, ApiError> {
    let context = settings.max_model_len;
    let too_big = limits.max_tokens.filter(|asked| *asked > context);
    let mut choices = Vec::new();
    for prompt in &ask.prompts {
        prompt.check_characters(context)?;
        if let Some(asked) = too_big {
            let message = format!(
                "max_tokens={asked} cannot be greater than max_model_len={context}. Please request fewer output tokens."
            );
            return Err(ApiError::parameter(&message, "max_tokens", Some(&asked.to_string())));
        }
        let room = prompt.check_tokens(context, limits.max_tokens)?;
        let choice = ChoicePlan {
            prompt: Arc::clone(&prompt.tokens),
            limit: limits.max_tokens.unwrap_or(room).min(room),
            natural: match ask.tool {
                Some(_) => Some(CALL_TOKENS),
                None => natural_end(fields, settings, markers),
            },
        };
        choices.extend(std::iter::repeat_n(choice, usize::try_from(limits.choices).unwrap_or(1)));
    }
    Ok(Plan {
        choices,
        stops: strings(fields, "stop"),
        include_stop: flag(fields, "include_stop_str_in_output"),
        cache_salt: cache_salt(fields),
        abort_after: match ask.fault {
            Some(Fault::Abort { after }) => Some(after),
            _ => None,
        },
    })
}

/// What sets prompts of one cache apart from those of another.
pub(super) fn cache_salt(fields: &Map<String, Value>) -> u64 {
    let salt = fields.get("cache_salt").and_then(Value::as_str);
    salt.map_or(0, |salt| salt.bytes().fold(1, |hash, byte| mix(hash ^ u64::from(byte))))
}

/// After how many tokens the model ends by itself: what the prompt asks, else the setting. The request's limit may come first.
fn natural_end(fields: &Map<String, Value>, settings: &SimulatorSettings, markers: &Markers) -> Option<u32> {
    if flag(fields, "ignore_eos") {
        return None;
    }
    markers.tokens.or(settings.default_output_tokens).map(|tokens| tokens.max(1))
}

pub(super) fn flag(fields: &Map<String, Value>, name: &str) -> bool {
    fields.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn strings(fields: &Map<String, Value>, name: &str) -> Vec<String> {
    match fields.get(name) {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// An integer field as pydantic reads it: numbers, whole floats, and strings of digits.
pub(super) fn integer(fields: &Map<String, Value>, name: &str) -> Result<Option<i64>, ApiError> {
    let location = format!("body.{name}");
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => text.trim().parse().map(Some).map_err(|_| {
            ApiError::field(
                "int_parsing",
                &location,
                "Input should be a valid integer, unable to parse string as an integer",
                text,
            )
        }),
        Some(Value::Number(number)) => match number.as_i64() {
            Some(value) => Ok(Some(value)),
            None if number.as_f64().is_some_and(|value| value.fract() != 0.0) => Err(ApiError::field(
                "int_from_float",
                &location,
                "Input should be a valid integer, got a number with a fractional part",
                &number.to_string(),
            )),
            None => Ok(Some(number.as_f64().map_or(i64::MAX, |value| value as i64))),
        },
        Some(other) => Err(ApiError::field("int_type", &location, "Input should be a valid integer", &shown(other))),
    }
}
