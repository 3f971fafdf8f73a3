//! `[dev]`: where `tollgate dev` keeps things, its ports, the pace of its simulated vLLM; and what the command line puts over it.

use std::path::PathBuf;
use std::time::Duration;

use runtime::config::duration;
use serde::Deserialize;

use super::ports::{PARTS, Part, Ports};
use crate::cli;

/// The section. Options of the command line win over it.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DevSettings {
    /// Everything that is kept between starts.
    pub(crate) data_dir: PathBuf,
    /// Kafka's jars and the ClickHouse engine, as `make setup` fetched them.
    pub(crate) tools_dir: PathBuf,
    pub(crate) gateway_port: u16,
    pub(crate) billing_port: u16,
    pub(crate) fold_port: u16,
    pub(crate) kafka_port: u16,
    pub(crate) clickhouse_port: u16,
    pub(crate) registry_port: u16,
    pub(crate) llama_port: u16,
    pub(crate) mistral_port: u16,
    pub(crate) canary_port: u16,
    /// How long the simulated vLLM take to the first token.
    #[serde(with = "duration")]
    pub(crate) simulator_time_to_first_token: Duration,
    /// And between two tokens.
    #[serde(with = "duration")]
    pub(crate) simulator_time_per_output_token: Duration,
    /// After how many tokens their answers end by themselves.
    pub(crate) simulator_output_tokens: u32,
}

impl Default for DevSettings {
    fn default() -> Self {
        Self {
            data_dir: ".tollgate".into(),
            tools_dir: ".tools".into(),
            gateway_port: 8080,
            billing_port: 8081,
            fold_port: 8082,
            kafka_port: 9092,
            clickhouse_port: 8123,
            registry_port: 8085,
            llama_port: 8000,
            mistral_port: 8001,
            canary_port: 8083,
            simulator_time_to_first_token: Duration::from_millis(50),
            simulator_time_per_output_token: Duration::from_millis(5),
            simulator_output_tokens: 120,
        }
    }
}

impl DevSettings {
    pub(crate) fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.simulator_output_tokens == 0 {
            wrong.push("simulator_output_tokens must be at least 1".to_owned());
        }
        wrong.extend(self.ports().given_twice());
        wrong
    }

    /// The section with what the command line says over it.
    ///
    /// # Errors
    /// When `--ports-from` leaves no room for all of them.
    pub(crate) fn with(mut self, options: &cli::Dev) -> Result<Self, String> {
        if let Some(from) = options.ports.ports_from {
            let mut next = from;
            for part in PARTS {
                *self.port_mut(part) = next;
                if from != 0 {
                    next = next.checked_add(1).ok_or(format!(
                        "--ports-from {from} leaves no room for {} ports: use at most {}",
                        PARTS.len(),
                        usize::from(u16::MAX) - PARTS.len()
                    ))?;
                }
            }
        }
        for part in PARTS {
            if let Some(port) = part.option_of(&options.ports) {
                *self.port_mut(part) = port;
            }
        }
        let pace = &options.pace;
        self.simulator_time_to_first_token =
            pace.simulator_time_to_first_token.unwrap_or(self.simulator_time_to_first_token);
        self.simulator_time_per_output_token =
            pace.simulator_time_per_output_token.unwrap_or(self.simulator_time_per_output_token);
        self.simulator_output_tokens = pace.simulator_output_tokens.unwrap_or(self.simulator_output_tokens);
        self.data_dir = options.data_dir.clone().unwrap_or(self.data_dir);
        self.tools_dir = options.tools_dir.clone().unwrap_or(self.tools_dir);
        Ok(self)
    }

    /// The port of each part.
    pub(crate) fn ports(&self) -> Ports {
        let mut all = self.clone();
        Ports(PARTS.map(|part| *all.port_mut(part)))
    }

    fn port_mut(&mut self, part: Part) -> &mut u16 {
        match part {
            Part::Gateway => &mut self.gateway_port,
            Part::Billing => &mut self.billing_port,
            Part::Fold => &mut self.fold_port,
            Part::Kafka => &mut self.kafka_port,
            Part::ClickHouse => &mut self.clickhouse_port,
            Part::Registry => &mut self.registry_port,
            Part::Llama => &mut self.llama_port,
            Part::Mistral => &mut self.mistral_port,
            Part::Canary => &mut self.canary_port,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn resolved(arguments: &[&str]) -> Result<DevSettings, String> {
        let line = ["tollgate", "dev"].iter().chain(arguments);
        let cli::Command::Dev(options) = cli::Cli::try_parse_from(line).unwrap().command else { panic!("not dev") };
        DevSettings { fold_port: 7777, ..DevSettings::default() }.with(&options)
    }

    #[test]
    fn the_command_line_wins_over_the_section_and_a_single_port_over_the_range() {
        let settings = resolved(&["--gateway-port", "9"]).unwrap();
        assert_eq!((settings.gateway_port, settings.fold_port, settings.kafka_port), (9, 7777, 9092));
        let settings = resolved(&["--ports-from", "9500", "--kafka-port", "1", "--data-dir", "d"]).unwrap();
        assert_eq!((settings.gateway_port, settings.kafka_port, settings.mistral_port), (9500, 1, 9507));
        assert_eq!(settings.data_dir, PathBuf::from("d"));
        assert!(resolved(&["--ports-from", "65530"]).unwrap_err().contains("leaves no room"));
    }

    #[test]
    fn one_port_for_two_is_refused() {
        let settings = resolved(&["--kafka-port", "8081"]).unwrap();
        assert!(settings.validate().join("").contains("both billing and Kafka"), "{:?}", settings.validate());
        assert!(resolved(&["--ports-from", "0"]).unwrap().validate().is_empty(), "any free port is no clash");
    }
}
