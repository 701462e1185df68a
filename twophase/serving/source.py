"""Where the release comes from that a place wants served: a folder, or an address that it is fetched from first.

The first of these that is set: `TWOPHASE_MODEL`, `AZUREML_MODEL_DIR`, `AIP_STORAGE_URI` (Vertex AI); then `/mnt/models`
where it holds a release (KServe has fetched it by then), `STORAGE_URI`, `/opt/ml/model` (SageMaker).
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from twophase.errors import TwoPhaseError, UsageError
from twophase.release.manifest import EXTRA

VARIABLES = ("TWOPHASE_MODEL", "AZUREML_MODEL_DIR", "AIP_STORAGE_URI")
MOUNTED, SAGEMAKER = Path("/mnt/models"), Path("/opt/ml/model")


def release_of(environment: Mapping[str, str]) -> Path:
    """The folder of the release that the place names, fetched if need be.

    Raises `UsageError` when nothing is named, `TwoPhaseError` when what is named cannot be had.
    """
    for name in VARIABLES:
        if environment.get(name):
            return _had(environment[name], name)
    if _holds_release(MOUNTED):
        return release_in(MOUNTED)
    if environment.get("STORAGE_URI"):
        return _had(environment["STORAGE_URI"], "STORAGE_URI")
    if _holds_release(SAGEMAKER):
        return release_in(SAGEMAKER)
    raise UsageError(
        f"no release is in {MOUNTED} or {SAGEMAKER}; name a release folder, or an address of one, in {VARIABLES[0]}"
    )


def release_in(folder: Path) -> Path:
    """`folder`, or the one folder in it, that holds a release: Azure and archives put a model's name in between.

    Raises `UsageError` when neither does.
    """
    found = next((c for c in _candidates(folder) if _is_release(c)), None)
    if found is None:
        raise UsageError(f"{folder}: holds no release; give a folder that `twophase` exported")
    return found


def _had(named: str, variable: str) -> Path:
    if "://" not in named:
        return release_in(Path(named))
    # In a process of its own: the store's threads and memory are gone before workers are forked.
    run = subprocess.run([sys.executable, "-m", "twophase.serving.fetch", named], capture_output=True, text=True)
    if run.returncode:
        *_, why = run.stderr.strip().split("\n")
        raise TwoPhaseError(f"{variable}: {why}")
    return Path(run.stdout.strip())


def _holds_release(folder: Path) -> bool:
    return any(map(_is_release, _candidates(folder)))


def _candidates(folder: Path) -> list[Path]:
    return [folder, *sorted(p for p in folder.iterdir() if p.is_dir())] if folder.is_dir() else []


def _is_release(folder: Path) -> bool:
    return (folder / EXTRA / "release.json").is_file()
