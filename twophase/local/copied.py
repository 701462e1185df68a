"""Models that lie in buckets of a cloud, copied here by the packages that clips are read with (`twophase[google]`).

A copy that is cut off leaves a folder in `home/copies`, which nothing reads and the next start removes.
"""

from pathlib import Path, PurePosixPath

from twophase.audio import sources
from twophase.errors import TwoPhaseError
from twophase.local.buckets import Elsewhere
from twophase.serving.refusal import Refusal

MOST_BYTES = 4 << 30
"""Largest model that is copied, so that a wrong name does not fill the disk."""


def copy(elsewhere: Elsewhere, folder: Path) -> None:
    """Copy what lies below the address that was asked for into `folder`. Raises `Refusal`."""
    size = 0
    try:
        for found in sources.listing(elsewhere.uri):
            if ".." in PurePosixPath(found.name).parts:
                raise Refusal(400, f"{elsewhere.uri}: holds {found.name!r}, which leads out of it; this is no model")
            data = sources.read(found.location)
            size += len(data)
            if size > MOST_BYTES:
                raise Refusal(400, f"{elsewhere.uri}: holds over {MOST_BYTES} bytes; give the folder of one model")
            path = folder / found.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    except Refusal:
        raise
    except OSError as error:
        raise Refusal(507, f"{folder}: cannot be written ({error.strerror}); free some room and try again") from None
    except TwoPhaseError as error:
        raise Refusal(404, f"{elsewhere}; and it could not be copied: {error}") from None
    if not size:
        raise Refusal(404, f"{elsewhere}; and nothing is below {elsewhere.uri}")
