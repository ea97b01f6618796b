//! Tokens: every claim wrong once, and every forgery we know of.

use serde_json::{Value, json};

use super::issuer::{Issuer, Key, Signer, encode};
use super::{AUDIENCE, Api, NOW, auth, jwt_args};

fn with(claims: &Value, changes: Value) -> Value {
    let mut claims = claims.clone();
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn without(claims: &Value, name: &str) -> Value {
    let mut claims = claims.clone();
    claims.as_object_mut().unwrap().remove(name).unwrap();
    claims
}

#[tokio::test]
async fn good_tokens_of_both_algorithms_say_who_calls() {
    let keys = [Key::rsa("rsa"), Key::ec("ec")];
    let issuer = Issuer::start(&[&keys[0], &keys[1]]).await;
    let api = Api::for_tokens(&issuer).await;
    for key in &keys {
        let claims = with(&issuer.claims(), json!({"azp": "console", "scope": "read  write"}));
        let answer = api.get(&key.sign(&claims)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.body, json!({"subject": "alice", "client": "console", "scopes": ["read", "write"]}));
    }
    let token = keys[0].sign(&issuer.claims());
    let answer = api.send(&["GET / HTTP/1.1", "Host: a", &format!("Authorization: bEARER  {token}")]).await;
    assert_eq!((answer.status, &answer.body["client"]), (200, &Value::Null));
}

#[tokio::test]
async fn every_claim_wrong_once() {
    let key = Key::ec("ec");
    let issuer = Issuer::start(&[&key]).await;
    let api = Api::for_tokens(&issuer).await;
    let good = issuer.claims();
    assert_eq!(api.get(&key.sign(&good)).await.status, 200);
    let long = "x".repeat(257);
    for (claims, begins) in [
        (without(&good, "iss"), "iss: missing"),
        (with(&good, json!({"iss": "https://hostile.example"})), "iss: not the issuer"),
        (with(&good, json!({"iss": format!("{}/", issuer.name)})), "iss: not the issuer"),
        (with(&good, json!({"iss": [issuer.name]})), "iss: not text"),
        (without(&good, "exp"), "exp: missing"),
        (with(&good, json!({"exp": null})), "exp: not a number"),
        (with(&good, json!({"exp": (NOW + 500).to_string()})), "exp: not a number"),
        (with(&good, json!({"exp": NOW - 60})), "exp: the token has expired"),
        (with(&good, json!({"nbf": NOW + 70})), "nbf: the token is not valid yet"),
        (with(&good, json!({"nbf": "now"})), "nbf: not a number"),
        (without(&good, "aud"), "aud: missing"),
        (with(&good, json!({"aud": "hostile"})), "aud: the token is not meant"),
        (with(&good, json!({"aud": ["hostile", "metering2"]})), "aud: the token is not meant"),
        (with(&good, json!({"aud": []})), "aud: the token is not meant"),
        (with(&good, json!({"aud": null})), "aud: neither"),
        (with(&good, json!({"aud": {"metering": true}})), "aud: neither"),
        (without(&good, "sub"), "sub: missing, and so is client_id"),
        (with(&good, json!({"sub": ""})), "sub: empty"),
        (with(&good, json!({"sub": 7})), "sub: not text"),
        (with(&good, json!({"sub": long})), "sub: longer than"),
        (with(&good, json!({"sub": "bob\nINFO audit: hostile"})), "sub: holds control"),
        (with(&good, json!({"client_id": "a\u{1b}[2K"})), "client_id: holds control"),
        (with(&good, json!({"azp": "a\u{85}"})), "azp: holds control"),
        (with(&good, json!({"scope": ["read"]})), "scope: not text"),
    ] {
        let answer = api.get(&key.sign(&claims)).await;
        answer.refused(401, "invalid_token", begins);
        assert!(!answer.body.to_string().contains("hostile") && !answer.headers.contains("hostile"), "{}", answer.body);
    }
}

#[tokio::test]
async fn a_minute_of_leeway() {
    let key = Key::ec("ec");
    let issuer = Issuer::start(&[&key]).await;
    let api = Api::for_tokens(&issuer).await;
    for changes in [
        json!({"exp": NOW - 50}),
        json!({"exp": 1.0e15}),
        json!({"nbf": NOW + 59}),
        json!({"nbf": NOW + 59, "exp": NOW as f64 - 45.5}),
        json!({"iat": NOW + 5000}),
        json!({"aud": ["other", AUDIENCE]}),
    ] {
        let answer = api.get(&key.sign(&with(&issuer.claims(), changes.clone()))).await;
        assert_eq!(answer.status, 200, "{changes}: {}", answer.body);
    }
}

#[tokio::test]
async fn cognito() {
    let key = Key::rsa("rsa");
    let issuer = Issuer::start(&[&key]).await;
    let api = Api::for_tokens(&issuer).await;
    let access = with(&without(&issuer.claims(), "aud"), json!({"token_use": "access", "client_id": AUDIENCE}));
    let answer = api.get(&key.sign(&access)).await;
    assert_eq!(answer.body, json!({"subject": "alice", "client": AUDIENCE, "scopes": []}));
    // Client credentials: there is no user.
    let answer = api.get(&key.sign(&without(&access, "sub"))).await;
    assert_eq!(answer.body, json!({"subject": AUDIENCE, "client": AUDIENCE, "scopes": []}));
    let id = with(&issuer.claims(), json!({"token_use": "id"}));
    assert_eq!(api.get(&key.sign(&id)).await.status, 200);
    for (claims, begins) in [
        (with(&access, json!({"client_id": "other"})), "client_id: not a client"),
        (without(&access, "client_id"), "client_id: not a client"),
        (with(&access, json!({"token_use": "id"})), "aud: missing"),
        (with(&access, json!({"token_use": "Access"})), "aud: missing"),
        (without(&access, "token_use"), "aud: missing"),
        (with(&access, json!({"aud": "other"})), "aud: the token is not meant"),
        (with(&access, json!({"aud": []})), "aud: the token is not meant"),
    ] {
        api.get(&key.sign(&claims)).await.refused(401, "invalid_token", begins);
    }
}

#[tokio::test]
async fn several_audiences() {
    let key = Key::ec("ec");
    let issuer = Issuer::start(&[&key]).await;
    let api = Api::start(auth(&jwt_args(&issuer, &["--jwt-audience", "second, third,"]), None, &[])).await;
    for (audience, status) in [("second", 200), ("third", 200), (AUDIENCE, 200), ("", 401), ("second, third", 401)] {
        let answer = api.get(&key.sign(&with(&issuer.claims(), json!({"aud": audience})))).await;
        assert_eq!(answer.status, status, "{audience}");
    }
}

#[tokio::test]
async fn forgeries() {
    let (rsa, ec) = (Key::rsa("rsa"), Key::ec("ec"));
    let issuer = Issuer::start(&[&rsa, &ec]).await;
    let api = Api::for_tokens(&issuer).await;
    let claims = issuer.claims();
    let header = |alg: &str, kid: &str| json!({"typ": "JWT", "alg": alg, "kid": kid});
    let nothing = Key { kid: "rsa", signer: Signer::Nothing };
    let public = rsa.jwk().to_string().into_bytes();
    let hmac = Key { kid: "rsa", signer: Signer::Hmac(public) };
    let stranger = Key::ec("ec");
    let stranger_jwk = with(&header("ES256", "ec"), json!({"jwk": stranger.jwk()}));
    for (token, begins) in [
        (nothing.sign(&claims), "not a JWT, or alg is not"),
        (nothing.sign_under(&header("None", "rsa"), &claims), "not a JWT, or alg is not"),
        (nothing.sign_under(&header("RS256", "rsa"), &claims), "the signature"),
        (hmac.sign(&claims), "alg: allowed is"),
        (hmac.sign_under(&header("RS256", "rsa"), &claims), "the signature"),
        (rsa.sign_under(&header("RS512", "rsa"), &claims), "alg: allowed is"),
        (rsa.sign_under(&header("PS256", "rsa"), &claims), "alg: allowed is"),
        (ec.sign_under(&header("RS256", "ec"), &claims), "alg: not the algorithm"),
        (ec.sign_under(&header("RS256", "rsa"), &claims), "the signature"),
        (rsa.sign_under(&header("ES256", "rsa"), &claims), "alg: not the algorithm"),
        (rsa.sign_under(&header("ES256", "ec"), &claims), "the signature"),
        (stranger.sign(&claims), "the signature"),
        (stranger.sign_under(&stranger_jwk, &claims), "the signature"),
        (rsa.sign_under(&with(&header("RS256", "rsa"), json!({"crit": ["b64"], "b64": false})), &claims), "crit:"),
        (rsa.sign_under(&with(&header("RS256", "rsa"), json!({"crit": []})), &claims), "crit:"),
        (rsa.sign_under(&json!({"alg": "RS256"}), &claims), "kid: missing"),
        (rsa.sign_under(&header("RS256", "other"), &claims), "kid: not a key"),
    ] {
        api.get(&token).await.refused(401, "invalid_token", begins);
    }
    // What the sender says of keys is not asked for, and does not spoil a good token.
    let elsewhere = json!({"jku": format!("{}/elsewhere", issuer.name), "x5u": format!("{}/elsewhere", issuer.name)});
    assert_eq!(api.get(&rsa.sign_under(&with(&header("RS256", "rsa"), elsewhere), &claims)).await.status, 200);
    assert_eq!(issuer.elsewhere(), 0);
}

#[tokio::test]
async fn garbage() {
    let key = Key::rsa("rsa");
    let issuer = Issuer::start(&[&key]).await;
    let api = Api::for_tokens(&issuer).await;
    let good = key.sign(&issuer.claims());
    let parts: Vec<&str> = good.split('.').collect();
    let [header, claims, signature] = parts[..] else { panic!() };
    let tampered = encode(with(&issuer.claims(), json!({"sub": "mallory"})).to_string().as_bytes());
    let deep = encode(format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)).as_bytes());
    api.get(&"x".repeat(100 * 1024)).await.refused(401, "invalid_token", "the token is longer than");
    for token in [
        ".".to_owned(),
        "..".to_owned(),
        "a.b.c".to_owned(),
        format!("{header}.{}.{signature}", "x".repeat(100 * 1024)),
        good[..good.len() - 1].to_owned(),
        good[..good.len() / 2].to_owned(),
        format!("{header}.{claims}"),
        format!("{header}.{claims}."),
        format!("{header}.{claims}.{signature}."),
        format!("{header}.{claims}.{signature}="),
        format!("{header}.{claims}.{signature}.{signature}"),
        format!("{good},Bearer {good}"),
        format!("{header}.{tampered}.{signature}"),
        format!("{deep}.{claims}.{signature}"),
        format!("{header}.{deep}.{signature}"),
        key.sign(&json!(["not", "an", "object"])),
    ] {
        let answer = api.get(&token).await;
        let shown = token.chars().take(30).collect::<String>();
        assert_eq!(answer.status, 401, "{shown}: {}", answer.body);
        answer.refused(401, "invalid_token", "");
        assert!(token.len() < 20 || !answer.body.to_string().contains(&shown), "{}", answer.body);
    }
}

#[tokio::test]
async fn one_authorization_header_and_bearer_only() {
    let key = Key::ec("ec");
    let issuer = Issuer::start(&[&key]).await;
    let api = Api::for_tokens(&issuer).await;
    let bearer = format!("Authorization: Bearer {}", key.sign(&issuer.claims()));
    let none = api.send(&["GET / HTTP/1.1", "Host: a"]).await;
    assert_eq!((none.status, none.header("www-authenticate")), (401, Some("Bearer realm=\"control-api\"")));
    for line in ["Authorization: Basic YTpi", "Authorization: Bearer", "Authorization:"] {
        let answer = api.send(&["GET / HTTP/1.1", "Host: a", line]).await;
        assert_eq!(
            (answer.status, answer.header("www-authenticate")),
            (401, none.header("www-authenticate")),
            "{line}"
        );
    }
    let twice = api.send(&["GET / HTTP/1.1", "Host: a", &bearer, &bearer]).await;
    twice.refused(400, "invalid_request", "Authorization: more than one");
    api.send(&["GET / HTTP/1.1", "Host: a", "Authorization: Bearer \u{e4}"]).await.refused(
        400,
        "invalid_request",
        "Authorization: not visible ASCII",
    );
    let in_the_query = format!("GET /?access_token={} HTTP/1.1", key.sign(&issuer.claims()));
    assert_eq!(api.send(&[&in_the_query, "Host: a"]).await.status, 401);
}

#[tokio::test]
async fn scopes_by_method() {
    let key = Key::ec("ec");
    let issuer = Issuer::start(&[&key]).await;
    let scopes = ["--scope-read", "metering/read", "--scope-write", "metering/write"];
    let api = Api::start(auth(&jwt_args(&issuer, &scopes), None, &[])).await;
    for (scope, method, status) in [
        ("metering/read", "GET", 200),
        ("metering/read", "HEAD", 200),
        ("metering/read", "POST", 403),
        ("metering/read", "DELETE", 403),
        ("metering/read", "OPTIONS", 403),
        ("metering/write", "POST", 200),
        ("metering/write", "GET", 403),
        ("a metering/read metering/write", "POST", 200),
        ("metering/read2 xmetering/read METERING/READ", "GET", 403),
        ("", "GET", 403),
    ] {
        let token = key.sign(&with(&issuer.claims(), json!({"scope": scope})));
        assert_eq!(api.call(method, &token).await.status, status, "{method} with {scope:?}");
    }
    let answer = api.call("POST", &key.sign(&issuer.claims())).await;
    answer.refused(403, "insufficient_scope", "scope: the token lacks metering/write");
    assert!(answer.header("www-authenticate").unwrap().ends_with("scope=\"metering/write\""));
    assert_eq!(answer.header("x-refused"), Some("alice"));

    let api = Api::start(auth(&jwt_args(&issuer, &["--scope-write", "w"]), None, &[])).await;
    let token = key.sign(&issuer.claims());
    assert_eq!((api.get(&token).await.status, api.call("POST", &token).await.status), (200, 403));
}
