"""Step 5a: train the gate."""

from kfp.dsl import Dataset, Input, Model, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def train_gate(images: Input[Dataset], workdir: str, quick: bool, seed: int, gate: Output[Model]) -> None:
    """Fit the gate through the image_generator, or take the one that these images and settings made before.

    On several workers each comes here, and the first hands on what all have made.
    """
    from pathlib import Path

    from components.artifacts import hand_on
    from components.step import step
    from components.unfinished import going_on
    from twophase.audio.images import ImageSet
    from twophase.training import distributed, train

    with step("train the gate", workdir) as say:
        first = distributed.join()
        recipe = train.recipe("gate", bool(quick), int(seed))
        with going_on(Path(workdir), gate, first, train.report(say.at)) as progress:
            found = train.train_gate(ImageSet(Path(images.path)), Path(workdir), recipe, progress)
        if first:
            hand_on(found, gate, framework="keras")
