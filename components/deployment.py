"""Step 11, only for a better release: canary, smoke test by golden windows, promote; or roll back."""

from kfp.dsl import Input, Model, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def deploy_version(
    release: Input[Model], version: str, project: str, region: str, api_endpoint: str, model: str
) -> str:
    """Deploy a registered version beside the live one, try it, and move all traffic to it; return the endpoint."""
    from pathlib import Path

    from twophase.progress import step
    from twophase.targets.vertex import Registry

    with step("deploy the version") as say:
        endpoint = Registry(project, region, api_endpoint).deploy(Path(release.path), version, model)
        say.result(endpoint)
    return endpoint
