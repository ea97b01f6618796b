//! One axis of a chart.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// So many decades have lines between the powers of ten too.
const FEW_DECADES: usize = 2;

/// How an axis is divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps are equal distances.
    #[default]
    Linear,
    /// Equal factors are equal distances.
    Log,
}

impl Scale {
    /// Whether the axis has a place for this value.
    #[must_use]
    pub fn has(self, value: f64) -> bool {
        value.is_finite() && (self == Self::Linear || value > 0.0)
    }
}

/// An axis from `low` to `high`, which differ.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
}

impl Axis {
    /// An axis that holds these values, all of which its scale has.
    pub(super) fn over(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let span = values.fold(None, |span: Option<(f64, f64)>, value| {
            Some(span.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
        });
        let (low, high) = span.unwrap_or((if scale == Scale::Log { 1.0 } else { 0.0 }, 1.0));
        match scale {
            Scale::Linear if low == high => Self { scale, low: low.min(0.0), high: high.max(low.min(0.0) + 1.0) },
            Scale::Log if low == high => Self { scale, low: low / 10.0, high: high * 10.0 },
            _ => Self { scale, low, high },
        }
    }

    /// The same with room above; and from 0 where it can be, for what begins elsewhere looks steeper than it is.
    pub(super) fn from_zero_over(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let axis = Self::over(scale, values);
        match scale {
            Scale::Linear => {
                Self { low: axis.low.min(0.0), high: axis.high + (axis.high - axis.low.min(0.0)) * 0.05, ..axis }
            }
            Scale::Log => {
                let decade = |value: f64, round: fn(f64) -> f64| 10f64.powf(round(value.log10()));
                let (low, high) = (decade(axis.low, f64::floor), decade(axis.high, f64::ceil));
                Self { low, high: if high > low { high } else { low * 10.0 }, ..axis }
            }
        }
    }

    pub(super) fn low(self) -> f64 {
        self.low
    }

    pub(super) fn high(self) -> f64 {
        self.high
    }

    /// Where a value is, from 0 to 1.
    fn place(self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value / self.low).log10() / (self.high / self.low).log10(),
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (self.place(*value) * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let is_in = |value: &f64| (-1e-9..=1.0 + 1e-9).contains(&self.place(*value));
        let max = hint.max_num_points().clamp(2, 10);
        match self.scale {
            Scale::Linear => {
                let step = round_step((self.high - self.low) / max as f64);
                let first = (self.low / step).ceil();
                (0..=max as i32 + 1).map(|count| (first + f64::from(count)) * step).filter(is_in).collect()
            }
            Scale::Log => {
                let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
                let decades = (last - first).max(1) as usize;
                let between: &[f64] = if decades <= FEW_DECADES { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let powers = (first..=last).step_by(decades.div_ceil(max)).map(|power| 10f64.powi(power));
                powers.flat_map(|power| between.iter().map(move |factor| factor * power)).filter(is_in).collect()
            }
        }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        number(*value)
    }
}

/// The next of 1, 2, 5, 10, 20, ... that is not less.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= step * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// `1,500`, `2.5M`, `0.002`.
fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 1e6 {
        let (divisor, unit) = if size >= 1e9 { (1e9, "G") } else { (1e6, "M") };
        return format!("{}{unit}", trimmed(value / divisor, 3));
    }
    if size >= 1000.0 {
        let whole = value.round() as i64;
        return format!("{},{:03}", whole / 1000, whole.abs() % 1000);
    }
    match size {
        0.0 => "0".to_owned(),
        1e-4.. => trimmed(value, 5),
        _ => format!("{value:e}"),
    }
}

fn trimmed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let pairs = [(0.0, "0"), (0.25, "0.25"), (1500.0, "1,500"), (2_500_000.0, "2.5M"), (3e9, "3G"), (1e-6, "1e-6")];
        for (value, text) in pairs {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn steps_are_round_and_few() {
        for high in [0.003, 1.0, 7.0, 99.0, 12_345.0] {
            let points = Axis::over(Scale::Linear, [0.0, high].into_iter()).key_points(10);
            assert!((4..=11).contains(&points.len()), "{high}: {points:?}");
        }
        assert_eq!(Axis::over(Scale::Log, [1.0, 20.0].into_iter()).key_points(10), [1.0, 2.0, 5.0, 10.0, 20.0]);
    }
}
