"""Vertex AI's REST surface, taken from the official client: which method a request means, and its message.

The routing table is the one that google-cloud-aiplatform's own REST transports carry, so every method of the API has a
name here, built or not. A request becomes its official message and comes back as proto-JSON in its normal form: an
unknown field or a wrong type is refused in the words of the protobuf parser, and handlers work on plain dictionaries.

Importing the message types costs a second, once, in the server process; nothing that clients import comes here.
"""

import importlib
import re
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

import orjson
from google.cloud.aiplatform_v1 import types
from google.longrunning import operations_pb2  # type: ignore[import-untyped]
from google.protobuf import json_format

from twophase.files import JSON
from twophase.serving.refusal import Refusal

SERVICES = ("model", "endpoint", "job", "pipeline", "prediction")
"""The services of the API that have to do with models; others answer 404 as an unknown route."""

_SYSTEM_PARAMETERS = {"alt", "key", "fields", "prettyPrint", "quotaUser", "access_token", "callback", "userProject"}


@dataclass(frozen=True)
class Method:
    """One method of the API and one of its routes."""

    name: str
    """As in the API's reference: `UploadModel`."""
    verb: str
    path: re.Pattern[str]
    fields: tuple[str, ...]
    """Which request fields the path's groups hold; dots lead into messages."""
    body: str | None
    """Which request field the body holds; `*` is the whole request."""


_OPERATION = r"/v1/(projects/[^/]+/locations/[^/]+/(?:.+/)?operations/[^/:]+)"
_OPERATIONS = tuple(
    Method(
        f"{name}Operation{'s' * (name == 'List')}", verb, re.compile(path), ("name",), "*" if verb == "POST" else None
    )
    for name, verb, path in (
        ("Get", "GET", _OPERATION),
        ("Delete", "DELETE", _OPERATION),
        ("Wait", "POST", f"{_OPERATION}:wait"),
        ("Cancel", "POST", f"{_OPERATION}:cancel"),
        ("List", "GET", r"/v1/(projects/[^/]+/locations/[^/]+(?:/.+)?)/operations"),
    )
)
"""The operations mixin; the transports list it once for each of a hundred kinds of resource."""


@cache
def methods() -> tuple[Method, ...]:
    """Every method of `SERVICES`, as the official client would call it."""
    found = []
    for service in SERVICES:
        module = importlib.import_module(f"google.cloud.aiplatform_v1.services.{service}_service.transports.rest_base")
        transport = next(v for k, v in vars(module).items() if k.endswith("ServiceRestTransport"))
        for name, inner in vars(transport).items():
            own = name.startswith("_Base") and not re.search("Operation|Location|IamPolicy|IamPermissions", name)
            if own and hasattr(inner, "_get_http_options"):  # methods that stream both ways have no REST form
                found += [_method(name.removeprefix("_Base"), option) for option in inner._get_http_options()]
    return (*found, *_OPERATIONS)


def route(verb: str, path: str) -> tuple[Method, tuple[str, ...]]:
    """The method that a request means, and what its path names. Raises `Refusal` 404 for no method."""
    for method in methods():
        match = method.path.fullmatch(path) if method.verb == verb else None
        if match:
            return method, match.groups()
    raise Refusal(404, f"{verb} {path}: is no method of the Vertex AI API v1 that this platform knows")


def request_of(method: Method, groups: tuple[str, ...], query: bytes, body: bytes) -> JSON:
    """A request as its official message, in proto-JSON. Raises `Refusal` 400."""
    kind = f"{method.name}Request"
    request: dict[str, Any] = {}
    if method.body == "*":
        request = _object(body)
    elif method.body:
        request[_camel(method.body)] = _object(body)
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if not name.startswith("$") and name not in _SYSTEM_PARAMETERS:
            _set_parameter(request, _type(kind).DESCRIPTOR, name, value)
    for field, value in zip(method.fields, groups, strict=True):
        *outer, last = map(_camel, field.split("."))
        inner = request
        for step in outer:
            inner = inner.setdefault(step, {})
        inner[last] = value
    return message(kind, request)


def message(kind: str, value: JSON) -> JSON:
    """A value checked as the official message `kind`, in proto-JSON's normal form. Raises `Refusal`."""
    try:
        parsed = json_format.ParseDict(value, _type(kind)())
    except (json_format.ParseError, ValueError, TypeError) as error:
        raise Refusal(400, f"{kind}: {error}") from None
    return json_format.MessageToDict(parsed)


def _method(name: str, option: dict[str, str]) -> Method:
    fields: list[str] = []

    def group(match: re.Match[str]) -> str:
        fields.append(match[1])
        return "(" + match[2].replace("**", ".+").replace("*", "[^/:]+") + ")"

    pattern = re.sub(r"\{([\w.]+)=([^}]+)\}", group, option["uri"])
    return Method(name, option["method"].upper(), re.compile(pattern), tuple(fields), option.get("body"))


def _type(kind: str) -> Any:
    return getattr(types, kind).pb() if hasattr(types, kind) else getattr(operations_pb2, kind)


def _object(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the body is no JSON ({error}); send one object") from None
    if not isinstance(value, dict):
        raise Refusal(400, "the body is no JSON object; send one object")
    return value


def _set_parameter(request: dict[str, Any], descriptor: Any, name: str, value: str) -> None:
    """Put a query parameter where it belongs: text becomes what the message's field takes."""
    *outer, last = map(_camel, name.split("."))
    for step in outer:
        field = descriptor.fields_by_camelcase_name.get(step)
        request, descriptor = request.setdefault(step, {}), field and field.message_type
        if descriptor is None or not isinstance(request, dict):
            raise Refusal(400, f"{name}: is no parameter of this method")
    field = descriptor.fields_by_camelcase_name.get(last)
    if field is None:
        raise Refusal(400, f"{name}: is no parameter of this method")
    typed: Any = value
    if field.type == field.TYPE_BOOL:
        typed = {"true": True, "false": False}.get(value.lower(), value)
    elif field.message_type is not None and field.message_type.full_name == "google.protobuf.FieldMask":
        typed = ",".join(map(_camel, value.split(",")))
    if field.is_repeated:
        given = request.get(last, [])
        request[last] = [*given, typed] if isinstance(given, list) else given
    else:
        request[last] = typed


def _camel(name: str) -> str:
    return re.sub(r"_([a-z0-9])", lambda m: m[1].upper(), name)
