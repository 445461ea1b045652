"""Who writes where: locks that end with their process, however it ends.

They are `flock`s. Where nothing can be locked (some network file systems, systems
that are no Unix) all goes on without.
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
# No links: whoever may write beside a file must not choose what is written.
_FLAGS = os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_BINARY', 0)


def take(
  path: str | pathlib.Path, waits: bool = False, writes: bool = True
) -> int:
  """A file, there or made, that is locked until its descriptor is closed.

  Args:
    path: of the file, which is as it was; no link.
    waits: until nobody else has it.
    writes: into it too; else it is there for the lock alone, and may be another
      user's.

  Returns:
    A descriptor that reads, and writes if it `writes`.

  Raises:
    BlockingIOError: somebody has it, in this process or in another.
    OSError: it cannot be opened.
  """
  while True:
    descriptor = _open(path, writes)
    try:
      _lock(descriptor, waits)
      # Whoever had it may have renamed or removed it: is it still that one?
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
          return descriptor
    except BaseException:
      os.close(descriptor)
      raise
    os.close(descriptor)


@contextlib.contextmanager
def beside(target: pathlib.Path, waits: bool = False) -> Iterator[None]:
  """Locks a file that is replaced as a whole, by one beside it that goes after.

  Args:
    target: where its links lead.
    waits: as for `take`.

  Raises:
    OSError: as `take`.
  """
  lock = target.with_name(f'.{target.name}.swift_jax.lock')
  descriptor = take(lock, waits, writes=False)
  try:
    yield
  finally:
    with contextlib.suppress(OSError):  # a lock file that stays does no harm
      lock.unlink()
    os.close(descriptor)


@contextlib.contextmanager
def folder(path: pathlib.Path) -> Iterator[None]:
  """Locks a folder; made if need be, and removed again if it stays empty.

  Raises:
    BlockingIOError: somebody has it.
    OSError: it cannot be made or opened.
  """
  made = [place for place in (path, *path.parents) if not place.exists()]
  with contextlib.ExitStack() as stack:
    path.mkdir(parents=True, exist_ok=True)
    if fcntl is not None:  # elsewhere a folder cannot be opened
      descriptor = os.open(path, os.O_RDONLY)
      stack.callback(os.close, descriptor)
      _lock(descriptor, waits=False)
    stack.callback(_remove_empty, made)
    yield


def _remove_empty(folders: list[pathlib.Path]) -> None:
  with contextlib.suppress(OSError):  # what is not empty stays
    for place in folders:
      place.rmdir()


def _open(path: str | pathlib.Path, writes: bool) -> int:
  try:
    return os.open(path, os.O_RDWR | _FLAGS, 0o666)
  except PermissionError:
    if writes or not os.path.lexists(path):
      raise
    # A killed run of another user may have left it, who alone may write it.
    return os.open(path, os.O_RDONLY | (_FLAGS & ~os.O_CREAT))


def _lock(descriptor: int, waits: bool) -> None:
  if fcntl is None:
    return
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
  except BlockingIOError:
    raise BlockingIOError(errno.EWOULDBLOCK, HELD) from None
  except OSError:  # some network file systems lock nothing
    pass
