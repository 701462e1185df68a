"""Step 5a: train the gate."""

from kfp.dsl import Dataset, Input, Model, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def train_gate(images: Input[Dataset], workdir: str, quick: bool, seed: int, gate: Output[Model]) -> None:
    """Fit the gate through the image_generator, or take the one that these images and settings made before."""
    from pathlib import Path

    from components.artifacts import hand_on
    from twophase.audio.images import ImageSet
    from twophase.progress import step
    from twophase.training import train

    with step("train the gate") as say:
        recipe = train.recipe("gate", bool(quick), int(seed))
        found = train.train_gate(ImageSet(Path(images.path)), Path(workdir), recipe, train.report(say.at))
        hand_on(found, gate, framework="keras")
