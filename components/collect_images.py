"""Step 4: what came of all shards becomes one image set."""

from typing import List  # noqa: UP035 - kfp 2.17 knows a list of artifacts by this name only

from kfp.dsl import Dataset, Input, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def collect_images(
    clips: Input[Dataset],
    made: Input[List[Dataset]],  # noqa: UP006
    on_bad_clip: str,
    workdir: str,
    images: Output[Dataset],
) -> None:
    """Join shards into an image set; clips that cannot be used are named, or fail the run."""
    from pathlib import Path

    from components.artifacts import hand_on
    from components.step import step
    from twophase.audio import dataset
    from twophase.audio.images import collect

    with step("collect images", workdir) as say:
        read = dataset.read(Path(clips.path))
        manifests = [Path(part.path) / part.metadata["shard"] for part in made]
        results = [manifest.with_suffix(".made.json") for manifest in manifests]
        place, planned = Path(workdir) / "set", len(read.clips)
        found = collect(results, manifests, read.wanted, place, on_bad_clip, read.skipped, planned)
        hand_on(place, images, images=len(found), clips=len(found.clips), left_out=len(found.bad))
        images.metadata["digest"] = found.digest
        say.result(
            f"{len(found)} images of {len(found.clips)} clips, {len(found.bad)} files left out", left_out=found.bad
        )
