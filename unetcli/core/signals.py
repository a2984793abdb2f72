"""Requests that reach long work as signals: go on with a fresh checkpoint, or stop in order."""

from __future__ import annotations

import signal
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
"""From outside (``scancel``, shutdown), before a time limit (``sbatch --signal=USR2@120``), from the keyboard."""


class Signals:
    """What was asked of this process. Handlers only set flags: the work looks at them where it can follow.

    An object that does not listen was never asked for anything, which suits work that runs without a command.
    """

    def __init__(self) -> None:
        self._stop: int | None = None
        self._asked = self._answered = 0  # two counters: one flag, cleared, could lose a signal that comes meanwhile

    def listen(self) -> Signals:
        """Take the signals of this process from now on; in the main thread, and before anything slow begins.

        SIGINT too where a shell script has started this with ``&``, deaf to it: whoever sends it to such work means it.
        """
        for number in (*STOPPING, signal.SIGUSR1):
            signal.signal(number, self.note)
        return self

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """A signal has come. The first one to stop counts; a second Ctrl-C interrupts at once, as Python does."""
        if number == signal.SIGUSR1:
            self._asked += 1
            return
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._stop = self._stop or number

    def stop(self) -> int | None:
        """The signal that asks for an orderly end, or None."""
        return self._stop

    def stopping(self) -> bool:
        """Whether one does."""
        return self._stop is not None

    def checkpoint(self) -> bool:
        """Whether SIGUSR1 came since the last call."""
        asked, before = self._asked, self._answered
        self._answered = asked
        return asked != before
