//! The demo documents of `dev`: a plan, a tenant with its key, two models with a replica and prices each; and the canary's tenant.
//!
//! Written where they are missing. What was written here is brought up to date at a later start (ports change); what a
//! person has changed or deleted since is left alone, by its revision.

use std::collections::BTreeMap;
use std::path::Path;

use ledger::control::{
    ApiKey, ControlState, Document, Kind, Model, Plan, Price, Rejected, Replica, Scope, Tenant, Write,
};
use ledger::ids::ModelId;
use ledger::price::PriceKey;
use ledger::time::Micros;
use ledger::tokens::TokenClass;
use sha2::{Digest as _, Sha256};
use stream::control::{ControlWriter, WriteError};
use uuid::Uuid;

use super::layout::{LLAMA, MISTRAL};

/// The API key of the demo tenant.
pub(crate) const KEY: &str = "tg_demo";
/// The key of the control API.
pub(crate) const ADMIN_KEY: &str = "tg_admin";
/// The API key of the canary's tenant.
pub(crate) const CANARY_KEY: &str = "tg_canary";
/// The canary's tenant, and its plan.
const CANARY: &str = "canary";
/// The demo tenant, and its plan.
pub(crate) const TENANT: &str = "demo";
/// Whose the writes are, in the control log.
const ACTOR: &str = "tollgate dev";
/// 2020-01-01T00:00:00Z: before any usage, so that none is unrated.
const ALWAYS: Micros = Micros(1_577_836_800_000_000);

/// The revisions that were written here, by `kind/id`.
pub(crate) type Written = BTreeMap<String, u64>;

/// A document with its id.
pub(crate) type Wanted = (String, Document);

/// SHA-256 in hex: what is kept of a key.
pub(crate) fn sha256(key: &str) -> String {
    Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All documents, in an order in which each finds what it names. Replicas at these addresses.
///
/// # Errors
/// None that a test does not exclude: the names are constants.
pub(crate) fn wanted(llama: &str, mistral: &str) -> Result<Vec<Wanted>, String> {
    let mut all = Vec::new();
    // Per million tokens, in the order of the classes: input, cached input, output, reasoning. High enough that a few chats
    // show in an invoice.
    for (name, url, replica, prices) in [
        (LLAMA, llama, "sim-llama", ["10.00", "2.50", "30.00", "30.00"]),
        (MISTRAL, mistral, "sim-mistral", ["6.00", "1.50", "18.00", "18.00"]),
    ] {
        let id = parsed::<ModelId>(name)?;
        let model = Model::new(parsed("v1")?, name);
        all.push((name.to_owned(), Document::Model(model)));
        for (class, price) in TokenClass::ALL.into_iter().zip(prices) {
            let key = PriceKey { model: id.clone(), class, currency: parsed("USD")? };
            let document = Price { key, from: ALWAYS, per_million: parsed(price)? };
            all.push((format!("{name}.{}.usd", class.as_str()), Document::Price(document)));
        }
        all.push((replica.to_owned(), Document::Replica(Replica::new(id, url))));
    }
    let plan = Plan {
        name: "Demo".to_owned(),
        requests_per_minute: Some(600),
        tokens_per_minute: Some(200_000),
        tokens_per_period: Some(5_000_000),
        ..Plan::default()
    };
    all.push((TENANT.to_owned(), Document::Plan(plan)));
    let tenant = Tenant::new("Demo", parsed(TENANT)?, parsed("USD")?, parsed("UTC")?);
    all.push((TENANT.to_owned(), Document::Tenant(tenant)));
    let key = ApiKey::new(parsed(TENANT)?, parsed("default")?, sha256(KEY));
    all.push((key_id(KEY), Document::ApiKey(key)));
    all.extend(canary()?);
    Ok(all)
}

/// The tenant of the canary: one model, at a price of nothing in a currency that nobody pays in.
fn canary() -> Result<Vec<Wanted>, String> {
    let model = parsed::<ModelId>(LLAMA)?;
    let mut all = Vec::new();
    for class in TokenClass::ALL {
        let key = PriceKey { model: model.clone(), class, currency: parsed("XTS")? };
        let document = Price { key, from: ALWAYS, per_million: parsed("0")? };
        all.push((format!("{LLAMA}.{}.xts", class.as_str()), Document::Price(document)));
    }
    let plan =
        Plan { name: "Canary".to_owned(), requests_per_minute: Some(60), models: Some(vec![model]), ..Plan::default() };
    all.push((CANARY.to_owned(), Document::Plan(plan)));
    let tenant = Tenant::new("Canary", parsed(CANARY)?, parsed("XTS")?, parsed("UTC")?);
    all.push((CANARY.to_owned(), Document::Tenant(tenant)));
    let scopes = Some(vec![Scope::Generate, Scope::Usage]);
    let key = ApiKey { scopes, ..ApiKey::new(parsed(CANARY)?, parsed("default")?, sha256(CANARY_KEY)) };
    all.push((key_id(CANARY_KEY), Document::ApiKey(key)));
    Ok(all)
}

fn key_id(key: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_URL, key.as_bytes()).to_string()
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("the demo's {text:?}: {error}"))
}

fn name(kind: Kind, id: &str) -> String {
    format!("{}/{id}", kind.as_str())
}

/// What is to be done about one document.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It is as it should be, at this revision.
    Keep(u64),
    Write(Box<Write>),
    /// A person changed or deleted it.
    Leave,
}

fn step(state: &ControlState, written: &Written, (id, document): &Wanted) -> Step {
    let kind = document.kind();
    let revision = state.revision(kind, id);
    if state.get(kind, id) == Some(document) {
        return Step::Keep(revision);
    }
    if revision != 0 && written.get(&name(kind, id)) != Some(&revision) {
        return Step::Leave;
    }
    let document = Some(document.clone());
    Step::Write(Box::new(Write { kind, id: id.clone(), expected_revision: revision, document }))
}

/// Writes what is missing or out of date, and remembers in `file` what was written. Returns what a person changed, as
/// `kind/id`.
///
/// # Errors
/// When the control log does not answer or `file` cannot be written.
pub(crate) async fn bootstrap(
    writer: &ControlWriter,
    state: impl Fn() -> ControlState,
    wanted: &[Wanted],
    file: &Path,
) -> Result<Vec<String>, String> {
    let mut written = remembered(file);
    let mut left = Vec::new();
    for document in wanted {
        let name = name(document.1.kind(), &document.0);
        let revision = match step(&state(), &written, document) {
            Step::Keep(revision) => Some(revision),
            Step::Leave => None,
            Step::Write(write) => match writer.write(*write, ACTOR).await {
                Ok(done) => Some(done.revision),
                // It stands against something that a person wrote.
                Err(WriteError::Rejected(Rejected::Conflict { .. } | Rejected::Missing(..) | Rejected::Taken(..))) => {
                    None
                }
                Err(error) => return Err(format!("{name}: {error}")),
            },
        };
        match revision {
            Some(revision) if written.get(&name) == Some(&revision) => {}
            Some(revision) => {
                written.insert(name, revision);
                remember(&written, file).map_err(|error| format!("{}: {error}", file.display()))?;
            }
            None => left.push(name),
        }
    }
    Ok(left)
}

/// What was written at earlier starts. A file that is gone or torn means that everything there is a person's.
fn remembered(file: &Path) -> Written {
    std::fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn remember(written: &Written, file: &Path) -> std::io::Result<()> {
    let new = file.with_extension("part");
    std::fs::write(&new, serde_json::to_vec_pretty(written)?)?;
    std::fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One start: applies what it would write, and remembers.
    fn start(state: &mut ControlState, written: &mut Written, wanted: &[Wanted]) -> (usize, Vec<String>) {
        let (mut writes, mut left) = (0, Vec::new());
        for document in wanted {
            let name = name(document.1.kind(), &document.0);
            match step(state, written, document) {
                Step::Keep(revision) => {
                    written.insert(name, revision);
                }
                Step::Write(write) => {
                    writes += 1;
                    written.insert(name, state.apply(&write).unwrap());
                }
                Step::Leave => left.push(name),
            }
        }
        (writes, left)
    }

    fn documents(port: u16) -> Vec<Wanted> {
        wanted(&format!("http://127.0.0.1:{port}"), "http://127.0.0.1:8001").unwrap()
    }

    #[test]
    fn every_document_finds_what_it_names_and_the_second_start_writes_nothing() {
        let (mut state, mut written) = Default::default();
        let all = documents(8000);
        assert_eq!(start(&mut state, &mut written, &all), (all.len(), vec![]));
        assert_eq!(start(&mut state, &mut written, &all), (0, vec![]));
        let book = state.price_book().unwrap();
        for model in [LLAMA, MISTRAL] {
            for class in TokenClass::ALL {
                let key = PriceKey { model: model.parse().unwrap(), class, currency: "USD".parse().unwrap() };
                assert!(book.price(&key, ledger::time::Slot::of(ALWAYS)).is_some(), "{key:?}");
            }
        }
    }

    #[test]
    fn a_port_that_changed_is_written_and_what_a_person_changed_or_deleted_is_left() {
        let (mut state, mut written) = Default::default();
        start(&mut state, &mut written, &documents(8000));
        assert_eq!(start(&mut state, &mut written, &documents(9000)), (1, vec![]));

        let mut plan = state.get(Kind::Plan, TENANT).unwrap().clone();
        if let Document::Plan(plan) = &mut plan {
            plan.tokens_per_period = Some(7);
        }
        let change =
            |kind, id: &str, revision, document| Write { kind, id: id.into(), expected_revision: revision, document };
        state.apply(&change(Kind::Plan, TENANT, 1, Some(plan))).unwrap();
        state.apply(&change(Kind::Replica, "sim-llama", 2, None)).unwrap();
        let (writes, left) = start(&mut state, &mut written, &documents(9500));
        assert_eq!((writes, left), (0, vec!["replica/sim-llama".to_owned(), "plan/demo".to_owned()]));
    }

    #[test]
    fn without_its_memory_it_changes_nothing_that_is_there() {
        let mut state = ControlState::default();
        start(&mut state, &mut Written::new(), &documents(8000));
        assert_eq!(start(&mut state, &mut Written::new(), &documents(9000)), (0, vec!["replica/sim-llama".to_owned()]));
    }
}
