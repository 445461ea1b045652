"""Files that are replaced as a whole: a process that dies leaves the old one.

An argument `where` says which setting and file an error is about.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import io
import os
import pathlib
import secrets
import stat
import sys
import tempfile

from swift_jax.errors import InputError
from swift_jax.files import locks

_STREAMS = {'stdin': 'input', 'stdout': 'output', 'stderr': 'error'}


def read(path: str, where: str) -> bytes:
  """The content of a file.

  Raises:
    InputError: it cannot be read.
  """
  _check_path(path, where)
  with named_errors(f'{where}: cannot be read'):
    # A pipe could make us wait for ever, a device never end.
    if not stat.S_ISREG(os.stat(path).st_mode):
      raise InputError(f'{where}: not a file')
    return pathlib.Path(path).read_bytes()


def is_same(path: str, other: str) -> bool:
  """Whether two paths lead to one file, which need not be there."""
  try:
    return os.path.samefile(path, other)
  except (OSError, ValueError):
    with contextlib.suppress(OSError, ValueError):  # no path at all
      return os.path.realpath(path) == os.path.realpath(other)
    return False


def writable(path: str, where: str) -> pathlib.Path:
  """The file, there or not, that `path` stands for: where its links lead.

  Raises:
    InputError: it cannot be written.
  """
  _check_path(path, where)
  with named_errors(f'{where}: cannot be written'):
    # Not of where the links lead: that of a pipe's is no name.
    mode = _mode(path)
    target = pathlib.Path(os.path.realpath(path))
    is_file = mode is None or stat.S_ISREG(mode)
    if not is_file or not os.path.basename(path):
      raise InputError(f'{where}: not a file')
    stream = _stream_of(target)
    if stream:
      raise InputError(f'{where}: is {stream} of this run')
    # The folder alone would have us replace it.
    if mode is not None and not os.access(target, os.W_OK):
      raise PermissionError(None, 'not writable')
    partial = _partial(target)
    partial.open('x').close()
    partial.unlink()
  return target


def replace(target: pathlib.Path, content: str | bytes, where: str) -> None:
  """Writes a file's new content; it keeps its permission bits.

  Args:
    target: what `writable` gives.

  Raises:
    InputError: it cannot be written, and is as it was.
  """
  partial = _partial(target)
  with named_errors(f'{where}: cannot be written'):
    try:
      data = content.encode() if isinstance(content, str) else content
      with open(partial, 'xb', buffering=0) as file:
        append(file, data)
        move(file, partial, target)
    finally:
      partial.unlink(missing_ok=True)


def append(file: io.FileIO, data: bytes, is_synced: bool = False) -> None:
  """Adds to a file, all of it or nothing: half a line is no use to anyone.

  Args:
    file: without a buffer, whose close would write again what was refused.
    is_synced: it is on the disk when this returns.

  Raises:
    OSError: it cannot be written; the file is as it was.
  """
  end = file.seek(0, os.SEEK_END)
  try:
    while data:
      data = data[file.write(data) :]
    if is_synced:
      os.fsync(file.fileno())
  except BaseException:  # Ctrl-C too
    with contextlib.suppress(OSError):
      file.truncate(end)
    raise


def move(file: io.FileIO, partial: pathlib.Path, target: pathlib.Path) -> None:
  """A file that is complete takes the place of another, and its permissions.

  Args:
    file: the open one, at `partial`.

  Raises:
    OSError: it cannot be done, and nothing has changed.
  """
  mode = _mode(target)
  if mode is not None:
    os.chmod(partial, stat.S_IMODE(mode))
  os.fsync(file.fileno())
  os.replace(partial, target)
  _sync_folder(target.parent)


@contextlib.contextmanager
def locked(
  target: pathlib.Path, where: str, waits: bool = True
) -> Iterator[None]:
  """One process at a time, so that none writes over what another just added.

  Args:
    target: what `writable` gives.
    waits: until nobody else has it; else it is refused.

  Raises:
    InputError: somebody has it, or the lock file beside it cannot be made.
  """
  with contextlib.ExitStack() as stack:
    with named_errors(f'{where}: cannot be written'):
      stack.enter_context(locks.beside(target, waits))
    yield


@contextlib.contextmanager
def folder(path: str, where: str) -> Iterator[pathlib.Path]:
  """A folder for one run alone; made if need be, and kept if anything is in it.

  Raises:
    InputError: another run writes there, or it cannot be written.
  """
  _check_path(path, where)
  with contextlib.ExitStack() as stack:
    with named_errors(f'{where}: cannot be written'):
      place = pathlib.Path(os.path.realpath(path))
      stack.enter_context(locks.folder(place))
      with tempfile.TemporaryFile(dir=place):
        pass
    yield place


def _partial(target: pathlib.Path) -> pathlib.Path:
  """A name of its own beside `target`; no longer than that of the lock."""
  return target.with_name(f'.{target.name}.{secrets.token_hex(3)}.partial')


def _mode(path: str | pathlib.Path) -> int | None:
  """A file's mode; None where there is no file."""
  try:
    return os.stat(path).st_mode
  except FileNotFoundError:
    return None


def _stream_of(target: pathlib.Path) -> str | None:
  """The stream that a shell has led to this file, or from it."""
  for name, called in _STREAMS.items():
    # Closed, it has no file, or is None.
    with contextlib.suppress(OSError, ValueError, AttributeError):
      status = os.fstat(getattr(sys, f'__{name}__').fileno())
      if os.path.samestat(os.stat(target), status):
        return f'standard {called}'
  return None


def _sync_folder(folder: pathlib.Path) -> None:
  """Makes the new name last, where a folder can be opened and synced at all."""
  with contextlib.suppress(OSError):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def _check_path(path: str, where: str) -> None:
  try:
    is_path = b'\0' not in os.fsencode(path)
  except UnicodeEncodeError:
    is_path = False
  if not is_path:
    raise InputError(f'{where}: not a path')


@contextlib.contextmanager
def named_errors(where: str) -> Iterator[None]:
  """The system's errors as one line that begins with `where`."""
  try:
    yield
  except OSError as error:
    raise InputError(f'{where}: {error.strerror or error}') from error
