"""Keeps Orbax's tracebacks of failed saves out of the log; the same errors are raised to us."""

import logging


class OrbaxLogFilter(logging.Filter):
    """Drops what Orbax logs of an error that it also raises: hundreds of lines for a full disk."""

    def install(self) -> None:
        """Starts to filter."""
        logging.getLogger("absl").addFilter(self)

    def remove(self) -> None:
        """Ends it."""
        logging.getLogger("absl").removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log `record`."""
        of_orbax = "orbax" in record.pathname
        return not (of_orbax and (record.exc_info or "raised an exception" in record.msg))
