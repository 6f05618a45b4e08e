"""`ipbackend capture`: packets as they come and as they leave, to a file or to Wireshark."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click

from ipbackend import pcapng
from ipbackend.client import Client

STDOUT = Path("-")
PATH = "/ipbackend/capture"
TAIL = 4096  # bytes that are enough for what a file ends with


@click.command()
@click.option("-w", "--write", "file", required=True, type=click.Path(path_type=Path), help="The file, or -.")
@click.option("--client", metavar="ADDRESS[/LENGTH]", help="Only packets from and to this client, or these.")
@click.option("--vip", metavar="ADDRESS", help="Only of this VIP's connections.")
@click.option("--port", type=int, help="Only of connections to this port of a VIP.")
@click.option("--member", metavar="ADDRESS[:PORT]", help="Only from and to this member.")
@click.option("--verdict", multiple=True, help="Only packets that ended so, such as DROP_TTL; may be repeated.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many packets.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="End after so long.")
@click.option("--rate", type=int, help="Packets a second at most; others are counted.  [default: 1000]")
@click.option("--snaplen", type=int, help="Bytes kept of each frame.  [default: 2048]")
@click.pass_obj
def capture(run_directory: Path, /, file: Path, **wanted: Any) -> None:
    """Capture packets before and after the rewrite, as pcapng; each says in a comment what became of it.

    Ends with Ctrl-C, and says how many packets it had to leave out. What is not for an address of ours is captured
    only if its verdict, PASS_NOT_OURS, is asked for. While it runs, packets go through programs that show them; it
    takes some seconds to begin, and nothing else is changed meanwhile.

    \b
    Example: ipbackend capture --client 203.0.113.7 -w problem.pcapng
             ipbackend capture --verdict REJECT_ALL_FULL -w - | tshark -r -
    """
    if file == STDOUT and sys.stdout.isatty():
        raise click.UsageError("this is a terminal (write to a file, or to a pipe such as `| tshark -r -`)")
    with Client(run_directory) as client:
        tail = b""
        pieces = client.stream(PATH, **{name: value for name, value in wanted.items() if value not in (None, ())})
        first = next(pieces)
        with _opened(file) as output, _ending(run_directory):
            for piece in _all(first, pieces):
                output.write(piece)
                output.flush()
                tail = (tail + piece)[-TAIL:]
    click.echo(pcapng.closing(tail) or "the daemon went away before the end", err=True)


def _all(first: bytes, others: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from others


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    if file == STDOUT:
        yield sys.stdout.buffer
        return
    try:
        output = file.open("wb")
    except OSError as error:
        raise click.FileError(str(file), error.strerror) from error
    with output:
        yield output


@contextmanager
def _ending(run_directory: Path) -> Iterator[None]:
    """A signal ends the capture, and what has been captured by then is still read; another one ends us."""

    def end(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        with Client(run_directory) as client:
            client.request("DELETE", PATH)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
