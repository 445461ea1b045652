"""How far long work is, and how long it still takes, on standard error."""

from __future__ import annotations

from collections.abc import Iterable
import os
import sys
from typing import Any

from tqdm import tqdm

_LOG_SECONDS = 30  # a log gets a line so often, and none of what is shorter


class Lines(tqdm):
  """For what is no terminal: plain lines now and then, no carriage returns."""

  def display(self, msg: str | None = None, pos: int | None = None) -> bool:
    line = str(self) if msg is None else msg
    if line:
      print(line, file=self.fp, flush=True)
    return False  # nothing that is to be cleared

  def clear(self, nolock: bool = False) -> None:
    """Before others write: lines stay."""


def bar(
  iterable: Iterable[Any] | None = None,
  total: int | None = None,
  done: int = 0,
  unit: str = 'it',
  **settings: Any,
) -> tqdm:
  """A bar on a terminal that can move back in a line, else `Lines`.

  Args:
    iterable: what is gone through; None: `update` says what is done.
    total: of it, if that does not say.
    done: before this start.
    unit: of both.
    settings: tqdm's own.
  """
  stream = sys.stderr
  given = {'total': total, 'initial': done, 'unit': unit, **settings}
  if stream is None:  # closed by whoever started us
    return tqdm(iterable, **{**given, 'disable': True})
  if stream.isatty() and os.environ.get('TERM', 'dumb') != 'dumb':
    return tqdm(iterable, **given)
  given |= {'delay': _LOG_SECONDS, 'mininterval': _LOG_SECONDS, 'leave': False}
  return Lines(iterable, **given)
