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
from pathlib import Path
from typing import Any

_COLOUR = re.compile(r"\x1b\[\d+m")
_STARTED = re.compile(r"Executing task '([^']+)'")
_ENDED = re.compile(r"Task '([^']+)' finished with status (\w+)")
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
    components.load_component_from_text(json.dumps(plan["spec"]))(**arguments(plan["spec"], plan["arguments"]))


def arguments(spec: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Arguments as the pipeline takes them: JSON carries every number as a float."""
    kinds = spec.get("root", {}).get("inputDefinitions", {}).get("parameters", {})
    whole = {name for name, kind in kinds.items() if kind.get("parameterType") == "NUMBER_INTEGER"}
    return {name: int(value) if name in whole else value for name, value in given.items()}


def tasks(log: str) -> dict[str, str]:
    """The state of each task that a log tells of, in the order in which they started."""
    found: dict[str, str] = {}
    for line in _COLOUR.sub("", log).splitlines():
        if started := _STARTED.search(line):
            found[started[1]] = "RUNNING"
        elif ended := _ENDED.search(line):
            found[ended[1]] = _STATES.get(ended[2], "FAILED")
    return found


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
