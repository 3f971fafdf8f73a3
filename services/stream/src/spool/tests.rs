//! A spool alone: recovery that is killed and repeated, damage, room, and durability.

use std::sync::Arc;

use ledger::ids::TenantId;
use ledger::tokens::TokenCounts;
use proptest::prelude::*;
use runtime::clock::ManualClock;
use runtime::metrics::Metrics;
use schemas::codec::decode;
use schemas::event::{EndReason, RequestFinished, TokensCounted};
use uuid::Uuid;

use super::disk::Disk;
use super::frame::{Position, Record};
use super::segment::name_of;
use super::*;
use crate::simulation::disk::{Fault, SimDisk};
use crate::simulation::{FOREVER, PARTITIONS, START, admission, finish, open, settings};

const BOOT: Uuid = Uuid::from_u128(1);
const OTHER_BOOT: Uuid = Uuid::from_u128(2);

fn clock() -> ManualClock {
    ManualClock::at(START)
}

fn start(disk: &SimDisk) -> Spool {
    open(disk, BOOT, &settings(), &clock()).unwrap().spool
}

fn records(disk: &SimDisk) -> Vec<Record> {
    let mut found = Vec::new();
    let topics = gateway_topics(PARTITIONS);
    scan::scan(disk, &topics, BOOT, Position::default(), &mut |_, record| found.push(record.clone())).unwrap();
    found
}

fn counts(disk: &SimDisk) -> Vec<TokensCounted> {
    let tokens = records(disk).into_iter().filter(|record| record.topic == TOKENS);
    tokens.filter_map(|record| record.value).map(|value| decode(&value).unwrap()).collect()
}

/// The records of `source` as they are shipped (a mark's time is not), without the name of the source after it, which is
/// chance.
fn of_source(disk: &SimDisk, source: Uuid) -> Vec<Record> {
    let mut found: Vec<_> = records(disk).into_iter().filter(|record| record.source == source).collect();
    for mark in found.iter_mut().filter(|record| record.value.is_none()) {
        mark.time = 0;
        mark.headers.retain(|(name, _)| name != "next");
    }
    found
}

/// Three requests in the middle of their answers: one billed in part, one with counts in the table only, one with nothing.
fn killed_in_the_middle() -> (SimDisk, Uuid) {
    let disk = SimDisk::new();
    let spool = start(&disk);
    let mut open: Vec<_> = (1..=4).map(|n| spool.admit(admission(n, ["a", "b"][n as usize % 2])).unwrap()).collect();
    for (n, request) in open.iter_mut().enumerate() {
        request.attempt(1, "replica-9");
        (1..=3 * n as u64).for_each(|tokens| request.received(12, tokens, tokens / 3));
    }
    assert!(open[2].checkpoint().unwrap().is_some());
    open[2].received(12, 20, 4);
    spool.flush().unwrap();
    open.remove(3).finish(finish(Usage::Running));
    disk.kill();
    let source = spool.source().0;
    (disk.after_kill(), source)
}

#[test]
fn recovery_finishes_what_was_open_with_what_the_table_says() {
    let (disk, source) = killed_in_the_middle();
    let Opened { recovery, .. } = open(&disk, BOOT, &settings(), &clock()).unwrap();
    assert_eq!(recovery.before, Some(ledger::ids::SourceId(source)));
    let lost: Vec<_> = recovery.lost.iter().map(|lost| (lost.request.0.as_u128(), lost.settled)).collect();
    let counts_of = |input, output, reasoning| TokenCounts { input, cached_input: 0, output, reasoning };
    let settled = |counts| Settled { counts, answered: true, estimated: true };
    let nothing = Settled { counts: TokenCounts::default(), answered: false, estimated: false };
    assert_eq!(lost, [(1, nothing), (2, settled(counts_of(12, 3, 1))), (3, settled(counts_of(12, 20, 4)))]);
    let events = counts(&disk);
    let last = events.iter().rfind(|event| event.request_id.0.as_u128() == 3).unwrap();
    assert_eq!((last.input, last.output, last.reasoning), (12, 14, 2), "the rest after the checkpoint");
    assert_eq!((last.end_reason, last.estimated, last.requests), (Some(EndReason::GatewayLost), true, 1));
    assert_eq!((last.attempt, last.replica.as_str()), (1, "replica-9"));
    let topic = schemas::topic::TOKENS;
    let partition = crate::partition::partition_of(last.tenant_id.as_str().as_bytes(), PARTITIONS);
    let derived = ledger::ids::EventId::of_recovery(last.source, topic, partition, last.seq as u64);
    assert_eq!(last.event_id, derived);
    let ends = records(&disk).into_iter().filter(|record| record.topic == REQUESTS).filter_map(|record| record.value);
    let ends: Vec<RequestFinished> = ends.map(|value| decode(&value).unwrap()).collect();
    assert_eq!(ends.len(), 4);
    assert_eq!(ends.last().unwrap().attempts, 2);
}

#[test]
fn recovery_killed_at_every_step_and_run_again_gives_the_same_bytes_as_on_a_cloned_volume() {
    let (disk, source) = killed_in_the_middle();
    let whole = disk.after_kill();
    let begun = whole.steps();
    open(&whole, BOOT, &settings(), &clock()).unwrap();
    let steps = whole.steps() - begun;
    let wanted = of_source(&whole, source);
    assert_eq!(wanted.len(), 1 + 2 * 4 + 4, "a checkpoint, four ends, one mark in each partition");
    for step in 0..steps {
        for fault in [Fault::Crash(0), Fault::Crash(33), Fault::CrashAfter] {
            for later in 0..4 {
                let first = disk.after_kill();
                first.fail_at(step, fault);
                assert!(open(&first, BOOT, &settings(), &clock()).is_err());
                let second = first.after_kill();
                second.fail_at(step / 2 + later, fault);
                let _ = open(&second, BOOT, &settings(), &clock());
                let third = second.after_kill();
                // A later start: nothing of recovery depends on the time of day.
                let later = ManualClock::at(START + 77_000_000);
                open(&third, BOOT, &settings(), &later).unwrap();
                let found = of_source(&third, source);
                assert!(found == wanted, "step {step} {fault:?}");
            }
        }
    }
}

#[test]
fn a_table_from_before_a_reboot_is_ignored_and_the_last_checkpoint_billed() {
    let (disk, _) = killed_in_the_middle();
    let Opened { recovery, .. } = open(&disk, OTHER_BOOT, &settings(), &clock()).unwrap();
    let outputs: Vec<_> = recovery.lost.iter().map(|lost| lost.settled.counts.output).collect();
    assert_eq!(outputs, [0, 0, 6]);
    assert_eq!(recovery.lost[2].settled.counts.input, 12);
}

#[test]
fn a_new_source_is_never_earlier_than_the_watermark_of_the_one_before() {
    let disk = SimDisk::new();
    let spool = start(&disk);
    let mut request = spool.admit(admission(1, "a")).unwrap();
    request.received(1, 1, 0);
    assert!(spool.watermark().unwrap().is_some());
    disk.kill();
    let disk = disk.after_kill();
    let back = ManualClock::at(START - 3_600_000_000);
    let Opened { spool, .. } = open(&disk, BOOT, &settings(), &back).unwrap();
    spool.admit(admission(2, "a")).unwrap();
    assert!(counts(&disk).iter().all(|event| event.occurred_at.0 >= START), "an hour back changes nothing");
}

#[test]
fn damage_in_what_was_whole_stops_the_start_and_a_torn_tail_does_not() {
    let (disk, _) = killed_in_the_middle();
    let last = disk.list().unwrap().iter().filter_map(|name| segment::number_of(name)).max().unwrap();
    let opened = |disk: &SimDisk, boot| open(disk, boot, &settings(), &clock());
    for (boot, at, is_torn) in [(BOOT, 60, false), (BOOT, -3, true), (OTHER_BOOT, 60, false), (OTHER_BOOT, -3, true)] {
        let disk = disk.after_kill();
        disk.damage(&name_of(last), |bytes| {
            let at = if at < 0 { bytes.len() - 3 } else { at as usize };
            bytes[at] ^= 1;
        });
        match opened(&disk, boot) {
            Ok(opened) => assert!(is_torn && opened.recovery.torn_bytes > 0, "{at}"),
            Err(OpenError::Scan(ScanError::Damaged { .. })) => assert!(!is_torn, "{at}"),
            Err(other) => panic!("{other}"),
        }
    }
    // Once another segment follows, its length is known: a tail that is gone is no torn one.
    let disk = disk.after_kill();
    opened(&disk, BOOT).unwrap();
    disk.kill();
    let disk = disk.after_kill();
    disk.damage(&name_of(last), |bytes| bytes.truncate(bytes.len() - 1));
    assert!(matches!(opened(&disk, BOOT), Err(OpenError::Scan(ScanError::Damaged { .. }))));
}

#[test]
fn what_a_failed_sync_gave_up_is_written_again_by_the_next_process() {
    let disk = SimDisk::new();
    let spool = start(&disk);
    let mut request = spool.admit(admission(1, "a")).unwrap();
    request.received(5, 6, 0);
    request.finish(finish(Usage::Running));
    // The sync fails, and the process is killed before it can go on in a new segment.
    disk.fail_at(0, Fault::Error);
    disk.fail_at(1, Fault::Crash(0));
    assert!(spool.flush().is_err() && disk.is_dead());
    let disk = disk.after_kill();
    start(&disk);
    let disk = disk.after_host_crash(|_| 0);
    open(&disk, OTHER_BOOT, &settings(), &clock()).unwrap();
    assert_eq!(counts(&disk).iter().map(|event| event.output).sum::<i64>(), 6);
}

#[test]
fn the_version_that_really_serves_is_booked_after_a_crash_too() {
    let disk = SimDisk::new();
    let spool = start(&disk);
    let mut request = spool.admit(admission(1, "a")).unwrap();
    let before = request.admission().version.clone();
    request.attempt(0, "r");
    request.serves(&before);
    request.serves(&"v-other".parse().unwrap());
    request.received(3, 4, 0);
    disk.kill();
    let disk = disk.after_kill();
    let Opened { recovery, .. } = open(&disk, BOOT, &settings(), &clock()).unwrap();
    assert_eq!(recovery.lost.len(), 1, "it is one request");
    let versions: Vec<_> = counts(&disk).iter().map(|event| event.version.to_string()).collect();
    assert_eq!(versions, ["v-other"]);
}

#[test]
fn a_segment_that_is_missing_stops_the_start() {
    for gone in [1, 2] {
        let disk = SimDisk::new();
        for _ in 0..3 {
            start(&disk);
        }
        assert!(disk.list().unwrap().contains(&name_of(3)));
        disk.remove(&name_of(gone)).unwrap();
        let error = open(&disk, BOOT, &settings(), &clock()).unwrap_err();
        assert!(matches!(error, OpenError::Scan(ScanError::Missing(number)) if number == gone), "{error}");
    }
}

#[test]
fn other_partitions_than_the_spool_was_written_for_are_refused() {
    let disk = SimDisk::new();
    start(&disk);
    let topics = gateway_topics(PARTITIONS + 1);
    let error = Spool::open_on(Arc::new(disk), BOOT, &settings(), topics, Arc::new(clock()), None).unwrap_err();
    assert!(error.to_string().contains("partitions are fixed"), "{error}");
}

#[test]
fn a_full_spool_refuses_by_type_keeps_room_for_every_end_and_serves_unmetered_when_asked() {
    let disk = SimDisk::new();
    let small = SpoolSettings { max_bytes: 64_000, segment_bytes: 16_000, slots: 1000, ..settings() };
    let Opened { spool, .. } = open(&disk, BOOT, &small, &clock()).unwrap();
    let metrics = Metrics::new();
    spool.meter(&metrics).unwrap();
    let mut open = Vec::new();
    let refused = loop {
        match spool.admit(admission(open.len() as u128 + 1, "a")) {
            Ok(request) => open.push(request),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, AdmitError::Full { max: 64_000, .. }) && refused.is_no_room(), "{refused}");
    assert!(spool.stats().full && open.len() > 5);
    spool.observe();
    assert!(metrics.text().contains("tollgate_spool_full 1"));

    // Served although it is full, and still full at its end: lost, and said.
    let mut unmetered = spool.admit_unmetered(admission(900, "a"));
    unmetered.received(10, 5, 0);
    assert_eq!(unmetered.checkpoint().unwrap(), None);
    let lost = unmetered.finish(finish(Usage::Running));
    assert!(lost.lost && lost.settled.answered);
    assert!(metrics.text().contains(r#"tollgate_spool_lost_total{reason="spool_full"} 1"#), "{}", metrics.text());
    // One that got nothing owes nothing.
    assert!(!spool.admit_unmetered(admission(901, "a")).finish(finish(Usage::Nothing)).lost);

    // Every end has its room, whatever comes between.
    let late = spool.admit_unmetered(admission(902, "a"));
    for mut request in open {
        request.received(10, 2, 0);
        let _ = request.checkpoint().unwrap();
        assert!(!request.finish(finish(Usage::Running)).delayed);
    }
    assert!(spool.stats().bytes <= small.max_bytes, "{:?}", spool.stats());
    // With room again at its end, an unmetered request is recorded like any other.
    let mut late = late;
    late.received(10, 7, 0);
    assert!(!late.finish(finish(Usage::Running)).lost);
    let event = counts(&disk).into_iter().find(|event| event.request_id.0.as_u128() == 902).unwrap();
    assert_eq!((event.output, event.last, event.requests), (7, true, 1));
    assert_eq!(spool.close().unwrap(), 0);
}

#[test]
fn no_more_requests_than_slots_are_open() {
    let disk = SimDisk::new();
    let one = SpoolSettings { slots: 1, ..settings() };
    let Opened { spool, .. } = open(&disk, BOOT, &one, &clock()).unwrap();
    let first = spool.admit(admission(1, "a")).unwrap();
    assert!(matches!(spool.admit(admission(2, "a")), Err(AdmitError::NoSlot(1))));
    drop(first);
    spool.admit(admission(3, "a")).unwrap();
    assert_eq!(counts(&disk).last().unwrap().end_reason, Some(EndReason::GatewayLost), "dropped without an end");
}

#[test]
fn the_room_kept_for_an_end_holds_the_largest_one() {
    let disk = SimDisk::new();
    let spool = start(&disk);
    let long = "x".repeat(64);
    let mut largest = admission(u128::MAX, &long);
    largest.project = long.parse().unwrap();
    largest.model = long.parse().unwrap();
    largest.version = long.parse().unwrap();
    largest.endpoint = "é".repeat(500);
    let mut request = spool.admit(largest).unwrap();
    request.attempt(u32::MAX >> 1, &long);
    let most = ledger::tokens::TOKENS_MAX;
    request.received(most, most, most);
    let before = spool.stats().bytes;
    let counts = TokenCounts { input: most, cached_input: most, output: most, reasoning: most };
    let error_code = Some("é".repeat(500));
    let finished = request.finish(Finish { error_code, ..finish(Usage::Final(counts)) });
    assert!(!finished.lost && !finished.delayed);
    assert!(spool.stats().bytes - before <= CLOSING_ROOM);
}

#[test]
fn a_clock_that_steps_back_neither_stops_checkpoints_nor_goes_back_in_the_log() {
    let (disk, clock) = (SimDisk::new(), clock());
    let Opened { spool, .. } = open(&disk, BOOT, &settings(), &clock).unwrap();
    let mut request = spool.admit(admission(1, "a")).unwrap();
    request.received(1, 1, 0);
    assert!(!request.due(spool.now()));
    clock.advance(2_000_000);
    assert!(request.due(spool.now()));
    request.checkpoint().unwrap().unwrap();
    request.received(1, 2, 0);
    clock.advance(-3_600_000_000);
    assert!(request.due(spool.now()));
    request.checkpoint().unwrap().unwrap();
    let times: Vec<_> = counts(&disk).iter().map(|event| event.occurred_at.0).collect();
    assert_eq!(times, [START + 2_000_000; 2]);
}

#[test]
fn a_cursor_is_kept_on_a_disk_without_room_so_that_segments_can_go() {
    let disk = SimDisk::new();
    let spool = start(&disk);
    for n in 1..40 {
        drop(spool.admit(admission(n, "a")).unwrap());
        spool.flush().unwrap();
    }
    disk.set_room(Some(disk.used()));
    let (before, tenant): (_, TenantId) = (spool.stats(), "a".parse().unwrap());
    assert!(before.segments > 4);
    let cursor = cursor::Cursor { acked: spool.frontier(), offsets: vec![vec![100; 2]; 2] };
    spool.advance(&cursor).unwrap();
    spool.reclaim().unwrap();
    assert_eq!(spool.stats().segments, 1);
    assert_eq!(spool.stats().unshipped_bytes, 0);
    // What they had spent is still known after a restart, until a balance shows it.
    let spent = spool.total_spend(&tenant, FOREVER.0, FOREVER.1);
    disk.kill();
    let disk = disk.after_kill();
    let again = start(&disk);
    assert_eq!(again.total_spend(&tenant, FOREVER.0, FOREVER.1), spent);
    assert!(disk.list().unwrap().contains(&"spare-room".to_owned()));
}

#[test]
fn a_directory_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let settings = SpoolSettings { dir: dir.path().into(), ..SpoolSettings::default() };
    let start = || Spool::open(&settings, gateway_topics(PARTITIONS), Arc::new(clock()));
    let opened = start().unwrap();
    assert!(opened.recovery.first_start);
    assert!(matches!(start(), Err(OpenError::InUse(_))));
    let id = opened.spool.id();
    drop(opened);
    let opened = start().unwrap();
    assert!(!opened.recovery.first_start);
    assert_eq!(opened.spool.id(), id);
}

#[tokio::test]
async fn the_durability_of_the_host_waits_for_the_disk_a_late_end_included() {
    let disk = SimDisk::new();
    let host = SpoolSettings { durability: Durability::Host, ..settings() };
    let Opened { spool, .. } = open(&disk, BOOT, &host, &clock()).unwrap();
    let mut request = spool.admit(admission(1, "a")).unwrap();
    request.received(1, 1, 0);
    let finished = request.finish(finish(Usage::Running));
    let mut settled = std::pin::pin!(spool.settled(&finished));
    assert!(futures_util::poll!(&mut settled).is_pending());
    spool.flush().unwrap();
    settled.await;

    let mut request = spool.admit(admission(2, "a")).unwrap();
    request.received(1, 1, 0);
    disk.set_room(Some(disk.used()));
    let finished = request.finish(finish(Usage::Running));
    assert!(finished.delayed);
    let tenant: TenantId = "a".parse().unwrap();
    assert_eq!(spool.total_spend(&tenant, FOREVER.0, FOREVER.1).requests, 2, "quotas count it all the same");
    let mut settled = std::pin::pin!(spool.settled(&finished));
    assert!(futures_util::poll!(&mut settled).is_pending());
    spool.retry_delayed();
    assert!(futures_util::poll!(&mut settled).is_pending());
    disk.kill();
    let disk = disk.after_kill();
    disk.set_room(None);
    let Opened { spool, .. } = open(&disk, BOOT, &host, &clock()).unwrap();
    assert_eq!(spool.total_spend(&tenant, FOREVER.0, FOREVER.1).requests, 2, "a kill finishes it from the table");
}

#[test]
fn an_answer_that_was_never_counted_on_the_way_is_billed_whole_although_the_disk_refuses_its_end() {
    let counts = TokenCounts { input: 5, cached_input: 6, output: 70, reasoning: 8 };
    for (usage, settled) in [
        (Usage::Final(counts), Settled { counts, answered: true, estimated: false }),
        (Usage::Nothing, Settled { counts: TokenCounts::default(), answered: false, estimated: false }),
    ] {
        let disk = SimDisk::new();
        let Opened { spool, .. } = open(&disk, BOOT, &settings(), &clock()).unwrap();
        let mut request = spool.admit(admission(1, "a")).unwrap();
        request.attempt(0, "replica-1");
        disk.set_room(Some(disk.used()));
        let finished = request.finish(finish(usage));
        assert_eq!((finished.delayed, finished.settled), (true, settled), "the client has it now");
        disk.kill();
        let disk = disk.after_kill();
        disk.set_room(None);
        let Opened { recovery, .. } = open(&disk, BOOT, &settings(), &clock()).unwrap();
        assert_eq!(recovery.lost.iter().map(|lost| lost.settled).collect::<Vec<_>>(), [settled]);
    }
}

#[tokio::test]
async fn a_late_end_is_settled_once_it_is_written_and_durable() {
    let (disk, clock) = (SimDisk::new(), clock());
    let host = SpoolSettings { durability: Durability::Host, ..settings() };
    let Opened { spool, .. } = open(&disk, BOOT, &host, &clock).unwrap();
    let mut request = spool.admit(admission(1, "a")).unwrap();
    request.received(1, 1, 0);
    disk.set_room(Some(disk.used()));
    let finished = request.finish(finish(Usage::Running));
    let mut settled = std::pin::pin!(spool.settled(&finished));
    disk.set_room(None);
    clock.advance(1_000_000);
    assert!(futures_util::poll!(&mut settled).is_pending());
    spool.retry_delayed();
    spool.flush().unwrap();
    settled.await;
    let tenant: TenantId = "a".parse().unwrap();
    assert_eq!(spool.total_spend(&tenant, FOREVER.0, FOREVER.1).requests, 1, "counted once, not as promised too");
    assert_eq!(spool.close().unwrap(), 0);
}

#[test]
fn the_flusher_makes_durable_and_ends_after_the_close() {
    let dir = tempfile::tempdir().unwrap();
    let settings = SpoolSettings { dir: dir.path().into(), fsync_interval_ms: 1, ..SpoolSettings::default() };
    let Opened { spool, flusher, .. } = Spool::open(&settings, gateway_topics(PARTITIONS), Arc::new(clock())).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| flusher.run());
        for n in 1..200 {
            let mut request = spool.admit(admission(n, "a")).unwrap();
            request.received(1, 2, 3);
            request.finish(finish(Usage::Running));
        }
        assert_eq!(spool.close().unwrap(), 0);
    });
    assert!(spool.is_flushed());
    assert!(matches!(spool.admit(admission(1000, "a")), Err(AdmitError::Append(AppendError::Closed))));
}

proptest! {
    #[test]
    fn foreign_bytes_in_the_last_segment_never_panic_and_never_open_as_a_hole(
        at in any::<proptest::sample::Index>(), bytes in proptest::collection::vec(any::<u8>(), 1..80), boot in any::<bool>()
    ) {
        let (disk, _) = killed_in_the_middle();
        let last = disk.list().unwrap().iter().filter_map(|name| segment::number_of(name)).max().unwrap();
        disk.damage(&name_of(last), |content| {
            let at = at.index(content.len());
            let end = (at + bytes.len()).min(content.len());
            content[at..end].copy_from_slice(&bytes[..end - at]);
        });
        if open(&disk, if boot { BOOT } else { OTHER_BOOT }, &settings(), &clock()).is_ok() {
            records(&disk);
        }
    }
}
