//! Rules and queries for a world that runs faster: every duration in them divided by the same number.

use anyhow::{Context as _, ensure};

/// Keys of a rule file whose value is a duration, or an expression that holds some.
const SCALED_KEYS: [&str; 4] = ["expr", "for", "keep_firing_for", "interval"];
const UNITS: [(&str, u64); 7] = [
    // Before `m` and `s`, which it begins and ends with.
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
    ("w", 7 * 86_400_000),
    ("y", 365 * 86_400_000),
];

/// A PromQL expression with its ranges, steps and offsets divided by `factor`. Names, strings and numbers stay: a
/// threshold in seconds is not a duration.
#[must_use]
pub fn promql(query: &str, factor: u64) -> String {
    let mut scaled = String::with_capacity(query.len());
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' | '\'' | '`' => quoted(rest, first),
            '#' => rest.find('\n').unwrap_or(rest.len()),
            'a'..='z' | 'A'..='Z' | '_' => span(rest, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':')),
            '0'..='9' => span(rest, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.')),
            other => other.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        match millis(token) {
            Some(millis) => scaled.push_str(&written((millis / factor).max(1))),
            None => scaled.push_str(token),
        }
        rest = after;
    }
    scaled
}

/// A rule file with its intervals, waiting times and expressions scaled. Names, labels and annotations stay.
///
/// # Errors
/// A value in quotes that could be read in more than one way.
pub fn rules(yaml: &str, factor: u64) -> anyhow::Result<String> {
    let mut scaled = String::with_capacity(yaml.len());
    // How far a key is indented whose value goes on in the following lines, and whether that is to be scaled.
    let mut open: Option<(usize, bool)> = None;
    for line in yaml.split_inclusive('\n') {
        let indent = line.len() - line.trim_start().len();
        if let Some((_, is_scaled)) = open.filter(|(key, _)| line.trim().is_empty() || indent > *key) {
            scaled.push_str(&if is_scaled { promql(line, factor) } else { line.to_owned() });
            continue;
        }
        let key = line.find(|c: char| !matches!(c, ' ' | '-')).unwrap_or_default();
        let (name, text) = line[key..].split_once(':').unwrap_or_default();
        let is_scaled = SCALED_KEYS.contains(&name);
        open = (is_scaled || text.trim_start().starts_with(['|', '>'])).then_some((key, is_scaled));
        if is_scaled {
            let text = value(text, factor).with_context(|| format!("in {:?}", line.trim()))?;
            scaled.extend([&line[..key], name, ":", &text]);
        } else {
            scaled.push_str(line);
        }
    }
    Ok(scaled)
}

/// What stands behind a key: plain, in quotes, or the sign that it follows on further lines.
fn value(text: &str, factor: u64) -> anyhow::Result<String> {
    let inner = text.trim();
    let Some(quote) = inner.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
        return Ok(promql(text, factor));
    };
    let inside = inner[1..].strip_suffix(quote).context("the closing quote is not on the same line")?;
    ensure!(!inside.contains(quote) && !inside.contains('\\'), "quotes within quotes: use a block (`|`) instead");
    Ok(text.replacen(inside, &promql(inside, factor), 1))
}

fn span(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

/// The length of the string literal with which the text begins; in backticks nothing is escaped.
fn quoted(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if is_escaped {
            is_escaped = false;
        } else if c == '\\' && quote != '`' {
            is_escaped = true;
        } else if c == quote {
            return at + 1;
        }
    }
    text.len()
}

/// A duration as Prometheus writes it, such as `1h30m`; `None` for any other word.
fn millis(token: &str) -> Option<u64> {
    let (mut sum, mut rest) = (0, token);
    while !rest.is_empty() {
        let digits = span(rest, |c| c.is_ascii_digit());
        let amount: u64 = rest[..digits].parse().ok()?;
        let (unit, millis) = UNITS.into_iter().find(|(unit, _)| rest[digits..].starts_with(unit))?;
        sum += amount.checked_mul(millis)?;
        rest = &rest[digits + unit.len()..];
    }
    (!token.is_empty()).then_some(sum)
}

fn written(millis: u64) -> String {
    if millis.is_multiple_of(1000) { format!("{}s", millis / 1000) } else { format!("{millis}ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_offsets_and_subqueries_are_divided() {
        for (query, scaled) in [
            ("rate(x_total[5m])", "rate(x_total[5s])"),
            ("x offset 1d", "x offset 1440s"),
            ("x offset -30m > 60", "x offset -30s > 60"),
            ("max_over_time(rate(x[5m])[1h:1m])", "max_over_time(rate(x[5s])[60s:1s])"),
            ("avg_over_time(x[1h30m])", "avg_over_time(x[90s])"),
            ("x[30s]", "x[500ms]"),
            ("x[1h:]", "x[60s:]"),
            ("x[1ms]", "x[1ms]"),
        ] {
            assert_eq!(promql(query, 60), scaled);
        }
    }

    #[test]
    fn names_strings_numbers_and_comments_stay() {
        for query in [
            "metering:latency:ratio_rate5m",
            "job:x:rate1h:5m",
            r#"x{le="60", window="5m", other='1\'h', raw=`\`} > 1e3"#,
            "x > 14.4 * 0.001 # 5m\n",
            "0x1d + Inf - 1.5e3",
            "x @ 1609746000",
            "x5m + y_1h",
        ] {
            assert_eq!(promql(query, 60), query);
        }
        assert_eq!(promql("# [5m]\nx[5m]", 60), "# [5m]\nx[5s]");
        assert_eq!(promql(r#"x{a="\""}[5m]"#, 60), r#"x{a="\""}[5s]"#);
    }

    #[test]
    fn of_a_rule_file_only_times_and_expressions_change() {
        let yaml = "\
groups:
  - name: metering-5m
    interval: 30s
    rules:
      - record: metering:x:rate5m
        expr: sum by (cluster) (rate(x[5m]))
      - alert: Slow
        expr: |
          metering:x:rate5m > 60

            and x[1h]
        for: 5m
        keep_firing_for: '10m'
        labels:
          window: 1h
        annotations:
          summary: for 5m and 1h
          description: >-
            expr: 5m
      - expr: 'x{a=\"5m\"}[5m]'
        record: metering:y:rate5m
";
        let expected = yaml
            .replace("interval: 30s", "interval: 500ms")
            .replace("(rate(x[5m]))", "(rate(x[5s]))")
            .replace("and x[1h]", "and x[60s]")
            .replace("        for: 5m", "        for: 5s")
            .replace("'10m'", "'10s'")
            .replace("}[5m]'", "}[5s]'");
        assert_eq!(rules(yaml, 60).unwrap(), expected);
        assert!(rules("expr: \"x{a=\\\"5m\\\"}\"\n", 60).is_err());
        assert!(rules("expr: 'x\n  [5m]'\n", 60).is_err());
    }
}
