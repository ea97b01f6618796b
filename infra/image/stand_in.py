"""A name server, and TLS in front of plain HTTP, for verify.sh: what a container has around it in AWS.

    stand_in.py NAME-SERVER-ADDRESS CERTIFICATE KEY READY-FILE NAME=ADDRESS=UPSTREAM-PORT...

Every NAME resolves to its loopback ADDRESS; there port 443 takes TLS, and passes what it decrypts on to 127.0.0.1:PORT.
Names that were asked for are printed, one a line.
"""

import asyncio
import socket
import ssl
import sys
from pathlib import Path

A, IN = 1, 1


class Names(asyncio.DatagramProtocol):
    """Answers queries for addresses; all other names do not exist."""

    def __init__(self, addresses):
        self.addresses = addresses

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, query, peer):
        labels, place = [], 12
        while query[place]:
            labels.append(query[place + 1 : place + 1 + query[place]].decode())
            place += 1 + query[place]
        question = query[12 : place + 5]
        name, kind = ".".join(labels).lower(), int.from_bytes(query[place + 1 : place + 3], "big")
        print(name, flush=True)
        address = self.addresses.get(name)
        records = b""
        if address and kind == A:
            records = b"\xc0\x0c" + bytes([0, A, 0, IN, 0, 0, 0, 1, 0, 4]) + socket.inet_aton(address)
        code = 0 if address else 3
        head = query[:2] + bytes([0x85, 0x80 | code]) + b"\0\1" + (b"\0\1" if records else b"\0\0") + b"\0\0\0\0"
        self.transport.sendto(head + question + records, peer)


async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()


async def main(name_server, certificate, key, ready, *mappings):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    addresses = {}
    for mapping in mappings:
        name, address, port = mapping.split("=")
        addresses[name] = address

        async def passed_on(reader, writer, port=port):
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", int(port))
            await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))

        await asyncio.start_server(passed_on, address, 443, ssl=context)
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: Names(addresses), local_addr=(name_server, 53))
    Path(ready).touch()
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
