"""Clients that keep their connection and think between requests, in a process of their own.

``python keepalive_clients.py PORT THINK[,THINK…] [KEEPALIVE]`` prints ``{"sent": …, "failed": […]}`` at SIGTERM. A
client reuses its connection without looking whether the server closed it, as many do: only an answer that said
``Connection: close`` makes it open another. One that comes back later than the server's KEEPALIVE seconds allow, on a
machine that stood still, may find it closed: that is no failure.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time


async def client(port: int, think: float, keepalive: float, stop: asyncio.Event, sent: list[float],
                 failed: list[str]) -> None:
    """One client."""
    began = written = 0.0
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while not stop.is_set():
        sent.append(think)
        last, began, written, kept = began, time.monotonic(), 0.0, streams is not None
        try:
            if streams is None:
                streams = await asyncio.open_connection("127.0.0.1", port)
            reader, writer = streams
            writer.write(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
            await writer.drain()
            written = time.monotonic()
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            headers = head.decode().lower()
            length = int(headers.partition("content-length:")[2].split()[0])
            await reader.readexactly(length)
            if not headers.startswith("http/1.1 200"):
                failed.append(f"{think}: {headers[:20]}")
            if "connection: close" in headers:
                writer.close()
                streams = None
        except Exception as error:
            # the server counts from its last answer on, which was not before that was asked for
            if not kept or (written or time.monotonic()) - last < keepalive:
                failed.append(f"{think}: {type(error).__name__}")
            streams = None
        await asyncio.sleep(think)


async def main(port: int, thinks: list[float], keepalive: float) -> None:
    """All clients, then the figures."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    sent: list[float] = []
    failed: list[str] = []
    await asyncio.gather(*(client(port, think, keepalive, stop, sent, failed) for think in thinks))
    print(json.dumps({"sent": len(sent), "failed": failed}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), [float(think) for think in sys.argv[2].split(",")],
                     float(sys.argv[3]) if len(sys.argv) > 3 else float("inf")))
