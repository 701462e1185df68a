"""Cloud Storage's JSON API over `Buckets`: media, multipart and resumable uploads, ranged reads, lists, copies.

Clients find it through `STORAGE_EMULATOR_HOST`. A resumable upload gathers in a file under `home/uploads`; those that
a restart left are forgotten, and their clients told 404, which makes them start again.
"""

import base64
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import orjson

from twophase.files import JSON
from twophase.local.buckets import Buckets, Condition
from twophase.serving.refusal import Refusal

Answer = tuple[int, bytes, list[tuple[bytes, bytes]]]
"""Code, body, and headers beyond length; the content type is among them where it is not JSON."""


@dataclass
class _Upload:
    bucket: str
    name: str
    condition: Condition
    path: Path


class Storage:
    """The storage routes: `/storage/v1/...`, `/upload/storage/v1/...`, `/download/storage/v1/...`."""

    def __init__(self, buckets: Buckets, uploads: Path) -> None:
        self._buckets, self._folder = buckets, uploads
        self._uploads: dict[str, _Upload] = {}
        uploads.mkdir(parents=True, exist_ok=True)
        for left in uploads.iterdir():
            left.unlink()

    def answer(
        self, verb: str, raw_path: str, query: bytes, headers: dict[bytes, bytes], body: bytes, base: str
    ) -> Answer:
        """Answer one request; `base` is the server's own address. Raises `Refusal`."""
        parameters = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        upload, _, rest = raw_path.partition("/storage/v1/b")
        parts = [unquote(p) for p in rest.split("/")[1:]]
        match verb, parts:
            case (("PUT" | "POST"), [_, "o"]) if upload == "/upload" and "upload_id" in parameters:
                return self._resume(parameters["upload_id"], headers, body)
            case "DELETE", [_, "o"] if upload == "/upload":
                return self._cancel(parameters.get("upload_id", ""))
            case "POST", [bucket, "o"] if upload == "/upload":
                return self._insert(bucket, parameters, headers, body, base)
            case "GET", []:
                return _json({"kind": "storage#buckets", "items": [_bucket(n) for n in self._buckets.names()]})
            case "POST", []:
                name = str(_object(body).get("name", ""))
                self._buckets.create(name)
                return _json(_bucket(name))
            case "GET", [bucket]:
                self._buckets.require(bucket)
                return _json(_bucket(bucket))
            case "DELETE", [bucket]:
                self._buckets.remove(bucket)
                return 204, b"", []
            case "GET", [bucket, "o"]:
                return _json(self._list(bucket, parameters))
            case "GET", [bucket, "o", name]:
                condition = _condition(parameters)
                path = self._buckets.path(bucket, name, condition)
                if parameters.get("alt") == "media" or upload == "/download":
                    return self._media(bucket, name, path, headers)
                return _json(self._buckets.describe(bucket, name))
            case "DELETE", [bucket, "o", name]:
                self._buckets.delete(bucket, name, _condition(parameters))
                return 204, b"", []
            case "POST", [bucket, "o", name, ("copyTo" | "rewriteTo") as how, "b", to, "o", new]:
                source = self._buckets.path(bucket, name, _condition(parameters, "Source"))
                made = self._buckets.insert(to, new, source, _condition(parameters))
                size = made["size"]
                rewritten = {"kind": "storage#rewriteResponse", "done": True, "resource": made}
                return _json(made if how == "copyTo" else rewritten | {"objectSize": size, "totalBytesRewritten": size})
        raise Refusal(501, f"{verb} {raw_path}: this method of Cloud Storage is not built here")

    def _insert(
        self, bucket: str, parameters: dict[str, str], headers: dict[bytes, bytes], body: bytes, base: str
    ) -> Answer:
        how = parameters.get("uploadType")
        condition = _condition(parameters)
        if how == "media":
            return _json(self._buckets.insert(bucket, parameters.get("name", ""), body, condition))
        if how == "multipart":
            described, content = _parts(headers.get(b"content-type", b""), body)
            name = str(described.get("name") or parameters.get("name", ""))
            return _json(self._buckets.insert(bucket, name, content, condition))
        if how == "resumable":
            self._buckets.require(bucket)
            identity = uuid.uuid4().hex
            name = str(_object(body).get("name") or parameters.get("name", ""))
            upload = _Upload(bucket, name, condition, self._folder / identity)
            upload.path.touch()
            self._uploads[identity] = upload
            location = f"{base}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={identity}"
            return 200, b"", [(b"location", location.encode())]
        raise Refusal(400, f"uploadType={how}: is unknown; media, multipart and resumable are accepted")

    def _resume(self, identity: str, headers: dict[bytes, bytes], body: bytes) -> Answer:
        upload = self._under_way(identity)
        span = headers.get(b"content-range", b"").decode("latin-1")
        match = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", span) if span else None
        if span and not match:
            raise Refusal(400, f"Content-Range: {span!r} is none; such as bytes 0-99/100 is")
        have = upload.path.stat().st_size
        start = int(match[1]) if match and match[1] else 0 if not match else have
        if start > have:
            raise Refusal(400, f"Content-Range: starts at {start}, but {have} bytes are here; go on from there")
        with upload.path.open("r+b") as file:
            file.seek(start)
            file.write(body)
        have = max(have, start + len(body))
        if (match and match[3] in ("*", None)) or (match and have < int(match[3])):
            return 308, b"", [(b"range", f"bytes=0-{have - 1}".encode())] if have else []
        made = self._buckets.insert(upload.bucket, upload.name, upload.path, upload.condition)
        self._forget(identity)
        return _json(made)

    def _cancel(self, identity: str) -> Answer:
        self._under_way(identity)
        self._forget(identity)
        return 499, b"", []  # what Cloud Storage answers to this

    def _under_way(self, identity: str) -> _Upload:
        upload = self._uploads.get(identity)
        if upload is None:
            raise Refusal(404, "upload_id: this upload is unknown, or has ended; start it again")
        return upload

    def _forget(self, identity: str) -> None:
        self._uploads.pop(identity).path.unlink()

    def _list(self, bucket: str, parameters: dict[str, str]) -> JSON:
        prefix, delimiter = parameters.get("prefix", ""), parameters.get("delimiter", "")
        try:
            after = base64.urlsafe_b64decode(parameters.get("pageToken", "")).decode()
            limit = max(1, min(int(parameters.get("maxResults") or 1000), 1000))
        except ValueError as error:
            raise Refusal(400, f"pageToken, maxResults: {error}; give a token that a list gave, and a number") from None
        items: list[JSON] = []
        prefixes: list[str] = []
        last = ""
        for name in self._buckets.objects(bucket, prefix):
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            shown = name[: cut + len(delimiter)] if cut >= 0 else name
            if shown <= after or shown in prefixes[-1:]:
                continue
            if len(items) + len(prefixes) == limit:
                token = base64.urlsafe_b64encode(last.encode()).decode()
                return {"kind": "storage#objects", "items": items, "prefixes": prefixes, "nextPageToken": token}
            last = shown
            if cut >= 0:
                prefixes.append(shown)
            else:
                items.append(self._buckets.describe(bucket, name))
        return {"kind": "storage#objects", "items": items, "prefixes": prefixes}

    def _media(self, bucket: str, name: str, path: Path, headers: dict[bytes, bytes]) -> Answer:
        described = self._buckets.describe(bucket, name)
        size = int(described["size"])
        fields = [
            (b"content-type", described["contentType"].encode()),
            (b"x-goog-generation", described["generation"].encode()),
            (b"x-goog-hash", f"crc32c={described['crc32c']},md5={described['md5Hash']}".encode()),
            (b"accept-ranges", b"bytes"),
        ]
        match = re.fullmatch(rb"bytes=(\d*)-(\d*)", headers.get(b"range", b""))
        if not match or not any(match.groups()):
            return 200, path.read_bytes(), fields
        first = int(match[1]) if match[1] else max(0, size - int(match[2]))
        last = min(size - 1, int(match[2])) if match[1] and match[2] else size - 1
        if first > last:
            raise Refusal(416, f"Range: {name} has {size} bytes", "OUT_OF_RANGE")
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(last - first + 1)
        return 206, content, [*fields, (b"content-range", f"bytes {first}-{last}/{size}".encode())]


def _bucket(name: str) -> JSON:
    return {
        "kind": "storage#bucket",
        "id": name,
        "name": name,
        # No number on purpose: given one, PipelineJob.submit asks Google's Resource Manager whose it is; that cannot be
        # redirected, and without a network waits a minute.
        "projectNumber": "local",
        "location": "US-CENTRAL1",
        "locationType": "region",
        "storageClass": "STANDARD",
        "metageneration": "1",
    }


def _json(value: JSON) -> Answer:
    return 200, orjson.dumps(value), []


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the body is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise Refusal(400, "the body is no JSON object")
    return value


def _condition(parameters: dict[str, str], of: str = "") -> Condition:
    values = []
    for name in (f"if{of}GenerationMatch", f"if{of}GenerationNotMatch"):
        text = parameters.get(name)
        if text is not None and not text.isdecimal():
            raise Refusal(400, f"{name}={text}: is no generation; a number is, and 0 for no object")
        values.append(None if text is None else int(text))
    return Condition(*values)


def _parts(content_type: bytes, body: bytes) -> tuple[dict[str, Any], bytes]:
    """The two parts of a `multipart/related` upload: the object's description, and its content.

    Lines end as the first one does: in CRLF by the standard, in a bare LF from gcsfs.
    """
    match = re.search(rb'boundary="?([^";]+)"?', content_type)
    if match:
        mark = b"--" + match[1]
        pieces = body.split(mark, 2)  # the content may hold anything but the boundary at its end
        if len(pieces) == 3:
            end = b"\r\n" if pieces[1].startswith(b"\r\n") else b"\n"
            content, closed, _ = pieces[2].rpartition(end + mark + b"--")
            first, second = pieces[1].partition(2 * end), content.partition(2 * end)
            if closed and first[1] and second[1]:
                return _object(first[2].strip()), second[2]
    raise Refusal(400, "the body is no multipart/related upload of two parts; send a description and a content")
