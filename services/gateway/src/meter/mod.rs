//! Reads an answer as it passes: how many tokens the engine says it was, and what of that the client asked to see.

#[cfg(test)]
mod captured;
mod chunk;
pub(crate) mod counts;
pub(crate) mod events;
mod messages;
mod responses;
pub(crate) mod said;
pub(crate) mod scanner;
pub(crate) mod streamed;
pub(crate) mod whole;
