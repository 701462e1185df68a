"""What the gateway recommends reaches the trigger on new data, and what lies there then is data."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from sqlalchemy import update

from pipelines.clients import Vertex
from tests.gateway.said import GATE, answered, report, status
from tests.pipelines.test_trigger import app, deliver, finalized, runs_of
from twophase.audio.dataset import find_clips
from twophase.gateway import advice, devices
from twophase.gateway.server import open_store
from twophase.gateway.store import clip
from twophase.local.process import Address


def test_advice_starts_one_run_on_the_clips_that_it_rests_on(
    platform: Address, vertex: Vertex, small_spec: dict[str, Any], clips_bucket: Path, tmp_path: Path
) -> None:
    home, news = tmp_path, clips_bucket / "news"
    manifest = home / "updates" / "targets" / GATE / "assets.extra" / "0123.release.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"operating_point": {"recall": 0.95}}))
    store = open_store(home)
    store.do(lambda c: devices.expect(c, "d0"))
    report(store, "d0", status(100_000, 1_000, 500))
    answered(store, "d0", "escalation", 90, 10, 1)
    answered(store, "d0", "audit", 20, 180, 1000)
    (home / "clips" / "d0").mkdir(parents=True)
    for number, label in ((1, "Oboe"), (1001, "none of these")):
        sound = io.BytesIO()
        soundfile.write(sound, np.full(4000, 0.1 * number / 1001), 16_000, format="FLAC")
        (home / "clips" / "d0" / str(number)).write_bytes(sound.getvalue())
        which = update(clip).where(clip.c.sequence == number).values(prediction={"label": label})
        store.do(lambda c, which=which: c.execute(which))
    (given,) = advice.give(store, home, news)
    store.close()
    client = app(platform, small_spec, "gs://clips/news").test_client()
    event = finalized(f"gs://clips/news/{GATE}-{given.do}/manifest.json")
    assert [deliver(client, event) for _ in range(2)] == [200, 200]
    assert len(runs_of(vertex, "gs://clips/news")) == 1
    clips, _ = find_clips(news)
    assert sorted(c.label for c in clips) == ["Oboe", "none of these"]
