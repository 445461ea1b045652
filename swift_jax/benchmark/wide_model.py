"""A real model made wider with zeros: the same text at a wide model's cost.

What is accepted is a trained model's, what passes cost is that of a width where
weights are read from memory. Every weight that is added is zero, and is read and
multiplied like any other; the layers stay as many.
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
  """`factor` times as many heads and hidden units.

  Raises:
    InputError: the norms could not be made up for without rounding.
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
  """An engine whose first hidden units are those of the one given.

  Args:
    draft: how it drafts.

  Raises:
    InputError: the factor, and what is wrong with it.
  """
  model, cfg = engine.model, widened_config(engine.cfg, factor)
  graphdef, shapes = llama.abstract_model(cfg)

  def pad(path: tuple, weight: Array, target: jax.ShapeDtypeStruct) -> Array:
    # The mean square is over more units, so the norm's scale takes their root.
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
