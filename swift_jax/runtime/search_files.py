"""The files of an engine's search: first set, record, found set and state."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import weakref

import jax

from swift_jax.checkpoint import load
from swift_jax.config.settings import ModelConfig, SearchConfig
from swift_jax.errors import InputError
from swift_jax.files import atomic
from swift_jax.model.skip_mask import SkipMask, from_bits
from swift_jax.parallel import sharding
from swift_jax.parallel.target import Target
from swift_jax.search.estimate import Estimate
from swift_jax.search.files import cached_sets, records
from swift_jax.search.files.cached_sets import CachedSet
from swift_jax.search.searcher import Searcher
from swift_jax.version import __version__

_DEFAULT_NAME = 'default'  # of a set that is saved
_STATE_FORMAT = 'swift_jax search state'


def check(search: SearchConfig, mesh: jax.sharding.Mesh | None) -> None:
  """Refuses files that could not be written later.

  Raises:
    InputError: names the setting and the file.
  """
  if search.save:
    cached_sets.check_writable(search.save)
    cached_sets.check_name(
      search.cache_name or _DEFAULT_NAME, 'search.cache_name'
    )
  # The check locks the file for a moment, so only the process that writes it asks.
  if search.record and sharding.is_first(mesh):
    records.check_writable(search.record)
    if search.save and atomic.is_same(search.record, search.save):
      raise InputError(
        f'search.record={search.record!r}: is the file of search.save too'
      )


def cached_mask(
  search: SearchConfig, cfg: ModelConfig, model: str | None = None
) -> SkipMask:
  """The set that `search.cache` names.

  Args:
    model: fingerprint of the model; None if it is not known yet.
  """
  layers = cfg.num_hidden_layers
  return cached_sets.load(search.cache, search.cache_name, layers, model)


class SearchFiles:
  """The files of one search, for as long as it lives.

  Attributes:
    saved: the set that was written last; None before the first.
  """

  def __init__(self, target: Target, searcher: Searcher):
    """Starts the search from its set, and begins its record.

    Raises:
      InputError: a file cannot be read or written, or a set does not fit.
    """
    self._target, self._searcher = target, searcher
    self.saved: CachedSet | None = None
    self._saved_at = 0  # passes
    search, cfg = searcher.cfg, target.cfg
    if search.cache:
      mask = cached_mask(search, cfg, self.fingerprint)
      searcher.start_from(mask.bits(), may_restart=True)
    if search.record and sharding.is_first(target.mesh):
      settings = dataclasses.asdict(search)
      header = records.Header(cfg.num_hidden_layers, self.fingerprint, settings)
      record = records.Writer(search.record, header)
      weakref.finalize(self, record.close)
      searcher.on_pass = record.write

  @functools.cached_property
  def fingerprint(self) -> str:
    """A hash that ties sets and states to this model."""
    return load.fingerprint(self._target.cfg, self._target.params)

  def save_set(self) -> None:
    """Writes the set that drafts, if the search has scored since the last time.

    A better set of another run stays: a set that skips as much and has the higher
    score. An error bar is subtracted from both scores, since a score of a few
    windows tends to be too high.
    """
    searcher, search = self._searcher, self._searcher.cfg
    if not search.save or not searcher.iterations > self._saved_at:
      return
    if searcher.estimate.mean is None:  # just chosen, not yet scored
      return
    lists = from_bits(searcher.incumbent).to_lists()
    found = CachedSet(
      name=search.cache_name or _DEFAULT_NAME,
      model=self.fingerprint,
      matchness=searcher.estimate.mean,
      positions=round(searcher.estimate.positions),
      skip_ratio=searcher.skip_ratio,
      context_window=search.context_window,
      date=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      version=__version__,
      **{kind: tuple(layers) for kind, layers in lists.items()},
    )

    def stays(rival: CachedSet) -> bool:
      is_better = _low(rival) > searcher.estimate.low
      is_like_ours = rival.skip_ratio == found.skip_ratio
      return rival != self.saved and is_like_ours and is_better

    if sharding.is_first(self._target.mesh):
      if not cached_sets.save(search.save, found, stays):
        return
    self.saved, self._saved_at = found, searcher.iterations

  def state(self) -> str:
    """All that the search has learnt, in the form that `save_state` writes."""
    state = {'model': self.fingerprint, 'search': self._searcher.state()}
    return json.dumps({_STATE_FORMAT: 1, **state}, allow_nan=False) + '\n'

  def save_state(self, path: str) -> None:
    """Writes `state`.

    Raises:
      InputError: the file cannot be written; it has not changed.
    """
    where = f'search state {path!r}'
    target = atomic.writable(path, where)
    atomic.replace(target, self.state(), where)

  def load_state(self, path: str) -> None:
    """Continues from a file of `save_state`.

    Raises:
      InputError: the file is missing; and as for `restore`.
    """
    where = f'search state {path!r}'
    self.restore(atomic.read(path, where), where)

  def restore(self, text: str | bytes, where: str) -> None:
    """Continues from a text of `state`.

    Args:
      where: the text's name in errors.

    Raises:
      InputError: the text is damaged, or belongs to another model or to other
        settings; the search has not changed.
    """
    try:
      saved = json.loads(text)
      if saved[_STATE_FORMAT] != 1:
        raise ValueError(f'version {saved[_STATE_FORMAT]!r}')
      model, state = saved['model'], saved['search']
    except (KeyError, TypeError, ValueError, RecursionError) as error:
      if isinstance(error, InputError):
        raise
      raise InputError(f'{where}: is no search state: {error}') from None
    if model != self.fingerprint:
      raise InputError(
        f'{where}: is of model {model!r}, this one is {self.fingerprint!r}'
      )
    try:
      self._searcher.restore(state)
    except InputError as error:
      raise InputError(f'{where}: {error}') from None


def _low(found: CachedSet) -> float:
  """The score of a saved set, minus an error bar."""
  if found.matchness is None or not found.positions:
    return 0.0
  return Estimate(found.matchness * found.positions, found.positions).low
