//! A rebuild that is killed amid an insert: before its end was sent, and when it was done and not answered. Run again it comes to
//! the same rows.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown as Half, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use fold::archive::Log;
use runtime::{Shutdown, Tasks};
use sql::{ClickHouse, Table};

use crate::folded;
use crate::rebuild::{BLOCK, new_database, rebuild, rows};
use crate::servers::{Reached, SOON, Servers};

/// Not a test: what the process runs that is killed.
#[tokio::test]
#[ignore = "the rebuild process of the other tests"]
async fn rebuild_process() {
    let Reached { kafka, clickhouse } = Reached::by_variables();
    let new = sql::ClickHouseSettings { database: "tollgate_rebuild".into(), ..clickhouse.clone() };
    fold::rebuild::run(Log::kafka(&kafka), &clickhouse, &new, &[0, 1], BLOCK, |_| {}).await.unwrap();
}

/// Where an insert is held.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    /// ClickHouse has all of it but its end.
    Open,
    /// ClickHouse has done it.
    Done,
}

/// What a body ends with.
const END: &[u8] = b"0\r\n\r\n";

/// A way to ClickHouse on which one insert is held, the first or a later one, until its sender is gone.
struct Way {
    listen: SocketAddr,
    reached: Receiver<()>,
}

impl Way {
    fn to(target: SocketAddr, nth: u32, held: Held) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = listener.local_addr().unwrap();
        let (reach, reached) = channel();
        let inserts = Arc::new(AtomicU32::new(0));
        thread(move || {
            for client in listener.incoming().flatten() {
                let (server, inserts, reach) = (TcpStream::connect(target).unwrap(), inserts.clone(), reach.clone());
                thread(move || carry(&client, &server, |sent| is_nth(sent, &inserts, nth), held, &reach));
            }
        });
        Self { listen, reached }
    }
}

fn thread(work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().spawn(work).unwrap();
}

fn is_nth(sent: &[u8], inserts: &AtomicU32, nth: u32) -> bool {
    // A request's first line has its statement.
    let is_chunk = sent.starts_with(b"POST") && find(sent, b"INSERT") && find(sent, b"insert_deduplication_token");
    is_chunk && inserts.fetch_add(1, Ordering::SeqCst) + 1 == nth
}

fn find(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

fn carry(
    mut client: &TcpStream,
    mut server: &TcpStream,
    is_held: impl Fn(&[u8]) -> bool,
    held: Held,
    reach: &Sender<()>,
) {
    let (mut back, mut from) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let silent = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (mute, done) = (silent.clone(), reach.clone());
    thread(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if mute.load(Ordering::SeqCst) {
                let _ = done.send(());
            } else if back.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = back.shutdown(Half::Both);
    });
    let mut buffer = [0; 16 << 10];
    let (mut is_open, mut is_cut) = (false, false);
    while let Ok(read @ 1..) = client.read(&mut buffer) {
        let mut sent = &buffer[..read];
        if is_held(sent) {
            is_open = held == Held::Open;
            silent.store(!is_open, Ordering::SeqCst);
        }
        if is_open && sent.ends_with(END) {
            sent = &sent[..read - END.len() - 1];
        }
        if !is_cut && server.write_all(sent).is_err() {
            break;
        }
        if is_open && sent.len() < read && !is_cut {
            is_cut = true;
            let _ = reach.send(());
        }
    }
    // Who was killed sends no more.
    let _ = server.shutdown(Half::Both);
}

fn started(servers: &Servers, way: &Way) -> Child {
    let mut command: Command = servers.again_at("killed::rebuild_process", way.listen);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_is_killed_amid_an_insert_goes_on_to_the_same_rows() {
    let servers = Servers::start().await;
    let tasks = Tasks::new(Shutdown::new());
    let (_, fold) = folded(&servers, &tasks, 250).await;
    fold.kill();
    let new = ClickHouse::new(&new_database(&servers));
    let mut before = 0;
    for (nth, held) in [(1, Held::Open), (1, Held::Done), (2, Held::Open), (2, Held::Done)] {
        let way = Way::to(servers.clickhouse_address(), nth, held);
        let mut process = started(&servers, &way);
        way.reached.recv_timeout(SOON).unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        // Whatever became of it, what is there is one whole folding.
        let mut offsets = 0;
        for partition in 0..2 {
            for table in Table::ALL {
                offsets += new.prove(table, partition).await.unwrap().position;
            }
        }
        // One whose end was not sent is not there; one that was done is.
        let written = i64::from(nth) - i64::from(held == Held::Open);
        assert!(offsets >= before && offsets <= before + written * BLOCK as i64, "{before} {offsets}");
        assert_eq!(offsets > before, written > 0);
        before = offsets;
    }
    let lines = rebuild(&servers).await;
    assert!(lines.iter().any(|line| line.from > 0), "it went on: {lines:#?}");
    assert!(lines.iter().all(|line| line.differences.is_empty() && line.summed), "{lines:#?}");
    for table in Table::ALL {
        assert_eq!(rows(&servers, "tollgate", table).await, rows(&servers, "tollgate_rebuild", table).await);
    }
    tasks.shutdown().trigger();
}
