//! What doctor says of the tools of `tollgate dev`; the roles alone need none of them.

use std::path::Path;

use embedded::kafka::KafkaSettings;

use super::report::Report;

/// Looks for Java, Kafka's jars and the ClickHouse engine. Missing ones are no fault of a host that runs a role.
pub(crate) async fn check(report: &mut Report, tools: &Path) {
    let mut missing = Vec::new();
    let java = KafkaSettings::new(tools, tools, 1).java;
    let answers = tokio::process::Command::new(&java)
        .arg("-version")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .await
        .is_ok_and(|status| status.success());
    if !answers {
        missing.push(format!("{} (Java 17 or newer, for Kafka)", java.display()));
    }
    let jars = tools.join("kafka/lib");
    let has_jars = std::fs::read_dir(&jars).is_ok_and(|mut jars| {
        jars.any(|jar| jar.is_ok_and(|jar| jar.file_name().to_string_lossy().starts_with("kafka_")))
    });
    if !has_jars {
        missing.push(format!("Kafka's jars in {}", jars.display()));
    }
    let engine = embedded::clickhouse::library_in(tools);
    if !engine.is_file() {
        missing.push(format!("the ClickHouse engine {}", engine.display()));
    }
    if missing.is_empty() {
        report.ok("the tools of tollgate dev are here");
    } else {
        report.warn(
            format!("tollgate dev cannot run here, these are missing: {}", missing.join(", ")),
            "run make setup, which names what to install; a host that only runs roles needs none of them",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    #[tokio::test]
    async fn missing_tools_are_named_and_are_no_fault() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = Report::quiet();
        check(&mut report, folder.path()).await;
        assert_eq!((report.count(Level::Warn), report.count(Level::Fail)), (1, 0));
        let said = report.text();
        assert!(said.contains("kafka/lib") && said.contains("libchdb.so") && said.contains("make setup"), "{said}");
    }
}
