"""``flask stability …``: the operator's commands. None needs HTTP.

``status`` reads the scoreboard's file, so it works while no worker answers, and needs no app. Orders (``reload``,
``retire``, ``gc``, ``mute``) and ``stacks`` go to the master through its control socket. Only the service's user and
root may use either.
"""

from __future__ import annotations

import click

from .alert_test import alert_test_command
from .check_db import check_db_command
from .clean_logs import clean_logs_command
from .doctor import doctor_command
from .drill.command import drill_command
from .orders import gc_command, mute_command, retire_command, unmute_command
from .quarantine import quarantine_command
from .release_commands import releases_command, reload_command
from .stacks import stacks_command
from .status import status_command


@click.group("stability")
def stability() -> None:
    """Look after a running service."""


for _command in (status_command, stacks_command, quarantine_command, reload_command, releases_command, retire_command,
                 gc_command, mute_command, unmute_command, alert_test_command, drill_command, check_db_command,
                 clean_logs_command, doctor_command):
    stability.add_command(_command)
