"""Step 3, fanned out: the images of one shard's clips."""

from kfp.dsl import component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def make_images(shard: str, workdir: str) -> str:
    """See that packs hold a shard's images, decoding only clips that none has; return where they are listed."""
    from pathlib import Path

    from twophase.audio import images
    from twophase.progress import step

    with step("make images") as say:
        total = sum(1 for _ in images.read_clips(Path(shard)))
        made = images.make_shard(Path(workdir) / "images", Path(shard), lambda n: say.advance(n, total))
    return str(made)
