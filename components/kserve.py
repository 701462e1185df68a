"""Steps 9 to 11 on Kubeflow: the live release is KServe's, and KServe is where a better one goes live."""

from kfp.dsl import Dataset, Input, Model, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def compare_releases(
    clips: Input[Dataset],
    evaluation: Input[Dataset],
    release: Input[Model],
    workdir: str,
    model: str,
    namespace: str,
    releases: str,
) -> str:
    """Return `better`, `worse` or `not shown`, as the step of that name does elsewhere.

    `releases` is the URL below which the cluster finds releases; `clips` brings rendered clips along.
    """
    from pathlib import Path

    from components.step import step
    from twophase.serving.fetch import fetch
    from twophase.targets.kserve import KServe
    from twophase.training.compare import against_champion
    from twophase.training.judge import Judgement

    with step("compare with the champion", workdir) as say:
        there = KServe(model, namespace, releases).status()
        address = f"{releases.rstrip('/')}/{model}/{there.versions[there.live]}" if there.live else ""
        champion = fetch(address, Path(workdir) / "releases") if address else None
        verdict = against_champion(Judgement.read(Path(evaluation.path)), Path(release.path), champion)
        say.result(verdict.words, verdict=verdict.name)
    return verdict.name


@component(base_image=IMAGE, install_kfp_package=False)
def deploy_version(release: Input[Model], model: str, namespace: str, releases: str, image: str) -> str:
    """Register a release, try it without traffic, and move all traffic to it; return its version."""
    from pathlib import Path

    from components.step import step
    from twophase.targets.kserve import KServe

    with step("deploy the version") as say:
        version = KServe(model, namespace, releases, image).deploy(Path(release.path))
        say.result(f"version {version} of {model} in {namespace}")
    return version
