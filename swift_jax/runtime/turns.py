"""The search's turns while a batch is written: when one is due, and its work."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import time

import jax
import numpy as np

from swift_jax.decoding.drafting import DraftShapes
from swift_jax.decoding.state import DecodeState
from swift_jax.model.skip_mask import Candidates
from swift_jax.parallel import sharding
from swift_jax.runtime.model import Model
from swift_jax.runtime.rows import Rows
from swift_jax.search import matchness
from swift_jax.search.searcher import STARTING_SECONDS, Searcher

_COMPILING_S = 10.0  # about what the search's programs take
_NO_TEXT = 2**30  # as a prompt's length: nothing after it counts


@dataclasses.dataclass
class Seconds:
  """Time of a batch by phase."""

  prefill: float = 0.0
  decode: float = 0.0
  # A sample of `decode`: only rounds in two halves are timed so.
  draft: float = 0.0
  verify: float = 0.0
  search: float = 0.0


class Turns:
  """The search's turns in one batch.

  Attributes:
    scored_at: tokens of each row when it was last scored.
  """

  def __init__(
    self,
    model: Model,
    searcher: Searcher,
    rows: Rows,
    seconds: Seconds,
    shapes: DraftShapes,
  ):
    """Tells the search that another text begins.

    Args:
      seconds: times of the batch; the search's time is added to them.
    """
    self._model, self._searcher, self._rows = model, searcher, rows
    self._seconds, self._shapes = seconds, shapes
    self.scored_at = [0] * len(rows)
    self._due = searcher.cfg.opt_interval  # rounds until the next turn
    searcher.new_text()

  def may_come(self) -> bool:
    """Whether the search goes on, may win anything and can afford a pass."""
    searcher, widths = self._searcher, self._shapes.verify_widths
    governor, cfg = searcher.governor, searcher.cfg
    layers = self._model.cfg.num_hidden_layers
    if not searcher.active or not governor.may_win(
      layers, int(searcher.incumbent.sum()), widths
    ):
      return False
    may_score = governor.may_score(
      searcher.num_candidates,
      cfg.context_window,
      widths,
      searcher.keeps_reserve,
    )
    return sharding.agreed(may_score, self._model.mesh)

  def rounds_left(self, most: int) -> int:
    """Rounds of the next dispatch, so that a turn comes when it is due."""
    return max(1, min(most, self._due))

  def take(self, state: DecodeState, rounds: int, may_come: bool) -> None:
    """Counts the rounds of a dispatch, and scores if a turn is due.

    Args:
      may_come: the answer of `may_come` before the dispatch.
    """
    self._due -= rounds
    # The reader of the text may have ended the search.
    if may_come and self._searcher.active and self._due <= 0:
      self.search(state)
      self._due = self._searcher.cfg.opt_interval

  @contextlib.contextmanager
  def timed(self, is_pass: bool = False) -> Iterator[None]:
    """Counts the time within it as the search's."""
    started = time.perf_counter()
    yield
    taken = time.perf_counter() - started
    self._seconds.search += taken
    self._searcher.governor.pay(taken, is_pass)

  def search(self, state: DecodeState) -> None:
    """One scoring pass, if the batch has written a window of text and more."""
    written = self._rows.written
    fresh = sum(written) - sum(self.scored_at)
    searcher = self._searcher
    if not fresh or sum(written) < searcher.cfg.context_window:
      return
    with self.timed():
      if not self._is_compiled(state):
        return
      self.prepare(state)
    with self.timed(is_pass=True):
      candidates = searcher.candidates()
      searcher.observe(candidates, self.score(state, candidates), fresh)
    self.scored_at = written

  def warm_up(self, state: DecodeState) -> None:
    """Compiles a scoring pass before any text is written."""
    self.prepare(state)
    candidates = self._searcher.candidates()
    scores = self.score(state, candidates)
    everything = np.ones_like(scores.compared)
    scores = scores._replace(compared=everything)
    self._searcher.observe(candidates, scores, 1)
    self._searcher.state()  # waits for the Gaussian process, where there is one

  def prepare(self, state: DecodeState) -> None:
    """Computes, once, what the search needs beside scores.

    This time is not counted as a pass's.
    """
    searcher, text = self._searcher, self._text(state)
    scorer, window = self._model.scorer, searcher.cfg.context_window
    if searcher.wants_process and sharding.agreed(
      searcher.governor.affords(STARTING_SECONDS), self._model.mesh
    ):
      # The import of gpjax makes arrays.
      with jax.transfer_guard('allow'):
        searcher.start_process()
    if searcher.wants_importance:
      ratio = searcher.skip_ratio
      searcher.take_importance(scorer.importance(text, window, ratio))
    scorer.choose(text, self._like_candidates(), window, searcher.cfg.scoring)

  def _like_candidates(self) -> Candidates:
    """As many masks as a pass scores, to choose and compile by."""
    searcher = self._searcher
    return np.stack([searcher.incumbent] * searcher.num_candidates)

  def _is_compiled(self, state: DecodeState) -> bool:
    """Whether the search's programs are there.

    They are compiled beside the text. This begins when the text has been written
    for as long as the compilation takes, since a run may end at any moment.
    """
    searcher, mesh = self._searcher, self._model.mesh
    governor = searcher.governor
    # On several devices two threads might start programs in two orders, so the
    # programs are compiled where they are called. So they are where nothing may
    # depend on the clock.
    if governor.is_unlimited or (mesh is not None and mesh.size > 1):
      return True
    return self._model.scorer.is_ready(
      self._text(state),
      self._like_candidates(),
      searcher.cfg.context_window,
      searcher.cfg.scoring,
      searcher.wants_importance,
      begins=governor.has_written_for(_COMPILING_S),
    )

  def score(
    self, state: DecodeState, candidates: Candidates
  ) -> matchness.Scores:
    """The candidates' scores on the batch's newest text, on the host."""
    cfg, text = self._searcher.cfg, self._text(state)
    return self._model.scorer.score(
      text, candidates, cfg.context_window, cfg.scoring
    )

  def _text(self, state: DecodeState) -> matchness.Text:
    """The text to score, without rows that wrote nothing since their last score."""
    prompts = np.full(len(state.done), _NO_TEXT, np.int32)
    for b, row in enumerate(self._rows):
      if len(row.text.tokens) > self.scored_at[b]:
        prompts[b] = len(row.prompt)
    text = matchness.Text(
      state.cache, state.tokens, state.target, self._model.put(prompts)
    )
    if self._searcher.uses_first_window:
      text = matchness.as_of(text, self._searcher.cfg.context_window)
    return text
