"""Step 1: labelled clips, read from where they are or rendered by the synthesiser."""

from kfp.dsl import Dataset, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def generate_data(
    data: str, data_digest: str, wanted: str, workdir: str, synth_per_label: int, seed: int, clips: Output[Dataset]
) -> int:
    """List the clips of `data`, or of a freshly rendered set where it is empty; return how many there are.

    `data_digest` is of what lies at `data` (`twophase submit` computes it): another value means that there are other
    clips, the same that a cached answer is still true.
    """
    from pathlib import Path

    from components.artifacts import carry_clips, digest_of_tree
    from components.step import step
    from twophase.audio import dataset
    from twophase.audio.generate import generate

    with step("generate data", workdir) as say:
        names = dataset.parse_wanted(wanted) if wanted else None
        found = generate(data, names, Path(workdir), int(synth_per_label), int(seed), say.at)
        if not data:
            found = carry_clips(found, Path(clips.path) / "rendered")
        dataset.write(Path(clips.path), found)
        clips.metadata.update(
            clips=len(found.clips),
            labels=list(found.labels),
            wanted=list(found.wanted),
            source=data or "rendered",
            digest=digest_of_tree(Path(clips.path) / "clips.jsonl"),
        )
        say.result(f"{len(found.clips)} clips of {len(found.labels)} labels")
    return len(found.clips)
