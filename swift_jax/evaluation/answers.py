"""Answer lines: Spec-Bench's format, with facts of our own added.

  {"question_id", "category", "answer_id", "model_id", "choices": [{"index",
   "turns", "decoding_steps", "new_tokens", "wall_time", "accept_lengths"}],
   "tstamp", "swift_jax": {...}}

Lists under "choices" hold a value for each turn, but "accept_lengths" a value for
each pass of the target over all turns. "swift_jax" is our own key; files of other
methods lack it. Functions take an argument `where`: the file and line that errors
name.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Literal, get_args

from pydantic import Field, TypeAdapter

from swift_jax.files.fields import bad, parse_json
from swift_jax.runtime.metrics import LogProbs

KEY = 'swift_jax'
Method = Literal['plain', 'swift', 'prompt_lookup']
METHODS = get_args(Method)
_MOST = 2**40  # no count and no time in seconds since 1970 is larger
Count = Annotated[int, Field(ge=0, le=_MOST)]
Number = Annotated[float, Field(ge=0, le=_MOST)]


@dataclasses.dataclass(frozen=True)
class Detail:
  """The facts of a turn that only our own lines hold.

  A batch's seconds are split evenly over its rows, so that sums over answers are
  the machine's time.

  Attributes:
    tokens: generated token ids.
    prompt_tokens: number of tokens of the prompt as the model got it.
    truncated: number of tokens cut off the prompt's beginning to fit the context.
    finish_reason: `eos`, `stop` or `length`.
    drafted: for each pass the number of drafted tokens; empty for plain decoding.
    accepted: for each pass the number of drafted tokens that were returned; empty
      for plain decoding.
    prefill_s, decode_s, search_s: the row's share of each phase's seconds.
    draft_s, verify_s: the row's share of the seconds of rounds whose halves were
      timed apart, a sample of `decode_s`; 0 if there was no such round.
    logprobs: log-probabilities. If none were asked for, it is None, and the line has
      no such key.
  """

  tokens: tuple[Count, ...]
  prompt_tokens: Count
  truncated: Count
  finish_reason: Literal['eos', 'stop', 'length']
  drafted: tuple[Count, ...]
  accepted: tuple[Count, ...]
  prefill_s: Number
  decode_s: Number
  search_s: Number
  draft_s: Number
  verify_s: Number
  logprobs: LogProbs | None = None


@dataclasses.dataclass(frozen=True)
class Turn:
  """One generated text, the answer to one turn of a question.

  Attributes:
    text: the text.
    new_tokens: number of its tokens.
    steps: passes of the target.
    wall_s: the row's share of the batch's seconds.
    detail: our own facts; None in files of other methods.
  """

  text: str
  new_tokens: int
  steps: int
  wall_s: float
  detail: Detail | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
  """One line of an answers file: the answer to a question.

  Attributes:
    question_id: the question's id in the data set.
    category: the question's category, or the task's name if it has none.
    answer_id: the id of this line.
    model_id: the name of the model that wrote the answer.
    turns: the texts, in the order of the turns.
    accept_lengths: for each pass over all turns the tokens that it returned, with
      the target's own.
    tstamp: time of writing, in seconds since 1970.
    index: the question's place in the data set, from 0; None in files of other
      methods.
    method: one of `METHODS`; None in files of other methods.
    reference: the texts with which a score compares.
    skip_ratio, matchness: those of the mask that drafted last; None without a mask.
  """

  question_id: int | str
  category: str
  answer_id: str
  model_id: str
  turns: tuple[Turn, ...]
  accept_lengths: tuple[int, ...]
  tstamp: float
  index: int | None = None
  method: str | None = None
  reference: tuple[str, ...] = ()
  skip_ratio: float | None = None
  matchness: float | None = None

  @property
  def new_tokens(self) -> int:
    return sum(turn.new_tokens for turn in self.turns)

  @property
  def wall_s(self) -> float:
    return sum(turn.wall_s for turn in self.turns)


@dataclasses.dataclass(frozen=True)
class _Choice:
  turns: Annotated[tuple[str, ...], Field(min_length=1)]
  decoding_steps: tuple[Count, ...]
  new_tokens: tuple[Count, ...]
  wall_time: tuple[Number, ...]
  accept_lengths: tuple[Count, ...]


@dataclasses.dataclass(frozen=True)
class _Own:
  index: Count
  method: Method
  reference: tuple[str, ...]
  skip_ratio: Number | None
  matchness: Number | None
  turns: tuple[Detail, ...]


@dataclasses.dataclass(frozen=True)
class _Line:
  question_id: int | str
  category: str
  answer_id: str
  model_id: str
  choices: Annotated[tuple[_Choice, ...], Field(min_length=1)]
  tstamp: Number
  swift_jax: _Own | None = None


_LINE = TypeAdapter(_Line)
_PLAIN = ('question_id', 'category', 'answer_id', 'model_id', 'tstamp')


def to_line(answer: Answer) -> str:
  """An answer as a line, with its newline."""
  turns = answer.turns
  fields = {
    'question_id': answer.question_id,
    'category': answer.category,
    'answer_id': answer.answer_id,
    'model_id': answer.model_id,
    'choices': [
      {
        'index': 0,
        'turns': [turn.text for turn in turns],
        'decoding_steps': [turn.steps for turn in turns],
        'new_tokens': [turn.new_tokens for turn in turns],
        'wall_time': [turn.wall_s for turn in turns],
        'accept_lengths': list(answer.accept_lengths),
      }
    ],
    'tstamp': answer.tstamp,
  }
  if answer.index is not None:
    names = (field.name for field in dataclasses.fields(_Own))
    ours = {name: getattr(answer, name) for name in names}
    details = [dataclasses.asdict(turn.detail) for turn in turns]
    for detail in details:
      if detail['logprobs'] is None:
        del detail['logprobs']
    fields[KEY] = {**ours, 'turns': details}
  return json.dumps(fields, ensure_ascii=False, allow_nan=False) + '\n'


def parse(line: bytes, where: str) -> Answer:
  """The answer in a line, with or without its newline.

  Raises:
    InputError: the line is not JSON, or a key is missing or wrong; the error names
      the key.
  """
  line = parse_json(_LINE, line, where)
  choice, ours = line.choices[0], line.swift_jax
  _check_turns(choice, where)
  if ours is not None:
    _check_lengths(choice, where)
    _check_details(ours, choice, where)
  details = [None] * len(choice.turns) if ours is None else ours.turns
  columns = (
    *(choice.turns, choice.new_tokens, choice.decoding_steps),
    *(choice.wall_time, details),
  )
  facts = {} if ours is None else vars(ours)
  return Answer(
    **{name: getattr(line, name) for name in _PLAIN},
    **{name: value for name, value in facts.items() if name != 'turns'},
    turns=tuple(map(Turn, *columns)),
    accept_lengths=choice.accept_lengths,
  )


def _check_turns(choice: _Choice, where: str) -> None:
  for name in ('decoding_steps', 'new_tokens', 'wall_time'):
    values, count = getattr(choice, name), len(choice.turns)
    if len(values) != count:
      raise bad(where, name, values, f'one for each of {count} turns')


def _check_lengths(choice: _Choice, where: str) -> None:
  """Checks a line of ours: each pass has a length, and a turn's lengths add up."""
  lengths, at = choice.accept_lengths, 0
  total = sum(choice.decoding_steps)
  if len(lengths) != total:
    wanted = f'one for each of {total} decoding_steps'
    raise bad(where, 'accept_lengths', lengths, wanted)
  for steps, new_tokens in zip(
    choice.decoding_steps, choice.new_tokens, strict=True
  ):
    returned = sum(lengths[at : at + steps])
    at += steps
    if returned != new_tokens:
      wanted = f'the sum of its accept_lengths, {returned}'
      raise bad(where, 'new_tokens', new_tokens, wanted)


def _check_details(ours: _Own, choice: _Choice, where: str) -> None:
  """Refuses facts of our own that contradict the turns."""
  count = len(choice.turns)
  if len(ours.turns) != count:
    wanted = f'one for each of {count} turns'
    raise bad(where, f'{KEY}.turns', ours.turns, wanted)
  for i, detail in enumerate(ours.turns):
    if len(detail.tokens) != choice.new_tokens[i]:
      wanted = f'new_tokens={choice.new_tokens[i]} token ids'
      raise bad(where, 'tokens', detail.tokens, wanted)
    passes = 0 if ours.method == 'plain' else choice.decoding_steps[i]
    for name in ('drafted', 'accepted'):
      if len(getattr(detail, name)) != passes:
        wanted = f'one for each of {passes} passes'
        raise bad(where, name, getattr(detail, name), wanted)
    for accepted, drafted in zip(detail.accepted, detail.drafted, strict=True):
      if accepted > drafted:
        wanted = f'at most the {drafted} that were drafted'
        raise bad(where, 'accepted', accepted, wanted)
    if detail.logprobs is not None:
      _check_logprobs(detail.logprobs, len(detail.tokens), where)


def _check_logprobs(found: LogProbs, count: int, where: str) -> None:
  for name, values in vars(found).items():
    if len(values) != count:
      wanted = f'one for each of {count} tokens'
      raise bad(where, f'logprobs.{name}', values, wanted)
  if len(set(map(len, found.top))) > 1:
    raise bad(where, 'logprobs.top', found.top, 'as many for each token')
  pairs = [pair for place in found.top for pair in place]
  if any(token < 0 for token, _ in pairs):
    raise bad(where, 'logprobs.top', found.top, 'token ids >= 0')
  if not all(-_MOST <= x <= 0 for x in (*found.chosen, *(x for _, x in pairs))):
    raise bad(where, 'logprobs', found, 'numbers <= 0')
