"""One background thread that does jobs in order and never keeps the program from ending."""

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_Job = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class BackgroundThread:
    """Runs jobs one by one in a daemon thread, which ends with `close` or with this object.

    (A `ThreadPoolExecutor` would finish all pending jobs before the interpreter may exit.)
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()
        weakref.finalize(self, self._jobs.put, None)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Returns at once with a future of `function(*args)`."""
        future: Future[Any] = Future()
        self._jobs.put((future, function, args))
        return future

    def close(self) -> None:
        """Ends the thread after the jobs before this call; cancel their futures to skip them."""
        self._jobs.put(None)
        self._thread.join()


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        future, function, args = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)
        # An idle thread must not keep alive what it worked for.
        del job, future, function, args
