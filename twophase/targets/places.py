"""Which targets there are, and what each needs to know of the place: a setting is given, or found in the environment.

A setting `NAME` is `TWOPHASE_NAME` in the environment. Credentials are no settings: each cloud's own tools keep them.
"""

import os
from collections.abc import Callable, Mapping

from twophase.errors import UsageError
from twophase.targets.target import SERVER_IMAGE, Target

REQUIRED = "\0"
OPTIONS = ("project", "region", "api_endpoint")
"""The settings that have an option of their own in the command line; the others are given by `--set`."""
_EXTRA = {"local": "pipelines", "vertex": "pipelines"}
SETTINGS: dict[str, dict[str, str]] = {
    "local": {"api_endpoint": REQUIRED, "project": "local", "region": "us-central1"},
    "vertex": {"project": REQUIRED, "region": "us-central1", "api_endpoint": "", "image": SERVER_IMAGE},
    "sagemaker": {
        "region": "",
        "role": REQUIRED,
        "bucket": "",
        "image": SERVER_IMAGE,
        "alarms": "",
        "instances": "1",
    },
    "azureml": {"subscription": REQUIRED, "resource_group": REQUIRED, "workspace": REQUIRED, "image": SERVER_IMAGE},
    "kserve": {"namespace": "default", "store": REQUIRED, "image": SERVER_IMAGE},
}
"""Every target's settings and their defaults."""


def place(name: str, model: str, given: Mapping[str, str]) -> Target:
    """The target called `name`. Raises `UsageError` naming what is not known or missing."""
    settings = settings_of(name, given)
    try:
        return _MAKE[name](model, settings)
    except ModuleNotFoundError as error:
        raise UsageError(f"{name} needs {error.name}; install twophase[{_EXTRA.get(name, name)}]") from None


def settings_of(name: str, given: Mapping[str, str]) -> dict[str, str]:
    """All settings of the target called `name`: given, from the environment, or their defaults. Raises `UsageError`."""
    if name not in SETTINGS:
        raise UsageError(f"--target {name}: is not known; {', '.join(SETTINGS)} are")
    known = SETTINGS[name]
    for setting in given:
        if setting not in known:
            raise UsageError(f"{_option(setting)}: means nothing to {name}; it has {', '.join(known)}")
    settings = {
        setting: given.get(setting) or os.environ.get(f"TWOPHASE_{setting.upper()}") or default
        for setting, default in known.items()
    }
    for setting, value in settings.items():
        if value == REQUIRED:
            how = _option(setting) + ("" if setting in OPTIONS else "=...")
            raise UsageError(f"{name} needs {setting}; give {how}, or TWOPHASE_{setting.upper()}")
    return settings


def _option(setting: str) -> str:
    return f"--{setting.replace('_', '-')}" if setting in OPTIONS else f"--set {setting}"


def _vertex(model: str, settings: Mapping[str, str]) -> Target:
    from twophase.targets.vertex import VertexAI

    return VertexAI(model, **settings)


def _sagemaker(model: str, settings: Mapping[str, str]) -> Target:
    from twophase.targets.sagemaker import SageMaker

    return SageMaker(model, **settings)


def _azureml(model: str, settings: Mapping[str, str]) -> Target:
    from twophase.targets.azureml import AzureML

    return AzureML(model, **settings)


def _kserve(model: str, settings: Mapping[str, str]) -> Target:
    from twophase.targets.kserve import KServe

    return KServe(model, **settings)


_MAKE: dict[str, Callable[[str, Mapping[str, str]], Target]] = {
    "local": _vertex,
    "vertex": _vertex,
    "sagemaker": _sagemaker,
    "azureml": _azureml,
    "kserve": _kserve,
}
