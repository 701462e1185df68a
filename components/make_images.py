"""Step 3, fanned out: the images of one shard's clips."""

from kfp.dsl import component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def make_images(shard: str, workdir: str) -> str:
    """Make the pack of a shard, decoding only clips that no pack has; return where it is."""
    from pathlib import Path

    from twophase.audio import dataset, images
    from twophase.progress import step

    with step("make images") as say:
        clips = list(dataset.read_clips(Path(shard)))
        pack = images.make_pack(Path(workdir) / "images", clips, lambda n: say.advance(n, len(clips)))
    return str(pack)
