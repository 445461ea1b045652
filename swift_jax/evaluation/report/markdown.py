"""A report of evaluation runs as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from swift_jax.evaluation.report.contents import Report, shown
from swift_jax.evaluation.report.text import (
  DRAFTS,
  SPEED,
  Row,
  draft_cells,
  ended,
  groups,
  percent,
  sentence,
  show,
  speed_row,
)

_MOST_DIFFERENCES = 20
_HEAD = (
  'method',
  'model_id',
  'fingerprint',
  'task_name',
  'questions',
  'device',
  'cpus',
  'num_processes',
  'versions',
  'commit',
  'commits',
  'batch_size',
  'dtype',
  'max_new_tokens',
  'began',
  'ended',
  'path',
)
_NONE = '-'
_TIMES = ('prefill', 'decode', 'draft', 'verify', 'search', 'other')


def markdown(report: Report, pictures: Sequence[str] = ()) -> str:
  """The content of report.md: all tables, after a table of the runs' settings.

  Args:
    report: see `contents.build`.
    pictures: names of the picture files beside report.md.
  """
  named = list(report['candidates'])
  parts = [
    f'# {", ".join(map(_cell, named))} against {_cell(report["baseline"])}',
    f'Written {report["written"]} by launch/report.py.',
    _bullets(
      f'{name}: {sentence(compared)}'
      for name, compared in report['comparisons'].items()
    ),
    _bullets(_all_notes(report)),
    '## Runs',
    _table(_head_rows(report)),
    '## Speed',
    'All tokens over all seconds. The interval is that of'
    f' {report["resamples"]:,} bootstrap draws of the prompts, the same for'
    f' both runs (seed {report["seed"]}).',
    _table(_speed_rows(report), num_left=2),
    *(f'![]({picture})' for picture in pictures),
    "## Spec-Bench's figures",
    "Means over questions, as its speed.py has them, and the means' ratio.",
    _table(_spec_bench_rows(report), num_left=2),
    '## Drafts',
    'Length: tokens returned over passes of the target. Acceptance: drafted'
    ' tokens that were returned, of all that were verified on the chain.',
    _table(_draft_rows(report), num_left=2),
    *_positions(report),
    '## Time',
    'Shares of the wall time. Decoding is split into draft and verify as in the'
    ' sample of rounds whose halves were timed apart.',
    _table(_time_rows(report)),
    *_scores(report),
    *_differences(report),
  ]
  return '\n\n'.join(part for part in parts if part) + '\n'


def _head_rows(report: Report) -> list[Row]:
  runs = report['runs']
  rows = [('', *runs)]
  for name in _HEAD:
    values = [_value(run[name]) for run in runs.values()]
    if set(values) != {_NONE}:
      rows.append((name.replace('_', ' '), *values))
  return rows


def _speed_rows(report: Report) -> list[Row]:
  rows = [(*SPEED, 'tokens', 'seconds')]
  for task, name, found, compared in groups(report):
    amounts = (f'{found["new_tokens"]:,}', f'{found["wall_s"]:,.2f}')
    rows.append(speed_row(task, name, found, compared) + amounts)
  return rows


def _spec_bench_rows(report: Report) -> list[Row]:
  rows = [('task', 'run', 'tokens/s', "baseline's", 'speedup', 'lengths')]
  for task, name, found, compared in groups(report):
    if compared is not None:
      cells = (
        show(compared['spec_bench_candidate'], 2),
        show(compared['spec_bench_baseline'], 2),
        show(compared['spec_bench_speedup'], 3),
        show(found['mean_accept_lengths'], 2),
      )
      rows.append((task, name, *cells))
  return rows


def _draft_rows(report: Report) -> list[Row]:
  rows = [('task', 'run', *DRAFTS, 'drafted', 'accepted', 'distinct 4-grams')]
  for task, name, found, _ in groups(report):
    accepted = found['acceptance'] or {}
    counts = [_value(accepted.get(key)) for key in ('drafted', 'accepted')]
    distinct = percent(found['distinct_4grams'])
    rows.append((task, name, *draft_cells(found), *counts, distinct))
  return rows


def _positions(report: Report) -> list[str]:
  """Acceptance by place in the draft, a table for each run."""
  parts = []
  for name, run in report['runs'].items():
    if run['overall']['acceptance'] is not None:
      rows = [('place in the draft', 'passes', 'accepted', 'share')]
      for place in run['overall']['acceptance']['by_position']:
        counts = (place['position'], place['passes'], place['accepted'])
        rows.append((*map(str, counts), percent(place['share'])))
      parts += [
        f'{_cell(name)}: of the passes that drafted so many tokens, those that'
        ' accepted as many.',
        _table(rows),
      ]
  return parts


def _time_rows(report: Report) -> list[Row]:
  rows = [('run', *_TIMES)]
  for name, run in report['runs'].items():
    shares = run['overall']['time'] or {}
    rows.append((name, *(percent(shares.get(phase)) for phase in _TIMES)))
  return rows


def _scores(report: Report) -> list[str]:
  rows = [('task', 'run', 'score', 'value', 'texts')]
  for name, run in report['runs'].items():
    for task, values in run['scores'].items():
      for score, value in values.items():
        if score != 'texts':
          cells = (score, f'{value:.4f}', str(values['texts']))
          rows.append((task, name, *cells))
  if len(rows) == 1:
    return []
  return ['## Scores', _table(rows, num_left=3)]


def _differences(report: Report) -> list[str]:
  parts = []
  for name, compared in report['comparisons'].items():
    found = compared['equality']['differences']
    if found:
      rows = [('question', 'turn', 'at', 'expected', 'found', 'texts')]
      for one in found[:_MOST_DIFFERENCES]:
        at = f'{one["unit"]} {one["index"]}'
        texts = f'{one["expected_text"]!r} / {one["found_text"]!r}'
        values = map(ended, (one['expected'], one['found']))
        place = (str(one['question_id']), str(one['turn']))
        rows.append((*place, at, *values, texts))
      rest = len(found) - _MOST_DIFFERENCES
      parts += [
        f'{_cell(name)}, turns, tokens and characters counted from 0:',
        _table(rows, num_left=6),
        f'{rest} more are in report.json.' if rest > 0 else '',
      ]
  return ['## Texts that differ', *parts] if parts else []


def _all_notes(report: Report) -> Iterator[str]:
  for compared in report['comparisons'].values():
    yield from compared['warnings']
  yield from report['notes']


def _value(value: Any) -> str:
  """A fact as a cell; an unknown or empty fact is a dash."""
  if value is None:
    return _NONE
  if isinstance(value, Mapping):
    value = ', '.join(f'{key} {item}' for key, item in value.items())
  elif isinstance(value, list):
    value = shown(value)
  return str(value) or _NONE


def _bullets(lines: Iterable[str]) -> str:
  return '\n'.join(f'- {_cell(line)}' for line in lines)


def _table(rows: Sequence[Row], num_left: int = 1) -> str:
  """A Markdown table, whose first row is the head."""
  head, *body = [[_cell(cell) for cell in row] for row in rows]
  marks = ['---' if i < num_left else '---:' for i in range(len(head))]
  return '\n'.join(f'| {" | ".join(cells)} |' for cells in (head, marks, *body))


def _cell(text: str) -> str:
  """A cell's text, with escapes before Markdown's marks and tags."""
  text = ' '.join(text.split())
  for mark in '\\`*_|<[#':
    text = text.replace(mark, f'\\{mark}')
  return text
