"""Step 2: cut the clips into at most 256 shards by content, a manifest each."""

from kfp.dsl import Dataset, Input, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def plan_shards(clips: Input[Dataset], workdir: str, shards: Output[Dataset]) -> list:  # type: ignore[type-arg]  # kfp reads `list`
    """Write the shards' manifests and return their names."""
    from pathlib import Path

    from components.artifacts import hand_on
    from components.step import step
    from twophase.audio import dataset, images

    with step("plan shards", workdir) as say:
        source = Path(clips.path) / "clips.jsonl"
        count = sum(1 for _ in dataset.read_clips(source))
        planned = images.plan(dataset.read_clips(source), Path(workdir) / "shards", count)
        hand_on(Path(workdir) / "shards", shards, shards=len(planned))
        say.result(f"{count} clips in {len(planned)} shards")
    return [shard.name for shard in planned]
