//! `/v1/models`: the models that a key's plan allows, in OpenAI's shape.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::Body;
use crate::admit::policy::{Model, Policy, Tenant};
use crate::error::{self, Refusal};

/// All models of the tenant, or the one with this name.
pub(crate) fn answer(policy: &Policy, tenant: &Tenant, one: Option<&str>) -> Result<Response<Body>, Refusal> {
    let body = match one {
        None => {
            let allowed = policy.models().filter(|model| tenant.may_use(&model.id));
            json!({"object": "list", "data": allowed.map(|model| shown(model)).collect::<Vec<_>>()})
        }
        Some(name) => {
            // A model that the plan does not allow is as unknown here as one that is not there.
            let model = policy.model(name).filter(|model| tenant.may_use(&model.id));
            shown(model.ok_or_else(|| Refusal::model_not_found(name))?)
        }
    };
    Ok(error::json(StatusCode::OK, body.to_string()))
}

fn shown(model: &Model) -> Value {
    json!({"id": model.id.as_str(), "object": "model", "created": 0, "owned_by": "tollgate"})
}
