"""One truth over all workers: a mapping in shared memory, one row per worker, one writer per word."""

from .board import *  # noqa: F403
from .file import board_files as board_files
from .file import default_run_dir as default_run_dir
from .file import default_run_dirs as default_run_dirs
from .file import running as running
from .primitives import BUCKETS as BUCKETS
from .primitives import Blob as Blob
from .primitives import Entry as Entry
from .primitives import bucket_bound as bucket_bound
from .primitives import bucket_of as bucket_of
from .primitives import percentile as percentile
