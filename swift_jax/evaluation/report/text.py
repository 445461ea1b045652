"""A report of evaluation runs on the terminal, and the cells of its tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from swift_jax.evaluation.report.contents import Report

Row = Sequence[str]

SPEED = ('task', 'run', 'questions', 'tokens/s', 'speedup', '95 % interval')
DRAFTS = ('length', 'acceptance')


def terminal(report: Report) -> str:
  """The table of speeds, the equality of texts, warnings and notes."""
  rows = [(*SPEED, *DRAFTS)]
  for task, name, found, compared in groups(report):
    rows.append(speed_row(task, name, found, compared) + draft_cells(found))
  lines = [aligned(rows, num_left=2).rstrip('\n'), '']
  for name, compared in report['comparisons'].items():
    lines.append(f'{name}: {sentence(compared)}')
    lines += [f'warning: {warning}' for warning in compared['warnings']]
  lines += [f'note: {note}' for note in report['notes']]
  return ''.join(f'{line}\n' for line in lines)


def sentence(compared: Mapping[str, Any]) -> str:
  """A sentence that says whether a candidate's texts equal the baseline's."""
  same = compared['equality']
  texts = _number(same['texts'], 'text')
  if same['is_identical']:
    result = f'identical: {texts}'
  else:
    result = f'{same["different"]} of {texts} differ'
    if same['missing']:
      verb = 'is' if same['missing'] == 1 else 'are'
      result += f', {same["missing"]} {verb} missing'
    if same['turn_counts']:
      count = _number(len(same['turn_counts']), 'question')
      result += f', {count} with another number of turns'
    result = (
      f'NOT identical: {result}' if not compared['is_sampled'] else result
    )
    if same['differences']:
      result += f'; first: {_where(same["differences"][0])}'
  if same['extra']:
    result += f'; {_number(same["extra"], "text")} that the baseline lacks'
  if compared['is_sampled']:
    return f'sampled text, equal only by the same seed and program; {result}'
  return result


def aligned(rows: Sequence[Row], num_left: int = 1) -> str:
  """A table as text; all but the first `num_left` columns stand to the right."""
  widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
  lines = []
  for row in rows:
    cells = [
      cell.ljust(width) if i < num_left else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    lines.append('  '.join(cells).rstrip() + '\n')
  return ''.join(lines)


Group = tuple[str, str, Mapping[str, Any], Mapping[str, Any] | None]


def groups(report: Report) -> Iterator[Group]:
  """For each task and run: task, run, its figures and its comparison.

  At the end all tasks come as one, under the name `overall`.
  """
  for task in (*report['tasks'], None):
    for name, run in report['runs'].items():
      found = run['overall'] if task is None else run['tasks'].get(task)
      beside = report['comparisons'].get(name)
      if beside is not None:
        beside = (
          beside['overall'] if task is None else beside['tasks'].get(task)
        )
      if found is not None:
        yield 'overall' if task is None else task, name, found, beside


def speed_row(
  task: str,
  name: str,
  found: Mapping[str, Any],
  compared: Mapping[str, Any] | None,
) -> tuple[str, ...]:
  """The cells under `SPEED`; the baseline has no speedup."""
  speedup = interval = '-'
  if compared is not None:
    speedup = show(compared['speedup'], 3)
    if compared['low'] is not None:
      interval = f'{compared["low"]:.3f} to {compared["high"]:.3f}'
  speed = show(found['tokens_per_second'], 2)
  named = (printable(task), printable(name), str(found['questions']))
  return *named, speed, speedup, interval


def draft_cells(found: Mapping[str, Any]) -> tuple[str, str]:
  """The cells under `DRAFTS`."""
  accepted = found['acceptance']
  rate = None if accepted is None else accepted['rate']
  return show(found['mean_accepted_length'], 2), percent(rate)


def _where(one: Mapping[str, Any]) -> str:
  return (
    f'question {printable(str(one["question_id"]))}, turn {one["turn"]},'
    f' {one["unit"]} {one["index"]}: expected {ended(one["expected"])},'
    f' found {ended(one["found"])} (counted from 0)'
  )


def ended(value: int | str | None) -> str:
  """A token or character of a text, or a word for its end."""
  return 'the end' if value is None else repr(value)


def _number(count: int, noun: str) -> str:
  return f'{count} {noun}' if count == 1 else f'{count} {noun}s'


def show(value: float | None, digits: int) -> str:
  """A figure, or a dash for a figure without a meaning."""
  return '-' if value is None else f'{value:.{digits}f}'


def percent(share: float | None) -> str:
  """A share in percent, or a dash for a share without a meaning."""
  return '-' if share is None else f'{share:.1%}'


def printable(text: str) -> str:
  """A name from a file, escaped if it would not fit on one line."""
  return text if text.isprintable() else repr(text)
