//! How meters are created, changed and deleted: what the control API passes on.

use std::sync::Arc;

use http::Method;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::verify_amberflo::account::{LOOKS, meter};
use crate::verify_amberflo::client::{Answer, Unclear};
use crate::verify_amberflo::probe::{Cost, Evidence, Finding, Probe, Sureness};
use crate::verify_amberflo::probing::Probing;

const TYPES: [&str; 3] = ["sum_of_all_usage", "active_users", "event_duration"];

pub const PROBES: &[Probe] = &[
    Probe {
        id: "meter-types",
        sureness: Sureness::Reported,
        claim: "`meterType` may be `sum_of_all_usage`, `active_users` or `event_duration`; any other is answered 400; \
                `Invalid meter type` is reported.",
        does: "Creates a meter of each type, and one of the type `no_such_type`.",
        confirmed_if: "Three are created, and the fourth is answered 400, whatever the text; whether it is the reported one is \
                       said.",
        refuted_if: "Any of the three is refused, or the fourth is created.",
        if_refuted: "Little: the control API passes any type on. Its documentation names types that do not work, or not all.",
        cost: |_| Cost::meters(4, 4),
        run: |at| Box::pin(meter_types(at)),
    },
    Probe {
        id: "meter-id",
        sureness: Sureness::Reported,
        claim: "`POST /meters` ignores an id that is sent, and gives its own.",
        does: "Creates a meter with an id.",
        confirmed_if: "The meter has another id.",
        refuted_if: "It has the id that was sent, or is refused.",
        if_refuted: "The control API's POST passes an id on: whoever may create meters chooses their ids, and might \
                     overwrite one.",
        cost: |_| Cost::meters(1, 1 + LOOKS),
        run: |at| Box::pin(meter_id(at)),
    },
    Probe {
        id: "meter-update",
        sureness: Sureness::Reported,
        claim: "`PUT /meters` without an id is answered 400; `Meter already exists with meterApiName: ...` is reported.",
        does: "Creates a meter, then sends it again with PUT and without an id.",
        confirmed_if: "400, whatever the text; whether it is the reported one is said.",
        refuted_if: "Any other answer.",
        if_refuted: "None: the control API always sends the id of its path.",
        cost: |_| Cost::meters(1, 2 + LOOKS),
        run: |at| Box::pin(meter_update(at)),
    },
    Probe {
        id: "meter-locking",
        sureness: Sureness::Reported,
        claim: "`lockingStatus` goes one way: `open` to `close_to_changes` to `deprecated`, and never back.",
        does: "Moves a meter forward, and after each step tries to open it again.",
        confirmed_if: "The steps forward are taken, those back are not.",
        refuted_if: "A step forward is refused, or one back is carried out.",
        if_refuted: "If a meter can be opened again: none. If a step forward is refused, a meter cannot be retired through the \
                     control API.",
        cost: |_| Cost::meters(1, 5 + 4 * LOOKS),
        run: |at| Box::pin(meter_locking(at)),
    },
    Probe {
        id: "meter-deletion",
        sureness: Sureness::Reported,
        claim: "`DELETE /meters/{id}` is answered 400 unless the meter is deprecated; then it is gone.",
        does: "Tries to delete an open meter, deprecates it, deletes it.",
        confirmed_if: "400 and still there; then gone.",
        refuted_if: "The open meter goes, or the deprecated one stays.",
        if_refuted: "If an open meter goes: the control API's DELETE with `deprecate=false` removes it too. If a deprecated one \
                     stays: meters cannot be deleted through it.",
        cost: |_| Cost::meters(1, 4 + 3 * LOOKS),
        run: |at| Box::pin(meter_deletion(at)),
    },
    Probe {
        id: "meter-deletion-by-name",
        sureness: Sureness::Reported,
        claim: "`DELETE /meters/{api name}` is answered 200 and does nothing.",
        does: "Tries to delete an open meter by its api name.",
        confirmed_if: "200, and the meter is there.",
        refuted_if: "Any other answer, or the meter is gone.",
        if_refuted: "None: the control API looks for the meter by its id first, and answers 404.",
        cost: |_| Cost::meters(1, 2 + 2 * LOOKS),
        run: |at| Box::pin(meter_deletion_by_name(at)),
    },
];

/// Only a deprecated meter can be deleted, and whether `close_to_deletions` leads there is stated nowhere.
pub const ON_REQUEST: &[Probe] = &[Probe {
    id: "meter-locking-deletions",
    sureness: Sureness::Reported,
    claim: "`lockingStatus` goes from `open` to `close_to_deletions` and not back; from `close_to_changes` it does not.",
    does: "Moves a meter to `close_to_deletions`, tries to open it again, then to deprecate it; tries to move another from \
           `close_to_changes` to `close_to_deletions`.",
    confirmed_if: "The first step is taken, the second and the last are not; what becomes of the third is said.",
    refuted_if: "The first step is refused, or the second or the last is carried out.",
    if_refuted: "If the step is refused: the control API's documentation names a status that does not work. If another is carried \
                 out: none, it passes every status on.",
    cost: |_| Cost { lasting_meters: 1, ..Cost::meters(2, 7 + 6 * LOOKS) },
    run: |at| Box::pin(meter_locking_deletions(at)),
}];

async fn meter_types(at: Arc<Probing>) -> Finding {
    let mut refused = Vec::new();
    for kind in TYPES {
        let name = at.meter_name(&format!("-{}", kind.replace('_', "-")));
        let answer = at.post_meter(&name, meter(&name, kind)).await?;
        if !answer.is_ok() {
            refused.push(format!("{kind}: {}", answer.brief()));
        }
    }
    let name = at.meter_name("-none");
    let other = at.post_meter(&name, meter(&name, "no_such_type")).await?;
    let text = match &refused[..] {
        [] => "all three are taken".to_owned(),
        _ => refused.join("; "),
    };
    let text = format!("{text}; another: {}", against(&other, "Invalid meter type"));
    Ok(Evidence::of(refused.is_empty() && other.status == 400, text))
}

async fn meter_id(at: Arc<Probing>) -> Finding {
    let (name, sent) = (at.meter_name(""), Uuid::new_v4().to_string());
    let mut wanted = meter(&name, TYPES[0]);
    wanted["id"] = sent.clone().into();
    let answer = at.post_meter(&name, wanted).await?;
    if !answer.is_ok() {
        return Ok(Evidence::Refuted(answer.brief()));
    }
    let created = at.look_for_meter(&name, true).await?;
    let id = created.as_ref().and_then(|meter| meter.get("id")).and_then(Value::as_str);
    match id {
        None => Err(Unclear("the meter that was created is not to be found".to_owned())),
        Some(id) => Ok(Evidence::of(id != sent, format!("sent {sent}, got {id}"))),
    }
}

async fn meter_update(at: Arc<Probing>) -> Finding {
    let name = at.meter_name("");
    at.create_meter(&name).await?;
    let answer = at.api(Method::PUT, "/meters", Some(meter(&name, TYPES[0]))).await?;
    Ok(Evidence::of(answer.status == 400, against(&answer, "Meter already exists with meterApiName: ")))
}

/// The answer, and whether it has the text that is reported of it.
fn against(answer: &Answer, reported: &str) -> String {
    let is_reported = if answer.body.contains(reported) { "the reported text" } else { "not the reported text" };
    format!("{}, {is_reported}", answer.brief())
}

async fn meter_locking(at: Arc<Probing>) -> Finding {
    let name = at.meter_name("");
    at.create_meter(&name).await?;
    let meter = created(&at, &name).await?;
    let mut steps = Vec::new();
    for forward in ["close_to_changes", "deprecated"] {
        let answer = at.lock_meter(&meter, forward).await?;
        if !answer.is_ok() {
            return Ok(Evidence::Refuted(format!("to {forward}: {}", answer.brief())));
        }
        let back = at.lock_meter(&meter, "open").await?;
        let now = locking_status(&at, &name).await?;
        steps.push(format!("{forward} to open: {}, is {now}", back.brief()));
        if now != forward {
            return Ok(Evidence::Refuted(steps.join("; ")));
        }
    }
    Ok(Evidence::Confirmed(steps.join("; ")))
}

async fn created(at: &Probing, name: &str) -> Result<Map<String, Value>, Unclear> {
    let meter = at.look_for_meter(name, true).await?;
    meter.ok_or_else(|| Unclear("the meter that was created is not to be found".to_owned()))
}

async fn locking_status(at: &Probing, name: &str) -> Result<String, Unclear> {
    let meter = at.look_for_meter(name, true).await?;
    let status = meter.as_ref().and_then(|meter| meter.get("lockingStatus")).and_then(Value::as_str);
    Ok(status.unwrap_or("gone").to_owned())
}

async fn meter_locking_deletions(at: Arc<Probing>) -> Finding {
    let (active, closed) = (at.meter_name("-active"), at.meter_name(""));
    at.create_meter(&active).await?;
    let meter = created(&at, &active).await?;
    let activated = at.lock_meter(&meter, "close_to_changes").await?;
    if !activated.is_ok() {
        return Err(Unclear(format!("the other meter cannot be activated: {}", activated.brief())));
    }
    let aside = at.lock_meter(&meter, "close_to_deletions").await?;
    let active = locking_status(&at, &active).await?;

    at.create_meter(&closed).await?;
    let meter = created(&at, &closed).await?;
    let forward = at.lock_meter(&meter, "close_to_deletions").await?;
    if !forward.is_ok() {
        return Ok(Evidence::Refuted(format!("open to close_to_deletions: {}", forward.brief())));
    }
    let back = at.lock_meter(&meter, "open").await?;
    let closed = locking_status(&at, &closed).await?;
    let on = at.lock_meter(&meter, "deprecated").await?;
    let text = format!(
        "close_to_changes to close_to_deletions: {}, is {active}; open to close_to_deletions to open: {}, is {closed}; to \
         deprecated: {}",
        aside.brief(),
        back.brief(),
        on.brief()
    );
    Ok(Evidence::of(active == "close_to_changes" && closed == "close_to_deletions", text))
}

async fn meter_deletion(at: Arc<Probing>) -> Finding {
    let name = at.meter_name("");
    let id = at.create_meter(&name).await?;
    let path = format!("/meters/{id}");
    let open = at.api(Method::DELETE, &path, None).await?;
    let Some(meter) = at.look_for_meter(&name, true).await? else {
        return Ok(Evidence::Refuted(format!("the open meter is gone: {}", open.brief())));
    };
    let locked = at.lock_meter(&meter, "deprecated").await?;
    if !locked.is_ok() {
        return Err(Unclear(format!("the meter cannot be deprecated: {}", locked.brief())));
    }
    let deprecated = at.api(Method::DELETE, &path, None).await?;
    let is_gone = at.look_for_meter(&name, false).await?.is_none();
    let text = format!("open: {}; deprecated: {}, {}", open.brief(), deprecated.brief(), place(is_gone));
    Ok(Evidence::of(open.status == 400 && is_gone, text))
}

async fn meter_deletion_by_name(at: Arc<Probing>) -> Finding {
    let name = at.meter_name("");
    at.create_meter(&name).await?;
    let answer: Answer = at.api(Method::DELETE, &format!("/meters/{name}"), None).await?;
    let is_gone = at.look_for_meter(&name, true).await?.is_none();
    Ok(Evidence::of(answer.status == 200 && !is_gone, format!("{}, {}", answer.brief(), place(is_gone))))
}

fn place(is_gone: bool) -> &'static str {
    if is_gone { "and it is gone" } else { "and it is there" }
}
