"""Whether a registry has an image, asked before a run that could not pull it; as far as that can be known from here.

Only a registry's own word that there is no such image counts. What it does not show without credentials, or one that is
not reached from this machine, may be there for who pulls it.
"""

from pipelines.credentials import authorization
from twophase.errors import TwoPhaseError

_GOOGLE = ("-docker.pkg.dev", "gcr.io")
_KINDS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_UNKNOWN = {"MANIFEST_UNKNOWN", "NAME_UNKNOWN"}


def check_image(image: str) -> None:
    """Raise `TwoPhaseError` when the registry of `HOST/PATH/NAME[:TAG|@DIGEST]` says that it has none."""
    import httpx
    from google.auth.exceptions import GoogleAuthError

    host, _, path = image.partition("/")
    named, at, digest = path.partition("@")
    name, _, tag = named.partition(":")
    scheme = "http" if host.startswith(("127.", "localhost")) else "https"  # as container engines do
    headers = {"accept": ", ".join(_KINDS)}
    try:
        if host.endswith(_GOOGLE):
            headers |= authorization()
    except GoogleAuthError:
        pass  # some registries are for everybody
    address = f"{scheme}://{host}/v2/{name}/manifests/{digest if at else tag or 'latest'}"
    try:
        answer = httpx.get(address, headers=headers, follow_redirects=True)
        said = {error["code"] for error in answer.json()["errors"]} if answer.status_code == 404 else set()
    except (httpx.TransportError, ValueError, KeyError, TypeError):
        return
    if said & _UNKNOWN:
        above, _, short = name.rpartition("/")
        raise TwoPhaseError(
            f"{image}: {host} has no such image; build and push it: "
            f"`twophase containers build {short}` and `twophase containers push {host}/{above} {short}`"
        )
