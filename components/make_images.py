"""Step 3, fanned out: the images of one shard's clips."""

from kfp.dsl import Dataset, Input, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def make_images(
    clips: Input[Dataset], shards: Input[Dataset], shard: str, workdir: str, store: str, made: Output[Dataset]
) -> None:
    """See that packs of `store` hold a shard's images, decoding only clips that none has; say which packs those are.

    `store` outlives runs: a URL or a folder that all steps see; `workdir/images` where it is empty. `clips` brings
    rendered clips along.
    """
    import shutil
    from pathlib import Path

    from components.step import step
    from twophase.audio import dataset, images

    with step("make images", workdir) as say:
        Path(made.path).mkdir(parents=True, exist_ok=True)
        manifest = Path(shutil.copyfile(Path(shards.path) / shard, Path(made.path) / shard))
        total = sum(1 for _ in dataset.read_clips(manifest))
        place = store or Path(workdir) / "images"
        images.make_shard(place, manifest, lambda n: say.advance(n, total), workdir=Path(workdir))
        made.metadata.update(shard=shard, clips=total)
