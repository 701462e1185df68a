"""A release's rejection: unsure answers are none of these on every route, and their probabilities are as they were."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serving import clients
from tests.serving.clients import b64
from tests.serving.loopback import serving
from twophase.release import manifest
from twophase.release.manifest import NONE
from twophase.serving.app import App
from twophase.serving.predictor import Predictor

Predictions = list[dict[str, Any]]

CLIPS = clients.clips(12)


def ask(server: httpx.Client) -> Predictions:
    body = {"instances": [b64(clip) for clip in CLIPS]}
    return server.post("/predict", json=body).json()["predictions"]


def as_files(server: httpx.Client) -> Predictions:
    headers = {"content-type": "audio/wav"}
    return [server.post("/predict", content=c, headers=headers).json()["predictions"][0] for c in CLIPS]


def as_lines(server: httpx.Client) -> Predictions:
    lines = b"\n".join(json.dumps(b64(clip)).encode() for clip in CLIPS)
    answer = server.post("/predict", content=lines, headers={"content-type": "application/jsonlines"})
    return [json.loads(line) for line in answer.content.splitlines()]


def as_rows(server: httpx.Client) -> Predictions:
    return server.post("/v1/models/m:predict", json={"instances": [b64(clip) for clip in CLIPS]}).json()["predictions"]


def as_columns(server: httpx.Client) -> Predictions:
    answer = server.post("/v1/models/m:predict", json={"inputs": {"audio_bytes": [b64(clip) for clip in CLIPS]}})
    return _rows(answer.json()["outputs"])


def as_tensors(server: httpx.Client) -> Predictions:
    data = [b64(clip)["b64"] for clip in CLIPS]
    column = {"name": "audio_bytes", "shape": [len(CLIPS)], "datatype": "BYTES", "data": data}
    outputs = server.post("/v2/models/m/infer", json={"inputs": [column]}).json()["outputs"]
    return _rows({o["name"]: np.reshape(o["data"], o["shape"]) for o in outputs})


def _rows(columns: dict[str, Any]) -> Predictions:
    return [{name: columns[name][i] for name in ("label", "confidence", "probabilities")} for i in range(len(CLIPS))]


def test_without_one_the_best_label_is_given(release: Path) -> None:
    with serving(App(Predictor(release))) as server:
        found = ask(server)
    assert all(p["label"] == max(p["probabilities"], key=p["probabilities"].get) for p in found)


@pytest.fixture(scope="module")
def rejecting(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Predictions]]:
    """A server of the same models that rejects about half of the answers, and what was answered without that."""
    with serving(App(Predictor(release))) as server:
        before = ask(server)
    rejection = float(np.median([p["confidence"] for p in before]))
    copy = Path(shutil.copytree(release, tmp_path_factory.mktemp("rejecting") / "release"))
    found = manifest.read(copy)
    point = replace(found.operating_point, rejection=rejection)
    name = manifest.release_id(found.labels, found.computes, point.threshold, rejection)
    assert name != found.id
    manifest.write(copy, replace(found, id=name, operating_point=point))
    with serving(App(Predictor(copy))) as server:
        yield server, before


@pytest.mark.parametrize("route", [ask, as_files, as_lines, as_rows, as_columns, as_tensors])
def test_an_unsure_answer_is_none_of_these(rejecting: tuple[httpx.Client, Predictions], route: Any) -> None:
    server, before = rejecting
    rejection = float(np.median([p["confidence"] for p in before]))
    answered = route(server)
    sure = [p["confidence"] >= rejection for p in before]
    assert 0 < sum(sure) < len(CLIPS)
    expected = [p["label"] if is_sure else NONE for p, is_sure in zip(before, sure, strict=True)]
    assert [p["label"] for p in answered] == expected
    for now, then in zip(answered, before, strict=True):
        values = then["probabilities"]
        got = now["probabilities"]
        assert list(got.values() if isinstance(got, dict) else got) == pytest.approx(list(values.values()), abs=1e-6)
        assert now["confidence"] == pytest.approx(values[now["label"]], abs=1e-6)
