"""Turns evaluation data, as it was published, into questions.

  task         published form                     prompt
  spec_bench   question.jsonl                     its turns as they are
  gsm8k        jsonl                              Question: ...\\nAnswer:
  humaneval    jsonl                              its prompt as it is
  mbpp         jsonl; the sanitized JSON list     Austin et al.'s, no shots
  cnn_dm       jsonl or csv                       Article: ...\\nSummary:
  tinystories  txt with <|endoftext|>, or jsonl   the first 32 words of a story
  jsonl        {"prompt": ...} a line             its prompt as it is

Each file may be gzip. A prompt here is not cut to a model's length and has no chat
template: `runner` does both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import datetime
import hashlib
import json
import re
from typing import NamedTuple

import numpy as np

from swift_jax.config.checks import require, require_bool, require_int
from swift_jax.errors import InputError
from swift_jax.evaluation import task_files
from swift_jax.evaluation.task_files import HubSource, Record

_ANNOTATION = re.compile('<<.*?>>')  # a calculator's, in gsm8k's answers
# As in the TinyStories paper, a prompt usually ends within a sentence.
BEGINNING_WORDS = 32
_BEGINNING = re.compile(rf'\S+(?:\s+\S+){{{BEGINNING_WORDS - 1}}}(?=\s)')


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """The questions to ask.

  Attributes:
    name: spec_bench, gsm8k, humaneval, mbpp, cnn_dm, tinystories or jsonl.
    path: a file in the task's published form; empty: from the hub. The file may be
      local or on gs://. The hub needs the package datasets.
    shots_path: a file in the same form with the shots; empty: found by itself.
      Then it is the file beside `path` with `train` in its name, or the hub's train
      split if `path` is empty too.
    num_shots: answered questions before each question; None: the paper's number.
      That is 5 for gsm8k, 1 for cnn_dm and tinystories, and 0 for the others.
    num_samples: number of questions drawn; 0: all. They are asked in the file's
      order. The questions of a smaller number are among those of a larger number.
    seed: seed by which the samples and the shots are drawn.
    chat: ask in the tokenizer's chat template; None: if it has one.
    date: the day that a chat template writes, as in 2026-12-24; empty: the first
      day of the run, in UTC. So runs on several days have the same prompts.
  """

  name: str = ''
  path: str = ''
  shots_path: str = ''
  num_shots: int | None = None
  num_samples: int = 0
  seed: int = 0
  chat: bool | None = None
  date: str = ''

  def __post_init__(self):
    names = f'one of {", ".join(TASKS)}'
    require(self.name in TASKS, 'task.name', self.name, names)
    for name in ('path', 'shots_path'):
      value = getattr(self, name)
      require(isinstance(value, str), f'task.{name}', value, 'a string')
    for name in ('num_samples', 'seed'):
      require_int(f'task.{name}', getattr(self, name), 0)
    if self.num_shots is not None:
      require_int('task.num_shots', self.num_shots, 0)
    if self.chat is not None:
      require_bool('task.chat', self.chat)
    require(
      isinstance(self.date, str) and (not self.date or self._day() is not None),
      'task.date',
      self.date,
      'a day as in 2026-12-24',
    )
    task = _TASKS[self.name]
    wanted = f'a file, since the hub has no {self.name}'
    require(
      bool(self.path) or self.name in _HUB, 'task.path', self.path, wanted
    )
    if not task.num_shots:
      wanted = f'none for {self.name}, which is asked without shots'
      require(not self.shots_path, 'task.shots_path', self.shots_path, wanted)
      require(not self.num_shots, 'task.num_shots', self.num_shots, wanted)

  def _day(self) -> datetime.datetime | None:
    try:
      day = datetime.date.fromisoformat(self.date)
    except ValueError:
      return None
    return datetime.datetime.combine(day, datetime.time(), datetime.UTC)

  def now(self, started: datetime.datetime) -> datetime.datetime:
    """The present moment for chat templates: the setting's day, or `started`.

    Args:
      started: the time at which the run began.
    """
    return self._day() or started


@dataclasses.dataclass(frozen=True)
class Question:
  """A question for the model.

  Attributes:
    index: its place in the published file, from 0.
    question_id: its id in the file, or the index if it has none.
    category: in spec_bench and jsonl the file's category, else the task's name.
    turns: prompts; each follows the answer to the prompt before it.
    reference: the published texts with which a score compares.
  """

  index: int
  question_id: int | str
  category: str
  turns: tuple[str, ...]
  reference: tuple[str, ...] = ()


class _Case(NamedTuple):
  """A record's question, without shots.

  Attributes:
    turns: the prompts.
    reference: as in `Question`.
    answer: the text after the prompt if the record serves as a shot.
    category: the record's category; empty: the task's name.
  """

  turns: tuple[str, ...]
  reference: tuple[str, ...]
  answer: str = ''
  category: str = ''


class _Task(NamedTuple):
  """The reader of a task's records, and the paper's number of shots."""

  parse: Callable[[Record], _Case | None]
  num_shots: int = 0
  suffixes: tuple[str, ...] = ('.jsonl',)
  id_field: str = 'id'  # a record without an `id` has its index as id


def load(cfg: TaskConfig) -> list[Question]:
  """The questions of a task, in the order of the file.

  Shots are drawn once and stand before every question, with blank lines between
  them. If a shot equals the question, the next drawn shot takes its place.

  Args:
    cfg: the task, and the choice of its questions.

  Raises:
    InputError: the data cannot be read or is not in the published form; the error
      names the setting, or the file with its line.
  """
  where, records = _records(cfg, is_shots=False)
  questions = _drawn(cfg, _questions(cfg, where, records), where)
  count = _TASKS[cfg.name].num_shots
  count = count if cfg.num_shots is None else cfg.num_shots
  return _with_shots(cfg, questions, count) if count else questions


def fingerprint(questions: Sequence[Question]) -> str:
  """A hash of all that the questions hold, of 16 hexadecimal digits."""
  digest = hashlib.sha256()
  for question in questions:
    digest.update(json.dumps(dataclasses.astuple(question)).encode() + b'\n')
  return digest.hexdigest()[:16]


def _records(cfg: TaskConfig, is_shots: bool) -> tuple[str, Sequence[Record]]:
  """The name of the data in messages, and its records."""
  task = _TASKS[cfg.name]
  setting = 'task.shots_path' if is_shots else 'task.path'
  path = cfg.shots_path if is_shots else cfg.path
  if is_shots and not path and cfg.path:
    path = task_files.train_file(cfg.path, setting, task.suffixes)
  if path:
    records = task_files.read(path, setting, task.suffixes)
    return f'{setting}={path!r}', records
  hub = _HUB[cfg.name]
  split = hub.shots_split if is_shots else hub.split
  return f'{hub.path}, {split}', task_files.from_hub(hub, split, setting)


def _questions(
  cfg: TaskConfig, where: str, records: Sequence[Record]
) -> list[Question]:
  """All questions of the records; a doubled id is refused."""
  task = _TASKS[cfg.name]
  questions, seen = [], {}
  for record in records:
    case = task.parse(record)
    if case is None:
      continue
    has_id = task.id_field != 'id' or record.has('id')
    name = record.identifier(task.id_field) if has_id else record.index
    if name in seen:
      raise InputError(
        f'{record.where}: {task.id_field}={name!r:.80}: the id of'
        f' record {seen[name]} (from 0) too'
      )
    seen[name] = record.index
    category = case.category or cfg.name
    questions.append(
      Question(record.index, name, category, case.turns, case.reference)
    )
  if not questions:
    raise InputError(f'{where}: holds no questions of {cfg.name}')
  return questions


def _drawn(
  cfg: TaskConfig, questions: list[Question], where: str
) -> list[Question]:
  """Draws `num_samples` of the questions, in their order."""
  if not cfg.num_samples:
    return questions
  require(
    cfg.num_samples <= len(questions),
    'task.num_samples',
    cfg.num_samples,
    f'at most {len(questions)}, which {where} holds',
  )
  order = np.random.default_rng([cfg.seed, 0]).permutation(len(questions))
  return [questions[i] for i in sorted(order[: cfg.num_samples])]


def _with_shots(
  cfg: TaskConfig, questions: list[Question], count: int
) -> list[Question]:
  """Puts `count` answered questions before each first turn."""
  where, records = _records(cfg, is_shots=True)
  order = np.random.default_rng([cfg.seed, 1]).permutation(len(records))
  # The pool has one shot more than needed, each with other turns: so at most one of
  # them equals a question.
  pool: dict[tuple[str, ...], str] = {}
  for index in order:
    case = _TASKS[cfg.name].parse(records[int(index)])
    if case is not None:
      pool.setdefault(case.turns, f'{case.turns[0]}{case.answer}')
    if len(pool) > count:
      break
  asked = []
  for question in questions:
    others = [shot for turns, shot in pool.items() if turns != question.turns]
    wanted = f'at most {len(others)}, what {where} holds beside the question'
    require(len(others) >= count, 'task.num_shots', count, wanted)
    first, *later = question.turns
    turns = ('\n\n'.join([*others[:count], first]), *later)
    asked.append(dataclasses.replace(question, turns=turns))
  return asked


def _spec_bench(record: Record) -> _Case:
  """Fields: `turns`, `category`, and for some questions a `reference`."""
  category = record.text('category')
  return _Case(record.texts('turns'), _reference(record), category=category)


def _gsm8k(record: Record) -> _Case:
  """Fields: `question` and `answer`; a shot leaves out a `<<48/2=24>>`."""
  prompt = f'Question: {record.text("question")}\nAnswer:'
  answer = record.text('answer')
  return _Case((prompt,), (answer,), f' {_ANNOTATION.sub("", answer)}')


def _humaneval(record: Record) -> _Case:
  """Fields: `prompt` and `canonical_solution`.

  The official SWIFT code replaces every four spaces of a prompt by a tab; here the
  prompt stays as it was published.
  """
  return _Case((record.text('prompt'),), (record.text('canonical_solution'),))


def _mbpp(record: Record) -> _Case:
  """Fields: `text` (sanitized: `prompt`), `code` and `test_list`.

  From a file all tasks are taken; the hub's test split has the tasks 11 to 510.
  """
  text = record.text('text' if 'text' in record.fields else 'prompt')
  tests = '\n'.join(record.texts('test_list'))
  prompt = (
    f'You are an expert Python programmer, and here is your task: {text} Your'
    f' code should pass these tests:\n\n{tests}\n[BEGIN]\n'
  )
  return _Case((prompt,), (record.text('code'),))


def _cnn_dm(record: Record) -> _Case | None:
  """Fields: `article` and `highlights`; a record with a blank field is left out.

  A shot has the highlights as one line.
  """
  article = record.text('article', can_be_blank=True)
  highlights = record.text('highlights', can_be_blank=True)
  if not article.strip() or not highlights.strip():
    return None
  prompt = f'Article: {article}\nSummary:'
  return _Case((prompt,), (highlights,), f' {" ".join(highlights.split())}')


def _tinystories(record: Record) -> _Case | None:
  """Field: `text`. Its first words are the prompt, the rest is the reference.

  A story that is too short to have a rest is left out, as a shot too.
  """
  story = record.text('text', can_be_blank=True).strip()
  beginning = _BEGINNING.match(story)
  if beginning is None:
    return None
  rest = story[beginning.end() :]
  return _Case((beginning[0],), (rest,), rest)


def _jsonl(record: Record) -> _Case:
  """Fields: `prompt`, and optionally a `category` and a `reference`."""
  category = record.text('category') if record.has('category') else ''
  prompt = record.text('prompt')
  return _Case((prompt,), _reference(record), category=category)


def _reference(record: Record) -> tuple[str, ...]:
  """The reference texts of a record, as a flat tuple.

  The field holds one text, or a list: a reference for each turn, or lists of
  answers that are equally good.
  """
  found = record.fields.get('reference')
  items = found if isinstance(found, list) else [found]
  flat = [t for i in items for t in (i if isinstance(i, list) else [i])]
  if found is None or not flat:
    return ()
  fields = {'reference': flat}
  return dataclasses.replace(record, fields=fields).texts('reference', True)


_HUB = {
  'gsm8k': HubSource('openai/gsm8k', 'main', 'test', 'train'),
  'humaneval': HubSource('openai/openai_humaneval', None, 'test'),
  'mbpp': HubSource('google-research-datasets/mbpp', None, 'test'),
  'cnn_dm': HubSource('abisee/cnn_dailymail', '3.0.0', 'test', 'train'),
  'tinystories': HubSource(
    'roneneldan/TinyStories', None, 'validation', 'train'
  ),
}
_TASKS: Mapping[str, _Task] = {
  'spec_bench': _Task(_spec_bench, id_field='question_id'),
  'gsm8k': _Task(_gsm8k, num_shots=5),
  'humaneval': _Task(_humaneval, id_field='task_id'),
  'mbpp': _Task(_mbpp, id_field='task_id'),
  'cnn_dm': _Task(_cnn_dm, num_shots=1, suffixes=('.jsonl', '.csv')),
  'tinystories': _Task(_tinystories, num_shots=1, suffixes=('.txt', '.jsonl')),
  'jsonl': _Task(_jsonl),
}
TASKS = tuple(_TASKS)
