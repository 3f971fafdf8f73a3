//! What every role shares: configuration, telemetry, clock, task supervision, shutdown.
