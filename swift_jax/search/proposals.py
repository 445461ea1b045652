"""Sources of candidate masks; all masks skip equally many sublayers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from swift_jax.model import skip_mask as skip_masks
from swift_jax.model.skip_mask import Bits
from swift_jax.typing import Float

# Draws in a row without a new mask after which a source is taken to have none
# left: small models have few masks.
_MAX_REPEATS = 64
# Deviations of the noise on the first, the second and all later masks, in
# deviations of the importances.
_BLURS = (0.0, 0.5, 1.0)


class Proposal(NamedTuple):
  """The bits of a mask to score, and its source (see `record_forms.SOURCES`)."""

  bits: Bits
  source: str


Stream = Iterator[Proposal]


def given(masks: Iterable[Bits], source: str) -> Stream:
  """Masks that were chosen elsewhere."""
  return (Proposal(bits, source) for bits in masks)


def random(rng: np.random.Generator, free: int, skipped: int) -> Stream:
  """Masks drawn uniformly, without end."""
  while True:
    yield Proposal(skip_masks.random(rng, free, skipped), 'random')


def neighbours(rng: np.random.Generator, bits: Bits) -> Stream:
  """Masks that are one exchange of two sublayers from `bits`, without end."""
  while True:
    yield Proposal(skip_masks.neighbour(rng, bits), 'neighbour')


def by_importance(
  rng: np.random.Generator,
  importance: Float[np.ndarray, ' d'],
  num_skipped: int,
) -> Stream:
  """Masks that skip the least important sublayers, with more and more noise."""
  scaled = (importance - importance.mean()) / (importance.std() + 1e-12)
  number = 0
  while True:
    blur = _BLURS[min(number, len(_BLURS) - 1)]
    noisy = scaled + blur * rng.normal(size=scaled.size)
    bits = np.zeros(scaled.size, bool)
    bits[np.argsort(noisy, kind='stable')[:num_skipped]] = True
    yield Proposal(bits, 'sensitivity')
    number += 1


def distinct(
  first: Proposal, plan: Iterable[tuple[int, Stream]], count: int
) -> list[Proposal]:
  """`count` proposals, `first` in front, no mask twice.

  Args:
    plan: how many proposals to take of each stream, in turn, until there are
      enough.
    count: proposals to return; where fewer masks exist, `first` fills the rest.
  """
  chosen = {first.bits.tobytes(): first}
  for quota, stream in plan:
    wanted = min(len(chosen) + quota, count)
    repeats = 0
    while len(chosen) < wanted and repeats < _MAX_REPEATS:
      proposal = next(stream, None)
      if proposal is None:
        break
      name = proposal.bits.tobytes()
      repeats = repeats + 1 if name in chosen else 0
      chosen.setdefault(name, proposal)
  proposals = list(chosen.values())
  return proposals + [first] * (count - len(proposals))
