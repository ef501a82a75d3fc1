"""A worker's guard: a thread that looks at requests, threads, memory and the worker's end about once a second.

`guard` has the thread and its clock. Each other module has one kind of look: `requests` their deadlines, `threads`
those that wait or are stuck, `one_thread` a sync worker's only one, `memory` memory and open files, `closing` the
worker's end. What any of them finds that the worker must be replaced for goes through `retirement`.
"""

from .guard import Guard as Guard
from .requests import tell_cut as tell_cut
from .retirement import wake_master as wake_master
