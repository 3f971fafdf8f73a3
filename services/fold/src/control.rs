//! The time zones of tenants, as control has them now.

use chrono_tz::Tz;
use ledger::control::{Document, Kind};
use ledger::ids::TenantId;
use stream::control::ControlView;

use crate::balances::Zones;

/// Asks the newest state.
#[derive(Debug)]
pub(crate) struct TenantZones<'a>(pub(crate) &'a ControlView);

impl Zones for TenantZones<'_> {
    fn zone(&self, tenant: &TenantId) -> Option<Tz> {
        match self.0.load().state.get(Kind::Tenant, tenant.as_str()) {
            Some(Document::Tenant(tenant)) => Some(tenant.time_zone),
            _ => None,
        }
    }
}
