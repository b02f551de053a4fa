"""Programs that run beside this one and end with it."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


class Processes:
    """The processes that are running, so that none outlives this one."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()
        self._stopped = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def pool(self, workers: int) -> Iterator[ThreadPoolExecutor]:
        """Threads that begin no further task once the block has failed (on Ctrl-C, say); running processes end."""
        with ThreadPoolExecutor(workers) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                with self._lock:
                    self._stopped = True
                    for process in list(self._running):
                        process.terminate()  # its kernel notices by itself that it is alone
                raise

    def call(self, command: list[str], log: Path, **options: Any) -> int:
        """Run a command to its end, what it prints into `log` (a pipe would wait for its children too)."""
        with self._lock, log.open("wb") as printed:
            if self._stopped:
                return -1
            process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, **options)
            self._running.add(process)
        code = process.wait()
        self._running.discard(process)
        return code
