"""EndpointService: endpoints, what is deployed at them, and how they split their traffic.

A deployment is loaded and has reproduced its golden windows before the endpoint is changed; the change is committed
before traffic moves. After a restart every endpoint answers as it did.
"""

from typing import Any

from twophase.files import JSON
from twophase.local.live import Live, Target
from twophase.local.models import Models
from twophase.local.query import selected
from twophase.local.resources import done, etag, failed, missing, new_id, now, page, patched
from twophase.local.store import Store
from twophase.serving.refusal import Refusal

_MUTABLE = {"displayName", "description", "labels", "trafficSplit"}
_MUTABLE_DEPLOYED = {"dedicatedResources", "automaticResources", "disableContainerLogging", "enableAccessLogging"}
_KIND = "endpoint"


class Endpoints:
    """The methods of EndpointService that are built, by their names."""

    def __init__(self, store: Store, models: Models, live: Live) -> None:
        self._store, self._models, self._live = store, models, live
        for body in store.resources(_KIND):
            for deployed in body.get("deployedModels", []):
                live.restore(self._target(body["name"], deployed).artifact, f"{body['name']}: {deployed['id']}")
            self._route(body)

    def create_endpoint(self, request: JSON) -> JSON:
        """An endpoint with nothing deployed."""
        given = request.get("endpoint", {})
        if not given.get("displayName"):
            raise Refusal(400, "endpoint.displayName: is missing; give the endpoint a name")
        if given.get("deployedModels") or given.get("trafficSplit"):
            raise Refusal(
                400, "endpoint.deployedModels, trafficSplit: are set by deployModel, once the endpoint is there"
            )
        name = f"{request['parent']}/endpoints/{new_id(request.get('endpointId'))}"
        if self._store.get(_KIND, name):
            raise Refusal(409, f"{name}: already exists; deploy to it, or take another id")
        body = {**given, "name": name, "createTime": now()}
        with self._store.transaction():
            self._put(body)
            operation = done(self._store, name, "CreateEndpoint", {"name": name}, "Endpoint")
        self._route(body)
        return operation | {"response": operation["response"] | self._get(name)}

    def get_endpoint(self, request: JSON) -> JSON:
        """An endpoint by its name."""
        return self._get(request["name"])

    def list_endpoints(self, request: JSON) -> JSON:
        """The endpoints of a location, newest first."""
        found = self._store.resources(_KIND, request["parent"])
        return page(selected(found, request), request, "endpoints")

    def update_endpoint(self, request: JSON) -> JSON:
        """Change an endpoint's words, labels, or traffic split."""
        body = self._get(request["endpoint"]["name"])
        changed = patched(body, request["endpoint"], request.get("updateMask", ""), _MUTABLE)
        if "trafficSplit" in request.get("updateMask", ""):
            _check_split(changed.get("trafficSplit", {}), changed)
        return self._change(changed)

    def delete_endpoint(self, request: JSON) -> JSON:
        """Delete an endpoint at which nothing is deployed."""
        body = self._get(request["name"])
        if body.get("deployedModels"):
            raise failed(f"{body['name']}: has {len(body['deployedModels'])} deployed models; undeploy them first")
        with self._store.transaction():
            self._store.delete(_KIND, body["name"])
            operation = done(self._store, body["name"], "DeleteEndpoint", None)
        self._live.forget(body["name"])
        return operation

    def deploy_model(self, request: JSON) -> JSON:
        """Load a version, check it, and give it the traffic that the request says."""
        body, given = self._get(request["endpoint"]), request.get("deployedModel", {})
        model, version = self._models.resolve(given.get("model", ""))
        identity = given.get("id") or new_id()
        deployed = {
            **given,
            "id": identity,
            "model": model,
            "modelVersionId": str(version),
            "displayName": given.get("displayName") or self._models.body(model, version)["displayName"],
            "createTime": now(),
        }
        if any(d["id"] == identity for d in body.get("deployedModels", [])):
            raise Refusal(409, f"deployedModel.id: {identity} is deployed there already; leave it out to get a new one")
        changed = {**body, "deployedModels": [*body.get("deployedModels", []), deployed]}
        split = {identity if k == "0" else k: v for k, v in request.get("trafficSplit", {}).items()}
        if split:
            _check_split(split, changed)
            changed["trafficSplit"] = split
        self._live.load(self._target(body["name"], deployed).artifact)
        try:
            with self._store.transaction():
                row = (body["name"], identity, model, version)
                self._store.run("INSERT INTO deployed VALUES (?, ?, ?, ?)", *row)
                self._put(changed)
                operation = done(
                    self._store, body["name"], "DeployModel", {"deployedModel": deployed}, "DeployModelResponse"
                )
            self._route(changed)
        finally:
            self._live.let_go()
        return operation

    def undeploy_model(self, request: JSON) -> JSON:
        """Take a deployed model away that has no traffic, or whose traffic the request gives to others."""
        body, identity = self._get(request["endpoint"]), request.get("deployedModelId", "")
        left = [d for d in body.get("deployedModels", []) if d["id"] != identity]
        if len(left) == len(body.get("deployedModels", [])):
            raise missing(f"{body['name']}: deployed model {identity}")
        changed = {**body, "deployedModels": left}
        split = request.get("trafficSplit") or body.get("trafficSplit", {})
        if not left:
            split = {}
        elif split.get(identity):
            raise failed(
                f"{identity}: has {split[identity]}% of the traffic; give it to others with trafficSplit first"
            )
        split = {k: v for k, v in split.items() if k != identity}
        _check_split(split, changed)
        changed["trafficSplit"] = split
        with self._store.transaction():
            self._store.run("DELETE FROM deployed WHERE endpoint = ? AND id = ?", body["name"], identity)
            self._put(changed)
            operation = done(self._store, body["name"], "UndeployModel", {}, "UndeployModelResponse")
        self._route(changed)
        return operation

    def mutate_deployed_model(self, request: JSON) -> JSON:
        """Change a deployed model's resources, which mean nothing on one machine and are kept as they are given."""
        body, given = self._get(request["endpoint"]), request.get("deployedModel", {})
        found = next((d for d in body.get("deployedModels", []) if d["id"] == given.get("id")), None)
        if found is None:
            raise missing(f"{body['name']}: deployed model {given.get('id', '')!r}")
        mutated = patched(found, given, request.get("updateMask", ""), _MUTABLE_DEPLOYED)
        others = [mutated if d is found else d for d in body["deployedModels"]]
        with self._store.transaction():
            self._put({**body, "deployedModels": others})
            response = {"deployedModel": mutated}
            return done(self._store, body["name"], "MutateDeployedModel", response, "MutateDeployedModelResponse")

    def _change(self, body: JSON) -> JSON:
        with self._store.transaction():
            self._put(body)
        self._route(body)
        return self._get(body["name"])

    def _get(self, name: str) -> JSON:
        body = self._store.get(_KIND, name)
        if body is None:
            raise missing(name)
        return body

    def _put(self, body: JSON) -> None:
        self._store.put(_KIND, etag({**body, "updateTime": now()}))

    def _route(self, body: JSON) -> None:
        targets = [self._target(body["name"], d) for d in body.get("deployedModels", [])]
        self._live.route(body["name"], targets, body.get("trafficSplit", {}))

    def _target(self, endpoint: str, deployed: JSON) -> Target:
        model, version = deployed["model"], int(deployed["modelVersionId"])
        artifact = self._models.artifact(model, version)
        if artifact is None:
            raise failed(f"{model}@{version}: has no artifact; upload a version with an artifact_uri")
        return Target(deployed["id"], artifact, model, str(version), deployed["displayName"])


def _check_split(split: dict[str, Any], body: JSON) -> None:
    """Refuse a traffic split that names what is not deployed, or does not sum to 100; empty is no traffic."""
    unknown = split.keys() - {d["id"] for d in body.get("deployedModels", [])}
    if unknown:
        raise Refusal(
            400, f"trafficSplit: {', '.join(sorted(unknown))} is not deployed there; 0 is the one being deployed"
        )
    if split and (sum(split.values()) != 100 or min(split.values()) < 0):
        raise Refusal(
            400, f"trafficSplit: {split} sums to {sum(split.values())}; the shares are per cent and sum to 100"
        )
