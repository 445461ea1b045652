"""Reads a run's folder: `run.json` and the answers of each process.

One process writes `answers.jsonl`, several write `answers-PROCESS.jsonl`. Folders
may lie on an object store (gs://) that etils can read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
from typing import Any

from etils import epath

from swift_jax.errors import InputError
from swift_jax.evaluation import answers
from swift_jax.evaluation.answers import Answer

RUN = 'run.json'


@dataclasses.dataclass(frozen=True)
class Run:
  """The answers and facts that a run has written.

  Attributes:
    path: the run's folder or file.
    answers: an answer for each question; in the data set's order if it is known.
    facts: the content of `run.json`; None for a file of another method.
    missing: places in the data set that have no answer.
  """

  path: str
  answers: tuple[Answer, ...]
  facts: Mapping[str, Any] | None = None
  missing: tuple[int, ...] = ()


def answers_name(process: int, num_processes: int) -> str:
  """The name of the file with a process's answers."""
  return 'answers.jsonl' if num_processes == 1 else f'answers-{process}.jsonl'


def read_run(path: str, flag: str, allow_missing: bool = False) -> Run:
  """Reads a folder of ours, or an answers file of any method.

  Args:
    path: the folder, or a .jsonl file.
    flag: the flag that errors name.
    allow_missing: accept a run that is not finished.

  Raises:
    InputError: an answer is damaged, doubled, missing or of another model; the error
      names its file and line.
  """
  where = f'{flag}={path}'
  # An object store's client has errors of its own.
  kinds = Exception if '://' in path else OSError
  try:
    place = epath.Path(path).expanduser()
    if not place.exists():
      raise InputError(f'{where}: no such file or folder')
    if not place.is_dir():
      found = _read_file(place, where)
      if not found:
        raise InputError(f'{where}: holds no answers')
      return Run(path, _merged([(where, found)], None))
    return _read_folder(place, where, allow_missing)
  except InputError:
    raise
  except kinds as error:
    reason = getattr(error, 'strerror', None) or error
    raise InputError(f'{where}: cannot be read: {reason}') from error


def _read_folder(place: epath.Path, where: str, allow_missing: bool) -> Run:
  facts = read_facts(place / RUN, f'{where}/{RUN}')
  count = facts['num_processes']
  files = []
  for process in range(count):
    name = answers_name(process, count)
    here = f'{where}/{name}'
    if (place / name).exists():
      files.append((here, _read_file(place / name, here)))
    elif not allow_missing:
      raise InputError(f'{here}: no such file: process {process} wrote nothing')
  merged = _merged(files, facts['model_id'])
  there = _indices(merged, where)
  missing = [i for i in facts['indices'] if i not in there]
  if missing and not allow_missing:
    raise InputError(
      f'{where}: {len(missing)} of {len(facts["indices"])} questions have no'
      f' answer, index {missing[0]} the first: the run is not finished; the same'
      ' evaluate.py goes on with it'
    )
  odd = sorted(there - set(facts['indices']))
  if odd:
    raise InputError(f'{where}: index {odd[0]} is no question of this run')
  return Run(where.partition('=')[2], merged, facts, tuple(missing))


def _indices(found: Sequence[Answer], where: str) -> set[int]:
  """The places of a run's answers; only lines of ours have a place, each its own."""
  places: set[int] = set()
  for answer in found:
    if answer.index is None or answer.index in places:
      raise InputError(
        f'{where}: question_id={answer.question_id!r}: index={answer.index!r}:'
        ' expected one that no other answer has'
      )
    places.add(answer.index)
  return places


def read_facts(file: epath.Path, where: str) -> dict[str, Any]:
  """Reads `run.json`.

  Raises:
    InputError: there is no such file, or it is not one of ours.
  """
  try:
    facts = json.loads(file.read_bytes(), parse_constant=_refuse_constant)
  except FileNotFoundError:
    raise InputError(f'{where}: no such file: no folder of a run') from None
  except (ValueError, RecursionError) as error:
    raise InputError(f'{where}: not JSON: {error}') from None
  for name, (is_valid, wanted) in _FACTS.items():
    value = facts.get(name) if isinstance(facts, dict) else None
    if not is_valid(value):
      raise InputError(f'{where}: {name}={value!r:.60}: expected {wanted}')
  return facts


def _refuse_constant(name: str) -> None:
  raise ValueError(f'{name} is no number')


_FACTS = {
  'num_processes': (
    lambda value: type(value) is int and value >= 1,
    'an integer >= 1',
  ),
  'model_id': (lambda value: isinstance(value, str), 'a string'),
  'commits': (
    lambda value: value is None or isinstance(value, list),
    'a list',
  ),
  'indices': (
    lambda value: (
      isinstance(value, list) and all(type(item) is int for item in value)
    ),
    'a list of integers',
  ),
}


def _read_file(file: epath.Path, where: str) -> list[Answer]:
  """Parses every line of a file; a torn last line is refused like any bad line."""
  content = file.read_bytes()
  *lines, rest = content.split(b'\n')
  if rest:
    raise InputError(
      f'{where}, line {len(lines) + 1}: torn: it has no end; the evaluate.py that'
      ' wrote it drops it and goes on'
    )
  return [
    answers.parse(line, f'{where}, line {number}')
    for number, line in enumerate(lines, 1)
  ]


def _merged(
  files: Sequence[tuple[str, Sequence[Answer]]], model_id: str | None
) -> tuple[Answer, ...]:
  """Merges the answers of files, in order; refuses doubles and other models."""
  seen: dict[int | str, str] = {}
  merged = []
  for where, found in files:
    for number, answer in enumerate(found, 1):
      here = f'{where}, line {number}'
      model_id = answer.model_id if model_id is None else model_id
      if answer.model_id != model_id:
        raise InputError(
          f'{here}: model_id={answer.model_id!r:.60}: the others are of'
          f' {model_id!r:.60}'
        )
      if answer.question_id in seen:
        raise InputError(
          f'{here}: question_id={answer.question_id!r}: is also in'
          f' {seen[answer.question_id]}'
        )
      seen[answer.question_id] = here
      merged.append(answer)
  if all(answer.index is not None for answer in merged):
    merged.sort(key=lambda answer: answer.index)
  return tuple(merged)
