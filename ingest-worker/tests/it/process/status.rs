//! The status page of a worker at work, and what /ready says.

use amberflo_sandbox::Faults;
use reqwest::Method;
use reqwest::header::HOST;
use serde_json::json;

use super::{Amberflo, KEY, Metrics, Process, Site, client, eventually, usages};

/// A worker that delivered 40 events, dropped 10 copies and dead-lettered 3.
pub async fn busy(site: &Site, amberflo: &Amberflo) -> Process {
    let worker = site.start().await;
    worker.put(&usages(0..40)).await;
    worker
        .put(&[json!({"tenantId": "t", "meterValue": 1, "uniqueId": "a"}), json!({"tenantId": "t"}), json!({})])
        .await;
    amberflo.billed(40).await;
    worker.put(&usages(30..40)).await;
    eventually("all to be settled", async || {
        let metrics = worker.metrics().await;
        metrics.sum("ingest_records_read_total") == 53.0 && metrics.sum("ingest_events_total") == 53.0
    })
    .await;
    worker
}

pub async fn page(worker: &Process) -> String {
    client().get(format!("http://{}/", worker.admin)).send().await.unwrap().text().await.unwrap()
}

/// The numbers of a page: which metric, and its value.
fn numbers(page: &str) -> Vec<(String, f64)> {
    let tags = page.split("<data value=\"").skip(1);
    let number = |tag: &str| {
        let (value, rest) = tag.split_once("\" title=\"")?;
        Some((rest.split_once("\">")?.0.replace("&quot;", "\""), value.parse().ok()?))
    };
    tags.map(|tag| number(tag).unwrap_or_else(|| panic!("{tag}"))).collect()
}

fn value_of(metric: &str, metrics: &Metrics) -> f64 {
    match metric.strip_prefix("max(").and_then(|metric| metric.strip_suffix(')')) {
        Some(metric) => {
            let lines = metrics.0.lines().filter(|line| line.starts_with(metric));
            lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).fold(0.0, f64::max)
        }
        None => metrics.sum(metric),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_numbers_are_those_of_the_metrics() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo);
    let worker = busy(&site, &amberflo).await;
    let before = worker.metrics().await;
    let page = page(&worker).await;
    let after = worker.metrics().await;
    let numbers = numbers(&page);
    for (metric, value) in &numbers {
        let either = [&before, &after].map(|metrics| value_of(metric, metrics));
        assert!(either.contains(value), "{metric}: {value} on the page, {either:?} in /metrics");
    }
    let shown = |metric: &str| numbers.iter().find(|(shown, _)| shown == metric).map(|(_, value)| *value);
    for (metric, value) in [
        ("ingest_records_read_total", 53.0),
        ("ingest_events_total{outcome=\"delivered\"}", 40.0),
        ("ingest_events_total{outcome=\"duplicate\"}", 10.0),
        ("ingest_events_total{outcome=\"dead_lettered\"}", 3.0),
        ("ingest_dead_letters_total{reason=\"missing_field\"}", 3.0),
        ("ingest_leases_held", 4.0),
        ("ingest_in_flight_records", 0.0),
        ("ingest_shard_lag_seconds{shard=\"shard-00003\"}", 0.0),
    ] {
        assert_eq!(shown(metric), Some(value), "{metric}: {numbers:?}");
    }
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_settings_and_dead_letters_and_no_secrets() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo).with("WORKER_ID", "<b>worker</b>");
    let worker = busy(&site, &amberflo).await;
    let page = page(&worker).await;
    assert!(!page.contains(KEY) && page.contains("(redacted)"), "the API key is on the page");
    assert!(!page.contains("tenant-"), "what the log does not tell");
    assert!(page.contains("&lt;b&gt;worker&lt;/b&gt;") && !page.contains("<b>worker"));
    for (setting, value) in [("BATCH_LINGER", "50ms"), ("DEDUP_WINDOW", "2m"), ("STREAM", "local:store")] {
        let (_, row) = page.split_once(&format!("<code>{setting}</code>")).unwrap();
        assert!(row.split("</tr>").next().unwrap().contains(&format!("<code>{value}</code>")), "{setting}: {row}");
    }
    for letter in site.letters().await {
        assert!(page.contains(&letter.sequence_number) && page.contains(&letter.detail), "{letter:?}: {page}");
    }
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_amberflo_refuses_the_key_it_says_so() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo);
    let worker = site.start().await;
    let ready =
        async || client().get(format!("http://{}/ready", worker.admin)).send().await.unwrap().text().await.unwrap();
    assert_eq!(ready().await, "ready\n");
    amberflo.sandbox.set_faults(Faults { revoked_keys: [KEY.to_owned()].into(), ..Faults::default() }).unwrap();
    worker.put(&usages(0..1)).await;
    eventually("the refusal to be noticed", async || worker.admin_status("ready").await == Some(503)).await;
    let line = ready().await;
    assert!(
        line.starts_with("not ready: Amberflo refuses our requests since 20") && line.contains("Z: 401 "),
        "{line}"
    );
    assert!(line.ends_with('\n') && line.lines().count() == 1 && !line.contains(KEY), "{line}");
    let page = page(&worker).await;
    let told =
        ["not ready</span>", "Amberflo refuses our requests</strong>", "paused", "401 Unauthorized", "tries again in"];
    for text in told {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert!(!page.contains(KEY));
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_only_be_read_and_under_no_foreign_name() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo);
    let worker = site.start().await;
    let url = format!("http://{}/", worker.admin);
    for (method, status) in [("GET", 200), ("HEAD", 200), ("POST", 405), ("PUT", 405), ("DELETE", 405)] {
        let answer = client().request(Method::from_bytes(method.as_bytes()).unwrap(), &url).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{method}");
    }
    let foreign = client().get(&url).header(HOST, "rebound.example").send().await.unwrap();
    assert_eq!(foreign.status().as_u16(), 421);
    let local = client().get(&url).header(HOST, format!("localhost:{}", worker.admin.port())).send().await.unwrap();
    let policy = local.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    worker.drain().await;
}
