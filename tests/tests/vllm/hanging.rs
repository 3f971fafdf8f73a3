//! Answers that are not heard to their end: by clients that hang up, and by an engine that dies.

use http_body_util::BodyExt as _;
use hyper::Method;
use promises::figures::Counts;
use promises::system::Role;
use serde_json::{Value, json};

use crate::account::{Account, Why};
use crate::calls::{self, Call};
use crate::engine::Totals;
use crate::wire::{self, Told};
use crate::world::World;

/// A client that hangs up pays for what the gateway received: at least what it got, and at most what the engine sent. The
/// engine makes a few tokens more before it knows: they are told apart, and are on nobody's bill.
pub(crate) async fn one_by_one(world: &World, account: &mut Account) {
    let mut cut = Vec::new();
    for (call, reads) in calls::cut() {
        let before = world.totals().await;
        let (id, seen) = match reads {
            0 => (world.hang_up_at_once(&call).await, Vec::new()),
            reads => world.hang_up(&call, reads).await,
        };
        cut.push(Cut { call, reads, id, seen, counted: world.totals().await - before });
    }
    let ids: Vec<String> = cut.iter().map(|cut| cut.id.clone()).collect();
    for (cut, billed) in cut.iter().zip(world.billed(&ids).await) {
        enter(world, account, cut, billed);
    }
}

/// A request that was cut while the engines did nothing else.
struct Cut {
    call: Call,
    reads: usize,
    id: String,
    seen: Vec<u8>,
    counted: Totals,
}

fn enter(world: &World, account: &mut Account, cut: &Cut, billed: Counts) {
    let Cut { call, reads, id, seen, counted } = cut;
    let (reads, engine) = (*reads, world.answered(id));
    let name = format!("{} after {reads} reads", call.name);
    let got = String::from_utf8(seen.clone()).unwrap();
    assert!(wire::expected(call, &engine.body).starts_with(&got), "{name}: what was read is the engine's");
    let (least, _) = wire::told_so_far(&engine.body, wire::events(seen));
    let (_, most) = wire::told_so_far(&engine.body, usize::MAX);
    println!("  {name}: got {least:?}, sent {most:?}, billed {billed:?}, engine {counted:?}");
    let Told { generated, .. } = least;
    assert!((generated..=most.generated).contains(&billed.generated()), "{name}: what was received is billed");
    assert!(billed.generated() <= counted.generated, "{name}: more was billed than was made");
    assert!(counted.generated < call.prompts * calls::ENDLESS, "{name}: the engine was told to stop");
    let beyond = counted.prompt.cast_signed() - billed.prompt().cast_signed();
    let input = if billed.prompt() == 0 {
        assert_eq!((least.prompt, billed.generated()), (0, 0), "{name}: what was read is billed");
        (Why::Unanswered, beyond)
    } else if most.prompt == 0 {
        // No estimate is more than the bytes that were sent.
        assert!(
            billed.prompt() <= call.body.to_string().len() as u64,
            "{name}: the estimate is within the prompt's bytes"
        );
        (Why::Estimated, beyond)
    } else {
        assert_eq!(billed.prompt(), most.prompt, "{name}: the prompt");
        let others = most.prompt * (call.prompts - 1);
        assert!(beyond % most.prompt.cast_signed() == 0, "{name}: the engine counts a prompt for each choice");
        assert!((0..=others.cast_signed()).contains(&beyond), "{name}: and for no more than there are");
        (Why::EachChoice, beyond)
    };
    let in_flight = counted.generated - billed.generated();
    let outcome = if reads == 0 { "hung up at once" } else { "hung up" };
    account.enter((call.path, outcome), billed, *counted, &[input, (Why::InFlight, in_flight.cast_signed())]);
}

/// An engine that dies in the middle of a stream: the client is told, what it got is billed, and the other replica goes on.
pub(crate) async fn killed(world: &mut World) {
    let (call, _) = calls::cut().remove(0);
    let url = world.system.url(Role::Gateway, call.path);
    let answer = world.system.client.open(Method::POST, &url, Some(&world.keys[0]), call.bytes()).await.unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let (mut seen, mut body) = (Vec::new(), answer.into_body());
    while wire::events(&seen) < 20 {
        seen.extend_from_slice(&body.frame().await.expect("more").unwrap().into_data().unwrap());
    }
    let at = world.taps.iter().position(|tap| tap.answered(&id).is_some()).expect("a replica answered");
    world.engines[at].kill();
    while let Some(Ok(frame)) = body.frame().await {
        seen.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    let text = String::from_utf8(seen.clone()).unwrap();
    let last: Vec<&str> = text.trim_end().rsplit("\n\n").take(2).collect();
    let error: Value = serde_json::from_str(last[1].trim_start_matches("data: ")).unwrap();
    assert_eq!((last[0], &error["error"]["code"]), ("data: [DONE]", &json!("upstream_error")), "{text}");
    let billed = world.billed(std::slice::from_ref(&id)).await[0];
    // All events but that of the error.
    let (_, got) = wire::told_so_far(&world.answered(&id).body, wire::events(&seen) - 1);
    println!("  the client got {got:?}, billed {billed:?}");
    assert_eq!((billed.prompt(), billed.generated()), (got.prompt, got.generated), "what the client got is billed");
    assert!(got.generated > 0 && got.generated < calls::ENDLESS);
    let call = calls::whole().remove(0);
    for _ in 0..4 {
        assert_eq!(world.ask(&call).await.status, 200, "the other replica answers");
    }
}
