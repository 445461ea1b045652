"""Weights as int8 with a scale for each output: a quarter of float32's bytes.

The scale of an output makes its largest weight 127; the other weights are
rounded to integers. Embedding, head and norms stay as they are. The result is
another model than the loaded one, close to it. With it too, SWIFT writes plain
decoding's text.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from flax import nnx, traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from swift_jax.checkpoint import forms
from swift_jax.config.settings import ModelConfig
from swift_jax.model import llama
from swift_jax.model.llama import GraphDef
from swift_jax.parallel import sharding
from swift_jax.typing import Array, Float

_LARGEST = 127


def quantise(
  cfg: ModelConfig, params: dict[str, Any], mesh: Mesh | None = None
) -> tuple[ModelConfig, GraphDef, dict[str, Any]]:
  """The model with int8 projections.

  Args:
    cfg: the configuration of `params`.
    params: as `load.load_params` returns them. Kernels are replaced one after
      another; the tree must not be used again.
    mesh: their devices; None: the default device.
  """
  cfg = dataclasses.replace(cfg, weights='int8')
  graphdef, shapes = llama.abstract_model(cfg, sharding.platform(mesh))
  places = traverse_util.flatten_dict(
    sharding.param_shardings(nnx.to_pure_dict(shapes), mesh)
  )
  flat = traverse_util.flatten_dict(params)
  params.clear()  # so that a kernel is freed when it is replaced
  for path in list(flat):
    if path[0] == 'layers' and path[-1] == 'kernel':
      scale = *path[:-1], 'scale'
      is_stack = forms.is_stacked(path)
      axis = 1 if is_stack and forms.is_turned(path) else 0
      program = _rounding(places[path], places[scale], axis, is_stack)
      flat[path], flat[scale] = program(flat[path])
  return cfg, graphdef, traverse_util.unflatten_dict(flat)


@functools.cache
def _rounding(
  kernel: Sharding, scale: Sharding, axis: int, is_stack: bool
) -> Any:
  """The program that rounds a kernel, or those of a stack one by one."""
  one = functools.partial(rounded, axis=axis)
  several = functools.partial(jax.lax.map, one)
  return jax.jit(several if is_stack else one, out_shardings=(kernel, scale))


def rounded(kernel: Array, axis: int = 0) -> tuple[Array, Float[Array, '*n']]:
  """The rounded weights, int8, and the scales of the outputs, [*N].

  An output whose weights are all zero has the scale 1.

  Args:
    kernel: [D, *N], or [N, D].
    axis: D.
  """
  kernel = kernel.astype(jnp.float32)
  largest = jnp.abs(kernel).max(axis, keepdims=True)
  scale = jnp.where(largest > 0, largest / _LARGEST, 1)
  return jnp.rint(kernel / scale).astype(jnp.int8), scale.squeeze(axis)
