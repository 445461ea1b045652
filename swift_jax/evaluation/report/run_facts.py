"""Facts of a run for reports: its model, machine and settings, as far as known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import datetime
from typing import Any

from swift_jax.evaluation.runs import Run

# Facts that a report shows, with their places in run.json. A fact stands at the top
# level under its name; or at the given place, which has the value that was applied;
# or at that place in the config, which has the value that was asked for.
_PLACES = {
  'fingerprint': (),
  'device': (),
  'cpus': (),
  'num_processes': (),
  'versions': (),
  'commit': (),
  'commits': (),
  'questions': (),
  'prompts': (),
  'task_name': ('task', 'name'),
  'batch_size': ('decode', 'batch_size'),
  'dtype': ('model', 'dtype'),
  'max_new_tokens': ('sampling', 'max_new_tokens'),
}
# If two runs differ in one of these facts, their speeds or texts may differ too.
_COMPARED = (
  'fingerprint',
  'device',
  'versions',
  'batch_size',
  'dtype',
  'max_new_tokens',
  'questions',
  'prompts',
)
_NEWER = ('prompts',)  # runs of older versions lack these facts


def describe(run: Run) -> dict[str, Any]:
  """The facts at the head of a report; an unknown fact is None."""
  first = run.answers[0] if run.answers else None
  stamps = [answer.tstamp for answer in run.answers]
  return {
    'path': run.path,
    'model_id': first and first.model_id,
    'method': first and first.method,
    **{name: fact(run, name) for name in _PLACES},
    'has_facts': run.facts is not None,
    'began': date(min(stamps, default=None)),
    'ended': date(max(stamps, default=None)),
    'missing': list(run.missing),
    'truncated': [
      answer.question_id
      for answer in run.answers
      if any(turn.detail and turn.detail.truncated for turn in answer.turns)
    ],
  }


def fact(run: Run, name: str) -> Any:
  """One fact; None if it is not known."""
  place = _PLACES[name]
  return _first(run, (name,), *([place, ('config', *place)] if place else []))


def _first(run: Run, *places: tuple[str, ...]) -> Any:
  """The value at the first of these places that has one."""
  for place in places:
    value = _lookup(run.facts, place)
    if value is not None:
      return value
  return None


def differences(
  baseline: Run, candidate: Run, names: tuple[str, str]
) -> list[str]:
  """A line for each setting in which two runs differ; both have a run.json.

  Args:
    baseline, candidate: the runs to compare.
    names: the names of both.
  """
  if baseline.facts is None or candidate.facts is None:
    return []
  lines = []
  for name in _COMPARED:
    ours, theirs = fact(baseline, name), fact(candidate, name)
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
      keys = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
      ours, theirs = ({k: v.get(k) for k in keys} for v in (ours, theirs))
    if name in _NEWER and None in (ours, theirs):
      continue
    if ours != theirs:
      lines.append(
        f'{names[1]} and {names[0]} differ in {name}: {theirs!r:.60} and'
        f' {ours!r:.60}'
      )
  return lines


def samples(run: Run) -> bool:
  """Whether a run draws tokens; False for other methods' files, which do not say."""
  do_sample, temperature = (
    _first(run, ('sampling', name), ('config', 'sampling', name))
    for name in ('do_sample', 'temperature')
  )
  if not isinstance(temperature, int | float):
    return bool(do_sample)
  return temperature > 0 and do_sample is not False


def are_spec_bench(runs: Iterable[Run]) -> bool:
  """Whether no run is known to be of a task other than spec_bench.

  Then categories named `math` or `coding` are MT-Bench's, and not a user's own.
  """
  return all(fact(run, 'task_name') in (None, 'spec_bench') for run in runs)


def date(tstamp: float | None) -> str | None:
  """Seconds since 1970 as a date in ISO form, UTC; None if they are no date."""
  if tstamp is None:
    return None
  try:
    moment = datetime.datetime.fromtimestamp(tstamp, datetime.UTC)
  except (OSError, OverflowError, ValueError):
    return None
  return moment.isoformat(timespec='seconds')


def _lookup(fields: Any, path: Sequence[str]) -> Any:
  for key in path:
    fields = fields.get(key) if isinstance(fields, Mapping) else None
  return fields
