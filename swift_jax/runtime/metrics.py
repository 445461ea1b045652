"""Figures of a generated text: its cost, and its log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple


class Round(NamedTuple):
  """One pass of the target over a row.

  Attributes:
    drafted: tokens of the chain that the pass verified; 0 for a plain step.
    accepted: drafted tokens that were returned.
    returned: tokens returned, with the target's own.
    leaf_hits: 1 if a leaf beside the chain is among them.
    source: who drafted the chain: `layers`, `copy`, or `plain` for nobody.
  """

  drafted: int
  accepted: int
  returned: int
  leaf_hits: int = 0
  source: str = 'plain'

  def cut(self, returned: int) -> Round:
    """The round of a text that ends after so many of its tokens.

    What was drafted and verified stays; the rest counts if it was returned.
    """
    accepted = min(self.accepted, returned)
    leaf_hits = min(self.leaf_hits, returned - accepted)
    return self._replace(
      accepted=accepted,
      returned=min(self.returned, returned),
      leaf_hits=leaf_hits,
    )

  @property
  def own(self) -> int:
    """The target's own tokens among those returned: 0 or 1."""
    return self.returned - self.accepted - self.leaf_hits

  @property
  def is_right(self) -> bool:
    """Whether the target accepted a path to its end, leaf or chain."""
    return self.leaf_hits > 0 or self.accepted == self.drafted


PLAIN_STEP = Round(0, 0, 1)


def totals(rounds: Sequence[Round]) -> dict[str, int]:
  """What the rounds of a text add up to, by the names of `Metrics`."""
  copies = [r for r in rounds if r.source == 'copy']
  return {
    'verify_passes': len(rounds),
    'drafted': sum(r.drafted for r in rounds),
    'accepted': sum(r.accepted for r in rounds),
    'copied': sum(r.drafted for r in copies),
    'copies_accepted': sum(r.accepted for r in copies),
    'leaf_hits': sum(r.leaf_hits for r in rounds),
    'bonus_tokens': sum(r.own for r in rounds if r.is_right),
    'corrected_tokens': sum(r.own for r in rounds if not r.is_right),
  }


@dataclasses.dataclass(frozen=True)
class Metrics:
  """Figures of one prompt. Times are those of its batch.

  Attributes:
    method: `plain`, `swift` or `prompt_lookup`.
    new_tokens: tokens returned, with an end-of-text token.
    prefill_s: seconds until the prompt was in the cache.
    decode_s: seconds of plain steps, or of drafting and verifying; with the seconds
      of the pass over the text that `SamplingConfig.logprobs` asks for.
    draft_s: seconds of drafting in the rounds that ran in two halves, which are a
      sample of decode_s; see `DecodeConfig.phase_interval`.
    verify_s: seconds of verifying in the same rounds.
    search_s: seconds of scoring candidates and choosing among them.
    verify_passes: passes of the whole model after prefill.
    drafted: drafted tokens that were verified on the chain.
    accepted: drafted tokens that were returned because the target agreed.
    copied: drafted tokens that were copied from the text.
    copies_accepted: accepted tokens that were copied from the text.
    leaf_hits: tokens returned because a leaf beside the chain was right.
    bonus_tokens: the target's own tokens that were returned after a path that was
      accepted as a whole: the last token of every round that drafted right, and
      every token of a plain step that SWIFT chose.
    corrected_tokens: the target's own tokens in place of a refused token.
    acceptance_rate: accepted / drafted; None if nothing was drafted.
    mean_accepted_length: new_tokens / verify_passes (the paper's M).
    skip_ratio: the ratio of the mask that drafted last; None for plain decoding.
    matchness: the mask's share of hits over the last windows on which it was
      scored; None before the first.
    tokens_per_second: new_tokens / (prefill_s + decode_s + search_s).
  """

  method: str
  new_tokens: int
  prefill_s: float
  decode_s: float
  draft_s: float
  verify_s: float
  search_s: float
  verify_passes: int
  drafted: int
  accepted: int
  copied: int
  copies_accepted: int
  leaf_hits: int
  bonus_tokens: int
  corrected_tokens: int
  acceptance_rate: float | None
  mean_accepted_length: float | None
  skip_ratio: float | None
  matchness: float | None
  tokens_per_second: float | None


@dataclasses.dataclass(frozen=True)
class LogProbs:
  """The target's log-probabilities of a text, in nats.

  They come from the model's logits as they are, before repetition penalty, minimum
  length, temperature, top-k, top-p and min-p. So a drawn token need not be among the
  most likely tokens; with a penalty, a greedy token need not either.

  Attributes:
    chosen: one number for each returned token, with an end-of-text token.
    top: for each returned token the k most likely tokens at its place, as
      (id, logarithm), the likeliest first; empty lists if k is 0.
  """

  chosen: list[float]
  top: list[list[tuple[int, float]]]


def ratio(numerator: float, denominator: float) -> float | None:
  """The quotient; None if the denominator is 0."""
  return numerator / denominator if denominator else None


def distinct_ngrams(tokens: Sequence[int], n: int = 4) -> float | None:
  """Share of distinct n-grams. 1: no n-gram comes twice; near 0: a loop.

  It is None for a text of fewer than n tokens.
  """
  grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
  return ratio(len(set(grams)), len(grams))
