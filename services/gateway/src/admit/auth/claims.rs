//! What the claims of a token mean here: whose it is, what it may do, and until when.

use ledger::control::Scope;
use ledger::ids::{ApiKeyId, ProjectId, TenantId};
use ledger::time::Micros;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::admit::caller::Scopes;
use crate::settings::JwtSettings;

/// What a token may do if its issuer says nothing of scopes: all that the gateway offers.
const WITHOUT_CLAIM: [Scope; 3] = [Scope::Generate, Scope::Embed, Scope::Models];

/// Why a token is refused, for the client that holds it: nothing of it is news to whoever made it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Invalid {
    #[error("it is no signed JSON Web Token")]
    Form,
    #[error("its issuer is not known here")]
    Issuer,
    #[error("it is signed by an algorithm that is not allowed for its issuer")]
    Algorithm,
    #[error("it is signed with a key that its issuer does not publish")]
    Key,
    #[error("its signature does not hold")]
    Signature,
    #[error("it was made for another audience")]
    Audience,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    Early,
    #[error("its claim `{0}` is missing or is not what it must be")]
    Claim(String),
    #[error("the tenant that it names is not known here")]
    Tenant,
}

/// A token whose signature, issuer and audience hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verified {
    pub tenant: TenantId,
    pub project: ProjectId,
    pub key: ApiKeyId,
    pub scopes: Scopes,
    /// From when on it is refused: its end, and the leeway.
    pub until: Micros,
}

/// Reads the claims of a token of this issuer.
pub(crate) fn read(claims: &Map<String, Value>, settings: &JwtSettings, now: Micros) -> Result<Verified, Invalid> {
    let leeway = i64::try_from(settings.leeway.as_micros()).unwrap_or(i64::MAX);
    let until = Micros(time(claims, "exp")?.ok_or_else(|| claim("exp"))?.0.saturating_add(leeway));
    if until <= now {
        return Err(Invalid::Expired);
    }
    if time(claims, "nbf")?.is_some_and(|begin| begin.0.saturating_sub(leeway) > now.0) {
        return Err(Invalid::Early);
    }
    let subject = text(claims, "sub")?.filter(|subject| !subject.is_empty()).ok_or_else(|| claim("sub"))?;
    let tenant = match (&settings.tenant, &settings.tenant_claim) {
        (Some(tenant), _) => tenant.clone(),
        (None, Some(name)) => slug(claims, name)?.ok_or_else(|| claim(name))?,
        (None, None) => return Err(Invalid::Tenant),
    };
    let project = settings.project_claim.as_deref().map(|name| slug(claims, name)).transpose()?.flatten();
    let scopes = match &settings.scopes_claim {
        Some(name) => scopes(claims, name, &settings.scope_prefix)?,
        None => WITHOUT_CLAIM.into_iter().collect(),
    };
    let key = key_id(&settings.issuer, subject);
    Ok(Verified { tenant, project: project.unwrap_or_else(|| settings.project.clone()), key, scopes, until })
}

/// The id under which usage of this subject is booked: the same for all of its tokens, and no other subject's.
fn key_id(issuer: &str, subject: &str) -> ApiKeyId {
    let of_issuer = Uuid::new_v5(&Uuid::NAMESPACE_URL, issuer.as_bytes());
    ApiKeyId(Uuid::new_v5(&of_issuer, subject.as_bytes()))
}

fn claim(name: &str) -> Invalid {
    Invalid::Claim(name.to_owned())
}

/// A claim by its name, or by its path where no claim has that name.
fn find<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value).filter(|value| !value.is_null());
    }
    let (first, rest) = path.split_once('.')?;
    find(claims.get(first)?.as_object()?, rest)
}

fn text<'a>(claims: &'a Map<String, Value>, path: &str) -> Result<Option<&'a str>, Invalid> {
    find(claims, path).map(|value| value.as_str().ok_or_else(|| claim(path))).transpose()
}

fn slug<T: std::str::FromStr>(claims: &Map<String, Value>, path: &str) -> Result<Option<T>, Invalid> {
    text(claims, path)?.map(|text| text.parse().map_err(|_| claim(path))).transpose()
}

/// A moment in seconds since 1970, which may have a fraction.
fn time(claims: &Map<String, Value>, path: &str) -> Result<Option<Micros>, Invalid> {
    let Some(value) = find(claims, path) else { return Ok(None) };
    let whole =
        value.as_u64().or_else(|| value.as_f64().filter(|seconds| *seconds >= 0.0).map(|seconds| seconds as u64));
    let seconds = whole.ok_or_else(|| claim(path))?;
    Ok(Some(Micros(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000))))
}

/// The scopes that a claim names. What it names beside them is for others.
fn scopes(claims: &Map<String, Value>, path: &str, prefix: &str) -> Result<Scopes, Invalid> {
    let named = |name: &str| Scope::named(name.strip_prefix(prefix)?);
    match find(claims, path) {
        None => Ok(Scopes::default()),
        Some(Value::String(text)) => Ok(text.split_ascii_whitespace().filter_map(named).collect()),
        Some(Value::Array(names)) => Ok(names.iter().filter_map(|name| named(name.as_str()?)).collect()),
        Some(_) => Err(claim(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::time::Duration;

    const NOW: Micros = Micros(1_000_000_000_000);

    fn settings() -> JwtSettings {
        JwtSettings {
            issuer: "https://id.example.com".into(),
            tenant_claim: Some("org.id".into()),
            project_claim: Some("project".into()),
            scopes_claim: Some("scope".into()),
            leeway: Duration::from_secs(30),
            ..JwtSettings::default()
        }
    }

    fn claims(change: impl FnOnce(&mut Value)) -> Map<String, Value> {
        let mut claims = json!({
            "sub": "alice", "exp": 1_000_100, "org": {"id": "acme"}, "project": "search", "scope": "openid generate",
        });
        change(&mut claims);
        claims.as_object().unwrap().clone()
    }

    fn refused(change: impl FnOnce(&mut Value)) -> Invalid {
        read(&claims(change), &settings(), NOW).unwrap_err()
    }

    #[test]
    fn claims_name_tenant_project_and_scopes() {
        let verified = read(&claims(|_| {}), &settings(), NOW).unwrap();
        assert_eq!((verified.tenant.as_str(), verified.project.as_str()), ("acme", "search"));
        assert_eq!(verified.scopes, [Scope::Generate].into_iter().collect());
        assert_eq!(verified.until, Micros(1_000_130_000_000));
        let plain = read(&claims(|c| c["project"] = Value::Null), &settings(), NOW).unwrap();
        assert_eq!(plain.project.as_str(), "default");
        let named = claims(|c| c["org.id"] = json!("globex"));
        assert_eq!(read(&named, &settings(), NOW).unwrap().tenant.as_str(), "globex", "a name comes before a path");
        let fixed = JwtSettings { tenant: Some("initech".parse().unwrap()), tenant_claim: None, ..settings() };
        assert_eq!(read(&claims(|_| {}), &fixed, NOW).unwrap().tenant.as_str(), "initech");
    }

    #[test]
    fn scopes_come_as_a_text_or_a_list_and_others_are_for_others() {
        let of = |scope: Value, prefix: &str| {
            let settings = JwtSettings { scope_prefix: prefix.into(), ..settings() };
            read(&claims(|c| c["scope"] = scope), &settings, NOW).map(|verified| verified.scopes)
        };
        let two: Scopes = [Scope::Generate, Scope::Models].into_iter().collect();
        assert_eq!(of(json!("generate models"), "").unwrap(), two);
        assert_eq!(of(json!(["generate", "admin", 7, "models"]), "").unwrap(), two);
        assert_eq!(of(json!("tg:generate tg:models embed"), "tg:").unwrap(), two);
        for nothing in [json!(null), json!(""), json!([]), json!("GENERATE all *")] {
            assert_eq!(of(nothing, "").unwrap(), Scopes::default());
        }
        assert_eq!(of(json!(7), "").unwrap_err(), Invalid::Claim("scope".into()));
        let unset = JwtSettings { scopes_claim: None, ..settings() };
        let all = read(&claims(|c| c["scope"] = json!("openid")), &unset, NOW).unwrap().scopes;
        assert!(all.has(Scope::Generate) && all.has(Scope::Embed) && all.has(Scope::Models) && !all.has(Scope::Usage));
    }

    #[test]
    fn what_must_be_there_is_there_and_of_its_kind() {
        for (name, value) in [
            ("exp", json!(null)),
            ("exp", json!("1000100")),
            ("exp", json!(-5)),
            ("sub", json!(null)),
            ("sub", json!("")),
            ("sub", json!(7)),
            ("project", json!("a/b")),
            ("project", json!(["search"])),
            ("nbf", json!("soon")),
        ] {
            assert_eq!(refused(|c| c[name] = value.clone()), Invalid::Claim(name.into()), "{name} {value}");
        }
        for org in
            [json!(null), json!({}), json!({"id": 7}), json!({"id": "a b"}), json!({"id": ["acme"]}), json!("acme")]
        {
            assert_eq!(refused(|c| c["org"] = org.clone()), Invalid::Claim("org.id".into()), "{org}");
        }
    }

    #[test]
    fn a_token_holds_from_its_begin_to_its_end_give_or_take_the_leeway() {
        assert_eq!(refused(|c| c["exp"] = json!(999_970)), Invalid::Expired);
        assert!(read(&claims(|c| c["exp"] = json!(999_971)), &settings(), NOW).is_ok());
        assert!(read(&claims(|c| c["exp"] = json!(999_971.9)), &settings(), NOW).is_ok());
        assert_eq!(refused(|c| c["nbf"] = json!(1_000_031)), Invalid::Early);
        assert!(read(&claims(|c| c["nbf"] = json!(1_000_030)), &settings(), NOW).is_ok());
        let far = read(&claims(|c| c["exp"] = json!(u64::MAX)), &settings(), NOW).unwrap();
        assert_eq!(far.until, Micros(i64::MAX));
    }

    #[test]
    fn a_subject_of_one_issuer_is_none_of_another() {
        let id = |issuer: &str, subject: &str| key_id(issuer, subject);
        assert_eq!(id("a", "b"), id("a", "b"));
        assert_ne!(id("a", "b"), id("b", "a"));
        assert_ne!(id("a", "bc"), id("ab", "c"));
        assert_eq!(id("a", "b").0.get_version_num(), 5);
    }

    proptest! {
        #[test]
        fn any_claims_are_read_or_refused(text in "\\PC{0,30}", number in any::<f64>(), path in "[a-c.]{0,6}") {
            let with = JwtSettings { tenant_claim: Some(path), scope_prefix: text.clone(), ..settings() };
            let odd = claims(|c| {
                c["a"] = json!({"b": {"c": text.clone()}, "": text.clone()});
                c["nbf"] = json!(number);
                c["scope"] = json!([text.clone(), {"x": text.clone()}]);
            });
            let _ = read(&odd, &with, NOW);
        }
    }
}
