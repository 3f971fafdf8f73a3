//! The engines' own counters beside what their requests are counted as, life by life, from where each was settled before.

use std::collections::HashMap;

use ledger::time::Micros;
use sql::LogHours;

use super::lines::Line;
use super::replicas::{self, Life, Settled};
use super::report::Report;
use super::{ReconcileError, Reconciler, sealed};

impl Reconciler {
    /// The counters of replicas that were kept in some hours, and what their requests are counted as.
    pub(super) async fn engines(
        &self,
        report: &mut Report,
        lines: &[Line],
        hours: LogHours,
    ) -> Result<(), ReconcileError> {
        let open = lines.iter().flat_map(|line| line.sources.values()).filter(|source| source.end.is_none());
        let vouched = open.map(|source| source.watermark).min().unwrap_or(self.now());
        let mut samples = self.clickhouse.replica_counters(hours).await?;
        let until = lines.iter().map(|line| line.sealed).max().unwrap_or(Micros(i64::MIN));
        sealed::leave_out_samples(&mut samples, until);
        let mut settled = HashMap::new();
        for samples in samples.chunk_by(|one, next| one.url == next.url) {
            let known = self.memory().take_settled(&samples[0].url);
            let lives = replicas::lives(samples, vouched, self.now());
            if lives.is_empty() {
                replicas::pending(report, &samples[0].replicas);
            }
            let mut kept = Vec::new();
            for life in lives {
                let before = known.iter().find(|settled| settled.is_of(life));
                kept.extend(self.life(report, life, before).await?);
            }
            settled.insert(samples[0].url.clone(), kept);
        }
        self.memory().keep_settled(settled);
        Ok(())
    }

    /// Compares a life; what is settled of it now.
    async fn life(
        &self,
        report: &mut Report,
        life: Life<'_>,
        before: Option<&Settled>,
    ) -> Result<Option<Settled>, ReconcileError> {
        let life = before.map_or(life, |settled| (&settled.first, life.1));
        let usage = match before {
            Some(settled) if settled.upto.at == life.1.at => settled.usage,
            before => {
                let asked = replicas::asked(life, before);
                let clickhouse = &self.clickhouse;
                let usage =
                    clickhouse.replica_usage(&life.1.replicas, asked.span, asked.ended_from, replicas::SKEW).await?;
                before.map_or(usage, |settled| usage.after(&settled.usage))
            }
        };
        let differences = report.differences.len();
        replicas::compare(report, life, &usage);
        let agrees = report.differences.len() == differences;
        Ok(if agrees { Some(Settled { first: life.0.clone(), upto: life.1.clone(), usage }) } else { before.cloned() })
    }
}
