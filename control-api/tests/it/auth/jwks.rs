//! The issuer's keys: which count, when they are fetched, and what holds while the issuer is away.

use std::time::Duration;

use serde_json::{Value, json};

use super::issuer::{Issuer, Key, Mood, encode};
use super::{Answer, Api, auth, eventually, jwt_args, wait};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

async fn storm(api: Api, stranger: &Key, claims: &Value) -> Vec<Answer> {
    let header = |n| json!({"alg": stranger.alg(), "kid": format!("unknown-{n}")});
    let tokens: Vec<String> = (0..50).map(|n| stranger.sign_under(&header(n), claims)).collect();
    let calls = tokens.into_iter().map(|token| tokio::spawn(async move { api.get(&token).await }));
    let mut answers = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        answers.push(call.await.unwrap());
    }
    answers
}

#[tokio::test]
async fn a_storm_of_unknown_keys_costs_one_request_in_thirty_seconds() {
    let (key, stranger) = (Key::ec("ec"), Key::ec("stranger"));
    let issuer = Issuer::start(&[&key]).await;
    let api = Api::for_tokens(&issuer).await;
    assert_eq!(api.get(&key.sign(&issuer.claims())).await.status, 200);
    for (pause, fetches) in [(29, 1), (2, 2), (0, 2), (29, 2), (2, 3)] {
        wait(pause * SECOND).await;
        for answer in storm(api, &stranger, &issuer.claims()).await {
            answer.refused(401, "invalid_token", "kid: not a key");
        }
        assert_eq!((issuer.fetches(), issuer.discoveries()), (fetches, 1));
    }
}

#[tokio::test]
async fn the_first_requests_share_one_fetch() {
    let key = Key::ec("ec");
    let issuer = Issuer::start(&[&key]).await;
    let api = Api::for_tokens(&issuer).await;
    let token = key.sign(&issuer.claims());
    let calls: Vec<_> = (0..20)
        .map(|_| {
            tokio::spawn({
                let token = token.clone();
                async move { api.get(&token).await }
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().status, 200);
    }
    assert_eq!((issuer.fetches(), issuer.discoveries()), (1, 1));
}

#[tokio::test]
async fn warmed_keys_are_there_for_the_first_request() {
    let key = Key::ec("ec");
    let issuer = Issuer::start(&[&key]).await;
    let auth = auth(&jwt_args(&issuer, &[]), None, &[]);
    auth.warm().await;
    assert_eq!(issuer.fetches(), 1);
    issuer.is(Mood::Down);
    assert_eq!(Api::start(auth).await.get(&key.sign(&issuer.claims())).await.status, 200);
}

#[tokio::test]
async fn a_new_key_is_found_when_a_token_names_it_and_an_old_one_goes() {
    let (old, new) = (Key::rsa("old"), Key::ec("new"));
    let issuer = Issuer::start(&[&old]).await;
    let api = Api::for_tokens(&issuer).await;
    assert_eq!(api.get(&old.sign(&issuer.claims())).await.status, 200);
    issuer.publish(vec![new.jwk()]);
    api.get(&new.sign(&issuer.claims())).await.refused(401, "invalid_token", "kid: not a key");
    wait(31 * SECOND).await;
    assert_eq!(api.get(&new.sign(&issuer.claims())).await.status, 200);
    api.get(&old.sign(&issuer.claims())).await.refused(401, "invalid_token", "kid: not a key");
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn keys_are_fetched_again_after_an_hour_beside_the_requests() {
    let key = Key::ec("ec");
    let issuer = Issuer::start(&[&key]).await;
    let api = Api::for_tokens(&issuer).await;
    let token = key.sign(&issuer.claims());
    assert_eq!(api.get(&token).await.status, 200);
    issuer.publish(vec![Key::ec("new").jwk()]);
    issuer.is(Mood::Silent);
    wait(HOUR + SECOND).await;
    assert_eq!(api.get(&token).await.status, 200);
    eventually("a fetch", || issuer.fetches() == 2).await;
    assert_eq!((api.get(&token).await.status, issuer.fetches(), issuer.discoveries()), (200, 2, 2));
    issuer.release();
    for _ in 0..500 {
        if api.get(&token).await.status == 401 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the withdrawn key still counts");
}

#[tokio::test]
async fn keys_that_have_moved_are_found_by_discovery() {
    let (old, new) = (Key::ec("old"), Key::ec("new"));
    let issuer = Issuer::start(&[&old]).await;
    let api = Api::for_tokens(&issuer).await;
    assert_eq!(api.get(&old.sign(&issuer.claims())).await.status, 200);
    issuer.publish(vec![new.jwk()]);
    issuer.is(Mood::Down);
    issuer.configure("jwks_uri", &format!("{}/elsewhere", issuer.name));
    for status in [401, 200] {
        wait(31 * SECOND).await;
        assert_eq!(api.get(&new.sign(&issuer.claims())).await.status, status);
    }
    assert_eq!((issuer.fetches(), issuer.elsewhere(), issuer.discoveries()), (2, 1, 2));
}

#[tokio::test]
async fn keys_outlast_an_issuer_that_is_down_for_a_day() {
    let key = Key::ec("ec");
    let issuer = Issuer::start(&[&key]).await;
    let api = Api::for_tokens(&issuer).await;
    let token = key.sign(&issuer.claims());
    assert_eq!(api.get(&token).await.status, 200);
    issuer.is(Mood::Down);
    for hours in 1..=23 {
        wait(HOUR).await;
        assert_eq!(api.get(&token).await.status, 200, "after {hours} h");
    }
    let stranger = Key::ec("stranger");
    api.get(&stranger.sign(&issuer.claims())).await.refused(401, "invalid_token", "kid: not a key");
    wait(HOUR + SECOND).await;
    assert_eq!(api.get(&token).await.status, 503);
    issuer.is(Mood::Well);
    wait(6 * SECOND).await;
    assert_eq!(api.get(&token).await.status, 200);
}

#[tokio::test]
async fn without_keys_the_answer_is_unavailable_and_not_unauthorised() {
    let key = Key::ec("ec");
    let issuer = Issuer::start(&[&key]).await;
    issuer.is(Mood::Down);
    let api = Api::for_tokens(&issuer).await;
    let token = key.sign(&issuer.claims());
    for _ in 0..3 {
        let answer = api.get(&token).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (503, None), "{}", answer.body);
        let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=5).contains(&wait), "{wait}");
    }
    assert_eq!(issuer.fetches(), 1);
    // A token that no key can make good is refused without one.
    assert_eq!(api.get("a.b.c").await.status, 401);
    issuer.is(Mood::Well);
    wait(5 * SECOND).await;
    assert_eq!(api.get(&token).await.status, 200);
}

#[tokio::test]
async fn an_issuer_that_cannot_be_trusted_gives_no_keys() {
    let key = Key::ec("ec");
    for (what, spoil) in [
        ("redirect", &(|issuer: &Issuer| issuer.is(Mood::Redirecting)) as &dyn Fn(&Issuer)),
        ("size", &|issuer| issuer.is(Mood::Verbose)),
        ("another issuer", &|issuer| issuer.configure("issuer", "https://other.example")),
        ("a slash more", &|issuer| issuer.configure("issuer", &format!("{}/", issuer.name))),
        ("plain http", &|issuer| issuer.configure("jwks_uri", "http://keys.example/keys")),
        ("a file", &|issuer| issuer.configure("jwks_uri", "file:///etc/keys")),
        ("no keys", &|issuer| issuer.publish(Vec::new())),
    ] {
        let issuer = Issuer::start(&[&key]).await;
        let api = Api::for_tokens(&issuer).await;
        spoil(&issuer);
        assert_eq!(api.get(&key.sign(&issuer.claims())).await.status, 503, "{what}");
        assert_eq!(issuer.elsewhere(), 0, "{what}");
    }
}

#[tokio::test]
async fn with_a_jwks_url_nothing_is_discovered() {
    let key = Key::ec("ec");
    let issuer = Issuer::start(&[&key]).await;
    let url = format!("{}/elsewhere", issuer.name);
    let api = Api::start(auth(&jwt_args(&issuer, &["--jwks-url", &url]), None, &[])).await;
    assert_eq!(api.get(&key.sign(&issuer.claims())).await.status, 200);
    assert_eq!((issuer.elsewhere(), issuer.discoveries(), issuer.fetches()), (1, 0, 0));
}

#[tokio::test]
async fn a_caller_who_leaves_does_not_take_the_fetch_along() {
    let key = Key::ec("ec");
    let issuer = Issuer::start(&[&key]).await;
    issuer.is(Mood::Silent);
    let api = Api::for_tokens(&issuer).await;
    let token = key.sign(&issuer.claims());
    let call = || {
        tokio::spawn({
            let token = token.clone();
            async move { api.get(&token).await }
        })
    };
    let first = call();
    eventually("a fetch", || issuer.fetches() == 1).await;
    first.abort();
    assert!(first.await.is_err());
    let second = call();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!second.is_finished());
    issuer.release();
    assert_eq!(second.await.unwrap().status, 200);
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test]
async fn an_issuer_that_never_answers_is_given_up() {
    let key = Key::ec("ec");
    let issuer = Issuer::start(&[&key]).await;
    issuer.is(Mood::Silent);
    let api = Api::for_tokens(&issuer).await;
    let token = key.sign(&issuer.claims());
    let call = tokio::spawn({
        let token = token.clone();
        async move { api.get(&token).await }
    });
    eventually("a fetch", || issuer.fetches() == 1).await;
    wait(4 * SECOND).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!call.is_finished());
    wait(2 * SECOND).await;
    let answer = tokio::time::timeout(5 * SECOND, call).await.unwrap().unwrap();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    issuer.release();
    assert_eq!(api.get(&token).await.status, 200);
}

#[tokio::test]
async fn only_keys_for_these_signatures_count() {
    let (rsa, ec, good) = (Key::rsa("rsa"), Key::ec("ec"), Key::ec("good"));
    let issuer = Issuer::start(&[&good]).await;
    let change = |key: &Key, member: &str, value: Value| {
        let mut jwk = key.jwk();
        jwk[member] = value;
        jwk
    };
    let small = change(&rsa, "n", encode(&[0xC1; 128]).into());
    // 2048 bits on paper.
    let padded = change(&rsa, "n", encode(&[&[0; 128][..], &[0xC1; 128]].concat()).into());
    for (what, key, jwk) in [
        ("use", &rsa, change(&rsa, "use", "enc".into())),
        ("use", &ec, change(&ec, "use", "enc".into())),
        ("alg", &rsa, change(&rsa, "alg", "RS512".into())),
        ("alg", &rsa, change(&rsa, "alg", "RSA-OAEP".into())),
        ("alg", &ec, change(&ec, "alg", "RS256".into())),
        ("alg", &ec, change(&ec, "alg", "XS1".into())),
        ("key_ops", &rsa, change(&rsa, "key_ops", json!(["encrypt"]))),
        ("kty", &ec, change(&ec, "kty", "OKP".into())),
        ("crv", &ec, change(&ec, "crv", "P-384".into())),
        ("small", &rsa, small),
        ("padded", &rsa, padded),
        ("x", &ec, change(&ec, "x", encode(&[1; 31]).into())),
        ("n", &rsa, change(&rsa, "n", "???".into())),
        ("no key", &ec, json!("ec")),
        ("no kid", &ec, change(&ec, "kid", Value::Null)),
        ("secret", &ec, json!({"kty": "oct", "kid": "ec", "k": encode(b"secret"), "alg": "HS256"})),
    ] {
        issuer.publish(vec![jwk, good.jwk()]);
        let api = Api::for_tokens(&issuer).await;
        api.get(&key.sign(&issuer.claims())).await.refused(401, "invalid_token", "kid: not a key");
        assert_eq!(api.get(&good.sign(&issuer.claims())).await.status, 200, "{what}");
    }
    // One id for two kinds of keys (RFC 7517, section 4.5), a modulus with a zero before it, and no optional members.
    let n = rsa.jwk()["n"].as_str().unwrap().to_owned();
    use base64::Engine;
    let n = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(n).unwrap();
    let same = Key { kid: "rsa", signer: ec.signer };
    let jwk = json!({"kty": "RSA", "kid": "rsa", "e": "AQAB", "n": encode(&[&[0], &n[..]].concat())});
    issuer.publish(vec![same.jwk(), jwk]);
    let api = Api::for_tokens(&issuer).await;
    for key in [&rsa, &same] {
        assert_eq!(api.get(&key.sign(&issuer.claims())).await.status, 200);
    }
}
