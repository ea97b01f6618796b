//! A real Prometheus of the drill's own: its process, and what is asked of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::rescale;

/// The hidden subcommand that becomes Prometheus.
pub const SUBCOMMAND: &str = "prometheus";
const CONFIGURATION: &str = "prometheus.json";
const LOG: &str = "prometheus.log";
/// A port that was free a moment ago may be taken.
const START_ATTEMPTS: usize = 5;
const START_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
const TAIL_LINES: usize = 30;

/// What is scraped: an address, its job, and its deployment.
#[derive(Clone, Debug)]
pub struct Target {
    /// `ingest-worker` or `control-api`.
    pub job: &'static str,
    /// The deployment.
    pub cluster: String,
    /// Where `/metrics` answers.
    pub address: SocketAddr,
}

/// A running Prometheus. Dropping it kills the process.
pub struct Prometheus {
    child: Child,
    base: String,
    http: reqwest::Client,
    dir: PathBuf,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    name: String,
    health: String,
    #[serde(default)]
    last_error: String,
}

/// One alert as Prometheus holds it.
#[derive(Clone, Debug, Deserialize)]
pub struct Alert {
    /// `alertname`, `severity`, `cluster` and what else the rule keeps.
    pub labels: BTreeMap<String, String>,
    /// Among others `runbook_url`.
    pub annotations: BTreeMap<String, String>,
    /// `pending` or `firing`.
    pub state: String,
}

/// One series of an answer, with all values that it has.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its values, the oldest first.
    pub values: Vec<f64>,
}

#[derive(Deserialize)]
struct Answer<T> {
    data: Option<T>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Found {
    result: serde_json::Value,
}

#[derive(Deserialize)]
struct RawSeries {
    metric: BTreeMap<String, String>,
    value: Option<(f64, String)>,
    #[serde(default)]
    values: Vec<(f64, String)>,
}

/// The program: the one given, the one installed for the tests, or the one on the `PATH`.
pub fn program(given: Option<&Path>) -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/prometheus/prometheus");
    given.map_or_else(|| if installed.exists() { installed } else { "prometheus".into() }, Path::to_owned)
}

impl Prometheus {
    /// Starts one that keeps its files in `dir`, and waits until it has scraped every target.
    ///
    /// # Errors
    /// When the program is not there, does not start, or does not reach a target: what it said.
    pub async fn start(program: &Path, dir: &Path, targets: Vec<Target>) -> anyhow::Result<Self> {
        let log = dir.join(LOG);
        std::fs::write(dir.join(CONFIGURATION), configuration(&[], &targets).to_string())?;
        let http = reqwest::Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).build()?;
        for _ in 0..START_ATTEMPTS {
            let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()?;
            let child = spawn(program, dir, address, &log)?;
            let base = format!("http://{address}");
            let (dir, targets) = (dir.to_owned(), targets.clone());
            let mut prometheus = Self { child, base, http: http.clone(), dir, targets };
            match prometheus.wait_for_targets().await {
                Ok(()) => return Ok(prometheus),
                Err(_) if prometheus.log_tail().contains("address already in use") => {}
                Err(error) => {
                    bail!("{error:#}\nthe log of {} ends with:\n{}", program.display(), prometheus.log_tail())
                }
            }
        }
        bail!("no free port for Prometheus")
    }

    async fn wait_for_targets(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            self.check()?;
            let up = self.query("up == 1").await.map(|series| series.len()).unwrap_or_default();
            if up == self.targets.len() {
                return Ok(());
            }
            let all = self.targets.len();
            ensure!(Instant::now() < deadline, "Prometheus reaches {up} of {all} targets after {START_TIMEOUT:?}");
            sleep(POLL).await;
        }
    }

    /// Begins to evaluate the rules of a directory, with all durations divided by `factor`: now, and not from the start,
    /// when it knows of no target yet and nobody would be paged in a world that runs at its usual speed.
    ///
    /// # Errors
    /// When it refuses them: what it said.
    pub async fn follow(&mut self, rules: &Path, factor: u64) -> anyhow::Result<()> {
        let rules = scaled_rules(rules, &self.dir, factor)?;
        std::fs::write(self.dir.join(CONFIGURATION), configuration(&rules, &self.targets).to_string())?;
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("Prometheus has no pid")?;
        kill_process(pid, Signal::HUP).context("SIGHUP cannot be sent to Prometheus")?;
        let deadline = Instant::now() + START_TIMEOUT;
        while self.rules().await?.is_empty() {
            self.check()?;
            ensure!(Instant::now() < deadline, "Prometheus does not take the rules:\n{}", self.log_tail());
            sleep(POLL).await;
        }
        Ok(())
    }

    /// # Errors
    /// When it has ended although nobody asked it to.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("Prometheus ended by itself: {status}"),
        }
    }

    /// Where it answers.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// What it logged last.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.dir.join(LOG)).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// The alerts, pending and firing.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn alerts(&self) -> anyhow::Result<Vec<Alert>> {
        #[derive(Deserialize)]
        struct Alerts {
            alerts: Vec<Alert>,
        }
        Ok(self.ask::<Alerts>("alerts", &[]).await?.alerts)
    }

    /// What the query gives now.
    ///
    /// # Errors
    /// What is wrong with the query.
    pub async fn query(&self, query: &str) -> anyhow::Result<Vec<Series>> {
        series(self.ask("query", &[("query", query)]).await?)
    }

    /// What the query gives between two times, in seconds since 1970.
    ///
    /// # Errors
    /// What is wrong with the query.
    pub async fn query_range(&self, query: &str, times: (f64, f64), step: Duration) -> anyhow::Result<Vec<Series>> {
        let [start, end, step] = [times.0, times.1, step.as_secs_f64()].map(|seconds| seconds.to_string());
        series(self.ask("query_range", &[("query", query), ("start", &start), ("end", &end), ("step", &step)]).await?)
    }

    /// The values of a label, of the series that match where a selector is given.
    ///
    /// # Errors
    /// What is wrong with the selector.
    pub async fn label_values(&self, label: &str, selector: Option<&str>) -> anyhow::Result<Vec<String>> {
        let parameters: Vec<_> = selector.map(|selector| ("match[]", selector)).into_iter().collect();
        self.ask(&format!("label/{label}/values"), &parameters).await
    }

    /// The rules that could not be evaluated, with the reason.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn broken_rules(&self) -> anyhow::Result<Vec<String>> {
        let broken = self.rules().await?.into_iter().filter(|rule| rule.health != "ok");
        Ok(broken.map(|rule| format!("rule {} is {}: {}", rule.name, rule.health, rule.last_error)).collect())
    }

    async fn rules(&self) -> anyhow::Result<Vec<Rule>> {
        #[derive(Deserialize)]
        struct Groups {
            groups: Vec<Group>,
        }
        #[derive(Deserialize)]
        struct Group {
            rules: Vec<Rule>,
        }
        let groups = self.ask::<Groups>("rules", &[]).await?.groups;
        Ok(groups.into_iter().flat_map(|group| group.rules).collect())
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str, parameters: &[(&str, &str)]) -> anyhow::Result<T> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(parameters);
        let url = format!("{}/api/v1/{path}?{}", self.base, query.finish());
        let answer = self.http.get(url).send().await.context("Prometheus does not answer")?;
        let (status, body) = (answer.status(), answer.bytes().await?);
        let answer: Answer<T> =
            serde_json::from_slice(&body).with_context(|| format!("Prometheus answers {status} and no known JSON"))?;
        match (answer.data, answer.error) {
            (_, Some(error)) => bail!("{error}"),
            (data, None) => data.context("Prometheus answers without data"),
        }
    }
}

fn series(found: Found) -> anyhow::Result<Vec<Series>> {
    // A scalar is `[time, "value"]`.
    if let Ok((_, value)) = serde_json::from_value::<(f64, String)>(found.result.clone()) {
        return Ok(vec![Series { labels: BTreeMap::new(), values: vec![value.parse()?] }]);
    }
    let raw: Vec<RawSeries> = serde_json::from_value(found.result).context("an answer of an unknown form")?;
    raw.into_iter()
        .map(|raw| {
            let values = raw.value.into_iter().chain(raw.values).map(|(_, value)| Ok(value.parse()?));
            Ok(Series { labels: raw.metric, values: values.collect::<anyhow::Result<_>>()? })
        })
        .collect()
}

/// Copies of the rule files, faster by `factor`.
fn scaled_rules(rules: &Path, dir: &Path, factor: u64) -> anyhow::Result<Vec<PathBuf>> {
    let mut scaled = Vec::new();
    for entry in std::fs::read_dir(rules).with_context(|| format!("the rules in {}", rules.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_owned();
        let text = rescale::rules(&std::fs::read_to_string(&path)?, factor);
        let copy = dir.join(name);
        std::fs::write(&copy, text.with_context(|| path.display().to_string())?)?;
        scaled.push(copy);
    }
    ensure!(!scaled.is_empty(), "no rules in {}", rules.display());
    Ok(scaled)
}

/// Every JSON document is a YAML document.
fn configuration(rules: &[PathBuf], targets: &[Target]) -> serde_json::Value {
    let mut jobs = BTreeMap::<_, Vec<_>>::new();
    for Target { job, cluster, address } in targets {
        jobs.entry(job).or_default().push(json!({ "targets": [address], "labels": { "cluster": cluster } }));
    }
    let jobs: Vec<_> = jobs.iter().map(|(job, group)| json!({ "job_name": job, "static_configs": group })).collect();
    json!({
        "global": { "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s" },
        "rule_files": rules,
        "scrape_configs": jobs,
    })
}

fn spawn(program: &Path, dir: &Path, address: SocketAddr, log: &Path) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    Command::new(std::env::current_exe().context("this program does not know where it is")?)
        .args([OsString::from(SUBCOMMAND), program.into()])
        .arg(format!("--config.file={}", dir.join(CONFIGURATION).display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("prometheus").display()))
        .arg(format!("--web.listen-address={address}"))
        .args(["--log.level=warn", "--query.lookback-delta=10s"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("Prometheus cannot be started")
}

/// The hidden subcommand: becomes the program, which ends with our parent however that ends.
pub fn child_main(command: &[OsString]) -> ExitCode {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("Prometheus may outlive its parent: {error}");
    }
    let [program, arguments @ ..] = command else { return ExitCode::FAILURE };
    let error = std::process::Command::new(program).args(arguments).exec();
    eprintln!(
        "{} cannot be run: {error}; install it with infra/observability/setup.sh, or say where it is with --prometheus",
        Path::new(program).display()
    );
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_all_forms_are_series() {
        let found = |result| series(Found { result }).unwrap();
        let labels = BTreeMap::from([("cluster".to_owned(), "a".to_owned())]);
        let vector = json!([{ "metric": { "cluster": "a" }, "value": [1.5, "NaN"] }]);
        assert!(found(vector)[0].values[0].is_nan());
        let matrix = json!([{ "metric": { "cluster": "a" }, "values": [[1, "2"], [2, "+Inf"]] }]);
        assert_eq!(found(matrix), [Series { labels, values: vec![2.0, f64::INFINITY] }]);
        assert_eq!(found(json!([1, "7"])), [Series { labels: BTreeMap::new(), values: vec![7.0] }]);
        assert_eq!(found(json!([])), []);
    }
}
