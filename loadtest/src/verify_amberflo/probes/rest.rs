//! Customers, cancelling of one event, and when usage shows.

use std::sync::Arc;
use std::time::Duration;

use http::Method;

use crate::verify_amberflo::client::Unclear;
use crate::verify_amberflo::probe::{Cost, Evidence, Finding, Probe, Sureness};
use crate::verify_amberflo::probing::{Probing, Record};

pub const PROBES: &[Probe] = &[
    Probe {
        id: "visibility",
        sureness: Sureness::Assumed,
        claim: "Usage shows in /usage soon after it was taken; how soon is not published.",
        does: "Sends a record, and asks until it shows.",
        confirmed_if: "It shows within --patience; after how long is said.",
        refuted_if: "Never: usage that does not show leaves it unclear, as it does all probes that read usage.",
        if_refuted: "A cancellation's dry run and all reports of the control API lag behind by that time.",
        cost: |settings| Cost::billed(0, 0, settings),
        run: |at| Box::pin(visibility(at)),
    },
    Probe {
        id: "customer-unknown",
        sureness: Sureness::Reported,
        claim: "`GET /customers/{id}` of an unknown customer is answered 200 with an empty body.",
        does: "Asks for a customer that nobody has created.",
        confirmed_if: "200, and nothing in it.",
        refuted_if: "Any other answer.",
        if_refuted: "None: both that and a 404 are read as not there.",
        cost: |_| Cost::requests(1),
        run: |at| Box::pin(customer_unknown(at)),
    },
    Probe {
        id: "cancel-event",
        sureness: Sureness::Stated,
        claim: "An event is cancelled by sending it again with the dimension `aflo.cancel_previous_resource_event`.",
        does: "Sends two records, then the first once more with that dimension.",
        confirmed_if: "The first no longer counts, the second does.",
        refuted_if: "The first still counts.",
        if_refuted: "A single event cannot be cancelled (ALLOW_AFLO_DIMENSIONS), and trying bills it once more.",
        cost: |settings| Cost::billed(3, 2, settings),
        run: |at| Box::pin(cancel_event(at)),
    },
];

async fn visibility(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let after = at.settled_after_marker(0, 0).await?.visible_after;
    let after = humantime::format_duration(Duration::from_millis(after.as_millis() as u64));
    Ok(Evidence::Confirmed(format!("shows after {after} or less")))
}

async fn customer_unknown(at: Arc<Probing>) -> Finding {
    let answer = at.api(Method::GET, &format!("/customers/{}", at.customer()), None).await?;
    let is_empty = ["", "null", "{}"].contains(&answer.body.trim());
    Ok(Evidence::of(answer.status == 200 && is_empty, answer.brief()))
}

async fn cancel_event(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let (first, second) = (at.record(0), at.record(1));
    at.send(&[&first, &second]).await?;
    let more_dimensions = r#","aflo.cancel_previous_resource_event":"true""#.to_owned();
    at.send(&[&Record { more_dimensions, ..first }]).await?;
    match at.counts(&[0, 1]).await?[..] {
        [0, 1] => Ok(Evidence::Confirmed("only the other event counts".to_owned())),
        [times, 1] => Ok(Evidence::Refuted(format!("the cancelled event counts {times} times"))),
        ref other => Err(Unclear(format!("they count {other:?} times"))),
    }
}
