"""The report of a search: its figures, its table and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from swift_jax.errors import InputError
from swift_jax.evaluation.report import plots
from swift_jax.evaluation.report.text import aligned, show
from swift_jax.search.files import records
from swift_jax.search.files.records import Header, PassRecord

_COLUMNS = ('source', 'proposed', 'became incumbent', 'mean', 'best')


def read(path: str) -> tuple[Header, list[PassRecord]]:
  """Reads a record of a search, which must have at least one pass.

  Raises:
    InputError: the record is wrong; the error names the file and the reason.
  """
  header, passes = records.read(path, '--search')
  if not passes:
    raise InputError(f'--search={path!r}: holds no passes')
  return header, passes


def summarize(header: Header, passes: Sequence[PassRecord]) -> dict[str, Any]:
  """The content of search.json."""
  last = passes[-1]
  share = last.search_seconds / last.seconds if last.seconds else None
  return {
    'model': header.model,
    'num_layers': header.num_layers,
    'passes': len(passes),
    'evaluations': last.evaluations,
    'matchness': last.matchness,
    'stddev': last.stddev,
    'seconds': last.seconds,
    'search_seconds': last.search_seconds,
    'search_share': share,
    'restarts': len(plots.restarts(passes)),
    'sources': [row._asdict() for row in plots.source_table(passes)],
  }


def table(summary: dict[str, Any]) -> str:
  """The summary as text for the terminal."""
  rows = [
    (
      row['source'],
      str(row['proposed']),
      str(row['became_incumbent']),
      show(row['mean_share'], 3),
      show(row['best_share'], 3),
    )
    for row in summary['sources']
  ]
  estimate = [show(summary[name], 3) for name in ('matchness', 'stddev')]
  share = summary['search_share']
  lines = [
    '',
    f'passes       {summary["passes"]}',
    f'evaluations  {summary["evaluations"]}',
    f'matchness    {" +- ".join(estimate)}',
    f'search time  {"-" if share is None else f"{share:.1%} of the time"}',
    f'restarts     {summary["restarts"]}',
  ]
  return aligned([_COLUMNS, *rows]) + ''.join(f'{line}\n' for line in lines)


def pictures(header: Header, passes: Sequence[PassRecord]) -> dict[str, Figure]:
  """All pictures, by the names of their files."""
  return {
    'matchness_over_evaluations.png': plots.matchness_over(
      passes, 'evaluations'
    ),
    'matchness_over_seconds.png': plots.matchness_over(passes, 'seconds'),
    'skip_set.png': plots.skip_set_strip(header, passes),
    'sources.png': plots.found_by_source(passes),
  }
