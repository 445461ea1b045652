"""The content of a report of evaluation runs: one dict, which report.json holds.

`text` and `markdown` make tables from it, `run_plots` and `round_plots` pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import os
import pathlib
import time
from typing import Any

from swift_jax.errors import InputError
from swift_jax.evaluation.answers import Answer, to_line
from swift_jax.evaluation.report import (
  comparison,
  equality,
  figures,
  run_facts,
  scores,
)
from swift_jax.evaluation.report.figures import CountTokens, Id
from swift_jax.evaluation.runs import Run

Report = dict[str, Any]


def names(paths: Sequence[str]) -> list[str]:
  """A name for each run: its folder's or file's, with a number if that is taken."""
  found: list[str] = []
  for path in paths:
    place = path if '://' in path else os.path.realpath(path)
    base = pathlib.PurePosixPath(place).name.removesuffix('.jsonl') or 'run'
    name, number = base, 1
    while name in found:
      number += 1
      name = f'{base}-{number}'
    found.append(name)
  return found


def build(
  runs: Mapping[str, Run],
  seed: int = 0,
  count_tokens: CountTokens | None = None,
  tokenizer: str | None = None,
) -> Report:
  """All figures of all runs, each candidate compared with the baseline.

  Args:
    runs: the runs by name; the first one is the baseline.
    seed: seed of the bootstrap.
    count_tokens: counts the baseline's tokens for Spec-Bench's figure; None: the
      recorded tokens count.
    tokenizer: the name of the tokenizer with which `count_tokens` counts.

  Raises:
    InputError: a candidate shares no question with the baseline.
  """
  baseline, *candidates = runs
  files = [run.answers for run in runs.values()]
  for name in candidates:
    if not comparison.pairs(files[0], runs[name].answers):
      raise InputError(
        f'{runs[name].path}: has no question that {runs[baseline].path} has'
      )
  tasks = comparison.task_names(files, run_facts.are_spec_bench(runs.values()))
  found = scores.references(files)
  rouge = scores.load_rouge()
  report = {
    'written': run_facts.date(time.time()),
    'baseline': baseline,
    'candidates': candidates,
    'tasks': list(dict.fromkeys(tasks.values())),
    'seed': seed,
    'resamples': comparison.RESAMPLES,
    'confidence': comparison.CONFIDENCE,
    'spec_bench_tokenizer': tokenizer,
    'runs': {
      name: {
        **run_facts.describe(run),
        **_figures(run, tasks),
        'scores': scores.score(run.answers, found, rouge),
      }
      for name, run in runs.items()
    },
    'comparisons': {
      name: _compared(runs, baseline, name, tasks, seed, count_tokens)
      for name in candidates
    },
  }
  report['notes'] = _notes(report)
  if rouge is None and any(scores.needs_rouge(f, found) for f in files):
    note = 'ROUGE is left out: it needs the [eval] extra of swift-jax'
    report['notes'].append(note)
  return report


def spec_bench_lines(answers: Sequence[Answer]) -> bytes:
  """An answers file for Spec-Bench's scripts, with their keys and their order."""
  ordered = sorted(
    answers, key=lambda a: (isinstance(a.question_id, str), a.question_id)
  )
  # `to_line` leaves out our own facts for an answer without an index. Half a
  # character, which no file can hold, becomes its JSON escape.
  return b''.join(
    to_line(dataclasses.replace(answer, index=None)).encode(
      errors='backslashreplace'
    )
    for answer in ordered
  )


def _figures(run: Run, tasks: Mapping[Id, str]) -> dict[str, Any]:
  """A run's figures over all tasks and for each task."""
  draft_share = figures.sampled_draft_share(run.answers)
  groups = comparison.by_task(run.answers, tasks)
  return {
    'overall': dataclasses.asdict(figures.figures(run.answers, draft_share)),
    'tasks': {
      task: dataclasses.asdict(figures.figures(group, draft_share))
      for task, group in groups.items()
    },
  }


def _compared(
  runs: Mapping[str, Run],
  baseline: str,
  name: str,
  tasks: Mapping[Id, str],
  seed: int,
  count_tokens: CountTokens | None,
) -> dict[str, Any]:
  """The comparison of one candidate with the baseline."""
  first, second = runs[baseline], runs[name]
  same = equality.check(first.answers, second.answers)
  groups = [comparison.by_task(run.answers, tasks) for run in (first, second)]
  overall = comparison.compare(
    first.answers, second.answers, seed, count_tokens
  )
  return {
    'overall': dataclasses.asdict(overall),
    'tasks': {
      task: dataclasses.asdict(
        comparison.compare(group, groups[1][task], seed, count_tokens)
      )
      for task, group in groups[0].items()
      if task in groups[1]
    },
    'equality': {
      'is_identical': same.is_identical,
      **dataclasses.asdict(same),
    },
    'is_sampled': run_facts.samples(first) or run_facts.samples(second),
    'warnings': run_facts.differences(first, second, (baseline, name)),
  }


def _notes(report: Report) -> list[str]:
  """Facts that a reader must know to understand the figures."""
  notes = [
    'seconds are those that the answers record: loading, compiling and warming'
    ' up are not in them'
  ]
  for name, run in report['runs'].items():
    if not run['has_facts']:
      notes.append(f'{name}: no run.json, its device and settings are unknown')
    count, missing = run['overall']['questions'], run['missing']
    for ids, total, what in (
      (missing, count + len(missing), 'have no answer; their places'),
      (run['truncated'], count, 'lost a beginning to fit the context'),
      (run['overall']['loops'], count, 'loop, which flatters every draft'),
    ):
      if ids:
        listed = shown(ids)
        notes.append(
          f'{name}: {len(ids)} of {total} questions {what}: {listed}'
        )
  for name, compared in report['comparisons'].items():
    count = compared['overall']['questions']
    if count < report['runs'][report['baseline']]['overall']['questions']:
      notes.append(f'{name}: speedups are over the {count} questions of both')
  counted = 'recorded tokens, where its speed.py counts the text again'
  if report['spec_bench_tokenizer']:
    counted = f'tokens counted again by {report["spec_bench_tokenizer"]}'
  notes.append(f"Spec-Bench's figures take the baseline's {counted}")
  return notes


def shown(values: Sequence[Any], most: int = 10) -> str:
  """The first values of a list, and the number of the others."""
  rest = len(values) - most
  more = f' and {rest} more' if rest > 0 else ''
  return ', '.join(map(str, values[:most])) + more
