"""Puts the scenario's events with boto3; the bus is found through AWS_ENDPOINT_URL_EVENTBRIDGE."""

import boto3
from botocore.exceptions import ClientError

import scenario

client = boto3.client("events")
scenario.check(client.put_events(Entries=scenario.BATCH), {})
scenario.check(client.put_events(Entries=scenario.ONE_BROKEN), {1: "MalformedDetail"})
scenario.check(client.put_events(Entries=scenario.TIMED), {})
try:
    client.put_events(Entries=scenario.TOO_MANY)
except ClientError as error:
    assert error.response["Error"]["Code"] == "ValidationException", error
    assert error.response["Error"]["Message"].endswith("Member must have length less than or equal to 10"), error
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400, error
    assert error.response["ResponseMetadata"]["RequestId"], error
else:
    raise AssertionError("eleven entries were accepted")
scenario.report()
