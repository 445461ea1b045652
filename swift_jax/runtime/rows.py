"""The rows of a batch: what each has written, and what that took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from swift_jax.config.settings import ModelConfig
from swift_jax.decoding import logprobs
from swift_jax.decoding.state import Counts, DecodeState
from swift_jax.errors import InputError
from swift_jax.parallel.target import Target
from swift_jax.runtime.detokenizer import Bytes, Detokenizer
from swift_jax.runtime.metrics import LogProbs, Round

_COUNTS = [field.name for field in dataclasses.fields(Counts)]


class Seen(NamedTuple):
  """What the host reads after a dispatch, in one transfer.

  Attributes:
    tokens: int32[B, S].
    length: committed tokens, int32[B].
    done: bool[B].
    finite: bool[].
    counts: of int32[B].
    work: int32[2 + W].
  """

  tokens: np.ndarray
  length: np.ndarray
  done: np.ndarray
  finite: np.ndarray
  counts: Counts
  work: np.ndarray

  @classmethod
  def of(cls, state: DecodeState, target: Target) -> Seen:
    cached, tokens, *rest = target.get(
      (
        state.cache.length,
        state.tokens,
        state.done,
        state.finite,
        state.counts,
        state.work,
      )
    )
    return cls(tokens, cached + 1, *rest)


class Dispatch(NamedTuple):
  """What a dispatch did: clock, budget, search and rows go by this alone.

  Attributes:
    rounds: as many as were asked for.
    seconds: what it took, with the transfer to the host.
    steps: plain steps that would have brought the batch as far.
    work: what was done; see `DecodeState`.
    seen: the batch after it.
  """

  rounds: int
  seconds: float
  steps: int
  work: np.ndarray
  seen: Seen


class Piece(NamedTuple):
  """What a row has got: tokens, and the text that has become certain."""

  row: int
  text: str
  tokens: list[int]


@dataclasses.dataclass
class Row:
  """One prompt of the batch.

  Attributes:
    prompt: token ids.
    text: its tokens and text so far.
    counts: what it took, by the names of `Counts`; frozen once it is done.
    done: nothing more comes.
  """

  prompt: Sequence[int]
  text: Detokenizer
  counts: dict[str, int] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(_COUNTS, 0)
  )
  done: bool = False

  def read(self, tokens: list[int], done: bool, counts: dict[str, int]) -> str:
    """Takes what a dispatch brought and returns the text that has become certain.

    Args:
      tokens: all new ones, those behind a stop string too.
      done: the row has ended on the device.
      counts: as the device has them.
    """
    before = len(self.text.tokens)
    piece = self.text.push(tokens)
    if self.text.stopped:
      returned = len(self.text.tokens) - before
      counts = _counts_up_to(self.counts, counts, returned)
    self.counts = counts
    self.done = done or self.text.stopped
    return piece + self.text.finish() if self.done else piece

  def rounds(self, log: np.ndarray) -> list[Round]:
    """Its rounds, the last one cut where a stop string cut the text.

    Args:
      log: the row's line a round, int32[S, 3]; see `DecodeState`.
    """
    rounds, returned = [], len(self.text.tokens)
    for line in log[: self.counts['verify_passes']].tolist():
      drafted, accepted, kept = line
      kept = min(kept, returned)
      rounds.append(Round(drafted, min(accepted, kept), kept))
      returned -= kept
    return rounds


class Rows:
  """The prompts of a batch, in order; spare rows of the device are not here."""

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
    """Those that would have brought the batch as far.

    Rows that are ahead bring its end no nearer.
    """
    prompts = np.array([len(row.prompt) for row in self])
    new = seen.length[: len(prompts)] - prompts
    done = seen.done[: len(prompts)]
    return int(new.max() if done.all() else new[~done].min())

  def read(self, seen: Seen) -> tuple[list[Piece], list[int]]:
    """Takes each row's new tokens and looks for stop strings.

    Returns:
      The pieces, and the rows that a stop string has ended.
    """
    stopped, pieces = [], []
    for b, row in enumerate(self):
      if row.done:
        continue
      before = len(row.text.tokens)
      have = len(row.prompt) + before
      fresh = seen.tokens[b, have : seen.length[b]].tolist()
      counts = {name: int(getattr(seen.counts, name)[b]) for name in _COUNTS}
      piece = row.read(fresh, bool(seen.done[b]), counts)
      pieces.append(Piece(b, piece, row.text.tokens[before:]))
      if row.text.stopped:
        stopped.append(b)
    return pieces, stopped

  def verdict(self) -> tuple[int, int]:
    """Tokens drafted by layers, and accepted ones, so far."""

    def total(name: str) -> int:
      return sum(row.counts[name] for row in self)

    drafted = total('drafted') - total('copied')
    return drafted, total('accepted') - total('copies_accepted')


def not_finite(cfg: ModelConfig) -> InputError:
  return InputError(
    'the model gives logits that are not finite (NaN or infinity): the weights'
    f' are damaged, or dtype={cfg.dtype!r} overflows'
  )


def log_probs_of(
  parts: Sequence[logprobs.Places], row: int, count: int, cfg: ModelConfig
) -> LogProbs:
  """Those of a row's first `count` tokens, from all passes over the text.

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


def _counts_up_to(
  before: dict[str, int], after: dict[str, int], returned: int
) -> dict[str, int]:
  """Counts of a row whose last round was cut to `returned` tokens on the host.

  As on the device: what was drafted and verified stays, what was accepted counts
  only if it was returned.
  """
  grown = {name: after[name] - before[name] for name in after}
  if not grown['drafted']:  # plain steps, a token each
    names = 'verify_passes', 'bonus_tokens'
    cut = {name: before[name] + min(grown[name], returned) for name in names}
    return {**after, **cut}
  accepted, leaf_hits = grown['accepted'], grown['leaf_hits']
  own = grown['bonus_tokens'] + grown['corrected_tokens']
  counts = dict(after)
  counts['accepted'] = before['accepted'] + min(accepted, returned)
  if returned <= accepted:
    counts['leaf_hits'] = before['leaf_hits']
  if returned < accepted + leaf_hits + own:
    for name in ('bonus_tokens', 'corrected_tokens'):
      counts[name] = before[name]
  return counts
