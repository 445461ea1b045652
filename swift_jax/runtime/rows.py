"""The rows of a batch: the text of each, and the passes that wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from swift_jax.config.settings import ModelConfig
from swift_jax.decoding import logprobs, policy
from swift_jax.decoding.state import DecodeState
from swift_jax.errors import InputError
from swift_jax.parallel.target import Target
from swift_jax.runtime.detokenizer import Bytes, Detokenizer
from swift_jax.runtime.metrics import PLAIN_STEP, LogProbs, Round


class Seen(NamedTuple):
  """What the host reads after a dispatch, in one transfer.

  Attributes:
    tokens: int32[B, S].
    length: committed tokens, int32[B].
    done: bool[B].
    finite: bool[].
    log: int16[B, 5, S]; see `DecodeState`.
    work: int32[2 + W].
  """

  tokens: np.ndarray
  length: np.ndarray
  done: np.ndarray
  finite: np.ndarray
  log: np.ndarray
  work: np.ndarray

  @classmethod
  def of(cls, state: DecodeState, target: Target) -> Seen:
    cached, tokens, *rest = target.get(
      (
        state.cache.length,
        state.tokens,
        state.done,
        state.finite,
        state.log,
        state.work,
      )
    )
    return cls(tokens, cached + 1, *rest)


class Dispatch(NamedTuple):
  """What a dispatch did; governor and rows read nothing else.

  Attributes:
    rounds: rounds that the dispatch was asked for.
    seconds: its wall time, with the transfer to the host.
    steps: plain steps that would have brought the batch as far.
    work: its passes; see `DecodeState`.
    seen: the batch after it.
  """

  rounds: int
  seconds: float
  steps: int
  work: np.ndarray
  seen: Seen


class Piece(NamedTuple):
  """A row's new tokens, and the text that has become certain."""

  row: int
  text: str
  tokens: list[int]


@dataclasses.dataclass
class Row:
  """One prompt of the batch.

  Attributes:
    prompt: token ids.
    text: its tokens and text so far.
    rounds: the passes that wrote them.
    done: nothing more comes.
  """

  prompt: Sequence[int]
  text: Detokenizer
  rounds: list[Round] = dataclasses.field(default_factory=list)
  done: bool = False

  def read(self, tokens: list[int], log: np.ndarray, done: bool) -> str:
    """Takes a dispatch's tokens and returns the text that has become certain.

    Args:
      tokens: all new tokens, also those after a stop string.
      log: the row's lines at the places of these tokens, [5, n]; see
        `DecodeState`.
      done: the row has ended on the device.
    """
    before = len(self.text.tokens)
    piece = self.text.push(tokens)
    at, returned = 0, len(self.text.tokens) - before
    while at < returned:
      one = _round(log[:, at])
      self.rounds.append(one.cut(returned - at))
      at += one.returned
    self.done = done or self.text.stopped
    return piece + self.text.finish() if self.done else piece


def _round(line: np.ndarray) -> Round:
  """The round of a line of the log."""
  drafted, accepted, returned, leaf_hits, source = line.tolist()
  if not returned:
    return PLAIN_STEP
  name = policy.SOURCES[source]
  return Round(drafted, accepted, returned, leaf_hits, name)


class Rows:
  """The prompts of a batch, in order, without the device's spare rows."""

  def __init__(
    self,
    prompts: Sequence[Sequence[int]],
    token_bytes: Bytes,
    stop_strings: Sequence[str],
  ):
    """Nothing is written yet.

    Args:
      token_bytes: the bytes that a token adds to a text.
    """
    self._rows = [
      Row(prompt, Detokenizer(token_bytes, stop_strings, prompt))
      for prompt in prompts
    ]

  def __len__(self) -> int:
    return len(self._rows)

  def __iter__(self) -> Iterator[Row]:
    return iter(self._rows)

  @property
  def are_done(self) -> bool:
    """Every row has ended."""
    return all(row.done for row in self)

  @property
  def written(self) -> list[int]:
    """Tokens of each row's text."""
    return [len(row.text.tokens) for row in self]

  def limits(
    self, batch: int, max_new_tokens: int, context: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Each row's prompt length, and how many tokens it may write; int32[B]."""
    lengths, limits = np.ones(batch, np.int32), np.zeros(batch, np.int32)
    for b, row in enumerate(self):
      lengths[b] = len(row.prompt)
      limits[b] = min(max_new_tokens, context - len(row.prompt))
    return lengths, limits

  def plain_steps(self, seen: Seen) -> int:
    """Plain steps that would have brought the batch as far.

    Tokens of rows that are ahead bring the batch's end no nearer.
    """
    prompts = np.array([len(row.prompt) for row in self])
    new = seen.length[: len(prompts)] - prompts
    done = seen.done[: len(prompts)]
    return int(new.max() if done.all() else new[~done].min())

  def read(self, seen: Seen) -> tuple[list[Piece], list[Round], list[int]]:
    """Takes each row's new tokens and looks for stop strings.

    Returns:
      The pieces, the rounds that wrote them, and the rows that a stop string
      has ended.
    """
    pieces: list[Piece] = []
    rounds: list[Round] = []
    stopped: list[int] = []
    for b, row in enumerate(self):
      if row.done:
        continue
      before, passes = len(row.text.tokens), len(row.rounds)
      new = slice(len(row.prompt) + before, seen.length[b])
      tokens, log = seen.tokens[b, new].tolist(), seen.log[b, :, new]
      piece = row.read(tokens, log, bool(seen.done[b]))
      pieces.append(Piece(b, piece, row.text.tokens[before:]))
      rounds += row.rounds[passes:]
      if row.text.stopped:
        stopped.append(b)
    return pieces, rounds, stopped


def not_finite(cfg: ModelConfig) -> InputError:
  return InputError(
    'the model gives logits that are not finite (NaN or infinity): the weights'
    f' are damaged, or dtype={cfg.dtype!r} overflows'
  )


def log_probs_of(
  parts: Sequence[logprobs.Places], row: int, count: int, cfg: ModelConfig
) -> LogProbs:
  """The log-probabilities of a row's first `count` tokens.

  Args:
    parts: the passes over the text, in order.

  Raises:
    InputError: they are not finite.
  """
  own: list[float] = []
  top: list[list[tuple[int, float]]] = []
  for part in parts:
    live = slice(count - len(own))
    values, best = part.own[row, live], part.best[row, live]
    if not (np.isfinite(values).all() and np.isfinite(best).all()):
      raise not_finite(cfg)
    own += values.tolist()
    ids = part.ids[row, live].tolist()
    pairs = zip(ids, best.tolist(), strict=True)
    top += [list(zip(*pair, strict=True)) for pair in pairs]
  return LogProbs(own, top)
