"""`python -m twophase.device STATE [SOURCE]`: `twophase device run` without the command line's packages.

They take 8 MB that a device has better uses for: the systemd unit and the image start this. Ends well on SIGTERM.
"""

import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from twophase.device.agent import Agent, log_to
from twophase.device.config import read
from twophase.errors import TwoPhaseError


def main() -> None:
    """Run until the source ends or the process is told to end. Exit codes as the command line's."""
    if not 2 <= len(sys.argv) <= 3:
        sys.exit("usage: python -m twophase.device STATE [SOURCE]")
    state = Path(sys.argv[1]).absolute()
    signal.signal(signal.SIGTERM, _end)
    try:
        config = read(state / "device.toml")
        log_to(state, also_stderr=sys.stderr.isatty())
        Agent(state, replace(config, source=sys.argv[2]) if sys.argv[2:] else config).run()
    except KeyboardInterrupt:
        pass
    except TwoPhaseError as error:
        sys.stderr.write(f"twophase: {error}\n")
        sys.exit(error.exit_code)


def _end(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once is enough: the second would cut short what the first ends well
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
