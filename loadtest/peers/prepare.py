"""Parses events beforehand: `prepare.py EVENTS OUTPUT` writes what `parsed_chunks` reads."""

import json
import marshal
import sys
from itertools import islice

import common

with open(sys.argv[1], "rb") as events, open(sys.argv[2], "wb") as output:
    parsed = (common.metered(json.loads(line)) for line in events)
    while chunk := list(islice(parsed, common.CHUNK)):
        dumped = marshal.dumps(chunk)
        output.write(len(dumped).to_bytes(8, "little") + dumped)
