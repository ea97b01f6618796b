//! What the pipeline is meant to reach, each variant of it by itself.

use super::contender::Contender;
use super::latency::Latency;
use super::report::{median_of, megabytes};
use super::speed::Speed;
use crate::bench::measure::grouped;

/// The default of `BATCH_LINGER`, in milliseconds.
const LINGER: f64 = 1000.0;
/// Keys that the dedup window is to hold within the target of memory.
const DEDUP_KEYS: usize = 1_000_000;
/// Those of ours whose cost is compared.
const UNLIMITED: [(Contender, &str); 2] = [(Contender::OursLocal, "local stream"), (Contender::OursKinesis, "Kinesis")];
/// Those of ours as they are installed.
const DEFAULT: [(Contender, &str); 2] =
    [(Contender::OursDefault, "local stream"), (Contender::OursKinesisDefault, "Kinesis")];

type Runs<T> = [(Contender, Vec<T>)];

/// The table; empty where nothing was measured that has a target.
pub fn table(events: usize, speeds: &Runs<Speed>, latencies: &Runs<Latency>) -> String {
    let mut rows = Vec::new();
    ratios(&mut rows, speeds);
    for (contender, variant) in DEFAULT {
        let p99 = median_of(latencies, contender, |run| run.p99);
        below(
            &mut rows,
            &format!("p99 latency at 1,000 events/s, default settings, {variant}"),
            p99,
            LINGER + 50.0,
            " ms",
        );
    }
    for (contender, variant) in UNLIMITED {
        let resident = median_of(speeds, contender, |run| megabytes(run.peak_resident));
        let fewer = if events < DEDUP_KEYS {
            format!(" (fewer keys than the target's {})", grouped(DEDUP_KEYS as f64))
        } else {
            String::new()
        };
        let keys = grouped(events as f64);
        below(
            &mut rows,
            &format!("peak RSS at full load, {variant}, {keys} dedup keys{fewer}"),
            resident,
            150.0,
            " MB",
        );
    }
    if let Some(limited) = median_of(speeds, Contender::OursDefault, |run| run.pace.per_second) {
        rows.push(format!("| throughput with the default limits | explained | {} events/s | |", grouped(limited)));
    }
    if rows.is_empty() {
        return String::new();
    }
    format!("### Targets\n\n| | target | measured | |\n|---|---|---|---|\n{}\n", rows.join("\n"))
}

/// Events for each CPU-second beside others.
fn ratios(rows: &mut Vec<String>, speeds: &Runs<Speed>) {
    let cpu = |contender| median_of(speeds, contender, |run| run.per_cpu_second);
    let sdk = [Contender::Sdk100, Contender::Sdk1000].into_iter().filter_map(cpu).reduce(f64::max);
    let others = [
        ("over the faster Python SDK", sdk, 5.0),
        ("over one POST per event, Python, connection kept", cpu(Contender::OnePerEventPython), 300.0),
        ("over one POST per event, Python, new connection each", cpu(Contender::OnePerEventConnect), 300.0),
    ];
    for (contender, variant) in UNLIMITED {
        let ratio = |over: Option<f64>| Some(cpu(contender)? / over?);
        let bare = ratio(cpu(Contender::BareLoop)).map(|ratio| 100.0 * ratio);
        at_least(rows, &format!("events per CPU-second, {variant}, of the bare loop"), bare, 60.0, " %");
        for (other, over, target) in others {
            let what = format!("events per CPU-second, {variant}, {other}");
            at_least(rows, &what, ratio(over), target, " times");
        }
    }
}

fn at_least(rows: &mut Vec<String>, what: &str, value: Option<f64>, target: f64, unit: &str) {
    let Some(value) = value else { return };
    let digits = usize::from(target < 10.0);
    let verdict = verdict(value >= target, target, value);
    rows.push(format!("| {what} | at least {target:.0}{unit} | {value:.digits$}{unit} | {verdict} |"));
}

fn below(rows: &mut Vec<String>, what: &str, value: Option<f64>, target: f64, unit: &str) {
    let Some(value) = value else { return };
    let verdict = verdict(value < target, target, value);
    let value = if value.is_finite() { format!("{value:.0}{unit}") } else { "never".to_owned() };
    rows.push(format!("| {what} | below {target:.0}{unit} | {value} | {verdict} |"));
}

fn verdict(is_met: bool, target: f64, value: f64) -> String {
    match 100.0 * (value - target).abs() / target {
        _ if is_met => "met".to_owned(),
        by if by.is_finite() => format!("**missed** by {by:.0} %"),
        _ => "**missed**".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sink::Pace;
    use super::*;

    fn speed(per_cpu_second: f64, megabytes: u64) -> Vec<Speed> {
        let pace = Pace { per_second: 10.0, sink_busy: 0.1 };
        let peak_resident = megabytes * 1_000_000;
        vec![Speed { events: 1000, pace, per_cpu_second, bytes_per_event: 50.0, peak_resident }]
    }

    #[test]
    fn each_variant_of_ours_meets_or_misses_a_target_by_itself() {
        let speeds = [
            (Contender::BareLoop, speed(1000.0, 10)),
            (Contender::OursLocal, speed(500.0, 200)),
            (Contender::OursKinesis, speed(700.0, 149)),
            (Contender::Sdk100, speed(50.0, 10)),
            (Contender::Sdk1000, speed(125.0, 10)),
        ];
        let latency = |p99| vec![Latency { p50: 500.0, p99, accepted: 1.0 }];
        let latencies =
            [(Contender::OursDefault, latency(1010.0)), (Contender::OursKinesisDefault, latency(f64::INFINITY))];
        let table = table(1000, &speeds, &latencies);
        for row in [
            "local stream, of the bare loop | at least 60 % | 50 % | **missed** by 17 % |",
            "Kinesis, of the bare loop | at least 60 % | 70 % | met |",
            "local stream, over the faster Python SDK | at least 5 times | 4.0 times | **missed** by 20 % |",
            "Kinesis, over the faster Python SDK | at least 5 times | 5.6 times | met |",
            "local stream | below 1050 ms | 1010 ms | met |",
            "Kinesis | below 1050 ms | never | **missed** |",
            "local stream, 1,000 dedup keys (fewer keys than the target's 1,000,000) | below 150 MB | 200 MB | **missed** by 33 % |",
            "Kinesis, 1,000 dedup keys (fewer keys than the target's 1,000,000) | below 150 MB | 149 MB | met |",
        ] {
            assert!(table.contains(row), "{row}\n{table}");
        }
        let full = super::table(1_000_000, &speeds, &[]);
        assert!(full.contains("Kinesis, 1,000,000 dedup keys | below 150 MB"), "{full}");
        assert_eq!(super::table(1000, &[], &[]), "");
    }
}
