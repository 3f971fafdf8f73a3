//! The inference path: admit, route, forward, meter, record.
