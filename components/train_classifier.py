"""Step 5b: train the classifier."""

from kfp.dsl import Dataset, Input, Model, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def train_classifier(
    images: Input[Dataset], workdir: str, quick: bool, seed: int, backbone: str, weights: str, classifier: Output[Model]
) -> None:
    """Fit the classifier through the image_generator, or take the one that these images and settings made before.

    On several workers each comes here, and the first hands on what all have made.
    """
    from pathlib import Path

    from components.artifacts import hand_on
    from components.step import step
    from components.unfinished import going_on
    from twophase.audio.images import ImageSet
    from twophase.training import distributed, train

    with step("train the classifier", workdir) as say:
        first = distributed.join()
        recipe = train.recipe("classifier", bool(quick), int(seed))
        with going_on(Path(workdir), classifier, first, train.report(say.at)) as progress:
            found = train.train_classifier(
                ImageSet(Path(images.path)), Path(workdir), recipe, backbone, weights or None, progress
            )
        if first:
            hand_on(found, classifier, framework="keras", backbone=backbone)
