// Puts usage events on SBT's event bus: one JSON object a line from standard input.
//
//   node emit.mjs < events.jsonl > not-taken.jsonl
//
// An event that EventBridge did not take within the time is printed as it has to be emitted again, and the exit code is 1.

import { randomUUID } from "node:crypto";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

import { EventBridgeClient, PutEventsCommand } from "@aws-sdk/client-eventbridge";

// The bus, and what its rule takes. These are the names of npm's @cdklabs/sbt-aws 0.5. SBT since June 2025 has
// sbt.application.plane and sbt_aws_ingestUsage.
const EventBusName = process.env.EVENT_BUS_NAME ?? "default";
const Source = process.env.EVENT_SOURCE ?? "applicationPlaneEventSource";
const DetailType = process.env.EVENT_DETAIL_TYPE ?? "ingestUsage";
const GIVE_UP_MS = Number(process.env.GIVE_UP_SECONDS ?? 60) * 1000;

// Limits of one PutEvents: entries, and bytes of all of them, which every region takes.
const MAX_ENTRIES = 10;
const MAX_BYTES = 256 * 1024;
const FIRST_DELAY_MS = 100;
const MAX_DELAY_MS = 10_000;
// Codes of an entry that may be taken the next time; any other would come again.
const PASSING = /^(Throttling|ThrottlingException|InternalFailure|InternalException|ServiceUnavailable)$/;

const bus = new EventBridgeClient();

/**
 * Gives an event, once and for all, its identity and its time. Call it when the usage happens, and store what it answers:
 * every later attempt must have both unchanged, or the usage may be billed twice.
 */
export function identified(event) {
  return { uniqueId: randomUUID(), meterTimeInMillis: Date.now(), ...event };
}

/** Puts identified events on the bus. Answers those that were not taken, each with why. */
export async function emit(events) {
  const refused = [];
  let waiting = [];
  for (const event of events) {
    const entry = { EventBusName, Source, DetailType, Detail: JSON.stringify(event) };
    if (size(entry) >= MAX_BYTES) refused.push({ event, why: `has ${size(entry)} bytes` });
    else waiting.push({ event, entry });
  }
  const end = Date.now() + GIVE_UP_MS;
  for (let delay = FIRST_DELAY_MS; waiting.length > 0; delay = Math.min(2 * delay, MAX_DELAY_MS)) {
    const failed = [];
    for (const batch of batches(waiting)) {
      const results = await put(batch.map(({ entry }) => entry));
      batch.forEach((item, index) => {
        const { why, isFinal } = results[index];
        if (why) (isFinal ? refused : failed).push({ ...item, why });
      });
    }
    // All wait for different times, lest they come back at once.
    const wait = delay * (0.5 + Math.random());
    if (failed.length > 0 && Date.now() + wait > end) return [...refused, ...failed];
    if (failed.length > 0) await sleep(wait);
    waiting = failed;
  }
  return refused;
}

/** What became of each entry of one call: nothing to say when it was taken. The client repeats a call that gets no answer. */
async function put(entries) {
  try {
    const answer = await bus.send(new PutEventsCommand({ Entries: entries }));
    // PutEvents answers 200 although it took only some of them.
    if (!answer.FailedEntryCount) return entries.map(() => ({}));
    return entries.map((_, index) => {
      const { EventId, ErrorCode, ErrorMessage } = answer.Entries?.[index] ?? {};
      return EventId && !ErrorCode ? {} : { why: `${ErrorCode}: ${ErrorMessage}`, isFinal: ErrorCode && !PASSING.test(ErrorCode) };
    });
  } catch (error) {
    // The fault of the request, such as a missing permission, would come again.
    const isPassing = error.$fault !== "client" || error.$metadata?.httpStatusCode === 429 || PASSING.test(error.name);
    return entries.map(() => ({ why: String(error), isFinal: !isPassing }));
  }
}

function* batches(items) {
  let [batch, bytes] = [[], 0];
  for (const item of items) {
    const more = size(item.entry);
    if (batch.length === MAX_ENTRIES || (batch.length > 0 && bytes + more >= MAX_BYTES)) {
      yield batch;
      [batch, bytes] = [[], 0];
    }
    batch.push(item);
    bytes += more;
  }
  if (batch.length > 0) yield batch;
}

/** The size of an entry as EventBridge counts it. */
function size({ Source, DetailType, Detail }) {
  return Buffer.byteLength(Source) + Buffer.byteLength(DetailType) + Buffer.byteLength(Detail);
}

const events = [];
for await (const line of createInterface({ input: process.stdin })) {
  if (line.trim()) events.push(identified(JSON.parse(line)));
}
const notTaken = await emit(events);
for (const { event, why } of notTaken) {
  console.log(JSON.stringify(event));
  console.error(`not taken: ${event.uniqueId}: ${why}`);
}
process.exitCode = notTaken.length > 0 ? 1 : 0;
