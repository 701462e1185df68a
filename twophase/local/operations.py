"""The operations mixin: every change is done when it is answered, so an operation is a record to read."""

from twophase.files import JSON
from twophase.local.query import selected
from twophase.local.resources import done as done
from twophase.local.resources import missing, page
from twophase.local.store import Store

_KIND = "operation"


class Operations:
    """GetOperation, ListOperations, DeleteOperation, WaitOperation, CancelOperation."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get_operation(self, request: JSON) -> JSON:
        """An operation by its name."""
        found = self._store.get(_KIND, request["name"])
        if found is None:
            raise missing(request["name"])
        return found

    def wait_operation(self, request: JSON) -> JSON:
        """An operation, done."""
        return self.get_operation(request)

    def list_operations(self, request: JSON) -> JSON:
        """The operations of a location, or of one resource, newest first."""
        location, of = "/".join(request["name"].split("/")[:4]), f"{request['name']}/operations/"
        found = [o for o in self._store.resources(_KIND, location) if o["name"].startswith(of) or of.count("/") == 5]
        return page(selected(found, request), request, "operations")

    def delete_operation(self, request: JSON) -> JSON:
        """Forget an operation."""
        self.get_operation(request)
        with self._store.transaction():
            self._store.delete(_KIND, request["name"])
        return {}
