"""A search on the host alone: masks whose worth is known, on texts that are not."""

import numpy as np

from swift_jax.config.settings import SearchConfig
from swift_jax.model import skip_mask as skip_masks
from swift_jax.search.matchness import Scores
from swift_jax.search.paper import recipe as paper
from swift_jax.search.searcher import Searcher

# The default settings' sizes everywhere: the process compiles once for all tests.
LAYERS, FREE, SKIPPED, COUNT = 12, 20, 9, 8
# Nats a position that each sublayer is worth; the best mask skips the least.
COST = np.random.default_rng(4).exponential(0.1, FREE)
BEST = -np.sort(COST)[:SKIPPED].sum()


def searcher(**changes) -> Searcher:
  """Without the process, unless asked."""
  settings = {'bayes_interval': 0, 'num_candidates': COUNT, **changes}
  return paper.make_searcher(SearchConfig(**settings), LAYERS)


def worth(bits: np.ndarray) -> np.ndarray:
  """Mean log-probability that a mask would have on all text."""
  return -(bits @ COST)


def scores(
  candidates: np.ndarray, rng: np.random.Generator, positions: int = 50
) -> Scores:
  """On a text whose positions are easy or hard for all, and a bit of luck."""
  value = worth(candidates)[:, None, None]
  text = rng.normal(0, 0.5, positions)
  luck = rng.normal(0, 0.2, (len(value), 1, positions))
  log_probs = np.minimum(value + text + luck, 0).astype(np.float32)
  return Scores(
    hits=log_probs > -0.7,
    log_probs=log_probs,
    confidence=np.exp(log_probs),
    compared=np.ones((1, positions), bool),
  )


def with_hits(*hits: int, positions: int = 50) -> Scores:
  """Masks of which each hits so many, all of them on the first positions."""
  hit = np.arange(positions) < np.array(hits)[:, None, None]
  log_probs = np.where(hit, -0.1, -2.5).astype(np.float32)
  compared = np.ones((1, positions), bool)
  return Scores(hit, log_probs, np.exp(log_probs), compared)


def run(search: Searcher, passes: int, seed: int = 0) -> list[np.ndarray]:
  """Passes as long as it goes on, each over its own text; their candidates."""
  seen = []
  while search.active and len(seen) < passes:
    rng = np.random.default_rng([seed, search.iterations])
    candidates = search.candidates()
    seen.append(candidates)
    search.observe(candidates, scores(candidates, rng), 20)
  return seen


def random_bits(rng: np.random.Generator, count: int) -> np.ndarray:
  """Masks of the right size."""
  return np.stack([skip_masks.random(rng, FREE, SKIPPED) for _ in range(count)])
