"""The serving program, over real HTTP."""

import base64
import io
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.loopback import serving
from twophase.audio.frontend import FRONT_END
from twophase.errors import UsageError
from twophase.release.manifest import ReleaseError
from twophase.release.runtime import Pair
from twophase.serving.app import App
from twophase.serving.instances import Limits
from twophase.serving.predictor import Predictor
from twophase.serving.server import limits_of, port_of
from twophase.serving.source import release_of

LIMITS = Limits(body_bytes=2_000_000, instances=4, windows=40)


@pytest.fixture(scope="module")
def server(release: Path) -> Iterator[httpx.Client]:
    with serving(App(Predictor(release, LIMITS), predict_routes=("/predict", "/invocations"), limits=LIMITS)) as client:
        yield client


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def audio(pcm: np.ndarray, form: str = "WAV", rate: int = 16_000) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, pcm, rate, format=form)
    return out.getvalue()


@pytest.fixture(scope="module")
def pcm() -> np.ndarray:
    t = np.arange(24_000) / 16_000
    return (0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)


def test_every_form_of_one_clip_gives_the_runtimes_answer(server: httpx.Client, release: Path, pcm: np.ndarray) -> None:
    classifier = Pair(release).classifier
    wav = audio(pcm)
    window = pcm[: FRONT_END.samples]
    image = FRONT_END.images(window[None])
    instances = [{"audio_bytes": b64(wav)}, b64(audio(pcm, "FLAC")), {"pcm": pcm.tolist()}, pcm.tolist()]
    whole = server.post("/predict", json={"instances": instances}).json()["predictions"]
    expected = classifier.clip_probabilities(pcm)
    for prediction in whole:
        assert prediction["windows"] == 2
        assert np.allclose(list(prediction["probabilities"].values()), expected, atol=2e-3)
        assert prediction["confidence"] == max(prediction["probabilities"].values())
    images = [{"images": b64(image.tobytes())}, image.tolist(), image[0].tolist(), {"pcm": window.tolist()}]
    one = server.post("/invocations", json={"instances": images}).json()["predictions"]
    assert all(p == one[0] for p in one)


@pytest.mark.parametrize("form", ["MP3", "OGG"])
def test_other_formats_and_rates(server: httpx.Client, pcm: np.ndarray, form: str) -> None:
    body = audio(np.stack([pcm, pcm], 1), form, 44_100)
    answer = server.post("/invocations", content=body, headers={"content-type": "audio/x-any"})
    assert answer.status_code == 200
    assert answer.json()["predictions"][0]["label"]


def test_expected_release_and_front_end(server: httpx.Client, release: Path, pcm: np.ndarray) -> None:
    identity = Pair(release).manifest.id
    body = {"instances": [{"pcm": pcm.tolist()}], "parameters": {"release": identity}}
    assert server.post("/predict", json=body).json()["predictions"][0]["release"] == identity
    for parameters in ({"release": "r-000000000000"}, {"front_end": "fe-0"}):
        refused = server.post("/predict", json=body | {"parameters": parameters})
        assert refused.status_code == 409
        assert next(iter(parameters.values())) in refused.text
    assert server.post("/predict", json=body | {"parameters": {"other": 1}}).status_code == 400


BAD = [
    (b"{", 400),
    (b"[]", 400),
    (b'{"instances": []}', 400),
    (b'{"instances": {}}', 400),
    (b'{"instances": [1]}', 400),
    (b'{"instances": [{}]}', 400),
    (b'{"instances": [{"b64": 3}]}', 400),
    (b'{"instances": [{"b64": "*"}]}', 400),
    (b'{"instances": [{"b64": "AAAA"}]}', 400),
    (b'{"instances": [{"b64": ""}]}', 400),
    (b'{"instances": [{"path": "../x"}]}', 400),
    (b'{"instances": [{"pcm": [NaN]}]}', 400),
    (b'{"instances": [{"pcm": [1e300]}]}', 400),
    (b'{"instances": [{"pcm": []}]}', 400),
    (b'{"instances": [{"pcm": [[1], [2, 3]]}]}', 400),
    (b'{"instances": [{"pcm": ["1"]}]}', 400),
    (b'{"instances": [[[300]]]}', 400),
    (b'{"instances": [{"images": {"b64": "AAAA"}}]}', 400),
    (b'{"instances": [[0], [0], [0], [0], [0]]}', 400),
    (b" " * (LIMITS.body_bytes + 1), 413),
]


@pytest.mark.parametrize(("body", "code"), BAD)
def test_bad_requests_are_refused_in_googles_shape(server: httpx.Client, body: bytes, code: int) -> None:
    error = server.post("/predict", content=body).json()["error"]
    assert error["code"] == code
    assert error["status"]
    assert error["message"]


def test_a_clip_of_too_many_windows(server: httpx.Client) -> None:
    quiet = audio(np.zeros(16_000 * 60, np.float32), "FLAC")
    answer = server.post("/predict", json={"instances": [b64(quiet)]})
    assert answer.status_code == 400
    assert "over 40 windows" in answer.text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["b64", "pcm", "images", "audio_bytes", "x"]), inner, max_size=2)
    ),
    max_leaves=12,
)


@given(value=json_values)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_answered_or_refused(server: httpx.Client, value: object) -> None:
    import orjson

    try:
        body = orjson.dumps({"instances": [value]})
    except (TypeError, ValueError):  # integers past 64 bits
        return
    assert server.post("/predict", content=body).status_code in (200, 400)


def test_half_a_request_does_not_stop_others(server: httpx.Client, pcm: np.ndarray) -> None:
    port = server.base_url.port
    assert port
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert server.post("/predict", json={"instances": [pcm.tolist()]}).status_code == 200


def test_a_changed_release_is_not_served(release: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(release, tmp_path / "r")
    with (changed / "assets.extra" / "classifier.tflite").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ReleaseError, match=r"classifier\.tflite was changed"):
        Predictor(changed)


def test_environment(release: Path) -> None:
    assert limits_of({}).body_bytes == 10_000_000
    assert limits_of({"TWOPHASE_BODY_BYTES": "1500000"}).body_bytes == 1_500_000
    with pytest.raises(UsageError, match="1 to"):
        limits_of({"TWOPHASE_BODY_BYTES": "1.5 MB"})
    assert port_of({}) == 8080
    assert port_of({"PORT": "1", "AIP_HTTP_PORT": "2", "SAGEMAKER_BIND_TO_PORT": "3"}) == 3
    assert release_of({"AZUREML_MODEL_DIR": str(release.parent), "AIP_STORAGE_URI": "gs://x"}) == release
