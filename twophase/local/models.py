"""ModelService: models, their versions, and the aliases that point at versions.

A model is a row of versions. Version numbers count up and are never used again. Exactly one version carries `default`,
which is what a model's name alone means.
"""

import re
from typing import Any

import orjson

from twophase.files import JSON
from twophase.local.artifacts import Artifacts
from twophase.local.buckets import Buckets
from twophase.local.query import selected
from twophase.local.resources import done, etag, failed, missing, new_id, now, page, page_start, page_token, patched
from twophase.local.store import Store, parent_of
from twophase.serving.refusal import Refusal

DEFAULT = "default"
_ALIAS = re.compile(r"[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]")
_MUTABLE = {"displayName", "description", "labels", "versionDescription"}
_CAPABILITIES = {
    "supportedDeploymentResourcesTypes": ["DEDICATED_RESOURCES", "SHARED_RESOURCES"],
    "supportedInputStorageFormats": ["jsonl", "file-list"],
    "supportedOutputStorageFormats": ["jsonl"],
}


class Models:
    """The methods of ModelService that are built, by their names."""

    def __init__(self, store: Store, artifacts: Artifacts, buckets: Buckets) -> None:
        self._store, self._artifacts, self._buckets = store, artifacts, buckets

    def upload_model(self, request: JSON) -> JSON:
        """A new model, or a new version of `parentModel`; the artifact is copied in and verified first."""
        given, parent = request.get("model", {}), request["parent"]
        if not given.get("displayName"):
            raise Refusal(400, "model.displayName: is missing; give the model a name")
        aliases = [a for a in given.get("versionAliases", []) if a != DEFAULT]
        for alias in aliases:
            _check_alias(alias)
        uri = given.get("artifactUri", "")
        artifact = self._artifacts.add(self._buckets.model(uri), uri) if uri else None
        time = now()
        with self._store.transaction():
            name, version = self._next_version(request, parent, time)
            body = {**given, "versionCreateTime": time, "versionUpdateTime": time}
            for computed in (
                "name",
                "versionId",
                "versionAliases",
                "createTime",
                "updateTime",
                "deployedModels",
                "etag",
            ):
                body.pop(computed, None)
            self._store.run("INSERT INTO version VALUES (?, ?, ?, ?)", name, version, artifact, orjson.dumps(body))
            is_default = version == 1 or DEFAULT in given.get("versionAliases", [])
            for alias in [*aliases, *([DEFAULT] if is_default else [])]:
                self._point(name, alias, version)
            response = {"model": name, "modelVersionId": str(version)}
            return done(self._store, name, "UploadModel", response, "UploadModelResponse")

    def get_model(self, request: JSON) -> JSON:
        """A version by `NAME`, `NAME@VERSION` or `NAME@ALIAS`."""
        return self.body(*self.resolve(request["name"]))

    def list_models(self, request: JSON) -> JSON:
        """The default version of every model below a location, newest first."""
        rows = self._store.all(
            "SELECT model.name, alias.version FROM model JOIN alias ON alias.model = model.name AND alias.alias = ? "
            "WHERE parent = ? ORDER BY created DESC, name",
            DEFAULT,
            request["parent"],
        )
        bodies = [self.body(row["name"], row["version"]) for row in rows]
        return page(selected(bodies, request), request, "models")

    def list_model_versions(self, request: JSON) -> JSON:
        """The versions of a model, newest first."""
        name = self.resolve(request["name"])[0]
        if request.get("filter") or request.get("orderBy"):
            rows = self._store.all("SELECT id FROM version WHERE model = ? ORDER BY id DESC", name)
            return page(selected([self.body(name, row["id"]) for row in rows], request), request, "models")
        start, size = page_start(request), min(int(request.get("pageSize", 0)) or 100, 1000)
        rows = self._store.all(
            "SELECT id FROM version WHERE model = ? ORDER BY id DESC LIMIT ? OFFSET ?", name, size + 1, start
        )
        found: dict[str, Any] = {"models": [self.body(name, row["id"]) for row in rows[:size]]}
        if len(rows) > size:
            found["nextPageToken"] = page_token(start + size)
        return found

    def update_model(self, request: JSON) -> JSON:
        """Change a version's words and labels."""
        name, version = self.resolve(request["model"]["name"])
        changed = patched(self.body(name, version), request["model"], request.get("updateMask", ""), _MUTABLE)
        with self._store.transaction():
            self._write(name, version, changed)
        return self.body(name, version)

    def merge_version_aliases(self, request: JSON) -> JSON:
        """Point aliases at a version; `-alias` takes one away. `default` can be moved, never taken away."""
        name, version = self.resolve(request["name"])
        aliases = request.get("versionAliases", [])
        if not aliases:
            raise Refusal(400, "versionAliases: is empty; give aliases to add, and -alias to take one away")
        for alias in aliases:
            _check_alias(alias.removeprefix("-"))
        if f"-{DEFAULT}" in aliases:
            raise Refusal(400, f"-{DEFAULT}: cannot be taken away; give {DEFAULT} to another version instead")
        with self._store.transaction():
            for alias in aliases:
                if alias.startswith("-"):
                    gone = (name, alias[1:], version)
                    self._store.run("DELETE FROM alias WHERE model = ? AND alias = ? AND version = ?", *gone)
                else:
                    self._point(name, alias, version)
            self._write(name, version, self.body(name, version))
        return self.body(name, version)

    def delete_model_version(self, request: JSON) -> JSON:
        """Delete one version that is neither deployed, nor the default, nor the last."""
        name, version = self.resolve(request["name"])
        body = self.body(name, version)
        self._refuse_deployed(body)
        if DEFAULT in body["versionAliases"]:
            raise failed(
                f"{name}@{version}: is the default version; make another the default first, or delete the model"
            )
        with self._store.transaction():
            self._store.run("DELETE FROM version WHERE model = ? AND id = ?", name, version)
            return done(self._store, name, "DeleteModelVersion", None)

    def delete_model(self, request: JSON) -> JSON:
        """Delete a model with all its versions, when none is deployed."""
        name, _ = self.resolve(request["name"])
        for row in self._store.all("SELECT id FROM version WHERE model = ?", name):
            self._refuse_deployed(self.body(name, row["id"]))
        with self._store.transaction():
            self._store.run("DELETE FROM model WHERE name = ?", name)
            return done(self._store, name, "DeleteModel", None)

    def resolve(self, name: str) -> tuple[str, int]:
        """The model and version number of `NAME`, `NAME@VERSION`, `NAME@ALIAS`. Raises `Refusal` 404."""
        model, _, wanted = name.partition("@")
        if wanted.isdecimal():
            row = self._store.one("SELECT id FROM version WHERE model = ? AND id = ?", model, int(wanted[:18]))
        else:
            sql = "SELECT version AS id FROM alias WHERE model = ? AND alias = ?"
            row = self._store.one(sql, model, wanted or DEFAULT)
        if row is None:
            raise missing(name)
        return model, row["id"]

    def artifact(self, name: str, version: int) -> str | None:
        """The key of the artifact that a version was uploaded with."""
        row = self._store.one("SELECT artifact FROM version WHERE model = ? AND id = ?", name, version)
        if row is None:
            raise missing(f"{name}@{version}")
        key: str | None = row["artifact"]
        return key

    def body(self, name: str, version: int) -> JSON:
        """A version as the API answers it."""
        row = self._store.one(
            "SELECT body, created FROM version JOIN model ON model.name = version.model WHERE model = ? AND id = ?",
            name,
            version,
        )
        if row is None:
            raise missing(f"{name}@{version}")
        body = orjson.loads(row["body"])
        aliases = self._store.all("SELECT alias FROM alias WHERE model = ? AND version = ?", name, version)
        deployed = self._store.all("SELECT endpoint, id FROM deployed WHERE model = ? AND version = ?", name, version)
        return etag(
            {
                **body,
                **_CAPABILITIES,
                "name": name,
                "versionId": str(version),
                "versionAliases": [row["alias"] for row in aliases],
                "createTime": row["created"],
                "updateTime": body["versionUpdateTime"],
                "deployedModels": [{"endpoint": r["endpoint"], "deployedModelId": r["id"]} for r in deployed],
            }
        )

    def _next_version(self, request: JSON, parent: str, time: str) -> tuple[str, int]:
        base = request.get("parentModel", "").partition("@")[0]
        if not base:
            name = f"{parent}/models/{new_id(request.get('modelId'))}"
            if self._store.one("SELECT 1 FROM model WHERE name = ?", name):
                raise Refusal(409, f"{name}: already exists; upload a version of it with parentModel")
            self._store.run("INSERT INTO model VALUES (?, ?, 2, ?)", name, parent, time)
            return name, 1
        if parent_of(base) != parent:
            raise Refusal(400, f"parentModel: {base} is not below {parent}; give a model of this project and location")
        row = self._store.one("SELECT next_version FROM model WHERE name = ?", base)
        if row is None:
            raise missing(base)
        self._store.run("UPDATE model SET next_version = next_version + 1 WHERE name = ?", base)
        return base, row["next_version"]

    def _point(self, name: str, alias: str, version: int) -> None:
        self._store.run(
            "INSERT INTO alias VALUES (?, ?, ?) ON CONFLICT (model, alias) DO UPDATE SET version = excluded.version",
            name,
            alias,
            version,
        )

    def _write(self, name: str, version: int, body: JSON) -> None:
        derived = {"name", "versionId", "versionAliases", "createTime", "updateTime", "deployedModels", "etag"}
        kept = {k: v for k, v in body.items() if k not in derived | _CAPABILITIES.keys()} | {"versionUpdateTime": now()}
        self._store.run("UPDATE version SET body = ? WHERE model = ? AND id = ?", orjson.dumps(kept), name, version)

    def _refuse_deployed(self, body: JSON) -> None:
        if body["deployedModels"]:
            where = ", ".join(sorted({d["endpoint"] for d in body["deployedModels"]}))
            raise failed(f"{body['name']}@{body['versionId']}: is deployed at {where}; undeploy it there first")


def _check_alias(alias: str) -> None:
    if not _ALIAS.fullmatch(alias):
        raise Refusal(400, f"{alias!r}: is no alias; [a-z][a-zA-Z0-9-]{{0,126}}[a-z0-9] is, such as champion")
