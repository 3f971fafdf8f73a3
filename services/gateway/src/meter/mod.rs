//! Reads an answer as it passes: how many tokens the engine says it was, and what of that the client asked to see.

pub(crate) mod chunk;
pub(crate) mod counts;
pub(crate) mod events;
pub(crate) mod scanner;
pub(crate) mod streamed;
pub(crate) mod whole;
