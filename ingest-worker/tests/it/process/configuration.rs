//! Settings that cannot work: one line that names the setting, what was given and what is allowed; exit code 2.

use std::path::Path;

use shared::backend::local::{FILE_NAME, LocalOptions, LocalStore};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::{Amberflo, KEY, Site, command, free_address, run, text};

/// Runs with these settings, and checks the shape of the refusal: its line is the answer.
async fn refusal(dir: &Path, settings: &[(&str, &str)]) -> String {
    let (bus, admin) = (free_address().await.to_string(), free_address().await.to_string());
    let mut command = command(dir);
    command.env("AMBERFLO_API_KEY", KEY).env("STREAM", "local:store").env("LISTEN", bus).env("ADMIN_LISTEN", admin);
    for (name, value) in settings {
        match *value {
            "(unset)" => command.env_remove(name),
            value => command.env(name, value),
        };
    }
    let output = run(&mut command).await;
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "{settings:?}\n{stdout}{stderr}");
    assert!(!stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"), "{stderr}");
    assert!(!stdout.contains(KEY) && !stderr.contains(KEY), "the API key is in the output");
    assert!(stdout.is_empty(), "{stdout}");
    assert!(!stderr.contains("\u{1b}["), "colours without a terminal: {stderr}");
    // clap adds blank lines and a hint at --help, and continues its line with what is possible.
    let one_line = stderr.replace("\n  [possible values", " [possible values");
    let is_about_it = |line: &&str| !line.is_empty() && !line.contains("--help");
    let lines: Vec<_> = one_line.lines().filter(is_about_it).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    lines[0].to_owned()
}

#[tokio::test]
async fn a_bad_value_is_named_with_what_is_allowed() {
    let dir = TempDir::new().unwrap();
    let mut unclear = Vec::new();
    for (name, given, allowed) in [
        ("STREAM", "metering-data", "local:DIR"),
        ("STREAM", "local:", "local:DIR"),
        ("STREAM", "sqs:usage", "kinesis:NAME-OR-ARN"),
        ("STREAM", "kinesis:a b", "ARN"),
        ("INITIAL_POSITION", "2999-01-01T00:00:00Z", "past"),
        ("DEAD_LETTER_QUEUE", "https://queue", "none"),
        ("INITIAL_POSITION", "newest", "trim-horizon"),
        ("INITIAL_POSITION", "2026-13-01T00:00:00Z", "RFC 3339"),
        ("INITIAL_POSITION", "", "trim-horizon"),
        ("FAILOVER_TIME", "10", "30s"),
        ("FAILOVER_TIME", "10ms", "1s"),
        ("BATCH_LINGER", "soon", "500ms"),
        ("BATCH_LINGER", "0s", "1ms"),
        ("BATCH_LINGER", "2h", "1m"),
        ("REQUEST_TIMEOUT", "0s", "1ms"),
        ("REQUEST_TIMEOUT", "-5s", "30s"),
        ("API_KEY_REFRESH", "0s", "1s"),
        ("DEDUP_WINDOW", "0s", "1s"),
        ("DEDUP_WINDOW", "2days", "1day"),
        ("SHUTDOWN_GRACE", "2h", "1h"),
        ("MAX_EVENT_AGE", "99999999999999999999s", "1h"),
        ("MAX_EVENT_AHEAD", "1 fortnight", "1h"),
        ("BATCH_MAX_EVENTS", "0", "1"),
        ("BATCH_MAX_EVENTS", "many", "1"),
        ("BATCH_MAX_BYTES", "12 apples", "1MiB"),
        ("BATCH_MAX_BYTES", "100B", "1.0 KiB"),
        ("BUFFER_MAX_BYTES", "1KiB", "1.0 MiB"),
        ("LOCAL_MAX_BYTES", "1KiB", "1.0 MiB"),
        ("MAX_IN_FLIGHT", "0", "1"),
        ("RATE_REQUESTS_PER_SECOND", "-1", "0"),
        ("RATE_REQUESTS_PER_SECOND", "NaN", "0"),
        ("RATE_REQUESTS_PER_SECOND", "inf", "0"),
        ("METER_HOURLY_BUDGET", "-1", "0"),
        ("DEDUP_MAX_KEYS", "0", "1"),
        ("DEDUP_MAX_KEYS", "99999999999", "2147483648"),
        ("ALLOW_AFLO_DIMENSIONS", "maybe", "true"),
        ("LISTEN", "4010", "ADDR:PORT"),
        ("LISTEN", "127.0.0.1:99999", "ADDR:PORT"),
        ("ADMIN_LISTEN", "localhost", "ADDR:PORT"),
        ("AMBERFLO_BASE_URL", "app.amberflo.io", "https://HOST"),
        ("AMBERFLO_BASE_URL", "", "https://HOST"),
        ("AMBERFLO_BASE_URL", "ftp://app.amberflo.io", "https://HOST"),
        ("AMBERFLO_INGEST_URL", "https://", "https://HOST"),
        ("AMBERFLO_INGEST_URL", "https://a b", "https://HOST"),
        ("LOG", "info,=,", "info"),
        ("LOG_FORMAT", "xml", "json"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", "https://HOST"),
    ] {
        let line = refusal(dir.path(), &[(name, given)]).await;
        let flag = format!("--{}", name.to_lowercase().replace('_', "-"));
        let is_named = line.contains(name) || line.contains(&flag);
        let number = given.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let is_shown = line.contains(given) || line.contains(number);
        if !is_named || !is_shown || !line.contains(allowed) {
            unclear.push(format!("{name}={given:?} ({allowed} is allowed): {line}"));
        }
    }
    assert!(unclear.is_empty(), "{unclear:#?}");
    assert!(!dir.path().join("store").exists(), "a refused setting leaves nothing behind");
}

#[tokio::test]
async fn settings_are_checked_against_each_other() {
    let dir = TempDir::new().unwrap();
    let sizes = [("BUFFER_MAX_BYTES", "8MiB"), ("BATCH_MAX_BYTES", "4MiB")];
    let line = refusal(dir.path(), &sizes).await;
    for part in ["BUFFER_MAX_BYTES", "8.0 MiB", "BATCH_MAX_BYTES", "4.0 MiB", "four times"] {
        assert!(line.contains(part), "{part:?} is missing: {line}");
    }
}

#[tokio::test]
async fn a_missing_or_bad_api_key_is_said_without_showing_it() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let key = "AMBERFLO_API_KEY";
    let key_file = "AMBERFLO_API_KEY_FILE";
    for nothing in ["(unset)", ""] {
        let line = refusal(dir.path(), &[(key, nothing)]).await;
        assert!(line.contains(key) && line.contains(key_file), "{line}");
    }
    let both = refusal(dir.path(), &[(key_file, &file("good", KEY.as_bytes()))]).await;
    assert!(both.contains("AMBERFLO_API_KEY and AMBERFLO_API_KEY_FILE"), "{both}");
    let with_space = format!("{KEY} {KEY}");
    let bad = refusal(dir.path(), &[(key, &with_space)]).await;
    assert!(bad.contains(key) && bad.contains("visible ASCII"), "{bad}");
    let absent = dir.path().join("absent").to_str().unwrap().to_owned();
    let folder = dir.path().to_str().unwrap().to_owned();
    for path in [
        absent,
        folder,
        file("empty", b""),
        file("blank", b" \n"),
        file("lines", format!("{KEY}\n{KEY}\n").as_bytes()),
        file("binary", b"\xff\xfe"),
    ] {
        let line = refusal(dir.path(), &[(key, "(unset)"), (key_file, &path)]).await;
        assert!(line.contains(&path), "the file is not named: {line}");
        assert!(line.contains(key_file), "the setting is not named: {line}");
    }
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let dir = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for name in ["LISTEN", "ADMIN_LISTEN"] {
        let line = refusal(dir.path(), &[(name, &address)]).await;
        assert!(line.contains(&format!("{name}: cannot listen on {address}")), "{line}");
    }
    let both = free_address().await.to_string();
    let line = refusal(dir.path(), &[("LISTEN", &both), ("ADMIN_LISTEN", &both)]).await;
    assert!(line.contains("ADMIN_LISTEN") && line.contains(&both), "{line}");
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_named() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("file"), "something else").unwrap();
    // No process may write here, not even one of root.
    for bad in ["file", "file/below", "/proc/metering-data"] {
        let line = refusal(dir.path(), &[("STREAM", &format!("local:{bad}"))]).await;
        assert!(line.contains(bad), "the directory is not named: {line}");
        assert!(line.contains("STREAM"), "the setting is not named: {line}");
    }
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"something else");
}

#[tokio::test]
async fn a_file_that_is_not_a_store_is_named_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let file = store.join(FILE_NAME);
    let foreign = b"not a database, but someone's notes".repeat(100);
    std::fs::write(&file, &foreign).unwrap();
    let line = refusal(dir.path(), &[]).await;
    assert!(line.contains(FILE_NAME), "{line}");
    assert_eq!(std::fs::read(&file).unwrap(), foreign);

    std::fs::remove_file(&file).unwrap();
    drop(LocalStore::open(&store, LocalOptions::default()).unwrap());
    let mut bytes = std::fs::read(&file).unwrap();
    // Source: SQLite's file format; `user_version` is the big-endian number at offset 60.
    bytes[60..64].copy_from_slice(&99_u32.to_be_bytes());
    std::fs::write(&file, &bytes).unwrap();
    let line = refusal(dir.path(), &[]).await;
    assert!(line.contains(FILE_NAME) && line.contains("version 99"), "{line}");
    // `application_id` is at offset 68.
    bytes[68..72].copy_from_slice(&7_u32.to_be_bytes());
    std::fs::write(&file, &bytes).unwrap();
    let line = refusal(dir.path(), &[]).await;
    assert!(line.contains(FILE_NAME) && line.contains("not a metering store"), "{line}");
}

#[tokio::test]
async fn a_second_worker_on_a_directory_is_turned_away() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo);
    let first = site.start().await;
    let line = refusal(site.dir.path(), &[]).await;
    assert!(line.contains("already runs on") && line.contains(site.store_dir().to_str().unwrap()), "{line}");
    first.put(&super::usages(0..10)).await;
    amberflo.billed(10).await;
    first.drain().await;
}

#[tokio::test]
async fn help_shows_every_setting_and_no_secret() {
    let dir = TempDir::new().unwrap();
    let output = run(command(dir.path())
        .arg("--help")
        .env("AMBERFLO_API_KEY", KEY)
        .env("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization={KEY}")))
    .await;
    let help = text(&output.stdout);
    assert_eq!((output.status.code(), &*text(&output.stderr)), (Some(0), ""));
    assert!(!help.contains(KEY));
    for name in [
        "STREAM",
        "INITIAL_POSITION",
        "FAILOVER_TIME",
        "WORKER_ID",
        "LISTEN",
        "LOCAL_MAX_BYTES",
        "AMBERFLO_BASE_URL",
        "AMBERFLO_INGEST_URL",
        "AMBERFLO_API_KEY",
        "AMBERFLO_API_KEY_FILE",
        "API_KEY_REFRESH",
        "REQUEST_TIMEOUT",
        "BATCH_MAX_EVENTS",
        "BATCH_MAX_BYTES",
        "BATCH_LINGER",
        "MAX_IN_FLIGHT",
        "RATE_REQUESTS_PER_SECOND",
        "METER_HOURLY_BUDGET",
        "BUFFER_MAX_BYTES",
        "DEDUP_WINDOW",
        "DEDUP_MAX_KEYS",
        "MAX_EVENT_AGE",
        "MAX_EVENT_AHEAD",
        "ALLOW_AFLO_DIMENSIONS",
        "SHUTDOWN_GRACE",
        "ADMIN_LISTEN",
        "LOG",
        "LOG_FORMAT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_TRACES_SAMPLER",
        "OTEL_TRACES_SAMPLER_ARG",
        "OTEL_SERVICE_NAME",
        "OTEL_RESOURCE_ATTRIBUTES",
    ] {
        assert!(help.contains(&format!("[env: {name}")), "{name} is missing");
    }
    let version = run(command(dir.path()).arg("--version")).await;
    assert_eq!(version.status.code(), Some(0));
    assert!(text(&version.stdout).starts_with("ingest-worker "));
    let unknown = run(command(dir.path()).arg("--no-such-flag")).await;
    assert_eq!(unknown.status.code(), Some(2));
}
