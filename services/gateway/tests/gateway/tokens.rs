//! Tokens in place of API keys: whose they are, what they may do, and every way of forging one that we know.

use std::path::{Path, PathBuf};
use std::time::Duration;

use embedded::vllm::SimulatorSettings;
use gateway::JwtSettings;
use http::Method;
use jsonwebtoken::Algorithm;
use runtime::tls::{Tls, TlsSettings};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::issuers::KeyServer;
use crate::signer::{ISSUER, SECRET, Signer, claims, encoded, seconds, set};
use crate::world::{Answer, CHAT, Setup, World, chat, simulator, whole};

/// Certificates and keys that are for tests only.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/fixtures").join(name)
}

fn issuer() -> JwtSettings {
    JwtSettings {
        issuer: ISSUER.into(),
        audience: vec!["tollgate".into()],
        algorithms: vec![Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA],
        tenant_claim: Some("tenant".into()),
        project_claim: Some("project".into()),
        ..JwtSettings::default()
    }
}

/// A gateway that takes tokens of these issuers.
async fn world(issuers: Vec<JwtSettings>) -> (World, embedded::vllm::Simulator) {
    let replica = simulator(SimulatorSettings::default()).await;
    let mut setup = Setup::new(&[&replica]);
    setup.settings.jwt = issuers;
    (setup.start().await, replica)
}

async fn ask(world: &World, token: &str) -> Answer {
    let bearer = format!("Bearer {token}");
    whole(world.send(Method::POST, CHAT, &[("authorization", &bearer)], chat("hello", 2).to_string()).await).await
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut claims = claims();
    change(&mut claims);
    claims
}

fn refused(answer: &Answer, why: &str) {
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (401, "invalid_token"), "{why}: {}", answer.body);
    assert!(answer.body.contains(why), "{why}: {}", answer.body);
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
}

#[tokio::test]
async fn tokens_of_every_algorithm_are_booked_where_their_claims_say() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, keys) = (dir.path().join("secret"), dir.path().join("keys.json"));
    std::fs::write(&secret, SECRET).unwrap();
    let signers = [Signer::rs256(), Signer::es256(), Signer::eddsa()];
    std::fs::write(&keys, set(&signers.each_ref().map(|signer| signer.jwk(signer.algorithm())))).unwrap();
    let by_secret = JwtSettings {
        issuer: "internal".into(),
        algorithms: vec![Algorithm::HS256],
        secret_file: Some(secret),
        tenant: Some("acme".parse().unwrap()),
        tenant_claim: None,
        ..issuer()
    };
    let (world, _replica) = world(vec![by_secret, JwtSettings { jwks_file: Some(keys), ..issuer() }]).await;
    let inside = with(|c| {
        c["iss"] = json!("internal");
        // A fixed tenant is not moved by what a token says.
        c["tenant"] = json!("globex");
    });
    let tokens = signers.iter().map(|signer| (ISSUER, signer.token(signer.algorithm(), &claims())));
    for (issuer, token) in tokens.chain([("internal", Signer::hs256().token("any", &inside))]) {
        for _ in 0..2 {
            let answer = ask(&world, &token).await;
            assert_eq!(answer.status, 200, "{issuer}: {}", answer.body);
            let finished = world.recorded(&answer).finished;
            assert_eq!((finished.tenant_id.as_str(), finished.project_id.as_str()), ("acme", "search"));
            let namespace = Uuid::new_v5(&Uuid::NAMESPACE_URL, issuer.as_bytes());
            assert_eq!(finished.api_key_id.0, Uuid::new_v5(&namespace, b"alice"));
        }
    }
    world.stop().await;
}

#[tokio::test]
async fn a_forged_token_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys.json");
    let (rsa, point, other) = (Signer::rs256(), Signer::es256(), Signer::es256());
    std::fs::write(&keys, set(&[rsa.jwk("rsa"), point.jwk("point"), Signer::hs256().jwk("oct")])).unwrap();
    let (world, replica) = world(vec![JwtSettings { jwks_file: Some(keys), ..issuer() }]).await;
    let header = |alg: &str, kid: &str| json!({"alg": alg, "typ": "JWT", "kid": kid});
    let good = point.token("point", &claims());
    assert_eq!(ask(&world, &good).await.status, 200);
    let [head, body, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
    let modulus = rsa.jwk("rsa")["n"].as_str().unwrap().as_bytes().to_vec();
    let raised = encoded(with(|c| c["tenant"] = json!("globex")).to_string());
    let none = |alg: &str| format!("{}.{body}.", encoded(header(alg, "point").to_string()));

    for (token, why) in [
        (none("none"), "no signed JSON Web Token"),
        (none("None"), "no signed JSON Web Token"),
        (none("ES256"), "signature does not hold"),
        (format!("{head}.{raised}.{signature}"), "signature does not hold"),
        (other.token("point", &claims()), "signature does not hold"),
        (other.token("unknown", &claims()), "does not publish"),
        // The public key, taken for a secret.
        (Signer::Hs256(modulus).token("rsa", &claims()), "algorithm that is not allowed"),
        // A secret that the set holds, as if it were public.
        (Signer::hs256().token("oct", &claims()), "algorithm that is not allowed"),
        (point.token_with(&header("RS256", "point"), &claims()), "does not publish"),
        (point.token_with(&header("ES256", "rsa"), &claims()), "does not publish"),
        (point.token_with(&header("RS256", "rsa"), &claims()), "signature does not hold"),
        // Its own key, brought along.
        (other.token_with(&json!({"alg": "ES256", "kid": "point", "jwk": other.jwk("point")}), &claims()), "signature"),
        (other.token_with(&json!({"alg": "ES256", "jku": "http://127.0.0.1:1/", "kid": "x"}), &claims()), "publish"),
        (point.token_with(&json!({"alg": "ES256", "kid": "point", "crit": ["exp"]}), &claims()), "no signed"),
        (point.token("point", &with(|c| c["iss"] = json!("https://id.example.com"))), "issuer is not known"),
        (point.token("point", &with(|c| c["iss"] = json!([ISSUER]))), "issuer is not known"),
        (point.token("point", &with(|c| c["iss"] = Value::Null)), "issuer is not known"),
        (point.token("point", &with(|c| c["aud"] = json!("others"))), "another audience"),
        (point.token("point", &with(|c| c["aud"] = json!([]))), "another audience"),
        (point.token("point", &with(|c| c["aud"] = Value::Null)), "claim `aud`"),
        (point.token("point", &with(|c| c["sub"] = Value::Null)), "claim `sub`"),
        (point.token("point", &with(|c| c["exp"] = Value::Null)), "claim `exp`"),
        (point.token("point", &with(|c| c["exp"] = json!(seconds() - 31))), "expired"),
        (point.token("point", &with(|c| c["nbf"] = json!(seconds() + 60))), "not valid yet"),
        (point.token("point", &with(|c| c["tenant"] = json!("nobody"))), "tenant that it names"),
        (point.token("point", &with(|c| c["tenant"] = json!("acme globex"))), "claim `tenant`"),
        (point.token("point", &with(|c| c["project"] = json!("../x"))), "claim `project`"),
        ("eyJ..".to_owned(), "no signed"),
        (format!("{head}.{body}.!"), "no signed"),
    ] {
        refused(&ask(&world, &token).await, why);
    }
    for no_token in [format!("{good}.x"), head.to_owned(), format!("{head}.{body}")] {
        assert_eq!(ask(&world, &no_token).await.code(), "invalid_api_key", "{no_token}");
    }
    assert_eq!((world.all().len(), replica.requests().len()), (1, 1), "only the good one came through");
    world.stop().await;
}

#[tokio::test]
async fn a_token_does_what_its_scopes_name() {
    let dir = tempfile::tempdir().unwrap();
    let (signer, keys) = (Signer::eddsa(), dir.path().join("keys.json"));
    std::fs::write(&keys, set(&[signer.jwk("k")])).unwrap();
    let scoped = JwtSettings {
        jwks_file: Some(keys),
        scopes_claim: Some("access.roles".into()),
        scope_prefix: "tollgate:".into(),
        ..issuer()
    };
    let (world, _replica) = world(vec![scoped]).await;
    let token = |roles: Value| signer.token("k", &with(|c| c["access"] = json!({ "roles": roles })));
    assert_eq!(ask(&world, &token(json!(["tollgate:generate"]))).await.status, 200);
    for roles in [json!(["generate"]), json!(["tollgate:models"]), json!([]), Value::Null] {
        let answer = ask(&world, &token(roles)).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "insufficient_scope"));
    }
    world.stop().await;
}

#[tokio::test]
async fn new_keys_are_found_when_a_token_names_one_and_old_ones_end() {
    let (old, new) = (Signer::es256(), Signer::eddsa());
    let server = KeyServer::start(set(&[old.jwk("old")]), None).await;
    let again = Duration::from_millis(50);
    let by_url = JwtSettings { jwks_url: Some(server.url()), retry_interval: again, ..issuer() };
    let (world, _replica) = world(vec![by_url]).await;
    let (first, second) = (old.token("old", &claims()), new.token("new", &claims()));
    assert_eq!(ask(&world, &first).await.status, 200);
    refused(&ask(&world, &second).await, "does not publish");
    server.published.publish(set(&[old.jwk("old"), new.jwk("new")]));
    while ask(&world, &second).await.status != 200 {}
    assert_eq!(ask(&world, &first).await.status, 200, "both are taken while both are published");
    // The old one is withdrawn: what it signed is refused at once when the set is read again, remembered or not.
    server.published.publish(set(&[new.jwk("new")]));
    let unknown = old.token("unknown", &claims());
    while ask(&world, &first).await.status == 200 {
        refused(&ask(&world, &unknown).await, "does not publish");
    }
    refused(&ask(&world, &first).await, "does not publish");
    assert_eq!(ask(&world, &second).await.status, 200);
    world.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn unknown_keys_do_not_make_us_flood_an_issuer() {
    let signer = Signer::es256();
    let server = KeyServer::start(set(&[signer.jwk("k")]), None).await;
    let hour = Duration::from_secs(3600);
    let by_url = JwtSettings { jwks_url: Some(server.url()), retry_interval: hour, refresh_interval: hour, ..issuer() };
    let (world, _replica) = world(vec![by_url]).await;
    assert_eq!(ask(&world, &signer.token("k", &claims())).await.status, 200);
    for at in 0..20 {
        refused(&ask(&world, &signer.token(&format!("unknown-{at}"), &claims())).await, "does not publish");
    }
    assert_eq!(server.published.asked(), 1);
    world.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn while_an_issuer_is_away_its_last_keys_are_used_and_it_is_said() {
    let signer = Signer::es256();
    let server = KeyServer::start(set(&[signer.jwk("k")]), None).await;
    server.published.fails(true);
    let often = Duration::from_millis(20);
    let by_url =
        JwtSettings { jwks_url: Some(server.url()), retry_interval: often, refresh_interval: often, ..issuer() };
    let (world, _replica) = world(vec![by_url]).await;
    // Nothing is known yet: nobody can say whether the token is good.
    let answer = ask(&world, &signer.token("k", &claims())).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "token_keys_unavailable"));
    assert!(answer.header("retry-after").is_some());
    assert!(!answer.body.contains("localhost") && !answer.body.contains("127.0.0.1"), "{}", answer.body);
    server.published.fails(false);
    while ask(&world, &signer.token("k", &claims())).await.status != 200 {}
    for broken in ["not json", "{\"keys\":[]}", "{\"keys\":[{\"kty\":\"oct\",\"k\":\"AAAA\"}]}"] {
        server.published.publish(broken.to_owned());
        let (asked, errors) = (server.published.asked(), world.metric("tollgate_gateway_token_keys_errors_total"));
        crate::world::until("the keys are read again", || {
            server.published.asked() > asked + 1 && world.metric("tollgate_gateway_token_keys_errors_total") > errors
        })
        .await;
        let fresh = signer.token("k", &with(|c| c["jti"] = json!(broken)));
        assert_eq!(ask(&world, &fresh).await.status, 200, "{broken}: the keys before are still good");
    }
    // And when nothing listens there any more.
    server.stop().await;
    let errors = world.metric("tollgate_gateway_token_keys_errors_total");
    crate::world::until("it is away", || world.metric("tollgate_gateway_token_keys_errors_total") > errors + 1.0).await;
    assert_eq!(ask(&world, &signer.token("k", &with(|c| c["jti"] = json!("x")))).await.status, 200);
    world.stop().await;
}

#[tokio::test]
async fn keys_come_over_tls_from_a_server_that_is_trusted() {
    let tls = || async {
        let settings = TlsSettings {
            cert_file: fixture("first.pem"),
            key_file: fixture("first.key"),
            reload_interval: Duration::from_secs(60),
        };
        Some(Tls::open(settings).await.unwrap())
    };
    let signer = Signer::rs256();
    let server = KeyServer::start(set(&[signer.jwk("k")]), tls().await).await;
    for (ca_file, status) in [(Some(fixture("ca.pem")), 200), (None, 503)] {
        let by_url = JwtSettings { jwks_url: Some(server.url()), ca_file, ..issuer() };
        let (world, _replica) = world(vec![by_url]).await;
        let answer = ask(&world, &signer.token("k", &claims())).await;
        assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
        world.stop().await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_secret_that_changes_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    let by_secret = JwtSettings {
        algorithms: vec![Algorithm::HS256],
        secret_file: Some(secret.clone()),
        retry_interval: Duration::from_millis(10),
        ..issuer()
    };
    let (world, _replica) = world(vec![by_secret]).await;
    let (old, new) = (Signer::hs256(), Signer::Hs256(vec![b'n'; 40]));
    let of = |signer: &Signer| signer.token_with(&json!({"alg": "HS256"}), &claims());
    assert_eq!(ask(&world, &of(&old)).await.status, 200);
    std::fs::write(&secret, [b'n'; 40]).unwrap();
    while ask(&world, &of(&new)).await.status != 200 {}
    refused(&ask(&world, &of(&old)).await, "does not publish");
    world.stop().await;
}
