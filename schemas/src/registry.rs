//! Every version of every schema ever written, with its constant id. Append only: an id is never given twice.

/// A schema as a registry lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaVersion {
    /// The id in front of each record.
    pub id: u32,
    /// The subject: the topic, then `-value`.
    pub subject: &'static str,
    /// The version within its subject, from 1.
    pub version: u32,
    /// The full name of the record.
    pub name: &'static str,
    /// The schema itself, as Avro JSON.
    pub text: &'static str,
}

/// Ids come in blocks of so many, one block for the versions of each record: an id in its block that is higher than all that a
/// build knows is a later version of it.
pub const FAMILY: u32 = 100;

/// The id of `TokensCounted`, version 1.
pub const TOKENS_COUNTED_V1: u32 = 7_001;
/// The id of `RequestFinished`, version 1.
pub const REQUEST_FINISHED_V1: u32 = 7_101;
/// The id of `ControlChanged`, version 1.
pub const CONTROL_CHANGED_V1: u32 = 7_201;
/// The id of `BalanceUpdated`, version 1.
pub const BALANCE_UPDATED_V1: u32 = 7_301;
/// The id of `DeadLettered`, version 1.
pub const DEAD_LETTERED_V1: u32 = 7_401;
/// The id of `GpuSampled`, version 1.
pub const GPU_SAMPLED_V1: u32 = 7_501;

/// All of them, by id.
pub const SCHEMAS: &[SchemaVersion] = &[
    SchemaVersion {
        id: TOKENS_COUNTED_V1,
        subject: "tollgate.tokens.v1-value",
        version: 1,
        name: "tollgate.v1.TokensCounted",
        text: include_str!("../avro/tokens_counted.v1.avsc"),
    },
    SchemaVersion {
        id: REQUEST_FINISHED_V1,
        subject: "tollgate.requests.v1-value",
        version: 1,
        name: "tollgate.v1.RequestFinished",
        text: include_str!("../avro/request_finished.v1.avsc"),
    },
    SchemaVersion {
        id: CONTROL_CHANGED_V1,
        subject: "tollgate.control.v1-value",
        version: 1,
        name: "tollgate.v1.ControlChanged",
        text: include_str!("../avro/control_changed.v1.avsc"),
    },
    SchemaVersion {
        id: BALANCE_UPDATED_V1,
        subject: "tollgate.balances.v1-value",
        version: 1,
        name: "tollgate.v1.BalanceUpdated",
        text: include_str!("../avro/balance_updated.v1.avsc"),
    },
    SchemaVersion {
        id: DEAD_LETTERED_V1,
        subject: "tollgate.dead-letters.v1-value",
        version: 1,
        name: "tollgate.v1.DeadLettered",
        text: include_str!("../avro/dead_lettered.v1.avsc"),
    },
    SchemaVersion {
        id: GPU_SAMPLED_V1,
        subject: "tollgate.gpu-samples.v1-value",
        version: 1,
        name: "tollgate.v1.GpuSampled",
        text: include_str!("../avro/gpu_sampled.v1.avsc"),
    },
];
