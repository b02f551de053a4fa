"""Ctrl-C in the middle of an edit: the edit is finished first."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from tqdm.auto import tqdm


@dataclass
class Interrupt:
    asked: bool = False


@contextlib.contextmanager
def postponed() -> Iterator[Interrupt]:
    """Inside, the first Ctrl-C is only noted, so that the caller can stop where it is safe; a second one acts at once.

    Nothing changes outside the main thread, which alone gets signals, or in a process that ignores Ctrl-C.
    """
    interrupt, before = Interrupt(), signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield interrupt
        return

    def note(*_) -> None:
        interrupt.asked = True
        signal.signal(signal.SIGINT, before)
        tqdm.write("stopping after this edit; Ctrl-C again stops at once", file=sys.stderr)

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
