//! `/v1/models`: the models that a key's plan allows, in OpenAI's shape.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::Body;
use crate::admit::policy::{Policy, Tenant};
use crate::error::{self, Refusal};

/// All models of the tenant, or the one with this name.
pub(crate) fn answer(policy: &Policy, tenant: &Tenant, one: Option<&str>) -> Result<Response<Body>, Refusal> {
    let body = match one {
        None => {
            let allowed = policy.models().filter(|(_, model)| tenant.may_use(model));
            json!({"object": "list", "data": allowed.map(|(name, _)| shown(name)).collect::<Vec<_>>()})
        }
        Some(name) => {
            // A model that the plan does not allow is as unknown here as one that is not there.
            policy.model(name).filter(|model| tenant.may_use(model)).ok_or_else(|| Refusal::model_not_found(name))?;
            shown(name)
        }
    };
    Ok(error::json(StatusCode::OK, body.to_string()))
}

fn shown(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "tollgate"})
}
