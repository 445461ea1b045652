"""Locks on files and folders that end with their process, however it ends.

The locks are `flock`s. Where no file can be locked (on some network file systems,
and on systems that are not a Unix) everything works without locks.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib

try:
  import fcntl
except ImportError:  # not a Unix
  fcntl = None

HELD = 'another run is writing there'
# Links are refused: a user who may write into a file's folder could otherwise choose
# the file that is written.
_FLAGS = os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_BINARY', 0)


def take(
  path: str | pathlib.Path, waits: bool = False, writes: bool = True
) -> int:
  """Opens and locks a file; the lock lasts until the descriptor is closed.

  The file is made if it is missing. Its content stays.

  Args:
    path: the file's path; a link is refused.
    waits: wait until nobody else has the lock.
    writes: the caller writes into the file too. Else the file serves the lock alone,
      and may belong to another user.

  Returns:
    A descriptor for reading, and for writing if `writes`.

  Raises:
    BlockingIOError: the file is locked, in this process or in another.
    OSError: the file cannot be opened.
  """
  while True:
    descriptor = _open(path, writes)
    try:
      _lock(descriptor, waits)
      # The last holder may have renamed or removed the file: is it still at `path`?
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
          return descriptor
    except BaseException:
      os.close(descriptor)
      raise
    os.close(descriptor)


@contextlib.contextmanager
def beside(target: pathlib.Path, waits: bool = False) -> Iterator[None]:
  """Locks a file that is replaced as a whole, by a lock file beside it.

  The lock file is removed afterwards.

  Args:
    target: the file; its links are resolved.
    waits: as for `take`.

  Raises:
    OSError: as for `take`.
  """
  lock = target.with_name(f'.{target.name}.swift_jax.lock')
  descriptor = take(lock, waits, writes=False)
  try:
    yield
  finally:
    with contextlib.suppress(OSError):  # a lock file that is left does no harm
      lock.unlink()
    os.close(descriptor)


@contextlib.contextmanager
def folder(path: pathlib.Path) -> Iterator[None]:
  """Locks a folder.

  The folder is made if it is missing, and removed again if it stays empty.

  Raises:
    BlockingIOError: the folder is locked.
    OSError: the folder cannot be made or opened.
  """
  made = [place for place in (path, *path.parents) if not place.exists()]
  with contextlib.ExitStack() as stack:
    path.mkdir(parents=True, exist_ok=True)
    if fcntl is not None:  # only a Unix can open a folder
      descriptor = os.open(path, os.O_RDONLY)
      stack.callback(os.close, descriptor)
      _lock(descriptor, waits=False)
    stack.callback(_remove_empty, made)
    yield


def _remove_empty(folders: list[pathlib.Path]) -> None:
  with contextlib.suppress(OSError):  # a folder that is not empty stays
    for place in folders:
      place.rmdir()


def _open(path: str | pathlib.Path, writes: bool) -> int:
  try:
    return os.open(path, os.O_RDWR | _FLAGS, 0o666)
  except PermissionError:
    if writes or not os.path.lexists(path):
      raise
    # A killed run of another user may have left a lock file that only that user may
    # write.
    return os.open(path, os.O_RDONLY | (_FLAGS & ~os.O_CREAT))


def _lock(descriptor: int, waits: bool) -> None:
  if fcntl is None:
    return
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
  except BlockingIOError:
    raise BlockingIOError(errno.EWOULDBLOCK, HELD) from None
  except OSError:  # some network file systems have no locks
    pass
