"""Run both servers until Ctrl-C and print their URLs as lines of a config: ``python -m tests.servers``."""

from __future__ import annotations

import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from . import ServerError, kafka, mongodb


def main() -> None:
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="murmuration-") as folder,
        kafka(Path(folder)) as bus,
        mongodb(Path(folder)) as store,
    ):
        print(f"store: {store}/music\nbus: {bus}", flush=True)
        print("Running until Ctrl-C; what they hold is gone then.", file=sys.stderr)
        signal.pause()


if __name__ == "__main__":
    try:
        main()
    except ServerError as error:
        sys.exit(str(error))
