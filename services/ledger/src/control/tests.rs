//! Writes to control: first wins, what is named is there, what cannot be is refused.

use super::*;
use proptest::prelude::*;

fn plan(limit: u64) -> Document {
    Document::Plan(Plan { name: "Free".to_owned(), tokens_per_period: Some(limit), ..Plan::default() })
}

fn tenant() -> Document {
    Document::Tenant(Tenant::new("Acme", "free".parse().unwrap(), "USD".parse().unwrap(), chrono_tz::UTC))
}

fn write(id: &str, expected_revision: u64, document: Document) -> Write {
    Write { kind: document.kind(), id: id.into(), expected_revision, document: Some(document) }
}

#[test]
fn the_first_of_two_writers_wins() {
    let mut state = ControlState::default();
    assert_eq!(state.apply(&write("free", 0, plan(1))), Ok(1));
    assert_eq!(state.apply(&write("free", 0, plan(2))), Err(Rejected::Conflict { expected: 0, found: 1 }));
    assert_eq!(state.get(Kind::Plan, "free"), Some(&plan(1)));
    assert_eq!(state.apply(&write("free", 1, plan(3))), Ok(2));
}

#[test]
fn what_is_named_is_there_and_stays() {
    let mut state = ControlState::default();
    assert_eq!(state.apply(&write("acme", 0, tenant())), Err(Rejected::Missing(Kind::Plan, "free".into())));
    state.apply(&write("free", 0, plan(1))).unwrap();
    state.apply(&write("acme", 0, tenant())).unwrap();
    let mut delete = Write { kind: Kind::Plan, id: "free".into(), expected_revision: 1, document: None };
    assert_eq!(state.apply(&delete), Err(Rejected::InUse(Kind::Tenant, "acme".into())));
    let gone = Write { kind: Kind::Tenant, id: "acme".into(), expected_revision: 1, document: None };
    assert_eq!(state.apply(&gone), Ok(2));
    assert_eq!(state.apply(&delete), Ok(2));
    delete.document = Some(plan(1));
    assert_eq!(
        state.apply(&delete),
        Err(Rejected::Conflict { expected: 1, found: 2 }),
        "an old write brings nothing back"
    );
}

fn corrected(project: &str, slot: i64) -> Corrected {
    Corrected {
        tenant: "acme".parse().unwrap(),
        project: project.parse().unwrap(),
        model: "llama".parse().unwrap(),
        slot: Slot(slot),
    }
}

#[test]
fn a_correction_is_made_once_and_stays_as_it_is() {
    let mut state = ControlState::default();
    let id = "8b0f6b3e-5b0e-4a53-9a3e-1f2d3c4b5a69";
    let made = |deltas: Deltas, reason: &str, slot: i64| {
        let made = UsageAdjustment::new(corrected("search", 0), deltas, reason);
        Document::UsageAdjustment(UsageAdjustment { slot: Micros(slot), ..made })
    };
    let less = Deltas { output: -5, ..Deltas::default() };
    let sound = write(id, 0, made(less, "counted twice", 0));
    assert_eq!(state.apply(&sound), Err(Rejected::Missing(Kind::Tenant, "acme".into())));
    state.apply(&write("free", 0, plan(1))).unwrap();
    state.apply(&write("acme", 0, tenant())).unwrap();
    assert_eq!(state.apply(&sound), Err(Rejected::Missing(Kind::Model, "llama".into())));
    let model = Document::Model(Model::new("v1".parse().unwrap(), "llama"));
    state.apply(&write("llama", 0, model)).unwrap();
    for (wrong, said) in [
        (write(id, 0, made(Deltas::default(), "why", 0)), "changes nothing"),
        (write(id, 0, made(Deltas { input: i64::MIN, ..less }, "why", 0)), "out of bounds"),
        (write(id, 0, made(less, "  ", 0)), "say why"),
        (write(id, 0, made(less, "why", 1)), "quarter"),
        (write("no-uuid", 0, made(less, "why", 0)), "UUID"),
    ] {
        let error = state.apply(&wrong).unwrap_err().to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
    assert_eq!(state.apply(&sound), Ok(1));
    let other = write(id, 1, made(less, "another reason", 0));
    assert_eq!(state.apply(&other), Err(Rejected::Final));
    for expected_revision in [0, 1] {
        let id = if expected_revision == 0 { "8b0f6b3e-5b0e-4a53-9a3e-1f2d3c4b5a60" } else { id };
        let gone = Write { kind: Kind::UsageAdjustment, id: id.into(), expected_revision, document: None };
        assert_eq!(state.apply(&gone), Err(Rejected::Final), "and an id that never was is not used up");
    }
    let gone = Write { kind: Kind::Tenant, id: "acme".into(), expected_revision: 1, document: None };
    assert_eq!(state.apply(&gone), Ok(2), "a correction holds nobody back");
    assert_eq!(state.adjustments().map(|(id, made)| (id, made.deltas.output)).collect::<Vec<_>>(), [(id, -5)]);
}

/// A state with a tenant and a model.
fn shop() -> ControlState {
    let mut state = ControlState::default();
    let model = Document::Model(Model::new("v1".parse().unwrap(), "llama"));
    for write in [write("free", 0, plan(1)), write("acme", 0, tenant()), write("llama", 0, model)] {
        state.apply(&write).unwrap();
    }
    state
}

#[test]
fn a_correction_that_was_checked_beside_others_holds_beside_those_alone() {
    let mut state = shop();
    let made = |number: u128, project: &str, slot: i64, after: Option<u64>| {
        let made = UsageAdjustment::new(corrected(project, slot), Deltas { input: 1, ..Deltas::default() }, "why");
        let made = UsageAdjustment { after, ..made };
        write(&uuid::Uuid::from_u128(number).to_string(), 0, Document::UsageAdjustment(made))
    };
    let overtaken = |expected, found| Err(Rejected::Overtaken { expected, found });
    assert_eq!(state.apply(&made(1, "search", 0, Some(1))), overtaken(1, 0));
    assert_eq!(state.apply(&made(1, "search", 0, Some(0))), Ok(1));
    assert_eq!(state.apply(&made(2, "search", 0, Some(0))), overtaken(0, 1), "of two at once the second");
    assert_eq!(state.apply(&made(3, "search", 0, None)), Ok(1), "which takes nothing away");
    assert_eq!(state.apply(&made(2, "search", 0, Some(1))), overtaken(1, 2));
    assert_eq!(state.apply(&made(2, "search", 0, Some(2))), Ok(1));
    assert_eq!(state.apply(&made(4, "search", 1, Some(0))), Ok(1), "of another time");
    assert_eq!(state.apply(&made(5, "chat", 0, Some(0))), Ok(1), "of another project");
    let entries = state.entries().map(|(kind, id, revision, d)| (kind, id.to_owned(), revision, d.cloned()));
    let mut restored = ControlState::restore(entries);
    assert_eq!(restored, state);
    assert_eq!(restored.apply(&made(6, "search", 0, Some(0))), overtaken(0, 3), "by the state of a snapshot too");
}

#[test]
fn prices_are_checked_before_they_are_kept() {
    let mut state = ControlState::default();
    let model = Document::Model(Model::new("v1".parse().unwrap(), "llama"));
    state.apply(&write("llama", 0, model)).unwrap();
    let key = PriceKey {
        model: "llama".parse().unwrap(),
        class: crate::tokens::TokenClass::Input,
        currency: "USD".parse().unwrap(),
    };
    let price = |from, per_million: &str| {
        let per_million = per_million.parse().unwrap();
        write("p1", 0, Document::Price(Price { key: key.clone(), from: Micros(from), per_million }))
    };
    assert!(matches!(state.apply(&price(1, "1")), Err(Rejected::Time(_))));
    assert!(matches!(state.apply(&price(0, "-1")), Err(Rejected::Price(_))));
    state.apply(&price(0, "0.25")).unwrap();
    let again = Write { id: "p2".into(), ..price(0, "0.5") };
    assert_eq!(state.apply(&again), Err(Rejected::Taken(Kind::Price, "p1".into())), "which of the two would hold?");
    let restored = ControlState::restore(
        state.entries().map(|(kind, id, revision, document)| (kind, id.to_owned(), revision, document.cloned())),
    );
    assert_eq!(restored, state);
    let later = Write { expected_revision: 1, ..price(crate::time::SLOT_MICROS, "0.25") };
    state.apply(&later).unwrap();
    assert_eq!(state.apply(&again), Ok(1), "the first one has moved away");
    let price_in = |slot| state.price_book().unwrap().price(&key, Slot(slot)).map(|price| price.to_string());
    assert_eq!([price_in(0), price_in(5)], [Some("0.5".into()), Some("0.25".into())]);
}

#[test]
fn a_name_means_one_model_and_adapters_have_a_base() {
    let mut state = ControlState::default();
    let model = |served: &str| Model::new("v1".parse().unwrap(), served);
    let named = |id: &str, model: Model| write(id, 0, Document::Model(model));
    let llama = Model { aliases: vec!["fast".parse().unwrap()], ..model("llama") };
    state.apply(&named("llama", llama)).unwrap();
    assert_eq!(state.apply(&named("fast", model("x"))), Err(Rejected::Taken(Kind::Model, "llama".into())));
    let alias = Model { aliases: vec!["llama".parse().unwrap()], ..model("x") };
    assert_eq!(state.apply(&named("other", alias)), Err(Rejected::Taken(Kind::Model, "llama".into())));
    let adapter = |base: &str| Model { base: Some(base.parse().unwrap()), ..model("sql") };
    state.apply(&named("sql", adapter("llama"))).unwrap();
    assert_eq!(state.apply(&named("sql2", adapter("sql"))), Err(Rejected::Base("sql".parse().unwrap())));
    assert_eq!(state.apply(&named("self", adapter("self"))), Err(Rejected::Base("self".parse().unwrap())));
    assert_eq!(state.apply(&named("lost", adapter("none"))), Err(Rejected::Missing(Kind::Model, "none".into())));
    let canary = |percent| Canary { version: "v2".parse().unwrap(), served_name: "x".into(), percent };
    let many = Model { canaries: vec![canary(60), canary(41)], ..model("x") };
    assert_eq!(state.apply(&named("many", many)), Err(Rejected::Canaries(101)));
    let delete = Write { kind: Kind::Model, id: "llama".into(), expected_revision: 1, document: None };
    assert_eq!(state.apply(&delete), Err(Rejected::InUse(Kind::Model, "sql".into())));
}

#[test]
fn a_key_shows_no_hash_and_has_a_uuid() {
    let mut state = ControlState::default();
    let (tenant, project) = ("acme".parse().unwrap(), "search".parse().unwrap());
    let key = ApiKey::new(tenant, project, "5ec7e7".into());
    assert!(!format!("{key:?}").contains("5ec7e7"));
    assert_eq!(state.apply(&write("mine", 0, Document::ApiKey(key))), Err(Rejected::NoUuid("mine".into())));
}

proptest! {
    #[test]
    fn what_is_rejected_changes_nothing(steps in prop::collection::vec((0u64..4, 0u64..9, any::<bool>()), 0..40)) {
        let mut state = ControlState::default();
        let mut taken = 0;
        for (expected_revision, limit, delete) in steps {
            let before = state.clone();
            let document = (!delete).then(|| plan(limit));
            match state.apply(&Write { kind: Kind::Plan, id: "free".into(), expected_revision, document }) {
                Ok(revision) => { taken += 1; prop_assert_eq!(revision, taken); }
                Err(_) => prop_assert_eq!(&state, &before),
            }
            let entries = state.entries().map(|(kind, id, revision, d)| (kind, id.to_owned(), revision, d.cloned()));
            prop_assert_eq!(&ControlState::restore(entries), &state);
        }
    }
}
