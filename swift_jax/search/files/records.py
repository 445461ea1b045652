"""A record of a search, in a file that grows by one JSON line a scoring pass.

A line is in the file when its pass has ended. So a run that is killed leaves at
most its last line torn. `record_forms` describes the lines.
"""

from __future__ import annotations

import contextlib
import io
import pathlib

from swift_jax.errors import InputError
from swift_jax.files import atomic, locks
from swift_jax.search.files import record_forms
from swift_jax.search.files.record_forms import (
  EVENTS,
  SOURCES,
  Header,
  PassRecord,
)

__all__ = ['EVENTS', 'SOURCES', 'Header', 'PassRecord', 'Writer', 'read']

_MAX_HEADER = 2**20  # bytes; a longer line is not a header of ours


class Writer:
  """Writes a record while the search goes on; a context manager.

  An old record at the path is replaced when the writer is made.

  Raises:
    InputError: the file cannot be written, another process writes it, or it is
      not a record; the file is then unchanged.
  """

  def __init__(self, path: str, header: Header):
    self._where = f'search.record={path!r}'
    target = atomic.writable(path, self._where)
    self._file = _open(target, self._where)
    try:
      with self._named_errors():
        self._file.truncate(0)
      self._append(record_forms.header_line(header))
    except BaseException:
      self._file.close()
      raise

  def write(self, record: PassRecord) -> None:
    """Adds a line, which is in the file when the call returns.

    Raises:
      InputError: the line cannot be written.
    """
    self._append(record_forms.pass_line(record))

  def close(self) -> None:
    self._file.close()

  def __enter__(self) -> Writer:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _append(self, line: str) -> None:
    with self._named_errors():
      atomic.append(self._file, line.encode())

  def _named_errors(self) -> contextlib.AbstractContextManager[None]:
    return atomic.named_errors(f'{self._where}: cannot be written')


def read(
  path: str, setting: str = '--search'
) -> tuple[Header, list[PassRecord]]:
  """The passes of a record, in order; a torn last line is left out.

  Args:
    path: the file.
    setting: what errors call the path.

  Raises:
    InputError: the file cannot be read or is not a record; the error names the
      line and the field.
  """
  where = f'{setting}={path!r}'
  # Lines are written with their newline: bytes after the last newline are torn.
  *lines, _ = atomic.read(path, where).split(b'\n')
  if not lines or not record_forms.is_header(lines[0]):
    raise InputError(f'{where}: is no search record')
  header = record_forms.parse_header(lines[0], f'{where}, line 1')
  passes: list[PassRecord] = []
  for number, line in enumerate(lines[1:], 2):
    here = f'{where}, line {number}'
    record = record_forms.parse_pass(line, header.num_layers, here)
    if passes:
      record_forms.check_order(passes[-1], record, here)
    passes.append(record)
  return header, passes


def check_writable(path: str) -> None:
  """Refuses a path that a `Writer` would refuse; the file stays as it is.

  Raises:
    InputError: as for `Writer`.
  """
  where = f'search.record={path!r}'
  target = atomic.writable(path, where)
  if target.exists():
    _open(target, where).close()


def _open(target: pathlib.Path, where: str) -> io.FileIO:
  """Opens a file that holds a record or nothing, and locks it for us."""
  with atomic.named_errors(f'{where}: cannot be written'):
    try:
      # Unbuffered: a close must not write again what a full disk refused.
      file = io.FileIO(locks.take(target), 'r+')
    except BlockingIOError:
      held = f'{locks.HELD}, or another engine here: delete that first'
      raise InputError(f'{where}: {held}') from None
  line, _, _ = (file.read(_MAX_HEADER) or b'').partition(b'\n')
  if line and not record_forms.is_header(line):
    file.close()
    raise InputError(f'{where}: the file there is no search record')
  return file
