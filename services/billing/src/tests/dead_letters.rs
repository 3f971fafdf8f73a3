//! Dead letters: what cannot be asked is refused in plain words. What there is, is asked of a real fold by the promises.

use super::memory::{ADMIN, Billing};

#[tokio::test]
async fn what_cannot_be_asked_is_refused() {
    let (billing, ..) = Billing::shop().await;
    for (path, status, code) in [
        ("dead-letters?topic=gpu-samples", 400, "invalid_query"),
        ("dead-letters?partition=-1", 400, "invalid_query"),
        ("dead-letters?partition=one", 400, "invalid_query"),
        ("dead-letters?reason=bad", 400, "invalid_query"),
        ("dead-letters?limit=0", 400, "invalid_query"),
        ("dead-letters?limit=1001", 400, "invalid_query"),
        ("dead-letters?cursor=17", 400, "invalid_query"),
        ("dead-letters?tenant=acme", 400, "invalid_query"),
        ("dead-letters?from=yesterday", 400, "invalid_range"),
        ("dead-letters?from=2026-11-02T00:00:00Z&to=2026-11-02T00:00:00Z", 400, "invalid_range"),
        ("dead-letters/tokens/zero/1", 400, "invalid_id"),
        ("dead-letters/tokens/0/-1", 400, "invalid_id"),
        ("dead-letters/gpu-samples/0/1", 400, "invalid_id"),
        // ClickHouse is away.
        (
            "dead-letters?topic=requests&partition=0&reason=seq_conflict&from=2026-11-02T00:00:00Z&limit=1",
            503,
            "clickhouse_unavailable",
        ),
        ("dead-letters/tollgate.tokens.v1/0/1", 503, "clickhouse_unavailable"),
    ] {
        assert_eq!(billing.get(path, ADMIN).await.problem(), (status, code.into()), "{path}");
    }
}
