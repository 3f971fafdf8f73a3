//! A network between two parts that can be cut, stalled, slow, or made to lose every answer.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the network does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// It carries everything.
    Fair,
    /// Connections end, and no new one comes about.
    Cut,
    /// Connections stay, and nothing arrives until it is fair again.
    Stalled,
    /// What is asked arrives and is done, and no answer comes back.
    Deaf,
    /// Whatever is read on one side comes out on the other a while later.
    Slow,
}

/// How late bytes come where the network is slow: some hundred times what a write into a data centre's next room takes.
const LATE: Duration = Duration::from_millis(80);

#[derive(Debug)]
struct State {
    weather: Weather,
    next: u64,
    open: BTreeMap<u64, [TcpStream; 2]>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether bytes may pass; waits while the network is stalled, and a while if it is slow.
    fn may_pass(&self, is_answer: bool) -> bool {
        let slow = |state: &mut State| state.weather == Weather::Slow;
        let (state, _) =
            self.changed.wait_timeout_while(self.lock(), LATE, slow).unwrap_or_else(PoisonError::into_inner);
        let stalled = |state: &mut State| state.weather == Weather::Stalled;
        let state = self.changed.wait_while(state, stalled).unwrap_or_else(PoisonError::into_inner);
        !(is_answer && state.weather == Weather::Deaf)
    }
}

/// A way to a part, through which its users are sent.
#[derive(Debug)]
pub struct Network {
    listen: SocketAddr,
    shared: Arc<Shared>,
}

impl Network {
    /// A fair one, from a free port to `target`, which need not listen yet.
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", crate::system::free_port())).expect("a free port");
        let listen = listener.local_addr().expect("its address");
        let state = State { weather: Weather::Fair, next: 0, open: BTreeMap::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        thread("network", move || {
            for from in listener.incoming().flatten() {
                // The part is down: the connection ends here.
                let Ok(to) = TcpStream::connect(target) else { continue };
                carry(&accepting, from, to);
            }
        });
        Self { listen, shared }
    }

    /// Where users connect.
    pub const fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Changes what it does, from now on.
    pub fn turn(&self, weather: Weather) {
        let mut state = self.shared.lock();
        // Streams from which bytes were lost cannot go on.
        if weather == Weather::Cut || state.weather == Weather::Deaf {
            state.open.values().flatten().for_each(end);
        }
        state.weather = weather;
        self.shared.changed.notify_all();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.turn(Weather::Cut);
    }
}

fn end(stream: &TcpStream) {
    // Its other side may have ended it.
    let _ = stream.shutdown(Shutdown::Both);
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).expect("a thread");
}

/// Carries bytes both ways until one side ends.
fn carry(shared: &Arc<Shared>, from: TcpStream, to: TcpStream) {
    let copy = |stream: &TcpStream| stream.try_clone().expect("a file");
    let mut state = shared.lock();
    if state.weather == Weather::Cut {
        return;
    }
    let id = state.next;
    state.next += 1;
    state.open.insert(id, [copy(&from), copy(&to)]);
    drop(state);
    for (from, to, is_answer) in [(copy(&from), copy(&to), false), (to, from, true)] {
        let shared = Arc::clone(shared);
        thread("network", move || {
            pump(&shared, &from, &to, is_answer);
            [&from, &to].into_iter().for_each(end);
            shared.lock().open.remove(&id);
        });
    }
}

fn pump(shared: &Shared, mut from: &TcpStream, mut to: &TcpStream, is_answer: bool) {
    let mut buffer = [0; 16 << 10];
    while let Ok(read) = from.read(&mut buffer) {
        if read == 0 || (shared.may_pass(is_answer) && to.write_all(&buffer[..read]).is_err()) {
            return;
        }
    }
}
