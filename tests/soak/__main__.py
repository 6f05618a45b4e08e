"""`make soak`: a gateway under load for a long time, then held against what it was before. Status 1: it differs."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.netns.lab import private_mounts

from . import report
from .run import soak

MINUTES = 20.0
RUN = "## A run\n\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of load (%(default)g)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of all chances; of the clock unless given")
    parser.add_argument("--docs", type=Path, help="a page whose last part, from its last title on, is this run")
    asked = parser.parse_args()
    private_mounts()
    books = soak(60 * asked.minutes, asked.seed, lambda line: print(line, flush=True))
    found = report.findings(books)
    page = report.page(books, found)
    print(page)
    print(report.shown(found))
    if asked.docs:
        text = asked.docs.read_text()
        asked.docs.write_text(text[: text.index(RUN) + len(RUN)] + page)
    return 0 if all(one.good for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
