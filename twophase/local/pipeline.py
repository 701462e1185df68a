"""One pipeline job, in a process of its own: `python -m twophase.local.pipeline JOB`, through Kubeflow's local runner.

    JOB/job.json   the compiled spec, its arguments, the root of its outputs, whether to cache
    JOB/log        everything that the runner and the steps print; the state of each task is read from it

The process leads a process group, and ends it when the platform is gone: a pipeline does not outlive who knows of it.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twophase.errors import UsageError
from twophase.progress import parse

_COLOUR = re.compile(r"\x1b\[\d+m")
_STARTED = re.compile(r"Executing task '([^']+)'")
_ENDED = re.compile(r"Task '([^']+)' finished with status (\w+)")
_FATAL = re.compile(r"Inner task failed: '([^']+)'")
_RAISED = re.compile(r"^( *)Traceback \(most recent call last\):\n(?:\1 .*\n)+((?:\1\S.*\n?)+)", re.MULTILINE)
_KINDS: dict[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
}
_STATES = {"SUCCESS": "SUCCEEDED", "FAILURE": "FAILED", "SKIPPED": "SKIPPED"}


def run(job: Path) -> None:
    """Run the pipeline in `job`; raises when a task fails."""
    from kfp import components, local

    plan = json.loads((job / "job.json").read_text())
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=plan["root"],
        raise_on_error=True,
        enable_caching=plan["caching"],
    )
    components.load_component_from_text(json.dumps(plan["spec"]))(**checked(plan["spec"], plan["arguments"]))


def checked(spec: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Arguments as the pipeline takes them: in JSON a whole number may come as a float.

    Raises `UsageError` naming the first that the pipeline lacks, does not know, or takes as another type.
    """
    name = spec["pipelineInfo"]["name"]
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    taken = {}
    for parameter, value in given.items():
        if parameter not in known:
            raise UsageError(f"{parameter}: is no parameter of {name}; it has {', '.join(sorted(known))}")
        kind = known[parameter]["parameterType"]
        if kind == "NUMBER_INTEGER" and isinstance(value, float) and value.is_integer():
            value = int(value)
        fits = isinstance(value, _KINDS.get(kind, (object,))) and (kind == "BOOLEAN" or not isinstance(value, bool))
        if not fits:
            raise UsageError(f"{parameter}: {value!r} does not fit; {name} takes a {kind} there")
        taken[parameter] = value
    for parameter, facts in known.items():
        if parameter not in given and "defaultValue" not in facts and not facts.get("isOptional"):
            raise UsageError(f"{parameter}: {name} needs it, a {facts['parameterType']}; give it among its arguments")
    return taken


@dataclass(frozen=True)
class Task:
    """Where a task stands, as the API says it, and what it said last where it failed."""

    state: str
    error: str = ""


def tasks(log: str) -> dict[str, Task]:
    """The tasks that a log tells of, in the order in which they started.

    Those of a loop share one name, as a task does that is tried again: the last word counts, and that of the whole
    pipeline, which names the one that it failed for.
    """
    found: dict[str, Task] = {}
    began: dict[str, int] = {}
    failures: dict[str, Task] = {}
    lines = _COLOUR.sub("", log).splitlines()
    for at, line in enumerate(lines):
        if started := _STARTED.search(line):
            began.setdefault(started[1], at)
            found[started[1]] = Task("RUNNING")
        elif (ended := _ENDED.search(line)) and ended[1] in began:
            found[ended[1]] = Task(_STATES.get(ended[2], "FAILED"))
            if found[ended[1]].state == "FAILED":
                found[ended[1]] = failures[ended[1]] = Task("FAILED", _error(lines[began[ended[1]] : at]))
        elif (fatal := _FATAL.search(line)) and fatal[1] in failures:
            found[fatal[1]] = failures[fatal[1]]
    return found


def _error(said: list[str]) -> str:
    """Why a step failed: what it says itself (progress.py), else its exception, else what it said last."""
    if errors := [event.error for event in map(parse, said) if event and event.error]:
        return errors[-1]
    if raised := _RAISED.findall("\n".join(said)):
        return " ".join(raised[-1][1].split())
    last = next((line.strip() for line in reversed(said) if line.strip()), "")
    return f"ended without a message; the last line of its output is: {last}"


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGTERM)


def main() -> int:
    """Run the job in the folder that the command names."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        run(Path(sys.argv[1]))
    except Exception as error:  # whatever a step or the runner raised is the job's reason to fail
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
