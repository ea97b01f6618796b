//! The body of POST /ingest, described. What reads it is the worker's parser, so there is no type to derive this from.

use std::borrow::Cow;

use serde_json::json;
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::batch::MAX_EVENTS;
use shared::event::{MAX_NAME_BYTES, MAX_UNIQUE_ID_BYTES};

/// One usage event, or an array of them.
pub(super) struct Body;

/// One usage event.
struct UsageEvent;

impl PartialSchema for Body {
    fn schema() -> RefOr<Schema> {
        let event = Ref::from_schema_name(UsageEvent::name());
        schema(json!({
            "description": "One usage event, or an array of them",
            "oneOf": [event, { "type": "array", "items": event, "minItems": 1, "maxItems": MAX_EVENTS }],
        }))
    }
}

impl ToSchema for Body {
    fn name() -> Cow<'static, str> {
        "UsageEvents".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((UsageEvent::name().into_owned(), UsageEvent::schema()));
    }
}

impl PartialSchema for UsageEvent {
    fn schema() -> RefOr<Schema> {
        let name = |description: &str, max: usize| {
            let description = format!("{description}. At most {max} bytes");
            json!({ "type": "string", "minLength": 1, "maxLength": max, "description": description })
        };
        schema(json!({
            "description": "One usage event: the `detail` of an event on the bus. Every property that is not named here \
                            is a dimension; a name may be given once.",
            "type": "object",
            "required": ["tenantId", "meterApiName", "meterValue"],
            "properties": {
                "tenantId": name("Whose usage it is", MAX_NAME_BYTES),
                "meterApiName": name("What was used", MAX_NAME_BYTES),
                "meterValue": {
                    "description": "How much: a finite number, or its text",
                    "oneOf": [
                        { "type": "number" },
                        { "type": "string", "pattern": "^-?(0|[1-9][0-9]{0,99})(\\.[0-9]{1,99})?([eE][+-]?[0-9]{1,2})?$" },
                    ],
                },
                "uniqueId": name(
                    "The idempotency key: the same for every repetition of this event, another for every other event",
                    MAX_UNIQUE_ID_BYTES,
                ),
                "meterTimeInMillis": {
                    "description": "When it was used, in milliseconds since 1970. At most MAX_EVENT_AGE (60 days) ago and \
                                    at most MAX_EVENT_AHEAD (1 hour) ahead. Without it: when it is put on the bus",
                    "type": "integer",
                    "format": "int64",
                },
                "dimensions": {
                    "description": "Names and values. Names under `metering:` are refused, and names under `aflo.` unless \
                                    ALLOW_AFLO_DIMENSIONS is set",
                    "type": "object",
                    "additionalProperties": true,
                },
            },
            "additionalProperties": true,
            "example": {
                "tenantId": "tenant-1",
                "meterApiName": "api-calls",
                "meterValue": 1,
                "uniqueId": "request-4711",
                "region": "eu-central-1",
            },
        }))
    }
}

impl ToSchema for UsageEvent {
    fn name() -> Cow<'static, str> {
        "UsageEvent".into()
    }
}

fn schema(json: serde_json::Value) -> RefOr<Schema> {
    serde_json::from_value(json).expect("it is a schema; the tests read it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_keeps_its_limits() {
        let body = serde_json::to_value(Body::schema()).unwrap();
        assert_eq!(body["oneOf"][0]["$ref"], "#/components/schemas/UsageEvent");
        assert_eq!(body["oneOf"][1]["maxItems"], 1000);
        let event = serde_json::to_value(UsageEvent::schema()).unwrap();
        assert_eq!(event["properties"]["tenantId"]["maxLength"], 256);
        assert_eq!(event["required"], json!(["tenantId", "meterApiName", "meterValue"]));
        assert!(event["properties"]["meterValue"]["oneOf"][1]["pattern"].is_string());
        assert_eq!(event["additionalProperties"], true);
    }
}
