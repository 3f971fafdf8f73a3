//! The ports of `dev`: who has which, whether they are free, and if not, who holds them.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use crate::cli;

/// What listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Gateway,
    Billing,
    Fold,
    Kafka,
    ClickHouse,
    Registry,
    Llama,
    Mistral,
    Canary,
}

/// All parts, in the order in which `--ports-from` counts.
pub(crate) const PARTS: [Part; 9] = [
    Part::Gateway,
    Part::Billing,
    Part::Fold,
    Part::Kafka,
    Part::ClickHouse,
    Part::Registry,
    Part::Llama,
    Part::Mistral,
    Part::Canary,
];

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Gateway => "the gateway",
            Self::Billing => "billing",
            Self::Fold => "the fold",
            Self::Kafka => "Kafka",
            Self::ClickHouse => "ClickHouse",
            Self::Registry => "the schema registry",
            Self::Llama => "the simulated vLLM of llama",
            Self::Mistral => "the simulated vLLM of mistral",
            Self::Canary => "the canary",
        }
    }

    fn option(self) -> &'static str {
        match self {
            Self::Gateway => "--gateway-port",
            Self::Billing => "--billing-port",
            Self::Fold => "--fold-port",
            Self::Kafka => "--kafka-port",
            Self::ClickHouse => "--clickhouse-port",
            Self::Registry => "--registry-port",
            Self::Llama => "--llama-port",
            Self::Mistral => "--mistral-port",
            Self::Canary => "--canary-port",
        }
    }

    /// The key in `[dev]`.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Gateway => "gateway_port",
            Self::Billing => "billing_port",
            Self::Fold => "fold_port",
            Self::Kafka => "kafka_port",
            Self::ClickHouse => "clickhouse_port",
            Self::Registry => "registry_port",
            Self::Llama => "llama_port",
            Self::Mistral => "mistral_port",
            Self::Canary => "canary_port",
        }
    }

    pub(crate) fn option_of(self, options: &cli::Ports) -> Option<u16> {
        match self {
            Self::Gateway => options.gateway_port,
            Self::Billing => options.billing_port,
            Self::Fold => options.fold_port,
            Self::Kafka => options.kafka_port,
            Self::ClickHouse => options.clickhouse_port,
            Self::Registry => options.registry_port,
            Self::Llama => options.llama_port,
            Self::Mistral => options.mistral_port,
            Self::Canary => options.canary_port,
        }
    }
}

/// A port per part, in the order of [`PARTS`]; 0 is any free one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ports(pub(crate) [u16; PARTS.len()]);

impl Ports {
    pub(crate) fn of(&self, part: Part) -> u16 {
        self.0[part as usize]
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn address(&self, part: Part) -> String {
        format!("127.0.0.1:{}", self.of(part))
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self, part: Part) -> String {
        format!("http://{}", self.address(part))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Part, u16)> {
        PARTS.into_iter().zip(self.0)
    }

    /// Says which two parts were given the same port.
    pub(crate) fn given_twice(&self) -> Option<String> {
        for (at, (part, port)) in self.iter().enumerate() {
            if let Some((other, _)) = self.iter().take(at).find(|(_, earlier)| *earlier == port && port != 0) {
                return Some(format!(
                    "port {port} was given to both {} and {}; choose another with {} or {}",
                    other.name(),
                    part.name(),
                    other.option(),
                    part.option()
                ));
            }
        }
        None
    }

    /// Puts a free port in place of each 0. All are held until the last is chosen, so no two are the same.
    ///
    /// # Errors
    /// When the host has no port left.
    pub(crate) fn chosen(mut self) -> std::io::Result<Self> {
        let mut held = Vec::new();
        for port in self.0.iter_mut().filter(|port| **port == 0) {
            let listener = TcpListener::bind(("127.0.0.1", 0))?;
            *port = listener.local_addr()?.port();
            held.push(listener);
        }
        Ok(self)
    }

    /// Says in words which of the ports are taken, by whom, and what to do. `None`: all are free.
    ///
    /// Waits a little for ports of children that were killed a moment ago.
    pub(crate) async fn taken(&self) -> Option<String> {
        let mut taken = Vec::new();
        for _ in 0..20 {
            taken = self.iter().filter(|(_, port)| !is_free(*port)).collect();
            if taken.is_empty() {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut said = String::new();
        for (part, port) in taken {
            let holder = holder_of(port).unwrap_or_else(|| "another process".into());
            let (what, option) = (part.name(), part.option());
            let _ = writeln!(
                said,
                "port {port} for {what} is taken by {holder}; stop it, or choose another with {option} PORT"
            );
        }
        Some(said.trim_end().to_owned())
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).is_ok()
}

/// The process that listens on the port, as far as this user may see it.
fn holder_of(port: u16) -> Option<String> {
    const LISTENING: &str = "0A";
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let table = std::fs::read_to_string(table).ok()?;
        table.lines().skip(1).find_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let local = u16::from_str_radix(fields.get(1)?.rsplit(':').next()?, 16).ok()?;
            (local == port && *fields.get(3)? == LISTENING).then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
        })
    })?;
    let socket = format!("socket:[{inode}]");
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let numbered = process.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit());
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        if !numbered {
            continue;
        }
        let holds =
            |entry: std::fs::DirEntry| std::fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == &*socket);
        if descriptors.flatten().any(holds) {
            let pid = process.file_name().to_string_lossy().into_owned();
            let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let short: String = command.trim().chars().take(60).collect();
            return Some(format!("process {pid} ({short})"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any() -> Ports {
        Ports([0; PARTS.len()]).chosen().unwrap()
    }

    #[tokio::test]
    async fn a_taken_port_names_its_holder_and_the_option() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut ports = any();
        ports.0[Part::Gateway as usize] = port;
        let said = ports.taken().await.unwrap();
        assert!(
            said.contains(&format!("port {port} for the gateway is taken by process {}", std::process::id())),
            "{said}"
        );
        assert!(said.contains("--gateway-port PORT"), "{said}");
        drop(listener);
        assert!(ports.taken().await.is_none_or(|said| !said.contains(&port.to_string())));
    }

    #[test]
    fn every_part_has_its_own_port_at_its_own_place() {
        let ports = any();
        assert_eq!(ports.given_twice(), None);
        assert!(ports.iter().all(|(part, port)| port != 0 && ports.of(part) == port));
    }
}
