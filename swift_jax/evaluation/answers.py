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

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from swift_jax.config.checks import require_text
from swift_jax.errors import InputError
from swift_jax.files.fields import Fields, Valid, bad, check
from swift_jax.runtime.metrics import LogProbs

KEY = 'swift_jax'
METHODS = ('plain', 'swift', 'prompt_lookup')
FINISHES = ('eos', 'stop', 'length')
_MOST = 2**40  # no count and no time in seconds since 1970 is larger


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

  tokens: tuple[int, ...]
  prompt_tokens: int
  truncated: int
  finish_reason: str
  drafted: tuple[int, ...]
  accepted: tuple[int, ...]
  prefill_s: float
  decode_s: float
  search_s: float
  draft_s: float
  verify_s: float
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
    ours = {name: getattr(answer, name) for name in _OWN_FIELDS}
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
  try:
    fields = json.loads(line.decode())
  except (ValueError, RecursionError) as error:
    raise InputError(f'{where}: not JSON: {error}') from None
  if not isinstance(fields, dict):
    raise InputError(f'{where}: expected an object, found {fields!r:.60}')
  for name, value in fields.items():
    require_text(f'{where}: {name}', value)
  check(fields, _FIELDS, where)
  if not isinstance(fields['choices'][0], dict):
    found = fields['choices'][0]
    raise InputError(f'{where}: choices[0]={found!r:.60}: expected an object')
  choice = fields['choices'][0]
  check(choice, _CHOICE_FIELDS, where)
  ours = fields.get(KEY)
  if ours is not None:
    if not isinstance(ours, dict):
      raise InputError(f'{where}: {KEY}={ours!r:.60}: expected an object')
    check(ours, _OWN_FIELDS, where)
  facts = {name: fields[name] for name in _PLAIN_FIELDS}
  for name in _OWN_FIELDS if ours is not None else ():
    facts[name] = ours[name]
  facts['reference'] = tuple(facts.get('reference', ()))
  facts['accept_lengths'] = tuple(choice['accept_lengths'])
  return Answer(turns=_turns(choice, ours, where), **facts)


def _turns(
  choice: Mapping[str, Any], ours: Mapping[str, Any] | None, where: str
) -> tuple[Turn, ...]:
  """The turns of a choice; values that contradict each other are refused."""
  count = len(choice['turns'])
  names = ('decoding_steps', 'new_tokens', 'wall_time')
  for name in names:
    if len(choice[name]) != count:
      raise bad(where, name, choice[name], f'one for each of {count} turns')
  details = [None] * count
  if ours is not None:
    _check_lengths(choice, where)
    details = _details(ours, choice, where)
  columns = [choice[name] for name in names]
  return tuple(
    Turn(text, new_tokens, steps, wall_s, detail)
    for text, steps, new_tokens, wall_s, detail in zip(
      choice['turns'], *columns, details, strict=True
    )
  )


def _check_lengths(choice: Mapping[str, Any], where: str) -> None:
  """Checks a line of ours: each pass has a length, and a turn's lengths add up."""
  lengths, at = choice['accept_lengths'], 0
  total = sum(choice['decoding_steps'])
  if len(lengths) != total:
    wanted = f'one for each of {total} decoding_steps'
    raise bad(where, 'accept_lengths', lengths, wanted)
  for steps, new_tokens in zip(
    choice['decoding_steps'], choice['new_tokens'], strict=True
  ):
    returned = sum(lengths[at : at + steps])
    at += steps
    if returned != new_tokens:
      wanted = f'the sum of its accept_lengths, {returned}'
      raise bad(where, 'new_tokens', new_tokens, wanted)


def _details(
  ours: Mapping[str, Any], choice: Mapping[str, Any], where: str
) -> list[Detail]:
  """Our own facts of each turn."""
  turns = ours.get('turns')
  count = len(choice['turns'])
  if not isinstance(turns, list) or len(turns) != count:
    raise bad(where, f'{KEY}.turns', turns, f'one for each of {count} turns')
  details = []
  for i, fields in enumerate(turns):
    if not isinstance(fields, dict):
      raise bad(where, f'{KEY}.turns', fields, 'an object')
    check(fields, _DETAIL_FIELDS, where)
    detail = Detail(
      **{
        name: tuple(fields[name])
        if isinstance(fields[name], list)
        else fields[name]
        for name in _DETAIL_FIELDS
      },
      logprobs=_logprobs(fields, where),
    )
    if len(detail.tokens) != choice['new_tokens'][i]:
      wanted = f'new_tokens={choice["new_tokens"][i]} token ids'
      raise bad(where, 'tokens', fields['tokens'], wanted)
    passes = 0 if ours['method'] == 'plain' else choice['decoding_steps'][i]
    for name in ('drafted', 'accepted'):
      if len(fields[name]) != passes:
        wanted = f'one for each of {passes} passes'
        raise bad(where, name, fields[name], wanted)
    for accepted, drafted in zip(detail.accepted, detail.drafted, strict=True):
      if accepted > drafted:
        wanted = f'at most the {drafted} that were drafted'
        raise bad(where, 'accepted', accepted, wanted)
    details.append(detail)
  return details


def _logprobs(fields: Mapping[str, Any], where: str) -> LogProbs | None:
  """A turn's log-probabilities; None for a run that did not ask for them."""
  if 'logprobs' not in fields:
    return None
  found = fields['logprobs']
  if not isinstance(found, dict):
    raise bad(where, 'logprobs', found, 'an object')
  check(found, _LOGPROBS_FIELDS, f'{where}: logprobs')
  count = len(fields['tokens'])
  for name in _LOGPROBS_FIELDS:
    if len(found[name]) != count:
      wanted = f'one for each of {count} tokens'
      raise bad(where, f'logprobs.{name}', found[name], wanted)
  if len(set(map(len, found['top']))) > 1:
    raise bad(where, 'logprobs.top', found['top'], 'as many for each token')
  top = [[(token, value) for token, value in place] for place in found['top']]
  return LogProbs(found['chosen'], top)


def _is_count(value: Any) -> bool:
  return type(value) is int and 0 <= value <= _MOST


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and 0 <= value <= _MOST


def _is_log(value: Any) -> bool:
  return type(value) in (int, float) and -_MOST <= value <= 0


def _is_pair(value: Any) -> bool:
  if not isinstance(value, list) or len(value) != 2:
    return False
  return _is_count(value[0]) and _is_log(value[1])


def _list_of(is_valid: Valid) -> Valid:
  return lambda value: isinstance(value, list) and all(map(is_valid, value))


def _or_none(is_valid: Valid) -> Valid:
  return lambda value: value is None or is_valid(value)


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


_TEXT = (_is_text, 'a string')
_COUNT = (_is_count, 'an integer >= 0')
_COUNTS = (_list_of(_is_count), 'a list of integers >= 0')
_NUMBER = (_is_number, 'a number >= 0')
_MAYBE = (_or_none(_is_number), 'a number >= 0 or null')
_PLAIN_FIELDS: Fields = {
  'question_id': (
    lambda value: type(value) in (int, str),
    'an integer or a string',
  ),
  'category': _TEXT,
  'answer_id': _TEXT,
  'model_id': _TEXT,
  'tstamp': _NUMBER,
}
_FIELDS: Fields = {
  **_PLAIN_FIELDS,
  'choices': (
    lambda value: isinstance(value, list) and bool(value),
    'a filled list',
  ),
}
_CHOICE_FIELDS: Fields = {
  'turns': (
    lambda value: _list_of(_is_text)(value) and bool(value),
    'a filled list of strings',
  ),
  'decoding_steps': _COUNTS,
  'new_tokens': _COUNTS,
  'wall_time': (_list_of(_is_number), 'a list of numbers >= 0'),
  'accept_lengths': _COUNTS,
}
_OWN_FIELDS: Fields = {
  'index': _COUNT,
  'method': (METHODS.__contains__, f'one of {", ".join(METHODS)}'),
  'reference': (_list_of(_is_text), 'a list of strings'),
  'skip_ratio': _MAYBE,
  'matchness': _MAYBE,
}
_DETAIL_FIELDS: Fields = {
  'tokens': _COUNTS,
  'prompt_tokens': _COUNT,
  'truncated': _COUNT,
  'finish_reason': (FINISHES.__contains__, f'one of {", ".join(FINISHES)}'),
  'drafted': _COUNTS,
  'accepted': _COUNTS,
  'prefill_s': _NUMBER,
  'decode_s': _NUMBER,
  'search_s': _NUMBER,
  'draft_s': _NUMBER,
  'verify_s': _NUMBER,
}
_LOGPROBS_FIELDS: Fields = {
  'chosen': (_list_of(_is_log), 'a list of numbers <= 0'),
  'top': (
    _list_of(_list_of(_is_pair)),
    'a list of lists of [token id, number <= 0]',
  ),
}
