"""Step 1: labelled clips, read from where they are or rendered by the synthesiser."""

from kfp.dsl import Dataset, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def generate_data(data: str, wanted: str, workdir: str, synth_per_label: int, seed: int, clips: Output[Dataset]) -> int:
    """List the clips of `data`, or of a freshly rendered set where it is empty; return how many there are."""
    from pathlib import Path

    from twophase.audio import dataset
    from twophase.audio.generate import generate
    from twophase.progress import step

    with step("generate data") as say:
        names = dataset.parse_wanted(wanted) if wanted else None
        found = generate(data, names, Path(workdir), int(synth_per_label), int(seed), say.at)
        dataset.write(Path(clips.path), found)
        clips.metadata.update(clips=len(found.clips), labels=list(found.labels), wanted=list(found.wanted))
        say.result(f"{len(found.clips)} clips of {len(found.labels)} labels")
    return len(found.clips)
