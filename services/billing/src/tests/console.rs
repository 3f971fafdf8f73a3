//! The console: signing in, what its answers allow, and that figures are still shown when ClickHouse is away.

use axum::body::Body;
use axum::http::{Request, StatusCode};

use super::memory::{ADMIN, Answer, Billing};

async fn page(billing: &Billing, path: &str, key: Option<&str>) -> Answer {
    let mut request = Request::get(path);
    if let Some(key) = key {
        request = request.header("cookie", format!("tollgate_key={key}"));
    }
    billing.request(request.body(Body::empty()).unwrap()).await
}

async fn sign_in(billing: &Billing, form: &str) -> Answer {
    let request = Request::post("/console/sign-in").header("content-type", "application/x-www-form-urlencoded");
    billing.request(request.body(Body::from(form.to_owned())).unwrap()).await
}

fn is_safe(answer: &Answer) {
    let policy = answer.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe") && !policy.contains("script-src"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert!(!answer.text.contains("<script") && !answer.text.contains("style=\""), "{}", answer.text);
}

#[tokio::test]
async fn a_key_is_kept_in_a_cookie_that_no_script_and_no_other_site_can_use() {
    let (billing, acme, _) = Billing::shop().await;
    let answer = sign_in(&billing, &format!("key={acme}")).await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::SEE_OTHER, Some("/console")));
    let cookie = answer.header("set-cookie").unwrap();
    assert!(cookie.starts_with(&format!("tollgate_key={acme};")), "{cookie}");
    assert!(
        cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict") && !cookie.contains("Secure"),
        "{cookie}"
    );
    let out = billing.request(Request::post("/console/sign-out").body(Body::empty()).unwrap()).await;
    assert!(out.header("set-cookie").unwrap().contains("Max-Age=0"), "{out:?}");
}

#[tokio::test]
async fn a_wrong_key_signs_nobody_in() {
    let (billing, ..) = Billing::shop().await;
    for (form, status) in [("key=tg_wrong", 401), ("key=", 400), ("", 400), ("key=a%3Bb", 400), ("key=a%0d%0ab", 400)] {
        let answer = sign_in(&billing, form).await;
        assert_eq!(answer.status.as_u16(), status, "{form}");
        assert!(answer.header("set-cookie").is_none() && answer.text.contains("name=\"key\""), "{form}");
        is_safe(&answer);
    }
    for key in [None, Some("tg_wrong")] {
        let answer = page(&billing, "/console", key).await;
        assert!(answer.text.contains("name=\"key\"") && !answer.text.contains("company"), "{answer:?}");
        is_safe(&answer);
    }
}

#[tokio::test]
async fn a_tenant_sees_itself_and_no_choice() {
    let (billing, acme, _) = Billing::shop().await;
    let answer = page(&billing, "/", Some(&acme)).await;
    assert_eq!(answer.status, StatusCode::OK);
    is_safe(&answer);
    assert!(answer.text.contains("The acme company") && !answer.text.contains("globex"), "{}", answer.text);
    assert!(
        answer.text.contains("id=\"tokens\" data-value=\"706\"")
            && answer.text.contains("id=\"left\" data-value=\"294\"")
    );
    assert!(answer.text.contains("ClickHouse does not answer"), "what is away is said: {}", answer.text);
    let other = page(&billing, "/console?tenant=globex", Some(&acme)).await;
    assert_eq!(other.status, StatusCode::FORBIDDEN);
    assert!(!other.text.contains("The globex company"), "{}", other.text);
    is_safe(&other);
}

#[tokio::test]
async fn the_admin_chooses_a_tenant() {
    let (billing, ..) = Billing::shop().await;
    let answer = page(&billing, "/console?tenant=globex", Some(ADMIN)).await;
    assert!(answer.text.contains("<option value=\"globex\" selected>"), "{}", answer.text);
    assert!(answer.text.contains("<h2>The globex company"), "{}", answer.text);
    for wrong in ["/console?tenant=nobody", "/console?tenant=a/b", "/console?colour=red"] {
        let answer = page(&billing, wrong, Some(ADMIN)).await;
        assert!(answer.status.is_client_error(), "{wrong}");
        is_safe(&answer);
    }
    let idle = serde_json::json!({"name": "Idle", "plan": "free", "currency": "USD", "time_zone": "UTC"});
    billing.put("tenants/aaa-idle", &idle).await;
    let first = page(&billing, "/console", Some(ADMIN)).await;
    assert!(first.text.contains("<h2>The acme company"), "who uses most is shown first: {}", first.text);
    let canary = serde_json::json!({"name": "Acme", "plan": "free", "currency": "XTS", "time_zone": "UTC"});
    billing.put("tenants/acme", &canary).await;
    let first = page(&billing, "/console", Some(ADMIN)).await;
    assert!(!first.text.contains("<h2>Acme"), "a canary is no customer: {}", first.text);
    let empty = page(&Billing::empty(), "/console", Some(ADMIN)).await;
    assert!(empty.text.contains("no tenant yet"), "{}", empty.text);
}

#[tokio::test]
async fn what_people_write_is_text_and_never_markup() {
    let (billing, acme, _) = Billing::shop().await;
    let name = "<script>alert('x')</script> & \"Sons\"";
    let body = serde_json::json!({"name": name, "plan": "free", "currency": "USD", "time_zone": "UTC"});
    billing.put("tenants/acme", &body).await;
    for key in [acme.as_str(), ADMIN] {
        let answer = page(&billing, "/console?tenant=acme", Some(key)).await;
        assert!(!answer.text.contains("<script>"), "{}", answer.text);
        assert!(answer.text.contains("&#60;script&#62;") || answer.text.contains("&lt;script&gt;"), "{}", answer.text);
        is_safe(&answer);
    }
}

#[tokio::test]
async fn the_operators_pages_are_the_admins_alone() {
    let (billing, acme, _) = Billing::shop().await;
    for path in ["/console/dead-letters", "/console/dead-letters/tokens/0/17", "/console/adjustments"] {
        let answer = page(&billing, path, Some(&acme)).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}");
        is_safe(&answer);
        let nobody = page(&billing, path, None).await;
        assert!(nobody.text.contains("name=\"key\""), "{path}: {nobody:?}");
    }
    assert!(!page(&billing, "/console", Some(&acme)).await.text.contains("dead-letters"), "and no way to them");
    assert!(page(&billing, "/console", Some(ADMIN)).await.text.contains("href=\"/console/dead-letters\""));
    for (path, status) in [
        ("/console/dead-letters", 503),
        ("/console/dead-letters?reason=nonsense", 400),
        ("/console/dead-letters/tokens/0/17", 503),
        ("/console/dead-letters/tokens/zero/17", 400),
        ("/console/adjustments?colour=red", 400),
    ] {
        let answer = page(&billing, path, Some(ADMIN)).await;
        assert_eq!(answer.status.as_u16(), status, "{path}");
        is_safe(&answer);
    }
}

#[tokio::test]
async fn corrections_are_shown_with_who_and_why_the_latest_first() {
    let (billing, ..) = Billing::shop().await;
    let empty = page(&billing, "/console/adjustments", Some(ADMIN)).await;
    assert!(empty.text.contains("id=\"none\""), "{}", empty.text);
    for (number, tenant) in [(1, "acme"), (2, "globex")] {
        let body = serde_json::json!({"tenant": tenant, "project": "default", "model": "llama", "at": "2026-11-24T11:00:00Z",
            "deltas": {"output": 1_500 * number}, "reason": format!("<lost> of {tenant}"), "dead_letter": "tokens/3/17"});
        billing.put(&format!("adjustments/8b0f6b3e-5b0e-4a53-9a3e-1f2d3c4b5a6{number}"), &body).await;
        billing.clock.advance(60_000_000);
    }
    let all = page(&billing, "/console/adjustments", Some(ADMIN)).await;
    is_safe(&all);
    let at = |text: &str| all.text.find(text).unwrap_or_else(|| panic!("no {text} in {}", all.text));
    assert!(at("&#60;lost&#62; of globex") < at("&#60;lost&#62; of acme"), "{}", all.text);
    assert!(all.text.contains("output 3\u{202f}000") && all.text.contains("<td>admin</td>"), "{}", all.text);
    assert!(all.text.contains("dead letter tokens/3/17"), "{}", all.text);
    let own = page(&billing, "/console/adjustments?tenant=acme", Some(ADMIN)).await;
    assert_eq!(own.text.matches("class=\"adjustment\"").count(), 1, "{}", own.text);
    let cursor = "/console/adjustments?cursor=8b0f6b3e-5b0e-4a53-9a3e-1f2d3c4b5a62";
    let older = page(&billing, cursor, Some(ADMIN)).await;
    assert!(older.text.contains("of acme") && !older.text.contains("of globex"), "{}", older.text);
}
