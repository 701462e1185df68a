"""`python -m twophase.local --home DIR [--port N] [--bucket NAME=DIR]...`: the platform in the foreground."""

import argparse
import logging
import os
import sys
from pathlib import Path

from twophase.errors import TwoPhaseError
from twophase.local.server import run


def main() -> int:
    """Run until told to stop; the exit code says how it ended. The token comes from `TWOPHASE_TOKEN`."""
    parser = argparse.ArgumentParser(prog="python -m twophase.local", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--bucket", action="append", default=[], metavar="NAME=DIR")
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    buckets = {name: Path(folder).absolute() for name, _, folder in (b.partition("=") for b in given.bucket)}
    try:
        run(given.home, given.port, given.host, buckets, os.environ.get("TWOPHASE_TOKEN"))
    except TwoPhaseError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
