"""What the peers' programs share."""

import argparse
import ctypes
import json
import marshal
import os
import signal
import time
from datetime import datetime

CHUNK = 1000


def arguments(description):
    """The arguments that every program has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--url", required=True, help="where Amberflo is")
    parser.add_argument("--input", required=True, help="the events")
    parser.add_argument("--limit", type=int, default=None, help="how many of them")
    parser.add_argument("--rate", type=int, help="instead: events a second, open-loop, until it is killed")
    parser.add_argument("--cursor", help="the file that keeps the place in the input over a restart")
    return parser


def die_with_parent():
    """However the benchmark ends, no peer is left behind (PR_SET_PDEATHSIG; Linux only)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def millis(text):
    """EventBridge's time in Unix milliseconds."""
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def metered(envelope):
    """The arguments of the SDK's `meter` for an event, as EventBridge hands it on: its own id and its own time."""
    detail = envelope["detail"]
    return (
        detail["meterApiName"],
        detail["meterValue"],
        detail.get("meterTimeInMillis") or millis(envelope["time"]),
        detail["tenantId"],
        detail.get("dimensions"),
        detail.get("uniqueId") or envelope["id"],
    )


class Cursor:
    """A place in the input that outlives the process. Written without a sync: a killed process loses nothing of it."""

    def __init__(self, path):
        self.file = None
        self.place = 0
        if path:
            self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            self.place = int(os.read(self.file, 20) or b"0")

    def advance(self):
        self.place += 1
        if self.file is not None:
            os.pwrite(self.file, b"%d" % self.place, 0)


class Stopwatch:
    """CPU time that is the benchmark's and not the peer's: reading the input."""

    def __init__(self):
        self.cpu = 0.0

    def __enter__(self):
        self.started = time.thread_time()

    def __exit__(self, *_):
        self.cpu += time.thread_time() - self.started

    def report(self):
        """For the benchmark, which subtracts it from the CPU time; not from the wall time: threads send meanwhile."""
        print(json.dumps({"excluded_cpu": self.cpu}), flush=True)


def parsed_chunks(path, limit, stopwatch):
    """The events of a file that `prepare.py` wrote, parsed, a thousand at a time."""
    left = limit
    with open(path, "rb") as file:
        while left is None or left > 0:
            with stopwatch:
                size = int.from_bytes(file.read(8), "little")
                if size == 0:
                    return
                # Not marshal.load, which reads byte by byte.
                chunk = marshal.loads(file.read(size))
                chunk = chunk if left is None else chunk[:left]
            yield chunk
            left = None if left is None else left - len(chunk)


def ticks(rate):
    """Yields the intended Unix time of each event in seconds, when it has come; a late consumer gets them all."""
    started = time.time()
    count = 0
    while True:
        due = started + count / rate
        wait = due - time.time()
        if wait > 0:
            time.sleep(wait)
        yield due
        count += 1
