//! The promises, end to end, on real components, with faults.
