//! The reading end.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::value::RawValue;
use shared::clock::UnixMillis;
use shared::reason::Reason;

use super::{Acknowledged, Header, Line, Malformed, Manifest, VERSION, Valid};
use crate::truth::{MalformedEvent, Origin, Truth, ValidEvent, Variant};

/// Reads a manifest. What a run that was killed left is read as far as it goes, and [warned](Manifest::warnings) of.
///
/// # Errors
/// The file, and the line that is wrong.
pub fn read(path: &Path) -> anyhow::Result<Manifest> {
    let file = || format!("the manifest {}", path.display());
    parse(BufReader::with_capacity(1 << 20, File::open(path).with_context(file)?)).with_context(file)
}

fn parse(mut file: BufReader<File>) -> anyhow::Result<Manifest> {
    let mut text = String::new();
    ensure!(file.read_line(&mut text)? > 0, "it is empty");
    let header = match serde_json::from_str(&text) {
        Ok(Line::Run(header)) => header,
        _ => bail!("line 1: it does not tell which run it was"),
    };
    ensure!(header.version == VERSION, "it has version {}; allowed is {VERSION}", header.version);
    let mut reader =
        Reader { truth: Truth::default(), is_complete: false, dimensions: HashMap::new(), names: HashMap::new() };
    let mut warnings = Vec::new();
    for number in 2.. {
        text.clear();
        if file.read_line(&mut text).with_context(|| format!("line {number}"))? == 0 {
            break;
        }
        if !text.ends_with('\n') {
            warnings.push(format!("line {number}, the last one, was not written to its end; it is left out"));
            break;
        }
        let line = serde_json::from_str(&text).with_context(|| format!("line {number}"))?;
        reader.take(line).with_context(|| format!("line {number}"))?;
    }
    if !reader.is_complete {
        warnings.push("the run did not come to its end: what it sent last may lack its acknowledgement".to_owned());
    }
    Ok(Manifest { header: check(header)?, truth: reader.truth, warnings })
}

fn check(header: Header) -> anyhow::Result<Header> {
    ensure!(!header.run.is_empty(), "line 1: the run has no name");
    Ok(header)
}

struct Reader {
    truth: Truth,
    is_complete: bool,
    /// The same few everywhere, kept once.
    dimensions: HashMap<BTreeMap<String, String>, Arc<BTreeMap<String, String>>>,
    names: HashMap<String, Arc<str>>,
}

impl Reader {
    fn take(&mut self, line: Line<'_>) -> anyhow::Result<()> {
        match line {
            Line::Run(_) => bail!("another run begins here: one manifest has one run"),
            Line::Valid(valid) => self.valid(&valid),
            Line::Malformed(malformed) => self.malformed(&malformed),
            Line::Acknowledged(acknowledged) => self.acknowledged(&acknowledged),
            Line::End {} => {
                self.is_complete = true;
                Ok(())
            }
        }
    }

    fn valid(&mut self, valid: &Valid<'_>) -> anyhow::Result<()> {
        let next = self.truth.valid.len();
        ensure!(valid.number == next, "event {} where {next} should be: lines are missing", valid.number);
        let detail = Detail::read(valid.detail)?;
        let mut variants = vec![variant(detail.value, valid.detail)];
        if let Some(conflict) = valid.conflict {
            variants.push(variant(Detail::read(conflict)?.value, conflict));
        }
        let dimensions = match self.dimensions.get(&detail.dimensions) {
            Some(known) => Arc::clone(known),
            None => {
                let shared = Arc::new(detail.dimensions.clone());
                self.dimensions.insert(detail.dimensions, Arc::clone(&shared));
                shared
            }
        };
        let meter = self.names.entry(detail.meter).or_insert_with_key(|name| Arc::from(name.as_str()));
        self.truth.valid.push(ValidEvent {
            tenant: detail.tenant,
            meter: Arc::clone(meter),
            unique_id: detail.unique_id,
            time: detail.time,
            dimensions,
            variants,
            is_poison: valid.poison,
        });
        Ok(())
    }

    fn malformed(&mut self, malformed: &Malformed<'_>) -> anyhow::Result<()> {
        let next = self.truth.malformed.len();
        ensure!(malformed.number == next, "event {} where {next} should be: lines are missing", malformed.number);
        let reason = Reason::from_name(malformed.reason);
        let reason = reason.with_context(|| format!("{:?} is no reason of a dead letter", malformed.reason))?;
        self.truth.malformed.push(MalformedEvent { detail: malformed.detail.get().into(), reason, acknowledged: 0 });
        Ok(())
    }

    fn acknowledged(&mut self, call: &Acknowledged) -> anyhow::Result<()> {
        let sent = Duration::from_millis(call.sent.try_into()?);
        for &(event, variant) in &call.valid {
            let variants = self.truth.valid.get(event).map_or(0, |event| event.variants.len());
            ensure!(variant < variants, "event {event}, content {variant}, was never made");
            self.truth.acknowledge(Origin::Valid { event, variant }, sent);
        }
        for &number in &call.malformed {
            ensure!(number < self.truth.malformed.len(), "malformed event {number} was never made");
            self.truth.acknowledge(Origin::Malformed(number), sent);
        }
        Ok(())
    }
}

fn variant(value: String, detail: &RawValue) -> Variant {
    Variant { value, detail: detail.get().into(), acknowledged: 0, sent: None }
}

/// What a generated `detail` says. The worker's own reading is not used: it is what is to be judged.
struct Detail {
    tenant: String,
    meter: String,
    value: String,
    unique_id: String,
    time: Option<UnixMillis>,
    dimensions: BTreeMap<String, String>,
}

impl Detail {
    fn read(detail: &RawValue) -> anyhow::Result<Self> {
        let mut members: BTreeMap<String, &RawValue> = serde_json::from_str(detail.get()).context("detail")?;
        let mut dimensions: BTreeMap<String, String> = match members.remove("dimensions") {
            Some(dimensions) => serde_json::from_str(dimensions.get()).context("dimensions")?,
            None => BTreeMap::new(),
        };
        let mut take = |name| members.remove(name).with_context(|| format!("detail has no {name}"));
        let text = |value: &RawValue| serde_json::from_str::<String>(value.get());
        let tenant = text(take("tenantId")?)?;
        let meter = text(take("meterApiName")?)?;
        let unique_id = text(take("uniqueId")?)?;
        // Every digit counts, and it may be written as text.
        let value = take("meterValue")?.get().trim_matches('"').to_owned();
        let time = take("meterTimeInMillis").ok().map(|time| serde_json::from_str(time.get())).transpose()?;
        for (name, value) in members {
            dimensions.insert(name, text(value)?);
        }
        Ok(Self { tenant, meter, value, unique_id, time, dimensions })
    }
}
