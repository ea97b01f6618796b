//! `/meters`: definitions of meters, and the one-way life of their `lockingStatus`.

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::Sandbox;
use crate::attempt::Answer;
use crate::facts::Facts;
use crate::operation::{Operation, answer, optional, required};

const OPEN: &str = "open";
const CLOSE_TO_DELETIONS: &str = "close_to_deletions";
const DEPRECATED: &str = "deprecated";

pub(crate) fn routes() -> Router<Sandbox> {
    Router::new()
        .route("/meters", get(list).post(create).put(update))
        .route("/meters/{id}", get(get_one).delete(delete))
}

/// Stricter than Amberflo may be: a parameter it does not know is refused, not ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListQuery {
    meter_api_name: Option<String>,
}

async fn list(State(sandbox): State<Sandbox>, request: Request) -> Response {
    answer(&sandbox, Operation::Meters, request, |state, call| {
        let ListQuery { meter_api_name } = call.query()?;
        Ok(Answer::json(&state.account.meters.list(meter_api_name.as_deref())))
    })
    .await
}

async fn create(State(sandbox): State<Sandbox>, request: Request) -> Response {
    answer(&sandbox, Operation::Meters, request, |state, call| {
        state.account.meters.create(call.object()?, call.now_millis(), &state.facts).map(|meter| Answer::json(&meter))
    })
    .await
}

async fn update(State(sandbox): State<Sandbox>, request: Request) -> Response {
    answer(&sandbox, Operation::Meters, request, |state, call| {
        state.account.meters.update(call.object()?, call.now_millis(), &state.facts).map(|meter| Answer::json(&meter))
    })
    .await
}

async fn get_one(State(sandbox): State<Sandbox>, Path(id): Path<String>, request: Request) -> Response {
    answer(&sandbox, Operation::Meters, request, |state, _| {
        state.account.meters.get(&id).map(Answer::json).ok_or_else(|| not_found(&id))
    })
    .await
}

async fn delete(State(sandbox): State<Sandbox>, Path(id): Path<String>, request: Request) -> Response {
    answer(&sandbox, Operation::Meters, request, |state, _| state.account.meters.delete(&id, &state.facts)).await
}

type Meter = Map<String, Value>;

/// All meters in order of creation, whole: with every property the client sent.
#[derive(Debug, Default)]
pub(crate) struct Meters(Vec<Meter>);

impl Meters {
    fn list(&self, name: Option<&str>) -> Vec<&Meter> {
        self.0.iter().filter(|meter| name.is_none_or(|name| text(meter, "meterApiName") == name)).collect()
    }

    fn get(&self, id: &str) -> Option<&Meter> {
        self.0.iter().find(|meter| text(meter, "id") == id)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|meter| text(meter, "meterApiName") == name)
    }

    /// An id that the client sent is ignored.
    fn create(&mut self, mut meter: Meter, now_millis: i64, facts: &Facts) -> Result<Meter, Answer> {
        let (name, locking_status) = checked(&meter, facts)?;
        self.check_free(&name, None)?;
        if facts.ignores_sent_meter_ids || optional(&meter, "id")?.is_none() {
            meter.insert("id".to_owned(), Uuid::new_v4().to_string().into());
        }
        meter.insert("lockingStatus".to_owned(), locking_status.unwrap_or_else(|| OPEN.to_owned()).into());
        meter.insert("createTime".to_owned(), now_millis.into());
        meter.insert("updateTime".to_owned(), now_millis.into());
        self.0.push(meter.clone());
        Ok(meter)
    }

    /// Replaces the meter whole; an absent `lockingStatus` stays as it is.
    fn update(&mut self, mut meter: Meter, now_millis: i64, facts: &Facts) -> Result<Meter, Answer> {
        let (name, locking_status) = checked(&meter, facts)?;
        if !facts.updates_meters_by_id_only
            && let Some(stored) = self.list(Some(&name)).first()
        {
            meter.insert("id".to_owned(), text(stored, "id").into());
        }
        let Some(id) = optional(&meter, "id")? else {
            self.check_free(&name, None)?;
            return Err(Answer::bad_request("id is missing"));
        };
        self.check_free(&name, Some(&id))?;
        let stored = self.0.iter_mut().find(|stored| text(stored, "id") == id).ok_or_else(|| not_found(&id))?;
        let from = text(stored, "lockingStatus");
        let to = locking_status.unwrap_or_else(|| from.to_owned());
        if facts.locking_is_one_way && !may_move(from, &to, facts) {
            return Err(Answer::bad_request(format!("'lockingStatus' cannot change from {from} to {to}")));
        }
        meter.insert("lockingStatus".to_owned(), to.into());
        meter.insert("createTime".to_owned(), stored.get("createTime").cloned().unwrap_or_default());
        meter.insert("updateTime".to_owned(), now_millis.into());
        stored.clone_from(&meter);
        Ok(meter)
    }

    /// Does nothing, and says so to nobody, where there is no such id: an api name given in its place goes unnoticed.
    fn delete(&mut self, id: &str, facts: &Facts) -> Result<Answer, Answer> {
        let done = Answer::new(StatusCode::OK, "");
        let is_meant = |meter: &Meter| {
            text(meter, "id") == id || !facts.ignores_deletion_by_name && text(meter, "meterApiName") == id
        };
        let Some(at) = self.0.iter().position(is_meant) else { return Ok(done) };
        let locking_status = text(&self.0[at], "lockingStatus");
        if facts.deletes_deprecated_meters_only && locking_status != DEPRECATED {
            let reason = format!("'lockingStatus' {locking_status} prevents meter from being deleted");
            return Err(Answer::bad_request(reason));
        }
        self.0.remove(at);
        Ok(done)
    }

    /// Refuses a name that a meter other than `but` has.
    fn check_free(&self, name: &str, but: Option<&str>) -> Result<(), Answer> {
        let taken = self.0.iter().any(|meter| text(meter, "meterApiName") == name && Some(text(meter, "id")) != but);
        if taken {
            return Err(Answer::bad_request(format!("Meter already exists with meterApiName: {name}")));
        }
        Ok(())
    }
}

/// The name and locking status of a meter that has all it needs.
fn checked(meter: &Meter, facts: &Facts) -> Result<(String, Option<String>), Answer> {
    let name = required(meter, "meterApiName")?;
    required(meter, "label")?;
    let meter_type = required(meter, "meterType")?;
    if facts.meter_types.as_ref().is_some_and(|types| !types.contains(&meter_type)) {
        return Err(Answer::bad_request("Invalid meter type"));
    }
    let locking_status = optional(meter, "lockingStatus")?;
    let is_known = |status: &str| match status {
        CLOSE_TO_DELETIONS => facts.closes_to_deletions,
        status => [OPEN, "close_to_changes", DEPRECATED].contains(&status),
    };
    match locking_status {
        Some(status) if !is_known(&status) => Err(Answer::bad_request(format!("Invalid lockingStatus: {status}"))),
        locking_status => Ok((name, locking_status)),
    }
}

/// One way only; staying is allowed everywhere. That `close_to_deletions` leads to `deprecated` is assumed: a meter in
/// it could never be deleted otherwise.
fn may_move(from: &str, to: &str, facts: &Facts) -> bool {
    let may_be_deprecated = from != CLOSE_TO_DELETIONS || facts.deprecates_what_is_closed_to_deletions;
    from == to || from == OPEN || (to == DEPRECATED && may_be_deprecated)
}

fn not_found(id: &str) -> Answer {
    Answer::new(StatusCode::NOT_FOUND, format!("Meter not found with id: {id}"))
}

fn text<'a>(meter: &'a Meter, name: &str) -> &'a str {
    meter.get(name).and_then(Value::as_str).unwrap_or_default()
}
