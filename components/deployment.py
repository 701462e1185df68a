"""Step 11, only for a better release: canary, smoke test by golden windows, promote; or roll back."""

from google_cloud_pipeline_components.types import artifact_types
from kfp.dsl import Input, Model, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def deploy_version(
    release: Input[Model], version: str, project: str, region: str, api_endpoint: str, model: str
) -> str:
    """Deploy a registered version beside the live one, try it, and move all traffic to it; return the endpoint."""
    from pathlib import Path

    from components.step import step
    from twophase.targets.vertex_sdk import Registry

    with step("deploy the version") as say:
        endpoint = Registry(project, region, api_endpoint).deploy(Path(release.path), version, model)
        say.result(endpoint)
    return endpoint


@component(base_image=IMAGE, install_kfp_package=False)
def promote_version(
    release: Input[Model],
    version: Input[artifact_types.VertexModel],
    project: str,
    region: str,
    api_endpoint: str,
    model: str,
) -> str:
    """The same for a version that Google's component deployed as a canary already: try it, then promote it."""
    from pathlib import Path

    from components.step import step
    from twophase.targets.vertex_sdk import Registry

    with step("promote the version") as say:
        name = version.metadata["resourceName"]
        endpoint = Registry(project, region, api_endpoint).deploy(Path(release.path), name, model)
        say.result(endpoint)
    return endpoint
