//! Line charts for reports, as SVG: a report is a directory of `report.md`, the `NAME.svg` that it shows, and
//! `result.json`. (In the text of a Markdown file SVG is stripped by GitHub; an image beside it is shown by everything.)

mod axis;

use std::fmt::Display;

use plotters::chart::ChartBuilder;
use plotters::drawing::IntoDrawingArea as _;
use plotters::element::{PathElement, Text};
use plotters::prelude::SVGBackend;
use plotters::series::{DashedLineSeries, LineSeries};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color as _, IntoFont as _, RGBColor, ShapeStyle, TextStyle, WHITE};

use axis::Axis;
pub use axis::Scale;

const SIZE: (u32, u32) = (900, 360);
/// More do not differ at this width.
const MOST_POINTS: usize = 1000;
/// Of more only the first has its word: they would cover each other, and the lines.
const MOST_WORDED_MARKS: usize = 40;
const FONT: &str = "sans-serif";
/// White paper and dark ink, so that it can be read on a dark page too. Told apart also by those who see fewer colours.
const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
const GRID: RGBColor = RGBColor(0xDD, 0xDD, 0xDD);
const COLORS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
    RGBColor(0x00, 0x00, 0x00),
];

/// One chart.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// What the horizontal axis measures, with its unit.
    pub x_label: String,
    /// What the vertical axis measures, with its unit.
    pub y_label: String,
    /// How the horizontal axis is divided.
    pub x_scale: Scale,
    /// How the vertical axis is divided.
    pub y_scale: Scale,
    /// The lines.
    pub series: Vec<Series>,
    /// Moments of interest, as vertical lines.
    pub marks: Vec<Mark>,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points from left to right. What is not finite is left out, and on a logarithmic axis what is not positive.
    pub points: Vec<(f64, f64)>,
}

/// A vertical line.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Where on the horizontal axis.
    pub at: f64,
    /// What is written beside it.
    pub label: String,
}

impl Series {
    /// A line.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points }
    }
}

impl Chart {
    /// The chart as the text of an SVG file.
    ///
    /// # Errors
    /// When it cannot be drawn.
    pub fn svg(&self) -> anyhow::Result<String> {
        let mut svg = String::new();
        self.draw(SVGBackend::with_string(&mut svg, SIZE))
            .map_err(|error| anyhow::anyhow!("the chart {:?} cannot be drawn: {error}", self.title))?;
        Ok(svg)
    }

    fn draw(&self, backend: SVGBackend<'_>) -> Result<(), impl Display> {
        let area = backend.into_drawing_area();
        area.fill(&WHITE)?;
        let is_alone = self.series.len() < 2;
        let lines: Vec<Vec<(f64, f64)>> = self.series.iter().map(|series| self.drawable(series)).collect();
        let points = || lines.iter().flatten();
        let marks = self.marks.iter().map(|mark| mark.at).filter(|at| self.x_scale.has(*at));
        // What is measured is time or size: charts of one report begin at the same place.
        let zero = self.x_scale.has(0.0).then_some(0.0);
        let x = Axis::over(self.x_scale, points().map(|point| point.0).chain(marks).chain(zero));
        let y = Axis::from_zero_over(self.y_scale, points().map(|point| point.1));
        let (bottom, top) = (y.low(), y.high());
        // Beside the lines, where it hides none of them.
        let (area, legend) = area.split_horizontally(SIZE.0 as i32 - self.legend_width());
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .caption(&self.title, (FONT, 20).into_font().color(&INK))
            .x_label_area_size(44)
            .y_label_area_size(76)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .x_desc(&self.x_label)
            .y_desc(&self.y_label)
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(WHITE)
            .label_style((FONT, 15).into_font().color(&INK))
            .draw()?;
        let is_crowded = self.marks.len() > MOST_WORDED_MARKS;
        for (index, mark) in self.marks.iter().enumerate().filter(|(_, mark)| self.x_scale.has(mark.at)) {
            let line = [(mark.at, bottom), (mark.at, top)];
            if is_crowded {
                chart.draw_series(LineSeries::new(line, INK.mix(0.25).stroke_width(1)))?;
            } else {
                chart.draw_series(DashedLineSeries::new(line, 4, 3, INK.mix(0.6).stroke_width(1)))?;
            }
            if is_crowded && index > 0 {
                continue;
            }
            // Neighbours at different heights, or their words would lie over each other.
            let style = TextStyle::from((FONT, 12).into_font()).color(&INK).pos(Pos::new(HPos::Left, VPos::Top));
            let offset = 2 + 13 * (index as i32 % 6);
            let text = plotters::element::EmptyElement::at((mark.at, top))
                + Text::new(format!(" {}", mark.label), (0, offset), style);
            chart.draw_series(std::iter::once(text))?;
        }
        for (line, color) in lines.into_iter().zip(COLORS.iter().cycle()) {
            let style: ShapeStyle = color.stroke_width(2);
            chart.draw_series(LineSeries::new(line, style))?;
        }
        for (index, (series, color)) in
            self.series.iter().zip(COLORS.iter().cycle()).enumerate().skip_while(|_| is_alone)
        {
            let y = 50 + 20 * index as i32;
            legend.draw(&PathElement::new([(0, y), (18, y)], color.stroke_width(2)))?;
            let style = TextStyle::from((FONT, 14).into_font()).color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
            legend.draw(&Text::new(series.name.as_str(), (24, y), style))?;
        }
        area.present()
    }

    /// In pixels; a guess, because the reader's program has the letters.
    fn legend_width(&self) -> i32 {
        let longest = self.series.iter().map(|series| series.name.chars().count()).max().unwrap_or_default();
        if self.series.len() < 2 { 0 } else { (40 + 8 * longest as i32).min(300) }
    }

    fn drawable(&self, series: &Series) -> Vec<(f64, f64)> {
        let points = series.points.iter().copied();
        thinned(points.filter(|(x, y)| self.x_scale.has(*x) && self.y_scale.has(*y)).collect())
    }
}

/// Of very many points the lowest and the highest of every group: nobody sees more of them, and no peak is lost.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    if points.len() <= MOST_POINTS {
        return points;
    }
    let group = points.len().div_ceil(MOST_POINTS / 2);
    let low_and_high = |group: &[(f64, f64)]| {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let mut ends: Vec<_> =
            group.iter().min_by(by_value).into_iter().chain(group.iter().max_by(by_value)).copied().collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        ends.dedup();
        ends
    };
    points.chunks(group).flat_map(low_and_high).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(scale: Scale, points: Vec<(f64, f64)>) -> Chart {
        Chart {
            title: "Rate & <latency>".to_owned(),
            x_label: "time [s]".to_owned(),
            y_label: "ms".to_owned(),
            x_scale: scale,
            y_scale: scale,
            series: vec![Series::new("asked", points.clone()), Series::new("acknowledged", points)],
            marks: vec![Mark { at: 3.0, label: "kill -9".to_owned() }],
        }
    }

    #[test]
    fn shows_what_it_is_given() {
        let svg = chart(Scale::Linear, vec![(0.0, 5.0), (10.0, 2500.0)]).svg().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for text in ["Rate &amp; &lt;latency&gt;", "time [s]", "asked", "acknowledged", "kill -9", "2,500", "#FFFFFF"] {
            assert!(svg.contains(text), "{text} in {svg}");
        }
        assert_eq!(svg.matches("#0072B2").count(), 2, "the line and its legend");
    }

    #[test]
    fn a_logarithmic_axis_has_powers_of_ten() {
        let svg = chart(Scale::Log, vec![(0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (1000.0, 100_000.0)]).svg().unwrap();
        for text in ["\n1\n", "\n10\n", "\n100\n", "\n1,000\n", "\n100,000\n"] {
            assert!(svg.contains(text), "{text:?} in {svg}");
        }
    }

    #[test]
    fn many_points_are_thinned_without_losing_a_peak() {
        let mut points: Vec<_> = (0..10_000).map(|x| (f64::from(x), 1.0)).collect();
        points[4321].1 = 1e6;
        points[4322].1 = -1e6;
        let thinned = thinned(points.clone());
        assert!(thinned.len() <= MOST_POINTS && thinned.is_sorted_by(|a, b| a.0 < b.0), "{}", thinned.len());
        assert!(thinned.contains(&(4321.0, 1e6)) && thinned.contains(&(4322.0, -1e6)));
        assert_eq!(super::thinned(points[..MOST_POINTS].to_vec()), points[..MOST_POINTS]);
    }

    #[test]
    fn many_marks_are_lines_with_one_word() {
        let mark = |at| Mark { at: f64::from(at), label: "kill -9".to_owned() };
        let mut chart = chart(Scale::Linear, vec![(0.0, 5.0), (300.0, 7.0)]);
        chart.marks = (0..300).map(mark).collect();
        let svg = chart.svg().unwrap();
        assert_eq!(svg.matches("kill -9").count(), 1);
        assert!(svg.len() < 100_000, "{}", svg.len());
    }

    #[test]
    fn nothing_to_show_is_a_chart_too() {
        for scale in [Scale::Linear, Scale::Log] {
            for points in [vec![], vec![(f64::NAN, 1.0), (1.0, f64::INFINITY)], vec![(7.0, 0.0)], vec![(7.0, 3.0)]] {
                let svg = chart(scale, points).svg().unwrap();
                assert!(svg.contains("acknowledged") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
    }
}
