use super::*;
use crate::clock::Clock;

const CHARTS: &[Chart] = &[
    Chart::Rates { title: "Flow", rates: &[Rate { name: "read", metric: "read_total", label: None }] },
    Chart::Times { title: "Latency", metric: "took_seconds" },
];
const HOSTILE: &str = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>&amp;";

fn view(settings: Vec<Setting>, facts: Vec<(&'static str, String)>) -> View {
    let address = ([127, 0, 0, 1], 9464).into();
    View { service: "a-service", address, facts, settings, charts: CHARTS, report: Box::new(|_| Report::default()) }
}

fn rendered(view: &View, not_ready: Option<super::super::NotReady>, report: Report) -> String {
    let history = History::new(view.charts);
    let curves = history.curves(Instant::now());
    let now = page::Now { at: Clock::system().now(), uptime: Duration::from_secs(75), not_ready, report, curves };
    page::render(view, &page::Assets::default(), &now).into_string()
}

fn table(rows: Vec<Vec<Cell>>) -> Table {
    Table { title: "Things", about: HOSTILE.to_owned(), columns: &["Name", "Value"], rows, none: "Nothing." }
}

#[test]
fn nothing_that_is_shown_becomes_html() {
    let setting = Setting {
        name: HOSTILE.to_owned(),
        group: HOSTILE.to_owned(),
        value: Some(HOSTILE.to_owned()),
        source: SettingSource::Environment,
    };
    let view = view(vec![setting], vec![("Worker", HOSTILE.to_owned())]);
    let ready = Ready::default();
    ready.set_not("cause", HOSTILE);
    let cells = vec![Cell::text(HOSTILE), Cell::of(format!("m{{shard=\"{HOSTILE}\"}}"), 1.0, count)];
    let report = Report { tiles: vec![("Tile", Cell::text(HOSTILE))], tables: vec![table(vec![cells])] };
    let page = rendered(&view, ready.why_not(), report);
    assert_eq!(page.matches("<script>").count(), 1, "our own");
    assert!(!page.contains("<img") && !page.contains("'alert(2)'>&amp;\""), "{page}");
    let shown = page.matches("&lt;script&gt;alert(1)&lt;/script&gt;").count();
    assert_eq!(shown, 9, "each place shows it as text: {page}");
    assert!(page.contains("&amp;amp;"), "what looks escaped is text too");
}

#[test]
fn it_says_why_it_is_not_ready() {
    let (view, ready) = (view(Vec::new(), Vec::new()), Ready::default());
    ready.set_not("leases cannot be read", "the table is away");
    let page = rendered(&view, ready.why_not(), Report::default());
    for text in ["<title>a-service: not ready</title>", "Leases cannot be read</strong> since", "the table is away"] {
        assert!(page.contains(text), "{text}: {page}");
    }
    ready.set();
    let page = rendered(&view, ready.why_not(), Report::default());
    assert!(page.contains("<title>a-service: ready</title>") && !page.contains("role=\"alert\""), "{page}");
}

#[test]
fn its_size_is_bounded() {
    let rows = |count: usize, text: &str| {
        table((0..count).map(|n| vec![Cell::text(format!("row-{n}")), Cell::text(text)]).collect())
    };
    let report = |table| Report { tiles: Vec::new(), tables: vec![table] };
    let view = view(Vec::new(), Vec::new());
    let few = rendered(&view, None, report(rows(200, "a shard's values")));
    assert!(few.contains("188 more") && few.contains("row-199") && few.len() < 100_000, "{}", few.len());
    let many = rendered(&view, None, report(rows(10_000, &"ä".repeat(10_000))));
    assert!(many.contains("and 9488 that are not shown") && !many.contains("row-512"), "{}", many.len());
    assert!(many.len() < 512 * 700 + 20_000, "{}", many.len());
}

#[test]
fn a_number_says_which_metric_it_is() {
    let cell = Cell::of("events_total{outcome=\"delivered\"}", 1234.0, count).marked(true);
    let page =
        rendered(&view(Vec::new(), Vec::new()), None, Report { tiles: vec![("Tile", cell)], tables: Vec::new() });
    let data = "<data value=\"1234\" title=\"events_total{outcome=&quot;delivered&quot;}\">1,234</data>";
    assert!(page.contains(data) && page.contains("needs attention"), "{page}");
}

/// A browser compares the hashes with what is on the page: see the worker's tests.
#[test]
fn the_policy_allows_only_what_is_on_the_page() {
    let assets = page::Assets::default();
    let page = rendered(&view(Vec::new(), Vec::new()), None, Report::default());
    for forbidden in [" style=\"", " onclick", "href=\"http", "src=", "url(", "@import"] {
        assert!(!page.contains(forbidden), "{forbidden}: {page}");
    }
    assert!(!assets.policy.contains("unsafe") && assets.policy.starts_with("default-src 'none';"), "{}", assets.policy);
}

#[test]
fn on_loopback_only_this_machines_names_count() {
    let mut view = view(Vec::new(), Vec::new());
    let asks =
        |view: &View, host: &str| view.is_asked_for_by_name_of(&[(HOST, host.parse().unwrap())].into_iter().collect());
    for ours in ["localhost", "LOCALHOST:9464", "127.0.0.1:9464", "[::1]:9464", "[::1]", "127.0.0.1"] {
        assert!(asks(&view, ours), "{ours}");
    }
    for theirs in ["evil.example", "evil.example:9464", "127.0.0.1.evil.example", "localhost.evil.example:1", ""] {
        assert!(!asks(&view, theirs), "{theirs}");
    }
    view.address = ([0, 0, 0, 0], 9464).into();
    assert!(asks(&view, "worker.internal:9464"));
}
