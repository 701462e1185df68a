"""Step 6: ask the exported files about clips they never learned from; choose the operating point."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def evaluate_pair(
    images: Input[Dataset],
    gate: Input[Model],
    classifier: Input[Model],
    rule: str,
    workdir: str,
    evaluation: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """The operating point comes from the validation clips, every figure from the test clips."""
    from pathlib import Path

    from twophase.audio.images import ImageSet
    from twophase.progress import step
    from twophase.training.judge import judge
    from twophase.training.operating_point import parse_rule

    with step("evaluate the pair") as say:
        found = judge(
            ImageSet(Path(images.path)),
            Path(gate.path),
            Path(classifier.path),
            parse_rule(rule),
            Path(workdir),
            say.advance,
        )
        evaluation.uri = str(found.folder)
        for name, value in found.headline().items():
            metrics.log_metric(name, value)
        words = ", ".join(f"{name} {value:.3f}" for name, value in found.headline().items())
        say.result(words, evaluation=str(found.folder))
