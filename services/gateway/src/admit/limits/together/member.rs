//! This gateway among those that keep limits together: it joins, drops out when Redis fails or is slow, and joins again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use prometheus::{Histogram, IntCounterVec, IntGauge};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};
use runtime::metrics::{Error as MetricsError, Name, SECONDS};
use runtime::{Metrics, Shutdown};
use uuid::Uuid;

use super::super::accounts::Accounts;
use super::super::allowance::{Keeper, Member};
use super::scripts::{Beat, Said, Scripts};
use super::{Answer, Call, Calls, Grant, Link};
use crate::settings::RedisSettings;

/// How long after a failure Redis is tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// Who joins tells so much at once, and is answered in time.
const AT_ONCE: usize = 64;
/// A lease is renewed so often in its time.
const BEATS: u32 = 3;

/// See the module.
#[derive(Debug)]
pub(crate) struct Membership {
    settings: RedisSettings,
    name: String,
    client: Client,
    scripts: Scripts,
    calls: Calls,
    metrics: MemberMetrics,
    /// The last word of Redis: how many gateways there are, and the mark of what is kept.
    heard: Option<Beat>,
    /// Whether it was said already that limits are not kept together.
    said: bool,
}

#[derive(Debug)]
struct MemberMetrics {
    together: IntGauge,
    take: Histogram,
    failures: IntCounterVec,
}

/// Why a membership ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Failed(#[from] RedisError),
    #[error("the gateway stops")]
    Stopped,
}

/// What is done over a connection.
#[expect(clippy::large_enum_variant, reason = "moved once into a queue: a box would be an allocation for each request")]
enum Work {
    Call(Call),
    Beat,
}

impl Membership {
    /// Not joined yet: [`Membership::run`] does.
    pub(crate) fn new(
        settings: RedisSettings,
        client: Client,
        name: &str,
        calls: Calls,
        metrics: &Metrics,
    ) -> Result<Self, MetricsError> {
        let metrics = MemberMetrics {
            together: metrics.gauge(Name::GatewayLimitsTogether)?,
            take: metrics.histogram(Name::GatewayRedisTake, SECONDS)?,
            failures: metrics.counters(Name::GatewayRedisFailures, &["reason"])?,
        };
        let scripts = Scripts::new(&settings.prefix);
        Ok(Self { settings, name: name.to_owned(), client, scripts, calls, metrics, heard: None, said: false })
    }

    /// Joins, and joins again whenever it dropped out, until shutdown; then leaves once nothing is open, or after `drain`.
    pub(crate) async fn run(
        mut self,
        accounts: Arc<Accounts>,
        drain: Duration,
        shutdown: Shutdown,
    ) -> Result<(), Infallible> {
        loop {
            let ended = tokio::select! {
                joined = self.join() => match joined {
                    Ok((connection, member)) => self.serve(connection, member, &accounts, drain, &shutdown).await,
                    Err(error) => Ended::Failed(error),
                },
                () = shutdown.cancelled() => return Ok(()),
            };
            self.part(&ended, &accounts);
            if matches!(ended, Ended::Stopped) || !self.wait(&shutdown).await {
                return Ok(());
            }
        }
    }

    /// Connects, and takes a lease.
    async fn join(&mut self) -> Result<(MultiplexedConnection, Member), RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.settings.connect_timeout))
            .set_response_timeout(Some(self.settings.timeout));
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let id = format!("{}/{}", self.name, Uuid::now_v7());
        let beat = self.scripts.beat(&mut connection, &id, self.lease(), true).await?;
        let forgotten = self.heard.as_ref().is_some_and(|heard| heard.mark != beat.mark);
        let gateways = beat.gateways;
        self.heard = Some(beat);
        Ok((connection, Member { id, gateways, forgotten }))
    }

    fn lease(&self) -> u64 {
        u64::try_from(self.settings.lease.as_millis()).unwrap_or(u64::MAX)
    }

    /// Keeps limits together until something fails, or the gateway stops.
    async fn serve(
        &mut self,
        connection: MultiplexedConnection,
        member: Member,
        accounts: &Accounts,
        drain: Duration,
        shutdown: &Shutdown,
    ) -> Ended {
        let (member, lease) = (Arc::new(member), self.lease());
        self.calls.link.keep(Keeper::Together(Arc::clone(&member)));
        accounts.follow_keeper();
        let Self { calls: Calls { link, receiver }, scripts, metrics, settings, heard, said, .. } = self;
        let mut running = FuturesUnordered::new();
        // What is open here, and what was taken alone, is told first.
        while let Ok(call) = receiver.try_recv() {
            let work = Work::Call(call);
            running.push(perform(work, connection.clone(), &member, scripts, link.clone(), metrics, lease));
            if running.len() >= AT_ONCE
                && let Some(Err(error)) = running.next().await
            {
                return Ended::Failed(error);
            }
        }
        while let Some(done) = running.next().await {
            if let Err(error) = done {
                return Ended::Failed(error);
            }
        }
        tracing::info!(gateways = member.gateways, forgotten = member.forgotten, "limits are kept together, in Redis");
        *said = false;
        metrics.together.set(1);
        let mut beats = tokio::time::interval(settings.lease / BEATS);
        let mut last = None;
        loop {
            let work = tokio::select! {
                Some(call) = receiver.recv() => Some(Work::Call(call)),
                Some(done) = running.next() => match done {
                    Ok(gateways) => {
                        if let (Some(heard), Some(gateways)) = (heard.as_mut(), gateways) {
                            heard.gateways = gateways;
                        }
                        None
                    }
                    Err(error) => return Ended::Failed(error),
                },
                _ = beats.tick() => Some(Work::Beat),
                () = shutdown.cancelled(), if last.is_none() => {
                    last = Some(Instant::now() + drain);
                    None
                }
            };
            if let Some(work) = work {
                running.push(perform(work, connection.clone(), &member, scripts, link.clone(), metrics, lease));
            }
            let is_over = |last: Instant| {
                let idle = running.is_empty() && receiver.is_empty() && accounts.open() == 0;
                idle || last <= Instant::now()
            };
            if last.is_some_and(is_over) {
                if let Err(error) = scripts.leave(&mut connection.clone(), &member).await {
                    tracing::debug!(%error, "the lease in Redis could not be ended: it runs out by itself");
                }
                return Ended::Stopped;
            }
        }
    }

    /// Falls back to this gateway's share.
    fn part(&mut self, ended: &Ended, accounts: &Accounts) {
        let known = self.heard.as_ref().map(|beat| beat.gateways);
        let gateways = known.unwrap_or(self.settings.gateways).max(1);
        self.metrics.together.set(0);
        self.calls.link.keep(Keeper::Alone(gateways));
        accounts.follow_keeper();
        let Ended::Failed(error) = ended else { return };
        let reason = if error.is_timeout() { "slow" } else { "failed" };
        self.metrics.failures.with_label_values(&[reason]).inc();
        if !std::mem::replace(&mut self.said, true) {
            tracing::warn!(%error, reason, gateways, "Redis does not keep the limits: this gateway keeps to its share of them until it does");
        }
    }

    /// Until Redis is tried again. What is asked meanwhile gets no answer. False on shutdown.
    async fn wait(&mut self, shutdown: &Shutdown) -> bool {
        let again = tokio::time::sleep(AGAIN);
        tokio::pin!(again);
        loop {
            tokio::select! {
                () = &mut again => return true,
                call = self.calls.receiver.recv() => drop(call),
                () = shutdown.cancelled() => return false,
            }
        }
    }
}

/// Says how many gateways there are, where Redis told.
async fn perform(
    work: Work,
    mut connection: MultiplexedConnection,
    member: &Member,
    scripts: &Scripts,
    link: Link,
    metrics: &MemberMetrics,
    lease: u64,
) -> Result<Option<u32>, RedisError> {
    match work {
        Work::Beat => {
            let beat = scripts.beat(&mut connection, &member.id, lease, false).await?;
            Ok(Some(beat.gateways))
        }
        Work::Call(Call::Give(give)) => scripts.give(&mut connection, &give).await.map(|()| None),
        Work::Call(Call::Take { answer, .. }) if answer.is_closed() => Ok(None),
        Work::Call(Call::Take { claim, answer }) => {
            let begun = Instant::now();
            let Said { granted, gateways, states } = scripts.take(&mut connection, &claim.tenant, &claim.claim).await?;
            metrics.take.observe(begun.elapsed().as_secs_f64());
            let said = if granted {
                Answer::Granted(Grant { claim, states, link: Some(link) })
            } else {
                Answer::Refused(claim.claim, states)
            };
            // Nobody waits for it any more: a grant that is dropped gives back.
            drop(answer.send(said));
            Ok(Some(gateways))
        }
    }
}
