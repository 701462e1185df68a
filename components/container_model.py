"""A release as Google's upload component takes it: where it lies, and the container that serves it."""

from google_cloud_pipeline_components.types import artifact_types
from kfp.dsl import Input, Model, Output, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def container_model(
    release: Input[Model], image: str, unmanaged: Output[artifact_types.UnmanagedContainerModel]
) -> dict:  # type: ignore[type-arg]  # kfp reads `dict`
    """Name the serving container of a release; return the labels of the version.

    Google's prebuilt TensorFlow images know the model's routes themselves; ours say theirs.
    """
    from pathlib import Path

    from twophase.release import manifest

    found = manifest.verify(Path(release.path))
    prebuilt = "/vertex-ai/prediction/" in image
    ours = {"predictRoute": "/predict", "healthRoute": "/health", "ports": [{"containerPort": 8080}]}
    unmanaged.uri = release.uri
    unmanaged.metadata["containerSpec"] = {"imageUri": image, **({} if prebuilt else ours)}
    return {"release": found.id, "front_end": found.fingerprint}
