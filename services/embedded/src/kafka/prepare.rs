//! Brings the data folder into the state in which Kafka can start: configuration, cluster id, formatted store.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{KafkaError, KafkaSettings};
use crate::{port, process};

const TEMPLATE: &str = include_str!("server.properties");
const LOG4J: &str = include_str!("log4j2.xml");

/// The command line that runs the broker in the foreground, for whoever supervises it.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its working folder: the data folder.
    pub folder: PathBuf,
    /// Where its log file is.
    pub log: PathBuf,
}

impl Launch {
    /// As a command that can be started.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir(&self.folder);
        command
    }
}

/// Checks Java and the jars, formats the store if it is new, writes the configuration, and says how to start the broker.
/// Safe to repeat; a run that was cut off leaves nothing half made.
///
/// # Errors
/// What is missing, and what to do.
pub async fn prepare(settings: &KafkaSettings) -> Result<Launch, KafkaError> {
    let settings = settings.clone();
    let folder = settings.data_dir.clone();
    tokio::task::spawn_blocking(move || blocking(&settings))
        .await
        .map_err(|error| KafkaError::File { path: folder, source: std::io::Error::other(error) })?
}

fn blocking(settings: &KafkaSettings) -> Result<Launch, KafkaError> {
    check(settings)?;
    let lib = settings.tools_dir.join("kafka/lib");
    let lib = std::path::absolute(&lib).map_err(KafkaError::file(&lib))?;
    if !holds_kafka(&lib) {
        return Err(KafkaError::JarsMissing(lib));
    }
    let version = java_version(&settings.java)?;
    std::fs::create_dir_all(&settings.data_dir).map_err(KafkaError::file(&settings.data_dir))?;
    let folder = std::path::absolute(&settings.data_dir).map_err(KafkaError::file(&settings.data_dir))?;

    let free = |address| port::until_free(address).map_err(|error| taken(address, error));
    free(settings.listen)?;
    let controller = match settings.controller {
        Some(address) => free(address).map(|()| address)?,
        None => port::any_free(settings.listen).map_err(KafkaError::file(&folder))?,
    };
    write(&folder.join("log4j2.xml"), LOG4J)?;
    write(&folder.join("server.properties"), &properties(settings, controller, "log"))?;

    let launch = Launch {
        program: settings.java.clone(),
        arguments: arguments(settings, &lib, &version, "kafka.Kafka", &["server.properties"]),
        log: folder.join("kafka.log"),
        folder: folder.clone(),
    };
    if is_empty(&folder.join("log")) {
        format(settings, controller, &lib, &version, &folder)?;
    }
    Ok(launch)
}

fn check(settings: &KafkaSettings) -> Result<(), KafkaError> {
    if settings.listen.ip().is_unspecified() || settings.listen.port() == 0 {
        return Err(KafkaError::Settings(format!(
            "it tells clients the address {}, to which they cannot connect; choose one address and port",
            settings.listen
        )));
    }
    match settings.properties.iter().find(|(name, value)| name.contains(['\n', '=']) || value.contains('\n')) {
        Some((name, _)) => Err(KafkaError::Settings(format!("the property {name:?} cannot be written in one line"))),
        None => Ok(()),
    }
}

fn holds_kafka(lib: &Path) -> bool {
    std::fs::read_dir(lib).is_ok_and(|mut jars| {
        jars.any(|jar| jar.is_ok_and(|jar| jar.file_name().to_string_lossy().starts_with("kafka_2.13-")))
    })
}

/// The full version ("17.0.15"), after seeing that it is new enough.
fn java_version(java: &Path) -> Result<String, KafkaError> {
    let output = Command::new(java)
        .arg("-version")
        .output()
        .map_err(|source| KafkaError::NoJava { java: java.to_owned(), source })?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let version = said.split('"').nth(1).unwrap_or_default().to_owned();
    match version.split(['.', '-', '+']).next().and_then(|major| major.parse::<u32>().ok()) {
        Some(17..) => Ok(version),
        _ => Err(KafkaError::OldJava { java: java.to_owned(), said: said.trim().to_owned() }),
    }
}

fn taken(address: SocketAddr, source: std::io::Error) -> KafkaError {
    if source.kind() == ErrorKind::AddrInUse {
        return KafkaError::PortTaken(address);
    }
    KafkaError::File { path: address.to_string().into(), source }
}

fn properties(settings: &KafkaSettings, controller: SocketAddr, log: &str) -> String {
    let listen = settings.listen;
    let mut text = TEMPLATE.to_owned();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "\n# From the settings.\n\
         listeners=PLAINTEXT://{listen},CONTROLLER://{controller}\n\
         advertised.listeners=PLAINTEXT://{listen}\n\
         controller.quorum.voters=1@{controller}\n\
         log.dirs={log}\n"
    );
    for (name, value) in &settings.properties {
        let _ = writeln!(text, "{name}={}", value.replace('\\', "\\\\"));
    }
    text
}

/// An archive of loaded classes, beside the jars, makes starts faster. One of another Java version is not looked at, and
/// Java ignores one of other jars.
fn archive(lib: &Path, version: &str) -> PathBuf {
    lib.with_file_name(format!("classes-{version}.jsa"))
}

/// Java's arguments.
fn arguments(settings: &KafkaSettings, lib: &Path, version: &str, class: &str, rest: &[&str]) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec![
        "-Xms64m".into(),
        format!("-Xmx{}m", settings.heap_mib).into(),
        "-XX:+ExitOnOutOfMemoryError".into(),
        "-Xshare:auto".into(),
        "-Xlog:cds=off".into(),
        "-Xlog:cds+dynamic=off".into(),
        "-Dlog4j2.configurationFile=log4j2.xml".into(),
    ];
    let archive = archive(lib, version);
    if archive.exists() {
        arguments.push(joined("-XX:SharedArchiveFile=", &archive, ""));
    }
    arguments.extend(["-cp".into(), joined("", lib, "/*"), class.into()]);
    arguments.extend(rest.iter().map(OsString::from));
    arguments
}

/// The archive of classes that the tool which makes the store leaves behind. The broker itself leaves none: it would need
/// seconds for that when it is to stop.
struct NewArchive {
    part: PathBuf,
    whole: PathBuf,
}

impl NewArchive {
    /// `None` if there is one, or where none can be written (Java would end with an error).
    fn begin(lib: &Path, version: &str) -> Option<Self> {
        let whole = archive(lib, version);
        let part = whole.with_extension(format!("{}.part", uuid::Uuid::new_v4().simple()));
        (!whole.exists() && std::fs::File::create(&part).is_ok()).then_some(Self { part, whole })
    }

    fn argument(&self) -> OsString {
        joined("-XX:ArchiveClassesAtExit=", &self.part, "")
    }

    /// Puts it in its place if Java ended well: whole and on disk, since Java aborts on one whose end is missing. Without
    /// it everything works, only more slowly.
    fn finish(self, well: bool) {
        let kept =
            || std::fs::File::open(&self.part)?.sync_all().and_then(|()| std::fs::rename(&self.part, &self.whole));
        if !well || kept().is_err() {
            let _ = std::fs::remove_file(&self.part);
        }
    }
}

fn joined(before: &str, path: &Path, after: &str) -> OsString {
    let mut whole = OsString::from(before);
    whole.push(path);
    whole.push(after);
    whole
}

/// True if there is nothing yet. What is there is never made anew: it may be data.
fn is_empty(store: &Path) -> bool {
    match std::fs::read_dir(store) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// Makes the empty store beside its place and renames it, so that it is there whole or not at all.
fn format(
    settings: &KafkaSettings,
    controller: SocketAddr,
    lib: &Path,
    version: &str,
    folder: &Path,
) -> Result<(), KafkaError> {
    let new = folder.join("log.new");
    match std::fs::remove_dir_all(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(KafkaError::file(&new)(error)),
        _ => {}
    }
    let (id, config) = (cluster_id(folder)?, "format.properties");
    write(&folder.join(config), &properties(settings, controller, "log.new"))?;
    let rest = ["format", "--cluster-id", &id, "--config", config];
    let archive = NewArchive::begin(lib, version);
    let mut command = Command::new(&settings.java);
    command.args(archive.as_ref().map(NewArchive::argument));
    command.args(arguments(settings, lib, version, "kafka.tools.StorageTool", &rest)).current_dir(folder);
    // One that outlived us would write into what the next start makes.
    process::die_with_parent(&mut command);
    let output = command.output().map_err(|source| KafkaError::NoJava { java: settings.java.clone(), source })?;
    if let Some(archive) = archive {
        archive.finish(output.status.success());
    }
    if !output.status.success() || !new.join("meta.properties").exists() {
        let said = [output.stdout, output.stderr].concat();
        return Err(KafkaError::Format { folder: folder.to_owned(), output: process::tail(&said, 15) });
    }
    let _ = std::fs::remove_file(folder.join(config));
    std::fs::rename(&new, folder.join("log")).map_err(KafkaError::file(folder.join("log")))
}

/// The cluster's id: made once, kept for ever.
fn cluster_id(folder: &Path) -> Result<String, KafkaError> {
    let file = folder.join("cluster-id");
    match std::fs::read_to_string(&file) {
        Ok(id) if is_argument(id.trim()) => Ok(id.trim().to_owned()),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(KafkaError::file(&file)(error)),
        _ => {
            let new = || url_base64(uuid::Uuid::new_v4().as_bytes());
            let mut id = new();
            while !is_argument(&id) {
                id = new();
            }
            write(&file, &id)?;
            Ok(id)
        }
    }
}

/// Whether StorageTool can take it as an argument's value: one of 64 ids begins like an option. Kafka itself makes none of these.
fn is_argument(id: &str) -> bool {
    !id.is_empty() && !id.starts_with('-')
}

/// Kafka writes uuids so: base64 for URLs, no padding.
fn url_base64(bytes: &[u8; 16]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let number = u128::from_be_bytes(*bytes);
    // 128 bits are 21 times six bits and two more.
    let digits = (0..21).map(|i| (number >> (122 - 6 * i)) & 63).chain([(number & 3) << 4]);
    digits.map(|digit| char::from(ALPHABET[digit as usize])).collect()
}

/// Writes a file whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), KafkaError> {
    let new = path.with_extension("part");
    std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path)).map_err(KafkaError::file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_ids_are_written_as_kafka_writes_them() {
        assert_eq!(url_base64(&[0; 16]), "AAAAAAAAAAAAAAAAAAAAAA");
        // org.apache.kafka.common.Uuid.METADATA_TOPIC_ID, and all ones.
        assert_eq!(url_base64(&1_u128.to_be_bytes()), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(url_base64(&[255; 16]), "_____________________w");
    }

    #[test]
    fn a_cluster_id_is_made_once_and_never_looks_like_an_option() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cluster-id"), "-AAAAAAAAAAAAAAAAAAAAA").unwrap();
        let id = cluster_id(folder.path()).unwrap();
        assert!(!id.starts_with('-') && id.len() == 22, "{id}");
        assert_eq!(cluster_id(folder.path()).unwrap(), id);
        for _ in 0..2_000 {
            std::fs::remove_file(folder.path().join("cluster-id")).unwrap();
            assert!(!cluster_id(folder.path()).unwrap().starts_with('-'));
        }
    }

    #[tokio::test]
    async fn missing_parts_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = KafkaSettings::new(folder.path().join("data"), folder.path(), 1);
        assert!(prepare(&settings).await.unwrap_err().to_string().contains("run make setup (deploy/local/kafka.sh"));
        std::fs::create_dir_all(folder.path().join("kafka/lib")).unwrap();
        std::fs::write(folder.path().join("kafka/lib/kafka_2.13-0.jar"), "").unwrap();
        settings.java = "/nowhere/java".into();
        assert!(prepare(&settings).await.unwrap_err().to_string().contains("install Java 17"));
        settings.java = "/bin/true".into();
        assert!(matches!(prepare(&settings).await, Err(KafkaError::OldJava { .. })));
        settings.listen = "0.0.0.0:9092".parse().unwrap();
        assert!(matches!(prepare(&settings).await, Err(KafkaError::Settings(_))));
    }
}
