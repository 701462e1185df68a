"""Before a version goes live on Vertex AI: what is there already, by the names that Google's components want."""

from typing import NamedTuple

from kfp.dsl import component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def find_live(project: str, region: str, api_endpoint: str, model: str) -> NamedTuple(
    "Live", [("parent", str), ("endpoint", str), ("traffic_split", dict)]
):  # type: ignore[valid-type]
    """The resource names of the model and its endpoint (empty where there is none), and a canary's traffic split.

    In the split `0` is the version to come, as in Vertex AI's API: everything where nothing is live, else the share of
    a canary, and the rest for what is live now.
    """
    from collections import namedtuple

    from components.step import step
    from twophase.targets.live import whats_live

    with step("look what is live") as say:
        live = whats_live(project, region, api_endpoint, model)
        say.result(live.parent or "no version yet")
    return namedtuple("Live", "parent endpoint traffic_split")(live.parent, live.endpoint, live.with_canary())
