//! What happens in a world outside of the folds: gateways, their disks, and the log.

use ledger::ids::{EventId, SourceId};
use schemas::codec::{decode, encode};
use schemas::event::TokensCounted;
use stream::simulation::Gateway;
use stream::spool::disk::Disk;
use stream::spool::frame;
use stream::spool::segment::number_of;
use uuid::Uuid;

use super::step::Step;
use super::verdict::{Failure, Kind};
use super::world::{World, place};

/// No more gateways than this, copies included.
const GATEWAYS: usize = 4;
const TENANTS: [&str; 3] = ["a", "b", "c"];

impl World {
    fn gateway(&mut self, g: usize) -> &mut Gateway {
        let g = g % self.gateways.len();
        &mut self.gateways[g]
    }

    pub(super) fn step_outside(&mut self, step: Step) {
        match step {
            Step::Start(g) => self.start(g),
            Step::Crowd(g, requests) => (0..requests).for_each(|n| self.gateway(g).admit(TENANTS[n % 3])),
            Step::Admit(g, tenant) => self.gateway(g).admit(TENANTS[tenant % 3]),
            Step::Frame(g, nth, tokens, shift, death) => self.gateway(g).frame_and(nth, tokens, shift, death),
            Step::Checkpoint(g, nth) => self.gateway(g).checkpoint(nth),
            Step::Finish(g, nth, how) => self.gateway(g).finish(nth, how),
            Step::Flush(g) => self.gateway(g).flush(),
            Step::Ship(g) => self.gateway(g).ship(),
            Step::Serve(g, tenant, tokens) => self.serve(g, tenant, tokens),
            Step::Kill(g) => self.gateway(g).kill(),
            Step::CrashHost(g) => self.gateway(g).crash_host(),
            Step::WriteBack(g) => self.gateway(g).disk.write_back(),
            Step::GatewayClock(g, ms) => _ = self.gateway(g).clock.advance(ms * 1000),
            Step::DiskFault(g, call, fault) => self.gateway(g).disk.fail_at(call, fault),
            Step::Room(g, room) => {
                let disk = &self.gateway(g).disk;
                disk.set_room(room.map(|room| disk.used() + room));
            }
            Step::Copy(g) => {
                let gateway = self.gateway(g);
                gateway.backup = Some(gateway.disk.after_kill());
            }
            Step::Restore(g, from_copy) => self.restore(g, from_copy),
            Step::Clone(g) => self.copy_gateway(g),
            Step::Damage(g, at) => self.damage(g, at),
            Step::FailRecord => self.log.lock().failures += 1,
            Step::Away(away) => self.log.lock().away = away,
            Step::Disconnect => self.log.lock().disconnects += 1,
            Step::Narrow(narrow) => self.log.lock().narrow = narrow,
            Step::BrokerClock(ms) => self.log.lock().now_ms += ms,
            Step::Hole(p) => self.log.lock().hole(&place(p)),
            Step::Garbage(p, kind) => self.garbage(p, kind),
            Step::LoseTail(p, records) => {
                self.log.lock().lose(&place(p), records);
                let next = self.log.lock().partitions.get(&place(p)).map_or(0, |partition| partition.next);
                self.garbage.retain(|(partition, offset)| *partition != p as i32 || *offset < next);
            }
            _ => {}
        }
    }

    /// Starts a gateway, if it does not run.
    pub(super) fn start(&mut self, g: usize) {
        let g = g % self.gateways.len();
        let gateway = &mut self.gateways[g];
        if gateway.running.is_some() && !gateway.disk.is_dead() {
            return;
        }
        if gateway.disk.is_dead() {
            gateway.kill();
        }
        gateway.start();
        match (gateway.spool().map(|spool| spool.source()), &gateway.refused) {
            (Some(source), _) => {
                if self.sources[g].last() != Some(&source) {
                    self.sources[g].push(source);
                }
            }
            (None, Some(why)) => {
                let why = why.to_string();
                self.tell(|| format!("  gateway {g} does not start: {why}"));
            }
            (None, None) => {}
        }
    }

    fn serve(&mut self, g: usize, tenant: usize, tokens: u64) {
        let gateway = self.gateway(g);
        let before = gateway.live.len();
        gateway.admit(TENANTS[tenant % 3]);
        if gateway.live.len() > before {
            gateway.frame(before, tokens);
            gateway.finish(before, 0);
        }
        gateway.flush();
        gateway.ship();
    }

    fn restore(&mut self, g: usize, from_copy: bool) {
        let g = g % self.gateways.len();
        let gateway = &mut self.gateways[g];
        let disk = gateway.backup.as_ref().map(|disk| disk.after_kill());
        if from_copy && disk.is_none() {
            return;
        }
        gateway.restore(disk.filter(|_| from_copy));
        self.sources[g].clear();
    }

    fn copy_gateway(&mut self, g: usize) {
        let (g, nth) = (g % self.gateways.len(), self.gateways.len());
        if nth >= GATEWAYS {
            return;
        }
        let gateway = &mut self.gateways[g];
        let open = gateway.live.len();
        gateway.admit(TENANTS[0]);
        if gateway.live.len() > open {
            gateway.frame(open, 3);
        }
        gateway.kill();
        gateway.disk.heal();
        gateway.disk.set_room(None);
        let Some(mut copy) = self.gateways[g].cloned(nth as u64) else { return };
        copy.settings = self.gateways[g].settings.clone();
        self.gateways.push(copy);
        // Two sources follow the one before: which of them the log names is chance.
        self.sources.push(Vec::new());
        // Both find the same; after a crash of the host one of them could find less.
        self.start(g);
        self.sources[g].clear();
        self.start(nth);
        self.sources[nth].clear();
    }

    /// Writes something that is no gateway's.
    fn garbage(&mut self, p: usize, kind: usize) {
        let place = place(p);
        let mut log = self.log.lock();
        let events = log.partitions.get(&place).into_iter().flat_map(|partition| &partition.records);
        let events: Vec<_> = events.filter(|record| record.value.is_some()).cloned().collect();
        let chosen = events.get(log.chance.below(events.len())).cloned();
        let event = chosen.as_ref().and_then(|record| decode::<TokensCounted>(record.value.as_deref()?).ok());
        let key = chosen.as_ref().and_then(|record| record.key.clone());
        let foreign = SourceId(Uuid::from_u128(0xf0 + p as u128));
        let value = match (kind, event) {
            // The same once more is no dead letter.
            (3, Some(event)) => {
                let offset = log.put(&place, key, Some(encode(&event).unwrap()), vec![]);
                // But where it is somebody else's event under that number.
                self.garbage.insert((p as i32, offset));
                return;
            }
            (1, Some(event)) | (4, Some(event)) => {
                self.foreign[p] += 1;
                let output = if kind == 1 { -1 } else { event.output };
                let event_id = EventId(Uuid::from_u128(0xf00 + self.foreign[p] as u128));
                Some(TokensCounted { source: foreign, seq: self.foreign[p], event_id, output, ..event })
            }
            (2, Some(event)) => {
                let event_id = EventId(Uuid::from_u128(0xc0de << 64 | log.chance.below(1 << 30) as u128));
                Some(TokensCounted { event_id, ..event })
            }
            _ => None,
        };
        let key = if kind == 4 { Some(b"somebody".to_vec()) } else { key };
        let value = value.map_or(b"no event".to_vec(), |event| encode(&event).unwrap());
        let offset = log.put(&place, key, Some(value), vec![]);
        self.garbage.insert((p as i32, offset));
    }

    /// Changes a byte where no torn tail can be: another whole frame follows. A start must refuse it, and a person puts the
    /// byte back.
    fn damage(&mut self, g: usize, at: usize) {
        let g = g % self.gateways.len();
        let gateway = &mut self.gateways[g];
        // While the host is up, what was written is there.
        if gateway.running.is_none() || gateway.disk.is_dead() {
            return;
        }
        gateway.kill();
        let names = Disk::list(&gateway.disk).unwrap_or_default();
        let Some(name) = names.iter().filter(|name| number_of(name).is_some()).max() else { return };
        let (bytes, mut frames, mut end) = (gateway.disk.bytes(name).unwrap_or_default(), Vec::new(), 0);
        while let Ok((_, length)) = frame::check(&bytes[end..]) {
            frames.push(end..end + length);
            end += length;
        }
        frames.pop();
        let Some(frame) = frames.get(at % frames.len().max(1)).cloned() else { return };
        let whole = gateway.disk.after_kill();
        gateway.disk.damage(name, |bytes| bytes[frame.start + at % frame.len()] ^= 0x10);
        self.start(g);
        if self.gateways[g].running.is_none() {
            self.gateways[g].disk = whole;
        }
    }

    /// No spool grows beyond its limit, and every one can be shipped.
    pub(super) fn check_spools(&self) -> Result<(), Failure> {
        for (g, gateway) in self.gateways.iter().enumerate() {
            if let Some(why) = &gateway.broken {
                return Err(Failure::new(Kind::Refused, format!("gateway {g} ships no more: {why}")));
            }
            if let Some(stats) =
                gateway.spool().map(|spool| spool.stats()).filter(|stats| stats.bytes > stats.max_bytes)
            {
                return Err(Failure::new(Kind::Overfull, format!("gateway {g}: {stats:?}")));
            }
        }
        Ok(())
    }
}
