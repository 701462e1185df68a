"""What every benchmark here shares: peers measured in turns, the machine by name, a table and, last, one JSON object.

A benchmark is a script with `run() -> dict`, which returns
    {"benchmark": name, "machine": {...},
     "rows": [{"name", "value", "unit"}, ...], "goals": [{"name", "ratio", "goal", "met"}, ...]}
and ends with `emit(run())`. `run` prints nothing on standard output, so that its result can be used as it is.
"""

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

PACKAGES = ("numpy", "scipy", "tensorflow", "keras", "ai-edge-litert", "pillow")


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code: processor, cores, versions, date and how busy the machine was."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "date": datetime.now(UTC).date().isoformat(),
    }


def in_turns(peers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of what each peer measures, over rounds of all peers (A B C A B C ...), after one round of warming up.

    Taking turns spreads whatever else the machine does over all peers. Progress, and what peers print, goes to stderr.
    """
    figures: dict[str, list[float]] = {name: [] for name in peers}
    console = Console(stderr=True)
    with redirect_stdout(sys.stderr):
        for turn in track(range(rounds + 1), description="Measuring", console=console):
            for name, measure in peers.items():
                figure = measure()
                if turn:
                    figures[name].append(figure)
    return {name: statistics.median(values) for name, values in figures.items()}


def row(name: str, value: float, unit: str) -> dict[str, Any]:
    """One figure."""
    return {"name": name, "value": value, "unit": unit}


def at_least(name: str, ratio: float, goal: float) -> dict[str, Any]:
    """A goal that is met by a ratio of `goal` or more."""
    return {"name": name, "ratio": round(ratio, 3), "goal": f">= {goal:g}", "met": ratio >= goal}


def at_most(name: str, ratio: float, goal: float) -> dict[str, Any]:
    """A goal that is met by a ratio of `goal` or less."""
    return {"name": name, "ratio": round(ratio, 3), "goal": f"<= {goal:g}", "met": ratio <= goal}


def emit(result: dict[str, Any]) -> None:
    """Print a result: the table for people, then the JSON object on the last line."""
    console = Console()
    table = Table("what", "figure", "unit", title=result["benchmark"])
    for figure in result["rows"]:
        table.add_row(
            figure["name"],
            f"{figure['value']:,.4g}" if figure["value"] < 100 else f"{figure['value']:,.0f}",
            figure["unit"],
        )
    console.print(table)
    goals = Table("goal", "wanted", "measured", "met")
    for goal in result["goals"]:
        goals.add_row(goal["name"], goal["goal"], f"{goal['ratio']:,.3g}", "[green]yes" if goal["met"] else "[red]no")
    console.print(goals)
    print(json.dumps(result))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
