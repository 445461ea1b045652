"""Replays a search on text that was written before.

SWIFT's text does not depend on the set that drafts. So the stream is written once,
by plain decoding, and every recipe searches on the same stream. The replay scores
the same passes at the same points of the text as a real search. It measures no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import numpy as np

from swift_jax.config.sampling import SamplingConfig
from swift_jax.config.settings import DecodeConfig
from swift_jax.model import skip_mask as skip_masks
from swift_jax.model.llama import GraphDef, Params
from swift_jax.runtime.engine import Engine
from swift_jax.runtime.model import Model
from swift_jax.search import matchness
from swift_jax.search.matchness import Text
from swift_jax.search.searcher import Searcher


@functools.partial(jax.jit, static_argnames=('graphdef',))
def _filled(graphdef: GraphDef, params: Params, cache: Any, tokens: Any) -> Any:
  """Fills the cache with the target's keys and values of all tokens but the last."""
  model = nnx.merge(graphdef, params)
  none_skipped = skip_masks.none_skipped(model.cfg.num_hidden_layers)
  _, updates = model(tokens[:, :-1], none_skipped, cache=cache)
  return cache.write(updates)


class Stream:
  """Texts that one model wrote by plain decoding.

  Attributes:
    results: the engine's results.
  """

  def __init__(
    self, engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: int
  ):
    """Writes `new_tokens` after each prompt; all prompts must be equally long."""
    self._model: Model = engine.model
    self._start = len(prompts[0])
    decode = DecodeConfig(
      method='plain',
      ignore_eos=True,
      batch_size=min(8, len(prompts)),
      sampling=SamplingConfig(
        temperature=0, max_new_tokens=new_tokens, use_generation_config=False
      ),
    )
    self.results = engine.generate(list(prompts), decode)
    texts = [[*r.prompt, *r.tokens] for r in self.results]
    self._tokens = np.asarray(texts, np.int32)

  def text(self, *rows: int) -> Text:
    """Some of the texts as one batch, complete and with its cache."""
    model, tokens = self._model, self._tokens[list(rows)]
    batch, length = tokens.shape
    cache = model.empty_cache(batch, length)
    filled = np.full(batch, length - 1, np.int32)
    prompt = np.full(batch, self._start, np.int32)
    tokens, filled, prompt = model.put((tokens, filled, prompt))
    cache = _filled(model.graphdef, model.params, cache, tokens)
    # The text is greedy: its tokens are the target's argmax.
    return Text(cache.rollback(filled), tokens, tokens, prompt)


@dataclasses.dataclass(frozen=True)
class Pace:
  """The speed at which a stream is written while masks are scored.

  Attributes:
    new_tokens: number of tokens of each text.
    tokens_per_mask: number of tokens written while one mask is scored.
    window: number of positions that are scored.
  """

  new_tokens: int
  tokens_per_mask: int
  window: int

  def windows(self, count: int, first: int, masks: int) -> Iterator[Any]:
    """For each pass the text's index and its number of written tokens; endless."""
    step = self.tokens_per_mask * masks
    number = first
    while True:
      for written in range(self.window, self.new_tokens + 1, step):
        yield number % count, written
      number += 1


def replay(
  model: Model,
  texts: Sequence[Text],
  searcher: Searcher,
  pace: Pace,
  first: int,
  points: Sequence[int],
  importance_masks: int,
) -> dict[int, skip_masks.Bits]:
  """For each point the bits of the set that drafts after so many evaluated masks.

  Args:
    model: the model that wrote the texts.
    texts: complete texts, each of one row.
    searcher: the recipe.
    pace: the speed of the stream.
    first: index of the text with which the stream begins.
    points: numbers of evaluated masks.
    importance_masks: the number of masks for which the sensitivities count.
  """
  masks = searcher.num_candidates
  extra = 0
  found: dict[int, skip_masks.Bits] = {}
  last, before = -1, 0
  if pace.window > pace.new_tokens or not searcher.active:
    raise ValueError('a search with nothing to score')
  for index, written in pace.windows(len(texts), first, masks):
    if index != last:
      searcher.new_text()
      last, before = index, 0
    seen = pace.window if searcher.uses_first_window else written
    text = matchness.as_of(texts[index], seen)
    if searcher.wants_importance:
      slopes = model.scorer.importance(text, pace.window, searcher.skip_ratio)
      searcher.take_importance(slopes)
      extra += importance_masks
    if searcher.wants_process:
      searcher.start_process()
    candidates = searcher.candidates()  # names the incumbent
    evaluated = searcher.evaluations + extra
    for point in points:
      if evaluated + masks > point and point not in found:
        found[point] = searcher.incumbent
    if len(found) == len(points):
      return found
    scores = model.scorer.score(text, candidates, pace.window, 'auto')
    searcher.observe(candidates, scores, written - before)
    before = written
  raise AssertionError('windows never end')
