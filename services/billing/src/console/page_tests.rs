//! The page with all of its figures, as they would come from ClickHouse.

use chrono::{DateTime, TimeZone as _, Utc};
use ledger::time::{Period, Slot};
use ledger::tokens::TokenClass;
use uuid::Uuid;

use super::*;
use crate::figures::balance::PeriodShown;
use crate::figures::costs::UnratedLine;
use crate::figures::preview::{BillAdjustment, BillLine, Charges, UnratedQuantity};
use crate::figures::reconciliation::{LastRun, Run};
use crate::figures::requests::{RequestShown, RequestTokens, Requests};

fn at(hour: u32) -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 24, hour, 0, 0).unwrap()
}

fn period() -> PeriodShown {
    PeriodShown::of(Period { from: Slot(0), to: Slot(96) }, chrono_tz::UTC).unwrap()
}

fn balance() -> Balance {
    Balance {
        tenant: "acme".parse().unwrap(),
        plan: "free".parse().unwrap(),
        period: period(),
        tokens: 1_234_567,
        requests: 42,
        models: vec![],
        limit: Some(1_000_000),
        left: Some(0),
        as_of: None,
    }
}

fn costs() -> Costs {
    let unrated = UnratedLine {
        project: "default".parse().unwrap(),
        model: "llama".parse().unwrap(),
        class: TokenClass::Output,
        tokens: 5,
        from: at(1),
        to: at(2),
    };
    Costs {
        tenant: "acme".parse().unwrap(),
        currency: "USD".parse().unwrap(),
        from: at(0),
        to: at(1),
        time_zone: chrono_tz::UTC,
        group_by: vec![],
        charged: "0.255".into(),
        data: vec![],
        unrated: vec![unrated],
    }
}

fn bill() -> Bill {
    let (project, model) = ("default".parse().unwrap(), "llama".parse().unwrap());
    let unrated = UnratedQuantity { project, model, class: TokenClass::Output, tokens: 5, late: false };
    let line = BillLine {
        project: "default".parse().unwrap(),
        model: "llama".parse().unwrap(),
        class: TokenClass::CachedInput,
        tokens: 1_020_000,
        per_million: "0.25".into(),
        exact: "0.255".into(),
        amount: "0.26".into(),
        late: true,
    };
    let correction = BillAdjustment {
        id: "8b0f6b3e".into(),
        reason: "counted <twice>".into(),
        project: "default".parse().unwrap(),
        model: "llama".parse().unwrap(),
        class: TokenClass::Output,
        slot: at(3),
        tokens: -1_500,
        per_million: Some("2".into()),
        exact: "-0.003".into(),
        amount: "0.00".into(),
        late: false,
    };
    Bill {
        tenant: "acme".parse().unwrap(),
        as_of: at(12),
        currency: "USD".parse().unwrap(),
        charges: Charges {
            period: period(),
            late_from: at(2),
            lines: vec![line],
            adjustments: vec![correction],
            unrated: vec![unrated],
            exact: "0.255".into(),
            rounding: "0.00".into(),
            total: "0.26".into(),
        },
        late_of_period_before: Some(Charges {
            period: PeriodShown { name: "2026-10".into(), ..period() },
            late_from: at(1),
            lines: vec![],
            adjustments: vec![],
            unrated: vec![],
            exact: "1".into(),
            rounding: "0.00".into(),
            total: "1.00".into(),
        }),
    }
}

fn request(end_reason: &str, tokens: Option<RequestTokens>) -> RequestShown {
    RequestShown {
        id: ledger::ids::RequestId(Uuid::from_u128(7)),
        project: "default".parse().unwrap(),
        key: ledger::ids::ApiKeyId(Uuid::from_u128(8)),
        model: "llama".parse().unwrap(),
        version: "v1".parse().unwrap(),
        endpoint: "<chat>".into(),
        stream: true,
        status: 200,
        end_reason: end_reason.into(),
        error_code: None,
        attempts: 1,
        received_at: at(10),
        first_byte_at: None,
        ended_at: at(11),
        tokens,
    }
}

fn dashboard() -> Dashboard {
    let total = SignedCounts { input: 7, requests: 1, ..SignedCounts::default() };
    let tokens = RequestTokens { input: 1234, cached_input: 0, output: 9, reasoning: 0 };
    let svg = chart::svg(&[Day { label: "1".into(), tokens: [7, 0, 0, 0] }]).unwrap();
    Dashboard {
        admin: false,
        choices: vec![],
        reconciliation: None,
        shown: Some(Shown {
            id: "acme".parse().unwrap(),
            name: "A & B".into(),
            balance: balance(),
            per_day: Ok(PerDay { total, tokens: 7, svg }),
            costs: Ok(costs()),
            bill: Ok(bill()),
            requests: Ok(Requests {
                tenant: "demo".parse().unwrap(),
                data: vec![request("complete", Some(tokens)), request("gateway_lost", None)],
                next_cursor: None,
                sealed_until: None,
            }),
        }),
    }
}

#[test]
fn the_page_shows_every_figure_and_escapes_every_text() {
    let html = dashboard().render().unwrap();
    for shown in [
        "A &#38; B",
        "data-value=\"1234567\">1\u{202f}234\u{202f}567<",
        "value=\"1000\"",
        "id=\"charged\" data-value=\"0.255\"",
        "1 sorts of usage have no price",
        "<svg",
        "<td>cached input <span class=\"note\">late</span></td><td class=\"number\">1\u{202f}020\u{202f}000</td><td class=\"number\">0.25</td>",
        "no price: unrated",
        "2026-10 came late: 1.00 USD",
        "counted &#60;twice&#62;",
        "<td class=\"number\">\u{2212}1\u{202f}500</td>",
        "id=\"total\" data-value=\"0.26\">0.26 USD",
        "&#60;chat&#62;",
        "gateway_lost",
        "not counted yet",
        "2026-11-24 11:00:00",
    ] {
        assert!(html.contains(shown), "{shown} is not in {html}");
    }
    assert!(!html.contains("<chat>"));
}

#[test]
fn the_limit_is_a_share_of_a_thousand() {
    let mut shown = dashboard().shown.unwrap();
    for (tokens, limit, share) in [(0, 10, 0), (5, 10, 500), (20, 10, 1000), (1, 0, 1000), (u64::MAX, u64::MAX, 1000)] {
        (shown.balance.tokens, shown.balance.limit) = (tokens, Some(limit));
        assert_eq!(shown.used_of_limit(), Some(share));
    }
    shown.balance.limit = None;
    assert_eq!(shown.used_of_limit(), None);
}

#[test]
fn the_admin_sees_what_differs_and_where() {
    let difference = serde_json::from_str(
        r#"{"check": "counts", "topic": "tollgate.tokens.v1", "partition": 3, "hour": "2026-11-01T00:00:00Z", "tenant": "acme",
            "figure": "output", "one": {"of": "running count", "is": 7}, "other": {"of": "counts add up to", "is": 12},
            "by": 5, "request_ids": ["00000000-0000-0000-0000-000000000005"]}"#,
    );
    let at = chrono::DateTime::UNIX_EPOCH;
    let run = Run { at, from: at, to: at, duration_ms: 9, differences: 1, pending: 0 };
    let last = LastRun {
        run: run.clone(),
        ok: false,
        compared: std::collections::BTreeMap::new(),
        found: vec![difference.unwrap()],
        waiting: vec![],
    };
    let reconciliation = Some(Ok(Reconciliation { last: Some(last), runs: vec![run] }));
    let html = Dashboard { admin: true, reconciliation, ..dashboard() }.render().unwrap();
    assert!(html.contains("tollgate.tokens.v1/3, 2026-11-01T00:00:00Z, acme"), "{html}");
    assert!(html.contains("00000000-0000-0000-0000-000000000005") && html.contains("counts add up to 12"), "{html}");
    assert!(!dashboard().render().unwrap().contains("Reconciliation"), "nobody else sees it");
}
