"""Step 7: the pair becomes a release, if SavedModel, LiteRT and Keras agree."""

from kfp.dsl import Dataset, Input, Markdown, Model, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def export_release(
    images: Input[Dataset],
    gate: Input[Model],
    classifier: Input[Model],
    evaluation: Input[Dataset],
    workdir: str,
    release: Output[Model],
    card: Output[Markdown],
) -> str:
    """Export to `workdir/releases/<id>` with its model card, and return the id."""
    from pathlib import Path

    from components.artifacts import hand_on
    from components.step import step
    from twophase.audio.images import ImageSet
    from twophase.release.card import CARD
    from twophase.release.export import export
    from twophase.training.judge import Judgement

    with step("export the release", workdir) as say:
        judged = Judgement.read(Path(evaluation.path))
        found = export(
            Path(gate.path),
            Path(classifier.path),
            judged.point,
            judged.metrics,
            judged.lineage,
            ImageSet(Path(images.path)).clips,
            Path(workdir) / "releases",
        )
        hand_on(found, release, release=found.name, framework="tensorflow", images=judged.lineage["images"])
        hand_on(found / CARD, card)
        say.result(found.name, release=str(found), release_id=found.name)
    return found.name
