"""Step 6: ask the exported files about clips they never learned from; choose the operating point."""

from kfp.dsl import ClassificationMetrics, Dataset, Input, Metrics, Model, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def evaluate_pair(
    clips: Input[Dataset],
    images: Input[Dataset],
    gate: Input[Model],
    classifier: Input[Model],
    rule: str,
    workdir: str,
    evaluation: Output[Dataset],
    metrics: Output[Metrics],
    gate_curve: Output[ClassificationMetrics],
    confusion: Output[ClassificationMetrics],
) -> None:
    """The operating point comes from the validation clips, every figure from the test clips.

    `clips` brings rendered clips along: the exported files are asked about sound, not about images.
    """
    from pathlib import Path

    from components.artifacts import hand_on, log_gate
    from components.step import step
    from twophase.audio.images import ImageSet
    from twophase.training.judge import judge
    from twophase.training.operating_point import parse_rule

    with step("evaluate the pair", workdir) as say:
        found = judge(
            ImageSet(Path(images.path)),
            Path(gate.path),
            Path(classifier.path),
            parse_rule(rule),
            Path(workdir),
            say.advance,
        )
        hand_on(found.folder, evaluation, threshold=found.point.threshold, **found.lineage)
        for name, value in found.headline().items():
            metrics.log_metric(name, value)
        log_gate(found.test, gate_curve)
        figures = found.metrics["classifier"]
        confusion.log_confusion_matrix(list(figures["names"]), figures["confusion"])
        words = ", ".join(f"{name} {value:.3f}" for name, value in found.headline().items())
        say.result(words, evaluation=str(found.folder))
