"""The steps that end the pipeline on Kubeflow, against a loopback cluster and bucket."""

from pathlib import Path

import pytest
from kfp.dsl import Dataset, Model
from kubernetes.config import kube_config

from components import kserve
from tests.serving.standin import make
from tests.targets.kubernetes_server import kubernetes
from tests.targets.test_kserve import bucket as bucket
from twophase.files import write_json
from twophase.release.manifest import read
from twophase.targets.kserve import KServe


def test_a_release_goes_live_and_is_found_again(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = make(tmp_path / "r", seed=1)
    point = {"threshold": 0.0, "chosen_by": "x", "recall": 1.0, "stopped": 0.0, "escalation_rate": 1.0}
    write_json(tmp_path / "judged" / "judgement.json", {"point": point, "metrics": {}, "lineage": {}})
    place = {"model": "pair", "namespace": "models", "releases": bucket}
    with kubernetes(tmp_path) as (_, config):
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", config)

        def verdict() -> str:
            given = Dataset(uri=str(tmp_path / "judged"))
            return kserve.compare_releases.python_func(
                clips=given, evaluation=given, release=Model(uri=str(release)), workdir=str(tmp_path / "w"), **place
            )

        assert verdict() == "better", "nothing is live yet"
        assert kserve.deploy_version.python_func(release=Model(uri=str(release)), image="server:1", **place) == "1"
        assert KServe("pair", "models", bucket).status().shares == {"1": 100}
        assert verdict() == "not shown", "it is live already"
    fetched = next((tmp_path / "w" / "releases").rglob("release.json")).parents[1]
    assert read(fetched).id == read(release).id
