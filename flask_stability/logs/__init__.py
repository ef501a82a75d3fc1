"""The logs: what is written (`events`), how often (`storms`), in which form (`lines`, `console`), where (`handler`)."""

from .events import NAMES as NAMES
from .events import count_drop as count_drop
from .events import drops as drops
from .events import error as error
from .events import error_file as error_file
from .events import event as event
from .events import forget_storms as forget_storms
from .events import health as health
from .events import process as process
from .events import reopen as reopen
from .events import rotate_if_needed as rotate_if_needed
from .events import sample as sample
from .events import setup as setup
from .events import teardown as teardown
