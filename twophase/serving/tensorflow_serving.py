"""TensorFlow Serving's REST API, which KServe calls V1: what differs from the other places in words and shapes.

Rows are the instances of every other place. Columns (`inputs`) are the SavedModel's tensors by name, and the answer to
them are its outputs by name. Specification: https://www.tensorflow.org/tfx/serving/api_rest
"""

from typing import Any

import orjson

from twophase.audio.frontend import FRONT_END
from twophase.files import JSON
from twophase.serving.refusal import Refusal


def version_number(release: str) -> str:
    """A release's id as TensorFlow Serving writes versions: a whole number below 2^63."""
    return str(int(release.removeprefix("r-"), 16))


def status(name: str, release: str) -> JSON:
    """A model's state: TensorFlow Serving's field, and KServe's two."""
    state = {"version": version_number(release), "state": "AVAILABLE", "status": {"error_code": "OK"}}
    return {"name": name, "ready": True, "model_version_status": [state]}


def metadata(name: str, release: str, labels: int) -> JSON:
    """The signatures of a release's SavedModel."""
    frames, mels = FRONT_END.shape
    answers = {
        "probabilities": _tensor("DT_FLOAT", -1, labels),
        "label": _tensor("DT_STRING", -1),
        "confidence": _tensor("DT_FLOAT", -1),
    }
    inputs = {
        "serving_default": {"audio_bytes": _tensor("DT_STRING", -1)},
        "pcm": {"pcm": _tensor("DT_FLOAT", -1, -1)},
        "images": {"images": _tensor("DT_UINT8", -1, -1, frames, mels)},
    }
    signatures = {
        signature: {"inputs": taken, "outputs": answers, "method_name": "tensorflow/serving/predict"}
        for signature, taken in inputs.items()
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": version_number(release)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def read_columns(body: bytes) -> tuple[list[Any], Any] | None:
    """`instances` and `parameters` of a request in columns; None when it is one in rows, or none. Raises `Refusal`."""
    if b'"inputs"' not in body:  # rows are not read twice
        return None
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None  # told by whoever reads rows
    if not isinstance(request, dict) or "inputs" not in request or "instances" in request:
        return None
    inputs = request["inputs"]
    if isinstance(inputs, dict):
        if len(inputs) != 1 or not isinstance(next(iter(inputs.values())), list):
            raise Refusal(400, f"inputs: has {sorted(inputs)[:5]}; send one of audio_bytes, pcm, images as a list")
        ((name, column),) = inputs.items()
        return [cell if name == "images" else {name: cell} for cell in column], request.get("parameters")
    return inputs, request.get("parameters")


def write_columns(predictions: list[JSON]) -> JSON:
    """The outputs of the SavedModel's signatures, by name."""
    return {
        "probabilities": [list(p["probabilities"].values()) for p in predictions],
        "label": [p["label"] for p in predictions],
        "confidence": [p["confidence"] for p in predictions],
    }


def _tensor(dtype: str, *shape: int) -> JSON:
    dims = [{"size": str(size), "name": ""} for size in shape]
    return {"dtype": dtype, "tensor_shape": {"dim": dims, "unknown_rank": False}, "name": ""}
