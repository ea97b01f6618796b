//! The same number of events from more and more tenants.

use serde::{Deserialize, Serialize};

use super::Size;
use super::results::{number, relative};
use super::worker::{Backlog, Cost};
use crate::bench_peers::lab::Lab;
use crate::chart::{Chart, Scale, Series};
use crate::report_dir::ReportDir;

/// One number of tenants.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    tenants: usize,
    #[serde(flatten)]
    cost: Cost,
}

pub async fn measure(lab: &Lab, size: Size) -> anyhow::Result<Vec<Point>> {
    let all: &[usize] = size.pick(&[10, 1000], &[10, 1000, 100_000], &[10, 100, 1000, 10_000, 100_000]);
    let events = size.pick(4_000, 200_000, 1_000_000);
    let mut points = Vec::new();
    for &tenants in all {
        let cost = Backlog::make(lab, events, tenants).await?.drain(lab, size.rounds(), &[]).await?;
        cost.told(&format!("tenants {tenants}"));
        points.push(Point { tenants, cost });
    }
    Ok(points)
}

pub fn report(points: &[Point], report: &mut ReportDir) -> anyhow::Result<()> {
    report.text(
        "The same number of events waits in the local store of a worker without a limit of requests; each event is of one \
         of so many tenants, evenly. Partition keys are tenants.",
    );
    let row = |Point { tenants, cost }: &Point| {
        [
            number(*tenants as f64, 0),
            number(cost.events as f64, 0),
            number(cost.cpu_micros_per_event, 2),
            number(cost.events_per_second, 0),
            number(cost.wire_bytes_per_event, 1),
            number(cost.peak_resident_mib, 1),
        ]
    };
    let rows: Vec<_> = points.iter().map(row).collect();
    report.table(["tenants", "events", "CPU µs/event", "events/s", "wire bytes/event", "peak RSS MiB"], &rows);
    let series = |name: &str, of: fn(&Cost) -> f64| {
        Series::new(name, relative(points.iter().map(|point| (point.tenants as f64, of(&point.cost)))))
    };
    report.chart(
        "tenants",
        &Chart {
            title: "Cost by number of tenants".to_owned(),
            x_label: "tenants".to_owned(),
            y_label: "times that of the fewest".to_owned(),
            x_scale: Scale::Log,
            series: vec![
                series("CPU per event", |cost| cost.cpu_micros_per_event),
                series("wire bytes per event", |cost| cost.wire_bytes_per_event),
                series("peak RSS", |cost| cost.peak_resident_mib),
            ],
            ..Chart::default()
        },
    )
}
