"""A worker's guard: a thread that looks at requests, threads, memory and the worker's end about once a second.

`guard` runs the thread and its clock. Each other module implements one kind of look: `requests` their deadlines,
`threads` those that wait or are stuck, `one_thread` a sync worker's only one, `memory` memory and open files, `closing`
the worker's end. A look that finds a reason to replace the worker reports it to `retirement`.
"""

from .guard import Guard as Guard
from .requests import tell_cut as tell_cut
from .retirement import wake_master as wake_master
