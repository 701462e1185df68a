"""Batch prediction where Google's component does not run: the same job, asked for through the official SDK."""

from kfp.dsl import Artifact, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def predict_batch(
    source: str,
    destination: str,
    project: str,
    region: str,
    api_endpoint: str,
    model: str,
    predictions: Output[Artifact],
) -> str:
    """Ask the default version of `model` about the instances of `source` (JSON lines); return where answers are."""
    from components.step import step
    from twophase.targets.batch import predict_batch

    with step("predict a batch") as say:
        found = predict_batch(source, destination, project, region, api_endpoint, model)
        predictions.uri = found.output
        predictions.metadata.update(job=found.job, good=found.good, bad=found.bad)
        say.result(f"{found.good} answers, {found.bad} errors in {found.output}", **found.to_json())
    return found.output


@component(base_image=IMAGE, install_kfp_package=False)
def find_version(project: str, region: str, api_endpoint: str, model: str) -> str:
    """Return `ID@default` of the model called `model`: how Google's component names a version."""
    from components.step import step
    from twophase.errors import TwoPhaseError
    from twophase.targets.live import whats_live

    with step("find the version") as say:
        parent = whats_live(project, region, api_endpoint, model).parent
        if not parent:
            raise TwoPhaseError(f"{model}: there is no such model in {project}/{region}; run the pipeline first")
        name = f"{parent.rpartition('/')[2]}@default"
        say.result(name)
    return name
