"""Weights as int8 with a scale for each output: a quarter of float32's bytes.

The scale of an output makes its largest weight 127; the other weights are
rounded to integers. Embedding, head and norms stay as they are. The result is
another model than the loaded one, close to it. With it too, SWIFT writes plain
decoding's text.
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
    cfg: the configuration of `params`.
    params: as `checkpoint.load.load_params` returns them, on one device. They
      are replaced layer by layer, and must not be used again.
  """
  cfg = dataclasses.replace(cfg, weights='int8')
  layers = params['layers']
  for i in layers:
    layers[i] = _layer(layers[i])
  return cfg, llama.abstract_model(cfg)[0], params


@jax.jit
def _layer(params: dict[str, Any]) -> dict[str, Any]:
  """One layer's parameters, with int8 kernels and their scales."""
  quantised = {}
  for path, value in traverse_util.flatten_dict(params).items():
    quantised[path] = value
    if path[-1] == 'kernel':
      quantised[path], quantised[*path[:-1], 'scale'] = rounded(value)
  return traverse_util.unflatten_dict(quantised)


def rounded(kernel: Array) -> tuple[Array, Float[Array, '*n']]:
  """The rounded weights, int8[D, *N], and the scales of the outputs, [*N].

  An output whose weights are all zero has the scale 1.

  Args:
    kernel: [D, *N].
  """
  kernel = kernel.astype(jnp.float32)
  largest = jnp.abs(kernel).max(0)
  scale = jnp.where(largest > 0, largest / _LARGEST, 1)
  return jnp.rint(kernel / scale).astype(jnp.int8), scale
