//! Levels against a book of what was taken.

use super::*;
use proptest::prelude::*;
use uuid::Uuid;

const NOW: Micros = Micros(1_772_323_200_000_000);

fn limits(requests: Option<u64>, tokens: Option<u64>, concurrent: Option<u64>) -> Limits {
    Limits { requests_per_minute: requests, tokens_per_minute: tokens, concurrent_requests: concurrent }
}

fn key(at: usize) -> ApiKeyId {
    ApiKeyId(Uuid::from_u128(at as u128))
}

#[test]
fn the_refusal_names_the_limit_that_takes_longest_to_have_room() {
    let project = "search".parse().unwrap();
    let caps = Caps {
        plan: limits(Some(10), Some(1000), None),
        project: (&project, limits(None, Some(300), Some(2))),
        key: (key(1), limits(Some(1), None, None)),
    };
    let mut levels = Levels::new(Keeper::Alone(1));
    let first = levels.take(&caps, 250, NOW).unwrap();
    let wait = |limit, asked, wait_micros| RateLimited::Wait { limit, asked, wait_micros };
    let refused = levels.take(&caps, 100, NOW).unwrap_err();
    assert_eq!(refused, Limited::Requests(Level::Key, wait(1, 1, 60_000_000)));
    let standing = levels.standing(&caps, NOW);
    assert_eq!(standing.requests, Some(MinuteStanding { limit: 1, remaining: 0, reset_micros: 60_000_000 }));
    assert_eq!(standing.tokens, Some(MinuteStanding { limit: 300, remaining: 50, reset_micros: 50_000_000 }));
    let other = Caps { key: (key(2), limits(None, None, None)), ..caps };
    let refused = levels.take(&other, 100, NOW).unwrap_err();
    assert_eq!(refused, Limited::Tokens(Level::Project, wait(300, 100, 10_000_000)));
    let second = levels.take(&other, 50, NOW).unwrap();
    assert_eq!(levels.take(&other, 0, NOW).unwrap_err(), Limited::Concurrent(Level::Project, 2));
    let large = levels.take(&other, 301, NOW).unwrap_err();
    assert_eq!(large, Limited::Tokens(Level::Project, RateLimited::TooLarge { limit: 300, asked: 301 }));
    levels.close(second, true, NOW);
    levels.close(first, false, NOW);
    assert_eq!(levels.standing(&caps, NOW).requests.unwrap().remaining, 1);
}

#[test]
fn keys_whose_limits_went_are_forgotten_when_nothing_is_left_to_know() {
    let project = "search".parse().unwrap();
    let mut levels = Levels::new(Keeper::Alone(1));
    for at in 0..10_000 {
        let caps =
            |limits| Caps { plan: Limits::default(), project: (&project, Limits::default()), key: (key(at), limits) };
        let hold = levels.take(&caps(limits(None, Some(100), None)), 50, NOW).unwrap();
        levels.close(hold, true, Micros(NOW.0 + 120_000_000 * at as i64));
        assert!(levels.take(&caps(limits(None, None, None)), 50, NOW).is_ok());
    }
    assert!(levels.all.keys.0.len() <= 10_000);
    let unlimited =
        Caps { plan: Limits::default(), project: (&project, Limits::default()), key: (key(70_000), Limits::default()) };
    levels.take(&unlimited, 1, NOW).unwrap();
    assert!(!levels.all.keys.0.contains_key(&key(70_000)));
}

/// A step of the property below: which caller, and what happens.
#[derive(Debug, Clone)]
enum Step {
    Take { key: usize, tokens: u64 },
    Correct { which: usize, tokens: u64 },
    Close { which: usize, counts: bool },
    Control { level: usize, limits: Limits },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let limit = || prop::option::weighted(0.7, 0u64..12);
    let limits = (limit(), prop::option::weighted(0.7, 0u64..500), limit()).prop_map(|(r, t, c)| limits(r, t, c));
    let step = prop_oneof![
        4 => (0usize..4, 0u64..120).prop_map(|(key, tokens)| Step::Take { key, tokens }),
        2 => (any::<usize>(), 0u64..200).prop_map(|(which, tokens)| Step::Correct { which, tokens }),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(which, counts)| Step::Close { which, counts }),
        1 => (0usize..7, limits).prop_map(|(level, limits)| Step::Control { level, limits }),
    ];
    prop::collection::vec(step, 0..120)
}

/// What has been taken of one level, by the book.
#[derive(Debug, Default, Clone, Copy)]
struct Book {
    open: u64,
    requests: i64,
    tokens: i64,
}

/// A hold, and of which levels (plan, project, key) it has a request and tokens, by the book.
struct Open {
    hold: Hold,
    tokens: u64,
    of: Vec<(usize, bool, bool)>,
}

proptest! {
    /// The clock stands, so nothing flows in: whatever happens in whatever order, each bucket holds its limit less what
    /// those took that took from it, to the last token; a request that is refused changes nothing; and what is open is
    /// counted once at every level.
    #[test]
    fn nothing_leaks_and_nothing_is_taken_twice(steps in steps()) {
        let projects: [ProjectId; 2] = ["a".parse().unwrap(), "b".parse().unwrap()];
        // The plan, two projects, four keys: the even ones in the first project.
        let (mut control, mut book) = ([Limits::default(); 7], [Book::default(); 7]);
        let (mut levels, mut open): (Levels, Vec<Open>) = (Levels::new(Keeper::Alone(1)), Vec::new());
        let places = |at: usize| [0, 1 + at % 2, 3 + at];
        for step in steps {
            match step {
                Step::Control { level, limits } => control[level] = limits,
                Step::Take { key: at, tokens } => {
                    let [plan, project, own] = places(at);
                    let caps = Caps { plan: control[plan], project: (&projects[at % 2], control[project]), key: (key(at), control[own]) };
                    let fits = places(at).into_iter().all(|place| {
                        let (limits, book) = (control[place], book[place]);
                        let has = |limit: Option<u64>, used: i64, more: u64| limit.is_none_or(|limit| used + more as i64 <= limit as i64);
                        has(limits.requests_per_minute, book.requests, 1) && has(limits.tokens_per_minute, book.tokens, tokens)
                            && limits.concurrent_requests.is_none_or(|limit| book.open < limit)
                    });
                    let taken = levels.take(&caps, tokens, NOW);
                    // Tokens that are not asked for fit a bucket in debt no better than others, so "fits" is exact.
                    prop_assert_eq!(taken.is_ok(), fits, "{:?} {:?}", taken, book);
                    let Ok(hold) = taken else { continue };
                    let there = [true, hold.of[1].is_some(), hold.of[2].is_some()];
                    let mut of = Vec::new();
                    for (place, _) in places(at).into_iter().zip(there).filter(|(_, there)| *there) {
                        let (limits, book) = (control[place], &mut book[place]);
                        let (requests, spent) = (limits.requests_per_minute.is_some(), limits.tokens_per_minute.is_some());
                        book.open += 1;
                        book.requests += i64::from(requests);
                        book.tokens += if spent { tokens as i64 } else { 0 };
                        of.push((place, requests, spent));
                    }
                    open.push(Open { hold, tokens, of });
                }
                Step::Correct { which, tokens } if !open.is_empty() => {
                    let at = which % open.len();
                    let one = &mut open[at];
                    levels.correct(&mut one.hold, tokens, NOW);
                    for (place, _, _) in one.of.iter().filter(|(_, _, spent)| *spent) {
                        book[*place].tokens += tokens as i64 - one.tokens as i64;
                    }
                    one.tokens = tokens;
                }
                Step::Close { which, counts } if !open.is_empty() => {
                    let one = open.swap_remove(which % open.len());
                    levels.close(one.hold, counts, NOW);
                    for (place, requests, _) in one.of {
                        book[place].open -= 1;
                        book[place].requests -= i64::from(requests && !counts);
                    }
                }
                _ => {}
            }
            let mut all = [None; 7];
            all[0] = Some(&levels.all.plan);
            for (at, project) in projects.iter().enumerate() {
                all[1 + at] = levels.all.projects.0.get(project);
            }
            for at in 0..4 {
                all[3 + at] = levels.all.keys.0.get(&key(at));
            }
            for (book, allowance) in book.iter().zip(all) {
                let Some(allowance) = allowance else { continue };
                let (there, requests, tokens) = allowance.shown();
                prop_assert_eq!(there, book.open);
                for (mut bucket, used) in [(requests, book.requests), (tokens, book.tokens)].into_iter().filter_map(|(b, u)| Some((b?, u))) {
                    let remaining = (bucket.limit() as i64 - used).max(0) as u64;
                    prop_assert_eq!(bucket.remaining(NOW), remaining);
                }
            }
        }
    }
}
