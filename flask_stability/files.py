"""Files in directories that another local user can write: opened by descriptor, judged by what was opened.

A name proves nothing: between a look at it and its use another user can put a link, another file or a pipe in its
place. So a path is walked one name at a time, each relative to the directory opened before, and a symbolic link is
followed only if a trusted user made it: root, or the user that this process acts as.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator

NOBODY = (-1, -1)  #: an owner (user, group) that leaves the file's owner unchanged
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40
#: Links to an open file: the kernel resolves them; their text leads nowhere.
_STREAM = re.compile(r"/dev/(?:stdout|stderr|fd/\d+)|/proc/(?:self|\d+)/fd/\d+")


def trusted_users() -> frozenset[int]:
    """Return the users whose links this process follows."""
    return frozenset((0, os.geteuid()))


class _Place:
    """Where a path leads: an open directory and a name in it that is not a link; or, in `stream`, an open file's link.

    :ivar linked: a link led there.
    :ivar lent: the user that will own the file could have put that link there.
    """

    def __init__(self, directory: int) -> None:
        self.directory, self.name, self.stream = directory, ".", ""
        self.linked = self.lent = False

    def enter(self, directory: int) -> None:
        """Continue from another directory; this object then owns the descriptor."""
        os.close(self.directory)
        self.directory = directory


@contextlib.contextmanager
def _closed(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _resolve(path: str, at: int | None = None) -> _Place:
    """Walk a path; its last name need not exist.

    :param at: an open directory that a relative path begins in; default: the working directory.
    :returns: a place whose directory the caller closes.
    :raises PermissionError: if another user made a link on the way.
    """
    if _STREAM.fullmatch(path):
        place = _Place(os.open("/", _DIRECTORY))
        place.stream = path
        return place
    place = _Place(os.open("/" if path.startswith("/") else ".", _DIRECTORY,
                           dir_fd=None if path.startswith("/") else at))
    try:
        _walk(place, path)
    except BaseException:
        os.close(place.directory)
        raise
    return place


def _walk(place: _Place, path: str) -> None:
    trusted, links = trusted_users(), 0
    rest = _names(path)
    while rest:
        name = rest.pop()
        try:
            found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.directory)
        except FileNotFoundError:
            if rest:
                raise
            place.name = name
            return
        status = os.fstat(found)
        if not stat.S_ISLNK(status.st_mode):
            if rest or stat.S_ISDIR(status.st_mode):
                place.enter(found)
            else:
                os.close(found)
                place.name = name
            continue
        with _closed(found):
            target = os.readlink("", dir_fd=found)
        if status.st_uid not in trusted:
            raise PermissionError(errno.EPERM, f"{name} is a link that user {status.st_uid} made", path)
        if status.st_nlink > 1 and not _closed_to_others(place.directory):
            raise PermissionError(errno.EPERM, f"{name} is a second name of a link from elsewhere", path)
        links, place.linked = links + 1, True
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if _STREAM.fullmatch(target) and not rest:
            place.stream = target
            return
        if target.startswith("/"):
            place.enter(os.open("/", _DIRECTORY))
        rest += _names(target)


def _closed_to_others(directory: int) -> bool:
    """Return whether only a trusted user can create names in a directory."""
    status = os.fstat(directory)
    return status.st_uid in trusted_users() and not status.st_mode & 0o022


def _names(path: str) -> list[str]:
    """Return the names of a path, the first one last."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


# -- directories ---------------------------------------------------------------------------------------------------


def open_directory(path: str, *, listed: bool = False) -> int:
    """Return a descriptor of a directory, for names relative to it.

    :param listed: also allow listing its names.
    :raises OSError: if it is not a directory, or another user made a link on the way.
    """
    place = _resolve(path)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC if listed else _DIRECTORY
    with _closed(place.directory):
        return os.open(place.stream or place.name, flags | os.O_NOFOLLOW, dir_fd=place.directory)


def make_directory(path: str, mode: int, owner: tuple[int, int] = NOBODY) -> int:
    """Open a directory as `open_directory`, creating it and its missing parents first.

    :param mode: of the directory, less the umask; its parents get 0755, less the umask.
    :param owner: user and group that get the directory, if it is created.
    :raises OSError: as `open_directory`, or if it cannot be created.
    """
    try:
        return open_directory(path)
    except FileNotFoundError:
        parent = os.path.dirname(os.path.abspath(path))
        if parent == path:
            raise
    above = make_directory(parent, 0o755)
    with _closed(above):
        name = os.path.basename(os.path.abspath(path))
        try:
            os.mkdir(name, mode, dir_fd=above)
        except FileExistsError:  # another process was faster, or it is a link that leads nowhere
            return open_directory(path)
        made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        # another directory may be in its place by now: ours is empty
        if owner != NOBODY and os.fstat(made).st_uid == os.geteuid() and not os.listdir(made):
            os.fchown(made, *owner)
        return made


def own_directory(path: str, *, readers: bool = False) -> bool:
    """Return whether a directory (not a link) belongs to this process's user and no other user can write it.

    :param readers: other users must also be able to look into it.
    """
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        return (stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
                and (not readers or status.st_mode & 0o005 == 0o005))
    return False


# -- files ---------------------------------------------------------------------------------------------------------


def open_append(directory: int, name: str, *, mode: int | None = None, owner: tuple[int, int] = NOBODY) -> int:
    """Open a file for appending; create it if it is missing. Never wait for the reader of a pipe.

    :param mode: of a new file, whatever the umask; None = 0640, less the umask.
    :param owner: user and group that get a new file.
    :raises OSError: also if the file is not a regular one, has a second name, or belongs to a user other than the
        trusted users, `owner` and the directory's owner. A link that a trusted user made may lead to anything but a
        second name; where the directory belongs to `owner`, only to files of `owner`.
    """
    place = _resolve(name, directory)
    with _closed(place.directory):
        if place.stream:
            return os.open(place.stream, _APPEND & ~os.O_NOFOLLOW)
        # the directory's owner can move trusted links into it: they must not extend that user's rights
        place.lent = place.linked and owner != NOBODY and os.fstat(directory).st_uid == owner[0]
        for _ in range(8):
            try:
                descriptor = os.open(place.name, _APPEND, dir_fd=place.directory)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):  # another process was faster
                    return _new(place, mode, owner)
            else:
                return _judged(descriptor, place, name, owner)
    raise FileNotFoundError(errno.ENOENT, "it comes and goes", name)


def _new(place: _Place, mode: int | None, owner: tuple[int, int]) -> int:
    if place.lent and os.fstat(place.directory).st_uid != owner[0]:
        raise PermissionError(errno.EPERM, f"a link leads to a directory that is not user {owner[0]}'s", place.name)
    descriptor = os.open(place.name, _APPEND | os.O_CREAT | os.O_EXCL, 0o640, dir_fd=place.directory)
    try:
        if mode is not None:
            os.fchmod(descriptor, mode)
        if owner != NOBODY:
            # The group of a directory with the set-group-id bit is its files' group too, whichever user creates them.
            inherited = os.fstat(place.directory).st_mode & stat.S_ISGID
            with contextlib.suppress(OSError):  # NFS: then only this process can write it
                os.fchown(descriptor, owner[0], -1 if inherited else owner[1])
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _judged(descriptor: int, place: _Place, name: str, owner: tuple[int, int]) -> int:
    status = os.fstat(descriptor)
    problem = ""
    if stat.S_ISREG(status.st_mode):
        known = trusted_users() | {owner[0], os.fstat(place.directory).st_uid}
        if status.st_nlink > 1:
            problem = "it has a second name (a hard link)"
        elif place.lent and status.st_uid != owner[0]:
            problem = f"a link leads to a file of user {status.st_uid}"
        elif not place.linked and status.st_uid not in known:
            problem = f"it belongs to user {status.st_uid}"
    elif not place.linked:
        problem = "it is no regular file"
    if problem:
        os.close(descriptor)
        raise PermissionError(errno.EPERM, problem, name)
    return descriptor


def open_existing(path: str, flags: int) -> int:
    """Open a regular file that has one name and is not a link. Never wait.

    :raises OSError: if it is something else, or another user made a link on the way.
    """
    folder, name = os.path.split(path)
    with _closed(open_directory(folder or ".")) as directory:
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC,
                             dir_fd=directory)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "it is no regular file with one name", path)
    return descriptor


@contextlib.contextmanager
def reachable(path: str) -> Iterator[str]:
    """Yield a name for `path` that fits into a socket's address (107 bytes); its folder cannot be swapped meanwhile."""
    folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{os.path.basename(path)}"
    finally:
        os.close(folder)
