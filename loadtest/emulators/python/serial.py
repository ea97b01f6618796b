"""moto's server, with what long runs need of it.

DynamoDB: of two conditional writes of one row only one can win. moto serves in threads, and checks a condition and writes the
row without a lock in between.

SQS: what a receive costs does not grow with the square of the queue. moto counts all messages three times for each that it
gives out, to learn how long the queue keeps them; some hundred letters then take longer to pass than they stay hidden.
"""

import functools
import threading
import time

from moto import server
from moto.dynamodb.responses import DynamoHandler
from moto.sqs.models import SQSBackend

lock = threading.Lock()
call_action = DynamoHandler.call_action


@functools.wraps(call_action)
def one_at_a_time(handler):
    with lock:
        return call_action(handler)


def is_kept(backend, queue_name, message):
    keeps_for = backend.get_queue(queue_name).message_retention_period
    return keeps_for + message.sent_timestamp / 1000 > time.time()


DynamoHandler.call_action = one_at_a_time
SQSBackend.is_message_valid_based_on_retention_period = is_kept

if __name__ == "__main__":
    server.main()
