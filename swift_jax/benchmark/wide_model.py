"""Makes a real model wider with zeros: the same text at a wide model's cost.

The acceptance is a trained model's. The cost of passes is that of a width at which
weights are read from memory. Every added weight is zero; it is read and multiplied
like any other weight. The number of layers stays.
"""

from __future__ import annotations

import dataclasses
import math

from flax import nnx
import jax
import jax.numpy as jnp

from swift_jax.config.settings import DraftConfig, ModelConfig
from swift_jax.errors import InputError
from swift_jax.model import llama
from swift_jax.runtime.engine import Engine
from swift_jax.typing import Array


def widened_config(cfg: ModelConfig, factor: int) -> ModelConfig:
  """A config with `factor` times as many heads and hidden units.

  Raises:
    InputError: `factor` is no power of 4. Only for such a factor the norms can be
      compensated without rounding.
  """
  root = math.isqrt(max(factor, 0))
  if factor < 1 or root * root != factor or root & (root - 1):
    raise InputError(f'{factor}: expected a power of 4')
  return dataclasses.replace(
    cfg,
    hidden_size=cfg.hidden_size * factor,
    intermediate_size=cfg.intermediate_size * factor,
    num_attention_heads=cfg.num_attention_heads * factor,
    num_key_value_heads=cfg.num_key_value_heads * factor,
    rms_norm_eps=cfg.rms_norm_eps / factor,
  )


def widened(
  engine: Engine, factor: int, draft: DraftConfig | None = None
) -> Engine:
  """An engine whose first hidden units are those of `engine`.

  Args:
    engine: the engine of the narrow model.
    factor: how many times as wide the model becomes.
    draft: settings of the new engine's drafts.

  Raises:
    InputError: `factor` is no power of 4; the error names it.
  """
  model, cfg = engine.model, widened_config(engine.cfg, factor)
  graphdef, shapes = llama.abstract_model(cfg)

  def pad(path: tuple, weight: Array, target: jax.ShapeDtypeStruct) -> Array:
    # The mean square is over `factor` times as many units: the norm's scale is
    # divided by the root of `factor`.
    if path[-1].key == 'scale' and 'norm' in str(path[-2].key):
      weight = weight / math.isqrt(factor)
    more = zip(target.shape, weight.shape, strict=True)
    return jnp.pad(weight, [(0, big - small) for big, small in more])

  padded = jax.tree_util.tree_map_with_path(
    pad, model.params, nnx.to_pure_dict(shapes)
  )
  tokenizer, defaults = engine.tokenizer, engine.defaults
  search = engine.searcher.cfg
  return Engine(
    cfg, graphdef, padded, tokenizer, defaults, draft, search, model.mesh
  )
