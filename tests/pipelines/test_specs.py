"""The checked-in specs are what the pipelines compile to, and what Kubeflow's own message types accept."""

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.compile import SPECS, compile_spec, spec_path


@pytest.mark.parametrize("name", SPECS)
def test_the_spec_is_fresh(name: str) -> None:
    assert spec_path(name).read_text("utf-8") == compile_spec(name), "run `make compile` and commit the result"


@pytest.mark.parametrize("name", SPECS)
def test_the_spec_is_a_pipeline_spec(name: str) -> None:
    document = next(yaml.safe_load_all(spec_path(name).read_text("utf-8")))
    spec = json_format.ParseDict(document, pipeline_spec_pb2.PipelineSpec())
    assert spec.pipeline_info.name == "two-phase"


@pytest.mark.parametrize("name", SPECS)
def test_no_path_of_one_machine_is_in_the_spec(name: str) -> None:
    text = spec_path(name).read_text("utf-8")
    assert "/home/" not in text
