"""Step 8: one HTML file with the pictures that people look at."""

from kfp.dsl import HTML, Dataset, Input, Model, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def write_report(
    clips: Input[Dataset],
    images: Input[Dataset],
    gate: Input[Model],
    classifier: Input[Model],
    evaluation: Input[Dataset],
    release: Input[Model],
    workdir: str,
    report: Output[HTML],
) -> str:
    """Write `workdir/reports/<id>.html` and return where it is. `clips` brings rendered clips along, to listen to."""
    from pathlib import Path

    from components.artifacts import hand_on
    from components.step import step
    from twophase.audio.images import ImageSet
    from twophase.training.judge import Judgement
    from twophase.training.report import write

    with step("write the report", workdir) as say:
        found = Path(workdir) / "reports" / f"{release.metadata['release']}.html"
        judged = Judgement.read(Path(evaluation.path))
        write(found, ImageSet(Path(images.path)), Path(gate.path), Path(classifier.path), judged, Path(release.path))
        hand_on(found, report)
        say.result(str(found), report=str(found))
    return str(found)
