//! The roles that a system under test may run, each as a process of its own.

/// What runs as a process of Tollgate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The inference path.
    Gateway,
    /// The log into ClickHouse.
    Fold,
    /// The API and the console.
    Billing,
    /// Another process that folds the same partitions. Not there unless a test starts it.
    SecondFold,
    /// Another fold of the group that shares the partitions: the second to the fourth. Not there unless a test starts it.
    SharingFold(u8),
    /// Another gateway in front of the same replicas, with a spool of its own. Not there unless a test starts it.
    SecondGateway,
    /// Sends tiny requests as a tenant of its own. Not there unless a test starts it.
    Canary,
}

impl Role {
    /// Those that every system has.
    pub const ALL: [Self; 3] = [Self::Gateway, Self::Fold, Self::Billing];

    /// Its name, in the log and on disk.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Fold => "fold",
            Self::Billing => "billing",
            Self::SecondFold => "second-fold",
            Self::SharingFold(2) => "fold-2",
            Self::SharingFold(3) => "fold-3",
            Self::SharingFold(_) => "fold-4",
            Self::SecondGateway => "second-gateway",
            Self::Canary => "canary",
        }
    }

    /// The subcommand.
    pub(crate) const fn subcommand(self) -> &'static str {
        match self {
            Self::SecondFold | Self::SharingFold(_) => Self::Fold.name(),
            Self::SecondGateway => Self::Gateway.name(),
            role => role.name(),
        }
    }
}
