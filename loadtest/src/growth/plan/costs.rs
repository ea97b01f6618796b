//! What AWS asks for a plan, by its list prices.

use anyhow::Context as _;

use super::{Needs, TASK_CPUS, WIRE_BYTES, Way};

/// The prices are those of the table in `infra/README.md`: one place for all.
const PRICES: &str = include_str!("../../../../infra/costs.mjs");

/// Availability zones in which there is an endpoint, or a gateway.
const ZONES: f64 = 2.0;
/// In GB, as AWS counts them.
const PETABYTE: f64 = 1024.0 * 1024.0;

/// US dollars a month, by what they are for.
pub struct Costs {
    pub items: [(&'static str, f64); 8],
    /// For the same reading as through the endpoint.
    pub through_nat: f64,
}

impl Costs {
    pub fn of(way: &Way, needs: &Needs) -> anyhow::Result<Self> {
        let hours = price("hoursPerMonth")?;
        let millions = |per_second: f64| per_second * 3600.0 * hours / 1e6;
        let bridge = if way.has_event_bridge { millions(way.rate) * price("eventBridgePerMillion")? } else { 0.0 };
        let task = TASK_CPUS * price("vcpuHour")? + needs.task_memory_gb * price("gbHour")?;
        let read = millions(way.rate) * 1e6 * WIRE_BYTES / f64::from(1 << 30);
        let items = [
            ("EventBridge: events put", bridge),
            ("Kinesis: records put", millions(way.rate) * price("putPerMillion")?),
            ("Kinesis: shards", needs.shards * price("shardHour")? * hours),
            ("Kinesis: retention of 7 days", needs.shards * price("shardRetentionHour")? * hours),
            ("Kinesis: read through an interface endpoint", endpoint(read)? + ZONES * price("endpointHour")? * hours),
            ("Fargate: tasks", needs.tasks * task * hours),
            ("DynamoDB: writes", millions(needs.lease_writes_per_second) * price("tableWritePerMillion")?),
            ("DynamoDB: reads", millions(needs.lease_reads_per_second) * price("tableReadPerMillion")?),
        ];
        let through_nat = read * price("natPerGb")? + ZONES * price("natHour")? * hours;
        Ok(Self { items, through_nat })
    }

    /// Of all items.
    pub fn sum(&self) -> f64 {
        self.items.iter().map(|(_, cost)| cost).sum()
    }

    /// How many times all the rest EventBridge costs.
    pub fn event_bridge_share(&self) -> f64 {
        let bridge = self.items[0].1;
        bridge / (self.sum() - bridge)
    }
}

/// The price of a GB falls with the GB of a month.
fn endpoint(gigabytes: f64) -> anyhow::Result<f64> {
    let first = gigabytes.min(PETABYTE);
    let next = (gigabytes - first).min(4.0 * PETABYTE);
    let [at_first, then, at_last] = ["endpointPerGb", "endpointPerGbAbove1Pb", "endpointPerGbAbove5Pb"].map(price);
    Ok(first * at_first? + next * then? + (gigabytes - first - next) * at_last?)
}

/// A number of `costs.mjs`.
pub fn price(name: &str) -> anyhow::Result<f64> {
    text(name)?.parse().with_context(|| format!("infra/costs.mjs: {name} is no number"))
}

/// A value of `costs.mjs`.
pub fn text(name: &str) -> anyhow::Result<&'static str> {
    let value = PRICES.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": ")?.strip_suffix(','));
    value.map(|value| value.trim_matches('\'')).with_context(|| format!("infra/costs.mjs has no {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_found_by_their_whole_name() {
        assert_eq!(text("region").unwrap(), "us-east-1");
        assert_eq!((price("endpointPerGb").unwrap(), price("endpointPerGbAbove1Pb").unwrap()), (0.01, 0.006));
        assert!(price("hoursPerMont").is_err());
    }

    #[test]
    fn an_endpoint_is_cheaper_by_the_petabyte() {
        let millions = |petabytes: f64| endpoint(petabytes * PETABYTE).unwrap() / PETABYTE;
        let pairs = [(0.5, 0.005), (1.0, 0.01), (2.0, 0.016), (5.0, 0.034), (6.0, 0.038)];
        for (petabytes, expected) in pairs {
            assert!((millions(petabytes) - expected).abs() < 1e-12, "{petabytes} PB");
        }
    }
}
