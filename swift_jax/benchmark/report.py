"""The outcome of a benchmark's suite, and the comparison of two reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any, NamedTuple

from swift_jax.benchmark.measuring import Spread
from swift_jax.errors import InputError
from swift_jax.files import atomic

# Figures depend on these facts: if they differ in two reports, figures may differ.
FACTS = ('versions', 'device', 'cpus', 'commit', 'flags', 'config')


class Table(NamedTuple):
  """A table of a report."""

  title: str
  heads: Sequence[str]
  rows: Sequence[Sequence[Any]]

  @classmethod
  def of(cls, title: str, entries: Sequence[Mapping[str, Any]]) -> Table:
    """A table with a row for each entry; all entries have the same keys."""
    return cls(title, list(entries[0]), [list(e.values()) for e in entries])

  def text(self) -> str:
    """The table as text; all columns but the first stand to the right."""
    lines = [self.heads, *[[show(cell) for cell in row] for row in self.rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join([self.title, *(_line(cells, widths) for cells in lines)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
  first, *rest = zip(cells, widths, strict=True)
  right = ''.join(f'  {cell:>{width}}' for cell, width in rest)
  return f'  {first[0]:<{first[1]}}{right}'.rstrip()


def show(value: Any) -> str:
  """A value as a cell: four digits of a float, nothing for None."""
  if isinstance(value, float):
    return f'{value:.4g}'
  return '' if value is None else str(value)


@dataclasses.dataclass
class Outcome:
  """The outcome of a suite.

  Attributes:
    summary: headline figures by name; None if this machine has no such figure.
    figures: all figures, as values of JSON.
    tables: the tables to print.
    spread: quartiles, or another interval, of headline figures.
  """

  summary: dict[str, float | None]
  figures: dict[str, Any]
  tables: Sequence[Table] = ()
  spread: dict[str, tuple[float, float]] = dataclasses.field(
    default_factory=dict
  )

  def add(self, name: str, found: Spread) -> None:
    """Adds a headline figure with its quartiles."""
    self.summary[name] = found.median
    self.spread[name] = found.low, found.high


class Move(NamedTuple):
  """A headline figure in two reports; its value is None in a report without it.

  Attributes:
    name: the figure's name.
    old, new: its value in the old and in the new report.
    is_beyond: the intervals do not overlap, or a report has no interval.
  """

  name: str
  old: float | None
  new: float | None
  is_beyond: bool


def read(path: str, where: str) -> dict[str, Any]:
  """Reads a report that the benchmark wrote.

  Raises:
    InputError: the file cannot be read, or is no report of the benchmark.
  """
  try:
    report = json.loads(atomic.read(path, where))
  except (ValueError, RecursionError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f'{where}: is not JSON: {error}') from None
  is_report = (
    isinstance(report, dict)
    and isinstance(report.get('summary'), dict)
    and all(v is None or _is_number(v) for v in report['summary'].values())
    and isinstance(report.get('spread'), dict)
    and all(map(_is_interval, report['spread'].values()))
  )
  if not is_report:
    raise InputError(f'{where}: is no report of this benchmark')
  return report


def _is_number(value: Any) -> bool:
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return is_number and math.isfinite(value)


def _is_interval(value: Any) -> bool:
  is_pair = isinstance(value, (list, tuple)) and len(value) == 2
  return is_pair and all(map(_is_number, value))


def moves(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Move]:
  """The headline figures that have changed, in the new report's order.

  Figures of suites that only one of the reports has are left out.
  """
  before, after = old['summary'], new['summary']
  return [
    Move(name, before[name], after[name], _is_beyond(name, old, new))
    for name in after
    if name in before and before[name] != after[name]
  ]


def _is_beyond(
  name: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> bool:
  both = [report['spread'].get(name) for report in (old, new)]
  if None in both:
    return True
  (low, high), (other_low, other_high) = both
  return high < other_low or other_high < low


def _fact(name: str, report: Mapping[str, Any]) -> str:
  """A fact as text, to print and compare; paths of reports are left out of flags."""
  value = report.get(name)
  if name == 'flags' and isinstance(value, list):
    names = ('--output', '--compare')
    value = [flag for flag in value if not str(flag).startswith(names)]
  return json.dumps(value, sort_keys=True)


def comparison(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Table]:
  """Tables of the figures that have changed, and of the facts that differ."""
  rows = []
  for move in moves(old, new):
    is_ratio = move.old and move.new is not None
    change = f'{move.new / move.old - 1:+.1%}' if is_ratio else None
    remark = 'moved' if move.is_beyond else 'within the spread'
    rows.append([move.name, move.old, move.new, change, remark])
  heads = ['', 'old', 'new', 'change', '']
  tables = [Table('compared', heads, rows or [['nothing moved', *[None] * 4]])]
  facts = [
    [name, *both]
    for name in FACTS
    if len(set(both := [_fact(name, report) for report in (old, new)])) > 1
  ]
  if facts:
    tables.append(Table('runs that are not alike', ['', 'old', 'new'], facts))
  return tables
