//! `[gateway]` of the configuration.

mod cors;
mod jwt;
mod limits;
mod manners;
mod overload;
mod queue;
mod redis;
mod routing;
mod telemetry;
mod upstream;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use runtime::config::{Validate, byte_size, duration};
use runtime::tls::TlsSettings;
use serde::{Deserialize, Serialize};

pub use cors::CorsSettings;
pub use jwt::JwtSettings;
pub use limits::LimitSettings;
pub use manners::Manners;
pub use overload::Overload;
pub use queue::{FloorPercent, QueueSettings};
pub use redis::RedisSettings;
pub use routing::{Ejection, Guard, Routing, RoutingPolicy};
pub use telemetry::{AccessLog, Telemetry};
pub use upstream::{UpstreamKey, UpstreamSettings};

/// See the module. Each setting has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where clients are served, and `/healthz`, `/readyz`, `/metrics`, unless `admin_listen` is set.
    pub listen: SocketAddr,
    /// Where `/healthz`, `/readyz` and `/metrics` are served, out of the reach of clients. Always without TLS.
    pub admin_listen: Option<SocketAddr>,
    /// TLS towards clients; none if absent.
    pub tls: Option<TlsSettings>,
    /// Web pages that may call from a browser.
    pub cors: CorsSettings,
    /// How replicas are trusted, and the keys that they want.
    pub upstream: UpstreamSettings,
    /// Whether each tenant has a part of its own in the prefix caches of engines that can (vLLM, SGLang). Else a tenant could
    /// tell by the time of an answer what another has sent; but prompts that all begin with are read once for all.
    pub isolate_prefix_caches: bool,
    /// Issuers whose tokens are taken in place of API keys.
    pub jwt: Vec<JwtSettings>,
    /// A name of this gateway for people, under which its spool is registered.
    pub name: String,
    /// Connections are served by so many threads; 0: one for each core.
    pub threads: usize,
    /// A longer request body is refused with 413, unread.
    #[serde(with = "byte_size")]
    pub max_body_bytes: u64,
    /// A longer answer that is not streamed, or a longer event of a stream, is taken for a failure of the replica.
    #[serde(with = "byte_size")]
    pub max_answer_bytes: u64,
    /// `max_tokens` that is sent upstream when a client gives none and its plan limits tokens. Less is sent when less is
    /// left of the limit. (Completions have OpenAI's own default of 16.)
    pub default_max_tokens: u64,
    /// Tokens that a chat template adds to the bytes of a prompt at most: beginning of text, a system preamble. The input
    /// of a request is bounded by its prompt's bytes of JSON and this, for each prompt.
    pub template_overhead_tokens: u64,
    /// Tokens that an image, a sound, a video or a file in a prompt stands for at most. Its bytes do not bound them: an
    /// address is short, and a picture of one colour packs well.
    pub media_part_tokens: u64,
    /// Tries at different replicas, as long as no byte of an answer has come.
    pub max_attempts: u32,
    /// Readiness is taken back so long before the listener closes, so that balancers stop sending first.
    #[serde(with = "duration")]
    pub drain_notice: Duration,
    /// Open requests may finish for so many seconds when the gateway stops; the rest is ended as `drained`.
    pub drain_seconds: u64,
    /// Replicas are asked for their health this often.
    #[serde(with = "duration")]
    pub health_interval: Duration,
    /// A replica that does not answer for its health within this is down.
    #[serde(with = "duration")]
    pub health_timeout: Duration,
    /// How long each step of a request may take.
    pub deadlines: Deadlines,
    /// Which replica gets a request.
    pub routing: Routing,
    /// How requests wait, and who goes next.
    pub queue: QueueSettings,
    /// What is shed before memory grows.
    pub overload: Overload,
    /// What limits that bend are asked for.
    pub limits: LimitSettings,
    /// How slow answers and slow clients are dealt with.
    pub manners: Manners,
    /// What is said of each request, and how finely it is measured.
    pub telemetry: Telemetry,
    /// Where limits are kept together with other gateways; absent, each gateway keeps them by itself.
    pub redis: Option<RedisSettings>,
}

/// `[gateway.deadlines]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Deadlines {
    /// A client's request body.
    #[serde(with = "duration")]
    pub body: Duration,
    /// Connecting to a replica.
    #[serde(with = "duration")]
    pub connect: Duration,
    /// The first byte of a streamed answer, counted from the attempt's begin.
    #[serde(with = "duration")]
    pub first_byte: Duration,
    /// The first byte of an answer that is not streamed: the engine sends it when all tokens are there.
    #[serde(with = "duration")]
    pub whole_answer: Duration,
    /// Silence of a replica within an answer.
    #[serde(with = "duration")]
    pub idle: Duration,
    /// The whole request.
    #[serde(with = "duration")]
    pub total: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            admin_listen: None,
            tls: None,
            cors: CorsSettings::default(),
            jwt: Vec::new(),
            isolate_prefix_caches: true,
            upstream: UpstreamSettings::default(),
            name: "gateway".to_owned(),
            threads: 0,
            max_body_bytes: 16 << 20,
            max_answer_bytes: 64 << 20,
            default_max_tokens: 4096,
            template_overhead_tokens: 64,
            media_part_tokens: 16_384,
            max_attempts: 3,
            drain_notice: Duration::ZERO,
            drain_seconds: 30,
            health_interval: Duration::from_secs(1),
            health_timeout: Duration::from_secs(1),
            deadlines: Deadlines::default(),
            routing: Routing::default(),
            queue: QueueSettings::default(),
            overload: Overload::default(),
            limits: LimitSettings::default(),
            manners: Manners::default(),
            telemetry: Telemetry::default(),
            redis: None,
        }
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            body: Duration::from_secs(30),
            connect: Duration::from_secs(2),
            first_byte: Duration::from_secs(120),
            whole_answer: Duration::from_secs(600),
            idle: Duration::from_secs(60),
            total: Duration::from_secs(3600),
        }
    }
}

impl Settings {
    /// How long open requests may take to finish when the gateway stops.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

impl Settings {
    /// What is wrong with the settings; nothing if they can be used.
    pub fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |good: bool, said: &str| {
            if !good {
                wrong.push(format!("gateway.{said}"));
            }
        };
        check(!self.name.trim().is_empty(), "name must not be empty: it says whose a spool is");
        check(self.threads <= 1024, "threads must be at most 1024; 0 takes one for each core");
        check(
            (1 << 10..=1 << 30).contains(&self.max_body_bytes),
            "max_body_bytes must be 1KiB to 1GiB: bodies are held in memory",
        );
        check((1 << 16..=1 << 32).contains(&self.max_answer_bytes), "max_answer_bytes must be 64KiB to 4GiB");
        check((1..=1 << 30).contains(&self.default_max_tokens), "default_max_tokens must be 1 to 1073741824");
        check(self.template_overhead_tokens <= 1 << 20, "template_overhead_tokens must be at most 1048576");
        check(self.media_part_tokens <= 1 << 30, "media_part_tokens must be at most 1073741824");
        check((1..=16).contains(&self.max_attempts), "max_attempts must be 1 to 16");
        check(self.drain_seconds <= 3600, "drain_seconds must be at most 3600");
        let d = &self.deadlines;
        for (name, time) in [
            ("health_interval", self.health_interval),
            ("health_timeout", self.health_timeout),
            ("deadlines.body", d.body),
            ("deadlines.connect", d.connect),
            ("deadlines.first_byte", d.first_byte),
            ("deadlines.whole_answer", d.whole_answer),
            ("deadlines.idle", d.idle),
            ("deadlines.total", d.total),
        ] {
            let day = Duration::from_secs(86_400);
            check((Duration::from_millis(1)..=day).contains(&time), &format!("{name} must be 1ms to 1d"));
        }
        for (section, problems) in [("manners", self.manners.validate()), ("telemetry", self.telemetry.validate())] {
            problems.iter().for_each(|problem| check(false, &format!("{section}.{problem}")));
        }
        let parts = [
            self.routing.validate(),
            self.queue.validate(self.max_body_bytes),
            self.overload.validate(self.max_body_bytes),
            self.limits.validate(),
            self.redis.as_ref().map(RedisSettings::validate).unwrap_or_default(),
        ];
        wrong.extend(parts.concat().into_iter().map(|said| format!("gateway.{said}")));
        wrong.extend(self.validate_access());
        wrong
    }

    /// What is wrong with who may use it, and how.
    fn validate_access(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.admin_listen.is_some_and(|admin| admin == self.listen && admin.port() != 0) {
            wrong.push("gateway.admin_listen must be another address or port than gateway.listen".to_owned());
        }
        let within = |section: &str, said: Vec<String>| {
            said.into_iter().map(move |said| format!("{section}.{said}")).collect::<Vec<_>>()
        };
        wrong.extend(self.tls.iter().flat_map(|tls| within("gateway.tls", tls.validate())));
        wrong.extend(within("gateway.cors", self.cors.validate()));
        wrong.extend(within("gateway.upstream", self.upstream.validate()));
        for (at, issuer) in self.jwt.iter().enumerate() {
            wrong.extend(within(&format!("gateway.jwt.{at}"), issuer.validate()));
            if self.jwt.iter().take(at).any(|before| before.issuer == issuer.issuer) {
                wrong.push(format!("gateway.jwt.{at}: another section is of the same issuer"));
            }
        }
        wrong
    }
}

impl Validate for Settings {
    fn validate(&self) -> Vec<String> {
        Self::validate(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_right_and_what_is_wrong_is_said_at_once() {
        assert_eq!(Settings::default().validate(), Vec::<String>::new());
        let mut bad = Settings { max_attempts: 0, default_max_tokens: 0, ..Settings::default() };
        bad.deadlines.total = Duration::ZERO;
        assert_eq!(bad.validate().len(), 3, "{:?}", bad.validate());
    }
}
