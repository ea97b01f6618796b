//! Settings of traces: OpenTelemetry's standard variables.

use std::collections::HashMap;

use http::{HeaderName, HeaderValue};
use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::Sampler;
use percent_encoding::percent_decode_str;

use crate::service::ConfigError;
use crate::settings::{Secret, check_url};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARG: &str = "OTEL_TRACES_SAMPLER_ARG";
const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
const SAMPLERS: &str = "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or \
                        parentbased_traceidratio";

/// Settings of traces, the same for every service: OpenTelemetry's own. They count for nothing, and are not looked at,
/// while no endpoint is set; an empty one is as good as none.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Traces")]
pub struct TraceArgs {
    /// The collector that takes traces, by OTLP over HTTP in protobuf: a URL such as `http://localhost:4318`, to which
    /// `/v1/traces` is added. Unset, there are no traces.
    #[arg(long, env, value_name = "URL")]
    pub otel_exporter_otlp_endpoint: Option<String>,
    /// Headers for the collector, such as a token.
    #[arg(long, env, hide_env_values = true, value_name = "NAME=VALUE,...")]
    pub otel_exporter_otlp_headers: Option<Secret>,
    /// Which traces are taken: `always_on`, `always_off` or `traceidratio`, or one of them behind `parentbased_`, where
    /// the caller's trace decides if there is one. Unset: `parentbased_always_on`.
    #[arg(long, env, value_name = "SAMPLER")]
    pub otel_traces_sampler: Option<String>,
    /// The share of traces that `traceidratio` takes: 0 to 1. Unset: 1.
    #[arg(long, env, value_name = "RATIO")]
    pub otel_traces_sampler_arg: Option<String>,
    /// The service's name in traces. Unset: the program's.
    #[arg(long, env, value_name = "NAME")]
    pub otel_service_name: Option<String>,
    /// What else traces say of the service, such as `deployment.environment.name=production`.
    #[arg(long, env, value_name = "NAME=VALUE,...")]
    pub otel_resource_attributes: Option<String>,
}

/// The settings of traces that are on.
pub(super) struct Settings {
    pub(super) url: String,
    pub(super) headers: HashMap<String, String>,
    pub(super) sampler: Sampler,
    pub(super) resource: Resource,
}

impl TraceArgs {
    /// Whether an endpoint is set.
    #[must_use]
    pub fn is_on(&self) -> bool {
        text(self.otel_exporter_otlp_endpoint.as_deref()).is_some()
    }

    /// `None` where there are to be no traces.
    pub(super) fn resolve(&self, service: &'static str) -> Result<Option<Settings>, ConfigError> {
        let Some(endpoint) = text(self.otel_exporter_otlp_endpoint.as_deref()) else { return Ok(None) };
        check_url(ENDPOINT, endpoint)?;
        let name = text(self.otel_service_name.as_deref());
        let attributes = pairs(ATTRIBUTES, self.otel_resource_attributes.as_deref())?;
        let mut attributes: Vec<_> = attributes.into_iter().map(|(name, value)| KeyValue::new(name, value)).collect();
        if name.is_some() || !attributes.iter().any(|attribute| attribute.key.as_str() == "service.name") {
            attributes.push(KeyValue::new("service.name", name.unwrap_or(service).to_owned()));
        }
        attributes.push(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        Ok(Some(Settings {
            url: format!("{}/v1/traces", endpoint.trim_end_matches('/')),
            headers: self.headers()?,
            sampler: self.sampler()?,
            resource: Resource::builder_empty().with_attributes(attributes).build(),
        }))
    }

    fn headers(&self) -> Result<HashMap<String, String>, ConfigError> {
        let pairs = pairs(HEADERS, self.otel_exporter_otlp_headers.as_ref().map(Secret::reveal))?;
        let is_header = |(name, value): &(String, String)| {
            HeaderName::try_from(name.as_str()).is_ok() && HeaderValue::try_from(value.as_str()).is_ok()
        };
        if !pairs.iter().all(is_header) {
            return Err(ConfigError(format!("{HEADERS}: not a header (its value is not shown); {PAIRS}")));
        }
        Ok(pairs.into_iter().collect())
    }

    fn sampler(&self) -> Result<Sampler, ConfigError> {
        let given = text(self.otel_traces_sampler.as_deref()).unwrap_or("parentbased_always_on");
        let root = match given.strip_prefix("parentbased_").unwrap_or(given) {
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => Sampler::TraceIdRatioBased(self.ratio()?),
            _ => return Err(ConfigError(format!("{SAMPLER}: {given:?}; allowed is {SAMPLERS}"))),
        };
        Ok(if given.starts_with("parentbased_") { Sampler::ParentBased(Box::new(root)) } else { root })
    }

    fn ratio(&self) -> Result<f64, ConfigError> {
        let given = text(self.otel_traces_sampler_arg.as_deref()).unwrap_or("1");
        let ratio: Option<f64> = given.parse().ok();
        ratio.filter(|ratio| (0.0..=1.0).contains(ratio)).ok_or_else(|| {
            ConfigError(format!("{SAMPLER_ARG}: {given:?}; allowed is a share from 0 to 1, such as 0.1"))
        })
    }
}

const PAIRS: &str = "allowed is NAME=VALUE, more of them after commas, with other characters as %XX";

/// A text, unless it is empty.
fn text(given: Option<&str>) -> Option<&str> {
    given.map(str::trim).filter(|text| !text.is_empty())
}

/// Source: the W3C's Baggage format without properties, as OpenTelemetry's specification has it for both settings.
fn pairs(setting: &str, given: Option<&str>) -> Result<Vec<(String, String)>, ConfigError> {
    // One of the settings is a secret: what was given is not shown.
    let wrong = || ConfigError(format!("{setting}: not a list of pairs (what was given is not shown); {PAIRS}"));
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').ok_or_else(wrong)?;
        let value = percent_decode_str(value.trim()).decode_utf8().map_err(|_| wrong())?;
        let name = name.trim();
        if name.is_empty() { Err(wrong()) } else { Ok((name.to_owned(), value.into_owned())) }
    };
    text(given).unwrap_or_default().split(',').filter(|text| !text.trim().is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        traces: TraceArgs,
    }

    fn resolve(args: &[&str]) -> Result<Option<Settings>, ConfigError> {
        let endpoint = ["it", "--otel-exporter-otlp-endpoint", "http://localhost:4318/"];
        Cli::try_parse_from(endpoint.iter().chain(args)).unwrap().traces.resolve("a-service")
    }

    #[test]
    fn an_endpoint_turns_them_on() {
        for off in [&["it"][..], &["it", "--otel-exporter-otlp-endpoint", ""], &["it", "--otel-traces-sampler", "xray"]]
        {
            let args = Cli::try_parse_from(off).unwrap().traces;
            assert!(!args.is_on() && args.resolve("a-service").unwrap().is_none(), "{off:?}");
        }
        let settings = resolve(&["--otel-exporter-otlp-headers", "a=b%20c, d = e=f"]).unwrap().unwrap();
        assert_eq!(settings.url, "http://localhost:4318/v1/traces");
        assert_eq!(settings.headers, [("a", "b c"), ("d", "e=f")].map(|(n, v)| (n.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn a_service_has_a_name() {
        let name = |args: &[&str]| {
            let resource = resolve(args).unwrap().unwrap().resource;
            resource.get(&"service.name".into()).unwrap().to_string()
        };
        let attributes = ["--otel-resource-attributes", "service.name=other,team=billing"];
        assert_eq!(name(&[]), "a-service");
        assert_eq!(name(&["--otel-service-name", "mine"]), "mine");
        assert_eq!(name(&attributes), "other");
        assert_eq!(name(&[&attributes[..], &["--otel-service-name", "mine"]].concat()), "mine");
    }

    #[test]
    fn what_cannot_work_is_named_and_no_header_is_shown() {
        for (args, part) in [
            (["--otel-exporter-otlp-endpoint=localhost:4317"], "OTEL_EXPORTER_OTLP_ENDPOINT"),
            (["--otel-exporter-otlp-headers=s3cret"], "OTEL_EXPORTER_OTLP_HEADERS"),
            (["--otel-exporter-otlp-headers=a b=s3cret"], "OTEL_EXPORTER_OTLP_HEADERS"),
            (["--otel-exporter-otlp-headers=a=s3cret%0a"], "OTEL_EXPORTER_OTLP_HEADERS"),
            (["--otel-traces-sampler=xray"], "traceidratio"),
            (["--otel-resource-attributes=team"], "OTEL_RESOURCE_ATTRIBUTES"),
        ] {
            let given = if part.ends_with("ENDPOINT") {
                vec!["it"]
            } else {
                vec!["it", "--otel-exporter-otlp-endpoint", "http://c"]
            };
            let args = Cli::try_parse_from(given.iter().chain(&args)).unwrap().traces;
            assert!(!format!("{args:?}").contains("s3cret"));
            let error = args.resolve("a-service").map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains("s3cret"), "{error}");
        }
        for bad in ["-1", "2", "NaN", "half"] {
            let ratio = format!("--otel-traces-sampler-arg={bad}");
            let error = resolve(&["--otel-traces-sampler=traceidratio", &ratio]);
            assert!(error.map(|_| ()).unwrap_err().to_string().contains("OTEL_TRACES_SAMPLER_ARG"));
        }
        let args = ["--otel-traces-sampler=parentbased_traceidratio", "--otel-traces-sampler-arg=0.25"];
        let sampler = resolve(&args).unwrap().unwrap().sampler;
        assert_eq!(format!("{sampler:?}"), "ParentBased(TraceIdRatioBased(0.25))");
    }
}
