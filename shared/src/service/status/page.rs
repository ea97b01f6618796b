//! The page as HTML. maud escapes every value that is spliced in.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};

use super::history::Curves;
use super::settings::{Setting, SettingSource};
use super::{Cell, Report, Table, View, chart, text};
use crate::clock::UnixMillis;
use crate::service::NotReady;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("refresh.js");
/// Of a longer table the first rows are shown at once, and the others behind a click.
const ROWS_AT_ONCE: usize = 12;
/// More nobody reads.
const MAX_ROWS: usize = 500;
const MAX_CELL_CHARS: usize = 200;
/// A number or a word or two, in bytes: not broken into lines.
const SHORT: usize = 16;

/// What every answer has in common.
pub struct Assets {
    /// Lets in what is on the page, and nothing else.
    pub policy: String,
    /// Tells a page of another version, whose script must not go on with this one's contents.
    version: String,
}

impl Default for Assets {
    fn default() -> Self {
        let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
        let (style, script) = (hash(STYLE), hash(SCRIPT));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; connect-src 'self'; \
             img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        Self { policy, version: format!("{style}{script}") }
    }
}

/// What is to be seen at one moment.
pub struct Now {
    pub at: UnixMillis,
    pub uptime: Duration,
    pub not_ready: Option<NotReady>,
    pub report: Report,
    /// Of every chart of the view.
    pub curves: Vec<Curves>,
}

/// The whole page.
pub fn render(view: &View, assets: &Assets, now: &Now) -> Markup {
    let state = if now.not_ready.is_none() { "ready" } else { "not ready" };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="page-version" content=(assets.version);
                title { (view.service) ": " (state) }
                link rel="icon" href=(icon(now.not_ready.is_none()));
                style { (PreEscaped(STYLE)) }
                noscript { meta http-equiv="refresh" content="10"; }
            }
            body {
                p #refresh role="status" { "Refreshed every 10 seconds." }
                main {
                    (header(view, now))
                    @if !now.report.tiles.is_empty() {
                        section aria-label="Overview" { dl.tiles {
                            @for (label, cell) in &now.report.tiles { div { dt { (label) } dd { (shown(cell)) } } }
                        } }
                    }
                    section.charts aria-label="The last 15 minutes" {
                        @for (chart, curves) in view.charts.iter().zip(&now.curves) { (chart::draw(chart, curves)) }
                    }
                    .tables { @for (index, table) in now.report.tables.iter().enumerate() { (section(index, table)) } }
                    (configuration(&view.settings))
                    p.foot { a href="/metrics" { "/metrics" } " has these numbers for Prometheus. " a href="/ready" { "/ready" } " and " a href="/health" { "/health" } " are for load balancers." }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

fn header(view: &View, now: &Now) -> Markup {
    html! {
        header {
            h1 { (view.service) " " @if now.not_ready.is_none() { span.badge.good { "ready" } } @else { span.badge.bad { "not ready" } } }
            @if let Some(why) = &now.not_ready {
                p.alarm #why role="alert" {
                    strong { (sentence(why.cause)) } " since " (moment(why.since, now.at)) "."
                    @if !why.detail.is_empty() { br; span.observed { (why.detail) } }
                }
            }
            dl.facts {
                div { dt { "As of" } dd { time #as-of datetime=(text::timestamp(now.at)) { (text::timestamp(now.at)) } } }
                div { dt { "Version" } dd { (env!("CARGO_PKG_VERSION")) } }
                div { dt { "Running for" } dd { (text::seconds(now.uptime.as_secs() as f64)) } }
                @for (name, value) in &view.facts { div { dt { (name) } dd { (value) } } }
            }
        }
    }
}

fn section(index: usize, table: &Table) -> Markup {
    let (first, others) = table.rows.split_at(table.rows.len().min(ROWS_AT_ONCE));
    let others = &others[..others.len().min(MAX_ROWS)];
    let left_out = table.rows.len() - first.len() - others.len();
    html! {
        section.wide[table.columns.len() > 3] aria-labelledby=(format!("table-{index}")) {
            h2 id=(format!("table-{index}")) { (table.title) }
            @if !table.about.is_empty() { p.about { (table.about) } }
            @if first.is_empty() { p.none { (table.none) } } @else { (rows(table, first)) }
            @if !others.is_empty() {
                details id=(format!("more-{index}")) {
                    summary { (others.len()) " more" }
                    (rows(table, others))
                    @if left_out > 0 { p.about { "and " (left_out) " that are not shown" } }
                }
            }
        }
    }
}

fn rows(table: &Table, rows: &[Vec<Cell>]) -> Markup {
    html! {
        table aria-label=(table.title) {
            thead { tr { @for column in table.columns { th scope="col" { (column) } } } }
            tbody {
                @for row in rows {
                    tr {
                        @for (index, (cell, column)) in row.iter().zip(table.columns).enumerate() {
                            @if index == 0 { th scope="row" { (shown(cell)) } }
                            @else { td data-column=(column) { (shown(cell)) } }
                        }
                    }
                }
            }
        }
    }
}

fn shown(cell: &Cell) -> Markup {
    let text = match cell.text.char_indices().nth(MAX_CELL_CHARS) {
        Some((end, _)) => format!("{}…", &cell.text[..end]),
        None => cell.text.clone(),
    };
    if text.is_empty() {
        return html! {};
    }
    html! {
        span.mark[cell.needs_attention].short[text.len() <= SHORT] {
            @if cell.needs_attention { span.sign title="needs attention" { "⚠\u{fe0e}" } " " }
            @match &cell.metric {
                Some((metric, value)) => data value=(value) title=(metric) { (text) },
                None => (text),
            }
        }
    }
}

fn configuration(settings: &[Setting]) -> Markup {
    let set = settings.iter().filter(|setting| setting.source != SettingSource::Default).count();
    html! {
        section aria-labelledby="configuration" {
            h2 #configuration { "Configuration" }
            details #settings {
                summary { (set) " set, " (settings.len() - set) " as by default" }
                table aria-label="Configuration" {
                    thead { tr { th scope="col" { "Setting" } th scope="col" { "Value" } th scope="col" { "Set by" } } }
                    tbody {
                        @for (index, setting) in settings.iter().enumerate() {
                            @if index == 0 || settings[index - 1].group != setting.group {
                                tr.group { th scope="rowgroup" colspan="3" { (setting.group) } }
                            }
                            tr.set[setting.source != SettingSource::Default] {
                                th scope="row" { code { (setting.name) } }
                                td data-column="Value" { @match &setting.value {
                                    Some(value) => code { (value) },
                                    None => span.none { "none" },
                                } }
                                td data-column="Set by" { (match setting.source {
                                    SettingSource::Default => "default",
                                    SettingSource::Environment => "environment",
                                    SettingSource::Flag => "flag",
                                }) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A time, and how long ago it was.
fn moment(at: UnixMillis, now: UnixMillis) -> Markup {
    let ago = Duration::from_millis(u64::try_from(now - at).unwrap_or(0));
    html! { time datetime=(text::timestamp(at)) { (text::timestamp(at)) } " (" (text::seconds(ago.as_secs_f64())) " ago)" }
}

fn sentence(words: &str) -> String {
    let mut characters = words.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// Seen in a row of tabs.
fn icon(is_ready: bool) -> String {
    let (colour, mark) = if is_ready { ("%231a7f37", "M4 8.5l3 3 5-6") } else { ("%23b3261e", "M8 3v6M8 12v.5") };
    format!(
        "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'><circle cx='8' cy='8' r='8' \
         fill='{colour}'/><path d='{mark}' fill='none' stroke='white' stroke-width='2'/></svg>"
    )
}
