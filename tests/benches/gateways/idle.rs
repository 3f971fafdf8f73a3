//! Memory over many streams that are open and silent.

use std::time::Duration;

use futures_util::StreamExt as _;
use promises::process::memory_kib;

use crate::contender::Contender;
use crate::load::{Connection, Kind};

/// Streams that are opened at the same time.
const OPENING: usize = 64;
/// Memory is looked at again after so long.
const LATER: Duration = Duration::from_secs(20);
/// Files that are open for other reasons.
const OTHER_FILES: u64 = 1_000;

async fn open(contender: &Contender, streams: usize) -> Vec<Connection> {
    let request = contender.request(Kind::Idle);
    let opened = futures_util::stream::iter(0..streams).map(async |_| {
        let mut connection = Connection::open(contender.address).await?;
        connection.first_frame(&request).await?;
        Ok::<_, std::io::Error>(connection)
    });
    opened.buffer_unordered(OPENING).map(|opened| opened.expect("a stream")).collect().await
}

/// Opens them at each gateway in turn. A stream takes two files of a gateway, and two of this process.
pub(crate) async fn measure(contenders: &[Contender], streams: usize, open_files: u64) {
    let most = usize::try_from(open_files.saturating_sub(OTHER_FILES) / 2).unwrap_or(usize::MAX);
    let streams = streams.min(most);
    println!("\n| gateway | idle streams | KB each | 20 s later, KB each |\n|---|---|---|---|");
    // vllm-router does not hang up when its clients have: what it holds open here, the next one would lack.
    let (last, first): (Vec<_>, Vec<_>) = contenders.iter().partition(|contender| contender.name == "vllm-router");
    for contender in first.into_iter().chain(last) {
        let Some(pid) = contender.pid.filter(|_| contender.name != "litellm") else { continue };
        let before = memory_kib(pid);
        let held = open(contender, streams).await;
        let each = || memory_kib(pid).saturating_sub(before) as f64 / streams as f64;
        let first = each();
        tokio::time::sleep(LATER).await;
        println!("| {} | {} | {first:.1} | {:.1} |", contender.name, held.len(), each());
    }
}
