"""Measures the search on a model's own text.

Recipes are compared by a replay (see `replay.py`): each recipe searches on one
stream, and its sets are scored on texts that no search has seen. The other
measurements run the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import Any

import jax
import numpy as np
from scipy import stats

from swift_jax.benchmark.measuring import Compilations
from swift_jax.benchmark.replay import Pace, replay
from swift_jax.config.settings import DecodeConfig, DraftConfig, SearchConfig
from swift_jax.model import skip_mask as skip_masks
from swift_jax.runtime.engine import Engine
from swift_jax.runtime.metrics import distinct_ngrams, ratio
from swift_jax.runtime.model import Model
from swift_jax.search import matchness, proposals
from swift_jax.search.matchness import Text
from swift_jax.search.paper import recipe as paper
from swift_jax.search.searcher import Searcher
from swift_jax.search.surrogate import Surrogate

Prompts = Sequence[Sequence[int]]
POINTS = (50, 100, 200, 400)


class RandomOnly(Searcher):
  """A search that scores random masks against the incumbent."""

  def plan(self) -> list[tuple[int, proposals.Stream]]:
    masks = proposals.random(self._rng, self._free, self._skipped)
    return [(self.num_candidates, masks)]


class NeighboursOnly(Searcher):
  """A search uphill from the uniform set, by exchanges of two sublayers."""

  def plan(self) -> list[tuple[int, proposals.Stream]]:
    masks = proposals.neighbours(self._rng, self.incumbent)
    return [(self.num_candidates, masks)]


# For each recipe's name its searcher, and its changes to the given settings.
RECIPES: Mapping[str, tuple[Callable[..., Searcher], dict[str, Any]]] = {
  'random only': (RandomOnly, {'bayes_interval': 0, 'importance': False}),
  'paper': (paper.PaperSearcher, {'recipe': 'paper'}),
  'neighbours only': (
    NeighboursOnly,
    {'bayes_interval': 0, 'importance': False},
  ),
  'no importance': (Searcher, {'importance': False}),
  'ours': (Searcher, {}),
}


class Fresh:
  """Scores sets on texts that no search sees, in the first and the last window."""

  def __init__(
    self, model: Model, texts: Sequence[Text], window: int, draft: DraftConfig
  ):
    self._model, self._texts, self._window = model, texts, window
    self._draft = draft
    self._known: dict[bytes, tuple[float, float]] = {}

  def matchness(self, bits: skip_masks.Bits) -> float:
    """The share of positions that the draft hits."""
    return self._figures(bits)[0]

  def accepted_length(self, bits: skip_masks.Bits) -> float:
    """Tokens of a round on the chain, under the draft's settings."""
    return self._figures(bits)[1]

  def _figures(self, bits: skip_masks.Bits) -> tuple[float, float]:
    name = bits.tobytes()
    if name not in self._known:
      hits = positions = rounds = 0
      cfg = self._draft
      limits = cfg.confidence_threshold, cfg.max_draft_length
      for text in self._texts:
        for seen in (text, matchness.as_of(text, self._window)):
          scores = self._model.scorer.score(
            seen, bits[None], self._window, 'map'
          )
          hits += int(scores.num_hits()[0])
          positions += scores.positions
          rounds += scores.positions / scores.accepted_lengths(*limits)[0]
      self._known[name] = hits / positions, float(positions / rounds)
    return self._known[name]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The results of the recipes.

  Attributes:
    fresh: by recipe the sets' matchness on fresh text, float[seeds, points].
    accepted_lengths: for each recipe the tokens a round that its last sets would
      bring on fresh text (see `Scores.accepted_lengths`), the mean over seeds.
    found: the last sets of the recipe `ours`, bool[seeds, D].
  """

  fresh: dict[str, np.ndarray]
  accepted_lengths: dict[str, float]
  found: np.ndarray


def compare(
  engine: Engine,
  texts: Sequence[Text],
  fresh: Fresh,
  pace: Pace,
  seeds: int,
  progress: Callable[[str], None],
) -> Comparison:
  """Runs every recipe with every seed.

  A seed also chooses the text with which the stream begins. The search's stops are
  switched off, so that all recipes reach the last point.
  """
  results: dict[str, np.ndarray] = {}
  lengths: dict[str, float] = {}
  found = []
  layers = engine.cfg.num_hidden_layers
  endless = dataclasses.replace(
    engine.searcher.cfg,
    target_matchness=1.0,
    patience=10**6,
    max_iterations=10**6,
    time_budget=1.0,
    cache='',
  )
  cost = importance_cost(engine.model, texts[0], endless)
  for name, (make, changes) in RECIPES.items():
    progress(name)
    rows, last = [], []
    for seed in range(seeds):
      cfg = dataclasses.replace(endless, seed=seed, **changes)
      sets = replay(
        engine.model,
        texts,
        make(cfg, layers),
        pace,
        first=seed * len(texts) // seeds,
        points=POINTS,
        importance_masks=cost,
      )
      rows.append([fresh.matchness(sets[point]) for point in POINTS])
      last.append(fresh.accepted_length(sets[POINTS[-1]]))
      if name == 'ours':
        found.append(sets[POINTS[-1]])
    results[name] = np.array(rows)
    lengths[name] = float(np.mean(last))
  return Comparison(results, lengths, np.array(found))


def importance_cost(model: Model, text: Text, cfg: SearchConfig) -> int:
  """The number of scored masks that take as long as the sensitivities."""
  count, window = cfg.num_candidates, cfg.context_window
  layers = len(text.cache.k)
  uniform = skip_masks.uniform(layers, cfg.skip_ratio).bits()
  masks = np.stack([uniform] * count)

  def scores() -> None:
    model.scorer.score(text, masks, window, 'auto')

  def slopes() -> None:
    model.scorer.importance(text, window, cfg.skip_ratio)

  per_mask = _seconds(scores) / count
  return max(1, round(_seconds(slopes) / per_mask))


def _seconds(run: Callable[[], None], repeats: int = 5) -> float:
  """Median seconds of a run, after a first run that compiles."""
  run()
  taken = []
  for _ in range(repeats):
    started = time.perf_counter()
    run()
    taken.append(time.perf_counter() - started)
  return float(np.median(taken))


def importance_figures(
  engine: Engine, texts: Sequence[Text], found: np.ndarray, window: int
) -> dict[str, float]:
  """Rank correlation of two importances with how often each sublayer was kept.

  One importance is the derivative with which the search begins. The other is
  leave-one-out: the loss of closeness when that sublayer alone is skipped. Each is
  taken on one window of a text, and the correlation is the mean over texts.

  Args:
    found: last sets of several searches, bool[seeds, D].
  """
  kept = 1 - found.mean(0)
  model, ratio_ = engine.model, engine.searcher.cfg.skip_ratio
  alone = np.eye(found.shape[1], dtype=bool)
  both: dict[str, list[float]] = {'derivative': [], 'leave_one_out': []}
  for text in texts:
    slopes = model.scorer.importance(text, window, ratio_)
    scores = model.scorer.score(text, alone, window, 'map')
    losses = -scores.closeness().mean(1)
    for name, values in zip(both, (slopes, losses), strict=True):
      both[name].append(_rank_correlation(values, kept))
  return {name: float(np.mean(values)) for name, values in both.items()}


def _rank_correlation(one: np.ndarray, two: np.ndarray) -> float:
  """Spearman's rank correlation; 0 if one of the arrays does not vary."""
  if np.ptp(one) == 0 or np.ptp(two) == 0:
    return 0.0
  return float(stats.spearmanr(one, two).statistic)


def stream(
  plain: DecodeConfig, swift: DecodeConfig, engine: Engine, prompts: Prompts
) -> dict[str, Any]:
  """Continues prompts by plain decoding and by SWIFT from a cold start, in turns."""
  longest = max(map(len, prompts))
  for decode in (plain, swift):
    engine.warmup(decode, longest)
  runs: dict[str, list[Any]] = {'plain': [], 'swift': []}
  for number, prompt in enumerate(prompts):
    pair = [('plain', plain), ('swift', swift)]
    for name, decode in pair if number % 2 else reversed(pair):
      runs[name] += engine.generate([prompt], decode)
  pairs = zip(runs['plain'], runs['swift'], strict=True)
  total = {name: _totals(results) for name, results in runs.items()}
  took = {
    name: sum(figures['seconds'].values()) for name, figures in total.items()
  }
  grams = [distinct_ngrams(r.tokens) for r in runs['plain']]
  return {
    'plain_seconds': took['plain'],
    'swift_seconds': took['swift'],
    'swift_over_plain': took['plain'] / took['swift'],
    'search_share': total['swift']['seconds']['search'] / took['swift'],
    'acceptance': total['swift']['acceptance'],
    'mean_accepted_length': total['swift']['mean_accepted_length'],
    'identical': all(a.tokens == b.tokens for a, b in pairs),
    'passes': engine.searcher.iterations,
    'process_started': engine.searcher.has_process,
    'new_tokens': total['swift']['new_tokens'],
    'distinct_4_grams': float(np.mean([g for g in grams if g is not None])),
  }


def _totals(results: Sequence[Any]) -> dict[str, Any]:
  def total(name: str) -> float:
    return sum(getattr(r.metrics, name) for r in results)

  return {
    'seconds': {
      phase: total(f'{phase}_s') for phase in ('prefill', 'decode', 'search')
    },
    'new_tokens': total('new_tokens'),
    'acceptance': ratio(total('accepted'), total('drafted')),
    'mean_accepted_length': ratio(total('new_tokens'), total('verify_passes')),
  }


def change_of_domain(
  make_engine: Callable[..., Engine],
  decode: DecodeConfig,
  first: Prompts,
  second: Prompts,
) -> dict[str, dict[str, Any]]:
  """Acceptance before, at and after a change of the prompts' kind.

  It is measured with and without restart. The search has no limit on its time, and
  it has ended when the change comes. `at`, `later` and `after` are thirds of the
  prompts `second`.
  """
  figures = {}
  third = len(second) // 3
  for name, restart in (('restart', True), ('no restart', False)):
    engine = make_engine(restart=restart)
    searcher = engine.searcher
    engine.warmup(decode, max(map(len, [*first, *second])))
    half = len(first) // 2
    engine.generate(list(first[:half]), decode)
    searcher.rest()
    phases = {
      'before': first[half:],
      'at': second[:third],
      'later': second[third : 2 * third],
      'after': second[2 * third :],
    }
    seen: dict[str, Any] = {}
    for phase, prompts in phases.items():
      results = engine.generate(list(prompts), decode)
      seen[phase] = _totals(results)['acceptance']
      if phase == 'before':
        seen['restarts_before'] = searcher.restarts
    seen['restarts'] = searcher.restarts - seen['restarts_before']
    figures[name] = seen
  return figures


def suggestion_ms(
  num_layers: int, skip_ratio: float, repeats: int = 15
) -> float:
  """Milliseconds of a compiled suggestion of 8 masks with a full buffer."""
  process = _full_process(num_layers, skip_ratio)
  incumbent = skip_masks.uniform(num_layers, skip_ratio).bits()

  def suggest() -> None:
    process.start(incumbent)
    process.collect()

  return _seconds(suggest, repeats) * 1e3


def _full_process(num_layers: int, skip_ratio: float) -> Surrogate:
  """A Gaussian process whose buffer is full of random masks."""
  rng = np.random.default_rng(0)
  free = skip_masks.num_free(num_layers)
  skipped = skip_masks.num_to_skip(num_layers, skip_ratio)
  process = Surrogate(free, skipped)
  for _ in range(16):
    masks = [skip_masks.random(rng, free, skipped) for _ in range(8)]
    process.observe(np.array(masks), rng.normal(-1, 0.2, 8), np.full(8, 0.005))
  return process


def overlap(
  engine: Engine,
  decode: DecodeConfig,
  prompt: Sequence[int],
  repeats: int = 15,
) -> dict[str, float]:
  """How much of a suggestion's time is hidden by rounds that run meanwhile.

  Medians in milliseconds: of four rounds, of a suggestion, of both at once, and of
  the wait for the suggestion after the rounds have ended (`waiting`).
  """
  layers, cfg = engine.cfg.num_hidden_layers, engine.searcher.cfg
  process = _full_process(layers, cfg.skip_ratio)
  incumbent = engine.searcher.incumbent
  session = engine.session([prompt], decode)
  kept = jax.device_get(session.state)
  taken: dict[str, list[float]] = {
    name: [] for name in ('rounds', 'suggestion', 'both', 'waiting')
  }
  for _ in range(repeats + 1):
    for name in ('rounds', 'suggestion', 'both'):
      # Rounds consume the state: each repetition begins with a copy of the first.
      session.state = jax.block_until_ready(session.model.put(kept))
      started = time.perf_counter()
      if name != 'rounds':
        process.start(incumbent)
      if name != 'suggestion':
        jax.block_until_ready(session.advance(4))
      rounds_end = time.perf_counter()
      if name != 'rounds':
        process.collect()
      ended = time.perf_counter()
      taken[name].append(ended - started)
      if name == 'both':
        taken['waiting'].append(ended - rounds_end)
  # The first repetition compiles, and is left out.
  return {k: float(np.median(v[1:])) * 1e3 for k, v in taken.items()}


def compilations(
  engine: Engine,
  decode: DecodeConfig,
  prompts: Prompts,
  points: Sequence[int] = (10, 400),
) -> dict[str, int]:
  """For each point the programs compiled between warm-up and so many evaluations."""
  jax.clear_caches()  # programs that earlier measurements compiled must count
  count = Compilations()
  engine.warmup(decode, max(map(len, prompts)))
  warm = count.total
  seen = {}
  number = 0
  for wanted in points:
    while engine.searcher.evaluations < wanted:
      engine.generate([prompts[number % len(prompts)]], decode)
      number += 1
    seen[f'after_{wanted}'] = count.total - warm
  return {'warm_up': warm, **seen}
