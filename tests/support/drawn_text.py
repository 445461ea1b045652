"""Draws through the whole engine, weighed against the exact target.

`python tests/support/drawn_text.py` draws 200,000 blocks for each setting;
test_drawn_text draws fewer. For each place in a block (first token, second, ...),
and there for each token before it too, the counts of tokens are compared with their
expectation under the exact target: a full pass of the model over the finished text, no cache, no rounds, and a
warp of its own that sorts, in float64. Given what precedes it, each token is a draw
from its own distribution p, so over all tokens of a stratum the sum of
(one-hot - p) has the covariance sum of (diag(p) - p p'), whatever the text: the
quadratic form is chi-square with as many degrees of freedom as the covariance has
rank (a martingale; the approximation needs many tokens in a stratum).
"""

import functools
import logging
import sys

from flax import nnx
import jax
import numpy as np
import scipy.stats

from swift_jax.config.sampling import SamplingConfig, resolve
from swift_jax.config.settings import DecodeConfig, DraftConfig, ModelConfig
from swift_jax.model import llama
from swift_jax.model import skip_mask as skip_masks
from swift_jax.runtime.engine import Engine

CFG = ModelConfig(
  vocab_size=8,
  hidden_size=12,
  intermediate_size=20,
  num_hidden_layers=3,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=6,
  max_position_embeddings=400,
)
LENGTH = 390
PLACES = 5
# Of one setting: right code is refused once in 10,000 seeds.
FALSE_ALARM = 1e-4
OPEN = {'top_k': 0}  # no cut
SETTINGS = {
  'temperature .6': {**OPEN, 'temperature': 0.6},
  'temperature 1': {**OPEN, 'temperature': 1.0},
  'temperature 1.5': {**OPEN, 'temperature': 1.5},
  'top-k': {'temperature': 1.0, 'top_k': 3},
  'top-p': {**OPEN, 'temperature': 1.0, 'top_p': 0.8},
  'min-p': {**OPEN, 'temperature': 1.5, 'min_p': 0.1},
  'repetition penalty': {
    **OPEN,
    'temperature': 1.0,
    'repetition_penalty': 1.4,
  },
  'all': {
    'temperature': 0.8,
    'top_k': 6,
    'top_p': 0.9,
    'min_p': 0.02,
    'repetition_penalty': 1.2,
  },
}


@functools.cache
def weights():
  """(graphdef, parameters) of a model that is neither sure nor indifferent."""
  graphdef, params = llama.init_model(CFG, 1)
  params = nnx.to_pure_dict(params)

  def scale(path, leaf):
    names = [str(getattr(p, 'key', p)) for p in path]
    is_table = 'embedding' in names or 'lm_head' in names
    return leaf * (22 if is_table or names[-1] == 'kernel' else 1)

  return graphdef, jax.tree_util.tree_map_with_path(scale, params)


def make_engine(has_tree, **changes):
  """An engine that skips both free sublayers when it drafts."""
  draft = DraftConfig(
    **{
      'max_draft_length': 4,
      'confidence_threshold': 0.3,
      'tree': has_tree,
      'tree_widths': (4, 3, 2),
      'tree_bounds': (0.5, 0.8),
      'verify_widths': (3, 7),
      'adaptive': False,
      **changes,
    }
  )
  engine = Engine(CFG, *weights(), draft=draft)
  engine.set_skip_mask(skip_masks.uniform(CFG.num_hidden_layers, 1.0))
  return engine


def blocks(engine, method, batch, count, seed=0, **settings):
  """Texts [N, LENGTH + 1], the prompt's one token first, and each token's place in
  its block, -1 where no text is: `count` blocks or a few more."""
  decode = DecodeConfig(
    method,
    batch_size=batch,
    rounds_per_dispatch=1,
    sampling=SamplingConfig(max_new_tokens=LENGTH, seed=seed, **settings),
  )
  texts, places, made, index = [], [], 0, 0
  while made < count:
    rows = range(index, index + batch)
    session = engine.session([[r % 8] for r in rows], decode, indices=rows)
    text = np.zeros((batch, LENGTH + 1), np.int32)
    text[:, 0] = [r % 8 for r in rows]
    place = np.full((batch, LENGTH + 1), -1)
    at = [1] * batch
    for row, _, tokens in session.run():
      end = at[row] + len(tokens)
      text[row, at[row] : end] = tokens
      place[row, at[row] : end] = range(len(tokens))
      at[row], made = end, made + (len(tokens) > 0)
      if made >= count:
        break
    texts.append(text)
    places.append(place)
    index += batch
  return np.concatenate(texts), np.concatenate(places)


@functools.cache
def _logits():
  graphdef, params = weights()

  @jax.jit
  def logits(tokens):
    model = nnx.merge(graphdef, params)
    none_skipped = skip_masks.none_skipped(CFG.num_hidden_layers)
    hidden, _ = model(tokens, none_skipped)
    return model.logits(hidden)

  return logits


def exact(texts, settings):
  """The target's distribution of each token [N, T, V] given those before it.

  Hugging Face's order, by sorting, in float64.
  """
  cfg = resolve(SamplingConfig(**settings), SamplingConfig()).config
  laws = np.concatenate(
    [np.asarray(_logits()(texts[i : i + 8])) for i in range(0, len(texts), 8)]
  ).astype(np.float64)
  seen = np.eye(8, dtype=bool)[texts]
  seen = np.logical_or.accumulate(seen, axis=1)
  penalty = cfg.repetition_penalty
  laws = np.where(
    seen, np.where(laws < 0, laws * penalty, laws / penalty), laws
  )
  laws /= cfg.temperature
  order = np.argsort(-laws, axis=-1)
  ranked = np.take_along_axis(laws, order, axis=-1)
  probs = np.exp(ranked - ranked[..., :1])
  if cfg.top_k:
    probs[..., cfg.top_k :] = 0
  probs /= probs.sum(-1, keepdims=True)
  above = np.cumsum(probs, axis=-1) - probs
  probs[above >= cfg.top_p] = 0
  probs[probs < cfg.min_p * probs[..., :1]] = 0
  probs /= probs.sum(-1, keepdims=True)
  back = np.zeros_like(probs)
  np.put_along_axis(back, order, probs, axis=-1)
  return back


def p_values(texts, places, settings):
  """One for each place in a block, and for each token before it, None: any,
  where there are enough draws."""
  laws = exact(texts, settings)[:, :-1].reshape(-1, 8)
  before, drawn = texts[:, :-1].ravel(), texts[:, 1:].ravel()
  places = places[:, 1:].ravel()
  found = {}
  live = places >= 0
  impossible = laws[np.arange(len(drawn)), drawn] == 0
  assert not (impossible & live).any(), 'a token of probability 0 was drawn'
  for place in range(PLACES):
    for token in (*range(8), None):
      here = live & (places == place) & ((before == token) | (token is None))
      if here.sum() < 200:
        continue
      p = laws[here]
      excess = (np.eye(8)[drawn[here]] - p).sum(0)
      covariance = np.diag(p.sum(0)) - p.T @ p
      values, vectors = np.linalg.eigh(covariance)
      # Too few draws in a direction for its sum to be normal: it is left out.
      kept = values > 5
      along = (excess @ vectors)[kept] ** 2 / values[kept]
      found[place, token] = scipy.stats.chi2.sf(along.sum(), kept.sum())
  return found


def smallest(found):
  """The smallest p-value times their number (Bonferroni)."""
  return min(found.values()) * len(found)


def main(count=200_000):
  """Prints a line a setting; ends with 1 if one is refused."""
  logging.disable(logging.WARNING)  # that top_k is Hugging Face's
  rejected = 0
  for has_tree in (True, False):
    engine = make_engine(has_tree)
    for name, settings in SETTINGS.items():
      texts, places = blocks(engine, 'swift', 5, count, **settings)
      worst = smallest(p_values(texts, places, settings))
      rejected += worst < FALSE_ALARM
      kind = 'tree' if has_tree else 'chain'
      print(
        f'{kind:6}{name:20}{(places == 0).sum():8d} blocks'
        f' {(places >= 0).sum():8d} tokens  p {min(worst, 1):.4f}',
        flush=True,
      )
  return int(rejected > 0)


if __name__ == '__main__':
  sys.exit(main(*map(int, sys.argv[1:])))
