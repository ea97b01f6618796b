// Puts the scenario's events (see ../scenario.py) with the AWS SDK for JavaScript; the bus is found through
// AWS_ENDPOINT_URL_EVENTBRIDGE. Run it in the folder that has node_modules.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

// An import would look beside this file, where nothing is installed.
const require = createRequire(join(process.cwd(), "package.json"));
const { EventBridgeClient, PutEventsCommand } = require("@aws-sdk/client-eventbridge");

const client = new EventBridgeClient();
const accepted = [];

const entry = (n, others = {}) => ({
  Source: "bus.client",
  DetailType: "ingestUsage",
  // Written by hand: the text of the number, and text beyond ASCII, must arrive as they are.
  Detail: `{"tenantId": "tenant-${n}", "meterApiName": "calls", "meterValue": ${n}.50, "note": "grüße ✓"}`,
  ...others,
});
const entries = (count) => Array.from({ length: count }, (_, n) => entry(n));

async function put(Entries, failures) {
  const answer = await client.send(new PutEventsCommand({ Entries }));
  const codes = Object.fromEntries(answer.Entries.map(({ ErrorCode }, n) => [n, ErrorCode]).filter(([, code]) => code));
  assert.deepEqual(codes, failures);
  assert.equal(answer.FailedEntryCount, Object.keys(failures).length);
  accepted.push(...answer.Entries.flatMap(({ EventId }) => EventId ?? []));
}

await put(entries(10), {});
await put(
  [
    entry(10),
    entry(11, { Detail: "[]" }),
    entry(12, { DetailType: "sbt_aws_ingestUsage", EventBusName: "sbt-bus" }),
  ],
  { 1: "MalformedDetail" },
);
await put([entry(13, { Time: new Date(1_700_000_000_000), Resources: ["arn:aws:s3:::bucket"] })], {});
await assert.rejects(client.send(new PutEventsCommand({ Entries: entries(11) })), (error) => {
  assert.equal(error.name, "ValidationException");
  assert.match(error.message, /Member must have length less than or equal to 10$/);
  assert.equal(error.$metadata.httpStatusCode, 400);
  assert.ok(error.$metadata.requestId);
  return true;
});
console.log(JSON.stringify(accepted));
