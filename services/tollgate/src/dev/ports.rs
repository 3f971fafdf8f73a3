//! Whether a port is free, and if not, who holds it.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// Says in words which of the ports are taken, by whom, and what to do. `None`: all are free.
///
/// Waits a little for ports of children that were killed a moment ago.
pub(crate) async fn taken(ports: &[(&str, &str, u16)]) -> Option<String> {
    let mut taken = Vec::new();
    for _ in 0..20 {
        taken = ports.iter().filter(|(_, _, port)| !is_free(*port)).collect();
        if taken.is_empty() {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut said = String::new();
    for (what, option, port) in taken {
        let holder = holder_of(*port).unwrap_or_else(|| "another process".into());
        let _ = writeln!(
            said,
            "port {port} for {what} is taken by {holder}; stop it, or choose another with {option} PORT"
        );
    }
    Some(said.trim_end().to_owned())
}

/// Says which two parts were given the same port.
pub(crate) fn given_twice(ports: &[(&str, &str, u16)]) -> Option<String> {
    for (at, (what, option, port)) in ports.iter().enumerate() {
        if let Some((other, other_option, _)) = ports[..at].iter().find(|(_, _, earlier)| earlier == port) {
            return Some(format!(
                "port {port} was given to both {other} and {what}; choose another with {other_option} or {option}"
            ));
        }
    }
    None
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

    #[tokio::test]
    async fn a_taken_port_names_its_holder_and_the_option() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let said = taken(&[("the gateway", "--gateway-port", port)]).await.unwrap();
        assert!(
            said.contains(&format!("port {port} for the gateway is taken by process {}", std::process::id())),
            "{said}"
        );
        assert!(said.contains("--gateway-port PORT"), "{said}");
        drop(listener);
        assert_eq!(taken(&[("the gateway", "--gateway-port", port)]).await, None);
    }

    #[test]
    fn one_port_for_two_is_refused() {
        let said = given_twice(&[("Kafka", "--kafka-port", 1), ("billing", "--billing-port", 1)]).unwrap();
        assert!(said.contains("both Kafka and billing"), "{said}");
        assert_eq!(given_twice(&[("Kafka", "--kafka-port", 1), ("billing", "--billing-port", 2)]), None);
    }
}
