"""The search on the host: which masks to score next, which one drafts."""

from __future__ import annotations

import numpy as np

from swift_jax import skip_mask as skip_masks
from swift_jax.config import SearchConfig
from swift_jax.skip_mask import SkipMask


class Searcher:
  """Random masks and neighbours against an incumbent scored in every pass.

  The incumbent and its challengers meet on the same text, so neither a lucky nor
  an easy window decides. It starts as the uniform mask and keeps the ratio.

  Attributes:
    incumbent: the mask that drafts.
    matchness: its share of hits in the last pass; None before the first.
    iterations: passes scored.
    active: whether the search goes on.
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

  def start_from(self, mask: SkipMask) -> None:
    """Drafts with a given set; the search rests (SWIFT's cached layer sets)."""
    self.incumbent = skip_masks.check(mask, self.num_layers)
    self.matchness = None
    self.active = False

  def rest(self) -> None:
    """Ends the search; the incumbent drafts on, its score stays."""
    self.active = False

  def candidates(self) -> SkipMask:
    """Masks to score next, [C, L]: the incumbent, random ones, neighbours.

    Random masks find a region, exchanges of two sublayers climb in it.
    """
    num_fresh = self.cfg.num_candidates - 1
    masks = [
      skip_masks.random(self._rng, self.num_layers, self.cfg.skip_ratio)
      for _ in range(num_fresh // 2)
    ]
    while len(masks) < num_fresh:
      masks.append(skip_masks.neighbour(self._rng, self.incumbent))
    return skip_masks.stack([self.incumbent, *masks])

  def observe(
    self, candidates: SkipMask, hits: np.ndarray, positions: int
  ) -> None:
    """Takes a pass's hits int[C]; the incumbent yields only to a better one.

    The best of many noisy scores flatters its mask, so a new incumbent is scored
    once more before it can end the search.
    """
    if not positions:
      return
    self.iterations += 1
    best = int(np.argmax(hits))
    if hits[best] > hits[0]:
      self.incumbent = SkipMask(candidates.attn[best], candidates.mlp[best])
      self._since_improved = 0
    else:
      self._since_improved += 1
    self.matchness = float(hits[best] / positions)
    self.active = (
      hits[0] / positions <= self.cfg.target_matchness
      and self._since_improved < self.cfg.patience
      and self.iterations < self.cfg.max_iterations
    )
