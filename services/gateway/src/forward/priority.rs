//! Sets `priority` in a body, in the place of whatever the client wrote there: nobody goes before others by his own word.

use bytes::{Bytes, BytesMut};

use crate::object::{Member, members};

/// The same body with this priority. (One that is no object is left as it is; none comes so far.)
pub(super) fn with_priority(body: Bytes, priority: u8) -> Bytes {
    let Some(found) = std::str::from_utf8(&body).ok().and_then(|text| members(text).ok()) else { return body };
    let value = priority.to_string();
    let mut changed = BytesMut::with_capacity(body.len() + 16);
    let (mut at, mut set) = (0, false);
    for member in found.iter().filter(|member| member.key == "priority") {
        let span = member.value_span();
        changed.extend_from_slice(body.get(at..span.start).unwrap_or_default());
        changed.extend_from_slice(value.as_bytes());
        (at, set) = (span.end, true);
    }
    if let Some(end) = found.last().filter(|_| !set).map(Member::end) {
        changed.extend_from_slice(body.get(..end).unwrap_or_default());
        changed.extend_from_slice(format!(",\"priority\":{value}").as_bytes());
        at = end;
    }
    changed.extend_from_slice(body.get(at..).unwrap_or_default());
    changed.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_own_priority_does_not_count() {
        for (body, wanted) in [
            (r#"{"model":"m"}"#, r#"{"model":"m","priority":1}"#),
            (r#"{ "priority" : -100, "model":"m" }"#, r#"{ "priority" : 1, "model":"m" }"#),
            (r#"{"pri\u006frity":"x","model":"m","priority":null}"#, r#"{"pri\u006frity":1,"model":"m","priority":1}"#),
            (r#"{"a":{"priority":7}}"#, r#"{"a":{"priority":7},"priority":1}"#),
            ("{}", "{}"),
            ("[]", "[]"),
        ] {
            assert_eq!(with_priority(Bytes::from_static(body.as_bytes()), 1), wanted.as_bytes());
        }
    }
}
