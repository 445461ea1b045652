"""Weights as int8 with a scale for each output: a quarter of float32's bytes.

The largest weight of an output is 127 of its scale, the others are rounded to whole
numbers; embedding, head and norms stay as they are. It is another model than the one
that was loaded, near to it, and SWIFT writes what plain decoding writes with it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp

from swift_jax.config.settings import ModelConfig
from swift_jax.model import llama
from swift_jax.model.llama import GraphDef
from swift_jax.typing import Array, Float

_LARGEST = 127


def quantise(
  cfg: ModelConfig, params: dict[str, Any]
) -> tuple[ModelConfig, GraphDef, dict[str, Any]]:
  """The model with int8 projections.

  Args:
    cfg: of `params`, which are as `checkpoint.load.load_params` gives them, on one
      device. They are given away, layer by layer.
  """
  cfg = dataclasses.replace(cfg, weights='int8')
  layers = params['layers']
  for i in layers:
    layers[i] = _layer(layers[i])
  return cfg, llama.abstract_model(cfg)[0], params


@jax.jit
def _layer(params: dict[str, Any]) -> dict[str, Any]:
  made = {}
  for path, value in traverse_util.flatten_dict(params).items():
    made[path] = value
    if path[-1] == 'kernel':
      made[path], made[*path[:-1], 'scale'] = rounded(value)
  return traverse_util.unflatten_dict(made)


def rounded(kernel: Array) -> tuple[Array, Float[Array, '*n']]:
  """Whole numbers, int8[D, *N], and their scales; 1 where all weights are zero.

  Args:
    kernel: [D, *N].
  """
  kernel = kernel.astype(jnp.float32)
  largest = jnp.abs(kernel).max(0)
  scale = jnp.where(largest > 0, largest / _LARGEST, 1)
  return jnp.rint(kernel / scale).astype(jnp.int8), scale
