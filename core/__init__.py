"""Configuration, records, errors, names, and the two seams: `Store` and `Bus`."""

from core.bus import open_bus
from core.store import open_store

__all__ = ["open_bus", "open_store"]
