//! Who asks, and what it may do: what authentication yields, whether it was an API key or a token.

use std::sync::Arc;

use ledger::control::{Limits, Scope};
use ledger::ids::{ApiKeyId, ProjectId};

use super::policy::Tenant;
use crate::error::Refusal;
use crate::forward::salt;

/// See the module. Everything after authentication rests on this alone: no header and no body says otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Who is billed.
    pub tenant: Arc<Tenant>,
    /// The project that the usage belongs to.
    pub project: ProjectId,
    /// The project's own limits, below those of the plan.
    pub project_limits: Limits,
    /// The API key; for a token, an id that its issuer and subject always have.
    pub key: ApiKeyId,
    /// The key's own limits, below those of its project.
    pub key_limits: Limits,
    /// What it may do.
    pub scopes: Scopes,
    /// What its tenant's prefixes are kept apart by in the caches of engines.
    pub cache_salt: String,
}

impl Caller {
    /// A caller of `tenant` for one of its projects, with the limits that the tenant's document gives this project.
    pub(crate) fn new(tenant: Arc<Tenant>, project: ProjectId, key: ApiKeyId, scopes: Scopes) -> Self {
        let project_limits = tenant.projects.get(&project).copied().unwrap_or_default();
        let cache_salt = salt::of_tenant(&tenant.id);
        Self { tenant, project, project_limits, key, key_limits: Limits::default(), scopes, cache_salt }
    }

    /// Refuses what its scopes do not name.
    pub(crate) fn may(&self, scope: Scope) -> Result<(), Refusal> {
        if self.scopes.has(scope) { Ok(()) } else { Err(Refusal::insufficient_scope(scope)) }
    }
}

/// A set of scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Scopes(u8);

impl Scopes {
    /// Every scope.
    pub(crate) fn all() -> Self {
        Scope::ALL.into_iter().collect()
    }

    /// Whether this one is among them.
    pub(crate) fn has(self, scope: Scope) -> bool {
        self.0 & bit(scope) != 0
    }
}

fn bit(scope: Scope) -> u8 {
    1 << scope as u8
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<T: IntoIterator<Item = Scope>>(scopes: T) -> Self {
        Self(scopes.into_iter().fold(0, |set, scope| set | bit(scope)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_opens_itself_alone() {
        for scope in Scope::ALL {
            let one: Scopes = [scope].into_iter().collect();
            assert!(Scope::ALL.into_iter().all(|other| one.has(other) == (other == scope)), "{scope:?}");
            assert!(Scopes::all().has(scope) && !Scopes::default().has(scope));
        }
    }
}
