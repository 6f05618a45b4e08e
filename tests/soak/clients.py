"""The clients of the soak: short and long TCP and UDP, in a process of their own; what each met is written at the end.

Run in the client's namespace as a program: the file for the journeys, and pool=VIP:TCP port:UDP port for each pool.
It goes on until SIGTERM.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.netns.lab import CLIENTS
from tests.netns.members import raise_file_limit

from .exchange import JOURNEY_SHIFT, LENGTH, Request, said

ORDINARY, VICTIMS = CLIENTS[:8], CLIENTS[8:11]  # the connections of the latter are killed now and then
PATIENCE = 15.0  # seconds that a TCP client waits for anything
TRIES, UDP_PATIENCE = 6, 2.5  # a datagram may be lost: it is sent again, as a resolver would
RESETS = 0.2  # of TCP clients end by a RST
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Kind:
    """A sort of client: so many at a time, each so many requests, a pause of seconds between them and after it."""

    name: str
    protocol: str
    clients: int
    requests: tuple[int, int]
    pause: tuple[float, float]
    rest: tuple[float, float]
    up: tuple[int, int]
    down: tuple[int, int]


# Of each pool.
KINDS = (
    Kind("TCP, short", "TCP", 5, (1, 1), (0, 0), (0.1, 0.4), (0, 500), (10, 4_000)),
    Kind("TCP, some requests", "TCP", 3, (3, 10), (0.1, 0.8), (0.1, 0.5), (0, 20_000), (10, 60_000)),
    Kind("TCP, long", "TCP", 4, (15, 60), (0.5, 1.5), (0.5, 1.0), (0, 2_000), (10, 2_000)),
    Kind("UDP, short", "UDP", 4, (1, 1), (0, 0), (0.1, 0.4), (0, 500), (10, 1_000)),
    Kind("UDP, long", "UDP", 3, (15, 60), (0.4, 1.2), (0.5, 1.0), (0, 1_000), (10, 1_000)),
    Kind("UDP, 8 kB", "UDP", 1, (1, 6), (0.2, 0.6), (0.3, 0.8), (8_000, 8_000), (8_000, 8_000)),
)


@dataclass
class Journey:
    """One connection from its first packet to its end; times are seconds of the epoch. `told`: members and peers."""

    number: int
    kind: str
    protocol: str
    pool: str
    client: str
    vip: str
    began: float
    port: int = 0
    good: float = 0.0  # when something last went well
    ended: float = 0.0
    error: str = ""
    answered: int = 0
    again: int = 0  # datagrams that were sent again
    told: list[tuple[str, str]] = field(default_factory=list)
    took: list[float] = field(default_factory=list)  # seconds of each request; of TCP the first with the handshake


class Asking:
    """Requests of one journey."""

    def __init__(self, journey: Journey, kind: Kind, rng: random.Random) -> None:
        self._journey = journey
        self._kind = kind
        self._rng = rng

    def next(self) -> Request:
        there, kind = self._journey, self._kind
        return Request(
            there.number << JOURNEY_SHIFT | there.answered, *(self._rng.randint(*x) for x in (kind.up, kind.down))
        )

    def done(self, began: float, request: Request, answer: bytes) -> None:
        there = self._journey
        who = said(request, answer)
        if who not in there.told:
            there.told.append(who)
        there.answered += 1
        there.good = time.time()
        there.took.append(there.good - began)


async def by_tcp(journey: Journey, destination: tuple[str, int], kind: Kind, rng: random.Random, count: int) -> None:
    asking, began, one = Asking(journey, kind, rng), journey.began, socket.socket()
    try:
        one.setblocking(False)
        one.bind((journey.client, 0))
        journey.port = one.getsockname()[1]
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_connect(one, destination)
    except BaseException:
        one.close()
        raise
    journey.good = time.time()
    reader, writer = await asyncio.open_connection(sock=one)
    try:
        for last in [*[False] * (count - 1), True]:
            request = asking.next()
            async with asyncio.timeout(PATIENCE):
                writer.write(request.packed())
                await writer.drain()
                length = await reader.readexactly(LENGTH.size)
                rest = await reader.readexactly(LENGTH.unpack(length)[0] + request.down)
            asking.done(began, request, length + rest)
            if not last:
                await asyncio.sleep(rng.uniform(*kind.pause))
                began = time.time()
    finally:
        if rng.random() < RESETS and not writer.transport.is_closing():
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        writer.close()


async def by_udp(journey: Journey, destination: tuple[str, int], kind: Kind, rng: random.Random, count: int) -> None:
    loop, asking = asyncio.get_running_loop(), Asking(journey, kind, rng)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setblocking(False)
        one.bind((journey.client, 0))
        one.connect(destination)
        journey.port, journey.good = one.getsockname()[1], time.time()
        for _ in range(count):
            request, began = asking.next(), time.time()
            for attempt in range(TRIES):
                await loop.sock_sendall(one, request.packed())
                with suppress(TimeoutError):
                    async with asyncio.timeout(UDP_PATIENCE):
                        asking.done(began, request, await answer_to(one, request))
                        break
                journey.again += attempt < TRIES - 1
            else:
                raise TimeoutError(f"no answer to {TRIES} datagrams")
            await asyncio.sleep(rng.uniform(*kind.pause))


async def answer_to(one: socket.socket, request: Request) -> bytes:
    """The datagram that answers it; a late answer to one before it is passed over."""
    while True:
        answer = await asyncio.get_running_loop().sock_recv(one, 1 << 16)
        with suppress(ValueError):
            said(request, answer)
            return answer
        earlier = request._replace(number=request.number - 1)
        if request.number & (1 << JOURNEY_SHIFT) - 1 == 0 or not is_answer(earlier, answer):
            raise ValueError(f"request {request.number:x}: the answer's bytes are no one's")


def is_answer(request: Request, raw: bytes) -> bool:
    (length,) = LENGTH.unpack_from(raw)
    with suppress(ValueError):
        said(request._replace(down=len(raw) - LENGTH.size - length), raw)
        return True
    return False


class Crowd:
    """All of them; `journeys` are those that are over."""

    def __init__(self, seed: int) -> None:
        self.over = asyncio.Event()
        self.journeys: list[Journey] = []
        self._numbers = itertools.count(1)
        self._seed = seed

    async def live(self, kind: Kind, place: int, pool: str, destination: tuple[str, int]) -> None:
        """One client's life: journey after journey."""
        rng = random.Random(f"{self._seed} {kind.name} {place} {pool}")
        go = by_tcp if kind.protocol == "TCP" else by_udp
        while not self.over.is_set():
            sources = (*ORDINARY, *VICTIMS) if pool == "rough" else ORDINARY
            vip = f"{destination[0]}:{destination[1]}"
            journey = Journey(
                next(self._numbers), kind.name, kind.protocol, pool, rng.choice(sources), vip, time.time()
            )
            async with self._kept(journey):
                await go(journey, destination, kind, rng, rng.randint(*kind.requests))
            with suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), rng.uniform(*kind.rest))

    @asynccontextmanager
    async def _kept(self, journey: Journey) -> AsyncIterator[None]:
        try:
            yield
        except (OSError, EOFError, ValueError) as error:
            journey.error = f"{type(error).__name__}: {error}"
        journey.ended = time.time()
        self.journeys.append(journey)


async def run(file: Path, seed: int, pools: list[str]) -> None:
    raise_file_limit()
    crowd, loop = Crowd(seed), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, crowd.over.set)
    async with asyncio.TaskGroup() as tasks:
        for pool in pools:
            name, where = pool.split("=")
            vip, tcp, udp = where.split(":")
            for kind in KINDS:
                destination = (vip, int(tcp if kind.protocol == "TCP" else udp))
                for place in range(kind.clients):
                    tasks.create_task(crowd.live(kind, place, name, destination))
    with file.open("w") as written:
        for journey in crowd.journeys:
            written.write(json.dumps(asdict(journey)) + "\n")


def journeys(file: Path) -> list[Journey]:
    """What was written."""
    found = [Journey(**json.loads(line)) for line in file.read_text().splitlines()]
    for one in found:
        one.told = [(member, peer) for member, peer in one.told]
    return found


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
