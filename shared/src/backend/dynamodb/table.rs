//! Finding or creating the table.

use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::create_table::CreateTableError;
use aws_sdk_dynamodb::operation::describe_table::DescribeTableError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableDescription, TableStatus,
};
use tokio::time::{Instant, sleep};

use super::row;
use crate::backend::{BackendError, aws};

/// A new table is active after some seconds.
const ACTIVE_TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Whether this can be a table's name, or its ARN in this region. Source: the naming rules of DynamoDB.
pub fn check_name(table: &str, region: &str) -> Result<(), BackendError> {
    let Some(arn) = table.strip_prefix("arn:") else {
        return if is_name(table) { Ok(()) } else { Err(not_a_name(table)) };
    };
    let parts: Vec<_> = arn.split(':').collect();
    let [_partition, "dynamodb", arn_region, _account, resource] = parts[..] else { return Err(not_a_name(table)) };
    if !resource.strip_prefix("table/").is_some_and(is_name) {
        return Err(not_a_name(table));
    }
    if arn_region != region {
        let text = format!("lease table {table} is in another region than the configured {region}");
        return Err(BackendError::Misconfigured(text));
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    (3..=255).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn not_a_name(table: &str) -> BackendError {
    BackendError::Misconfigured(format!(
        "{table:?} is no name of a DynamoDB table: 3 to 255 of the characters a-z, A-Z, 0-9, _, - and ., or the \
         table's ARN"
    ))
}

/// Waits until the table is there and active, and checks that it is one for leases.
pub async fn open(client: &Client, table: &str, region: &str, create: bool) -> Result<(), BackendError> {
    let deadline = Instant::now() + ACTIVE_TIMEOUT;
    let mut is_requested = false;
    loop {
        let found = describe(client, table).await?;
        match found.as_ref().map(|found| (found, found.table_status())) {
            Some((found, Some(TableStatus::Active | TableStatus::Updating))) => return check_key(table, found),
            // A table that is being deleted is soon missing.
            Some((_, Some(TableStatus::Creating | TableStatus::Deleting))) => {}
            Some((_, status)) => {
                let status = status.map_or("unknown", TableStatus::as_str);
                let text = format!("lease table {table} cannot be used: its status is {status}");
                return Err(BackendError::Misconfigured(text));
            }
            // What was just created may not be seen yet.
            None if is_requested => {}
            None if create => {
                self::create(client, table).await?;
                is_requested = true;
            }
            None => {
                let text = format!(
                    "lease table {table} does not exist in {region}: create it, or start with --create-lease-table"
                );
                return Err(BackendError::Misconfigured(text));
            }
        }
        if Instant::now() >= deadline {
            let text = format!("lease table {table} is not active after {} s", ACTIVE_TIMEOUT.as_secs());
            return Err(BackendError::Unavailable(text));
        }
        sleep(POLL_INTERVAL).await;
    }
}

async fn describe(client: &Client, table: &str) -> Result<Option<TableDescription>, BackendError> {
    match client.describe_table().table_name(table).send().await {
        Ok(output) => Ok(output.table),
        Err(error) => match error.as_service_error() {
            Some(DescribeTableError::ResourceNotFoundException(_)) => Ok(None),
            _ => Err(aws::error(&format!("cannot describe lease table {table}"), &error)),
        },
    }
}

async fn create(client: &Client, table: &str) -> Result<(), BackendError> {
    let attempt = format!("cannot create lease table {table}");
    let incomplete = |error| BackendError::Misconfigured(format!("{attempt}: {error}"));
    let attribute = AttributeDefinition::builder()
        .attribute_name(row::LEASE_KEY)
        .attribute_type(ScalarAttributeType::S)
        .build()
        .map_err(incomplete)?;
    let key = KeySchemaElement::builder()
        .attribute_name(row::LEASE_KEY)
        .key_type(KeyType::Hash)
        .build()
        .map_err(incomplete)?;
    let request = client
        .create_table()
        .table_name(table)
        .attribute_definitions(attribute)
        .key_schema(key)
        .billing_mode(BillingMode::PayPerRequest);
    match request.send().await {
        Ok(_) => Ok(()),
        Err(error) => match error.as_service_error() {
            // Another worker, or an earlier try of this very call, was faster.
            Some(CreateTableError::ResourceInUseException(_)) => Ok(()),
            _ => Err(aws::error(&attempt, &error)),
        },
    }
}

fn check_key(table: &str, found: &TableDescription) -> Result<(), BackendError> {
    let type_of = |name: &str| {
        let definition = found.attribute_definitions().iter().find(|definition| definition.attribute_name() == name);
        definition.map_or("?", |definition| definition.attribute_type().as_str())
    };
    let describe = |key: &KeySchemaElement| {
        format!("{}: {} ({})", key.attribute_name(), type_of(key.attribute_name()), key.key_type().as_str())
    };
    let key = found.key_schema().iter().map(describe).collect::<Vec<_>>().join(", ");
    let expected = format!("{}: S (HASH)", row::LEASE_KEY);
    if key == expected {
        return Ok(());
    }
    Err(BackendError::Misconfigured(format!(
        "lease table {table} has the key {key}, expected {expected}: it is a table for something else"
    )))
}
