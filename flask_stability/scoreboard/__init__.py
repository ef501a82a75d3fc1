"""One truth over all workers: a mapping in shared memory, one row per worker, one writer per word."""

from .board import *  # noqa: F403
from .board import __all__ as __all__
