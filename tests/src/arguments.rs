//! What a benchmark is started with: names with values, as in `--rounds 2`.

/// The words behind the program's name.
#[derive(Debug)]
pub struct Arguments(Vec<String>);

impl Arguments {
    /// This process's. Cargo's own `--bench` is none.
    pub fn read() -> Self {
        Self(std::env::args().skip(1).filter(|argument| argument != "--bench").collect())
    }

    /// The value behind a name, if the name is there.
    pub fn of(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|argument| argument == name)?;
        Some(self.0.get(at + 1).unwrap_or_else(|| panic!("{name} needs a value")).as_str())
    }

    /// A number, or what it is without.
    pub fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> T {
        let read = |text: &str| text.parse().unwrap_or_else(|_| panic!("{name} takes a number, not {text:?}"));
        self.of(name).map_or(default, read)
    }

    /// Values with commas in between.
    pub fn list(&self, name: &str, default: &str) -> Vec<String> {
        self.of(name).unwrap_or(default).split(',').map(str::to_owned).collect()
    }
}
