"""Step 5b: train the classifier."""

from kfp.dsl import Dataset, Input, Model, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def train_classifier(
    images: Input[Dataset], workdir: str, quick: bool, seed: int, backbone: str, weights: str, classifier: Output[Model]
) -> None:
    """Fit the classifier through the image_generator, or take the one that these images and settings made before."""
    from pathlib import Path

    from components.artifacts import hand_on
    from twophase.audio.images import ImageSet
    from twophase.progress import step
    from twophase.training import train

    with step("train the classifier") as say:
        recipe = train.recipe("classifier", bool(quick), int(seed))
        found = train.train_classifier(
            ImageSet(Path(images.path)), Path(workdir), recipe, backbone, weights or None, train.report(say.at)
        )
        hand_on(found, classifier, framework="keras", backbone=backbone)
