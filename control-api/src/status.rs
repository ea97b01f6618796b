//! What the API's status page shows: its requests, and what Amberflo answered.

use std::net::SocketAddr;

use shared::service::status::{Cell, Chart, Rate, Report, Samples, Setting, Table, View, count};

use crate::app::App;

const fn answers(name: &'static str, class: &'static str) -> Rate {
    Rate { name, metric: "control_api_requests_total", label: Some(("status", class)) }
}

const CHARTS: &[Chart] = &[
    Chart::Rates {
        title: "Requests per second",
        rates: &[answers("2xx", "2"), answers("3xx", "3"), answers("4xx", "4"), answers("5xx", "5")],
    },
    Chart::Times { title: "Time to answer", metric: "control_api_request_duration_seconds" },
];

/// The page of an API whose admin endpoint is at `address`.
#[must_use]
pub fn view(app: &App, address: SocketAddr, settings: Vec<Setting>) -> View {
    View {
        service: "control-api",
        address,
        facts: vec![
            ("Amberflo", app.settings.amberflo.amberflo_base_url.clone()),
            ("Stream", app.settings.backends.stream.to_string()),
            ("Process", std::process::id().to_string()),
        ],
        settings,
        charts: CHARTS,
        report: Box::new(report),
    }
}

fn report(samples: &Samples) -> Report {
    let requests: f64 = samples.series("control_api_requests_total").map(|(_, value)| value).sum();
    let failed = |(labels, _): &(&shared::service::status::Labels, f64)| {
        labels.get("status").is_some_and(|status| status.starts_with('5'))
    };
    let failed: f64 = samples.series("control_api_requests_total").filter(failed).map(|(_, value)| value).sum();
    Report {
        tiles: vec![
            ("Requests since start", Cell::of("sum(control_api_requests_total)", requests, count)),
            (
                "Answered 5xx",
                Cell::of("sum(control_api_requests_total{status=~\"5..\"})", failed, count).marked(failed > 0.0),
            ),
        ],
        tables: vec![
            table(
                samples,
                "control_api_requests_total",
                "Requests since the start",
                &["Route", "Method", "Status", "Requests"],
                &["route", "method", "status"],
            ),
            table(
                samples,
                "amberflo_requests_total",
                "Amberflo's answers, since the start",
                &["Operation", "Answer", "Requests"],
                &["operation", "outcome"],
            ),
        ],
    }
}

/// The series of a counter, the largest first: `labels` are the columns before the last.
fn table(
    samples: &Samples,
    metric: &str,
    title: &'static str,
    columns: &'static [&'static str],
    labels: &[&str],
) -> Table {
    let mut series: Vec<_> = samples.series(metric).collect();
    series.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let rows = series.into_iter().map(|(of, value)| {
        let values = labels.iter().map(|label| (label, of.get(label).unwrap_or_default()));
        let named: Vec<String> = values.clone().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let total = Cell::of(format!("{metric}{{{}}}", named.join(",")), value, count);
        values.map(|(_, value)| Cell::text(value)).chain([total]).collect()
    });
    Table { title, about: String::new(), columns, rows: rows.collect(), none: "None yet." }
}
