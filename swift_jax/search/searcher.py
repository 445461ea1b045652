"""The search on the host: which masks to score next, which one drafts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from swift_jax import skip_mask as skip_masks
from swift_jax.config import SearchConfig
from swift_jax.errors import InputError
from swift_jax.skip_mask import SkipMask


@dataclasses.dataclass
class Budget:
  """At most a share of the wall time for the search; all times in seconds.

  Attributes:
    share: 1 is no limit.
    elapsed: time of prompts, rounds and search so far.
    spent: the search's part of it.
    per_pass: what the last pass took; None before the first.
  """

  share: float
  elapsed: float = 0.0
  spent: float = 0.0
  per_pass: float | None = None

  def add(self, seconds: float, is_search: bool = False) -> None:
    self.elapsed += seconds
    if is_search:
      self.spent += seconds
      self.per_pass = seconds

  def allows(self, guess: float) -> bool:
    """Whether one more pass fits; `guess` is its time before the first."""
    estimate = guess if self.per_pass is None else self.per_pass
    return self.share >= 1 or self.spent + estimate <= self.share * self.elapsed


_MARGIN = 0.01  # of matchness, by which a set must be better to draft


class Searcher:
  """Proposals against an incumbent that is scored again in every pass.

  The incumbent and its challengers meet on the same text, so neither a lucky nor
  an easy window decides. It starts as the uniform mask and keeps the ratio.

  Attributes:
    incumbent: the mask that drafts.
    matchness: its share of hits when it was last scored; None before.
    iterations: passes scored.
    active: whether the search goes on.
    budget: what it may cost, over all texts.
  """

  def __init__(self, cfg: SearchConfig, num_layers: int):
    self.cfg = cfg
    self.num_layers = num_layers
    self.incumbent = skip_masks.uniform(num_layers, cfg.skip_ratio)
    self.matchness: float | None = None
    self.iterations = 0
    skipped = skip_masks.num_to_skip(num_layers, cfg.skip_ratio)
    free = skip_masks.num_free(num_layers)
    has_choice = 0 < skipped < free
    self.active = cfg.enabled and has_choice and cfg.max_iterations > 0
    self._rng = np.random.default_rng(cfg.seed)
    self._since_improved = 0
    self.budget = Budget(cfg.time_budget)
    self._surrogate = None
    if self.active and cfg.bayes_interval:
      self._surrogate = _make_surrogate(cfg, free, skipped)

  def start_from(self, mask: SkipMask) -> None:
    """Drafts with a given set; the search rests (SWIFT's cached layer sets)."""
    self._surrogate = None
    self.incumbent = skip_masks.check(mask, self.num_layers)
    self.matchness = None
    self.active = False

  def rest(self) -> None:
    """Ends the search; the best mask so far drafts on, its score stays."""
    self._weigh()
    self.active = False

  def candidates(self) -> SkipMask:
    """Masks to score next, [C, L]: the incumbent, then proposals.

    Every `bayes_interval`-th time they are the Gaussian process's. Otherwise
    random masks find a region and exchanges of two sublayers climb in it. Where
    there is a process, this is also when it names the incumbent.
    """
    masks = self._weigh()
    interval = self.cfg.bayes_interval
    if not interval or (self.iterations + 1) % interval:
      masks = []
    num_fresh = self.cfg.num_candidates - 1
    masks = masks[:num_fresh] or [
      skip_masks.random(self._rng, self.num_layers, self.cfg.skip_ratio)
      for _ in range(num_fresh // 2)
    ]
    while len(masks) < num_fresh:
      masks.append(skip_masks.neighbour(self._rng, self.incumbent))
    return skip_masks.stack([self.incumbent, *masks])

  def observe(
    self, candidates: SkipMask, hits: np.ndarray, positions: int
  ) -> None:
    """Takes a pass's hits int[C].

    With a Gaussian process, which weighs all windows, it is set off here and
    computes while the device decodes. Without one the incumbent yields to a
    better score on the same text; the best of many noisy scores flatters its
    mask, so a new incumbent is scored once more before it can end the search.
    """
    if not positions or not self.active:
      return
    self.iterations += 1
    self._since_improved += 1
    has_reached = False
    if self._surrogate is not None:
      self._surrogate.observe(candidates.bits(), hits / positions, positions)
      self._surrogate.start()
    else:
      best = int(np.argmax(hits))
      if hits[best] > hits[0]:
        self._replace(SkipMask(candidates.attn[best], candidates.mlp[best]))
      self.matchness = float(hits[best] / positions)
      has_reached = hits[0] / positions > self.cfg.target_matchness
    if (
      has_reached
      or self._since_improved >= self.cfg.patience
      or self.iterations >= self.cfg.max_iterations
    ):
      self.rest()

  def _replace(self, mask: SkipMask) -> None:
    self.incumbent = mask
    self._since_improved = 0

  def _weigh(self) -> list[SkipMask]:
    """The process's masks, new and distinct, once it has named the incumbent."""
    if self._surrogate is None or not self._surrogate.is_running:
      return []
    suggested = self._surrogate.collect()
    before = self.incumbent.bits()
    best = self._surrogate.best(before, _MARGIN)
    if (best.bits != before).any():
      self._replace(skip_masks.from_bits(best.bits))
    self.matchness = best.score
    if best.mean > self.cfg.target_matchness:
      self.active = False
    distinct = {bits.tobytes(): bits for bits in suggested}
    distinct.pop(best.bits.tobytes(), None)
    return [skip_masks.from_bits(bits) for bits in distinct.values()]


def _make_surrogate(cfg: SearchConfig, num_free: int, num_skipped: int) -> Any:
  """Imported when used: gpjax takes seconds and starts jax's backend."""
  try:
    from swift_jax.search.surrogate import Surrogate
  except ImportError as error:
    raise InputError(
      f'search.bayes_interval={cfg.bayes_interval}: needs gpjax ({error});'
      ' 0 searches without it'
    ) from None
  return Surrogate(
    num_free, num_skipped, num_suggested=cfg.num_candidates, seed=cfg.seed
  )
