"""Parameters that a mesh does not divide, made larger so that it does.

With more devices along `tensor` than key/value heads, each head stands several times
(`ModelConfig.kv_copies`), next to itself, so that every device has the one that its
queries need. A vocabulary that does not divide gets rows of zeros behind it
(`ModelConfig.vocab_padding`), whose logits are -inf. Files know of neither.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from swift_jax.checkpoint.forms import Path
from swift_jax.config.settings import ModelConfig
from swift_jax.typing import Array


def fitted(cfg: ModelConfig, mesh: Mesh | None) -> ModelConfig:
  """The model as the mesh's devices hold it.

  What cannot be made to fit stays; `sharding.check_mesh` refuses it.
  """
  parts = 1 if mesh is None else mesh.shape['tensor']
  copies = parts // math.gcd(cfg.num_key_value_heads, parts)
  if cfg.num_attention_heads % (cfg.num_key_value_heads * copies):
    copies = 1
  padding = -cfg.vocab_size % parts
  return dataclasses.replace(cfg, kv_copies=copies, vocab_padding=padding)


def as_in_files(cfg: ModelConfig) -> ModelConfig:
  """The inverse of `fitted`."""
  return dataclasses.replace(cfg, kv_copies=1, vocab_padding=0)


class Fit(NamedTuple):
  """How an axis of a parameter is longer than in its file.

  Attributes:
    copies: how often each group stands there.
    group: numbers of a group.
    padding: zeros at the end.
  """

  copies: int = 1
  group: int = 1
  padding: int = 0

  def widen(self, x: Array) -> Array:
    """The parameter from what the file has, along the first axis."""
    if self.copies > 1:
      groups = np.arange(len(x)).reshape(-1, self.group)
      x = jnp.take(x, np.repeat(groups, self.copies, axis=0).ravel(), axis=0)
    return jnp.pad(x, [(0, self.padding)] + [(0, 0)] * (x.ndim - 1))

  def narrow(self, x: Array) -> Array:
    """What the file has, along the first axis."""
    if self.copies > 1:
      groups = np.arange(len(x)).reshape(-1, self.copies, self.group)
      x = x.take(groups[:, 0].ravel(), axis=0)
    return x[: len(x) - self.padding]

  def length(self, held: int) -> int:
    """The length of the axis in the file."""
    return (held - self.padding) // self.copies


def fit_of(cfg: ModelConfig, path: Path) -> Fit:
  """How a separate parameter fits; along its outputs, or along the vocabulary."""
  if path[-2] in ('k_proj', 'v_proj') and cfg.kv_copies > 1:
    return Fit(cfg.kv_copies, cfg.head_dim)
  if path[-2] in ('embed_tokens', 'lm_head'):
    return Fit(padding=cfg.vocab_padding)
  return Fit()
