//! Who asks: the admin, or a tenant by one of its API keys. A tenant reads its own data and learns nothing of others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use ledger::control::{ApiKey, ControlState, Document, Scope};
use ledger::ids::TenantId;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::app::{App, Shared};
use crate::problem::Problem;

/// Keys by their hashes.
type ByHash = Arc<HashMap<String, ApiKey>>;

/// Finds keys by their hashes; follows the control log.
pub(crate) struct KeyIndex {
    admin: Option<String>,
    /// As of this offset of the control log.
    current: Mutex<(i64, ByHash)>,
}

impl KeyIndex {
    pub(crate) fn new(admin: Option<String>) -> Self {
        Self { admin, current: Mutex::new((-1, ByHash::default())) }
    }

    fn at(&self, offset: i64, state: &ControlState) -> ByHash {
        // An index is put in as a whole: a lock poisoned by a panic elsewhere is as good as any.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0 < offset {
            let key = |document: &Document| match document {
                Document::ApiKey(key) => Some((key.sha256.clone(), key.clone())),
                _ => None,
            };
            *current = (offset, Arc::new(state.iter().filter_map(|(_, document)| key(document)).collect()));
        }
        current.1.clone()
    }
}

/// The hash that documents and settings hold of a key, in hex.
pub(crate) fn sha256(key: &str) -> String {
    Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// May read and write everything.
    Admin,
    /// May read its own.
    Tenant(TenantId),
}

impl Caller {
    /// Who holds this key. A tenant's must have the scope `usage`: all that it opens here is that.
    pub(crate) fn of(app: &App, key: &str) -> Result<Self, Problem> {
        // Hashes are compared, which tells nobody how much of a key was right.
        let hash = sha256(key);
        let admin = app.keys.admin.as_ref();
        if admin.is_some_and(|admin| bool::from(admin.as_bytes().ct_eq(hash.as_bytes()))) {
            return Ok(Self::Admin);
        }
        let control = app.control()?;
        let now = app.now();
        match app.keys.at(control.offset, &control.state).get(&hash) {
            Some(key) if !key.revoked && key.expires_at.is_none_or(|end| now < end) => {
                let may = key.scopes.as_ref().is_none_or(|scopes| scopes.contains(&Scope::Usage));
                if may { Ok(Self::Tenant(key.tenant.clone())) } else { Err(Problem::insufficient_scope()) }
            }
            _ => Err(Problem::unauthorized()),
        }
    }

    /// Nobody else may.
    pub(crate) fn admin(&self) -> Result<(), Problem> {
        match self {
            Self::Admin => Ok(()),
            Self::Tenant(_) => Err(Problem::forbidden()),
        }
    }

    /// The admin may, and the tenant itself; another tenant is told the same whether this one exists or not.
    pub(crate) fn sees(&self, tenant: &TenantId) -> Result<(), Problem> {
        match self {
            Self::Tenant(own) if own != tenant => Err(Problem::forbidden()),
            _ => Ok(()),
        }
    }

    /// Whose data is asked for: as the admin says (none for all), or the tenant's own.
    pub(crate) fn scope(&self, asked: Option<TenantId>) -> Result<Option<TenantId>, Problem> {
        match (self, asked) {
            (_, Some(tenant)) => self.sees(&tenant).map(|()| Some(tenant)),
            (Self::Tenant(own), None) => Ok(Some(own.clone())),
            (Self::Admin, None) => Ok(None),
        }
    }

    /// Whose data is asked for, where it must be one tenant's.
    pub(crate) fn one(&self, asked: Option<TenantId>) -> Result<TenantId, Problem> {
        self.scope(asked)?.ok_or_else(|| Problem::query("`tenant` is needed: say whose figures are meant"))
    }

    /// The name in the control log.
    pub(crate) fn actor(&self) -> String {
        match self {
            Self::Admin => "admin".to_owned(),
            Self::Tenant(tenant) => format!("tenant/{tenant}"),
        }
    }
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self, Problem> {
        let given = parts.headers.get(header::AUTHORIZATION).ok_or_else(Problem::unauthorized)?;
        let text = given.to_str().map_err(|_| Problem::unauthorized())?;
        let (scheme, key) = text.split_once(' ').ok_or_else(Problem::unauthorized)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Problem::unauthorized());
        }
        let caller = Self::of(app, key.trim())?;
        // Without control the admin would be told that nothing is there.
        app.control()?;
        Ok(caller)
    }
}
