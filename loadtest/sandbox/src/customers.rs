//! `/customers`: who is billed, and how far their life has come.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::{get, post, put};
use http::StatusCode;
use serde_json::{Map, Value};

use crate::Sandbox;
use crate::attempt::Answer;
use crate::operation::{Operation, answer, optional, required};

/// In the only order in which a customer passes them.
const STAGES: [&str; 4] = ["ONBOARDING", "TRIAL", "ACTIVE", "OFFBOARDED"];

pub(crate) fn routes() -> Router<Sandbox> {
    Router::new()
        .route("/customers", post(create).put(update))
        .route("/customers/stage", put(move_on))
        .route("/customers/{id}", get(get_one))
}

async fn create(State(sandbox): State<Sandbox>, request: Request) -> Response {
    answer(&sandbox, Operation::Customers, request, |state, call| {
        state.account.customers.create(call.object()?, call.now_millis()).map(|customer| Answer::json(&customer))
    })
    .await
}

async fn update(State(sandbox): State<Sandbox>, request: Request) -> Response {
    answer(&sandbox, Operation::Customers, request, |state, call| {
        state.account.customers.update(call.object()?, call.now_millis()).map(|customer| Answer::json(&customer))
    })
    .await
}

async fn move_on(State(sandbox): State<Sandbox>, request: Request) -> Response {
    answer(&sandbox, Operation::Customers, request, |state, call| {
        state.account.customers.move_on(&call.object()?, call.now_millis()).map(Answer::json)
    })
    .await
}

/// A customer that is not there is no error: 200 with an empty body.
async fn get_one(State(sandbox): State<Sandbox>, Path(id): Path<String>, request: Request) -> Response {
    answer(&sandbox, Operation::Customers, request, |state, _| match state.account.customers.0.get(&id) {
        Some(customer) => Ok(Answer::json(customer)),
        None if state.facts.answers_nothing_for_unknown_customers => Ok(Answer::new(StatusCode::OK, "")),
        None => Err(not_found(&id)),
    })
    .await
}

type Customer = Map<String, Value>;

/// All customers by `customerId`, whole: with every property the client sent.
#[derive(Debug, Default)]
pub(crate) struct Customers(BTreeMap<String, Customer>);

impl Customers {
    pub(crate) fn has(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    /// That an existing id is refused is assumed, for Amberflo's SDKs never try it: they read first, then update.
    fn create(&mut self, mut customer: Customer, now_millis: i64) -> Result<Customer, Answer> {
        let (id, stage) = checked(&customer)?;
        if self.0.contains_key(&id) {
            return Err(Answer::bad_request(format!("Customer already exists with customerId: {id}")));
        }
        customer.insert("createTime".to_owned(), now_millis.into());
        Ok(self.store(id, customer, stage.unwrap_or(STAGES[0]), now_millis))
    }

    /// Replaces the customer: what the client leaves out is gone, but for the stage.
    fn update(&mut self, mut customer: Customer, now_millis: i64) -> Result<Customer, Answer> {
        let (id, wanted) = checked(&customer)?;
        let stored = self.0.get(&id).ok_or_else(|| not_found(&id))?;
        let from = stage(stored)?.unwrap_or(STAGES[0]);
        let to = wanted.unwrap_or(from);
        if place(to) < place(from) {
            return Err(backward(from, to));
        }
        customer.insert("createTime".to_owned(), stored.get("createTime").cloned().unwrap_or_default());
        Ok(self.store(id, customer, to, now_millis))
    }

    /// To a later stage only: the present one is refused too.
    fn move_on(&mut self, wanted: &Map<String, Value>, now_millis: i64) -> Result<&Customer, Answer> {
        let id = required(wanted, "customerId")?;
        required(wanted, "lifecycleStage")?;
        let to = stage(wanted)?.unwrap_or(STAGES[0]);
        let customer = self.0.get_mut(&id).ok_or_else(|| not_found(&id))?;
        let from = stage(customer)?.unwrap_or(STAGES[0]);
        if place(to) <= place(from) {
            return Err(backward(from, to));
        }
        customer.insert("lifecycleStage".to_owned(), to.into());
        customer.insert("updateTime".to_owned(), now_millis.into());
        Ok(customer)
    }

    fn store(&mut self, id: String, mut customer: Customer, stage: &str, now_millis: i64) -> Customer {
        customer.insert("id".to_owned(), id.clone().into());
        customer.insert("lifecycleStage".to_owned(), stage.into());
        customer.insert("updateTime".to_owned(), now_millis.into());
        customer.entry("enabled").or_insert(true.into());
        self.0.insert(id, customer.clone());
        customer
    }
}

/// The id and the stage of a customer that has all it needs.
fn checked(customer: &Customer) -> Result<(String, Option<&'static str>), Answer> {
    let id = required(customer, "customerId")?;
    required(customer, "customerName")?;
    optional(customer, "customerEmail")?;
    let traits_are_strings = match customer.get("traits") {
        None | Some(Value::Null) => true,
        Some(Value::Object(traits)) => traits.values().all(Value::is_string),
        Some(_) => false,
    };
    if !traits_are_strings {
        return Err(Answer::bad_request("traits is not an object of strings"));
    }
    match customer.get("enabled") {
        None | Some(Value::Bool(_)) => Ok((id, stage(customer)?)),
        Some(_) => Err(Answer::bad_request("enabled is not a boolean")),
    }
}

fn stage(object: &Map<String, Value>) -> Result<Option<&'static str>, Answer> {
    let Some(wanted) = optional(object, "lifecycleStage")? else { return Ok(None) };
    let known = STAGES.into_iter().find(|stage| *stage == wanted);
    known.map(Some).ok_or_else(|| Answer::bad_request(format!("Invalid lifecycleStage: {wanted}")))
}

fn place(stage: &str) -> usize {
    STAGES.iter().position(|known| *known == stage).unwrap_or_default()
}

fn backward(from: &str, to: &str) -> Answer {
    Answer::bad_request(format!("lifecycleStage cannot change from {from} to {to}"))
}

fn not_found(id: &str) -> Answer {
    Answer::new(StatusCode::NOT_FOUND, format!("Customer not found with customerId: {id}"))
}
