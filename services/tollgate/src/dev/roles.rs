//! Starts the roles, as a user would start them, and waits until each says that it is ready.

use std::time::Duration;

use super::children::{Children, Stage};
use super::layout::Layout;
use super::ports::Part;
use super::terminal::Step;
use crate::web;

/// How long a role may take: it reads the control log, and the fold proves where it stands.
const LIMIT: Duration = Duration::from_secs(60);

/// Subcommand, place in the order of stopping, port.
const ROLES: [(&str, Stage, Part); 3] = [
    ("fold", Stage::Fold, Part::Fold),
    ("billing", Stage::Billing, Part::Billing),
    ("gateway", Stage::Gateway, Part::Gateway),
];

/// Starts all of them at once.
pub(crate) async fn start(layout: &Layout, children: &Children) -> Result<(), String> {
    let step = Step::begin(ROLES.map(|(name, ..)| name).join(", "));
    for (started, part) in ROLES.map(|(name, stage, part)| (children.start(stage, layout.role(name)), part)) {
        let url = format!("{}/readyz", layout.ports.url(part));
        started.until_ready(LIMIT, async || web::ready(&url).await.map_err(|why| why.to_string())).await?;
    }
    step.done();
    // It is not waited for: what it has to say of the others, it says in its own time.
    drop(children.start(Stage::Gateway, layout.role("canary")));
    Ok(())
}
