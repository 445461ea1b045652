"""The official recipe, as a baseline in the same code.

Each step scores one mask on the first tokens after the prompt: a random mask,
or in every `BAYES_INTERVAL`-th step the suggestion of a Gaussian process. A
mask becomes the incumbent when its score is above the best score so far, which
carries over from text to text. The incumbent is never scored again, and the
first incumbent never at all. Once the search has stopped, it never starts
again.

In two things this follows the paper and not the official code: the first
incumbent skips as many sublayers as any other mask, and the process observes
the mask that was scored.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from swift_jax.config.settings import SearchConfig
from swift_jax.model import skip_mask as skip_masks
from swift_jax.model.skip_mask import Bits, Candidates
from swift_jax.search.matchness import Scores
from swift_jax.search.searcher import Searcher, needs_gpjax

BAYES_INTERVAL = 25


def make_searcher(cfg: SearchConfig, num_layers: int) -> Searcher:
  """The search that `cfg.recipe` names."""
  if cfg.recipe == 'paper':
    return PaperSearcher(cfg, num_layers)
  return Searcher(cfg, num_layers)


class PaperSearcher(Searcher):
  """The recipe above; `bayes_interval=0` leaves the process out."""

  uses_first_window = True
  num_candidates = 1
  wants_importance = False
  _learnt = (*Searcher._learnt, '_best')

  def __init__(self, cfg: SearchConfig, num_layers: int):
    super().__init__(cfg, num_layers)
    self._best = 0.0

  def _collect(self) -> bool:
    return False

  def _history_form(self) -> list[Any]:
    return [np.zeros(self._free, bool), 0.0]

  def start_from(self, bits: Bits, may_restart: bool = False) -> None:
    del may_restart
    super().start_from(bits)

  def start_process(self) -> None:
    try:
      from swift_jax.search.paper.process import PaperProcess
    except ImportError as error:
      raise needs_gpjax(self.cfg, error) from None
    self._surrogate: Any = PaperProcess(
      self._free, self._skipped, self.cfg.seed
    )
    for bits, score in self._history:
      self._surrogate.observe(bits, score)
    self._history = []
    if self.iterations:
      self._surrogate.suggest()  # to compile it

  def rest(self) -> None:
    self.active = False

  def candidates(self) -> Candidates:
    is_due = (self.iterations + 1) % BAYES_INTERVAL == 0
    if self._surrogate is not None and is_due:
      self._sources = ['paper']
      return self._surrogate.suggest()[None]
    self._sources = ['random']
    return skip_masks.random(self._rng, self._free, self._skipped)[None]

  def observe(
    self, candidates: Candidates, scores: Scores, fresh: float = 0.0
  ) -> None:
    del fresh
    positions = scores.positions
    if not positions or not self.active:
      return
    self._count(1)
    (bits,), hits = candidates, scores.num_hits()
    self._remember(candidates, hits, positions)
    share = float(hits[0] / positions)
    if self._surrogate is not None:
      self._surrogate.observe(bits, share)
    elif self.cfg.bayes_interval:
      self._history.append([bits, share])
    if share > self._best:
      self._best = share
      self._replace(bits)
    self._stop_or_go_on()
    self._record(candidates, scores)

  def _has_reached(self) -> bool:
    return self._best > self.cfg.target_matchness
