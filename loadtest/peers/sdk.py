"""An application that meters with Amberflo's official SDK: its threaded producer, and input that is parsed already."""

import time
from itertools import cycle, islice

from metering.ingest import create_ingest_client
from metering.session import IngestSession

import common

parser = common.arguments(__doc__)
parser.add_argument("--batch", type=int, required=True, help="the SDK's batch_size")
parser.add_argument("--readme", action="store_true", help="as its README shows it: no unique_id, the present time")
args = parser.parse_args()
common.die_with_parent()

IngestSession.root_url = args.url
client = create_ingest_client(api_key="sandbox-key", batch_size=args.batch)
# The queue refuses what does not fit (100,000 by default): the application waits, so that nothing is refused.
HIGH_WATER = 90_000


def meter(event):
    if args.readme:
        name, value, _, customer, dimensions, _ = event
        return client.meter(name, value, int(time.time() * 1000), customer, dimensions)
    return client.meter(*event)


stopwatch = common.Stopwatch()
if args.rate:
    cursor = common.Cursor(args.cursor)
    chunks = common.parsed_chunks(args.input, args.limit, stopwatch)
    events = [event for chunk in chunks for event in chunk]
    # Without a cursor it is the latency that is measured: the value tells when the event was due.
    todo = islice(events, cursor.place, None) if args.cursor else cycle(events)
    for due, event in zip(common.ticks(args.rate), todo):
        # Taken from the source, as a request is that a web server handles: it does not come again.
        cursor.advance()
        name, value, *rest = event
        meter((name, value if args.cursor else int(due * 1_000_000), *rest))
else:
    for chunk in common.parsed_chunks(args.input, args.limit, stopwatch):
        while client.queue.qsize() > HIGH_WATER:
            time.sleep(0.005)
        for event in chunk:
            meter(event)
client.shutdown()
stopwatch.report()
