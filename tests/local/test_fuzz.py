"""Whatever is asked of the platform, it answers or refuses: never a 500, and nothing is changed by a refusal."""

import asyncio
from collections.abc import Iterator

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twophase.local.api import methods
from twophase.local.app import Platform

NAMES = st.sampled_from(["p", "l", "m", "1", "m@1", "m@default", "e", "..", "%2e%2e", "a b", "é", "x" * 70, "@", "-"])
WORDS = st.sampled_from(
    """name displayName model parent parentModel artifactUri versionAliases labels endpoint deployedModel trafficSplit
    id deployedModelId updateMask instances parameters pipelineJob pipelineSpec root runtimeConfig inputConfig gcsSource
    uris outputConfig gcsDestination outputUriPrefix instancesFormat predictionsFormat batchPredictionJob jobId regions
    predictionInput deploymentUri dataFormat inputPaths description""".split()  # noqa: SIM905
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(["m", "projects/p/locations/l/models/m", "gs://twophase/x", "gs://twophase", "jsonl", "default"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=10,
)
PARTS = st.tuples(st.binary(max_size=9), st.sampled_from([b"\n", b"\r\n", b""])).map(
    lambda drawn: drawn[1].join([b"--b", b"", b"{}", b"--b", b"", drawn[0], b"--b--"])
)
BODIES = (
    st.dictionaries(WORDS, VALUES, max_size=5).map(orjson.dumps)
    | VALUES.map(orjson.dumps)
    | st.binary(max_size=30)
    | PARTS
)
QUERIES = st.lists(
    st.sampled_from(
        """pageSize=-1 pageSize=2 pageToken=MQ== pageToken=x filter=a%3D1 filter=( filter=a="b"%20OR%20NOT%20c:*
        orderBy=create_time%20desc orderBy=,; updateMask=displayName,labels updateMask=x.y readMask=* q=1 modelId=1
        endpointId=e pipelineJobId=a $alt=json uploadType=media name=o ifGenerationMatch=0 maxResults=x prefix=/etc/
        prefix=a//b uploadType=multipart uploadType=resumable upload_id=x name=../x model.display_name=a
        version_aliases=a filter=a.b:1 alt=media delimiter=/""".split()  # noqa: SIM905
    ),
    max_size=3,
).map("&".join)
HEADERS = st.lists(
    st.sampled_from(
        [
            (b"content-type", b'multipart/related; boundary="b"'),
            (b"content-range", b"bytes 0-1/2"),
            (b"content-range", b"bytes */*"),
            (b"range", b"bytes=5-1"),
            (b"range", b"bytes=-3"),
            (b"host", b"\xff"),
        ]
    ),
    max_size=2,
)
OTHERS = [
    ("POST", "/v1/projects/*/models"),
    ("POST", "/v1/projects/*/models/*/versions"),
    ("POST", "/v1/projects/*/models/*/versions/*:setDefault"),
    ("POST", "/v1/projects/*/models/*:predict"),
    ("POST", "/v1/projects/*/jobs"),
    ("GET", "/v1/projects/*/jobs"),
    ("GET", "/storage/v1/b/*/o"),
    ("GET", "/storage/v1/b/*/o/*"),
    ("POST", "/storage/v1/b"),
    ("POST", "/upload/storage/v1/b/*/o"),
    ("PUT", "/upload/storage/v1/b/*/o"),
    ("DELETE", "/storage/v1/b/*/o/*"),
    ("POST", "/storage/v1/b/*/o/*/copyTo/b/*/o/*"),
]
ROUTES = [(m.verb, m.path.pattern.replace("[^/:]+", "*").replace("(", "").replace(")", "")) for m in methods()]


Request = tuple[str, str, str, list[tuple[bytes, bytes]], bytes]
"""Method, path, query, headers, body."""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    found = Platform(tmp_path_factory.mktemp("fuzz"))
    yield found
    found.close()


@st.composite
def requests(draw: st.DrawFn) -> Request:
    verb, template = draw(st.sampled_from([r for r in ROUTES if ".+" not in r[1]] + OTHERS * 4))
    path = "".join(draw(NAMES) if part == "*" else part for part in template.replace("*", "\0*\0").split("\0"))
    return verb, path, draw(QUERIES), draw(HEADERS), draw(BODIES)


SETTINGS = settings(deadline=None, suppress_health_check=list(HealthCheck))


@given(request=requests())
@settings(SETTINGS, max_examples=300)
def test_every_request_is_answered_or_refused(platform: Platform, request: Request) -> None:
    check(platform, request)


def check(platform: Platform, request: Request) -> None:
    """Ask, and see that it was answered, or refused in Google's error shape."""
    verb, path, query, headers, body = request
    sent: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": verb,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": headers,
        "scheme": "http",
    }
    asyncio.run(platform(scope, receive, send))
    code = sent[0]["status"]
    assert code != 500, (request, sent[1]["body"])
    if code >= 400:
        error = orjson.loads(sent[1]["body"])["error"]
        assert error["code"] == code
        assert error["message"]
