"""One POST for each event, with `requests`, as the Lambda function of the original `sbt-aws-amberflo` does it."""

import json
import os
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

import common

parser = common.arguments(__doc__)
parser.add_argument("--connect", action="store_true", help="a new connection for each request, as earlier versions did")
parser.add_argument("--threads", type=int, default=1, help="with --rate: instances, each with one event at a time")
args = parser.parse_args()
common.die_with_parent()

URL = args.url + "/ingest"
HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "gzip", "x-api-key": "sandbox-key"}
# Lambda invokes an asynchronous function twice more when it fails, after one and two minutes. Shorter here, but not so
# short that the next attempt falls into the same millisecond: it never does after a minute.
INVOCATIONS = 3
PAUSE = 0.005


def new_session():
    session = requests.Session()
    # As in the original. Retry leaves POST out unless it is told otherwise: these retries never happen.
    session.mount("http://", HTTPAdapter(max_retries=Retry(total=3, backoff_factor=1, status_forcelist=[500, 502, 503, 504])))
    return session


session = new_session()


def handle(event, session=session):
    detail = event["detail"]
    others = {name: value for name, value in detail.items() if name not in ("tenantId", "meterApiName", "meterValue")}
    # The original would send `dimensions` nested, and the time as a number. Amberflo takes text only.
    dimensions = {name: str(value) for name, value in others.items() if name != "dimensions"} | others["dimensions"]
    record = {
        "customerId": detail["tenantId"],
        "meterApiName": detail["meterApiName"],
        "meterValue": detail["meterValue"],
        "meterTimeInMillis": int(round(time.time() * 1000)),
        "dimensions": dimensions,
    }
    post = requests.post if args.connect else session.post
    response = post(URL, json=record, headers=HEADERS)
    response.raise_for_status()
    return response.text


def invoke(event):
    for _ in range(INVOCATIONS):
        try:
            return handle(event)
        except requests.RequestException:
            time.sleep(PAUSE)


cursor = common.Cursor(args.cursor)
with open(args.input, "rb") as file:
    lines = list(islice(file, args.limit)) if args.rate else islice(file, cursor.place, args.limit)
    if args.rate:
        sessions = [new_session() for _ in range(args.threads)]
        pool = ThreadPoolExecutor(args.threads)

        def at(due, line):
            event = json.loads(line)
            event["detail"]["meterValue"] = int(due * 1_000_000)
            own = sessions.pop()
            try:
                handle(event, own)
            finally:
                sessions.append(own)

        def check(done):
            # On a thread of the pool, where an exception would end nothing.
            if error := done.exception():
                traceback.print_exception(error)
                os._exit(1)

        for due, line in zip(common.ticks(args.rate), cycle(lines)):
            pool.submit(at, due, line).add_done_callback(check)
    else:
        for line in lines:
            invoke(json.loads(line))
            # An invocation that was killed is made again: its event is not behind the cursor.
            cursor.advance()
