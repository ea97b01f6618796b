"""Puts the scenario's events with the AWS CLI; the bus is found through AWS_ENDPOINT_URL_EVENTBRIDGE."""

import json
import subprocess
import sys
from pathlib import Path

import scenario

AWS = Path(sys.executable).parent / "aws"


def put_events(entries):
    command = [sys.executable, AWS, "events", "put-events", "--output", "json", "--entries", json.dumps(entries)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def answer(entries):
    done = put_events(entries)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


scenario.check(answer(scenario.BATCH), {})
scenario.check(answer(scenario.ONE_BROKEN), {1: "MalformedDetail"})
scenario.check(answer(scenario.TIMED), {})
refused = put_events(scenario.TOO_MANY)
assert refused.returncode != 0 and "(ValidationException) when calling the PutEvents operation" in refused.stderr, refused
scenario.report()
