//! What keeps tenants apart inside an engine: its prefix cache answers sooner when it has read the same before, and so would
//! tell one tenant what another has sent. Each gets a part of its own, by the salt that the engine hashes prefixes with.

use bytes::{BufMut, Bytes, BytesMut};
use ledger::control::ReplicaKind;
use ledger::ids::TenantId;
use sha2::{Digest, Sha256};

use crate::object::members;

const NAME: &str = "cache_salt";

/// A tenant's salt: its own, and the same at every gateway. It need not be secret, as no client's own is passed on.
pub(crate) fn of_tenant(tenant: &TenantId) -> String {
    digest(&[b"tollgate cache salt", tenant.as_str().as_bytes()])
}

/// Whether engines of this kind know salts.
pub(super) fn is_known_to(kind: ReplicaKind) -> bool {
    matches!(kind, ReplicaKind::Vllm | ReplicaKind::Sglang)
}

/// The body with this salt. A client's own keeps its caches apart from each other, below the tenant's.
pub(super) fn salted(body: &Bytes, salt: &str) -> Bytes {
    let text = std::str::from_utf8(body).unwrap_or_default();
    // Few clients set one. (Who hides it in escapes has it outweighed: of two, engines take the last or refuse both.)
    if text.contains(NAME)
        && let Ok(found) = members(text)
        && let Some(own) = found.iter().find(|member| member.key == NAME)
    {
        let salt = if own.is_null() { salt.to_owned() } else { digest(&[salt.as_bytes(), own.value.as_bytes()]) };
        let span = own.value_span();
        return joined(&[&body[..span.start], b"\"", salt.as_bytes(), b"\"", &body[span.end..]]);
    }
    let Some(end) = body.iter().rposition(|byte| *byte == b'}') else { return body.clone() };
    joined(&[&body[..end], b",\"cache_salt\":\"", salt.as_bytes(), b"\"", &body[end..]])
}

fn joined(parts: &[&[u8]]) -> Bytes {
    let mut whole = BytesMut::with_capacity(parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| whole.put_slice(part));
    whole.freeze()
}

/// 64 hex digits, which engines take. Parts do not run into each other.
fn digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn of(tenant: &str) -> String {
        of_tenant(&tenant.parse().unwrap())
    }

    fn sent(body: &str, tenant: &str) -> Value {
        let bytes = salted(&Bytes::copy_from_slice(body.as_bytes()), &of(tenant));
        let text = std::str::from_utf8(&bytes).unwrap();
        let salts = members(text).unwrap().iter().filter(|member| member.key == NAME).count();
        assert!(salts == 1 || body.contains("\\u"), "{text}");
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn a_client_takes_no_other_tenants_salt() {
        let plain = sent(r#"{"model":"m"}"#, "acme")["cache_salt"].clone();
        assert_eq!(plain, json!(of("acme")));
        assert_ne!(of("acme"), of("globex"));
        for foreign in [json!(of("acme")), json!("x"), json!({"a": 1}), json!(7)] {
            let body = json!({"model": "m", "cache_salt": foreign}).to_string();
            let salt = sent(&body, "globex")["cache_salt"].clone();
            assert!(salt.is_string() && salt != plain && salt != foreign && salt != json!(of("globex")), "{body}");
            assert_eq!(sent(&body, "globex")["cache_salt"], salt, "its own keeps its caches apart, and warm");
        }
        assert_eq!(sent(r#"{"model":"m","cache_salt":null}"#, "acme")["cache_salt"], plain);
        let hidden = format!(r#"{{"cache\u005fsalt":"{}","model":"m"}}"#, of("acme"));
        assert_eq!(sent(&hidden, "globex")["cache_salt"], json!(of("globex")), "the last one counts");
        let inside = r#"{"model":"m","metadata":{"cache_salt":"mine"} }"#;
        assert_eq!(
            sent(inside, "acme"),
            json!({"model": "m", "metadata": {"cache_salt": "mine"}, "cache_salt": plain})
        );
    }

    proptest! {
        #[test]
        fn all_else_stays_as_it_is(text in "\\PC{0,40}", own in any::<Option<String>>(), spaces in " {0,3}") {
            let mut wanted = json!({"model": "m", "prompt": text});
            if let Some(own) = own {
                wanted["cache_salt"] = json!(own);
            }
            let mut said = sent(&format!("{spaces}{wanted}{spaces}"), "acme");
            for value in [&mut said, &mut wanted] {
                value.as_object_mut().unwrap().remove("cache_salt");
            }
            prop_assert_eq!(said, wanted);
        }
    }
}
