"""The Open Inference Protocol (V2) over REST, which KServe, Triton and MLServer share: tensors in, tensors out.

    inputs, one of      audio_bytes    BYTES  [clips]                           WAV, FLAC, Ogg or MP3 files
                        pcm            FP32   [clips, samples]                  16 kHz, [-1, 1]
                        images         UINT8  [clips, windows, frames, mels]    ready images
    outputs             label          BYTES  [clips]
                        confidence     FP32   [clips]
                        probabilities  FP32   [clips, labels + 1]
                        labels         BYTES  [labels + 1]                      the names of the columns above

In JSON an audio file is a base64 string, since JSON has no bytes; the binary tensor extension carries it as it is.
Specification: https://github.com/kserve/open-inference-protocol and KServe's page on its binary tensor extension.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from twophase.audio.frontend import FRONT_END
from twophase.files import JSON
from twophase.serving.instances import array, base64_bytes
from twophase.serving.refusal import Refusal

DATATYPES = {"audio_bytes": "BYTES", "pcm": "FP32", "images": "UINT8"}
OUTPUTS = ("label", "confidence", "probabilities", "labels")
_DTYPES: dict[str, Any] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
_DIMENSIONS = {"audio_bytes": 1, "pcm": 2, "images": 4}


@dataclass(frozen=True)
class Inference:
    """What a request asks."""

    instances: list[Any]
    """Bytes of an audio file, or an array, a clip; `images_of` takes both."""
    parameters: JSON
    """Of the release, as in other protocols; None where there are none."""
    id: str | None
    outputs: dict[str, bool]
    """The wanted outputs, and whether each comes as binary data."""


def metadata(name: str, version: str, labels: int) -> JSON:
    """What a model takes and gives."""
    frames, mels = FRONT_END.shape
    shapes = {"audio_bytes": [-1], "pcm": [-1, -1], "images": [-1, -1, frames, mels]}
    given = {"label": ("BYTES", [-1]), "confidence": ("FP32", [-1])}
    given |= {"probabilities": ("FP32", [-1, labels]), "labels": ("BYTES", [labels])}
    return {
        "name": name,
        "versions": [version],
        "platform": "litert",
        "inputs": [{"name": n, "datatype": DATATYPES[n], "shape": shape} for n, shape in shapes.items()],
        "outputs": [{"name": n, "datatype": datatype, "shape": shape} for n, (datatype, shape) in given.items()],
    }


def read(body: bytes, json_size: bytes | None) -> Inference:
    """A request's body; `json_size` is its header `Inference-Header-Content-Length`. Raises `Refusal`."""
    if json_size is not None and not (json_size.isdigit() and int(json_size) <= len(body)):
        raise Refusal(400, f"Inference-Header-Content-Length: is {json_size[:20]!r}, the body has {len(body)} bytes")
    end = len(body) if json_size is None else int(json_size)
    try:
        request = orjson.loads(body[:end])
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f'the body is no JSON ({error}); send {{"inputs": [...]}}') from None
    tensors = request.get("inputs") if isinstance(request, dict) else None
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
        raise Refusal(400, f"inputs: is no list of one tensor; send one of {', '.join(DATATYPES)}")
    parameters = _object(request, "parameters")
    binary = bool(parameters.pop("binary_data_output", False))
    identity = request.get("id")
    return Inference(
        _instances(tensors[0], body[end:]),
        parameters or None,
        identity if isinstance(identity, str) else None,
        _outputs(request.get("outputs"), binary),
    )


def write(asked: Inference, predictions: list[JSON], name: str, version: str) -> tuple[bytes, int | None]:
    """The response's body, and how much of it is JSON where binary data follows."""
    labels = list(predictions[0]["probabilities"])
    columns: dict[str, Any] = {
        "label": [p["label"] for p in predictions],
        "confidence": np.array([p["confidence"] for p in predictions], "<f4"),
        "probabilities": np.array([list(p["probabilities"].values()) for p in predictions], "<f4"),
        "labels": labels,
    }
    outputs, chunks = [], []
    for wanted, binary in asked.outputs.items():
        column = columns[wanted]
        text = isinstance(column, list)
        tensor = {
            "name": wanted,
            "datatype": "BYTES" if text else "FP32",
            "shape": [len(column)] if text else list(column.shape),
        }
        if binary:
            chunks.append(b"".join(map(_element, column)) if text else column.tobytes())
            outputs.append(tensor | {"parameters": {"binary_data_size": len(chunks[-1])}})
        else:
            outputs.append(tensor | {"data": column if text else column.ravel()})
    answer = {"model_name": name, "model_version": version, "outputs": outputs}
    if asked.id is not None:
        answer["id"] = asked.id
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join((head, *chunks)), len(head) if chunks else None


def _instances(tensor: JSON, rest: bytes) -> list[Any]:
    name, shape = tensor.get("name"), tensor.get("shape")
    if name not in DATATYPES or tensor.get("datatype") != DATATYPES[name]:
        raise Refusal(400, f"inputs[0]: is {name!r} of {tensor.get('datatype')!r}; {DATATYPES} are taken")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise Refusal(400, f"inputs[0].shape: is {str(shape)[:80]}; a shape is a list of whole numbers")
    if name == "audio_bytes":  # [clips, 1] is what a client's column of strings looks like
        shape = [math.prod(shape)]
    if len(shape) != _DIMENSIONS[name]:
        raise Refusal(400, f"inputs[0].shape: {shape} has {len(shape)} dimensions; {name} has {_DIMENSIONS[name]}")
    size = _object(tensor, "parameters").get("binary_data_size")
    if size is None:
        found = _from_json(name, tensor.get("data"))
    elif size != len(rest):
        raise Refusal(400, f"inputs[0].parameters.binary_data_size: is {size}, {len(rest)} bytes follow the JSON")
    else:
        found = _from_binary(name, rest)
    if len(found) != math.prod(shape):
        raise Refusal(400, f"inputs[0]: holds {len(found)} values; its shape {shape} is of {math.prod(shape)}")
    return found if isinstance(found, list) else list(found.reshape(shape))


def _from_json(name: str, data: Any) -> Any:
    if name != "audio_bytes":
        numbers = array(data, np.float32 if name == "pcm" else np.int64, "inputs[0].data").ravel()
        if name == "images":
            if numbers.size and not 0 <= numbers.min() <= numbers.max() <= 255:
                raise Refusal(400, "inputs[0].data: has values outside 0..255; images are uint8")
            return numbers.astype(np.uint8)
        return numbers
    if not isinstance(data, list):
        raise Refusal(400, "inputs[0].data: is no list; audio_bytes are base64 strings, or binary data")
    return [base64_bytes(text, f"inputs[0].data[{i}]") for i, text in enumerate(np.array(data, object).ravel())]


def _from_binary(name: str, data: bytes) -> Any:
    if name != "audio_bytes":
        dtype = _DTYPES[DATATYPES[name]]
        if len(data) % dtype.itemsize:
            raise Refusal(400, f"inputs[0]: {len(data)} bytes are no whole number of {DATATYPES[name]} values")
        return np.frombuffer(data, dtype)
    found: list[bytes] = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + size > len(data):
            raise Refusal(400, f"inputs[0]: element {len(found)} says {size} bytes, {len(data) - at - 4} follow")
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def _outputs(wanted: Any, binary: bool) -> dict[str, bool]:
    if not wanted:
        return dict.fromkeys(OUTPUTS, binary)
    found = {}
    for output in wanted if isinstance(wanted, list) else [wanted]:
        name = output.get("name") if isinstance(output, dict) else None
        if name not in OUTPUTS:
            raise Refusal(400, f"outputs: {str(name)[:80]!r} is not given; {', '.join(OUTPUTS)} are")
        found[name] = bool(_object(output, "parameters").get("binary_data", binary))
    return found


def _object(of: JSON, field: str) -> JSON:
    value = of.get(field) or {}
    if not isinstance(value, dict):
        raise Refusal(400, f"{field}: is no object")
    return dict(value)


def _element(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data
