"""A consumer made of `kcl-rs`, a port of the Kinesis Client Library, and Amberflo's official SDK."""

import argparse
import json
import time

from kcl_rs import RecordProcessorBase, Scheduler
from metering.ingest import IngestApiClient, create_ingest_client, create_ingest_payload
from metering.session import IngestSession

import common

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", required=True, help="where Amberflo is; AWS is found by the environment")
parser.add_argument("--stream", required=True, help="its name")
parser.add_argument("--application", required=True, help="the name of the lease table")
parser.add_argument("--batch", type=int, default=1000, help="records in a request")
parser.add_argument(
    "--queue",
    action="store_true",
    help="the SDK's threaded producer, and a checkpoint as soon as it has the records; without it, requests are made in "
    "place, and the checkpoint comes after their answers",
)
args = parser.parse_args()
common.die_with_parent()

IngestSession.root_url = args.url
producer = create_ingest_client(api_key="sandbox-key", batch_size=args.batch) if args.queue else None
HIGH_WATER = 50_000


class Processor(RecordProcessorBase):
    """One for each shard, on a thread of its own."""

    def initialize(self, initialize_input):
        # A session of requests is not meant for several threads.
        self.client = IngestApiClient("sandbox-key")

    def process_records(self, process_records_input):
        records = process_records_input.records
        if not records:
            return
        events = [common.metered(json.loads(record.binary_data)) for record in records]
        if producer:
            while producer.queue.qsize() > HIGH_WATER:
                time.sleep(0.005)
            for event in events:
                producer.meter(*event)
        else:
            payloads = [create_ingest_payload(*event) for event in events]
            for start in range(0, len(payloads), args.batch):
                self.send(payloads[start : start + args.batch])
        process_records_input.checkpointer.checkpoint()

    def send(self, batch):
        # Until it is accepted: the KCL goes on to the next records after an exception.
        while True:
            try:
                return self.client.send(batch)
            except Exception:
                time.sleep(0.1)

    def lease_lost(self, lease_lost_input):
        pass

    def shard_ended(self, shard_ended_input):
        shard_ended_input.checkpointer.checkpoint()

    def shutdown_requested(self, shutdown_requested_input):
        pass


Scheduler(
    stream_name=args.stream,
    application_name=args.application,
    record_processor_factory=Processor,
    region="us-east-1",
    initial_position="TRIM_HORIZON",
    # Fan-out is its default; the stand-in for Kinesis does not speak HTTP/2.
    retrieval_mode="POLLING",
    max_records=10_000,
    idle_time_between_reads_millis=200,
    # The default of 60 s would only make its start longer.
    shard_sync_interval_millis=1000,
).run()
