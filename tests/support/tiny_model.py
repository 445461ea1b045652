"""A small random model whose greedy text does not settle into a loop at once.

Dimensions are different primes or so, so that a transposed axis cannot pass.
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from swift_jax.config.sampling import FIELDS, SamplingConfig
from swift_jax.config.settings import (
  DecodeConfig,
  DraftConfig,
  ModelConfig,
  SearchConfig,
)
from swift_jax.model import kv_cache, llama
from swift_jax.model import skip_mask as skip_masks
from swift_jax.model.skip_mask import SkipMask
from swift_jax.runtime.engine import Engine
from swift_jax.search.matchness import Text

CFG = ModelConfig(
  vocab_size=101,
  hidden_size=22,
  intermediate_size=37,
  num_hidden_layers=5,
  num_attention_heads=6,
  num_key_value_heads=3,
  head_dim=8,
  max_position_embeddings=90,
)
CHUNK = 7


def random_bits(rng: np.random.Generator, ratio: float) -> np.ndarray:
  """The bits of a mask that skips this share of the free sublayers."""
  layers = CFG.num_hidden_layers
  sizes = skip_masks.num_free(layers), skip_masks.num_to_skip(layers, ratio)
  return skip_masks.random(rng, *sizes)


@functools.cache
def weights(cfg: ModelConfig = CFG, seed: int = 0):
  """(graphdef, parameters) with sublayers that matter but do not dominate."""
  graphdef, params = llama.init_model(cfg, seed)
  params = nnx.to_pure_dict(params)

  def scale(path, leaf):
    names = [str(getattr(p, 'key', p)) for p in path]
    if 'embedding' in names or 'lm_head' in names:
      return leaf * 25
    return leaf * 25 if names[-1] == 'kernel' else leaf

  return graphdef, jax.tree_util.tree_map_with_path(scale, params)


def engine(
  mask: SkipMask | None = None, eos=(), tokenizer=None, search=None, **draft
) -> Engine:
  """An engine on the tiny model; drafts with `mask`, else searches.

  Without the Gaussian process, which takes seconds to compile, unless asked.
  """
  searching = {
    'bayes_interval': 0,
    'context_window': 11,
    'num_candidates': 3,
    'scoring': 'vmap',  # `auto` goes by the clock, and the two round apart
    'skip_ratio': 0.5,
    'time_budget': 1.0,
  }
  searching = SearchConfig(**{**searching, **(search or {})})
  draft = {'adaptive': False, **draft}
  drafting = DraftConfig(verify_widths=(4, 8, 32), **draft)
  defaults = SamplingConfig(eos_token_id=tuple(eos))
  made = Engine(CFG, *weights(), tokenizer, defaults, drafting, searching)
  if mask is not None:
    made.set_skip_mask(mask)
  return made


def decode(method='swift', **changes) -> DecodeConfig:
  """Settings of a call; names of `SamplingConfig` go there."""
  settings = {'batch_size': 3, 'prefill_chunk': CHUNK, **changes}
  chosen = {name: settings.pop(name) for name in FIELDS if name in settings}
  chosen = SamplingConfig(**{'max_new_tokens': 40, **chosen})
  return DecodeConfig(method=method, sampling=chosen, **settings)


@functools.cache
def _next_token():
  graphdef, params = weights()

  @jax.jit
  def next_token(tokens, length, skip_mask):
    model = nnx.merge(graphdef, params)
    hidden, _ = model(tokens[None], skip_mask)
    return jnp.argmax(model.logits(hidden[0, length - 1]))

  return next_token


def reference(prompt, max_new_tokens, eos=()) -> list[int]:
  """Greedy text by a full pass a token: no cache, no rounds, no batch."""
  tokens = np.zeros(CFG.max_position_embeddings, np.int32)
  tokens[: len(prompt)] = prompt
  mask = SkipMask(np.zeros(5, bool), np.zeros(5, bool))
  end = min(len(prompt) + max_new_tokens, CFG.max_position_embeddings)
  for length in range(len(prompt), end):
    tokens[length] = _next_token()(tokens, length, mask)
    if tokens[length] in eos:
      end = length + 1
      break
  return tokens[len(prompt) : end].tolist()


@functools.partial(jax.jit, static_argnames='graphdef')
def _run(graphdef, params, tokens, mask, cache):
  model = nnx.merge(graphdef, params)
  hidden, updates = model(tokens, mask, cache=cache)
  return model.logits(hidden), updates


def run(tokens, mask, cache=None):
  """Logits of tokens [B, T] on top of a cache, and what they add to it."""
  return _run(*weights(), jnp.asarray(tokens), mask, cache)


def text(tokens, lengths, prompts, target=None) -> Text:
  """What a batch has written: `lengths` of the tokens [B, S] of each row."""
  tokens = jnp.asarray(tokens)
  batch, slots = tokens.shape
  cache = kv_cache.empty(5, batch, 3, slots, 8, jnp.dtype('float32'))
  mask = SkipMask(np.zeros(5, bool), np.zeros(5, bool))
  cache = cache.write(run(tokens, mask, cache)[1])
  return Text(
    cache.rollback(jnp.asarray(lengths) - 1),
    tokens,
    tokens if target is None else jnp.asarray(target),
    jnp.asarray(prompts),
  )


class Letters:
  """A tokenizer of one or two letters a token; enough for stop strings."""

  def decode(self, ids, **_):
    return ''.join(chr(ord('a') + i % 23) + 'xyz'[i % 3] * (i % 2) for i in ids)


PROMPTS_OF_DIFFERENT_LENGTH = [[5], [9, 8, 7, 6, 5, 4, 3], list(range(20, 40))]
