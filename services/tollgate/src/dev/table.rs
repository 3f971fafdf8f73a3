//! What `dev` prints when everything is up: what is where, the keys, and something to try.

use std::time::Duration;

use super::demo::{ADMIN_KEY, KEY, TENANT, sha256};
use super::layout::{LLAMA, Layout, MISTRAL};
use super::ports::Part;
use super::terminal::{seconds, strong};
use crate::settings::Settings;

/// Of a system that runs with these settings.
pub(crate) fn table(layout: &Layout, settings: &Settings, took: Duration) -> String {
    let ports = &layout.ports;
    let (gateway, billing) = (ports.url(Part::Gateway), ports.url(Part::Billing));
    let ours = settings.billing.admin_key_sha256 == Some(sha256(ADMIN_KEY));
    let admin = if ours { ADMIN_KEY } else { "the one whose hash you set" }.to_owned();
    let rows = [
        ("OpenAI API", format!("{gateway}/v1")),
        ("console", format!("{billing}/")),
        ("billing API", format!("{billing}/api/v1")),
        ("Kafka", ports.address(Part::Kafka)),
        ("ClickHouse", ports.url(Part::ClickHouse)),
        ("schema registry", ports.url(Part::Registry)),
        ("simulated vLLM", format!("{} ({LLAMA}), {} ({MISTRAL})", ports.url(Part::Llama), ports.url(Part::Mistral))),
        ("canary", format!("{}/metrics", ports.url(Part::Canary))),
        ("API key", format!("{KEY} (tenant {TENANT})")),
        ("admin key", admin),
    ];
    let rows: String = rows.iter().map(|(what, value)| format!("  {what:<17}{value}\n")).collect();
    let title = strong("Tollgate is up");
    let (took, logs, config) = (seconds(took), layout.log("*").display().to_string(), layout.config());
    format!(
        "\n{title} ({took})\n\n{rows}\n\
         Chat:\n  \
         curl {gateway}/v1/chat/completions -H 'Authorization: Bearer {KEY}' -H 'Content-Type: application/json' \\\n    \
         -d '{{\"model\": \"{LLAMA}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'\n\
         What it used, within two seconds:\n  \
         curl '{billing}/api/v1/usage?tenant={TENANT}' -H 'Authorization: Bearer {KEY}'\n\
         With an OpenAI SDK:\n  \
         export OPENAI_BASE_URL={gateway}/v1 OPENAI_API_KEY={KEY}\n\n\
         Logs: {logs}\nSomething wrong: tollgate doctor --config {}",
        config.display(),
    )
}
