"""Evaluation data as it was published, turned into questions.

  task         published form                     prompt
  spec_bench   question.jsonl                     its turns as they are
  gsm8k        jsonl                              Question: ...\\nAnswer:
  humaneval    jsonl                              its prompt as it is
  mbpp         jsonl; the sanitized JSON list     Austin et al.'s, no shots
  cnn_dm       jsonl or csv                       Article: ...\\nSummary:
  tinystories  txt with <|endoftext|>, or jsonl   the first 32 words of a story
  jsonl        {"prompt": ...} a line             its prompt as it is

Each may be gzip. A prompt is never cut to a model's length and in no chat
template: that is for who runs it.
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

_ANNOTATION = re.compile('<<.*?>>')  # of a calculator, in gsm8k's answers
# As the prompts of the TinyStories paper, it usually ends within a sentence.
BEGINNING_WORDS = 32
_BEGINNING = re.compile(rf'\S+(?:\s+\S+){{{BEGINNING_WORDS - 1}}}(?=\s)')


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """Which questions are asked.

  Attributes:
    name: one of TASKS.
    path: a file in the task's published form, local or gs://; empty: from the
      hub, with the package datasets.
    shots_path: a file in the same form that the shots come from; empty: the one
      with `train` in its name beside `path`, or the hub's train split where
      `path` is empty too.
    num_shots: answered questions before each; None: as many as in the paper,
      5 for gsm8k, 1 for cnn_dm and tinystories, none for the others.
    num_samples: as many are drawn, and asked in the file's order; those of a
      smaller number are among those of a larger one. 0: all.
    seed: draws the samples and the shots.
    chat: ask in the tokenizer's chat template; None: if it has one.
    date: the day that such a template writes, as in 2026-12-24, so that runs of
      several days ask the same; empty: the day on which the run began, in UTC.
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
    """The moment that a chat template takes for the present one.

    Args:
      started: when the run began.
    """
    return self._day() or started


@dataclasses.dataclass(frozen=True)
class Question:
  """What a model is asked.

  Attributes:
    index: its place in the published file, from 0.
    question_id: what the file calls it, or the index.
    category: what the file says in spec_bench and jsonl, else the task's name.
    turns: prompts, each to be asked after the answer to the one before.
    reference: what a score compares with, as it was published.
  """

  index: int
  question_id: int | str
  category: str
  turns: tuple[str, ...]
  reference: tuple[str, ...] = ()


class _Case(NamedTuple):
  """What a record asks, without shots.

  Attributes:
    turns: the prompts.
    reference: as in a question.
    answer: as a shot, the prompt goes on with it.
    category: empty: the task's name.
  """

  turns: tuple[str, ...]
  reference: tuple[str, ...]
  answer: str = ''
  category: str = ''


class _Task(NamedTuple):
  """How a task's records are read, and the paper's number of shots."""

  parse: Callable[[Record], _Case | None]
  num_shots: int = 0
  suffixes: tuple[str, ...] = ('.jsonl',)
  id_field: str = 'id'  # without an `id`, it is the index


def load(cfg: TaskConfig) -> list[Question]:
  """The questions of a task, in the order of the file.

  Shots are drawn once and stand before every question, with blank lines
  between; where one of them asks what the question does, the next one drawn
  takes its place.

  Args:
    cfg: which ones.

  Raises:
    InputError: data that cannot be had or is not in the published form; names
      the setting or the file with its line.
  """
  where, records = _records(cfg, is_shots=False)
  questions = _drawn(cfg, _questions(cfg, where, records), where)
  count = _TASKS[cfg.name].num_shots
  count = count if cfg.num_shots is None else cfg.num_shots
  return _with_shots(cfg, questions, count) if count else questions


def fingerprint(questions: Sequence[Question]) -> str:
  """16 hexadecimal digits that differ when anything in the questions does."""
  digest = hashlib.sha256()
  for question in questions:
    digest.update(json.dumps(dataclasses.astuple(question)).encode() + b'\n')
  return digest.hexdigest()[:16]


def _records(cfg: TaskConfig, is_shots: bool) -> tuple[str, Sequence[Record]]:
  """What messages call the data, and its records."""
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
  """Every question, each under an id of its own."""
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
  """`num_samples` of them, in their order."""
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
  # One more than needed, by what they ask: at most one of them is the question.
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
  """`turns`, `category`, and for some questions a `reference`."""
  category = record.text('category')
  return _Case(record.texts('turns'), _reference(record), category=category)


def _gsm8k(record: Record) -> _Case:
  """`question` and `answer`, which as a shot loses its `<<48/2=24>>`."""
  prompt = f'Question: {record.text("question")}\nAnswer:'
  answer = record.text('answer')
  return _Case((prompt,), (answer,), f' {_ANNOTATION.sub("", answer)}')


def _humaneval(record: Record) -> _Case:
  """`prompt` and `canonical_solution`.

  The official SWIFT code puts a tab for every four spaces of a prompt; here it
  stays as it was published.
  """
  return _Case((record.text('prompt'),), (record.text('canonical_solution'),))


def _mbpp(record: Record) -> _Case:
  """`text` (sanitized: `prompt`), `code` and `test_list`.

  A file is taken whole; the hub's test split are its tasks 11 to 510.
  """
  text = record.text('text' if 'text' in record.fields else 'prompt')
  tests = '\n'.join(record.texts('test_list'))
  prompt = (
    f'You are an expert Python programmer, and here is your task: {text} Your'
    f' code should pass these tests:\n\n{tests}\n[BEGIN]\n'
  )
  return _Case((prompt,), (record.text('code'),))


def _cnn_dm(record: Record) -> _Case | None:
  """`article` and `highlights`, in a shot as one line; passed over if blank."""
  article = record.text('article', can_be_blank=True)
  highlights = record.text('highlights', can_be_blank=True)
  if not article.strip() or not highlights.strip():
    return None
  prompt = f'Article: {article}\nSummary:'
  return _Case((prompt,), (highlights,), f' {" ".join(highlights.split())}')


def _tinystories(record: Record) -> _Case | None:
  """`text`: its first words are the prompt, the rest is the reference.

  A story that has no rest is passed over, as a shot too.
  """
  story = record.text('text', can_be_blank=True).strip()
  beginning = _BEGINNING.match(story)
  if beginning is None:
    return None
  rest = story[beginning.end() :]
  return _Case((beginning[0],), (rest,), rest)


def _jsonl(record: Record) -> _Case:
  """`prompt`, and a `category` and a `reference` if it has them."""
  category = record.text('category') if record.has('category') else ''
  prompt = record.text('prompt')
  return _Case((prompt,), _reference(record), category=category)


def _reference(record: Record) -> tuple[str, ...]:
  """One text, or a list: a reference a turn, or lists of answers as good."""
  found = record.fields.get('reference')
  parts = found if isinstance(found, list) else [found]
  flat = [t for p in parts for t in (p if isinstance(p, list) else [p])]
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
