"""Asks the questions of a task, batch by batch, and writes an answer line each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
import dataclasses
import datetime
import hashlib
import time
from typing import Any
import uuid

import numpy as np

from swift_jax.config.settings import DecodeConfig
from swift_jax.errors import InputError
from swift_jax.evaluation.answers import Answer, Detail, Turn
from swift_jax.evaluation.tasks import Question
from swift_jax.evaluation.workdir import Workdir
from swift_jax.runtime import chat_template
from swift_jax.runtime.engine import Engine
from swift_jax.runtime.results import Result

_TURN = (
  2**24
)  # added to the index for each turn, so that turns draw differently


@dataclasses.dataclass(frozen=True)
class Asked:
  """A prompt as the model gets it.

  Attributes:
    ids: token ids.
    truncated: number of tokens cut off at the beginning to leave room for the text.
  """

  ids: list[int]
  truncated: int


class Runner:
  """Asks one process's share of a task's questions.

  Attributes:
    batches: the questions of each batch; answered questions keep their places.
    decode: the settings that apply; in a chat with the end-of-text tokens of chats.
  """

  def __init__(
    self,
    engine: Engine,
    decode: DecodeConfig,
    questions: Sequence[Question],
    workdir: Workdir,
    model_id: str,
    chat: bool | None = None,
    is_mine: Callable[[Question], bool] = lambda question: True,
    now: datetime.datetime | None = None,
  ):
    """Encodes all first turns, so that a bad prompt is refused at once.

    Args:
      questions: the questions that this process asks, alone or in step with others.
      workdir: the run's folder; it must be open when `run` is called.
      chat: ask in the tokenizer's chat template; None: if it has one.
      is_mine: whether this process writes the answer to a question.
      now: the present moment for a chat template, so that a run has the same
        prompts on every day; None: the clock's time.

    Raises:
      InputError: there is no room for a text or no chat template, or the model
        cannot take a prompt; the error then names the question.
    """
    self._engine = engine
    self._workdir, self._model_id = workdir, model_id
    self._is_mine = is_mine
    self._template = None
    if chat is not False:
      self._template = chat_template.source(engine.tokenizer)
    self._is_chat = self._template is not None if chat is None else chat
    self._arguments: dict[str, Any] = {}
    if self._is_chat:
      decode = engine.for_chats(decode)
      if self._template is not None and now is not None:
        dated = chat_template.dated(self._template, now)
        self._arguments['chat_template'] = dated
    self.decode = decode
    new = engine.resolve(decode.sampling).config.max_new_tokens
    self._room = engine.cfg.max_position_embeddings - new
    if self._room < 1:
      raise InputError(
        f'sampling.max_new_tokens={new}: leaves no room for a prompt in'
        f' max_position_embeddings={engine.cfg.max_position_embeddings}'
      )
    self._longest = 1
    self._digests: dict[
      int, bytes
    ] = {}  # of first turns, by the question's index
    lengths = {}
    for question in questions:
      first = self._ask(question, ())
      lengths[question.index] = len(first.ids)
      self._digests[question.index] = _digest(first)
      self._longest = max(self._longest, self._length(question, first))
    self.batches = batches(questions, lengths, decode.batch_size)

  def facts(self, questions: Sequence[Question]) -> dict[str, str | None]:
    """Hashes of the prompts for `run.json`, of 16 hexadecimal digits.

    Args:
      questions: the questions of all processes, which have the same facts.

    Returns:
      prompts: hash of the token ids of the first turns.
      chat_template: hash of the template; None without a template.

    Raises:
      InputError: as `__init__`.
    """
    whole = hashlib.sha256()
    for question in questions:
      known = self._digests.get(question.index)
      whole.update(known or _digest(self._ask(question, ())))
    template = self._template
    return {
      'prompts': whole.hexdigest()[:16],
      'chat_template': template and chat_template.fingerprint(template),
    }

  def _length(self, question: Question, first: Asked) -> int:
    """An upper bound on the tokens of the question's longest prompt."""
    if len(question.turns) == 1:
      return len(first.ids)
    # A later prompt holds all turns before it, and their answers.
    later = self._ask(question, ('',) * (len(question.turns) - 1))
    written = (len(question.turns) - 1) * (
      self._engine.cfg.max_position_embeddings - self._room
    )
    return min(self._room, later.truncated + len(later.ids) + written)

  def _ask(self, question: Question, texts: Sequence[str]) -> Asked:
    """The prompt of the next turn, which follows the answers `texts`."""
    turns = question.turns[: len(texts) + 1]
    try:
      if self._is_chat:
        messages = []
        for turn, text in zip(turns, (*texts, None), strict=True):
          messages.append({'role': 'user', 'content': turn})
          if text is not None:
            messages.append({'role': 'assistant', 'content': text})
        ids = self._engine.encode_chat(messages, self._arguments)
      else:
        parts = [turn + text for turn, text in zip(turns, texts, strict=False)]
        ids = self._engine.encode_text('\n\n'.join([*parts, turns[-1]]))
      return self._fitted(ids)
    except InputError as error:
      raise InputError(
        f'question_id={question.question_id!r}: {error}'
      ) from None

  def _fitted(self, prompt: list[int]) -> Asked:
    """Cuts tokens off a prompt's beginning if it leaves no room for the text.

    A token that begins every text (BOS) stays.
    """
    over = max(0, len(prompt) - self._room)
    begins = getattr(self._engine.tokenizer, 'bos_token_id', None)
    has_begin = over and self._room > 1 and prompt[0] == begins
    kept = prompt[:1] + prompt[over + 1 :] if has_begin else prompt[over:]
    return Asked(self._engine.encode([kept])[0], over)

  def warm_up(self) -> None:
    """Compiles the programs that the questions need, outside of all timed spans."""
    self._engine.warmup(self.decode, self._longest)

  def run(
    self, done: Collection[int], on_batch: Callable[[list[Answer]], None]
  ) -> None:
    """Answers the questions that have no answer yet.

    Args:
      done: indices of questions to leave out; processes in step pass the same.
      on_batch: called with a batch's answers once they are written.
    """
    for batch in self.batches:
      left = [question for question in batch if question.index not in done]
      if left:
        on_batch(self._answer(left))

  def _answer(self, questions: Sequence[Question]) -> list[Answer]:
    """Asks all turns of a batch's questions, and writes the answers."""
    turns: list[list[Turn]] = [[] for _ in questions]
    lengths: list[list[int]] = [[] for _ in questions]
    for number in range(max(len(q.turns) for q in questions)):
      rows = [i for i, q in enumerate(questions) if number < len(q.turns)]
      asked = [
        self._ask(questions[i], [turn.text for turn in turns[i]]) for i in rows
      ]
      indices = [questions[i].index + number * _TURN for i in rows]
      results, waited, wall_s = self._generate(asked, indices)
      for i, prompt, result in zip(rows, asked, results, strict=True):
        turns[i].append(_turn(result, prompt, waited, wall_s, len(rows)))
        lengths[i] += [passed.returned for passed in result.rounds]
    answers = [
      self._line(*answered)
      for answered in zip(questions, turns, lengths, strict=True)
    ]
    mine = filter(self._is_mine, questions)
    indices = {question.index for question in mine}
    self._workdir.write([line for line in answers if line.index in indices])
    if self._is_swift:
      self._workdir.save_search(self._engine.search_state())
    return answers

  @property
  def _is_swift(self) -> bool:
    return self.decode.method == 'swift'

  def _generate(
    self, asked: Sequence[Asked], indices: Sequence[int]
  ) -> tuple[list[Result], float, float]:
    """Generates a batch.

    Returns:
      The results, the seconds of waiting for the search at the end, and all seconds.
    """
    started = time.perf_counter()
    results = self._engine.generate(
      [prompt.ids for prompt in asked], self.decode, indices=indices
    )
    written = time.perf_counter()
    if self._is_swift:
      # Otherwise no answer would count the time that the search still computes.
      self._engine.searcher.name_incumbent()
    ended = time.perf_counter()
    waited = ended - written if self._is_swift else 0.0
    return results, waited, ended - started

  def _line(
    self, question: Question, turns: Sequence[Turn], lengths: Sequence[int]
  ) -> Answer:
    engine = self._engine
    return Answer(
      question_id=question.question_id,
      category=question.category,
      answer_id=uuid.uuid4().hex,
      model_id=self._model_id,
      turns=tuple(turns),
      accept_lengths=tuple(lengths),
      tstamp=time.time(),
      index=question.index,
      method=self.decode.method,
      reference=question.reference,
      skip_ratio=engine.skip_mask.skip_ratio() if self._is_swift else None,
      matchness=engine.matchness if self._is_swift else None,
    )


def _digest(asked: Asked) -> bytes:
  return hashlib.sha256(np.asarray(asked.ids, '<i8').tobytes()).digest()


def _turn(
  result: Result, asked: Asked, waited: float, wall_s: float, rows: int
) -> Turn:
  """A turn from a result, with the row's share of its batch's seconds."""
  metrics = result.metrics
  is_plain = metrics.method == 'plain'
  return Turn(
    text=result.text,
    new_tokens=metrics.new_tokens,
    steps=len(result.rounds),
    wall_s=wall_s / rows,
    detail=Detail(
      tokens=tuple(result.tokens),
      prompt_tokens=len(asked.ids),
      truncated=asked.truncated,
      finish_reason=result.finish_reason,
      drafted=() if is_plain else tuple(r.drafted for r in result.rounds),
      accepted=() if is_plain else tuple(r.accepted for r in result.rounds),
      prefill_s=metrics.prefill_s / rows,
      decode_s=metrics.decode_s / rows,
      search_s=(metrics.search_s + waited) / rows,
      draft_s=metrics.draft_s / rows,
      verify_s=metrics.verify_s / rows,
      logprobs=result.logprobs,
    ),
  )


def batches(
  questions: Sequence[Question], lengths: dict[int, int], batch_size: int
) -> list[list[Question]]:
  """Splits questions into batches of similar length, the longest first.

  So little is computed for padding, and a batch that does not fit the memory fails
  at once. With a batch size of 1 the questions keep their order: the search sees
  the stream as it is.
  """
  if batch_size > 1:
    questions = sorted(questions, key=lambda q: (-lengths[q.index], q.index))
  return [
    list(questions[at : at + batch_size])
    for at in range(0, len(questions), batch_size)
  ]
