"""Draws what a search recorded and sums it up.

  python launch/report.py --search=search.jsonl --output=DIR

DIR, made if it is not there, then holds matchness_over_evaluations.png,
matchness_over_seconds.png, skip_set.png, sources.png and search.json with the
figures that the table on the terminal shows.
"""

from __future__ import annotations

from collections.abc import Sequence
import io
import json
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags
import common

from swift_jax.errors import InputError
from swift_jax.search import atomic_file, records
from swift_jax.search.records import Header, PassRecord

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_SEARCH = flags.DEFINE_string(
  'search', None, 'record of a search (--config.search.record of a run)'
)
_OUTPUT = flags.DEFINE_string('output', None, 'folder that the report goes to')

_COLUMNS = ('source', 'proposed', 'became incumbent', 'mean', 'best')


def read_search(path: str) -> tuple[Header, list[PassRecord]]:
  """A record with at least one pass.

  Raises:
    InputError: names the file, and what is wrong with it.
  """
  header, passes = records.read(path, '--search')
  if not passes:
    raise InputError(f'--search={path!r}: holds no passes')
  return header, passes


def load_plots() -> Any:
  """The module that draws; matplotlib is an extra.

  Raises:
    InputError: it is not installed.
  """
  try:
    from swift_jax.evaluation import plots
  except ImportError as error:
    raise InputError(
      f'needs matplotlib ({error}): install the [plots] extra of swift-jax'
    ) from None
  return plots


def summarize(
  plots: Any, header: Header, passes: Sequence[PassRecord]
) -> dict[str, Any]:
  """What search.json holds."""
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
  """The summary as it stands on the terminal."""
  rows = [
    (
      row['source'],
      str(row['proposed']),
      str(row['became_incumbent']),
      _show(row['mean_share']),
      _show(row['best_share']),
    )
    for row in summary['sources']
  ]
  widths = [max(map(len, cells)) for cells in zip(_COLUMNS, *rows, strict=True)]
  lines = [
    '  '.join(
      [cells[0].ljust(widths[0])]
      + [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
    )
    for cells in (_COLUMNS, *rows)
  ]
  lines += [
    '',
    f'passes       {summary["passes"]}',
    f'evaluations  {summary["evaluations"]}',
    f'matchness    {_show(summary["matchness"])} +- {_show(summary["stddev"])}',
    f'search time  {_percent(summary["search_share"])}',
    f'restarts     {summary["restarts"]}',
  ]
  return ''.join(f'{line}\n' for line in lines)


def _show(value: float | None) -> str:
  return '-' if value is None else f'{value:.3f}'


def _percent(share: float | None) -> str:
  return '-' if share is None else f'{share:.1%} of the time'


def write_files(folder: str, files: dict[str, bytes]) -> None:
  """Writes files into a folder, each of them whole or not at all.

  Raises:
    InputError: they cannot be written.
  """
  where = f'--output={folder!r}'
  try:
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
  except (OSError, ValueError) as error:  # a null byte is a ValueError
    reason = getattr(error, 'strerror', None) or error
    raise InputError(f'{where}: cannot be written: {reason}') from None
  for name, content in files.items():
    file = str(path / name)
    where = f'--output={folder!r}: {name}'
    atomic_file.replace(atomic_file.writable(file, where), content, where)


def png(figure: Figure) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png')
  return buffer.getvalue()


def report_search(path: str, folder: str) -> None:
  """Figures, search.json and the table of one search."""
  header, passes = read_search(path)
  plots = load_plots()
  summary = summarize(plots, header, passes)
  figures = {
    'matchness_over_evaluations': plots.matchness_over(passes, 'evaluations'),
    'matchness_over_seconds': plots.matchness_over(passes, 'seconds'),
    'skip_set': plots.skip_set_strip(header, passes),
    'sources': plots.found_by_source(passes),
  }
  files = {f'{name}.png': png(figure) for name, figure in figures.items()}
  files['search.json'] = (json.dumps(summary, indent=1) + '\n').encode()
  write_files(folder, files)
  common.write(table(summary))


def main() -> None:
  search, output = _SEARCH.value, _OUTPUT.value
  if search is None:
    raise InputError('--search: a file is needed')
  if not output:
    raise InputError('--output: a folder is needed')
  report_search(search, output)


if __name__ == '__main__':
  common.run_plain(main)
