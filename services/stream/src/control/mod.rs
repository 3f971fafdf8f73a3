//! The control log: who may do what, at which price. Read into memory and kept in a durable snapshot; written with revisions.

mod reader;
mod stored;
mod view;
mod writer;

pub use reader::{ControlError, ControlReader};
pub use view::{ControlPublisher, ControlSnapshot, ControlView};
pub use writer::{ControlWriter, WriteError, Written};
