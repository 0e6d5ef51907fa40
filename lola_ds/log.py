"""Progress messages: one line `lola-ds: message` on standard error, above progress bars.

Of several ranks, the first one reports progress (INFO); warnings come from every rank. What a
command returns, such as a table, is printed to standard output and is no message.
"""

from __future__ import annotations

import logging
import os
import sys

__all__ = ["RankFilter", "StandardErrorHandler", "log_to_stderr", "logger"]

logger = logging.getLogger("lola_ds")
"""The logger of `lola_ds`, `data_prep` and `launch`."""


class RankFilter(logging.Filter):
    """Lets warnings pass on every rank, and lesser messages on the first rank only."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this rank shows the record."""
        return record.levelno >= logging.WARNING or os.environ.get("RANK", "0") == "0"


class StandardErrorHandler(logging.Handler):
    """Writes records to standard error, above the progress bars if there are any."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(RankFilter())
        self.setFormatter(logging.Formatter("lola-ds: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        line = self.format(record)
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)
        sys.stderr.flush()


def log_to_stderr() -> None:
    """Shows the progress messages of this process; commands call it, libraries do not."""
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, StandardErrorHandler) for handler in logger.handlers):
        logger.addHandler(StandardErrorHandler())
