"""Step 8: one HTML file with the pictures that people look at."""

from kfp.dsl import HTML, Dataset, Input, Model, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def write_report(
    images: Input[Dataset],
    gate: Input[Model],
    classifier: Input[Model],
    evaluation: Input[Dataset],
    release: Input[Model],
    workdir: str,
    report: Output[HTML],
) -> str:
    """Write `workdir/reports/<id>.html` and return where it is."""
    from pathlib import Path

    from twophase.audio.images import ImageSet
    from twophase.progress import step
    from twophase.training.judge import Judgement
    from twophase.training.report import write

    with step("write the report") as say:
        found = Path(workdir) / "reports" / f"{Path(release.path).name}.html"
        judged = Judgement.read(Path(evaluation.path))
        write(found, ImageSet(Path(images.path)), Path(gate.path), Path(classifier.path), judged, Path(release.path))
        report.uri = str(found)
        say.result(str(found), report=str(found))
    return str(found)
