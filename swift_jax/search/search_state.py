"""The state of a search: its parts, their form as JSON, and restoring them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from swift_jax.config.settings import SearchConfig
from swift_jax.errors import InputError
from swift_jax.model import skip_mask as skip_masks
from swift_jax.pacing.governor import Governor
from swift_jax.search.drift import Drift
from swift_jax.search.estimate import Estimate
from swift_jax.search.files import codec
from swift_jax.search.files.record_forms import EVENTS, SOURCES, PassRecord


class SearchState:
  """The state of one search, from which another search may go on.

  Each kind of search is a subclass; it adds the attributes that it learns to
  `_learnt`.

  Attributes:
    incumbent: the bits of the mask that drafts, bool[D]. They are replaced as
      a whole, never changed.
    source: the source that proposed the incumbent.
    estimate: the incumbent's share of hits, over the windows of its passes.
    iterations: scoring passes so far.
    evaluations: masks scored in these passes, counted each time.
    restarts: how often the stream drifted.
    active: whether the search goes on.
    governor: the account of the time, over all texts.
    on_pass: called with a record of each pass; it is not part of the state.
  """

  _learnt = (  # attributes that are saved as they are
    'source',
    'iterations',
    'evaluations',
    'restarts',
    'active',
    '_since_improved',
    '_since_start',
    '_watches',
    '_importance',
    '_suggested',
    '_history',
    '_scored',
    '_event',
    '_is_new_text',
  )

  def __init__(self, cfg: SearchConfig, num_layers: int):
    self.cfg = cfg
    self.num_layers = num_layers
    self.incumbent = skip_masks.uniform(num_layers, cfg.skip_ratio).bits()
    self.source = 'start'
    self.estimate = Estimate()
    self.iterations = self.evaluations = self.restarts = 0
    self._skipped = skip_masks.num_to_skip(num_layers, cfg.skip_ratio)
    self._free = skip_masks.num_free(num_layers)
    self.active = self._may_score
    self.governor = Governor(cfg.time_budget)
    self.on_pass: Callable[[PassRecord], None] | None = None
    self._rng = np.random.default_rng(cfg.seed)
    self._since_improved = self._since_start = 0
    self._watches = False  # whether drift may wake a search at rest
    self._drift = Drift()
    self._importance: np.ndarray | None = None
    self._surrogate: Any = None
    self._suggested: list[np.ndarray] = []
    self._history: list[list[Any]] = []
    self._scored: dict[str, list[Any]] = {}
    self._event = 'start'
    self._is_new_text = True

  @property
  def num_candidates(self) -> int:
    """Masks scored in one pass, C."""
    return self.cfg.num_candidates

  @property
  def skip_ratio(self) -> float:
    """The incumbent's skipped sublayers over the free sublayers."""
    return float(self.incumbent.mean()) if self._free else 0.0

  @property
  def _may_score(self) -> bool:
    """Whether there are masks to choose among, and they may be scored."""
    has_choice = 0 < self._skipped < self._free
    return self.cfg.enabled and has_choice and self.cfg.max_iterations > 0

  def start_process(self) -> None:
    """Makes the Gaussian process of this kind of search."""
    raise NotImplementedError

  def state(self) -> dict[str, Any]:
    """All that the search has learnt, in JSON's types.

    A suggestion that the process is computing must be collected before.
    """
    surrogate = self._surrogate
    learnt = {name: getattr(self, name) for name in self._learnt}
    return codec.encode(
      {
        'sizes': self._sizes(),
        'learnt': learnt,
        'incumbent': self.incumbent,
        'estimate': vars(self.estimate),
        'budget': self.governor.account(),  # the name of older files
        'drift': vars(self._drift),
        'rng': self._rng.bit_generator.state,
        'surrogate': None if surrogate is None else surrogate.state(),
      }
    )

  def restore(self, state: Any) -> None:
    """Goes on from a state that `state` returned.

    Raises:
      InputError: the state is damaged, or of a search of other sizes; the
        search has not changed then.
    """
    other = type(self)(self.cfg, self.num_layers)
    other._skipped = self._skipped
    try:
      for name, size in self._sizes().items():
        if state['sizes'][name] != size:
          raise InputError(
            f'search state: {name}={state["sizes"][name]!r}, here {size!r}'
          )
      other._load(codec.decode(state))
    except (
      ArithmeticError,
      AttributeError,
      LookupError,
      TypeError,
      ValueError,
    ) as error:
      if isinstance(error, InputError):
        raise
      raise InputError(
        f'search state: damaged: {type(error).__name__}: {error}'
      ) from error
    # The batch that is being written goes on with the same governor.
    account = other.governor.account() | {'share': self.governor.share}
    vars(self.governor).update(account)
    other.on_pass, other.governor = self.on_pass, self.governor
    vars(self).update(vars(other))

  def _sizes(self) -> dict[str, Any]:
    """The values in which a search and a state that it restores must agree."""
    return {
      'num_layers': self.num_layers,
      'num_skipped': self._skipped,
      'num_candidates': self.num_candidates,
      'recipe': self.cfg.recipe,
    }

  def _load(self, state: dict[str, Any]) -> None:
    """Takes over a decoded state; it may fail halfway."""
    bits = state['incumbent']
    if bits.shape != (self._free,) or bits.sum() != self._skipped:
      raise ValueError(f'incumbent has {bits.shape} sublayers')
    self.incumbent = bits.astype(bool)
    codec.replace_fields(self, self._learnt, state['learnt'])
    # The settings of this run count, not those of the run that saved the state.
    self.active &= self._may_score
    self._watches &= self._may_score and self.cfg.restart
    account = tuple(self.governor.account())
    codec.replace_fields(self.governor, account, state['budget'])
    for name, target in ('estimate', self.estimate), ('drift', self._drift):
      codec.replace_fields(target, tuple(vars(target)), state[name])
    self._check_learnt()
    self._rng.bit_generator.state = state['rng']
    if state['surrogate'] is not None and self.cfg.bayes_interval:
      self.start_process()
      self._surrogate.restore(state['surrogate'])

  def _check_learnt(self) -> None:
    """Refuses bad items and optional values: `replace_fields` passes them."""
    bits = np.zeros(self._free, bool)
    learnt = {
      'importance': ([self._importance], bits.astype(np.float32)),
      'per_pass': ([self.governor.per_pass], 0.0),
      'plain': ([self.governor.plain], 0.0),
      'suggested': (self._suggested, bits),
      'history': (self._history, self._history_form()),
      'scored': (self._scored.values(), ['', 0, 0]),
    }
    for name, (items, example) in learnt.items():
      known = [item for item in items if item is not None]
      codec.check_items(name, known, example)
    sources = {self.source, *(source for source, *_ in self._scored.values())}
    if not sources <= {*SOURCES} or self._event not in ('', *EVENTS):
      raise ValueError(f'unknown sources {sources}, event {self._event!r}')

  def _history_form(self) -> list[Any]:
    """An example of an item of `_history`: see `Searcher.observe`."""
    count = self.num_candidates
    numbers = np.zeros(count, np.float32)
    return [np.zeros((count, self._free), bool), numbers, numbers, 0.0]
