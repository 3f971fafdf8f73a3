//! Whether a request may run: who asks, for what, and whether limits and spool have room for it.

pub(crate) mod auth;
pub(crate) mod body;
pub(crate) mod caller;
pub(crate) mod limits;
pub(crate) mod policy;
pub(crate) mod prompt;
pub(crate) mod request;
