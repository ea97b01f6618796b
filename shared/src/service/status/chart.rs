//! A chart as SVG. Its labels are HTML around it: text in an SVG that is stretched to the width of a phone is too small.

use std::fmt::Write as _;
use std::time::Duration;

use maud::{Markup, html};

use super::history::{Chart, Curve, Curves, SPAN};
use super::text;

/// The drawing's own units; it is stretched to the room that there is.
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 200.0;
/// Below this a time is as good as none.
const FASTEST: f64 = 0.01;
/// A longer step than two of ours was not a step: the line is broken there.
const GAP: Duration = Duration::from_secs(15);

/// Where values lie, from bottom (0) to top (1).
#[derive(Clone, Debug, PartialEq)]
struct Scale {
    /// Evenly spaced from bottom to top.
    ticks: Vec<f64>,
    is_logarithmic: bool,
}

/// One chart with its legend.
pub fn draw(chart: &Chart, Curves(curves): &Curves) -> Markup {
    let format: fn(f64) -> String = match chart {
        Chart::Rates { .. } => text::decimal,
        Chart::Times { .. } => text::seconds,
    };
    let most = curves.iter().filter_map(highest).fold(0.0, f64::max);
    let scale = match chart {
        Chart::Rates { .. } => Scale::linear(most),
        Chart::Times { .. } => Scale::logarithmic(most),
    };
    html! {
        figure.chart {
            figcaption { (chart.title()) }
            .plot {
                .ticks aria-hidden="true" {
                    @for tick in scale.ticks.iter().rev() { span { (scale.label(*tick, format)) } }
                }
                svg role="img" viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" {
                    title { (summary(chart.title(), curves, format)) }
                    @for line in 0..scale.ticks.len() {
                        @let y = HEIGHT * line as f64 / (scale.ticks.len() - 1) as f64;
                        path.grid d=(format!("M0 {y:.1}H{WIDTH}")) {}
                    }
                    @for (index, curve) in curves.iter().enumerate() {
                        path.{ "line-" (index) } d=(path(&curve.values, &scale)) {}
                    }
                }
                .times aria-hidden="true" { span { "15 min ago" } span { "10" } span { "5" } span { "now" } }
            }
            ul.legend {
                @for (index, curve) in curves.iter().enumerate() {
                    li {
                        svg.key aria-hidden="true" viewBox="0 0 24 8" { path.{ "line-" (index) } d="M1 4H23" {} }
                        (curve.name) " " b { (latest(curve).map_or_else(|| "none".to_owned(), format)) }
                    }
                }
            }
        }
    }
}

/// The chart in words, for who cannot see it, and for a mouse that rests on it.
fn summary(title: &str, curves: &[Curve], format: fn(f64) -> String) -> String {
    let mut words = format!("{title}, last 15 minutes.");
    for curve in curves {
        let _ = match (latest(curve), highest(curve)) {
            (_, None) => write!(words, " {}: none.", curve.name),
            (now, Some(most)) => {
                let now = now.map_or_else(|| "none".to_owned(), format);
                write!(words, " {}: now {now}, at most {}.", curve.name, format(most))
            }
        };
    }
    words
}

fn latest(curve: &Curve) -> Option<f64> {
    curve.values.last().and_then(|(_, value)| *value)
}

fn highest(curve: &Curve) -> Option<f64> {
    curve.values.iter().filter_map(|(_, value)| *value).reduce(f64::max)
}

/// The line as path data, broken where there is no value.
fn path(values: &[(Duration, Option<f64>)], scale: &Scale) -> String {
    let mut path = String::new();
    let mut last: Option<Duration> = None;
    for (ago, value) in values {
        let Some(value) = value else {
            last = None;
            continue;
        };
        let x = WIDTH * (1.0 - ago.as_secs_f64() / SPAN.as_secs_f64()).clamp(0.0, 1.0);
        let y = HEIGHT * (1.0 - scale.place(*value));
        let _ = match last.filter(|last| last.saturating_sub(*ago) <= GAP) {
            Some(_) => write!(path, "L{x:.1} {y:.1}"),
            // With its round end a line of no length is a dot.
            None => write!(path, "M{x:.1} {y:.1}h0"),
        };
        last = Some(*ago);
    }
    path
}

impl Scale {
    /// From zero to a round number above `most`.
    fn linear(most: f64) -> Self {
        let magnitude = 10_f64.powf(most.max(1.0).log10().floor());
        let steps = [1.0, 2.0, 4.0, 10.0].map(|factor| factor * magnitude);
        let top = steps.into_iter().find(|step| *step >= most).unwrap_or(most);
        Self { ticks: vec![0.0, top / 2.0, top], is_logarithmic: false }
    }

    /// Decades, from what is as good as nothing to one above `most`: milliseconds and hours in one drawing.
    fn logarithmic(most: f64) -> Self {
        let mut ticks = vec![FASTEST, FASTEST * 10.0, FASTEST * 100.0];
        while let Some(top) = ticks.last().copied().filter(|top| *top < most) {
            ticks.push(top * 10.0);
        }
        Self { ticks, is_logarithmic: true }
    }

    /// Decades of seconds are not minutes.
    fn label(&self, tick: f64, format: fn(f64) -> String) -> String {
        if self.is_logarithmic && tick >= 60.0 { format!("{} s", text::count(tick)) } else { format(tick) }
    }

    fn place(&self, value: f64) -> f64 {
        let (Some(low), Some(high)) = (self.ticks.first(), self.ticks.last()) else { return 0.0 };
        let place = if self.is_logarithmic {
            (value.max(*low) / low).log10() / (high / low).log10()
        } else {
            (value - low) / (high - low)
        };
        place.clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn scales_are_round_and_hold_all_values() {
        for (most, top) in [(0.0, 1.0), (0.3, 1.0), (1.0, 1.0), (1.5, 2.0), (3.0, 4.0), (4.1, 10.0), (99_000.0, 1e5)] {
            assert_eq!(Scale::linear(most).ticks, [0.0, top / 2.0, top], "{most}");
        }
        let hours = Scale::logarithmic(7200.0);
        assert_eq!(hours.ticks.len(), 7, "10 ms to 10,000 s: {hours:?}");
        assert_eq!(hours.place(0.0), 0.0);
        assert!((hours.place(10.0) - 0.5).abs() < 1e-9);
        assert_eq!(Scale::logarithmic(0.0).ticks.len(), 3);
        let labels: Vec<String> = hours.ticks.iter().map(|tick| hours.label(*tick, text::seconds)).collect();
        assert_eq!(labels, ["10 ms", "100 ms", "1 s", "10 s", "100 s", "1,000 s", "10,000 s"]);
    }

    #[test]
    fn a_line_breaks_where_nothing_was_measured() {
        let scale = Scale::linear(4.0);
        let values =
            [(900, Some(0.0)), (895, Some(4.0)), (890, None), (450, Some(2.0)), (100, Some(9.0)), (0, Some(0.0))];
        let values = values.map(|(ago, value)| (ago * SECOND, value));
        let drawn = "M0.0 200.0h0L5.0 0.0M450.0 100.0h0M800.0 0.0h0M900.0 200.0h0";
        assert_eq!(path(&values, &scale), drawn, "a gap, two pauses, and a value above the scale");
    }

    #[test]
    fn words_say_what_is_drawn() {
        let chart = Chart::Times { title: "Latency", metric: "m" };
        let values = vec![(10 * SECOND, Some(0.25)), (5 * SECOND, Some(90.0)), (SECOND, None)];
        let curves = Curves(vec![Curve { name: "p50", values }, Curve { name: "p99", values: Vec::new() }]);
        let drawn = draw(&chart, &curves).into_string();
        let words = "Latency, last 15 minutes. p50: now none, at most 1 min 30 s. p99: none.";
        assert!(drawn.contains(&format!("<title>{words}</title>")), "{drawn}");
        assert!(drawn.contains("<b>none</b>") && !drawn.contains("style="), "{drawn}");
    }
}
