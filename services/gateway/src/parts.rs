//! What a gateway is made of, and why one cannot be put together.

use std::sync::Arc;

use runtime::metrics::Error as MetricsError;
use runtime::{Clock, Metrics};
use stream::control::ControlView;
use stream::spool::Spool;

use crate::admit::auth::SourceError;
use crate::forward::UpstreamError;
use crate::settings::Settings;

/// What a gateway is made of. No part of it needs Kafka by itself.
#[derive(Debug)]
pub struct Parts {
    /// `[gateway]` of the configuration.
    pub settings: Settings,
    /// `[telemetry]` of the configuration.
    pub telemetry: runtime::traces::Settings,
    /// Keys, plans, models, replicas and prices.
    pub control: ControlView,
    /// Where usage is kept.
    pub spool: Spool,
    /// Where it is measured.
    pub metrics: Metrics,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
}

/// Why a gateway cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The metrics hold a gateway's already.
    #[error("the metrics of the gateway: {0}")]
    Metrics(#[from] MetricsError),
    /// The keys of an issuer are not where the settings say.
    #[error("[[gateway.jwt]]: {0}")]
    TokenKeys(String),
    /// Keys or roots for replicas are not where the settings say.
    #[error("[gateway.upstream]: {0}")]
    Upstream(String),
}

impl From<UpstreamError> for BuildError {
    fn from(error: UpstreamError) -> Self {
        Self::Upstream(error.to_string())
    }
}

impl From<SourceError> for BuildError {
    fn from(error: SourceError) -> Self {
        Self::TokenKeys(error.to_string())
    }
}
