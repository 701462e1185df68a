"""The work of a batch prediction job, in processes of its own: `python -m twophase.local.batch JOB PROCESS COUNT`.

    JOB/plan.json     what to read, with what, and where to; written once, when the job starts
    JOB/00042.json    how many inputs of shard 42 were answered and refused: the shard's outputs are whole
    OUTPUT/prediction.results-00042-of-00100        {"instance" or KEY: ..., "prediction": ...}
    OUTPUT/prediction.errors_stats-00042-of-00100   {"instance" or KEY: ..., "error": {"code", "message"}}

A shard is a fixed range of inputs, its files are written whole or not at all, and its marker last. A process that
starts again goes on at the first shard without a marker, so however often a job is killed, each input is in the output
once. Memory holds one input and one prediction. No state is shared: process PROCESS does every COUNTth shard.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from twophase.errors import TwoPhaseError
from twophase.files import JSON, read_json, replacing, write_json
from twophase.local.buckets import relative
from twophase.release.manifest import EXTRA
from twophase.serving.instances import LIMITS, images_of
from twophase.serving.predictor import Predictor
from twophase.serving.refusal import Refusal

SHARD = 1000
"""Inputs in a shard: what a kill may cost, a quarter of a second of work."""
_Predict = Callable[[Any, str], Any]
"""The prediction of an instance, and how errors call that."""
_BUFFER = 1 << 20  # an instance is some 40 kB, which the default of 8 kB takes six reads and joins for


@dataclass(frozen=True)
class Plan:
    """Everything a job's processes need to know."""

    model: str
    """Folder of the release, or of another SavedModel."""
    inputs: list[tuple[str, int, int]]
    """Path, size and time of change in nanoseconds of each input file: a job does not go on with other inputs."""
    format: str
    """`jsonl`, or `file-list` with one file a line."""
    buckets: dict[str, str]
    """Where the `gs://` names of a file list lie."""
    output: str
    """Folder of the results."""
    total: int
    """How many inputs there are."""
    starts: list[tuple[int, int]]
    """Input file and byte at which each shard starts; at least one, so that there is always a result file."""
    echo: bool
    """Whether a result says what it answers; the old AI Platform's hold the prediction alone."""
    key_field: str
    included: list[str]
    excluded: list[str]
    parameters: Any


def index(inputs: list[tuple[str, int, int]]) -> tuple[int, list[tuple[int, int]]]:
    """How many inputs there are, and where each shard of them starts."""
    total, starts = 0, []
    for total, (where, _) in enumerate(lines(inputs), 1):
        if total % SHARD == 1:
            starts.append(where)
    return total, starts or [(len(inputs), 0)]


def lines(
    inputs: list[tuple[str, int, int]], start: tuple[int, int] = (0, 0)
) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Every line from `start` on that is not blank, and where it starts: input file and byte.

    Raises `TwoPhaseError` when an input has changed, or holds what is no line.
    """
    first, offset = start
    for number, (path, size, changed) in enumerate(inputs[first:], first):
        try:
            stat = Path(path).stat()
            if (stat.st_size, stat.st_mtime_ns) != (size, changed):
                raise TwoPhaseError(f"{path}: has changed since the job started; start a new job")
            with Path(path).open("rb", _BUFFER) as file:
                at = file.seek(offset if number == first else 0)
                while line := file.readline(LIMITS.body_bytes + 1):
                    if len(line) > LIMITS.body_bytes:
                        raise TwoPhaseError(f"{path}: has a line of over {LIMITS.body_bytes} bytes; give shorter clips")
                    if not line.isspace():
                        yield (number, at), line
                    at += len(line)
        except OSError as error:
            raise TwoPhaseError(f"{path}: cannot be read ({error.strerror}); give readable inputs") from None


def work(job: Path, process: int, count: int) -> None:
    """Do every `count`th shard of a job from shard `process` on, but for those that are done."""
    plan = Plan(**read_json(job / "plan.json", "batch plan"))
    parent = os.getppid()
    predict = _model(plan)
    for shard in range(process, len(plan.starts), count):
        if not (job / f"{shard:05}.json").exists():
            rest = lines(plan.inputs, plan.starts[shard])
            _shard(plan, job, shard, (line for _, line in islice(rest, SHARD)), predict, parent)


def progress(job: Path) -> tuple[int, int]:
    """How many inputs a job has answered and refused so far."""
    counts = [orjson.loads(p.read_bytes()) for p in job.glob("[0-9]*.json")]
    return sum(c["answered"] for c in counts), sum(c["refused"] for c in counts)


def write_plan(job: Path, plan: Plan) -> None:
    """Fix what a job does."""
    write_json(job / "plan.json", asdict(plan))


def _model(plan: Plan) -> _Predict:
    folder = Path(plan.model)
    if not (folder / EXTRA / "release.json").is_file():
        from twophase.local.saved_model import LoadedModel  # a release does not pay for what answers others

        saved = LoadedModel(folder)
        return lambda instance, name: saved.predict([instance])[0]
    predictor = Predictor(folder)
    predictor.check_parameters(plan.parameters)
    return lambda instance, name: predictor.predict_images(images_of(instance, name))


def _shard(plan: Plan, job: Path, shard: int, inputs: Iterator[bytes], predict: _Predict, parent: int) -> None:
    of = f"{shard:05}-of-{len(plan.starts):05}"
    output = Path(plan.output)
    answered = refused = 0
    with (
        replacing(output / f"prediction.results-{of}") as results,
        replacing(output / f"prediction.errors_stats-{of}") as errors,
    ):
        for line in inputs:
            if os.getppid() != parent:
                raise TwoPhaseError("the platform has ended; the job goes on when it starts again")
            echo: JSON = {}
            try:
                echo, answer = _read(plan, line.strip(), predict)
                prediction = answer()
                result = {**echo, "prediction": prediction} if plan.echo else prediction
                results.write(orjson.dumps(result, option=orjson.OPT_APPEND_NEWLINE))
                answered += 1
            except Refusal as refusal:
                echo = echo or {"instance": line.decode("utf-8", "replace").strip()}
                errors.write(orjson.dumps({**echo, **refusal.to_json()}, option=orjson.OPT_APPEND_NEWLINE))
                refused += 1
    write_json(job / f"{shard:05}.json", {"answered": answered, "refused": refused})


def _read(plan: Plan, line: bytes, predict: _Predict) -> tuple[JSON, Callable[[], Any]]:
    """What the output says about an input, and what answers it."""
    if plan.format == "file-list":
        uri = line.decode("utf-8", "replace")
        return {"instance": uri}, lambda: predict(_file(plan, uri), uri)
    try:
        instance = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"instance: is no JSON ({error}); a line holds one instance") from None
    if not isinstance(instance, dict):
        return {"instance": orjson.Fragment(line)}, lambda: predict(instance, "instance")
    echo = {"instance": orjson.Fragment(line)}
    if plan.key_field:
        if plan.key_field not in instance:
            raise Refusal(400, f"instance: has no field {plan.key_field!r}, the job's key_field")
        echo = {plan.key_field: instance.pop(plan.key_field)}
    kept = instance.keys() - set(plan.excluded)
    kept &= set(plan.included) if plan.included else kept
    wanted = {name: value for name, value in instance.items() if name in kept}
    return echo, lambda: predict(wanted, "instance")


def _file(plan: Plan, uri: str) -> bytes:
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    if not uri.startswith("gs://") or bucket not in plan.buckets:
        raise Refusal(404, f"{uri}: cannot be read from here; a file list names gs://BUCKET/PATH of this platform")
    path = Path(plan.buckets[bucket]) / relative(name)
    try:
        if path.stat().st_size > LIMITS.body_bytes:
            raise Refusal(413, f"{uri}: is over {LIMITS.body_bytes} bytes; cut it into shorter clips")
        return path.read_bytes()
    except OSError as error:
        raise Refusal(404, f"{uri}: cannot be read ({error.strerror})") from None


def main() -> int:
    """Run one process of a job; the last line on stderr says what went wrong."""
    try:
        work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    except TwoPhaseError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
