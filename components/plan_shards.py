"""Step 2: cut the clips into at most 256 shards by content, a manifest each."""

from kfp.dsl import Dataset, Input, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def plan_shards(clips: Input[Dataset], workdir: str) -> list:  # type: ignore[type-arg]  # kfp reads `list`
    """Write the shards' manifests and return where they are."""
    from pathlib import Path

    from twophase.audio import dataset, images
    from twophase.progress import step

    with step("plan shards") as say:
        source = Path(clips.path) / "clips.jsonl"
        count = sum(1 for _ in dataset.read_clips(source))
        shards = images.plan(dataset.read_clips(source), Path(workdir) / "shards", count)
        say.result(f"{count} clips in {len(shards)} shards")
    return [str(shard) for shard in shards]
