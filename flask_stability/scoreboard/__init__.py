"""One truth over all workers: a mapping in shared memory, one row per worker, one writer per word.

`layout` says which word is where, `row` counts, `board` makes and reads the whole. `runtime` holds this process's.
"""

from .board import EXCEPTIONS_KEPT as EXCEPTIONS_KEPT
from .board import MasterArea as MasterArea
from .board import Scoreboard as Scoreboard
from .board import merged_exceptions as merged_exceptions
from .file import board_files as board_files
from .file import default_run_dir as default_run_dir
from .file import default_run_dirs as default_run_dirs
from .file import running as running
from .layout import *  # noqa: F403
from .primitives import ABANDONED as ABANDONED
from .primitives import ANSWERS as ANSWERS
from .primitives import BUCKETS as BUCKETS
from .primitives import SHED as SHED
from .primitives import Blob as Blob
from .primitives import Entry as Entry
from .primitives import bucket_bound as bucket_bound
from .primitives import bucket_of as bucket_of
from .primitives import percentile as percentile
from .reasons import CRASHES as CRASHES
from .reasons import REASONS as REASONS
from .reasons import Reason as Reason
from .row import REFUSED as REFUSED
from .row import WHOLE_STATEMENTS as WHOLE_STATEMENTS
from .row import Row as Row
from .totals import WAIT_BOUNDS as WAIT_BOUNDS
from .totals import Totals as Totals
