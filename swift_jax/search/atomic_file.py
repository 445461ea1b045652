"""Files that are replaced as a whole: a process that dies leaves the old one.

Each function's `where` says which setting and file an error is about.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import pathlib
import secrets
import stat

from swift_jax.errors import InputError

try:
  import fcntl
except ImportError:  # not a Unix
  fcntl = None


def read(path: str, where: str) -> bytes:
  """The content of a file.

  Raises:
    InputError: it cannot be read.
  """
  _check_path(path, where)
  with _named_errors(f'{where}: cannot be read'):
    # A pipe could make us wait for ever, a device never end.
    if not stat.S_ISREG(os.stat(path).st_mode):
      raise InputError(f'{where}: not a file')
    return pathlib.Path(path).read_bytes()


def writable(path: str, where: str) -> pathlib.Path:
  """The file, there or not, that `path` stands for: where its links lead.

  Raises:
    InputError: it cannot be written.
  """
  _check_path(path, where)
  with _named_errors(f'{where}: cannot be written'):
    target = pathlib.Path(os.path.realpath(path))
    mode = _mode(target)
    is_file = mode is None or stat.S_ISREG(mode)
    if not is_file or not os.path.basename(path):
      raise InputError(f'{where}: not a file')
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
  with _named_errors(f'{where}: cannot be written'):
    try:
      data = content.encode() if isinstance(content, str) else content
      with open(partial, 'xb') as file:
        file.write(data)
        file.flush()
        mode = _mode(target)
        if mode is not None:
          os.chmod(partial, stat.S_IMODE(mode))
        os.fsync(file.fileno())
      os.replace(partial, target)
    finally:
      partial.unlink(missing_ok=True)
  _sync_folder(target.parent)


@contextlib.contextmanager
def locked(target: pathlib.Path, where: str) -> Iterator[None]:
  """One process at a time, so that none writes over what another just added.

  Raises:
    InputError: the lock file beside `target` cannot be made.
  """
  if fcntl is None:
    yield
    return
  lock = target.with_name(f'.{target.name}.swift_jax.lock')
  with _named_errors(f'{where}: cannot be written'):
    descriptor = _take(lock)
  try:
    yield
  finally:
    with contextlib.suppress(OSError):  # a lock file that stays does no harm
      lock.unlink()
    os.close(descriptor)


def _take(lock: pathlib.Path) -> int:
  """Waits for the lock; a descriptor that holds it until it is closed."""
  while True:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    # Some network file systems lock nothing: saving without is better than not.
    with contextlib.suppress(OSError):
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    # Whoever held it has removed the file: another may hold a new one by now.
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
        return descriptor
    os.close(descriptor)


def _partial(target: pathlib.Path) -> pathlib.Path:
  """A name of its own beside `target`; no longer than that of the lock."""
  return target.with_name(f'.{target.name}.{secrets.token_hex(3)}.partial')


def _mode(target: pathlib.Path) -> int | None:
  """A file's mode; None where there is no file."""
  try:
    return os.lstat(target).st_mode
  except FileNotFoundError:
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
def _named_errors(where: str) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise InputError(f'{where}: {error.strerror or error}') from error
