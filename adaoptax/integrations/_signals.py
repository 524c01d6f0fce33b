"""Asking a loop to stop: SIGTERM and Ctrl-C set a flag that is read after the step."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax


class StopSignals:
    """Remembers SIGTERM and the first Ctrl-C; the second Ctrl-C raises KeyboardInterrupt at once.

    Python delivers signals to the main thread only; in another one nothing is installed. Where
    `jax.distributed` runs, SIGTERM belongs to JAX, which agrees with all processes on one step to
    stop at, and Ctrl-C is passed on to it.

    Attributes:
        received: Whether to stop; under `jax.distributed`, set from what all processes agreed on.
    """

    def __init__(self) -> None:
        self.received = False
        self._interrupted = False
        self._forward = False
        self._previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Takes over the signals, unless they are ignored (as under `nohup`)."""
        self.received = self._interrupted = False
        if threading.current_thread() is not threading.main_thread():
            return
        self._forward = jax.distributed.is_initialized()
        numbers = [signal.SIGINT] if self._forward else [signal.SIGINT, signal.SIGTERM]
        for number in numbers:
            previous = signal.getsignal(number)
            # None is a handler that Python did not install and could not put back.
            if previous not in (signal.SIG_IGN, None):
                self._previous[number] = signal.signal(number, self._on_signal)

    def remove(self) -> None:
        """Puts the previous handlers back."""
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            # `print` may be what was interrupted, and cannot be entered twice.
            os.write(2, b"\nStopping after this step; press Ctrl-C again to stop at once.\n")
            if self._forward:
                os.kill(os.getpid(), signal.SIGTERM)
        if not self._forward:  # else this process must not decide alone
            self.received = True
