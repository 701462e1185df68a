"""Step 4: what came of all shards becomes one image set."""

from kfp.dsl import Dataset, Input, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def collect_images(
    clips: Input[Dataset],
    shards: list,  # type: ignore[type-arg]  # kfp reads `list`
    made: list,  # type: ignore[type-arg]
    on_bad_clip: str,
    workdir: str,
    images: Output[Dataset],
) -> None:
    """Join shards into an image set; clips that cannot be used are named, or fail the run."""
    from pathlib import Path

    from twophase.audio import dataset
    from twophase.audio.images import collect
    from twophase.progress import step

    with step("collect images") as say:
        read = dataset.read(Path(clips.path))
        results, manifests = [Path(m) for m in made], [Path(s) for s in shards]
        found = collect(results, manifests, read.wanted, Path(workdir) / "set", on_bad_clip, read.skipped)
        images.uri = str(Path(workdir) / "set")
        images.metadata.update(digest=found.digest, images=len(found), clips=len(found.clips), left_out=len(found.bad))
        say.result(
            f"{len(found)} images of {len(found.clips)} clips, {len(found.bad)} files left out", left_out=found.bad
        )
