"""The checked-in specs: compiled from the pipelines, the same bytes every time.

compiled/two_phase.local.yaml    every step on this machine
"""

import importlib.resources
import tempfile
from pathlib import Path

SPECS = ("two_phase.local",)


def spec_path(name: str) -> Path:
    """Where a compiled spec lies: in the repository, or in the installed package."""
    return Path(str(importlib.resources.files("compiled"))) / f"{name}.yaml"


def compile_spec(name: str) -> str:
    """The spec's YAML, freshly compiled."""
    from kfp import compiler

    from pipelines.two_phase import two_phase

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        compiler.Compiler().compile(two_phase, str(path))
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
