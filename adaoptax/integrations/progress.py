"""A progress bar over examples, by tqdm."""

from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm

__all__ = ["ProgressBar"]


class ProgressBar:
    """Shows the examples seen, the batch size, what it should be and the loss: a callback.

    The bar counts examples, since updates become rarer as the batch grows. It appears with the
    first record and then measures the speed, so that neither compilation nor what was done before
    a resume enters it. `close` leaves its last state on the screen; the training loop calls it
    also after an exception or Ctrl-C.

    Args:
        total_examples: Examples of the whole run, for the share done and the time left; None
            where nobody knows.
        announce: Whether to print a line at every change of the batch size.
        **options: Passed on to `tqdm`, for example ``desc="seed 0"`` or ``disable=True``.

    Examples:
        >>> import io
        >>> from adaoptax.integrations.progress import ProgressBar
        >>> screen = io.StringIO()
        >>> show = ProgressBar(1000, file=screen, desc="digits")
        >>> show({"step": 1, "examples": 32, "batch_size": 32, "required": 80.5, "loss": 2.31})
        >>> show.close()
        >>> "32.0/1.00k" in screen.getvalue(), "batch=32, needs=80, loss=2.31" in screen.getvalue()
        (True, True)
    """

    def __init__(
        self, total_examples: int | None = None, *, announce: bool = False, **options: Any
    ) -> None:
        self._options = {"unit": " examples", "unit_scale": True, "mininterval": 0.5, **options}
        self._total, self._announce = total_examples, announce
        self._bar: Any = None
        self._batch_size: int | None = None

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Moves the bar to a record.

        Args:
            record: What the loop sends; "examples" and "batch_size" are needed.
        """
        examples, size = record["examples"], record["batch_size"]
        if self._bar is None:
            self._open(examples)
        if self._announce and self._batch_size not in (None, size):
            text = f"{examples - size:,} examples: batch size {self._batch_size} -> {size}"
            self._bar.write(text, file=self._options.get("file"))
        self._batch_size = size
        self._bar.set_postfix_str(_postfix(record), refresh=False)
        self._bar.update(examples - self._bar.n)

    def resume(self, record: Mapping[str, Any] | None) -> None:
        """Goes to a restored place.

        Args:
            record: The last record before it, of which "examples" is read; None for the start.
        """
        self.close()
        self._batch_size = None
        if record is not None:
            self._open(record["examples"])

    def _open(self, examples: int) -> None:
        # What is `initial` does not count for the speed.
        self._bar = tqdm(total=self._total, initial=examples, **self._options)

    def close(self) -> None:
        """Closes the bar, which stays on the screen; a later record opens a new one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _postfix(record: Mapping[str, Any]) -> str:
    """``batch=64, needs=120, loss=0.31``; what is not known is left out."""
    parts = [f"batch={record['batch_size']}"]
    if record.get("required") is not None:
        parts.append(f"needs={record['required']:.0f}")
    if record.get("loss") is not None:
        parts.append(f"loss={record['loss']:.3g}")
    return ", ".join(parts)
