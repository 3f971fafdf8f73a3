//! In whose words an answer is told: `OpenAI`'s chats and completions, Anthropic's messages, `OpenAI`'s responses.

use super::messages::Telling;
use super::render::{Counts, DONE, Envelope, Form, Millis, Piece, error_event};
use super::request::Endpoint;
use super::responses::Report;

/// What is known when all choices have ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) counts: Counts,
    pub(super) millis: Option<Millis>,
    /// Whether usage is told.
    pub(super) tell_usage: bool,
}

/// An answer's voice. Each of its texts is one event.
#[derive(Debug)]
pub(super) enum Voice {
    Choices(Envelope),
    Messages(Telling),
    Responses(Box<Report>),
}

impl Voice {
    /// Events before the engine has made anything.
    pub(super) fn greeting(&mut self) -> Vec<String> {
        match self {
            Self::Choices(_) | Self::Messages(_) => Vec::new(),
            Self::Responses(report) => report.greeting(),
        }
    }

    /// The event of a choice's start, when its first token is there.
    pub(super) fn start(&mut self, choice: u32, usage: Option<Counts>, prompt_ids: Option<&[u32]>) -> Option<String> {
        match self {
            Self::Choices(envelope) if envelope.endpoint == Endpoint::Chat => {
                Some(envelope.role(choice, usage, prompt_ids))
            }
            Self::Choices(_) | Self::Responses(_) => None,
            Self::Messages(telling) => Some(telling.start(usage)),
        }
    }

    /// Events with tokens. `last`: no usage follows.
    pub(super) fn piece(&mut self, piece: &Piece, form: Form, usage: Option<Counts>, last: bool) -> Vec<String> {
        match self {
            Self::Choices(envelope) => vec![envelope.piece(piece, form, usage, last)],
            Self::Messages(telling) => telling.piece(piece),
            Self::Responses(report) => report.piece(piece),
        }
    }

    /// The events after the last token.
    pub(super) fn close(&mut self, ended: &Ended) -> Vec<String> {
        match self {
            Self::Choices(envelope) => {
                let usage = ended.tell_usage.then(|| envelope.usage(ended.counts, ended.millis));
                usage.into_iter().chain([DONE.to_owned()]).collect()
            }
            Self::Messages(telling) => telling.close(ended),
            Self::Responses(report) => report.close(ended),
        }
    }

    /// A whole answer.
    pub(super) fn whole(&mut self, pieces: &[Piece], form: Form, ended: &Ended, prompt_ids: Option<&[u32]>) -> String {
        let only = || pieces.first().cloned().unwrap_or_default();
        match self {
            Self::Choices(envelope) => {
                envelope.whole(pieces, form, ended.tell_usage.then_some(ended.counts), ended.millis, prompt_ids)
            }
            Self::Messages(telling) => telling.whole(&only(), ended),
            Self::Responses(report) => report.whole(&only(), ended),
        }
    }

    /// What a stream says when the engine dies; nothing: the connection just ends.
    pub(super) fn broken(&self, message: &str) -> Option<String> {
        match self {
            Self::Choices(_) => Some(format!("{}{DONE}", error_event(message))),
            Self::Messages(telling) => Some(telling.broken()),
            Self::Responses(_) => None,
        }
    }
}

/// An event with a name, as Anthropic's and the responses' streams have.
pub(super) fn named(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}
