//! The settings that `dev` gives its roles: the user's own file, with what only `dev` can know put in.

use std::ffi::OsStr;
use std::path::Path;

use toml::{Table, Value};

/// A setting that `dev` puts in.
#[derive(Debug, Clone)]
pub(crate) struct Put {
    section: &'static str,
    key: &'static str,
    value: Value,
    rule: Rule,
}

/// What holds when the user has set it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// It is refused, with what to use instead.
    Decided(&'static str),
    /// The user's own holds.
    Proposed,
    /// It has been looked at already: this is what came of it.
    Resolved,
}

impl Put {
    pub(crate) fn decided(
        section: &'static str,
        key: &'static str,
        value: impl Into<Value>,
        instead: &'static str,
    ) -> Self {
        Self { section, key, value: value.into(), rule: Rule::Decided(instead) }
    }

    pub(crate) fn proposed(section: &'static str, key: &'static str, value: impl Into<Value>) -> Self {
        Self { section, key, value: value.into(), rule: Rule::Proposed }
    }

    pub(crate) fn resolved(section: &'static str, key: &'static str, value: impl Into<Value>) -> Self {
        Self { section, key, value: value.into(), rule: Rule::Resolved }
    }

    fn variable(&self) -> String {
        format!("TOLLGATE__{}__{}", self.section.to_uppercase(), self.key.to_uppercase())
    }
}

/// The user's file with everything put in. `is_set` says whether a variable of the environment is.
///
/// # Errors
/// What the user set although `dev` decides it: a setting that cannot take effect is refused, each with what to do instead.
pub(crate) fn composed(mut own: Table, puts: &[Put], is_set: impl Fn(&OsStr) -> bool) -> Result<Table, Vec<String>> {
    let mut refused = Vec::new();
    for put in puts {
        let variable = put.variable();
        let Put { section, key, .. } = put;
        let place = own.entry(*section).or_insert_with(|| Table::new().into());
        // A section that is no table is refused by whoever reads it as settings, in better words.
        let Some(table) = place.as_table_mut() else { continue };
        if let Rule::Decided(instead) = put.rule {
            if table.contains_key(*key) {
                refused.push(format!("[{section}] {key}: tollgate dev decides it; take it out, and use {instead}"));
            }
            if is_set(OsStr::new(&variable)) {
                refused.push(format!("the variable {variable}: tollgate dev decides it; unset it, and use {instead}"));
            }
        }
        if put.rule != Rule::Proposed || !table.contains_key(*key) {
            table.insert((*key).to_owned(), put.value.clone());
        }
    }
    if refused.is_empty() { Ok(own) } else { Err(refused) }
}

/// Reads the user's own file. It has been read as settings before, so it is TOML.
///
/// # Errors
/// When it went away or changed since.
pub(crate) fn own(file: Option<&Path>) -> Result<Table, String> {
    let Some(file) = file else { return Ok(Table::new()) };
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    text.parse().map_err(|_| format!("{} is not valid TOML", file.display()))
}

/// Writes it for the roles and for doctor, readable by this user alone: it may hold passwords.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn write(table: &Table, to: &Path) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let new = to.with_extension("part");
    let text = format!(
        "# Written anew at each start of tollgate dev. To change a setting, give dev a file of your own with --config.\n\n{table}"
    );
    let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&new, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn puts() -> [Put; 2] {
        [Put::decided("kafka", "brokers", "127.0.0.1:1", "--kafka-port"), Put::proposed("kafka", "partitions", 4)]
    }

    #[test]
    fn the_users_own_settings_stay_beside_what_dev_puts_in() {
        let own: Table = "[gateway]\nx = 1\n[kafka]\npartitions = 2\n".parse().unwrap();
        let table = composed(own, &puts(), |_| false).unwrap();
        assert_eq!(table["gateway"]["x"].as_integer(), Some(1));
        assert_eq!(table["kafka"]["partitions"].as_integer(), Some(2));
        assert_eq!(table["kafka"]["brokers"].as_str(), Some("127.0.0.1:1"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        write(&table, &file).unwrap();
        assert_eq!(super::own(Some(&file)).unwrap(), table);
    }

    #[test]
    fn a_setting_that_cannot_take_effect_is_refused() {
        let own: Table = "[kafka]\nbrokers = \"far:9092\"\n".parse().unwrap();
        let said = composed(own, &puts(), |name| name == "TOLLGATE__KAFKA__BROKERS").unwrap_err().join("\n");
        assert!(said.contains("[kafka] brokers") && said.contains("TOLLGATE__KAFKA__BROKERS"), "{said}");
        assert!(said.contains("--kafka-port"), "{said}");
    }
}
