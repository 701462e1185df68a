"""Small releases of different ids for the tests of targets: made once a session, in a second each."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.serving.standin import make


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Three releases that answer differently."""
    folder = tmp_path_factory.mktemp("releases")
    first, second, third = (make(folder / str(seed), seed) for seed in (1, 2, 3))
    return first, second, third


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve clips."""
    folder, random = tmp_path_factory.mktemp("clips"), np.random.default_rng(3)
    found = []
    for i in range(12):
        out = io.BytesIO()
        soundfile.write(out, 0.1 * random.normal(size=4_000 * (1 + i % 4)), 8_000, format="WAV")
        found.append(folder / f"{i:02}.wav")
        found[-1].write_bytes(out.getvalue())
    return found
