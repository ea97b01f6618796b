//! The status page: one self-contained page for people, without JavaScript frameworks or requests to anywhere else.
//!
//! Its numbers are read from the registry that /metrics shows, so the two cannot disagree. What no metric can tell, such
//! as what set a limit or which records were dead-lettered, the service adds as a [`Report`]. The page changes nothing.

mod chart;
mod history;
mod page;
mod samples;
mod settings;
mod text;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Metrics, Ready};
use crate::clock::Clock;
use history::History;

pub use history::{Chart, Curves, Rate};
pub use samples::{Labels, Samples};
pub use settings::{Setting, SettingSource};
pub use text::{bytes, count, decimal, seconds, timestamp};

/// What a service shows, and its recent past.
pub struct StatusPage {
    view: View,
    history: Arc<History>,
}

/// What a service shows.
pub struct View {
    /// The service's name.
    pub service: &'static str,
    /// Where the page is served: on loopback, only under a name of this machine.
    pub address: SocketAddr,
    /// Who the process is and what it works on: names with their values.
    pub facts: Vec<(&'static str, String)>,
    /// What was set and what is default.
    pub settings: Vec<Setting>,
    /// What is drawn of the last 15 minutes.
    pub charts: &'static [Chart],
    /// What the service says at this moment, of these samples and of what it knows itself.
    pub report: Box<dyn Fn(&Samples) -> Report + Send + Sync>,
}

/// What a service says at one moment.
#[derive(Debug, Default)]
pub struct Report {
    /// The few numbers to look at first.
    pub tiles: Vec<(&'static str, Cell)>,
    /// All else.
    pub tables: Vec<Table>,
}

/// A table of the page.
#[derive(Debug)]
pub struct Table {
    /// Its heading.
    pub title: &'static str,
    /// What it shows, where the heading does not say it.
    pub about: String,
    /// The headings of the columns; the first column names the row.
    pub columns: &'static [&'static str],
    /// The most important first: of many rows the first ones are shown at once.
    pub rows: Vec<Vec<Cell>>,
    /// What it means that there are no rows.
    pub none: &'static str,
}

/// One value, as text and where it comes from.
#[derive(Debug, Default)]
pub struct Cell {
    /// What is shown.
    pub text: String,
    /// The metric that it shows and that metric's value.
    pub metric: Option<(String, f64)>,
    /// Whether it needs attention.
    pub needs_attention: bool,
}

impl Cell {
    /// A text; any text: it is escaped.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// The value of a metric, such as `name{label="value"}`, as `format` shows it.
    pub fn of(metric: impl Into<String>, value: f64, format: fn(f64) -> String) -> Self {
        Self { text: format(value), metric: Some((metric.into(), value)), needs_attention: false }
    }

    /// The same, marked where it needs attention.
    #[must_use]
    pub fn marked(self, needs_attention: bool) -> Self {
        Self { needs_attention, ..self }
    }
}

impl StatusPage {
    /// A page without a past.
    #[must_use]
    pub fn new(view: View) -> Self {
        let history = Arc::new(History::new(view.charts));
        Self { view, history }
    }

    /// Samples the registry for the charts, for ever.
    pub fn keep_history(&self, metrics: Metrics) -> impl Future<Output = ()> + Send + use<> {
        let history = Arc::clone(&self.history);
        async move {
            let mut steps = interval(history::STEP);
            steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                steps.tick().await;
                history.record(&Samples::parse(&metrics.render()), Instant::now());
            }
        }
    }

    /// `GET /`.
    pub(super) fn router(self, metrics: Metrics, ready: Ready) -> Router {
        let page = Arc::new((self, page::Assets::default(), Instant::now()));
        let show = async move |headers: HeaderMap| {
            let (status, assets, started) = &*page;
            if !status.view.is_asked_for_by_name_of(&headers) {
                return (StatusCode::MISDIRECTED_REQUEST, "this host name is not this machine's\n").into_response();
            }
            status.show(assets, &metrics, &ready, started.elapsed())
        };
        Router::new().route("/", get(show))
    }

    fn show(&self, assets: &page::Assets, metrics: &Metrics, ready: &Ready, uptime: Duration) -> Response {
        let samples = Samples::parse(&metrics.render());
        let now = page::Now {
            at: Clock::system().now(),
            uptime,
            not_ready: ready.why_not(),
            report: (self.view.report)(&samples),
            curves: self.history.curves(Instant::now()),
        };
        let headers = [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CONTENT_SECURITY_POLICY, &assets.policy),
            (CACHE_CONTROL, "no-store"),
            (REFERRER_POLICY, "no-referrer"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        (headers, page::render(&self.view, assets, &now).into_string()).into_response()
    }
}

impl View {
    /// A page of the web may give its own name our loopback address, and would then read what only this machine may.
    fn is_asked_for_by_name_of(&self, headers: &HeaderMap) -> bool {
        if !self.address.ip().is_loopback() {
            return true;
        }
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let address = name.trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
    }
}

#[cfg(test)]
mod tests;
