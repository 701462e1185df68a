"""Clips on disk for the tests of this room: synthesised ones, and windows of the real recordings where they are."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.audio.buckets import amazon, azurite, bucket, fresh, front, google, microsoft
from tests.audio.clips import write_folder
from twophase.audio.decode import decode
from twophase.audio.frontend import FRONT_END, Floats
from twophase.audio.windows import audible, cut

__all__ = ["amazon", "azurite", "bucket", "fresh", "front", "google", "microsoft"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder of 36 clips in three labels."""
    return write_folder(tmp_path / "data")


@pytest.fixture(scope="session")
def recordings_windows() -> Floats:
    """The audible windows of 40 real recordings of all kinds, or none where `TWOPHASE_RECORDINGS` names no folder."""
    named = os.environ.get("TWOPHASE_RECORDINGS", "")
    files = sorted((Path(named) / "clips").iterdir()) if named and (Path(named) / "clips").is_dir() else []
    chosen = [cut(decode(path)) for path in files[:: max(1, len(files) // 40)]]
    return np.concatenate([np.empty((0, FRONT_END.samples), np.float32), *(w[audible(w)] for w in chosen)])
