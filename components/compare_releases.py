"""Step 9: is the new release better than the one that is live?"""

from kfp.dsl import Dataset, Input, Model, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def compare_releases(
    clips: Input[Dataset],
    evaluation: Input[Dataset],
    release: Input[Model],
    workdir: str,
    project: str,
    region: str,
    api_endpoint: str,
    model: str,
) -> str:
    """Return `better`, `worse` or `not shown`. The verdict is this step's only output: the branch hangs on it.

    `clips` brings rendered clips along: the live release is asked about the same sounds.
    """
    from pathlib import Path

    from components.step import step
    from twophase.targets.vertex_sdk import Registry
    from twophase.training.compare import against_champion
    from twophase.training.judge import Judgement

    with step("compare with the champion", workdir) as say:
        champion = Registry(project, region, api_endpoint).champion(model, Path(workdir) / "releases")
        verdict = against_champion(Judgement.read(Path(evaluation.path)), Path(release.path), champion)
        say.result(verdict.words, verdict=verdict.name)
    return verdict.name
