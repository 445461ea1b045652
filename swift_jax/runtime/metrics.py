"""What is told of a generated text: what it cost, and how likely it was."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple


class Round(NamedTuple):
  """One pass of the target over a row.

  Attributes:
    drafted: tokens of the chain that it verified; 0 for a plain step.
    accepted: those that were returned.
    returned: tokens returned, the target's own among them.
    leaf_hits: 1 if a leaf beside the chain is among them.
    is_copy: whether the chain was copied from the text.
  """

  drafted: int
  accepted: int
  returned: int
  leaf_hits: int = 0
  is_copy: bool = False

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
  copies = [r for r in rounds if r.is_copy]
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
  """Figures of one prompt. Times are those of the batch it rode in.

  Attributes:
    method: `plain`, `swift` or `prompt_lookup`.
    new_tokens: tokens returned, an end-of-text token included.
    prefill_s: seconds until the prompt was in the cache.
    decode_s: seconds of plain steps or of drafting and verifying, and of the pass
      over the text that `SamplingConfig.logprobs` asks for.
    draft_s: seconds of drafting in the rounds that ran in two halves, a sample of
      decode_s: see `DecodeConfig.phase_interval`.
    verify_s: seconds of verifying in the same rounds.
    search_s: seconds of scoring candidates and choosing among them.
    verify_passes: passes of the whole model after prefill.
    drafted: drafted tokens that were verified on the chain.
    accepted: those that were returned because the target agreed.
    copied: of `drafted`, those that were copied from the text.
    copies_accepted: of `accepted`, the same.
    leaf_hits: tokens returned because a leaf beside the chain was right.
    bonus_tokens: the target's own tokens that were returned after a path of which
      it had accepted all: the last of every round that drafted right, and every
      token of a plain step that SWIFT chose.
    corrected_tokens: those returned in place of a refused one.
    acceptance_rate: accepted / drafted; None where nothing was drafted.
    mean_accepted_length: new_tokens / verify_passes (the paper's M).
    skip_ratio: of the mask that drafted last; None for plain decoding.
    matchness: that mask's share of hits over the last windows that it was
      scored on; None before the first.
    tokens_per_second: new_tokens over all three times.
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
  """How likely the target finds a text: natural logarithms of probabilities.

  They are the model's own, of its logits as they are: before repetition penalty,
  minimum length, temperature, top-k, top-p and min-p. So a drawn token may be none
  of the most likely ones, and where a penalty has its say a greedy one too.

  Attributes:
    chosen: one for each returned token, an end-of-text token included.
    top: for each returned token the k tokens that were most likely in its place, as
      (id, logarithm), the likeliest first; empty lists where k is 0.
  """

  chosen: list[float]
  top: list[list[tuple[int, float]]]


def ratio(numerator: float, denominator: float) -> float | None:
  """The quotient, or None where it has no meaning."""
  return numerator / denominator if denominator else None


def distinct_ngrams(tokens: Sequence[int], n: int = 4) -> float | None:
  """Share of distinct n-grams: 1 = no n-gram comes twice, near 0 = a loop.

  None for a text shorter than n tokens.
  """
  grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
  return ratio(len(set(grams)), len(grams))
