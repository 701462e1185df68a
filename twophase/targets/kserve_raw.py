"""KServe's raw mode, in which a predictor is a plain Deployment: how it is told, and when its pods have been replaced.

KServe calls the mode `RawDeployment`, from 0.16 on also `Standard`. There is no Knative in it, so no revisions, no
split of traffic and nothing that could be asked before it answers everybody. What is left is the rollout: a new pod
gets requests when its server has reproduced the golden windows, and only then does an old one go.
"""

from typing import Any

import orjson

from twophase.files import JSON

MODE = "serving.kserve.io/deploymentMode"
RAW, SERVERLESS = "RawDeployment", "Serverless"


def mode_of(service: JSON | None, maps: Any) -> str:
    """The mode of a service by its own word, else the cluster's default. Where that may not be read: serverless."""
    from kubernetes.client.exceptions import ApiException

    named = service["metadata"].get("annotations", {}).get(MODE) if service else None
    if named is None:
        try:
            config = maps.read_namespaced_config_map("inferenceservice-config", "kserve").data or {}
            named = orjson.loads(config.get("deploy", "{}")).get("defaultDeploymentMode")
        except (ApiException, orjson.JSONDecodeError):
            named = None
    return RAW if named in (RAW, "Standard") else SERVERLESS


def replaced(deployment: Any) -> bool:
    """Whether every pod of a Deployment is a new one that answers."""
    status, wanted = deployment.status, deployment.spec.replicas or 1
    counts = (status.updated_replicas, status.replicas, status.available_replicas)
    return bool(status.observed_generation == deployment.metadata.generation and counts == (wanted,) * 3)


def stuck(deployment: Any) -> str:
    """Why a Deployment's new pods do not come up, once Kubernetes has given up on them."""
    for condition in deployment.status.conditions or ():
        if condition.type == "Progressing" and condition.status == "False":
            return str(condition.message or condition.reason)
    return ""
