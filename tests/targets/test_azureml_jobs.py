"""Answers of batch jobs on Azure ML: none are handed out where one is missing, since a place says whose it is."""

import json
from pathlib import Path

import pytest

from tests.targets.answers import expected
from tests.targets.azure_server import azure
from tests.targets.test_azureml import Credential
from twophase.errors import TwoPhaseError
from twophase.targets.azureml import AzureML

pytestmark = pytest.mark.filterwarnings("ignore")  # the SDK warns of itself while it is imported


def test_a_file_of_answers_that_is_short_or_gone_is_named(
    releases: tuple[Path, ...], clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with azure(tmp_path, monkeypatch) as cloud:
        target = AzureML("pair", "s", "g", "w", credential=Credential())
        target.deploy(releases[0])
        broken = tmp_path / "broken.wav"
        broken.write_bytes(b"no sound")
        name = target.submit([*clips * 8, broken, tmp_path / "missing.wav", *clips])
        first, second = sorted(cloud.stored("").rglob("out/*.jsonl"))
        lines = first.read_bytes().splitlines(keepends=True)
        first.write_bytes(b"".join(lines[:7] + lines[8:]))
        with pytest.raises(TwoPhaseError, match=rf"{name}: .*out/000000\.jsonl has 99 answers to 100 clips"):
            target.fetch(name, tmp_path / "out.jsonl")
        first.write_bytes(b"".join(lines))
        whole = second.read_bytes()
        second.unlink()
        with pytest.raises(TwoPhaseError, match=r"out/000001\.jsonl has 0 answers to 9 clips"):
            target.fetch(name, tmp_path / "out.jsonl")
        assert not (tmp_path / "out.jsonl").exists()
        second.write_bytes(whole)
        assert target.fetch(name, tmp_path / "out.jsonl") == 2
        found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert all(found.pop(96)["error"] for _ in range(2))
        assert [line.pop("clip") for line in found] == [str(clip) for clip in clips * 9]
        assert found == expected(releases[0], clips) * 9
