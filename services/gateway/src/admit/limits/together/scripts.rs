//! The scripts, their keys and their arguments.

use ledger::control::Limits;
use ledger::ids::TenantId;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, Script, ScriptInvocation};

use super::super::allowance::{Change, Member, State};
use super::super::levels::{Claim, Place, Told};
use super::Give;

/// A larger limit is none, and sums of it stay whole numbers in a script.
const LARGEST: u64 = 100_000_000_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Scripts {
    prefix: String,
    take: Script,
    give: Script,
    beat: Script,
}

/// What a heartbeat hears.
#[derive(Debug)]
pub(super) struct Beat {
    pub gateways: u32,
    /// Another than before, if what was kept is lost.
    pub mark: String,
}

/// What Redis says to a claim.
#[derive(Debug)]
pub(super) struct Said {
    pub granted: bool,
    /// That keep limits together now.
    pub gateways: u32,
    pub states: [State; 3],
}

impl Scripts {
    /// `prefix` stands before every key.
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            take: Script::new(concat!(include_str!("shared.lua"), include_str!("take.lua"))),
            give: Script::new(concat!(include_str!("shared.lua"), include_str!("give.lua"))),
            beat: Script::new(include_str!("beat.lua")),
        }
    }

    fn leases(&self) -> String {
        format!("{}:gateways", self.prefix)
    }

    fn level(&self, call: &mut ScriptInvocation<'_>, tenant: &TenantId, place: &Place) {
        let level = match place {
            Place::Plan => format!("{tenant}"),
            Place::Project(project) => format!("{tenant}:project:{project}"),
            Place::Key(key) => format!("{tenant}:key:{key}"),
        };
        call.key(format!("{}:rates:{level}", self.prefix)).key(format!("{}:open:{level}", self.prefix));
    }

    /// Takes a claim from all levels, or from none.
    pub(super) async fn take(
        &self,
        connection: &mut MultiplexedConnection,
        tenant: &TenantId,
        claim: &Claim,
    ) -> Result<Said, RedisError> {
        let mut call = self.take.key(self.leases());
        call.arg(&claim.member.id).arg(claim.tokens.min(LARGEST));
        for (place, limits) in claim.levels.iter().flatten() {
            self.level(&mut call, tenant, place);
            let Limits { requests_per_minute, tokens_per_minute, concurrent_requests } = limits;
            call.arg(limit(*requests_per_minute)).arg(limit(*tokens_per_minute)).arg(limit(*concurrent_requests));
        }
        let said: Vec<i64> = call.invoke_async(connection).await?;
        let mut rest = said.iter().copied();
        let mut next = || rest.next().unwrap_or(0);
        let (granted, gateways) = (next() == 1, u32::try_from(next()).unwrap_or(1));
        let states = claim.levels.each_ref().map(|level| match level {
            Some(_) => State { requests: next(), tokens: next(), open: u64::try_from(next()).unwrap_or(0) },
            None => State { requests: 0, tokens: 0, open: 0 },
        });
        Ok(Said { granted, gateways, states })
    }

    /// Tells what became of levels.
    pub(super) async fn give(&self, connection: &mut MultiplexedConnection, give: &Give) -> Result<(), RedisError> {
        let mut call = self.give.key(self.leases());
        call.arg(&give.member.id);
        for Told { place, limits, change } in &give.told {
            self.level(&mut call, &give.tenant, place);
            let Change { requests, tokens, open } = *change;
            let most = i64::try_from(LARGEST).unwrap_or(i64::MAX);
            call.arg(limit(limits.requests_per_minute)).arg(limit(limits.tokens_per_minute));
            call.arg(requests.clamp(-most, most)).arg(tokens.clamp(-most, most)).arg(open);
        }
        call.invoke_async(connection).await
    }

    /// Renews a member's lease; `first` for its first.
    pub(super) async fn beat(
        &self,
        connection: &mut MultiplexedConnection,
        id: &str,
        lease_millis: u64,
        first: bool,
    ) -> Result<Beat, RedisError> {
        let mut call = self.beat.key(self.leases());
        call.key(format!("{}:mark", self.prefix));
        call.arg(id).arg(lease_millis).arg(i64::from(!first)).arg(id);
        let (gateways, mark) = call.invoke_async(connection).await?;
        Ok(Beat { gateways, mark })
    }

    /// Ends a member's lease: nothing of it is open any more.
    pub(super) async fn leave(
        &self,
        connection: &mut MultiplexedConnection,
        member: &Member,
    ) -> Result<(), RedisError> {
        redis::cmd("ZREM").arg(self.leases()).arg(&member.id).query_async(connection).await
    }
}

fn limit(limit: Option<u64>) -> String {
    limit.map(|limit| limit.min(LARGEST).to_string()).unwrap_or_default()
}
