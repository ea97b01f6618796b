//! The last 15 minutes of the metrics that are drawn, in fixed memory.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::samples::Samples;

/// How often the registry is sampled.
pub const STEP: Duration = Duration::from_secs(5);
/// How far back a chart reaches.
pub const SPAN: Duration = Duration::from_secs(15 * 60);
/// One more than steps: a step needs a sample at both its ends.
const POINTS: usize = (SPAN.as_secs() / STEP.as_secs()) as usize + 1;
const QUANTILES: [(&str, f64); 2] = [("half are faster (p50)", 0.5), ("99 % are faster (p99)", 0.99)];

/// What is drawn of a metric, step by step.
#[derive(Clone, Copy, Debug)]
pub enum Chart {
    /// Increases per second of counters.
    Rates {
        /// The heading.
        title: &'static str,
        /// The lines.
        rates: &'static [Rate],
    },
    /// p50 and p99 of a histogram of seconds.
    Times {
        /// The heading.
        title: &'static str,
        /// The histogram.
        metric: &'static str,
    },
}

/// One counter.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// What it counts.
    pub name: &'static str,
    /// The metric; the sum of its series.
    pub metric: &'static str,
    /// Only series whose label of this name has a value that begins so.
    pub label: Option<(&'static str, &'static str)>,
}

/// The curves of one chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Curves(pub Vec<Curve>);

/// One line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// What it shows.
    pub name: &'static str,
    /// From old to new: how long ago, and the value; `None` where there was nothing to measure.
    pub values: Vec<(Duration, Option<f64>)>,
}

/// Samples of what is drawn.
pub struct History {
    charts: &'static [Chart],
    points: Mutex<VecDeque<Point>>,
}

struct Point {
    at: Instant,
    /// Of every chart.
    values: Vec<Values>,
}

enum Values {
    Counters(Vec<f64>),
    /// Upper bounds in ascending order, with how many values were not above.
    Buckets(Vec<(f64, f64)>),
}

impl History {
    pub fn new(charts: &'static [Chart]) -> Self {
        Self { charts, points: Mutex::default() }
    }

    /// Keeps what these samples say.
    pub fn record(&self, samples: &Samples, at: Instant) {
        let values = self.charts.iter().map(|chart| chart.values(samples)).collect();
        let mut points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
        if points.len() == POINTS {
            points.pop_front();
        }
        points.push_back(Point { at, values });
    }

    /// The curves of every chart, as of `now`.
    pub fn curves(&self, now: Instant) -> Vec<Curves> {
        let points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
        let ago = |point: &Point| now.saturating_duration_since(point.at);
        // A process that was stopped meanwhile has older ones.
        let recent: Vec<&Point> = points.iter().filter(|point| ago(point) <= SPAN + STEP).collect();
        let mut all: Vec<Curves> = self.charts.iter().map(Chart::no_curves).collect();
        for pair in recent.windows(2) {
            let (before, after) = (pair[0], pair[1]);
            let time = after.at.saturating_duration_since(before.at).as_secs_f64();
            for ((Curves(curves), before), now) in all.iter_mut().zip(&before.values).zip(&after.values) {
                for (curve, value) in curves.iter_mut().zip(between(before, now, time)) {
                    curve.values.push((ago(after), value));
                }
            }
        }
        all
    }
}

impl Chart {
    /// Its heading.
    #[must_use]
    pub const fn title(&self) -> &'static str {
        match self {
            Self::Rates { title, .. } | Self::Times { title, .. } => title,
        }
    }

    fn no_curves(&self) -> Curves {
        let curve = |name| Curve { name, values: Vec::new() };
        Curves(match self {
            Self::Rates { rates, .. } => rates.iter().map(|rate| curve(rate.name)).collect(),
            Self::Times { .. } => QUANTILES.iter().map(|(name, _)| curve(name)).collect(),
        })
    }

    fn values(&self, samples: &Samples) -> Values {
        match self {
            Self::Rates { rates, .. } => Values::Counters(rates.iter().map(|rate| rate.value(samples)).collect()),
            Self::Times { metric, .. } => Values::Buckets(buckets(samples, metric)),
        }
    }
}

impl Rate {
    fn value(&self, samples: &Samples) -> f64 {
        let counts = |labels: &super::Labels| {
            self.label.is_none_or(|(name, start)| labels.get(name).is_some_and(|value| value.starts_with(start)))
        };
        samples.series(self.metric).filter(|(labels, _)| counts(labels)).map(|(_, value)| value).sum()
    }
}

/// The buckets of a histogram, of all its label values together.
fn buckets(samples: &Samples, metric: &str) -> Vec<(f64, f64)> {
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for (labels, value) in samples.series(&format!("{metric}_bucket")) {
        let Some(bound) = labels.get("le").and_then(|bound| bound.parse().ok()) else { continue };
        match buckets.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, sum)) => *sum += value,
            None => buckets.push((bound, value)),
        }
    }
    buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    buckets
}

/// What happened between two points that lie so many seconds apart, of every curve.
fn between(before: &Values, now: &Values, time: f64) -> Vec<Option<f64>> {
    match (before, now) {
        (Values::Counters(before), Values::Counters(now)) => {
            before.iter().zip(now).map(|(before, now)| (time > 0.0).then(|| (now - before).max(0.0) / time)).collect()
        }
        (Values::Buckets(before), Values::Buckets(now)) => {
            let was = |bound: f64| before.iter().find(|(known, _)| *known == bound).map_or(0.0, |(_, count)| *count);
            let since: Vec<(f64, f64)> = now.iter().map(|(bound, count)| (*bound, count - was(*bound))).collect();
            QUANTILES.iter().map(|(_, q)| quantile(&since, *q)).collect()
        }
        _ => Vec::new(),
    }
}

/// The value that a share `q` of all is not above, assuming that values lie evenly in their bucket; above the highest
/// bound, that bound. As Prometheus' `histogram_quantile` does.
fn quantile(buckets: &[(f64, f64)], q: f64) -> Option<f64> {
    let all = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let index = buckets.iter().position(|(_, count)| *count >= q * all)?;
    let (low, below) = if index == 0 { (0.0, 0.0) } else { buckets[index - 1] };
    let (high, count) = buckets[index];
    if high.is_infinite() {
        return Some(low);
    }
    Some(low + (high - low) * (q * all - below) / (count - below).max(f64::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHARTS: &[Chart] = &[
        Chart::Rates {
            title: "flow",
            rates: &[
                Rate { name: "read", metric: "read_total", label: None },
                Rate { name: "2xx", metric: "answers_total", label: Some(("status", "2")) },
            ],
        },
        Chart::Times { title: "latency", metric: "took_seconds" },
    ];

    fn samples(n: u64) -> Samples {
        Samples::parse(&format!(
            "read_total {}\nanswers_total{{status=\"200\"}} {n}\nanswers_total{{status=\"204\"}} {n}\n\
             answers_total{{status=\"500\"}} 7\ntook_seconds_bucket{{le=\"1\"}} {}\ntook_seconds_bucket{{le=\"2\"}} {}\n\
             took_seconds_bucket{{le=\"+Inf\"}} {}\n",
            10 * n,
            50 * n,
            100 * n,
            100 * n
        ))
    }

    #[test]
    fn a_step_has_its_own_rates_and_quantiles() {
        let (history, start) = (History::new(CHARTS), Instant::now());
        history.record(&Samples::default(), start);
        history.record(&samples(5), start + STEP);
        history.record(&samples(5), start + 2 * STEP);
        let curves = history.curves(start + 3 * STEP);
        let at = |first, second| vec![(2 * STEP, first), (STEP, second)];
        assert_eq!(curves[0].0[0].values, at(Some(10.0), Some(0.0)));
        assert_eq!(curves[0].0[1].values, at(Some(2.0), Some(0.0)));
        assert_eq!(curves[1].0[0].values, at(Some(1.0), None), "nothing came: no latency, not one of zero");
        assert_eq!(curves[1].0[1].values, at(Some(1.98), None));
    }

    #[test]
    fn memory_is_bounded_and_what_is_old_is_not_drawn() {
        let (history, start) = (History::new(CHARTS), Instant::now());
        for step in 0..1000 {
            history.record(&samples(u64::from(step)), start + step * STEP);
        }
        let now = start + 999 * STEP;
        assert_eq!(history.points.lock().unwrap().len(), POINTS);
        let curves = history.curves(now);
        assert_eq!(curves[0].0[0].values.len(), POINTS - 1);
        assert_eq!(curves[0].0[0].values[0].0, SPAN - STEP);
        assert!(history.curves(now + 2 * SPAN)[0].0[0].values.is_empty());
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let buckets = [(0.1, 0.0), (1.0, 10.0), (10.0, 20.0), (f64::INFINITY, 20.0)];
        assert_eq!(quantile(&buckets, 0.5), Some(1.0));
        assert_eq!(quantile(&buckets, 0.75), Some(5.5));
        assert_eq!(quantile(&[(0.1, 0.0), (f64::INFINITY, 3.0)], 0.5), Some(0.1), "no more is known");
        assert_eq!(quantile(&[(0.1, 0.0), (f64::INFINITY, 0.0)], 0.5), None);
        assert_eq!(quantile(&[], 0.5), None);
    }
}
