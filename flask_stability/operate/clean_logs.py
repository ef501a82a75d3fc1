"""``flask stability clean-logs``: remove rotated logs by age. It never touches a log that is being written."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator

import click

from .. import durations, files
from ..config import Settings, load_dotenv
from ..exceptions import ConfigError
from ..logs import NAMES

#: error.log.3, and what logrotate makes: error.log.3.gz, error.log-20261123, error.log-20261123.gz
_BACKUP = re.compile(rf"({'|'.join(map(re.escape, NAMES.values()))})[.-]\d+(\.(gz|xz|bz2|zst))?")


def old_backups(folder: int, seconds: float, now: float) -> Iterator[tuple[str, int]]:
    """Return names and sizes of the rotated logs that were last written more than `seconds` before `now`.

    :param folder: an open directory.
    :param now: seconds since the epoch.
    :raises OSError: if the folder cannot be read.
    """
    for name in sorted(os.listdir(folder)):
        if not _BACKUP.fullmatch(name):
            continue
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            continue  # rotated meanwhile
        if stat.S_ISREG(found.st_mode) and now - found.st_mtime > seconds:
            yield name, found.st_size


@click.command("clean-logs")
@click.option("--older-than", metavar="AGE", callback=durations.option, required=True,
              help="Age of what goes: 14d, 12h, 30m.")
@click.option("--dir", "folder", metavar="DIR", help="The folder of the logs; STABILITY_LOG_DIR if left out.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def clean_logs_command(older_than: float, folder: str | None, dry_run: bool) -> None:
    """Remove rotated logs that were last written longer ago than --older-than."""
    folder = folder or _configured()
    freed = number = 0
    try:
        opened = files.open_directory(folder, listed=True)
        try:
            for name, size in list(old_backups(opened, older_than, time.time())):
                if not dry_run:
                    os.unlink(name, dir_fd=opened)
                freed, number = freed + size, number + 1
                click.echo(os.path.join(folder, name))
        finally:
            os.close(opened)
    except OSError as error:
        name = os.path.join(folder, os.path.basename(error.filename or ""))
        raise click.ClickException(f"{name}: {error.strerror}: run this as the service's user") from error
    click.echo(f"{'would remove' if dry_run else 'removed'} {number} files, {freed} bytes")


def _configured() -> str:
    try:
        load_dotenv()
        folder = Settings.from_environ().log_dir
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    if folder is None:
        raise click.ClickException("STABILITY_LOG_DIR is not set here: name the folder with --dir")
    return folder
