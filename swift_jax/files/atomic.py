"""Replaces files as a whole: a process that dies leaves the old file.

Functions take an argument `where`: the setting and the file that errors name.
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
    InputError: the file cannot be read.
  """
  _check_path(path, where)
  with named_errors(f'{where}: cannot be read'):
    # A pipe could make the process wait for ever, and a device may have no end.
    if not stat.S_ISREG(os.stat(path).st_mode):
      raise InputError(f'{where}: not a file')
    return pathlib.Path(path).read_bytes()


def is_same(path: str, other: str) -> bool:
  """Whether two paths lead to the same file, which need not be there."""
  try:
    return os.path.samefile(path, other)
  except (OSError, ValueError):
    with contextlib.suppress(OSError, ValueError):  # the text is not a path
      return os.path.realpath(path) == os.path.realpath(other)
    return False


def writable(path: str, where: str) -> pathlib.Path:
  """The file that `path` stands for: its links are followed.

  The file need not be there.

  Raises:
    InputError: the file cannot be written.
  """
  _check_path(path, where)
  with named_errors(f'{where}: cannot be written'):
    # The mode is `path`'s: the resolved name of a pipe is no path.
    mode = _mode(path)
    target = pathlib.Path(os.path.realpath(path))
    is_file = mode is None or stat.S_ISREG(mode)
    if not is_file or not os.path.basename(path):
      raise InputError(f'{where}: not a file')
    stream = _stream_of(target)
    if stream:
      raise InputError(f'{where}: is {stream} of this run')
    # A folder's permissions would allow to replace a file that is not writable.
    if mode is not None and not os.access(target, os.W_OK):
      raise PermissionError(None, 'not writable')
    partial = _partial(target)
    partial.open('x').close()
    partial.unlink()
  return target


def replace(target: pathlib.Path, content: str | bytes, where: str) -> None:
  """Replaces a file's content; the file keeps its permission bits.

  Args:
    target: a path that `writable` returned.

  Raises:
    InputError: the file cannot be written; it is as it was before.
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
  """Appends all of `data` to a file or nothing: half a line is of no use.

  Args:
    file: a file without a buffer. The close of a buffer would write again the data
      that was refused.
    is_synced: the data is on the disk when this function returns.

  Raises:
    OSError: the data cannot be written; the file is as it was before.
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
  """Moves a complete file to the place of `target`, with the permissions of that.

  Args:
    file: the complete file, still open, at `partial`.

  Raises:
    OSError: the file cannot be moved, and nothing has changed.
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
  """Locks a file, so that no process overwrites the addition of another.

  Args:
    target: a path that `writable` returned.
    waits: wait until no other run has the lock; else refuse.

  Raises:
    InputError: another run has the lock, or the lock file beside the target cannot
      be made.
  """
  with contextlib.ExitStack() as stack:
    with named_errors(f'{where}: cannot be written'):
      stack.enter_context(locks.beside(target, waits))
    yield


@contextlib.contextmanager
def folder(path: str, where: str) -> Iterator[pathlib.Path]:
  """A folder for one run alone.

  The folder is made if it is missing, and removed again if it stays empty.

  Raises:
    InputError: another run writes there, or the folder cannot be written.
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
  """A new name beside `target`; it is no longer than the lock file's name."""
  return target.with_name(f'.{target.name}.{secrets.token_hex(3)}.partial')


def _mode(path: str | pathlib.Path) -> int | None:
  """A file's mode; None where there is no file."""
  try:
    return os.stat(path).st_mode
  except FileNotFoundError:
    return None


def _stream_of(target: pathlib.Path) -> str | None:
  """The standard stream that a shell connected to this file; None: no stream."""
  for name, label in _STREAMS.items():
    # A closed stream has no file, or is None.
    with contextlib.suppress(OSError, ValueError, AttributeError):
      status = os.fstat(getattr(sys, f'__{name}__').fileno())
      if os.path.samestat(os.stat(target), status):
        return f'standard {label}'
  return None


def _sync_folder(folder: pathlib.Path) -> None:
  """Writes a new name in a folder to the disk, if the system can sync folders."""
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
  """Turns the system's errors into an InputError that begins with `where`."""
  try:
    yield
  except OSError as error:
    raise InputError(f'{where}: {error.strerror or error}') from error
