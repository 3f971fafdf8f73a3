//! Each record of this build, each of its fields, each way in which a next version would break readers: all are refused.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use schemas::compatibility::{Broken, EVIDENCE, check};
use schemas::registry::{SCHEMAS, SchemaVersion};
use serde_json::{Value, json};

/// A schema of this build, changed, as the next version of its subject.
fn next(of: &SchemaVersion, change: impl FnOnce(&mut Value)) -> SchemaVersion {
    let mut schema = serde_json::from_str(of.text).unwrap();
    change(&mut schema);
    SchemaVersion { id: of.id + 1, version: 2, text: schema.to_string().leak(), ..*of }
}

/// What is said of this build with one more version. That the version itself has no bytes yet is left out.
fn said_with(version: SchemaVersion) -> Vec<String> {
    let known: Vec<_> = SCHEMAS.iter().copied().chain([version]).collect();
    let broken = check(&known, EVIDENCE).err().unwrap_or_default();
    broken.into_iter().filter(|one| !matches!(one, Broken::NoEvidence(_))).map(|one| one.to_string()).collect()
}

fn fields(schema: &mut Value) -> &mut Vec<Value> {
    schema["fields"].as_array_mut().unwrap()
}

#[test]
fn every_field_of_every_record_is_held_to_the_promise() {
    let mut tried = 0;
    for known in SCHEMAS {
        let added = json!({"name": "more", "type": ["null", "string"], "default": null});
        assert_eq!(said_with(next(known, |schema| fields(schema).push(added.clone()))), [""; 0], "{}", known.name);
        let without = json!({"name": "more", "type": "string"});
        let renamed = next(known, |schema| schema["name"] = "Other".into());
        let mut broken = vec![next(known, |schema| fields(schema).push(without)), renamed];
        let whole: Value = serde_json::from_str(known.text).unwrap();
        for (at, field) in whole["fields"].as_array().unwrap().iter().enumerate() {
            if field.get("default").is_none() {
                broken.push(next(known, |schema| drop(fields(schema).remove(at))));
                broken.push(next(known, |schema| fields(schema)[at]["name"] = "renamed".into()));
            }
            broken.push(next(known, |schema| fields(schema)[at]["type"] = json!({"type": "map", "values": "int"})));
        }
        for version in broken {
            tried += 1;
            assert_ne!(said_with(version), [""; 0], "{}", version.text);
        }
    }
    assert!(tried > 200, "{tried}");
}
