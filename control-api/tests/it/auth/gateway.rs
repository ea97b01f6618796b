//! Callers whom API Gateway's JWT authorizer let in.

use axum::Extension;
use control_api::auth::GatewayClaims;
use serde_json::{Value, json};

use super::{Answer, Api, args, auth};

/// What a request with these claims in its event is answered.
async fn call(flags: &[&str], method: &str, claims: Option<Value>) -> Answer {
    let auth = auth(&args(&[&["--auth", "gateway"], flags].concat()), None, &[]);
    let api = Api::start_behind(auth, |router| match claims {
        Some(Value::Object(claims)) => router.layer(Extension(GatewayClaims(claims))),
        _ => router,
    })
    .await;
    // The authorizer has looked at this token: nobody does again.
    api.call(method, "a.b.c").await
}

#[tokio::test]
async fn the_claims_say_who_calls() {
    let claims = json!({"sub": "6418b458", "client_id": "5kek0i61", "token_use": "access", "exp": "1",
                        "scope": "metering/read metering/write", "cognito:groups": "[admin ops]"});
    let answer = call(&[], "POST", Some(claims)).await;
    let caller = json!({"subject": "6418b458", "client": "5kek0i61", "scopes": ["metering/read", "metering/write"]});
    assert_eq!((answer.status, answer.body), (200, caller));
    let answer = call(&[], "GET", Some(json!({"client_id": "5kek0i61"}))).await;
    assert_eq!(answer.body, json!({"subject": "5kek0i61", "client": "5kek0i61", "scopes": []}));
}

#[tokio::test]
async fn without_claims_nobody_calls() {
    let answer = call(&[], "GET", None).await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer realm=\"control-api\"")));
    for (claims, begins) in [
        (json!({}), "sub: missing"),
        (json!({"azp": "console"}), "sub: missing"),
        (json!({"sub": "a\r\nb"}), "sub: holds control"),
        (json!({"sub": {"a": 1}}), "sub: not text"),
    ] {
        call(&[], "GET", Some(claims)).await.refused(401, "invalid_token", begins);
    }
}

#[tokio::test]
async fn scopes_count_here_too() {
    let flags = ["--scope-read", "r", "--scope-write", "w"];
    for (scope, method, status) in [
        ("r", "GET", 200),
        ("r", "POST", 403),
        ("[r w]", "POST", 200),
        ("[r w]", "GET", 200),
        ("[w]", "GET", 403),
        ("", "GET", 403),
    ] {
        let answer = call(&flags, method, Some(json!({"sub": "alice", "scope": scope}))).await;
        assert_eq!(answer.status, status, "{method} with {scope:?}");
    }
    call(&flags, "POST", Some(json!({"sub": "alice"}))).await.refused(403, "insufficient_scope", "scope:");
}
