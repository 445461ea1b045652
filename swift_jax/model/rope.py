"""Rotary position embedding (Su et al., 2104.09864) and its longer contexts."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from swift_jax.config.rope import RopeConfig
from swift_jax.config.settings import ModelConfig
from swift_jax.typing import Array, Float, Int


def rope_frequencies(
  rope: RopeConfig, head_dim: int
) -> tuple[Float[np.ndarray, ' h2'], float]:
  """Inverse frequencies [H/2] and the factor on cos and sin.

  The four kinds and their constants are those of Hugging Face's
  `modeling_rope_utils`: default (Su et al. 2104.09864), linear (2306.15595),
  llama3 (Llama 3.1's smoothed bands) and yarn (2309.00071).
  """
  exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
  inv_freq = 1.0 / rope.rope_theta**exponents
  if rope.rope_type == 'default':
    return inv_freq, 1.0
  if rope.rope_type == 'linear':
    return inv_freq / rope.factor, 1.0
  if rope.rope_type == 'llama3':
    return _llama3_frequencies(rope, inv_freq), 1.0
  return _yarn_frequencies(rope, inv_freq, head_dim)


def _llama3_frequencies(rope: RopeConfig, inv_freq: np.ndarray) -> np.ndarray:
  """Stretches long wavelengths by `factor`, keeps short ones, and interpolates
  between them."""
  turns = rope.original_max_position_embeddings * inv_freq / (2 * math.pi)
  smooth = (turns - rope.low_freq_factor) / (
    rope.high_freq_factor - rope.low_freq_factor
  )
  smooth = np.clip(smooth, 0.0, 1.0)
  return (1 - smooth) * inv_freq / rope.factor + smooth * inv_freq


def _yarn_frequencies(
  rope: RopeConfig, inv_freq: np.ndarray, head_dim: int
) -> tuple[np.ndarray, float]:
  """NTK by parts: a ramp over dimensions between two numbers of rotations."""

  def dimension(rotations: float) -> float:
    context = rope.original_max_position_embeddings
    wavelength = context / (rotations * 2 * math.pi)
    return head_dim * math.log(wavelength) / (2 * math.log(rope.rope_theta))

  low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
  if rope.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, head_dim - 1)
  high += 0.001 if low == high else 0
  ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0)
  return inv_freq / rope.factor * ramp + inv_freq * (1 - ramp), _yarn_factor(
    rope
  )


def _yarn_factor(rope: RopeConfig) -> float:
  """The factor on cos and sin."""

  def scale(mscale: float) -> float:
    if rope.factor <= 1:
      return 1.0
    return 0.1 * mscale * math.log(rope.factor) + 1.0

  if rope.attention_factor is not None:
    return rope.attention_factor
  if rope.mscale and rope.mscale_all_dim:
    return scale(rope.mscale) / scale(rope.mscale_all_dim)
  return scale(1.0)


def rope_tables(
  cfg: ModelConfig, positions: Int[Array, 'b t']
) -> tuple[Float[Array, 'b t 1 h2'], Float[Array, 'b t 1 h2']]:
  """cos and sin of each position's angles, float32."""
  inv_freq, factor = rope_frequencies(cfg.rope, cfg.head_dim)
  angles = positions[..., None, None].astype(jnp.float32) * jnp.asarray(
    inv_freq, jnp.float32
  )
  return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def apply_rope(
  x: Float[Array, 'b t n h'],
  cos: Float[Array, '#b t 1 h2'],
  sin: Float[Array, '#b t 1 h2'],
) -> Float[Array, 'b t n h']:
  """Rotates pairs (i, i + H/2), Hugging Face's order, in float32."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
