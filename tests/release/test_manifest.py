"""`release.json` with and without a rejection: what older releases lack is 0, and their ids stay what they are."""

import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from twophase.release import manifest
from twophase.release.manifest import EXTRA, Manifest, OperatingPoint

SCHEMA = json.loads(files("twophase.release").joinpath("release.schema.json").read_text("utf-8"))
COMPUTES = dict.fromkeys(("gate", "classifier", "weights"), "0" * 64)
DIGESTS = dict.fromkeys(
    ("saved_model.pb", *(f"{EXTRA}/{f}" for f in ("gate.tflite", "classifier.tflite", "golden/golden.npz"))), "0" * 64
)


def written(folder: Path, point: OperatingPoint) -> Path:
    found = Manifest(
        manifest.release_id(("Oboe",), COMPUTES, point.threshold, point.rejection),
        ("Oboe",),
        manifest.front_end_json(),
        point,
        COMPUTES,
        DIGESTS,
        created="2026-01-02T03:04:05+00:00",
    )
    manifest.write(folder, found)
    return folder / EXTRA / "release.json"


def test_a_rejection_and_a_cost_come_back_and_fit_the_schema(tmp_path: Path) -> None:
    point = OperatingPoint(0.5, "costs", 1.0, 0.9, 0.5, {"recall": [0.8, 1.0], "cost": [0.2, 7.5]}, 0.25, 1.5)
    path = written(tmp_path, point)
    jsonschema.validate(json.loads(path.read_text("utf-8")), SCHEMA)
    assert manifest.read(tmp_path).operating_point == point


@pytest.mark.parametrize(
    ("field", "value"), [("rejection", 1.5), ("rejection", "0.5"), ("cost", -1), ("intervals", {"recall": [0, 1.5]})]
)
def test_what_no_operating_point_has_does_not_fit_the_schema(tmp_path: Path, field: str, value: object) -> None:
    content = json.loads(written(tmp_path, OperatingPoint(0.5, "costs", 1.0, 0.9, 0.5)).read_text("utf-8"))
    jsonschema.validate(content, SCHEMA)
    content["operating_point"][field] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)


def test_a_release_from_before_there_was_a_rejection_rejects_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, OperatingPoint(0.5, "costs", 1.0, 0.9, 0.5))
    content = json.loads(path.read_text("utf-8"))
    for name in ("rejection", "cost"):
        del content["operating_point"][name]
    jsonschema.validate(content, SCHEMA)
    path.write_text(json.dumps(content), "utf-8")
    assert manifest.read(tmp_path).operating_point.rejection == 0.0


def test_the_id_hashes_a_rejection_only_where_there_is_one() -> None:
    of_both = {manifest.release_id(("Oboe",), COMPUTES, 0.5, rejection) for rejection in (0.0, 0.25, 0.5)}
    assert len(of_both) == 3
    assert manifest.release_id(("Oboe",), COMPUTES, 0.5) == manifest.release_id(("Oboe",), COMPUTES, 0.5, 0.0)
