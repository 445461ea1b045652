"""The search on the host: which masks to score next, which one drafts."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np

from swift_jax.config.settings import SearchConfig
from swift_jax.errors import InputError
from swift_jax.model import skip_mask as skip_masks
from swift_jax.model.skip_mask import SkipMask
from swift_jax.search import proposals
from swift_jax.search.budget import Estimate
from swift_jax.search.drift import Drift
from swift_jax.search.files.record_forms import PassRecord
from swift_jax.search.matchness import Scores
from swift_jax.search.proposals import Proposal
from swift_jax.search.search_state import SearchState
from swift_jax.typing import Float

# By which a mask must be better to draft, in deviations of the difference.
_MARGIN = 0.5
_MARGIN_ON_ONE_TEXT = 1.0  # where one window alone decides
_MIN_PASSES = 3  # before the incumbent's score can end the search
_NEW_TEXT = 4.0  # how far another prompt's text is, in windows
_HISTORY = 16  # passes that a process which starts late is told
_REMEMBERED = 512  # masks whose last score is known
STARTING_SECONDS = 8.0  # of the process: to import it and to compile it


class Searcher(SearchState):
  """Proposals against an incumbent that is scored again in every pass.

  The incumbent and its challengers meet on the same text, so neither a lucky nor
  an easy window decides. It starts as the uniform mask and keeps the ratio. What
  it has learnt are the attributes of `SearchState`.
  """

  uses_first_window = False  # the text's newest tokens, not its first

  def __init__(self, cfg: SearchConfig, num_layers: int):
    super().__init__(cfg, num_layers)
    self._sources: list[str] = []
    if self.active and cfg.bayes_interval:
      _require_gpjax(cfg)

  def __repr__(self) -> str:
    state = 'active' if self.active else 'at rest'
    score = (
      '' if self.matchness is None else f', matchness={self.matchness:.3f}'
    )
    return (
      f'{type(self).__name__}({state}, iterations={self.iterations}{score},'
      f' source={self.source!r}, skip_ratio={self.incumbent.skip_ratio():.2f})'
    )

  @property
  def matchness(self) -> float | None:
    """The incumbent's share of hits; None before it was scored."""
    return self.estimate.mean

  @property
  def wants_importance(self) -> bool:
    """Whether the sublayers' sensitivities are asked for, once a stream."""
    return self.active and self.cfg.importance and self._importance is None

  @property
  def has_process(self) -> bool:
    """Whether there is a Gaussian process."""
    return self._surrogate is not None

  @property
  def wants_process(self) -> bool:
    """Whether it is still to be started."""
    is_wanted = self.active and self.cfg.bayes_interval > 0
    return is_wanted and not self.has_process

  @property
  def saves(self) -> bool:
    """Whether passes should leave some of the budget for the process.

    From when there are as many as it will be told of.
    """
    return self.wants_process and len(self._history) >= _HISTORY

  @property
  def may_search(self) -> bool:
    """Whether there is a search, now or after a drift."""
    return self.active or self._watches

  @property
  def _ratio(self) -> float:
    """The skip ratio of all masks, safely inside what rounds to their number."""
    return (self._skipped + 0.5) / self._free

  def start_from(self, mask: SkipMask, may_restart: bool = False) -> None:
    """Drafts with a given set; the search rests (SWIFT's cached layer sets).

    What it skips is what a later search skips, whatever the ratio was.

    Args:
      may_restart: a lasting fall of the acceptance starts a search.
    """
    self.incumbent = skip_masks.check(mask, self.num_layers)
    self.source = 'cached'
    self.estimate = Estimate()
    self._skipped = self.incumbent.num_skipped()
    self._surrogate, self._importance = None, None
    self._history, self._suggested, self._scored = [], [], {}
    self.active = False
    self._watches = may_restart and self._may_score and self.cfg.restart
    self._drift = Drift()

  def rest(self) -> None:
    """Ends the search; the best mask so far drafts on, its score stays."""
    if not self.active:
      return
    self.name_incumbent()
    self.active = False
    self._watches = self.cfg.restart
    self._drift = Drift()

  def watch(self, drafted: int, accepted: int) -> None:
    """Takes what some rounds drafted and accepted; may wake a search at rest."""
    if self.active or not self._watches:
      return
    if self._drift.add(drafted, accepted):
      self._restart()

  def _restart(self) -> None:
    """Another stream: what was scored counts no more, the incumbent drafts on."""
    self.active, self._watches = True, False
    self.restarts += 1
    self._event = 'restart'
    self.estimate = Estimate()
    self.budget.forfeit()  # one answer must not pay for a long rest
    self._since_improved = self._since_start = 0
    self._importance = None
    self._history, self._suggested = [], []
    if self._surrogate is not None:
      self._surrogate.forget()

  def new_text(self) -> None:
    """The next window is of another text."""
    self._is_new_text = True

  def take_importance(self, importance: Float[np.ndarray, ' d']) -> None:
    """The sublayers' sensitivities, in the order of `SkipMask.bits`.

    Where one of them overflowed, none is believed.
    """
    importance = np.asarray(importance, np.float32)
    is_sound = np.isfinite(importance).all()
    self._importance = importance if is_sound else np.zeros_like(importance)
    if self._surrogate is not None:
      self._surrogate.trust(self._importance)

  def start_process(self) -> None:
    """Makes the Gaussian process: it imports gpjax and compiles.

    Raises:
      InputError: gpjax cannot be imported.
    """
    try:
      from swift_jax.search.surrogate import Surrogate
    except ImportError as error:
      raise needs_gpjax(self.cfg, error) from None
    self._surrogate = Surrogate(
      self._free,
      self._skipped,
      num_suggested=self.num_candidates,
      seed=self.cfg.seed,
    )
    if self._importance is not None:
      self._surrogate.trust(self._importance)
    for scored in self._history:
      self._surrogate.observe(*scored)
    if self._history:
      self._surrogate.start(self.incumbent.bits())
    self._history = []

  def candidates(self) -> SkipMask:
    """Masks to score next, [C, L]: the incumbent, then proposals, all distinct.

    Every `bayes_interval`-th time they are the Gaussian process's. Otherwise
    random masks find a region and exchanges of two sublayers climb in it; the
    first time the sublayers' sensitivities tell where to begin. Where there is a
    process, this is also when it names the incumbent.
    """
    self.name_incumbent()
    count = self.num_candidates
    first = Proposal(self.incumbent, 'incumbent')
    chosen = proposals.distinct(first, self.plan(), count)
    self._sources = [proposal.source for proposal in chosen]
    return skip_masks.stack([proposal.mask for proposal in chosen])

  def plan(self) -> list[tuple[int, proposals.Stream]]:
    """How many proposals each source may make at most, in turn."""
    count, plan = self.num_candidates, []
    if self._importance is not None and not self._since_start:
      stream = proposals.by_importance(
        self._rng, self._importance, self._skipped
      )
      plan.append((count // 2, stream))
    interval = self.cfg.bayes_interval
    if interval and (self.iterations + 1) % interval == 0:
      masks = map(skip_masks.from_bits, self._suggested)
      plan.append((count, proposals.given(masks, 'gp')))
    random = proposals.random(self._rng, self.num_layers, self._ratio)
    near = proposals.neighbours(self._rng, self.incumbent)
    # Neighbours to the end: where there are few, random masks fill the rest.
    plan += [(count // 2 - 1, random), (count, near), (count, random)]
    return plan

  def observe(
    self, candidates: SkipMask, scores: Scores, fresh: float = math.inf
  ) -> None:
    """Takes what a pass of the masks of `candidates()` gave.

    With a Gaussian process, which weighs all windows, it is set off here and
    computes while the device decodes. Without one the incumbent yields to a mask
    that was better on this text by more than the difference's standard error.

    Args:
      scores: on the host.
      fresh: tokens written since the last pass.
    """
    positions = scores.positions
    if not positions or not self.active:
      return
    self._count(candidates)
    bits, hits = candidates.bits(), scores.num_hits()
    self._remember(bits, hits, positions)
    self.estimate.add(int(hits[0]), positions)
    later = _NEW_TEXT if self._is_new_text else fresh / positions
    later, self._is_new_text = min(later, _NEW_TEXT), False
    closeness = scores.closeness()
    # What a window gives all masks alike says nothing of any of them.
    apart = closeness - closeness.mean(0)
    scored = [bits, closeness.mean(1), apart.var(1) / positions, later]
    if self._surrogate is not None:
      self._surrogate.observe(*scored)
      self._surrogate.start(self.incumbent.bits())
    else:
      self._history = [*self._history, scored][-_HISTORY:]
      best = _clear_winner(closeness)
      if best:
        self._replace(bits[best])
    self._stop_or_go_on()
    self._record(candidates, scores)

  def _count(self, candidates: SkipMask) -> None:
    self.iterations += 1
    self.evaluations += len(candidates.attn)
    self._since_improved += len(candidates.attn)
    self._since_start += 1

  def _stop_or_go_on(self) -> None:
    has_reached = self._has_reached()
    if has_reached:
      self._collect()  # this set has earned it: no other is named any more
    if (
      has_reached
      or self._since_improved >= self.cfg.patience
      or self._since_start >= self.cfg.max_iterations
    ):
      self.rest()
      self._event = self._event or 'stopped'

  def _has_reached(self) -> bool:
    found = self.estimate
    is_known = found.passes >= _MIN_PASSES
    return is_known and found.low > self.cfg.target_matchness

  def _replace(self, bits: np.ndarray) -> None:
    """A scored mask drafts from now on."""
    self.incumbent = skip_masks.from_bits(bits)
    # The process may remember a mask for longer.
    unknown = 'gp', 0, 0
    found = self._scored.get(digits(bits), unknown)
    self.source, hits, positions = found
    self.estimate = Estimate()
    if positions:
      self.estimate.add(hits, positions)
    self._since_improved = 0

  def _remember(
    self, bits: np.ndarray, hits: np.ndarray, positions: int
  ) -> None:
    """Each mask's last score, and who came up with it first."""
    for row, source, count in zip(bits, self._sources, hits, strict=True):
      source = self.source if source == 'incumbent' else source
      source = self._scored.pop(digits(row), [source])[0]
      self._scored[digits(row)] = [source, int(count), positions]
    for name in list(self._scored)[:-_REMEMBERED]:
      del self._scored[name]

  def _collect(self) -> bool:
    """Waits for the process where it is at work; whether it was."""
    if self._surrogate is None or not self._surrogate.is_running:
      return False
    self._suggested = list(self._surrogate.collect())
    return True

  def name_incumbent(self) -> None:
    """The process's choice, if it has computed since it was last asked."""
    if not self._collect():
      return
    best = self._surrogate.best(self.incumbent.bits(), _MARGIN)
    if (best != self.incumbent.bits()).any():
      self._replace(best)

  def _record(self, candidates: SkipMask, scores: Scores) -> None:
    """Hands on what the pass was."""
    event, self._event = self._event, ''
    if self.on_pass is None:
      return
    self.on_pass(
      PassRecord(
        number=self.iterations,
        evaluations=self.evaluations,
        seconds=self.budget.elapsed,
        search_seconds=self.budget.spent,
        positions=scores.positions,
        sources=tuple(self._sources),
        hits=tuple(scores.num_hits().tolist()),
        log_probs=tuple(scores.closeness().mean(1).tolist()),
        masks=tuple(map(digits, candidates.bits())),
        incumbent=digits(self.incumbent.bits()),
        incumbent_source=self.source,
        matchness=self.estimate.mean,
        stddev=self.estimate.stddev,
        event=event or None,
      )
    )

  def state(self) -> dict[str, Any]:
    self.name_incumbent()
    return super().state()


def digits(bits: np.ndarray) -> str:
  """A mask as a string of 0 and 1."""
  return ''.join('01'[int(bit)] for bit in bits)


def _clear_winner(closeness: Float[np.ndarray, 'c p']) -> int:
  """The best mask, if it leads by more than the standard error; else 0.

  The lead is taken position by position, since both stand before the same text.
  It is the largest of several, so chance alone makes some winners; they are
  scored again.
  """
  best = int(np.argmax(closeness.mean(1)))
  gain = closeness[best] - closeness[0]
  error = gain.std() / math.sqrt(gain.size)
  return best if gain.mean() > _MARGIN_ON_ONE_TEXT * error else 0


def _require_gpjax(cfg: SearchConfig) -> None:
  """Early, and without importing it: that takes seconds."""
  try:
    is_there = importlib.util.find_spec('gpjax') is not None
  except ValueError:  # it was switched off in sys.modules
    is_there = False
  if not is_there:
    raise needs_gpjax(cfg, 'it is not installed')


def needs_gpjax(cfg: SearchConfig, reason: object) -> InputError:
  """What to say where the process cannot be had."""
  return InputError(
    f'search.bayes_interval={cfg.bayes_interval}: needs gpjax ({reason});'
    ' 0 searches without it'
  )
