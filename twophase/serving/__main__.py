"""`python -m twophase.serving [serve]`: the server image's command; SageMaker appends the argument `serve`."""

import os
import sys

from twophase.errors import TwoPhaseError
from twophase.serving.server import end_on_signals, port_of, serve, serve_many
from twophase.serving.source import release_of


def main() -> int:
    """Serve what the environment names; the exit code says how it ended."""
    end_on_signals()  # also while a release is fetched: as process 1 of a container there is no default
    try:
        port = port_of(os.environ)
        if os.environ.get("SAGEMAKER_MULTI_MODEL") == "true":
            serve_many(port)
        else:
            serve(release_of(os.environ), port)
    except TwoPhaseError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
