"""Puts usage events on SBT's event bus: one JSON object a line from standard input.

    python emit.py < events.jsonl > not-taken.jsonl

An event that EventBridge did not take within the time is printed as it has to be emitted again, and the exit code is 1.
"""

import json
import os
import random
import sys
import time
import uuid

import boto3
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

# The bus, and what its rule takes. These are the names of npm's @cdklabs/sbt-aws 0.5. SBT since June 2025 has
# sbt.application.plane and sbt_aws_ingestUsage.
BUS = os.environ.get("EVENT_BUS_NAME", "default")
SOURCE = os.environ.get("EVENT_SOURCE", "applicationPlaneEventSource")
DETAIL_TYPE = os.environ.get("EVENT_DETAIL_TYPE", "ingestUsage")
GIVE_UP_SECONDS = float(os.environ.get("GIVE_UP_SECONDS", "60"))

# Limits of one PutEvents: entries, and bytes of all of them, which every region takes.
MAX_ENTRIES = 10
MAX_BYTES = 256 * 1024
FIRST_DELAY = 0.1
MAX_DELAY = 10.0
# Codes of an entry that may be taken the next time; any other would come again.
PASSING = {"Throttling", "ThrottlingException", "InternalFailure", "InternalException", "ServiceUnavailable"}

bus = boto3.client("events")


def identified(event):
    """Gives an event, once and for all, its identity and its time.

    Call it when the usage happens, and store what it answers: every later attempt must have both unchanged, or the usage
    may be billed twice.
    """
    return {"uniqueId": str(uuid.uuid4()), "meterTimeInMillis": time.time_ns() // 1_000_000, **event}


def emit(events):
    """Puts identified events on the bus. Answers those that were not taken, each with why."""
    refused, waiting = [], []
    for event in events:
        # Without the escapes, which can be three times as long.
        detail = json.dumps(event, ensure_ascii=False)
        entry = {"EventBusName": BUS, "Source": SOURCE, "DetailType": DETAIL_TYPE, "Detail": detail}
        if size(entry) >= MAX_BYTES:
            refused.append((event, f"has {size(entry)} bytes"))
        else:
            waiting.append((event, entry))
    end = time.monotonic() + GIVE_UP_SECONDS
    delay = FIRST_DELAY
    while waiting:
        failed = []
        for batch in batches(waiting):
            for (event, entry), (why, is_final) in zip(batch, put([entry for _, entry in batch])):
                if why and is_final:
                    refused.append((event, why))
                elif why:
                    failed.append((event, entry, why))
        # All wait for different times, lest they come back at once.
        wait = delay * random.uniform(0.5, 1.5)
        if failed and time.monotonic() + wait > end:
            return refused + [(event, why) for event, _, why in failed]
        if failed:
            time.sleep(wait)
        waiting = [(event, entry) for event, entry, _ in failed]
        delay = min(2 * delay, MAX_DELAY)
    return refused


def put(entries):
    """What became of each entry of one call: (None, False) when it was taken, otherwise why, and whether that is final.

    The client repeats a call that gets no answer.
    """
    try:
        answer = bus.put_events(Entries=entries)
    except ClientError as error:
        # The fault of the request, such as a missing permission, would come again.
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        is_passing = status >= 500 or status == 429 or error.response["Error"]["Code"] in PASSING
        return [(str(error), not is_passing)] * len(entries)
    except BotoCoreError as error:
        return [(str(error), not isinstance(error, (ConnectionError, HTTPClientError)))] * len(entries)
    # PutEvents answers 200 although it took only some of them.
    if answer["FailedEntryCount"] == 0:
        return [(None, False)] * len(entries)
    return [outcome(result) for result in answer["Entries"]]


def outcome(result):
    code = result.get("ErrorCode")
    return (f"{code}: {result.get('ErrorMessage')}", code not in PASSING) if code else (None, False)


def batches(items):
    batch, total = [], 0
    for item in items:
        more = size(item[1])
        if len(batch) == MAX_ENTRIES or (batch and total + more >= MAX_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += more
    if batch:
        yield batch


def size(entry):
    """The size of an entry as EventBridge counts it."""
    return sum(len(entry[name].encode()) for name in ("Source", "DetailType", "Detail"))


def main():
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")
    not_taken = emit([identified(json.loads(line)) for line in sys.stdin if line.strip()])
    for event, why in not_taken:
        print(json.dumps(event, ensure_ascii=False))
        print(f"not taken: {event['uniqueId']}: {why}", file=sys.stderr)
    return 1 if not_taken else 0


if __name__ == "__main__":
    sys.exit(main())
