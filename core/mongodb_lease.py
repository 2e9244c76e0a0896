"""Leases on MongoDB: a document that its holder writes again before it runs out.

It is ``{_id: name, token, holder, until: UTC µs}``, and the guard of every write is in its filter, as everywhere:
only a document that has run out is taken over, and only one with the own token is renewed or removed. The clocks
of the machines are compared: they must agree to a few seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from uuid import uuid4

from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from core.errors import BackendError
from core.store import Confirm, Document, refusal, this_holder

RENEWALS = 3
"""So often a lease is renewed in its time."""

log = logging.getLogger(__name__)

Translated = Callable[[], AbstractContextManager[None]]
"""Makes errors of the driver ours."""


@contextmanager
def hold(
    leases: Collection[Document], translated: Translated, url: str, name: str, seconds: float
) -> Iterator[Confirm]:
    """Take a lease, have a thread renew it, and give it back at the end; `core.store.Store.lease` has the promises."""
    lease = Lease(leases, translated, url, name, seconds)
    lease.take()
    is_over = threading.Event()
    thread = threading.Thread(target=lease.renew_until, args=(is_over,), name=f"lease of {name}", daemon=True)
    thread.start()
    try:
        yield lease.confirm
    finally:
        is_over.set()
        thread.join()
        lease.give_back()


class Lease:
    """One holder's view of a lease."""

    def __init__(
        self, leases: Collection[Document], translated: Translated, url: str, name: str, seconds: float
    ) -> None:
        self._leases, self._translated = leases, translated
        self._url, self._name, self._seconds = url, name, seconds
        self._mine = {"_id": name, "token": uuid4().hex, "holder": this_holder()}

    def take(self) -> None:
        """Insert the document, or replace one that has run out; raise `BackendError` if another holds it."""
        run_out = {"_id": self._name, "until": {"$lt": _now()}}
        with self._translated():
            try:
                self._leases.replace_one(run_out, self._document(), upsert=True)
            except DuplicateKeyError as error:
                raise self._refusal() from error

    def confirm(self) -> None:
        """Renew it; raise `BackendError` if it was lost meanwhile."""
        if not self._renew():
            raise BackendError(
                f"{self._url}: `{self._name}` was not renewed for {self._seconds:g} s, and is lost to "
                f"{self._holder()}; what was done here is not completed: run it again"
            )

    def renew_until(self, is_over: threading.Event) -> None:
        """Renew it again and again. A connection that is broken may come back in time; `confirm` has the last word."""
        while not is_over.wait(self._seconds / RENEWALS):
            try:
                self._renew()
            except BackendError as error:
                log.warning("the lease of %s is not renewed: %s", self._name, error)

    def give_back(self) -> None:
        """Remove the document, if it is still ours; what cannot be removed runs out."""
        try:
            with self._translated():
                self._leases.delete_one({"_id": self._name, "token": self._mine["token"]})
        except BackendError as error:
            log.warning("the lease of %s runs out in %g s: %s", self._name, self._seconds, error)

    def _renew(self) -> bool:
        with self._translated():
            ours = {"_id": self._name, "token": self._mine["token"]}
            return bool(self._leases.replace_one(ours, self._document()).matched_count)

    def _document(self) -> Document:
        return {**self._mine, "until": _now() + int(self._seconds * 1e6)}

    def _refusal(self) -> BackendError:
        advice = f"let it end; if it was killed, its lease runs out within {self._seconds:g} s"
        return refusal(self._url, self._name, self._holder(), advice)

    def _holder(self) -> Any:
        with self._translated():
            found = self._leases.find_one({"_id": self._name})
        return found["holder"] if found else "another process, which has ended"


def _now() -> int:
    return time.time_ns() // 1000
