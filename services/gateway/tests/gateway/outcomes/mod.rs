//! Every endpoint in every way that a request can end: status, body, end reason and tokens, each held against what the
//! simulated engine knows that it made and handed out.
//!
//! A cell is an endpoint, streamed or whole, and an outcome. `SUBJECTS` lists the endpoints, and a test holds it against
//! those that the gateway has; so one that is added brings its cells.

mod expected;
mod held;
mod subjects;

use std::collections::BTreeSet;

use embedded::vllm::{ArmedFault, RequestRecord, Simulator, SimulatorSettings, When};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use self::expected::{Body, Outcome, expected};
use self::held::{billed, events, said};
use self::subjects::{SUBJECTS, Subject, Voice, booked};
use crate::answers::{comparable, direct};
use crate::world::{Answer, Setup, World, simulator, until, whole};

/// What the client got: nothing at all, or an answer.
async fn asked(world: &World, replica: &Simulator, subject: &Subject, outcome: Outcome) -> Option<Answer> {
    let body = subject.body();
    let arrived = until("the replica has it", || !replica.requests().is_empty());
    let handed = until("what comes before the silence is out", || {
        replica.requests().first().is_some_and(|request| request.wire_events > 0)
    });
    match outcome {
        Outcome::GoneBefore => tokio::select! {
            _ = world.open(subject.path, &body) => panic!("no answer can come"),
            () = arrived => None,
        },
        Outcome::GoneWithin if !subject.stream => tokio::select! {
            _ = world.open(subject.path, &body) => panic!("no answer can come"),
            () = handed => None,
        },
        Outcome::Drained if !subject.stream => {
            let stop = async {
                handed.await;
                world.ask_to_stop();
            };
            let (answer, ()) = tokio::join!(world.try_open(subject.path, &body), stop);
            assert!(answer.is_err(), "no answer can come");
            None
        }
        Outcome::GoneWithin | Outcome::Drained => {
            let mut response = world.open(subject.path, &body).await;
            let seen = read_until(&mut response, |seen| events(seen) > u64::from(subject.before_third)).await;
            if outcome == Outcome::Drained {
                world.ask_to_stop();
                let rest = whole(response).await;
                return Some(Answer { body: seen + &rest.body, ..rest });
            }
            Some(gone(response, seen))
        }
        Outcome::GoneAtTheEnd => {
            let mut response = world.open(subject.path, &body).await;
            let end = match subject.voice {
                Voice::Messages => "message_stop\"}\n\n",
                Voice::Responses => "\"type\":\"response.completed\"}\n\n",
                _ => "[DONE]\n\n",
            };
            let seen = read_until(&mut response, |seen| !subject.stream || seen.ends_with(end)).await;
            Some(gone(response, seen))
        }
        Outcome::DrainedInTime => {
            let stop = async {
                handed.await;
                world.ask_to_stop();
            };
            let (answer, ()) = tokio::join!(world.post(subject.path, &body), stop);
            Some(answer)
        }
        _ => Some(world.post(subject.path, &body).await),
    }
}

async fn read_until(response: &mut http::Response<Incoming>, enough: impl Fn(&str) -> bool) -> String {
    let mut seen = String::new();
    while !enough(&seen) {
        let data = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
        seen.push_str(std::str::from_utf8(&data).unwrap());
    }
    seen
}

/// What a client that goes away has seen of an answer.
fn gone(response: http::Response<Incoming>, body: String) -> Answer {
    Answer { status: response.status(), headers: response.headers().clone(), body, ended: false }
}

async fn cell(subject: &Subject, outcome: Outcome) {
    let cell = format!("{} {} {outcome:?}", subject.path, if subject.stream { "stream" } else { "whole" });
    let runner = if outcome == Outcome::NotServed { subject.other_runner() } else { subject.runner() };
    let settings = SimulatorSettings { runner, ..SimulatorSettings::default() };
    let replica = simulator(settings.clone()).await;
    if let Some(fault) = outcome.fault(subject) {
        replica.arm(vec![ArmedFault { fault: fault.parse().unwrap(), when: When::Always, model: None }]);
    }
    let mut setup = Setup::new(&[&replica]);
    outcome.setup(&mut setup);
    let world = setup.start().await;
    let answer = asked(&world, &replica, subject, outcome).await;
    until(&format!("{cell}: the request has its end"), || !world.all().is_empty()).await;
    let id = world.all()[0].request_id.to_string();
    until(&format!("{cell}: the replica is let go"), || replica.requests().iter().all(|r| r.outcome != "running"))
        .await;
    let recorded = world.try_recorded(&id).unwrap();
    // What a replica has no path for, it has not seen.
    let unseen = RequestRecord { request_id: Some(id.clone()), ..RequestRecord::default() };
    let oracle = replica.requests().pop().unwrap_or(unseen);
    assert_eq!(oracle.request_id.as_ref(), Some(&id), "{cell}");
    let expected = expected(subject, outcome);
    let finished = &recorded.finished;
    let got = (recorded.reason(), finished.status, finished.error_code.as_deref());
    assert_eq!(got, (expected.reason, i32::from(expected.status), expected.code), "{cell}");
    assert_eq!((finished.endpoint.as_str(), finished.stream), (booked(subject.path), subject.stream), "{cell}");
    billed(&cell, subject, outcome, expected.bill, &recorded, &oracle);
    said(&cell, subject, &expected, answer.as_ref(), &oracle);
    if let (Body::Engine, Outcome::Complete, Some(answer)) = (expected.body, outcome, &answer) {
        let beside = simulator(settings).await;
        let direct = direct(&beside, &oracle.endpoint, &subject.body(), &id).await;
        assert_eq!(comparable(&answer.body, &id), comparable(&direct.body, &id), "{cell}");
    }
    world.stop().await;
}

async fn cells(outcome: Outcome) {
    let subjects = SUBJECTS.iter().filter(|subject| subject.path != "/v1/models");
    futures_util::future::join_all(subjects.map(|subject| cell(subject, outcome))).await;
}

macro_rules! outcomes {
    ($($name:ident => $outcome:ident,)*) => {
        $(#[tokio::test]
        async fn $name() {
            cells(Outcome::$outcome).await;
        })*
    };
}

outcomes! {
    complete => Complete,
    no_usage => NoUsage,
    gone_before => GoneBefore,
    gone_within => GoneWithin,
    gone_at_the_end => GoneAtTheEnd,
    refused => Refused,
    not_served => NotServed,
    too_many => TooMany,
    failed => Failed,
    overloaded => Overloaded,
    dies_before => DiesBefore,
    dies_within => DiesWithin,
    reset_within => ResetWithin,
    stalls_before => StallsBefore,
    stalls_within => StallsWithin,
    malformed_at_once => MalformedAtOnce,
    malformed_within => MalformedWithin,
    ends_early => EndsEarly,
    engine_dies => EngineDies,
    aborted => Aborted,
    deadline => Deadline,
    drained_in_time => DrainedInTime,
    drained => Drained,
}

#[test]
fn every_endpoint_has_its_cells() {
    let here: BTreeSet<(&str, bool)> = SUBJECTS.iter().map(|subject| (subject.path, subject.stream)).collect();
    let served = gateway::endpoints();
    let both = served.flat_map(|(path, streams)| [(path, false), (path, streams)]);
    assert_eq!(here, both.collect::<BTreeSet<_>>());
}
