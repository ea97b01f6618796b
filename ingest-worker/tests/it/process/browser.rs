//! The status page in a real browser: Chromium without a screen. `tests/browser/setup.sh` installs it; where it is
//! missing its tests say so and pass, except with `CI=true`. What it saw is left in `target/screenshots`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use emulators::skip;
use serde_json::{Value, json};
use shared::backend::local::{LocalOptions, LocalStore};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::status::{busy, page};
use super::{Amberflo, KEY, PATIENCE, Site, eventually, free_address, usages};

const PHONE: (u32, u32) = (390, 844);
const DESKTOP: (u32, u32) = (1280, 900);

/// A browser with a profile of its own; it ends when it is dropped.
struct Browser {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _driver: Child,
    _profile: TempDir,
}

impl Browser {
    /// `None`, and said, where there is none.
    async fn start(suite: &str) -> Option<Self> {
        let Some(chromium) = on_path("chromium") else {
            skip(suite, "chromium is missing: run ingest-worker/tests/browser/setup.sh");
            return None;
        };
        let profile = TempDir::new().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/browser.mjs");
        let driver = Command::new("node")
            .args([script.as_os_str(), chromium.as_os_str(), profile.path().as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut driver = match driver {
            Ok(driver) => driver,
            Err(error) => {
                skip(suite, &format!("node cannot be started: {error}"));
                return None;
            }
        };
        let output = BufReader::new(driver.stdout.take().unwrap()).lines();
        Some(Self { input: driver.stdin.take().unwrap(), output, _driver: driver, _profile: profile })
    }

    async fn ask(&mut self, command: Value) -> Value {
        self.input.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        let line = timeout(PATIENCE, self.output.next_line()).await.expect("the browser does not answer").unwrap();
        let mut answer: Value = serde_json::from_str(&line.expect("the browser has ended")).unwrap();
        assert!(answer["error"].is_null(), "{command}: {answer}");
        answer["value"].take()
    }

    /// Opens the page and checks what holds for every page: it asks nobody else, and the browser has no complaint.
    async fn open(&mut self, url: &str, (width, height): (u32, u32), scheme: &str) {
        let open = json!({"command": "open", "url": url, "width": width, "height": height, "scheme": scheme});
        let heard = self.ask(open).await;
        assert_eq!(heard, json!({"requests": [url], "complaints": []}));
        let widths = self.evaluate("[document.documentElement.scrollWidth, innerWidth]").await;
        assert_eq!(widths, json!([width, width]), "it is wider than the window");
    }

    async fn evaluate(&mut self, expression: &str) -> Value {
        self.ask(json!({"command": "evaluate", "expression": expression})).await
    }

    async fn wait(&mut self, expression: &str) {
        let seconds = PATIENCE.as_secs() - 10;
        let met = self.ask(json!({"command": "wait", "expression": expression, "seconds": seconds})).await;
        assert_eq!(met, json!(true), "waited in vain for {expression}");
    }

    async fn screenshot(&mut self, name: &str) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/screenshots");
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.canonicalize().unwrap().join(format!("{name}.png"));
        self.ask(json!({"command": "screenshot", "path": path})).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "a test has no config module")]
fn on_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|path| path.exists())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_fits_a_phone_and_a_desktop_by_day_and_by_night() {
    let Some(mut browser) = Browser::start("status-page-looks").await else { return };
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo);
    let worker = busy(&site, &amberflo).await;
    let url = format!("http://{}/", worker.admin);
    eventually("the first step of the charts", async || page(&worker).await.contains("<b>0</b>")).await;
    for (scheme, is_dark) in [("light", false), ("dark", true)] {
        for (name, size) in [("phone", PHONE), ("desktop", DESKTOP)] {
            browser.open(&url, size, scheme).await;
            let ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 128";
            assert_eq!(browser.evaluate(ground).await, json!(is_dark));
            assert_eq!(browser.evaluate("document.querySelector('h1').innerText").await, json!("ingest-worker ready"));
            let unnamed =
                "[...document.querySelectorAll('svg[role=img]')].filter((svg) => !svg.querySelector('title'))";
            assert_eq!(browser.evaluate(&format!("{unnamed}.length")).await, json!(0));
            browser.screenshot(&format!("ready-{name}-{scheme}")).await;
        }
    }
    amberflo.sandbox.set_faults(revoked()).unwrap();
    worker.put(&usages(100..101)).await;
    eventually("the refusal to be noticed", async || worker.admin_status("ready").await == Some(503)).await;
    browser.open(&url, PHONE, "dark").await;
    browser.evaluate("document.querySelector('#settings').open = true").await;
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth").await, json!(PHONE.0));
    assert_eq!(browser.evaluate("document.title").await, json!("ingest-worker: not ready"));
    browser.screenshot("paused-phone-dark").await;
    browser.open(&url, DESKTOP, "light").await;
    browser.screenshot("paused-desktop-light").await;
    worker.drain().await;
}

fn revoked() -> amberflo_sandbox::Faults {
    amberflo_sandbox::Faults { revoked_keys: [KEY.to_owned()].into(), ..amberflo_sandbox::Faults::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_refreshes_itself_says_when_it_is_stale_and_survives_a_restart() {
    let Some(mut browser) = Browser::start("status-page-refresh").await else { return };
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo);
    let mut worker = site.start().await;
    let (bus, admin) = (worker.bus, worker.admin);
    let url = format!("http://{admin}/");
    browser.open(&url, DESKTOP, "light").await;
    let told = "document.querySelector('main').innerText";
    browser
        .evaluate(
            "document.querySelector('#settings').open = true; document.querySelector('#settings > summary').focus()",
        )
        .await;
    worker.put(&usages(0..17)).await;
    amberflo.billed(17).await;
    browser.wait(&format!("/Delivered since start\\s+17/.test({told})")).await;
    let kept = "[document.querySelector('#settings').open, document.activeElement.parentElement.id]";
    assert_eq!(browser.evaluate(kept).await, json!([true, "settings"]), "what a reader opened stays so");

    worker.signal("KILL").await;
    worker.ended().await;
    browser.wait("document.getElementById('refresh').innerText.startsWith('STALE')").await;
    assert_eq!(browser.evaluate("document.title").await, json!("stale: ingest-worker: ready"));
    browser.screenshot("stale-desktop-light").await;

    let worker = site.start_at(bus, admin).await;
    browser.wait("document.getElementById('refresh').innerText.startsWith('Refreshed')").await;
    browser
        .wait(&format!("document.title === 'ingest-worker: ready' && /Delivered since start\\s+0/.test({told})"))
        .await;
    let heard = browser.ask(json!({"command": "heard"})).await;
    assert!(heard["requests"].as_array().unwrap().iter().all(|asked| *asked == json!(url)), "{heard}");
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_script_it_reloads() {
    let Some(mut browser) = Browser::start("status-page-without-script").await else { return };
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo);
    let worker = site.start().await;
    let url = format!("http://{}/", worker.admin);
    let open = json!({"command": "open", "url": url, "width": 390, "height": 844, "scheme": "light", "script": false});
    browser.ask(open).await;
    let mut heard = Value::Null;
    for _ in 0..PATIENCE.as_secs() {
        heard = browser.ask(json!({"command": "heard"})).await;
        if heard["requests"] == json!([url, url]) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    assert_eq!(heard, json!({"requests": [url, url], "complaints": []}));
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_shards_are_a_page_of_bounded_size() {
    let Some(mut browser) = Browser::start("status-page-200-shards").await else { return };
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo);
    drop(LocalStore::open(&site.store_dir(), LocalOptions { shards: 200, ..LocalOptions::default() }).unwrap());
    let worker = site.start_at(free_address().await, free_address().await).await;
    worker.put(&usages(0..100)).await;
    eventually("all leases to be taken", async || worker.metrics().await.sum("ingest_leases_held") == 200.0).await;
    let page = page(&worker).await;
    assert!(page.contains("188 more") && page.contains("shard-00199"), "{}", page.len());
    assert!(page.len() < 250_000, "{}", page.len());
    for (name, size) in [("phone", PHONE), ("desktop", DESKTOP)] {
        browser.open(&format!("http://{}/", worker.admin), size, "dark").await;
        browser.evaluate("document.querySelectorAll('details').forEach((details) => details.open = true)").await;
        assert_eq!(browser.evaluate("document.documentElement.scrollWidth").await, json!(size.0));
        browser.evaluate("document.querySelectorAll('details').forEach((details) => details.open = false)").await;
        browser.screenshot(&format!("200-shards-{name}-dark")).await;
    }
    worker.drain().await;
}
