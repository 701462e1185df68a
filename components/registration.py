"""Step 10, only for a better release: register it as the next version of the model."""

from kfp.dsl import Input, Model, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def register_version(release: Input[Model], project: str, region: str, api_endpoint: str, model: str) -> str:
    """Upload the release and return the version's resource name."""
    from pathlib import Path

    from components.step import step
    from twophase.targets.vertex_sdk import Registry

    with step("register the version") as say:
        version = Registry(project, region, api_endpoint).register(Path(release.path), model)
        say.result(version, registered=version)
    return version
