//! The inference path: admit, route, forward, meter, record.
//!
//! A request walks through the folders in this order. [`Gateway::new`] needs no Kafka: control comes as a view, balances
//! are told, and the spool is a directory. [`run()`] puts Kafka behind each of them.

mod admit;
mod cors;
mod endpoint;
mod error;
mod forward;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod gateway;
mod generate;
mod kind;
mod labels;
mod meter;
mod models;
mod object;
mod parts;
mod patience;
mod queue;
mod record;
mod route;
mod run;
mod serve;
mod settings;

pub use endpoint::endpoints;
pub use gateway::Gateway;
pub use parts::{BuildError, Parts};
pub use run::{Error, RunSettings, run};
pub use settings::{
    AccessLog, CorsSettings, Deadlines, Ejection, FloorPercent, Guard, JwtSettings, LimitSettings, Manners, Overload,
    QueueSettings, RedisSettings, Routing, RoutingPolicy, Settings, Telemetry, UpstreamKey, UpstreamSettings,
};

/// The body of an answer.
pub(crate) type Body = axum::body::Body;
