"""`python -m twophase.serving [serve]`: the server image's command; SageMaker appends the argument `serve`."""

import os
import sys

from twophase.errors import TwoPhaseError
from twophase.serving.server import port_of, release_of, serve


def main() -> int:
    """Serve what the environment names; the exit code says how it ended."""
    try:
        serve(release_of(os.environ), port_of(os.environ))
    except TwoPhaseError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
