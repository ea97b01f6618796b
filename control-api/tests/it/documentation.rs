//! What the API says of itself.

use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::harness::Api;

/// What clients are generated from: a change here is a change of the interface.
/// After a wanted one: `INSTA_UPDATE=always cargo test -p control-api --test it documentation`.
#[tokio::test]
async fn the_description_is_the_one_that_was_looked_at() {
    let api = Api::start().await;
    let (status, mut description) = api.get("/openapi.json").await;
    assert_eq!(status, StatusCode::OK);
    // The package's version may change without a change of the interface.
    description["info"]["version"] = Value::from("any");
    insta::assert_json_snapshot!("openapi", description);
}

/// A page that loads something from elsewhere shows nothing where there is no elsewhere, and tells others who looks.
#[tokio::test]
async fn the_page_needs_no_other_server() {
    let api = Api::start().await;
    let get = async |path: &str| {
        let response = api.request(Method::GET, path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response
    };
    let page = get("/docs/").await;
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'self';") && !policy.contains("http"), "{policy}");
    let page = page.text().await.unwrap();
    let parts: Vec<_> = ["src=\"", "href=\""]
        .iter()
        .flat_map(|attribute| page.split(attribute).skip(1))
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    assert!(parts.len() >= 3, "{page}");
    for part in parts {
        assert!(!part.contains("//"), "{part}");
        get(&format!("/docs/{}", part.trim_start_matches("./"))).await;
    }
    assert!(get("/docs/swagger-initializer.js").await.text().await.unwrap().contains("/openapi.json"));
}
