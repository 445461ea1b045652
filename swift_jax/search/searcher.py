"""The search on the host: which masks to score next, and which mask drafts."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np

from swift_jax.config.settings import SearchConfig
from swift_jax.errors import InputError
from swift_jax.model.skip_mask import Bits, Candidates
from swift_jax.search import proposals
from swift_jax.search.drift import Drift
from swift_jax.search.estimate import Estimate
from swift_jax.search.files.record_forms import PassRecord
from swift_jax.search.matchness import Scores
from swift_jax.search.proposals import Proposal
from swift_jax.search.search_state import SearchState
from swift_jax.typing import Float

# Lead that a mask needs to become the incumbent, in its standard deviations.
_MARGIN = 0.5
_MARGIN_ON_ONE_TEXT = 1.0  # the same, where one window alone decides
_MIN_PASSES = 3  # passes before the incumbent's score can end the search
_NEW_TEXT = 4.0  # distance to another prompt's text, in windows
_HISTORY = 16  # newest passes that are kept for a process that starts late
_REMEMBERED = 512  # masks whose last score is kept
STARTING_SECONDS = 8.0  # to import the Gaussian process and to compile it


class Searcher(SearchState):
  """Scores proposals against an incumbent, which every pass scores again.

  The incumbent and its challengers are scored on the same text, so that neither
  a lucky nor an easy window decides. The first incumbent is the uniform mask;
  all masks skip as many sublayers. The attributes of `SearchState` hold what
  the search has learnt.
  """

  uses_first_window = False  # scores the newest tokens, not the first ones

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
      f' source={self.source!r}, skip_ratio={self.skip_ratio:.2f})'
    )

  @property
  def matchness(self) -> float | None:
    """The incumbent's share of hits; None before its first score."""
    return self.estimate.mean

  @property
  def wants_importance(self) -> bool:
    """Whether the search asks for sensitivities: once a stream, if enabled."""
    return self.active and self.cfg.importance and self._importance is None

  @property
  def has_process(self) -> bool:
    """Whether the Gaussian process has been started."""
    return self._surrogate is not None

  @property
  def wants_process(self) -> bool:
    """Whether the Gaussian process is still to be started."""
    is_wanted = self.active and self.cfg.bayes_interval > 0
    return is_wanted and not self.has_process

  @property
  def keeps_reserve(self) -> bool:
    """Whether passes leave a part of the budget, to start the process with.

    They do once the search has as many passes as it will give to the process.
    """
    return self.wants_process and len(self._history) >= _HISTORY

  @property
  def may_search(self) -> bool:
    """Whether the search is active, or a drift may wake it."""
    return self.active or self._watches

  def start_from(self, bits: Bits, may_restart: bool = False) -> None:
    """Takes a given set as the incumbent; the search rests.

    These are SWIFT's cached layer sets. A later search skips as many sublayers
    as this set, whatever the configured ratio is.

    Args:
      may_restart: whether a lasting fall of the acceptance starts a search.
    """
    self.incumbent = bits
    self.source = 'cached'
    self.estimate = Estimate()
    self._skipped = int(bits.sum())
    self._surrogate, self._importance = None, None
    self._history, self._suggested, self._scored = [], [], {}
    self.active = False
    self._watches = may_restart and self._may_score and self.cfg.restart
    self._drift = Drift()

  def rest(self) -> None:
    """Ends the search; the best mask so far drafts on and keeps its score."""
    if not self.active:
      return
    self.name_incumbent()
    self.active = False
    self._watches = self.cfg.restart
    self._drift = Drift()

  def watch(self, drafted: int, accepted: int) -> None:
    """Adds drafted and accepted tokens, which may wake a search at rest."""
    if self.active or not self._watches:
      return
    if self._drift.add(drafted, accepted):
      self._restart()

  def _restart(self) -> None:
    """Starts anew on another stream; keeps the incumbent, not its score."""
    self.active, self._watches = True, False
    self.restarts += 1
    self._event = 'restart'
    self.estimate = Estimate()
    self.governor.forfeit()  # one answer must not pay for a long rest
    self._since_improved = self._since_start = 0
    self._importance = None
    self._history, self._suggested = [], []
    if self._surrogate is not None:
      self._surrogate.forget()

  def new_text(self) -> None:
    """Tells the search that the next window is of another text."""
    self._is_new_text = True

  def take_importance(self, importance: Float[np.ndarray, ' d']) -> None:
    """Takes the sublayers' sensitivities, in the order of `SkipMask.bits`.

    If one of them overflowed, none is used.
    """
    importance = np.asarray(importance, np.float32)
    is_sound = np.isfinite(importance).all()
    self._importance = importance if is_sound else np.zeros_like(importance)
    if self._surrogate is not None:
      self._surrogate.trust(self._importance)

  def start_process(self) -> None:
    """Makes the Gaussian process, which imports gpjax and compiles.

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
      self._surrogate.start(self.incumbent)
    self._history = []

  def candidates(self) -> Candidates:
    """Masks to score next: the incumbent, then proposals, all distinct.

    In every `bayes_interval`-th pass the proposals are the Gaussian process's.
    Otherwise random masks find a region, and exchanges of two sublayers climb
    in it; in a stream's first pass the sublayers' sensitivities tell where to
    begin. A process also names the incumbent here.
    """
    self.name_incumbent()
    count = self.num_candidates
    first = Proposal(self.incumbent, 'incumbent')
    chosen = proposals.distinct(first, self.plan(), count)
    self._sources = [proposal.source for proposal in chosen]
    return np.stack([proposal.bits for proposal in chosen])

  def plan(self) -> list[tuple[int, proposals.Stream]]:
    """The sources of a pass in turn, each with its most proposals."""
    count, plan = self.num_candidates, []
    if self._importance is not None and not self._since_start:
      stream = proposals.by_importance(
        self._rng, self._importance, self._skipped
      )
      plan.append((count // 2, stream))
    interval = self.cfg.bayes_interval
    if interval and (self.iterations + 1) % interval == 0:
      plan.append((count, proposals.given(self._suggested, 'gp')))
    random = proposals.random(self._rng, self._free, self._skipped)
    near = proposals.neighbours(self._rng, self.incumbent)
    # Neighbours fill the batch; where they are too few, random masks do.
    plan += [(count // 2 - 1, random), (count, near), (count, random)]
    return plan

  def observe(
    self, candidates: Candidates, scores: Scores, fresh: float = math.inf
  ) -> None:
    """Learns from a scoring pass over the masks of `candidates()`.

    A Gaussian process, which weighs all windows, is set off here and computes
    while the device decodes. Without a process the incumbent is replaced by a
    mask that leads on this text by more than the standard error of the
    difference.

    Args:
      scores: on the host.
      fresh: tokens written since the last pass.
    """
    positions = scores.positions
    if not positions or not self.active:
      return
    self._count(len(candidates))
    hits = scores.num_hits()
    self._remember(candidates, hits, positions)
    self.estimate.add(int(hits[0]), positions)
    later = _NEW_TEXT if self._is_new_text else fresh / positions
    later, self._is_new_text = min(later, _NEW_TEXT), False
    closeness = scores.closeness()
    # A window that is easy or hard for all masks tells nothing about one mask.
    apart = closeness - closeness.mean(0)
    scored = [candidates, closeness.mean(1), apart.var(1) / positions, later]
    if self._surrogate is not None:
      self._surrogate.observe(*scored)
      self._surrogate.start(self.incumbent)
    else:
      self._history = [*self._history, scored][-_HISTORY:]
      best = _clear_winner(closeness)
      if best:
        self._replace(candidates[best])
    self._stop_or_go_on()
    self._record(candidates, scores)

  def _count(self, masks: int) -> None:
    self.iterations += 1
    self.evaluations += masks
    self._since_improved += masks
    self._since_start += 1

  def _stop_or_go_on(self) -> None:
    """Rests at the target matchness, without progress, or at the limit."""
    has_reached = self._has_reached()
    if has_reached:
      self._collect()  # so that the process cannot name another set
    if (
      has_reached
      or self._since_improved >= self.cfg.patience
      or self._since_start >= self.cfg.max_iterations
    ):
      self.rest()
      self._event = self._event or 'stopped'

  def _has_reached(self) -> bool:
    """Whether the incumbent has surely reached the target matchness."""
    estimate = self.estimate
    is_known = estimate.passes >= _MIN_PASSES
    return is_known and estimate.low > self.cfg.target_matchness

  def _replace(self, bits: Bits) -> None:
    """Makes a scored mask the incumbent."""
    self.incumbent = bits
    # The process may remember masks for longer than `_scored` does.
    unknown = 'gp', 0, 0
    score = self._scored.get(digits(bits), unknown)
    self.source, hits, positions = score
    self.estimate = Estimate()
    if positions:
      self.estimate.add(hits, positions)
    self._since_improved = 0

  def _remember(
    self, candidates: Candidates, hits: np.ndarray, positions: int
  ) -> None:
    """Keeps each mask's last score, with the source that proposed it first."""
    for row, source, count in zip(candidates, self._sources, hits, strict=True):
      source = self.source if source == 'incumbent' else source
      source = self._scored.pop(digits(row), [source])[0]
      self._scored[digits(row)] = [source, int(count), positions]
    for name in list(self._scored)[:-_REMEMBERED]:
      del self._scored[name]

  def _collect(self) -> bool:
    """Waits for a running process; returns whether there was one."""
    if self._surrogate is None or not self._surrogate.is_running:
      return False
    self._suggested = list(self._surrogate.collect())
    return True

  def name_incumbent(self) -> None:
    """Takes the process's choice as the incumbent, if it has a new one."""
    if not self._collect():
      return
    best = self._surrogate.best(self.incumbent, _MARGIN)
    if (best != self.incumbent).any():
      self._replace(best)

  def _record(self, candidates: Candidates, scores: Scores) -> None:
    """Hands a record of the pass to `on_pass`."""
    event, self._event = self._event, ''
    if self.on_pass is None:
      return
    self.on_pass(
      PassRecord(
        number=self.iterations,
        evaluations=self.evaluations,
        seconds=self.governor.elapsed,
        search_seconds=self.governor.spent,
        positions=scores.positions,
        sources=tuple(self._sources),
        hits=tuple(scores.num_hits().tolist()),
        log_probs=tuple(scores.closeness().mean(1).tolist()),
        masks=tuple(map(digits, candidates)),
        incumbent=digits(self.incumbent),
        incumbent_source=self.source,
        matchness=self.estimate.mean,
        stddev=self.estimate.stddev,
        event=event or None,
      )
    )

  def state(self) -> dict[str, Any]:
    self.name_incumbent()
    return super().state()


def digits(bits: Bits) -> str:
  """A mask as a string of 0 and 1 (skipped)."""
  return ''.join('01'[int(bit)] for bit in bits)


def _clear_winner(closeness: Float[np.ndarray, 'c p']) -> int:
  """The index of the best mask if it leads clearly; else 0, the incumbent.

  It must lead by more than the standard error of the lead. The lead is taken
  position by position, since both masks are scored on the same text. It is the
  largest of several leads, so that some masks win by chance alone; winners are
  scored again.
  """
  best = int(np.argmax(closeness.mean(1)))
  lead = closeness[best] - closeness[0]
  error = lead.std() / math.sqrt(lead.size)
  return best if lead.mean() > _MARGIN_ON_ONE_TEXT * error else 0


def _require_gpjax(cfg: SearchConfig) -> None:
  """Refuses early, without the import, which takes seconds."""
  try:
    is_there = importlib.util.find_spec('gpjax') is not None
  except ValueError:  # sys.modules has a gpjax without a spec
    is_there = False
  if not is_there:
    raise needs_gpjax(cfg, 'it is not installed')


def needs_gpjax(cfg: SearchConfig, reason: object) -> InputError:
  """The error where gpjax, which the process needs, cannot be imported."""
  return InputError(
    f'search.bayes_interval={cfg.bayes_interval}: needs gpjax ({reason});'
    ' 0 searches without it'
  )
