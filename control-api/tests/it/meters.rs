//! The routes of meters.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Api, answer};

/// Creates a meter with this name and answers its id.
pub async fn create(api: &Api, name: &str) -> String {
    let meter = json!({"label": name, "meterApiName": name, "meterType": "sum_of_all_usage"});
    let (status, created) = api.send(Method::POST, "/meters", meter).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    created["data"]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_created_meter_is_answered_with_its_id_and_all_its_properties() {
    let api = Api::start().await;
    let meter = json!({
        "label": "SBT Meter", "meterApiName": "sbt-meter", "meterType": "sum_of_all_usage",
        "dimensions": ["region"], "unheardOf": {"deep": [18_446_744_073_709_551_615_u64, 0.1]}
    });
    let (status, created) = api.send(Method::POST, "/meters", meter.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    let id = created["data"]["id"].as_str().unwrap();
    let (status, read) = api.get(&format!("/meters/{id}")).await;
    assert_eq!((status, &read), (StatusCode::OK, &created));
    for (name, value) in meter.as_object().unwrap() {
        assert_eq!(&read["data"][name], value, "{name}");
    }
}

#[tokio::test]
async fn a_meter_without_what_it_needs_is_refused_with_all_that_is_wrong() {
    let api = Api::start().await;
    for (method, path) in [(Method::POST, "/meters"), (Method::PUT, "/meters/3b9f")] {
        let body = json!({"meterApiName": "", "meterType": 1});
        let (status, problem) = api.send(method.clone(), path, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        for wrong in ["label is missing", "meterApiName is not", "meterType is not"] {
            assert!(detail.contains(wrong), "{wrong}: {detail}");
        }
        for body in [json!([]), json!(null), json!("text"), json!({})] {
            let (status, problem) = api.send(method.clone(), path, body).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
        }
    }
    assert_eq!(api.sandbox.stats().requests, 0, "nothing of this is Amberflo's to refuse");
}

#[tokio::test]
async fn a_type_that_amberflo_does_not_know_is_its_own_to_refuse() {
    let api = Api::start().await;
    let meter = json!({"label": "l", "meterApiName": "m", "meterType": "of_tomorrow"});
    let (status, problem) = api.send(Method::POST, "/meters", meter).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(problem["message"], "Amberflo: Invalid meter type");
}

#[tokio::test]
async fn the_list_is_whole_or_filtered() {
    let api = Api::start().await;
    let (status, none) = api.get("/meters").await;
    assert_eq!((status, none), (StatusCode::OK, json!({"data": []})));
    for name in ["b", "a", "c"] {
        create(&api, name).await;
    }
    let (_, all) = api.get("/meters").await;
    assert_eq!(names(&all), ["b", "a", "c"], "in Amberflo's order");
    assert_eq!(all.as_object().unwrap().len(), 1, "no token: {all}");
    let (_, one) = api.get("/meters?meterApiName=a").await;
    assert_eq!(names(&one), ["a"]);
    let (_, none) = api.get("/meters?meterApiName=z").await;
    assert_eq!(none, json!({"data": []}));
}

#[tokio::test]
async fn pages_hold_every_meter_once() {
    let api = Api::start().await;
    let every: Vec<String> = (0..7).map(|n| format!("meter-{n}")).collect();
    for name in every.iter().rev() {
        create(&api, name).await;
    }
    for spelling in ["nextToken", "next_token"] {
        for limit in [1, 3, 7, 8] {
            let (mut seen, mut path) = (Vec::new(), format!("/meters?limit={limit}"));
            loop {
                let (status, page) = api.get(&path).await;
                assert_eq!(status, StatusCode::OK, "{page}");
                let on_page = names(&page);
                assert!(on_page.len() <= limit);
                seen.extend(on_page);
                let Some(token) = page.get(spelling) else { break };
                path = format!("/meters?limit={limit}&{spelling}={}", token.as_str().unwrap());
            }
            assert_eq!(seen, every, "{spelling} {limit}");
        }
    }
}

#[tokio::test]
async fn a_meter_that_comes_or_goes_between_pages_hides_no_other() {
    let api = Api::start().await;
    for name in ["b", "d", "f"] {
        create(&api, name).await;
    }
    let (_, first) = api.get("/meters?limit=2").await;
    assert_eq!(names(&first), ["b", "d"]);
    let (_, listed) = api.get("/meters?meterApiName=d").await;
    let id = listed["data"][0]["id"].as_str().unwrap();
    let (status, gone) = answer(api.request(Method::DELETE, &format!("/meters/{id}"))).await;
    assert_eq!(status, StatusCode::OK, "{gone}");
    create(&api, "a").await;
    let token = first["nextToken"].as_str().unwrap();
    let (_, rest) = api.get(&format!("/meters?nextToken={token}")).await;
    assert_eq!(names(&rest), ["f"]);
}

#[tokio::test]
async fn a_token_that_does_not_belong_to_the_list_is_refused() {
    let api = Api::start().await;
    for name in ["a", "b"] {
        create(&api, name).await;
    }
    let (_, page) = api.get("/meters?limit=1").await;
    let token = page["nextToken"].as_str().unwrap();
    let paths = [
        format!("/meters?limit=1&meterApiName=a&nextToken={token}"),
        format!("/meters?limit=1&nextToken={token}&next_token={token}"),
        format!("/meters?limit=1&nextToken={token}x"),
        format!("/meters?limit=1&nextToken={}", &token[1..]),
        "/meters?limit=1&nextToken=garbage".to_owned(),
        "/meters?limit=1&nextToken=e30".to_owned(),
        "/meters?limit=1&nextToken=".to_owned(),
        "/meters?limit=0".to_owned(),
        "/meters?limit=1001".to_owned(),
        "/meters?limit=-1".to_owned(),
        "/meters?limit=many".to_owned(),
        "/meters?limit=1&limit=2".to_owned(),
        "/meters?Limit=1".to_owned(),
        "/meters?meterApiName=".to_owned(),
    ];
    for path in paths {
        let (status, problem) = api.get(&path).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {problem}");
    }
}

#[tokio::test]
async fn an_update_goes_to_the_meter_of_the_path() {
    let api = Api::start().await;
    let id = create(&api, "sbt-trial").await;
    let path = format!("/meters/{id}");
    let meter = |label: &str| json!({"label": label, "meterApiName": "sbt-trial", "meterType": "sum_of_all_usage"});
    let (status, updated) = api.send(Method::PUT, &path, meter("first")).await;
    assert_eq!(status, StatusCode::OK, "{updated}");
    assert_eq!((&updated["data"]["id"], &updated["data"]["label"]), (&json!(id), &json!("first")));

    for own in [json!(id), Value::Null] {
        let mut with_id = meter("second");
        with_id["id"] = own;
        let (status, updated) = api.send(Method::PUT, &path, with_id).await;
        assert_eq!((status, &updated["data"]["id"]), (StatusCode::OK, &json!(id)), "{updated}");
    }
    for other in [json!("another"), json!(7), json!("")] {
        let mut with_id = meter("third");
        with_id["id"] = other;
        let (status, problem) = api.send(Method::PUT, &path, with_id).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
    }
    let (_, read) = api.get(&path).await;
    assert_eq!(read["data"]["label"], "second");

    let (status, problem) = api.send(Method::PUT, "/meters/unknown", meter("x")).await;
    assert!(status.is_client_error(), "{problem}");
}

#[tokio::test]
async fn an_unknown_meter_is_not_found() {
    let api = Api::start().await;
    create(&api, "sbt-meter").await;
    for id in ["unknown", "sbt-meter"] {
        let path = format!("/meters/{id}");
        let (status, problem) = api.get(&path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{problem}");
        // Amberflo would answer 200 to the deletion, and do nothing.
        let (status, problem) = answer(api.request(Method::DELETE, &path)).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{problem}");
    }
    let (_, all) = api.get("/meters").await;
    assert_eq!(names(&all), ["sbt-meter"]);
}

#[tokio::test]
async fn parameters_that_an_endpoint_does_not_have_are_refused() {
    let api = Api::start().await;
    let id = create(&api, "m").await;
    let meter = json!({"label": "l", "meterApiName": "m", "meterType": "sum_of_all_usage"});
    for (method, path) in [
        (Method::GET, format!("/meters/{id}?x=1")),
        (Method::PUT, format!("/meters/{id}?x=1")),
        (Method::DELETE, format!("/meters/{id}?Deprecate=false")),
        (Method::DELETE, format!("/meters/{id}?deprecate=no")),
        (Method::DELETE, format!("/meters/{id}?deprecate=")),
        (Method::DELETE, format!("/meters/{id}?deprecate=false&deprecate=true")),
        (Method::POST, "/meters?dryRun=true".to_owned()),
    ] {
        let (status, problem) = api.send(method, &path, meter.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {problem}");
    }
    let (_, all) = api.get("/meters").await;
    assert_eq!(all["data"][0]["lockingStatus"], "open", "{all}");
}

fn names(page: &Value) -> Vec<String> {
    let meters = page["data"].as_array().unwrap();
    let names: Vec<String> = meters.iter().map(|meter| meter["meterApiName"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{page}");
    names
}
