"""Model artifacts, copied in once and never changed: `home/artifacts/<key>/`.

The key is the content's: `r-<12 hex>-<12 hex>`, a release's id and a digest of its manifest, or `m-<12 hex>` for
another SavedModel. A copy is written aside, verified, synced and renamed, so a folder with a key is whole. Uploading
the same content again finds it there.
"""

import errno
import shutil
from pathlib import Path

from twophase.files import digest, digest_of, disk_error, sync, sync_tree
from twophase.release.manifest import EXTRA, ReleaseError, files_of, verify
from twophase.serving.refusal import Refusal


class Artifacts:
    """The folder of artifacts. Use it from one thread at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(".tmp-*"):
            shutil.rmtree(left, ignore_errors=True)

    def path(self, key: str) -> Path:
        """Where an artifact lies."""
        return self._root / key

    def add(self, source: Path, uri: str) -> str:
        """Copy a model folder in; its key. `uri` is how errors call it. Raises `Refusal`."""
        if not source.is_dir():
            raise Refusal(400, f"{uri}: is no folder; give the folder of a release or a SavedModel")
        if not (source / EXTRA / "release.json").is_file() and not (source / "saved_model.pb").is_file():
            raise Refusal(400, f"{uri}: holds no model; a release or a SavedModel (saved_model.pb) is accepted")
        aside = self._root / ".tmp-add"
        try:
            shutil.copytree(source, aside, copy_function=_copy)
            key = _key(aside)
            if not self.path(key).exists():
                sync_tree(aside)
                aside.rename(self.path(key))
                sync(self._root)
        except ReleaseError as error:
            raise Refusal(400, f"{uri}: {error}", "FAILED_PRECONDITION") from None
        except shutil.Error as error:
            raise Refusal(400, f"{uri}: cannot be copied ({error.args[0][0][2]})") from None
        except OSError as error:
            raise Refusal(507, str(disk_error(self._root, error))) from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return key

    def keys(self) -> set[str]:
        """Every artifact there is."""
        return {p.name for p in self._root.iterdir() if not p.name.startswith(".")}

    def remove(self, key: str) -> None:
        """Delete an artifact: out of sight by one rename, then file by file."""
        aside = self._root / f".tmp-remove-{key}"
        self.path(key).rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _copy(source: str, to: str) -> None:
    """Copy a file; a full disk ends the copying, where `copytree` would go on and put it with what cannot be read."""
    try:
        shutil.copyfile(source, to)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Refusal(507, str(disk_error(Path(to), error))) from None
        raise


def is_release(key: str) -> bool:
    """Whether the artifact with that key is a release of this project, rather than another SavedModel."""
    return key.startswith("r-")


def _key(folder: Path) -> str:
    if not (folder / EXTRA / "release.json").is_file():
        return f"m-{digest_of(files_of(folder))[:12]}"
    return (
        f"{verify(folder).id}-{digest(folder / EXTRA / 'release.json')[:12]}"  # the manifest digests every other file
    )
