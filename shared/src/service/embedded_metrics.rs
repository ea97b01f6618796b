//! Metrics of a function in AWS Lambda, which nobody can scrape: after each invocation it prints them in CloudWatch's
//! embedded metric format, and CloudWatch takes them from the log.
//!
//! Source: [the specification](https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html).
//! That a value may be `{"Values": [...], "Counts": [...]}` stands in the documentation of AWS's own crate `metrique`.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label, Metadata, Recorder, SharedString, Unit, set_global_recorder,
};
use metrics_util::registry::{AtomicStorage, Registry};
use serde_json::{Map, Value, json};

use crate::clock::UnixMillis;

/// What CloudWatch takes of one metric in one line.
const MAX_VALUES: usize = 100;

/// Settings of the metrics of a function.
#[derive(Clone, Debug, clap::Args)]
pub struct EmbeddedMetricsArgs {
    /// The namespace in CloudWatch of the function's metrics, which are printed in the embedded metric format after each
    /// invocation. Empty: none are printed.
    #[arg(long, env, default_value = "AmberfloMetering", value_name = "NAME", help_heading = "Function")]
    metrics_namespace: String,
    /// Lambda sets it to the function's name: the dimension of its metrics.
    #[arg(long, env = "AWS_LAMBDA_FUNCTION_NAME", default_value = "", hide = true)]
    function_name: String,
}

/// What was counted since the last line.
#[derive(Clone)]
pub struct EmbeddedMetrics(Arc<Inner>);

struct Inner {
    namespace: String,
    function: String,
    /// Gauges that mean something between two invocations.
    gauges: &'static [&'static str],
    registry: Registry<Key, AtomicStorage>,
    units: Mutex<HashMap<KeyName, Unit>>,
}

impl EmbeddedMetrics {
    /// Counts from now on what the process counts; `None` where the settings want no metrics. Of gauges only these are
    /// printed: each costs as much as a metric that says something.
    ///
    /// # Errors
    /// When something else counts already.
    pub fn install(args: EmbeddedMetricsArgs, gauges: &'static [&'static str]) -> anyhow::Result<Option<Self>> {
        let EmbeddedMetricsArgs { metrics_namespace, function_name } = args;
        if metrics_namespace.is_empty() {
            return Ok(None);
        }
        let metrics = Self::new(metrics_namespace, function_name, gauges);
        set_global_recorder(metrics.clone()).map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(Some(metrics))
    }

    fn new(namespace: String, function: String, gauges: &'static [&'static str]) -> Self {
        let (registry, units) = (Registry::atomic(), Mutex::default());
        Self(Arc::new(Inner { namespace, function, gauges, registry, units }))
    }

    /// Prints what was counted since the last time: a line for each set of labels. What was not touched is left out.
    ///
    /// An error of standard output is nobody's to mend, and no reason to fail an invocation: it is left.
    pub fn print(&self, now: UnixMillis) {
        let lines = self.lines(now);
        let _ = std::io::stdout().lock().write_all(lines.as_bytes());
    }

    fn lines(&self, now: UnixMillis) -> String {
        let mut by_labels: BTreeMap<Vec<Label>, Vec<(KeyName, Value)>> = BTreeMap::new();
        let mut add = |key: &Key, value| {
            by_labels.entry(key.labels().cloned().collect()).or_default().push((key.name_shared(), value));
        };
        let registry = &self.0.registry;
        registry.visit_counters(|key, counter| match counter.swap(0, Ordering::Relaxed) {
            0 => {}
            count => add(key, count.into()),
        });
        registry.visit_gauges(|key, gauge| {
            if self.0.gauges.contains(&key.name()) {
                add(key, f64::from_bits(gauge.load(Ordering::Relaxed)).into());
            }
        });
        registry.visit_histograms(|key, histogram| {
            let mut values = Vec::new();
            histogram.clear_with(|block| values.extend_from_slice(block));
            if !values.is_empty() {
                add(key, distribution(&values));
            }
        });
        by_labels.into_iter().map(|(labels, metrics)| format!("{}\n", self.document(now, &labels, metrics))).collect()
    }

    fn document(&self, now: UnixMillis, labels: &[Label], metrics: Vec<(KeyName, Value)>) -> Value {
        let units = self.0.units.lock().unwrap_or_else(PoisonError::into_inner);
        let mut root: Map<String, Value> =
            labels.iter().map(|label| (label.key().into(), label.value().into())).collect();
        root.insert("FunctionName".to_owned(), self.0.function.as_str().into());
        let dimensions: Vec<&String> = root.keys().collect();
        let definitions: Vec<Value> = metrics
            .iter()
            .map(|(name, _)| json!({ "Name": name.as_str(), "Unit": units.get(name).copied().map_or("Count", unit) }))
            .collect();
        let directive = json!({ "Namespace": self.0.namespace, "Dimensions": [dimensions], "Metrics": definitions });
        root.insert("_aws".to_owned(), json!({ "Timestamp": now, "CloudWatchMetrics": [directive] }));
        root.extend(metrics.into_iter().map(|(name, value)| (name.as_str().to_owned(), value)));
        Value::Object(root)
    }

    fn describe(&self, name: KeyName, unit: Option<Unit>) {
        if let Some(unit) = unit {
            self.0.units.lock().unwrap_or_else(PoisonError::into_inner).insert(name, unit);
        }
    }
}

impl Recorder for EmbeddedMetrics {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(name, unit);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(name, unit);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(name, unit);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.0.registry.get_or_create_counter(key, |counter| Counter::from_arc(Arc::clone(counter)))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.0.registry.get_or_create_gauge(key, |gauge| Gauge::from_arc(Arc::clone(gauge)))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.0.registry.get_or_create_histogram(key, |histogram| Histogram::from_arc(Arc::clone(histogram)))
    }
}

/// The values and how often each occurred; as many as there may be, and no coarser than that takes.
fn distribution(values: &[f64]) -> Value {
    let exact = |value: f64| value;
    let rounded = [100.0, 50.0, 20.0, 10.0, 5.0].map(|steps| {
        move |value: f64| match value {
            0.0 => 0.0,
            _ => 10_f64.powf((value.abs().log10() * steps).round() / steps).copysign(value),
        }
    });
    let counts = |round: &dyn Fn(f64) -> f64| {
        let mut counts: BTreeMap<u64, (f64, u64)> = BTreeMap::new();
        for value in values.iter().map(|value| round(*value)).filter(|value| value.is_finite()) {
            counts.entry(value.to_bits()).or_insert((value, 0)).1 += 1;
        }
        counts
    };
    let mut best = counts(&exact);
    for round in &rounded {
        if best.len() <= MAX_VALUES {
            break;
        }
        best = counts(round);
    }
    let (values, counts): (Vec<f64>, Vec<u64>) = best.into_values().take(MAX_VALUES).unzip();
    json!({ "Values": values, "Counts": counts })
}

fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Seconds => "Seconds",
        Unit::Milliseconds => "Milliseconds",
        Unit::Bytes => "Bytes",
        Unit::Percent => "Percent",
        _ => "Count",
    }
}

#[cfg(test)]
mod tests {
    use metrics::with_local_recorder;

    use super::*;

    fn lines(metrics: &EmbeddedMetrics) -> Vec<Value> {
        metrics.lines(1_700_000_000_000).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn new() -> EmbeddedMetrics {
        EmbeddedMetrics::new("Space".to_owned(), "worker".to_owned(), &["paused"])
    }

    #[test]
    fn a_line_for_each_set_of_labels_with_what_was_counted_since() {
        let metrics = new();
        with_local_recorder(&metrics, || {
            metrics::describe_histogram!("wait_seconds", Unit::Seconds, "");
            metrics::counter!("read_total").increment(3);
            metrics::counter!("events_total", "outcome" => "delivered").increment(2);
            metrics::counter!("events_total", "outcome" => "duplicate").absolute(0);
            metrics::histogram!("wait_seconds").record(0.25);
            metrics::histogram!("wait_seconds").record_many(0.5, 7);
            metrics::gauge!("ready").set(0.0);
        });
        let [without, delivered] = lines(&metrics).try_into().unwrap();
        assert_eq!(
            without,
            json!({
                "_aws": { "Timestamp": 1_700_000_000_000_i64, "CloudWatchMetrics": [{
                    "Namespace": "Space",
                    "Dimensions": [["FunctionName"]],
                    "Metrics": [{ "Name": "read_total", "Unit": "Count" }, { "Name": "wait_seconds", "Unit": "Seconds" }],
                }] },
                "FunctionName": "worker",
                "read_total": 3,
                "wait_seconds": { "Values": [0.25, 0.5], "Counts": [1, 7] },
            })
        );
        assert_eq!(delivered["_aws"]["CloudWatchMetrics"][0]["Dimensions"], json!([["FunctionName", "outcome"]]));
        assert_eq!((&delivered["outcome"], &delivered["events_total"]), (&json!("delivered"), &json!(2)));
        assert_eq!(lines(&metrics), Vec::<Value>::new(), "nothing was counted since");
        with_local_recorder(&metrics, || metrics::gauge!("paused").set(1.0));
        assert_eq!(
            [lines(&metrics), lines(&metrics)].map(|lines| lines[0]["paused"].clone()),
            [json!(1.0), json!(1.0)]
        );
    }

    #[test]
    fn many_values_are_rounded_and_all_are_counted() {
        for spread in [1.0_f64, 1e3, 1e9] {
            let values: Vec<f64> = (1..=100_000).map(|n| spread.powf(f64::from(n) / 1e5) * 0.001).collect();
            let made = distribution(&values);
            let [of_values, counts] = ["Values", "Counts"].map(|name| made[name].as_array().unwrap());
            assert!(of_values.len() <= MAX_VALUES && counts.len() == of_values.len(), "{}", of_values.len());
            let sum: f64 = of_values.iter().zip(counts).map(|(v, n)| v.as_f64().unwrap() * n.as_f64().unwrap()).sum();
            let exact: f64 = values.iter().sum();
            assert!((sum / exact - 1.0).abs() < 0.05, "{sum} {exact}");
            assert_eq!(counts.iter().map(|count| count.as_u64().unwrap()).sum::<u64>(), 100_000);
        }
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        assert_eq!(distribution(&[f64::NAN, 1.0, f64::INFINITY]), json!({ "Values": [1.0], "Counts": [1] }));
    }
}
