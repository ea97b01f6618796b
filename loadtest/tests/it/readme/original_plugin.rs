//! The requests that the README of the `sbt-aws-amberflo` plugin teaches, made with curl as there: its callers need not
//! change anything.

use serde_json::{Value, json};

use super::terminal::Terminal;
use crate::harness::Dev;

/// A request of the plugin's README. All of them carry `Authorization: Bearer`.
struct Request {
    method: &'static str,
    /// After the endpoint, which ends with a slash. `ID` stands for the meter's id.
    path: &'static str,
    /// Whether it has `content-type: application/json`, and what with it.
    body: Option<Value>,
    status: u16,
}

fn requests() -> Vec<Request> {
    let meter =
        |label: &str, name: &str| json!({"label": label, "meterApiName": name, "meterType": "sum_of_all_usage"});
    let rule = json!({
        "id": "sbt-filtering-rule",
        "meterApiName": "sbt-trial",
        "ingestionTimeRange": {"startTimeInSeconds": 1_724_367_600, "endTimeInSeconds": 1_724_371_200},
    });
    let request = |method, path, body, status| Request { method, path, body, status };
    vec![
        request("POST", "meters", Some(meter("SBT Meter", "sbt-meter")), 201),
        request(
            "GET",
            "usage/ID?meterApiName=sbt-meter&startTimeInSeconds=1724630400&endTimeInSeconds=1724716800",
            None,
            200,
        ),
        // Its text promises these defaults; there is no example of them.
        request("GET", "usage/ID", None, 200),
        request("PUT", "meters/ID", Some(meter("SBT trial meter", "sbt-trial")), 200),
        // Also its example of listing all meters; the next is what its text means.
        request("GET", "meters/ID", None, 200),
        request("GET", "meters", None, 200),
        request("DELETE", "usage", Some(rule), 200),
        request("DELETE", "meters/ID", None, 200),
        request("GET", "meters/ID", None, 404),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_curl_examples_of_the_original_plugin_work_unchanged() {
    let dev = Dev::start().await;
    let mut terminal = Terminal::open(&dev).await;
    terminal.paste("export CONTROL_PLANE_API_ENDPOINT=http://127.0.0.1:8080/ ACCESS_TOKEN=a.b.c").await;
    let mut answers = Vec::new();
    let mut id = String::new();
    for request in requests() {
        let (status, answer) = made(&request, &id, &mut terminal).await;
        assert_eq!(status, request.status, "{} {}: {answer}", request.method, request.path);
        if let Some(new) = answer["data"]["id"].as_str().filter(|_| id.is_empty()) {
            new.clone_into(&mut id);
        }
        answers.push(answer);
    }
    let [created, usage, usage_by_id, updated, one, all, cancelled, _deleted, gone] = answers.as_slice() else {
        panic!("as many answers as requests: {answers:?}");
    };
    assert_eq!(
        (&created["data"]["label"], &created["data"]["meterApiName"]),
        (&json!("SBT Meter"), &json!("sbt-meter"))
    );
    for usage in [usage, usage_by_id] {
        assert_eq!(usage["data"]["metadata"]["meterApiName"], "sbt-meter", "{usage}");
        assert!(usage["data"]["clientMeters"].is_array(), "{usage}");
    }
    assert_eq!((&updated["data"]["id"], &updated["data"]["meterApiName"]), (&json!(id), &json!("sbt-trial")));
    assert_eq!(one["data"], updated["data"]);
    assert!(all["data"].as_array().unwrap().contains(&one["data"]), "{all}");
    assert_eq!(cancelled["data"]["id"], "sbt-filtering-rule", "{cancelled}");
    assert_eq!(cancelled["data"]["type"], "by_property_filter_out", "{cancelled}");
    assert_eq!(gone["statusCode"], 404);
    assert!(gone["message"].is_string(), "{gone}");
    dev.stop().await;
}

async fn made(request: &Request, id: &str, terminal: &mut Terminal<'_>) -> (u16, Value) {
    let Request { method, path, body, .. } = request;
    assert!(!(path.contains("ID") && id.is_empty()), "the id of the meter that was created");
    let path = path.replace("ID", id);
    let mut command = format!(
        "curl --silent --write-out '\\n%{{http_code}}' --request {method} --url \"${{CONTROL_PLANE_API_ENDPOINT}}{path}\" \
         --header \"Authorization: Bearer ${{ACCESS_TOKEN}}\""
    );
    if let Some(body) = body {
        command.push_str(&format!(" --header 'content-type: application/json' --data '{body:#}'"));
    }
    let answers = terminal.answers(&command).await;
    let [answer, status] = answers.as_slice() else { panic!("{command}: {answers:?}") };
    (u16::try_from(status.as_u64().unwrap()).unwrap(), answer.clone())
}
