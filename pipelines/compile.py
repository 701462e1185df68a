"""The checked-in specs: compiled from the pipelines, the same bytes every time.

compiled/two_phase.local.yaml           every step on this machine
compiled/two_phase.vertex.yaml          Vertex AI Pipelines, with Google's components
compiled/two_phase.kubeflow.yaml        Kubeflow Pipelines
compiled/batch_prediction.local.yaml    a batch, through the API at an address
compiled/batch_prediction.vertex.yaml   a batch, with Google's components
"""

import importlib.resources
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twophase.errors import TwoPhaseError

if TYPE_CHECKING:
    from pipelines.places import Place

SPECS = (
    "two_phase.local",
    "two_phase.vertex",
    "two_phase.kubeflow",
    "batch_prediction.local",
    "batch_prediction.vertex",
)


def spec_path(name: str) -> Path:
    """Where a compiled spec lies: in the repository, or in the installed package."""
    return Path(str(importlib.resources.files("compiled"))) / f"{name}.yaml"


def read_spec(place: str | Path) -> dict[str, Any]:
    """A compiled spec: one of `compiled/` by name, or a file. Raises `TwoPhaseError` when another kfp compiled it."""
    import kfp
    import yaml

    path = spec_path(str(place)) if spec_path(str(place)).is_file() else Path(place)
    try:
        document = next(yaml.safe_load_all(path.read_text("utf-8")))
        version = document["sdkVersion"]
    except (OSError, yaml.YAMLError, StopIteration, KeyError, TypeError) as error:
        raise TwoPhaseError(f"{path}: is no compiled pipeline ({error}); `twophase compile` writes them") from None
    if version != f"kfp-{kfp.__version__}":
        raise TwoPhaseError(
            f"{path}: was compiled by {version}, here is kfp-{kfp.__version__}; compile it again: `twophase compile`"
        )
    return dict(document)


def compile_spec(name: str, place: "Place | None" = None) -> str:
    """The YAML of `PIPELINE.PLACE`, freshly compiled; another `place` than the name's default for other machines."""
    from kfp import compiler

    from pipelines.batch_prediction import batch_prediction
    from pipelines.places import PLACES
    from pipelines.two_phase import two_phase

    pipeline, _, where = name.partition(".")
    drawn = {"two_phase": two_phase, "batch_prediction": batch_prediction}[pipeline](place or PLACES[where]())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        compiler.Compiler().compile(drawn, str(path))
        return path.read_text("utf-8")


def compile_all(folder: Path) -> list[Path]:
    """Write every spec into `folder`."""
    from twophase.files import replacing

    paths = []
    for name in SPECS:
        paths.append(folder / f"{name}.yaml")
        with replacing(paths[-1], "w") as file:
            file.write(compile_spec(name))
    return paths
