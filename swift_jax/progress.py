"""Progress of long work and its remaining time, on standard error."""

from __future__ import annotations

from collections.abc import Iterable
import os
import sys
from typing import Any

from tqdm import tqdm

_LOG_SECONDS = 30  # between two lines of a log; shorter work writes no line


class Lines(tqdm):
  """A bar for streams that are no terminal: plain lines, no carriage returns."""

  def display(self, msg: str | None = None, pos: int | None = None) -> bool:
    line = str(self) if msg is None else msg
    if line:
      print(line, file=self.fp, flush=True)
    return False  # tqdm has nothing to clear

  def clear(self, nolock: bool = False) -> None:
    """Does nothing: lines stay when other code writes."""


def bar(
  iterable: Iterable[Any] | None = None,
  total: int | None = None,
  done: int = 0,
  unit: str = 'it',
  **settings: Any,
) -> tqdm:
  """A bar on a terminal that can move back in a line; elsewhere `Lines`.

  Args:
    iterable: the work's items; None: the caller calls `update` for items done.
    total: number of items, if the iterable has no length.
    done: number of items done before this start.
    unit: name of an item.
    settings: other arguments of tqdm.
  """
  stream = sys.stderr
  given = {'total': total, 'initial': done, 'unit': unit, **settings}
  if stream is None:  # closed by the process that started this one
    return tqdm(iterable, **{**given, 'disable': True})
  if stream.isatty() and os.environ.get('TERM', 'dumb') != 'dumb':
    return tqdm(iterable, **given)
  given |= {'delay': _LOG_SECONDS, 'mininterval': _LOG_SECONDS, 'leave': False}
  return Lines(iterable, **given)
