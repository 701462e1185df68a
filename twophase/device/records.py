"""What the spool knows of clips whose sound has gone: small JSON objects, each whole and synced, the newest kept."""

import logging
from collections.abc import Iterator
from pathlib import Path

from twophase.device.durable import sealed, unsealed, write_new
from twophase.device.layout import cost, name, numbered
from twophase.files import JSON

log = logging.getLogger(__name__)


class Records:
    """One folder of them, by sequence number: at most so many, and so many bytes; the oldest go first."""

    def __init__(self, folder: Path, incoming: Path, most: int, most_bytes: int) -> None:
        """`incoming` is a folder on the same disk, for files that are being written."""
        self._folder, self._incoming, self._most, self._most_bytes = folder, incoming, most, most_bytes
        self._costs = {number: cost(entry.stat().st_size) for number, entry in numbered(folder, ".json")}
        self.bytes = sum(self._costs.values())
        """What they take on the disk."""

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._costs

    def __len__(self) -> int:
        return len(self._costs)

    def __iter__(self) -> Iterator[int]:
        return iter(self._costs)

    def put(self, sequence: int, value: JSON) -> None:
        """Keep a JSON object. Raises `SpoolError` when the disk does not take it."""
        data = sealed(value)
        path = self._path(sequence)
        write_new(path, data, self._incoming / path.name)
        self._costs[sequence] = cost(len(data))
        self.bytes += self._costs[sequence]
        while len(self._costs) > self._most or self.bytes > self._most_bytes:
            self.remove(min(self._costs))

    def get(self, sequence: int) -> JSON:
        """What was kept. Raises `TwoPhaseError` when it is not there, or not as it was written."""
        return unsealed(self._path(sequence))

    def remove(self, sequence: int) -> None:
        """Remove one, where it is there."""
        if sequence in self._costs:
            self.bytes -= self._costs.pop(sequence)
            try:
                self._path(sequence).unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s: cannot be removed: %s", self._path(sequence), error)

    def _path(self, sequence: int) -> Path:
        return self._folder / f"{name(sequence)}.json"
