//! What Amberflo answers to usage, good and bad.

use std::sync::Arc;

use http::HeaderValue;
use uuid::Uuid;

use crate::verify_amberflo::client::{Answer, Call, Unclear};
use crate::verify_amberflo::probe::{Cost, Evidence, Finding, Probe, Sureness};
use crate::verify_amberflo::probing::{Probing, Record};

pub const PROBES: &[Probe] = &[
    Probe {
        id: "answer",
        sureness: Sureness::Reported,
        claim: "The answer to usage that was taken is 200, and says how many: `3 records were ingested`.",
        does: "Sends three records in a request.",
        confirmed_if: "The answer is 200, and its text begins with 3.",
        refuted_if: "Another status of success, or another text.",
        if_refuted: "The worker cannot notice that a batch was taken in part: any 2xx settles the whole batch, and \
                     `amberflo_count_mismatches_total` means nothing.",
        cost: |_| Cost::sent(3, 1),
        run: |at| Box::pin(answer(at)),
    },
    Probe {
        id: "answer-to-copies",
        sureness: Sureness::Assumed,
        claim: "The answer to a copy is the same as to the first.",
        does: "Sends a request twice and compares the answers.",
        confirmed_if: "Both are the same success.",
        refuted_if: "The second is a refusal, or counts less.",
        if_refuted: "Each retry of a batch looks like one taken in part (an alert, and one more request), or, if copies are \
                     refused, delivered events end as dead letters.",
        cost: |_| Cost::sent(2, 2),
        run: |at| Box::pin(answer_to_copies(at)),
    },
    Probe {
        id: "partial",
        sureness: Sureness::Assumed,
        claim: "A request with one bad record is refused (4xx), and nothing of it counts.",
        does: "Sends a good record, one without `meterTimeInMillis`, and a good one, in a request.",
        confirmed_if: "The answer is 4xx, and neither of the good ones counts.",
        refuted_if: "A success, or some of it counts.",
        if_refuted: "If it is refused and counts all the same: harmless while copies count once, because the worker sends the \
                     good ones again. If it is a success: the bad record is lost without a dead letter, unless the answer \
                     counts fewer.",
        cost: |settings| Cost::billed(3, 1, settings),
        run: |at| Box::pin(partial(at)),
    },
    Probe {
        id: "unknown-key",
        sureness: Sureness::Stated,
        claim: "A top-level key that Amberflo does not know is ignored.",
        does: "Sends a record with the key `unknownKey`.",
        confirmed_if: "It is taken, and counts once.",
        refuted_if: "It is refused, or does not count.",
        if_refuted: "None: the worker sends known keys only.",
        cost: |settings| Cost::billed(1, 1, settings),
        run: |at| Box::pin(unknown_key(at)),
    },
    Probe {
        id: "bad-record",
        sureness: Sureness::Reported,
        claim: "Bad data is answered 400.",
        does: "Sends, each in a request: no `customerId`, no `meterTimeInMillis`, a text as value, broken JSON; then a good one.",
        confirmed_if: "400 each time, and a success for the good one.",
        refuted_if: "Any other answer to the bad ones while the good one is taken.",
        if_refuted: "After 422 nothing changes. After 5xx a bad event holds its shard up for 30 minutes before it is \
                     dead-lettered as `unconfirmed`. After a success it is lost in silence.",
        cost: |_| Cost::sent(4, 5),
        run: |at| Box::pin(bad_record(at)),
    },
    Probe {
        id: "bad-key",
        sureness: Sureness::Reported,
        claim: "A wrong key is answered 401.",
        does: "Sends a record with a random key, once.",
        confirmed_if: "401.",
        refuted_if: "Any other answer.",
        if_refuted: "After 403 little changes: the key is read again, unless other batches succeed. After any other answer a \
                     rotated key is not noticed: with 400 every event would be dead-lettered.",
        cost: |_| Cost { records: 1, ..Cost::requests(1) },
        run: |at| Box::pin(bad_key(at)),
    },
    Probe {
        id: "unknown-meter",
        sureness: Sureness::Assumed,
        claim: "Usage of a meter that does not exist is taken.",
        does: "Sends a record of a meter that nobody has created.",
        confirmed_if: "A success.",
        refuted_if: "A refusal.",
        if_refuted: "Events of a meter that is created too late are dead-lettered as `rejected`, to be redriven.",
        cost: |_| Cost::sent(1, 1),
        run: |at| Box::pin(unknown_meter(at)),
    },
    Probe {
        id: "unknown-customer",
        sureness: Sureness::Assumed,
        claim: "Usage of a customer who is not registered is taken, and shows.",
        does: "Sends a record of a customer that nobody has created.",
        confirmed_if: "It is taken, and counts.",
        refuted_if: "A refusal.",
        if_refuted: "Register a tenant in Amberflo before it emits: its events before that are dead-lettered.",
        cost: |settings| Cost { customers: 0, ..Cost::billed(1, 1, settings) },
        run: |at| Box::pin(unknown_customer(at)),
    },
];

async fn answer(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let records = [at.record(0), at.record(1), at.record(2)];
    let answer = at.send(&records.iter().collect::<Vec<_>>()).await?;
    Ok(Evidence::of(answer.status == 200 && counted(&answer) == Some(3), answer.brief()))
}

/// The number at the beginning of an answer.
fn counted(answer: &Answer) -> Option<u64> {
    answer.body.split_whitespace().next()?.parse().ok()
}

async fn answer_to_copies(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let record = at.record(0);
    let first = at.send(&[&record]).await?;
    let copy = at.ingest(&format!("[{}]", record.text())).await?;
    let is_same = (first.status, &first.body) == (copy.status, &copy.body);
    Ok(Evidence::of(is_same, format!("{}, then {}", first.brief(), copy.brief())))
}

async fn partial(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let (first, last) = (at.record(0).text(), at.record(1).text());
    let answer = at.ingest(&format!("[{first},{},{last}]", without(&at.record(0), "meterTimeInMillis"))).await?;
    let counts = at.counts(&[0, 0]).await?;
    let nothing = answer.is_refusal() && counts == [0, 0];
    let text = format!("{}; the good ones count {} and {} times", answer.brief(), counts[0], counts[1]);
    Ok(Evidence::of(nothing, text))
}

/// The record's text without a key that is needed.
fn without(record: &Record, key: &str) -> String {
    match key {
        "customerId" => record.text().replacen(&format!(r#""customerId":"{}","#, record.customer), "", 1),
        _ => record.text().replacen(&format!(r#""meterTimeInMillis":{},"#, record.time), "", 1),
    }
}

async fn unknown_key(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let record = at.record(0).text().replacen('{', r#"{"unknownKey":"x","#, 1);
    let answer = at.ingest(&format!("[{record}]")).await?;
    if !answer.is_ok() {
        return Ok(Evidence::Refuted(answer.brief()));
    }
    let times = at.counts(&[1]).await?[0];
    Ok(Evidence::of(times == 1, format!("{}, counts {times} times", answer.brief())))
}

async fn bad_record(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let good = at.record(0);
    let text_value = good.text().replacen(r#""meterValue":1"#, r#""meterValue":"many""#, 1);
    let bad = [
        ("no customerId", format!("[{}]", without(&good, "customerId"))),
        ("no meterTimeInMillis", format!("[{}]", without(&good, "meterTimeInMillis"))),
        ("a text as value", format!("[{text_value}]")),
        ("broken JSON", r#"[{"customerId":"#.to_owned()),
    ];
    let mut answers = Vec::new();
    for (what, body) in bad {
        let answer = at.ingest_raw(&body).await?;
        if answer.is_html || answer.status == 429 {
            return Err(Unclear(format!("{what}: {}", answer.brief())));
        }
        answers.push((what, answer));
    }
    // Shows that the refusals were meant for the records.
    at.send(&[&Record { unique_id: format!("{}-good", good.unique_id), ..good }]).await?;
    let shown: Vec<_> = answers.iter().map(|(what, answer)| format!("{what}: {}", answer.brief())).collect();
    Ok(Evidence::of(answers.iter().all(|(_, answer)| answer.status == 400), shown.join("; ")))
}

async fn bad_key(at: Arc<Probing>) -> Finding {
    let random = HeaderValue::from_str(&Uuid::new_v4().to_string());
    let random = random.map_err(|error| Unclear(format!("no random key: {error}")))?;
    let body = format!("[{}]", at.record(0).text());
    let call = Call { key: Some(random), ..at.ingestion().with_text(body) };
    let answer = at.run.client.exchange(&at.log, call).await?;
    if answer.is_html || answer.status == 429 || answer.status >= 500 {
        return Err(Unclear(answer.brief()));
    }
    Ok(Evidence::of(answer.status == 401, answer.brief()))
}

async fn unknown_meter(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let record = Record { meter: format!("{}-that-nobody-has-created", at.run.meter), ..at.record(0) };
    let answer = at.ingest(&format!("[{}]", record.text())).await?;
    Ok(Evidence::of(answer.is_ok(), answer.brief()))
}

async fn unknown_customer(at: Arc<Probing>) -> Finding {
    let answer = at.ingest(&format!("[{}]", at.record(0).text())).await?;
    if !answer.is_ok() {
        return Ok(Evidence::Refuted(answer.brief()));
    }
    let times = at.counts(&[1]).await?[0];
    Ok(Evidence::of(times == 1, format!("{}, counts {times} times", answer.brief())))
}
