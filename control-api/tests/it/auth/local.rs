//! Without authentication: people and programs of this machine, no web pages.

use serde_json::json;

use super::{Api, LOOPBACK, args, auth};

const HOST: &str = "Host: localhost:8080";

async fn api() -> Api {
    let origins = ["https://admin.example.com", "http://192.168.1.7:3000"];
    Api::start(auth(&args(&["--auth", "none"]), Some(LOOPBACK), &origins)).await
}

#[tokio::test]
async fn whoever_reaches_it_is_local_and_bearer_headers_are_ignored() {
    let api = api().await;
    let local = json!({"subject": "local", "client": null, "scopes": []});
    assert_eq!(api.send(&["POST / HTTP/1.1", HOST]).await.body, local);
    let header = "Authorization: Bearer a.b.c";
    assert_eq!(api.send(&["GET / HTTP/1.1", HOST, header, header]).await.body, local);
}

#[tokio::test]
async fn hosts() {
    let api = api().await;
    for (host, status) in [
        ("localhost", 200),
        ("LocalHost:1", 200),
        ("127.0.0.1", 200),
        ("127.0.0.1:8080", 200),
        ("127.255.255.254", 200),
        ("[::1]", 200),
        ("[::1]:8080", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:8080", 403),
        ("evil.example:127", 403),
        ("localhost.", 403),
        ("localhost@evil.example", 403),
        ("evil.example@localhost", 403),
        ("10.0.0.1", 403),
        ("128.0.0.1", 403),
        ("0.0.0.0", 403),
        ("127.1", 403),
        ("2130706433", 403),
        ("0x7f.0.0.1", 403),
        ("0177.0.0.1", 403),
        ("[::]", 403),
        ("[::2]", 403),
        ("::1", 403),
        ("[::1]evil.example", 403),
        ("localhost/evil", 403),
        ("localhost:80evil.example", 403),
        ("localhost:80:80", 403),
        ("", 403),
    ] {
        let answer = api.send(&["GET / HTTP/1.1", &format!("Host: {host}")]).await;
        assert_eq!(answer.status, status, "{host}: {}", answer.body);
    }
    for lines in [&["GET / HTTP/1.1"][..], &["GET / HTTP/1.0"], &["GET / HTTP/1.1", HOST, HOST]] {
        assert_eq!(api.send(lines).await.status, 400, "{lines:?}");
    }
    assert_eq!(api.send(&["GET http://localhost:8080/ HTTP/1.1", HOST]).await.status, 200);
    assert_eq!(api.send(&["GET http://evil.example/ HTTP/1.1", HOST]).await.status, 403);
}

#[tokio::test]
async fn origins() {
    let api = api().await;
    for (origin, status) in [
        ("http://localhost", 200),
        ("http://localhost:3000", 200),
        ("https://127.0.0.1:3000", 200),
        ("http://[::1]:3000", 200),
        ("https://admin.example.com", 200),
        ("http://192.168.1.7:3000", 200),
        ("http://admin.example.com", 403),
        ("https://admin.example.com:8443", 403),
        ("https://admin.example.com.evil.example", 403),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("http://localhost@evil.example", 403),
        ("http://evil.example/http://localhost", 403),
        ("ftp://localhost", 403),
        ("chrome-extension://localhost", 403),
        ("localhost", 403),
        ("null", 403),
        ("", 403),
    ] {
        let answer = api.send(&["POST / HTTP/1.1", HOST, &format!("Origin: {origin}")]).await;
        assert_eq!(answer.status, status, "{origin}: {}", answer.body);
    }
    let two = ["POST / HTTP/1.1", HOST, "Origin: http://localhost", "Origin: https://evil.example"];
    assert_eq!(api.send(&two).await.status, 403);
}

#[tokio::test]
async fn pages_of_other_sites() {
    let api = api().await;
    for (site, origin, status) in [
        ("none", None, 200),
        ("same-origin", None, 200),
        ("same-site", Some("http://localhost:3000"), 200),
        ("cross-site", None, 403),
        ("cross-site", Some("http://localhost:3000"), 403),
        ("cross-site", Some("https://admin.example.com"), 200),
        ("cross-site", Some("https://evil.example"), 403),
        ("same-origin", Some("https://evil.example"), 403),
        ("some-new-word", None, 403),
        ("", None, 403),
    ] {
        let site_line = format!("Sec-Fetch-Site: {site}");
        let origin_line = origin.map(|origin| format!("Origin: {origin}"));
        let mut lines = vec!["GET / HTTP/1.1", HOST, &site_line];
        lines.extend(origin_line.as_deref());
        assert_eq!(api.send(&lines).await.status, status, "{site} {origin:?}");
    }
    let two = ["GET / HTTP/1.1", HOST, "Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"];
    assert_eq!(api.send(&two).await.status, 403);
}
