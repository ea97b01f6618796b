//! Opens the table of leases beside the stream and the dead letters.

use std::sync::Arc;

use anyhow::Context as _;
use shared::backend::Leases;
use shared::backend::dynamodb::DynamoLeases;
use shared::backends::{Backends, Kind};

use crate::config::Settings;

/// Opens the stream.
///
/// # Errors
/// The setting, and what is wrong with what it names.
pub async fn open(settings: &Settings) -> anyhow::Result<Backends> {
    Backends::open(&settings.backends, settings.local_retention()).await
}

/// Opens the table of leases.
///
/// # Errors
/// The setting, and what is wrong with what it names.
pub async fn leases(backends: &Backends, settings: &Settings) -> anyhow::Result<Arc<dyn Leases>> {
    match &backends.kind {
        Kind::Local(store) => Ok(Arc::new(store.clone())),
        Kind::Aws { configuration, stream } => {
            let table = DynamoLeases::open(configuration, &settings.lease_table, settings.create_lease_table);
            let leases = table.await.context("LEASE_TABLE")?.for_stream(stream.identity());
            // A row that cannot be understood, or is another stream's, is found out now.
            leases.list().await.context("LEASE_TABLE")?;
            Ok(Arc::new(leases))
        }
    }
}
