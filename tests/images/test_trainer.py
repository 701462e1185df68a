"""The trainer image, really built and run: the whole local pipeline through kfp's DockerRunner. `make test-images`.

The runner's word that a task succeeded is not taken: everything is read from the outputs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components import IMAGE
from pipelines.compile import spec_path
from twophase.local import process
from twophase.release import golden, manifest
from twophase.release.runtime import Pair
from twophase.targets.rest import Vertex

pytestmark = pytest.mark.images

SAME = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Haswell"}
"""What makes sums come out alike: threads, and the kernels that OpenBLAS otherwise picks by the processor that it sees.

With other kernels a fifth of the rendered clips differ by one level of 16 bits in 3 of 10,000 samples.
"""

RUN = """
import json, os, sys
from kfp import components, local
root, arguments, environment = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[4])
runner = local.DockerRunner(network_mode="host", user=f"{os.getuid()}:{os.getgid()}", environment=environment)
local.init(runner, pipeline_root=root, raise_on_error=True)
components.load_component_from_file(sys.argv[3])(**arguments)
"""


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("home")
    yield process.up(home, None, {}).url
    process.down(home)


@pytest.fixture(scope="module")
def boxed(address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's root after a run in containers, with no disk in common but that root."""
    root = tmp_path_factory.mktemp("boxed")
    arguments = {
        "api_endpoint": address,
        "model": "boxed",
        "workdir": "/tmp/two-phase",
        "store": str(root / "images"),
        **{"synth_per_label": 6, "seed": 3, "quick": True},
    }
    command = [sys.executable, "-c", RUN, str(root), json.dumps(arguments), str(spec_path("two_phase.local"))]
    command.append(json.dumps({**SAME, "TF_CPP_MIN_LOG_LEVEL": "3"}))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (root / "log").write_text(done.stdout + done.stderr)
    return root


def released(root: Path) -> list[Path]:
    """The releases that `export-release` handed on below a pipeline's root."""
    return sorted(path.parents[1] for path in root.rglob("export-release/release/assets.extra/release.json"))


def test_the_image_is_small_labelled_and_not_root() -> None:
    facts = json.loads(docker("image", "inspect", IMAGE))[0]
    assert facts["Config"]["User"] == "1000:1000"
    assert facts["Config"]["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert "PYTHONPATH=/app" in facts["Config"]["Env"]
    missing = "command -v gcc cc pip uv || echo none"
    assert docker("run", "--rm", "--network=none", IMAGE, "sh", "-c", missing) == "none"


def test_a_step_that_is_given_nonsense_says_so_in_one_line() -> None:
    command = ["docker", "run", "--rm", "--network=none", IMAGE, "python", "-m", "twophase", "release", "check", "/tmp"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "twophase: /tmp: is no release: it has no assets.extra/release.json; give a folder that `twophase` exported"
    )


@pytest.mark.timeout(1800)
def test_the_pipeline_runs_in_containers_to_a_deployed_pair(boxed: Path, address: str) -> None:
    (release,) = released(boxed) or pytest.fail((boxed / "log").read_text()[-3000:])
    found = manifest.verify(release)
    golden.replay(Pair(release), release)
    vertex = Vertex("local", "us-central1", address)
    assert vertex.model("boxed")["labels"]["release"] == found.id
    assert list(vertex.endpoint("boxed")["trafficSplit"].values()) == [100]
    (executed,) = boxed.rglob("evaluate-pair/executor_output.json")
    assert "confusionMatrix" in executed.read_text()


@pytest.mark.timeout(1800)
def test_containers_and_processes_make_the_same_release(boxed: Path, address: str, tmp_path: Path) -> None:
    """Same clips, seed, thread counts and kernels: the same bytes come out."""
    environment = {**os.environ, **SAME, "TWOPHASE_API_ENDPOINT": address}
    arguments = ["run", "--quick", "--per-label", "6", "--seed", "3", "--model", "plain", "--json"]
    command = [sys.executable, "-m", "twophase", *arguments, "--workdir", str(tmp_path / "plain")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    plain = json.loads(done.stdout.splitlines()[-1])
    (release,) = released(boxed)
    assert manifest.read(release).id == plain["release_id"]


def test_the_spec_names_the_image_that_was_built() -> None:
    document = next(yaml.safe_load_all(spec_path("two_phase.local").read_text()))
    images = {e["container"]["image"] for e in document["deploymentSpec"]["executors"].values()}
    assert images == {IMAGE}
    assert docker("image", "inspect", "--format", "{{.Id}}", IMAGE)
