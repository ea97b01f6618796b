"""moto's server, with DynamoDB's promise that of two conditional writes of one row only one can win.

moto serves in threads, and checks a condition and writes the row without a lock in between.
"""

import functools
import threading

from moto import server
from moto.dynamodb.responses import DynamoHandler

lock = threading.Lock()
call_action = DynamoHandler.call_action


@functools.wraps(call_action)
def one_at_a_time(handler):
    with lock:
        return call_action(handler)


DynamoHandler.call_action = one_at_a_time

if __name__ == "__main__":
    server.main()
