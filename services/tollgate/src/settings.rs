//! All sections of the settings, composed; a role is held to the sections that it uses.

use std::marker::PhantomData;

use runtime::config::Validate;
use runtime::{telemetry, traces};
use serde::{Deserialize, Deserializer};
use sql::ClickHouseSettings;
use stream::kafka::KafkaSettings;
use stream::spool::SpoolSettings;

use crate::canary::settings::CanarySettings;
use crate::dev::settings::DevSettings;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    pub(crate) log: telemetry::Settings,
    pub(crate) telemetry: traces::Settings,
    pub(crate) kafka: KafkaSettings,
    pub(crate) clickhouse: ClickHouseSettings,
    pub(crate) spool: SpoolSettings,
    pub(crate) gateway: gateway::Settings,
    pub(crate) fold: fold::Settings,
    pub(crate) billing: billing::Settings,
    pub(crate) canary: CanarySettings,
    pub(crate) dev: DevSettings,
}

/// A section that not every role uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Telemetry,
    Kafka,
    ClickHouse,
    Spool,
    Gateway,
    Fold,
    Billing,
    Canary,
    Dev,
}

impl Section {
    /// All of them.
    pub(crate) const ALL: &'static [Self] = &[
        Self::Telemetry,
        Self::Kafka,
        Self::ClickHouse,
        Self::Spool,
        Self::Gateway,
        Self::Fold,
        Self::Billing,
        Self::Canary,
        Self::Dev,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Telemetry => "telemetry",
            Self::Kafka => "kafka",
            Self::ClickHouse => "clickhouse",
            Self::Spool => "spool",
            Self::Gateway => "gateway",
            Self::Fold => "fold",
            Self::Billing => "billing",
            Self::Canary => "canary",
            Self::Dev => "dev",
        }
    }
}

impl Settings {
    fn problems(&self, section: Section) -> Vec<String> {
        let problems = match section {
            Section::Telemetry => self.telemetry.validate(),
            Section::Kafka => self.kafka.validate(),
            Section::ClickHouse => self.clickhouse.validate(),
            Section::Spool => self.spool.validate(),
            Section::Gateway => self.gateway.validate(),
            Section::Fold => self.fold.validate(),
            Section::Billing => self.billing.validate(),
            Section::Canary => self.canary.validate(),
            Section::Dev => self.dev.validate(),
        };
        in_section(section.name(), problems)
    }
}

/// Says in which section it is wrong, in one way for all: `[kafka] brokers must be ...`.
pub(crate) fn in_section(name: &str, problems: Vec<String>) -> Vec<String> {
    let inner = format!("{name}.");
    problems.iter().map(|problem| format!("[{name}] {}", problem.strip_prefix(&inner).unwrap_or(problem))).collect()
}

/// What a process is, as far as settings go: the sections that must be sound before it starts. Whatever else the file holds
/// is for other roles, and only its spelling and its types are checked.
pub(crate) trait Uses {
    const SECTIONS: &'static [Section];

    /// What it cannot be without, and has no default for.
    fn missing(_: &Settings) -> Vec<String> {
        Vec::new()
    }
}

/// The settings of a process that [`Uses`] some of them.
#[derive(Debug)]
pub(crate) struct For<U> {
    pub(crate) all: Settings,
    uses: PhantomData<U>,
}

impl<'de, U> Deserialize<'de> for For<U> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Settings::deserialize(deserializer).map(|all| Self { all, uses: PhantomData })
    }
}

impl<U: Uses> Validate for For<U> {
    fn validate(&self) -> Vec<String> {
        let mut problems = in_section("log", self.all.log.validate());
        problems.extend(U::SECTIONS.iter().flat_map(|section| self.all.problems(*section)));
        problems.extend(U::missing(&self.all));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Everything;
    impl Uses for Everything {
        const SECTIONS: &'static [Section] = Section::ALL;
    }

    struct OnlyKafka;
    impl Uses for OnlyKafka {
        const SECTIONS: &'static [Section] = &[Section::Kafka];
    }

    fn wrong() -> Settings {
        let mut settings = Settings::default();
        settings.kafka.brokers = "a:1,b".into();
        settings.clickhouse.url = "localhost:8123".into();
        settings
    }

    #[test]
    fn defaults_are_sound_and_all_that_is_wrong_is_named_at_once() {
        let sound = For::<Everything> { all: Settings::default(), uses: PhantomData };
        assert_eq!(sound.validate(), Vec::<String>::new());
        let said = For::<Everything> { all: wrong(), uses: PhantomData }.validate().join("\n");
        assert!(said.contains("[kafka] brokers") && said.contains("[clickhouse] url"), "{said}");
    }

    #[test]
    fn a_role_is_not_held_to_sections_that_it_does_not_use() {
        let said = For::<OnlyKafka> { all: wrong(), uses: PhantomData }.validate().join("\n");
        assert!(said.contains("[kafka] brokers") && !said.contains("clickhouse"), "{said}");
    }
}
