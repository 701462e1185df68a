"""A run that failed leaves no version half deployed; what somebody split on purpose stays."""

from pathlib import Path

import pytest
from google.cloud import aiplatform
from kfp.dsl import PipelineTaskFinalStatus

from components.end_of_run import end_of_run
from tests.serving.standin import make
from twophase.local.process import Address
from twophase.targets.rest import Vertex
from twophase.targets.traffic import MACHINE, Traffic
from twophase.targets.vertex_sdk import Registry

PLACE = ("local", "us-central1")


def ended(model: str, state: str, address: str) -> None:
    status = PipelineTaskFinalStatus(state, "projects/p/locations/r/pipelineJobs/j", "run", 9, "because")
    end_of_run.python_func(*PLACE, address, model, status)


def test_a_canary_that_nobody_asked_goes_and_one_that_somebody_meant_stays(platform: Address, tmp_path: Path) -> None:
    registry = Registry(*PLACE, platform.url)
    first, second = make(tmp_path / "a", seed=1), make(tmp_path / "b", seed=2)
    registry.deploy(first, registry.register(first, "ending"), "ending")
    canary = aiplatform.Model(registry.register(second, "ending"))
    (endpoint,) = aiplatform.Endpoint.list(filter='display_name="ending"')
    endpoint.deploy(canary, traffic_percentage=10, machine_type=MACHINE, min_replica_count=1)  # as Google's component
    traffic = Traffic(Vertex(*PLACE, platform.url), "ending")
    assert traffic.shares() == {"1": 90, "2": 10}
    ended("ending", "SUCCEEDED", platform.url)
    assert traffic.shares() == {"1": 90, "2": 10}, "a run that succeeded has seen to it"
    ended("ending", "FAILED", platform.url)
    assert traffic.shares() == {"1": 100}
    traffic.split({"1": 80, "2": 20})
    ended("ending", "FAILED", platform.url)
    assert traffic.shares() == {"1": 80, "2": 20}


def test_a_run_that_failed_before_anything_was_live_says_how(platform: Address, capsys: pytest.CaptureFixture) -> None:
    ended("never", "FAILED", platform.url)
    said = capsys.readouterr().out
    assert "because" in said
