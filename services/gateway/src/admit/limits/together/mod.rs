//! Limits that gateways keep together, in Redis: what a request asks of it, and what is told to it.
//!
//! Each request of a caller with limits asks Redis once, by one script that takes from every level or from none; settlement
//! tells it afterwards, and nobody waits for that. Slices of the limits, handed out to gateways in advance, would save that
//! one round trip (some 0.1 ms beside an answer of a language model), and would refuse requests while other gateways hold
//! what is left. A caller without limits asks nobody.
//!
//! While Redis is away or slow each gateway keeps to its share, see [`Keeper`].

mod member;
mod scripts;

use std::sync::Arc;

use arc_swap::ArcSwap;
use ledger::ids::TenantId;
use tokio::sync::{mpsc, oneshot};

use super::allowance::{Change, Keeper, Member, State};
use super::levels::{Claim, Told};
pub(crate) use member::Membership;

/// The way to Redis: cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    keeper: Arc<ArcSwap<Keeper>>,
    calls: mpsc::UnboundedSender<Call>,
}

/// What is said to Redis. As many of them as requests can be open, at most: nothing is asked or told while it is away.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "moved once into a queue: a box would be an allocation for each request")]
enum Call {
    Take { claim: TenantClaim, answer: oneshot::Sender<Answer> },
    Give(Give),
}

/// A claim, and whose.
#[derive(Debug, Clone)]
struct TenantClaim {
    tenant: TenantId,
    claim: Claim,
}

/// What became of levels of a tenant.
#[derive(Debug)]
pub(crate) struct Give {
    pub member: Arc<Member>,
    pub tenant: TenantId,
    pub told: Vec<Told>,
}

/// What Redis says to a claim.
#[derive(Debug)]
pub(crate) enum Answer {
    Granted(Grant),
    Refused(Claim, [State; 3]),
}

/// What was taken for a request. Dropped before it is [`Grant::kept`] (the client has gone, say), it is given back.
#[derive(Debug)]
pub(crate) struct Grant {
    claim: TenantClaim,
    states: [State; 3],
    link: Option<Link>,
}

impl Grant {
    pub(crate) fn claim(&self) -> (&Claim, &[State; 3]) {
        (&self.claim.claim, &self.states)
    }

    /// Somebody else sees to it now.
    pub(crate) fn kept(mut self) {
        self.link = None;
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let Some(link) = self.link.take() else { return };
        let Claim { member, tokens, levels } = &self.claim.claim;
        let back = |requests: bool, tokens_of: bool, open: bool| Change {
            requests: i64::from(requests),
            tokens: if tokens_of { i64::try_from(*tokens).unwrap_or(i64::MAX) } else { 0 },
            open: -i64::from(open),
        };
        let told = levels.iter().flatten().map(|(place, limits)| Told {
            place: place.clone(),
            limits: *limits,
            change: back(
                limits.requests_per_minute.is_some(),
                limits.tokens_per_minute.is_some(),
                limits.concurrent_requests.is_some(),
            ),
        });
        let (member, tenant, told) = (Arc::clone(member), self.claim.tenant.clone(), told.collect());
        link.tell(Give { member, tenant, told });
    }
}

impl Link {
    /// A link that nobody serves yet, and its other end.
    pub(crate) fn new(gateways: u32) -> (Self, Calls) {
        let (calls, receiver) = mpsc::unbounded_channel();
        let keeper = Arc::new(ArcSwap::from_pointee(Keeper::Alone(gateways)));
        let link = Self { keeper: Arc::clone(&keeper), calls };
        (link.clone(), Calls { link, receiver })
    }

    /// Who keeps the limits now.
    pub(crate) fn keeper(&self) -> Keeper {
        Keeper::clone(&self.keeper.load())
    }

    fn keep(&self, keeper: Keeper) {
        self.keeper.store(Arc::new(keeper));
    }

    /// Asks for a request's claim. None when there is no answer: then this gateway decides alone. Given up, whatever was
    /// taken is given back.
    pub(crate) async fn take(&self, tenant: &TenantId, claim: Claim) -> Option<Answer> {
        let (answer, answered) = oneshot::channel();
        let claim = TenantClaim { tenant: tenant.clone(), claim };
        self.calls.send(Call::Take { claim, answer }).ok()?;
        answered.await.ok()
    }

    /// Tells what became of a claim. Nobody waits for it.
    pub(crate) fn tell(&self, give: Give) {
        // Without a receiver the process is about to end, and with it this member.
        let _ = self.calls.send(Call::Give(give));
    }
}

/// The other end of a link.
#[derive(Debug)]
pub(crate) struct Calls {
    link: Link,
    receiver: mpsc::UnboundedReceiver<Call>,
}

#[cfg(test)]
mod tests;
