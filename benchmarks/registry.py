"""The registry at 10 and at 1,000 versions of a model: create, list a page, resolve an alias; switches under load.

    python benchmarks/registry.py RELEASE [OTHER_RELEASE] [--versions 1000] [--switches 50]

A platform is started on a temporary home and spoken to over HTTP. Then the endpoint's traffic is switched between two
versions under steady load; every request has to be answered, by a version that was live.
"""

import argparse
import base64
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from _report import at_most, emit, machine, row
from serving import clip

from twophase.local.process import down, up

LOCATION = "projects/p/locations/l"


def median_ms(call: Callable[[], Any], times: int = 50) -> float:
    """Median time of a call in milliseconds."""
    took = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        took.append(1e3 * (time.perf_counter() - started))
    return statistics.median(took)


def switches(http: httpx.Client, url: str, model: str, count: int) -> tuple[int, int, set[str]]:
    """Requests answered and failed while the endpoint is switched `count` times, and which versions answered."""
    endpoint = http.post(f"{LOCATION}/endpoints", json={"displayName": "e"}).json()["response"]["name"]
    body = {"instances": [{"audio_bytes": {"b64": base64.b64encode(clip()).decode()}}]}

    def deploy(version: int) -> str:
        request = {"deployedModel": {"model": f"{model}@{version}"}, "trafficSplit": {"0": 100}}
        answer = http.post(f"{endpoint}:deployModel", json=request).raise_for_status().json()
        return str(answer["response"]["deployedModel"]["id"])

    live, answered, failed, seen, over = deploy(1), 0, 0, set(), threading.Event()

    def ask() -> None:
        nonlocal answered, failed
        with httpx.Client(base_url=url, timeout=30) as own:
            while not over.is_set():
                answer = own.post(f"/v1/{endpoint}:predict", json=body)
                answered += answer.status_code == 200
                failed += answer.status_code != 200
                seen.add(answer.json().get("modelVersionId", "none"))

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for i in range(count):
        new = deploy(2 - i % 2)
        http.post(f"{endpoint}:undeployModel", json={"deployedModelId": live}).raise_for_status()
        live = new
    over.set()
    for asker in askers:
        asker.join()
    return answered, failed, seen


def run(release: Path, other: Path | None = None, versions: int = 1000, count: int = 50) -> dict[str, Any]:
    """Measure at 10 and at `versions` versions, then switch."""
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        url = up(home).url
        try:
            with httpx.Client(base_url=f"{url}/v1/", timeout=60) as http:

                def upload(source: Path, **more: str) -> str:
                    body = {"model": {"displayName": "pair", "artifactUri": str(source)}, **more}
                    answer = http.post(f"{LOCATION}/models:upload", json=body).raise_for_status().json()
                    return str(answer["response"]["model"])

                model, made = upload(release), 1
                upload(other or release, parentModel=model)
                made += 1
                http.post(f"{model}@2:mergeVersionAliases", json={"versionAliases": ["champion"]}).raise_for_status()
                for size in (10, versions):
                    while made < size - 5:
                        upload(release, parentModel=model)
                        made += 1
                    figures["create", size] = median_ms(lambda: upload(release, parentModel=model), size - made)
                    made = size
                    figures["list a page", size] = median_ms(lambda: http.get(f"{model}:listVersions?pageSize=10"))
                    figures["resolve an alias", size] = median_ms(lambda: http.get(f"{model}@champion"))
                    rows += [row(f"{what}, {n:,} versions", t, "ms") for (what, n), t in figures.items() if n == size]
                answered, failed, seen = switches(http, url, model, count)
        finally:
            down(home)
    rows += [row(f"answered during {count} switches", answered, "requests"), row("failed", failed, "requests")]
    rows.append(row("versions that answered", len(seen), "of 2"))
    goals = [
        at_most(f"{what}: {versions:,} versions to 10", figures[what, versions] / figures[what, 10], 1.5)
        for what in ("create", "list a page", "resolve an alias")
    ]
    goals.append(at_most("failed requests", failed, 0))
    return {"benchmark": "registry", "machine": machine(), "rows": rows, "goals": goals}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("release", type=Path)
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--switches", type=int, default=50)
    given = parser.parse_args()
    emit(run(given.release, given.other, given.versions, given.switches))
