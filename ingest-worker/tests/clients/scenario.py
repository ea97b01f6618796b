"""What every client of the bus tests puts, and what it must be told; js/put_events.mjs does the same."""

import json

TIME = 1_700_000_000
ACCEPTED = []


def entry(n, **others):
    # Written by hand: the text of the number, and text beyond ASCII, must arrive as they are.
    detail = f'{{"tenantId": "tenant-{n}", "meterApiName": "calls", "meterValue": {n}.50, "note": "grüße ✓"}}'
    return {"Source": "bus.client", "DetailType": "ingestUsage", "Detail": detail, **others}


BATCH = [entry(n) for n in range(10)]
ONE_BROKEN = [entry(10), entry(11, Detail="[]"), entry(12, DetailType="sbt_aws_ingestUsage", EventBusName="sbt-bus")]
TIMED = [entry(13, Time=TIME, Resources=["arn:aws:s3:::bucket"])]
TOO_MANY = [entry(n) for n in range(11)]


def check(answer, failures):
    """Compares an answer with the expected error codes by position, and notes the accepted ids."""
    codes = {n: result["ErrorCode"] for n, result in enumerate(answer["Entries"]) if "ErrorCode" in result}
    assert codes == failures, answer
    assert answer["FailedEntryCount"] == len(failures), answer
    ACCEPTED.extend(result["EventId"] for result in answer["Entries"] if "EventId" in result)


def report():
    """The last line of output, for the test that started the client."""
    print(json.dumps(ACCEPTED))
