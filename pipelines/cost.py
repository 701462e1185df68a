"""What a run is likely to cost: machine-hours by step, from a table that the user can edit (prices.toml).

An estimate, said before anything is asked for: the table's hours are assumptions, and caching may skip most of them.
"""

import importlib.resources
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.places import Machines
from twophase.errors import TwoPhaseError

STEP_MACHINE = "e2-standard-4"
"""What Vertex AI runs a step on that asks for nothing else."""

TRAINING = ("train-gate", "train-classifier")


@dataclass(frozen=True)
class Line:
    """A step, the machine it runs on, how long, and what that costs in US dollars."""

    step: str
    machine: str
    hours: float
    dollars: float


def estimate(clips: int, machines: Machines, prices: Path | None = None) -> list[Line]:
    """The lines of a run over so many clips. Raises `TwoPhaseError` where the table lacks a price."""
    table = _table(prices)
    lines = []
    for step, (start, per_100k) in table["hours"].items():
        training = step in TRAINING
        machine = machines.machine_type if training else STEP_MACHINE
        price = _price(table, "machine_hour", machine, prices)
        if training and machines.accelerator_type:
            price += machines.accelerator_count * _price(table, "accelerator_hour", machines.accelerator_type, prices)
            machine += f" + {machines.accelerator_count} {machines.accelerator_type}"
        if training and machines.spot:
            price *= table["spot_share"]
            machine += " (spot)"
        if training and machines.replicas > 1:  # as if each took as long as one alone: at most so much
            price *= machines.replicas
            machine = f"{machines.replicas} x {machine}"
        hours = start + per_100k * clips / 100_000
        lines.append(Line(step, machine, hours, hours * price))
    return [*lines, Line("the run itself", "", 0.0, table["run"]["vertex"])]


def _table(prices: Path | None) -> dict[str, Any]:
    path = prices or Path(str(importlib.resources.files("pipelines"))) / "prices.toml"
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TwoPhaseError(f"{path}: this price table cannot be read ({error}); give one like prices.toml") from None


def _price(table: dict[str, Any], kind: str, name: str, prices: Path | None) -> float:
    known = table[kind]
    if name not in known:
        where = prices or "pipelines/prices.toml"
        raise TwoPhaseError(f"{where}: has no [{kind}] for {name}; add its price (it has {', '.join(known)})")
    return float(known[name])
