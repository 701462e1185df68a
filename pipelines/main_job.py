"""`twophase run`: the pipeline on this machine, then real questions to what it deployed."""

import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.run_local import run_local
from twophase.audio import sources
from twophase.display import Steps, table
from twophase.errors import TwoPhaseError
from twophase.progress import Event
from twophase.targets.rest import Vertex
from twophase.training.judge import Judgement

QUESTIONS = 5
"""How many test clips the deployed pair is asked about in the end."""


@dataclass(frozen=True)
class Outcome:
    """What a run ends with. `version` and `endpoint` are what is live: an older version's where that is not beaten."""

    release: str
    release_id: str
    model: str
    version: str
    endpoint: str
    report: str
    verdict: str
    live_release: str
    seconds: float
    left_out: list[list[str]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    unanswered: str = ""
    """Why the closing questions have no answer; empty when they have."""
    figures: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def show(self) -> None:
        """For people."""
        rows = [[p["answer"], f"{p['confidence']:.1%}", p["truth"], p["clip"]] for p in self.predictions]
        table(["answered", "sure", "truth", "clip"], rows, title=f"\nWhat {self.live_release} answered online:")
        if self.unanswered:
            print(f"no answers: {self.unanswered}")
        for name, reason in self.left_out[:20]:
            print(f"left out: {name}: {reason}")
        if self.left_out:
            print(f"{len(self.left_out)} files were left out in all")
        print()
        width = 10
        for name, value in (
            ("release", self.release),
            ("version", self.version),
            ("endpoint", self.endpoint),
            ("report", self.report),
            ("took", f"{self.seconds:.0f} s"),
        ):
            print(f"{name:<{width}}{value}")


def main_job(workdir: Path, model: str, project: str, region: str, api_endpoint: str, **arguments: Any) -> Outcome:
    """Run the compiled local pipeline and ask its endpoint about a few test clips."""
    began = time.monotonic()
    values: dict[str, Any] = {}

    with Steps() as steps:

        def on_event(event: Event) -> None:
            values.update(event.values)
            steps(event)

        place = {"project": project, "region": region, "api_endpoint": api_endpoint, "model": model}
        run_local(workdir, {**place, **arguments}, on_event)
    vertex = Vertex(project, region, api_endpoint)
    live, endpoint = vertex.model(model), vertex.endpoint(model)
    judged = Judgement.read(Path(values["evaluation"]))
    try:
        predictions, unanswered = _ask(vertex, endpoint, judged), ""
    except TwoPhaseError as error:  # the pair is made and deployed: that is the outcome, whatever the questions say
        predictions, unanswered = [], str(error)
    return Outcome(
        release=values["release"],
        release_id=values["release_id"],
        model=model,
        version=f"{live['name'].split('@')[0]}@{live['versionId']}",
        endpoint=endpoint["name"],
        report=values["report"],
        verdict=values["verdict"],
        live_release=live.get("labels", {}).get("release", ""),
        seconds=round(time.monotonic() - began, 1),
        left_out=[list(pair) for pair in values.get("left_out", ())],
        predictions=predictions,
        unanswered=unanswered,
        figures=judged.headline(),
    )


def _ask(vertex: Vertex, endpoint: Any, judged: Judgement) -> list[dict[str, Any]]:
    """The deployed pair's online answers to some wanted test clips of different labels."""
    chosen = {clip.label: clip for clip, wanted in zip(judged.test.clips, judged.test.wanted, strict=True) if wanted}
    clips = [chosen[label] for label in sorted(chosen)][:QUESTIONS]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}" for i in range(len(clips))]
        for file, clip in zip(files, clips, strict=True):
            file.write_bytes(sources.read(clip.path))
        answer = vertex.predict(endpoint, files)
    return [
        {"clip": clip.name, "truth": clip.label, "answer": found["label"], "confidence": found["confidence"]}
        for clip, found in zip(clips, answer["predictions"], strict=True)
    ]
