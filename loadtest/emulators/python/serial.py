"""moto's server, with what long runs need of it.

DynamoDB: of two conditional writes of one row only one can win. moto serves in threads, and checks a condition and writes the
row without a lock in between.

SQS: a queue of thousands of letters is as quick as a short one. moto counts the messages of the queue several times for each
that it takes or gives out, and asks the clock anew for each that it counts: ten letters then take a second, in which the other
services of the process wait too, and leases are lost.
"""

import functools
import threading

from moto import server
from moto.core.utils import unix_time_millis
from moto.dynamodb.responses import DynamoHandler
from moto.sqs.models import Queue

lock = threading.Lock()
call_action = DynamoHandler.call_action


@functools.wraps(call_action)
def one_at_a_time(handler):
    with lock:
        return call_action(handler)


def visible(queue):
    now = unix_time_millis()
    return [m for m in queue._messages if m.visible_at < now and m.delayed_until <= now]


def hidden(queue):
    now = unix_time_millis()
    return sum(m.visible_at >= now for m in queue._messages)


def delayed(queue):
    now = unix_time_millis()
    return sum(m.delayed_until > now for m in queue._messages)


DynamoHandler.call_action = one_at_a_time
Queue.messages = property(visible)
Queue.approximate_number_of_messages_not_visible = property(hidden)
Queue.approximate_number_of_messages_delayed = property(delayed)

if __name__ == "__main__":
    server.main()
