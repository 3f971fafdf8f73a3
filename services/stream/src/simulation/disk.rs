//! A disk in memory for tests and simulations: any step can fail, tear, or be the last one before a crash.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::spool::disk::{Disk, DiskFile, Memory};

/// What goes wrong at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails and changes nothing. A failed sync loses its claim on everything not yet durable.
    Error,
    /// A write takes only so many bytes; other calls fail.
    Short(usize),
    /// The call fails as on a full disk, a write after taking so many bytes.
    Full(usize),
    /// The process dies: a write takes so many bytes, other calls do nothing, and everything later fails.
    Crash(usize),
    /// The call does all its work, then the process dies.
    CrashAfter,
}

/// A copy of a file is a count, until one of both is written.
type Bytes = Arc<Vec<u8>>;

#[derive(Debug, Default)]
struct Content {
    /// What a process of this host sees.
    cached: Bytes,
    /// What is certain to be there after the host crashed.
    durable: Bytes,
    /// These bytes will never be durable, since a sync that covered them failed, unless they are written again.
    forsaken: Range<usize>,
    memory: Option<Arc<SimMemory>>,
}

#[derive(Debug, Default)]
struct Inner {
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    contents: HashMap<u64, Content>,
    next: u64,
    steps: u64,
    faults: BTreeMap<u64, Fault>,
    dead: bool,
    room: Option<u64>,
}

/// See the module. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct SimMemory(Vec<AtomicU64>);

impl Memory for SimMemory {
    fn words(&self) -> &[AtomicU64] {
        &self.0
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    id: u64,
}

fn dead() -> io::Error {
    io::Error::other("the simulated process is dead")
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

enum Step {
    Work,
    Short(usize),
    Fail(io::Error, usize),
    Die(usize),
    WorkThenDie,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Steps (calls that change something) done so far.
    pub fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// The `step`th call from now on (0 is the next) meets `fault`.
    pub fn fail_at(&self, step: u64, fault: Fault) {
        let mut inner = self.lock();
        let at = inner.steps + step;
        inner.faults.insert(at, fault);
    }

    /// Forgets faults that have not happened.
    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    /// The disk has room for so many bytes in all; none: without limit.
    pub fn set_room(&self, bytes: Option<u64>) {
        self.lock().room = bytes;
    }

    /// Bytes that its files take.
    pub fn used(&self) -> u64 {
        let inner = self.lock();
        inner.names.values().filter_map(|id| inner.contents.get(id)).map(|content| content.cached.len() as u64).sum()
    }

    /// True once a [`Fault::Crash`] has happened.
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// From now on everything fails, as for a process that was killed.
    pub fn kill(&self) {
        Self::die(&mut self.lock());
    }

    /// What a dead process still does to its memory is seen by nobody.
    fn die(inner: &mut Inner) {
        inner.dead = true;
        for content in inner.contents.values_mut() {
            content.cached = content.current();
            content.memory = None;
        }
    }

    /// The disk as the next process of the same host finds it: all that was written, and the mapped memory. A copy: this
    /// one is not changed, so it is a cloned volume too.
    pub fn after_kill(&self) -> Self {
        let inner = self.lock();
        let contents = inner.contents.iter().map(|(id, content)| {
            let cached = content.current();
            (
                *id,
                Content { durable: content.durable.clone(), forsaken: content.forsaken.clone(), cached, memory: None },
            )
        });
        Self(Arc::new(Mutex::new(Inner {
            names: inner.names.clone(),
            durable_names: inner.durable_names.clone(),
            contents: contents.collect(),
            next: inner.next,
            room: inner.room,
            ..Inner::default()
        })))
    }

    /// The disk as found after the host crashed: what was synced, and of the rest what `choose` (given a limit, returns a
    /// number up to it) lets survive, with damage.
    pub fn after_host_crash(&self, mut choose: impl FnMut(usize) -> usize) -> Self {
        let inner = self.lock();
        let names = if choose(1) == 0 { inner.durable_names.clone() } else { inner.names.clone() };
        let mut contents = HashMap::new();
        for id in names.values() {
            let Some(content) = inner.contents.get(id) else { continue };
            let cached = content.current();
            let mut bytes = content.durable.to_vec();
            if content.memory.is_some() && bytes.len() == cached.len() {
                // Mapped pages are written back whenever the kernel likes.
                for (old, new) in bytes.chunks_mut(8).zip(cached.chunks(8)).filter(|(old, new)| old != new) {
                    if choose(1) == 1 {
                        old.copy_from_slice(new);
                    }
                }
            }
            let extra = cached.len().saturating_sub(bytes.len());
            if extra > 0 {
                let start = bytes.len();
                let kept = choose(extra);
                bytes.extend_from_slice(&cached[start..start + kept]);
                // A page in the middle may have been lost.
                if kept > 0 && choose(1) == 1 {
                    let (from, length) = (start + choose(kept - 1), choose(512));
                    let to = (from + length).min(bytes.len());
                    bytes[from..to].fill(0);
                }
            }
            let bytes = Arc::new(bytes);
            contents.insert(*id, Content { durable: bytes.clone(), cached: bytes, forsaken: 0..0, memory: None });
        }
        Self(Arc::new(Mutex::new(Inner {
            durable_names: names.clone(),
            names,
            contents,
            next: inner.next,
            room: inner.room,
            ..Inner::default()
        })))
    }

    /// The kernel writes back what is mapped now.
    pub fn write_back(&self) {
        let mut inner = self.lock();
        for content in inner.contents.values_mut().filter(|content| content.memory.is_some()) {
            content.durable = content.current();
        }
    }

    /// The bytes of a file as a process sees them.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let inner = self.lock();
        inner.contents.get(inner.names.get(name)?).map(|content| content.current().to_vec())
    }

    /// Changes the bytes of a file behind everybody's back.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.lock();
        let Some(id) = inner.names.get(name).copied() else { return };
        if let Some(content) = inner.contents.get_mut(&id) {
            change(Arc::make_mut(&mut content.cached));
            content.durable = content.cached.clone();
        }
    }

    fn step(inner: &mut Inner) -> Result<Step, io::Error> {
        if inner.dead {
            return Err(dead());
        }
        let at = inner.steps;
        inner.steps += 1;
        Ok(match inner.faults.remove(&at) {
            None => Step::Work,
            Some(Fault::Error) => Step::Fail(io::Error::other("injected"), 0),
            Some(Fault::Short(n)) => Step::Short(n),
            Some(Fault::Full(n)) => Step::Fail(full(), n),
            Some(Fault::Crash(n)) => Step::Die(n),
            Some(Fault::CrashAfter) => Step::WorkThenDie,
        })
    }

    /// A call that is done whole or not at all.
    fn whole<T>(&self, work: impl FnOnce(&mut Inner) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.lock();
        match Self::step(&mut inner)? {
            Step::Work => work(&mut inner),
            Step::Short(_) => Err(io::Error::other("injected")),
            Step::Fail(error, _) => Err(error),
            Step::Die(_) => {
                Self::die(&mut inner);
                Err(dead())
            }
            Step::WorkThenDie => {
                let done = work(&mut inner);
                Self::die(&mut inner);
                done.and_then(|_| Err(dead()))
            }
        }
    }
}

impl Content {
    fn current(&self) -> Bytes {
        match &self.memory {
            None => self.cached.clone(),
            Some(memory) => {
                Arc::new(memory.0.iter().flat_map(|word| word.load(Ordering::Acquire).to_ne_bytes()).collect())
            }
        }
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.whole(|inner| {
            let id = inner.next;
            inner.next += 1;
            inner.names.insert(name.into(), id);
            inner.contents.insert(id, Content::default());
            Ok(Arc::new(SimFile { disk: self.clone(), id }) as Arc<dyn DiskFile>)
        })
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inner = self.lock();
        let id = *inner.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.whole(|inner| {
            let id = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            inner.names.insert(to.into(), id);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.whole(|inner| inner.names.remove(name).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into()))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.whole(|inner| {
            inner.durable_names = inner.names.clone();
            Ok(())
        })
    }

    fn map(&self, name: &str) -> io::Result<Arc<dyn Memory>> {
        let mut inner = self.lock();
        let id = *inner.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let content = inner.contents.get_mut(&id).ok_or(io::ErrorKind::NotFound)?;
        if content.memory.is_none() {
            let words = content.cached.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word).into());
            content.memory = Some(Arc::new(SimMemory(words.collect())));
        }
        content.memory.clone().map(|memory| memory as Arc<dyn Memory>).ok_or_else(dead)
    }
}

impl SimFile {
    fn put(inner: &mut Inner, id: u64, bytes: &[u8], offset: u64) {
        if let Some(content) = inner.contents.get_mut(&id) {
            let end = offset as usize + bytes.len();
            let cached = Arc::make_mut(&mut content.cached);
            if cached.len() == offset as usize {
                cached.extend_from_slice(bytes);
            } else {
                cached.resize(cached.len().max(end), 0);
                cached[offset as usize..end].copy_from_slice(bytes);
            }
            // Written again, it is as good as new.
            if offset as usize <= content.forsaken.start {
                content.forsaken.start = content.forsaken.start.max(end);
            }
        }
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut inner = self.disk.lock();
        let step = SimDisk::step(&mut inner)?;
        let mut allowed = bytes.len();
        if let Some(room) = inner.room {
            let used: usize =
                inner.names.values().filter_map(|id| inner.contents.get(id)).map(|c| c.cached.len()).sum();
            let there = inner.contents.get(&self.id).map_or(0, |c| c.cached.len()).saturating_sub(offset as usize);
            allowed = allowed.min(there + (room as usize).saturating_sub(used));
            if allowed == 0 && !bytes.is_empty() {
                return Err(full());
            }
        }
        let dies = matches!(step, Step::Die(_) | Step::WorkThenDie);
        let (n, result) = match step {
            Step::Work => (allowed, Ok(())),
            Step::Short(n) => (n.min(allowed), Ok(())),
            Step::Fail(error, n) => (n.min(allowed), Err(error)),
            Step::Die(n) => (n.min(allowed), Err(dead())),
            Step::WorkThenDie => (allowed, Err(dead())),
        };
        Self::put(&mut inner, self.id, &bytes[..n], offset);
        if dies {
            SimDisk::die(&mut inner);
        }
        result.map(|()| n)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let inner = self.disk.lock();
        let content = inner.contents.get(&self.id).ok_or(io::ErrorKind::NotFound)?;
        let bytes = content.current();
        let from = (offset as usize).min(bytes.len());
        let n = into.len().min(bytes.len() - from);
        into[..n].copy_from_slice(&bytes[from..from + n]);
        Ok(n)
    }

    fn sync(&self) -> io::Result<()> {
        let id = self.id;
        let result = self.disk.whole(|inner| {
            if let Some(content) = inner.contents.get_mut(&id) {
                let mut durable = content.current();
                // What a failed sync gave up stays lost, although this one succeeds.
                let (from, to) = (content.forsaken.start, content.forsaken.end.min(durable.len()));
                if from < to {
                    Arc::make_mut(&mut durable)[from..to].fill(0);
                }
                content.durable = durable;
            }
            Ok(())
        });
        if result.is_err() {
            let mut inner = self.disk.lock();
            if !inner.dead
                && let Some(content) = inner.contents.get_mut(&id)
            {
                content.forsaken = content.durable.len()..content.cached.len();
            }
        }
        result
    }

    fn len(&self) -> io::Result<u64> {
        let inner = self.disk.lock();
        inner.contents.get(&self.id).map(|c| c.current().len() as u64).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
