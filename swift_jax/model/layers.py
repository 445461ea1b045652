"""The parts of a Llama layer: RMSNorm, RoPE, attention, MLP (nnx)."""

from __future__ import annotations

from collections.abc import Callable
import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from swift_jax.config.settings import ModelConfig, RopeConfig
from swift_jax.typing import Array, Bool, Float, Int

_LARGE_CACHE = 512  # slots from which a pass may read only a prefix

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'silu': jax.nn.silu,
  'swish': jax.nn.silu,
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
  'gelu_new': functools.partial(jax.nn.gelu, approximate=True),
  'gelu_pytorch_tanh': functools.partial(jax.nn.gelu, approximate=True),
  'relu': jax.nn.relu,
}


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


class RMSNorm(nnx.Module):
  """Root mean square norm; statistics in float32 (Hugging Face's order)."""

  def __init__(self, width: int, eps: float, dtype: jnp.dtype):
    self.scale = nnx.Param(jnp.ones((width,), dtype))
    self.eps = eps

  def __call__(self, x: Float[Array, 'b t d']) -> Float[Array, 'b t d']:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    return self.scale[...] * y.astype(x.dtype)


def _linear(
  cfg: ModelConfig,
  n_in: int,
  n_out: int | tuple[int, ...],
  bias: bool,
  rngs: nnx.Rngs,
) -> nnx.LinearGeneral | Int8Linear:
  if cfg.weights == 'int8':
    return Int8Linear(cfg, n_in, n_out, bias)
  return nnx.LinearGeneral(
    n_in,
    n_out,
    use_bias=bias,
    dtype=cfg.jax_dtype,
    param_dtype=cfg.jax_dtype,
    kernel_init=nnx.initializers.normal(0.02),
    rngs=rngs,
  )


class Int8Linear(nnx.Module):
  """A projection with int8 weights and a scale for each output."""

  def __init__(
    self, cfg: ModelConfig, n_in: int, n_out: int | tuple[int, ...], bias: bool
  ):
    outputs = (n_out,) if isinstance(n_out, int) else n_out
    self.kernel = nnx.Param(jnp.zeros((n_in, *outputs), jnp.int8))
    self.scale = nnx.Param(jnp.ones(outputs, jnp.float32))
    if bias:
      self.bias = nnx.Param(jnp.zeros(outputs, cfg.jax_dtype))

  def __call__(self, x: Array) -> Array:
    # Integers up to 127 are exact in each dtype that activations may have.
    kernel = self.kernel[...].astype(x.dtype)
    contract = (((x.ndim - 1,), (0,)), ((), ()))
    y = jax.lax.dot_general(
      x, kernel, contract, preferred_element_type=jnp.float32
    )
    y = (y * self.scale[...]).astype(x.dtype)
    return y + self.bias[...] if hasattr(self, 'bias') else y


class Attention(nnx.Module):
  """Grouped-query attention over cached slots and the new tokens."""

  def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, platform: str = ''):
    heads, kv_heads = cfg.num_attention_heads, cfg.num_key_value_heads
    width, h, bias = cfg.hidden_size, cfg.head_dim, cfg.attention_bias
    self.platform = platform
    qkv = (kv_heads, heads // kv_heads + 2, h)  # [K, G + 2, H]
    self.qkv_proj = _linear(cfg, width, qkv, bias, rngs)
    self.o_proj = _linear(cfg, heads * h, width, bias, rngs)

  def __call__(
    self,
    x: Float[Array, 'b t d'],
    rope: tuple[Array, Array],
    attn_mask: Bool[Array, '#b t t'],
    past: tuple[Array, Array, Array] | None,
  ) -> tuple[Array, Array, Array]:
    """Attends from T new tokens.

    Args:
      x: normed hidden states.
      rope: cos and sin of the new tokens' positions.
      attn_mask: which new token (axis 2) each new token (axis 1) sees.
      past: cached keys and values [B, K, S, H] and the filled slots int[B];
        None where there is no cache.

    Returns:
      The sublayer's output [B, T, D], and the new keys and values [B, K, T, H].
    """
    b, t, _ = x.shape
    qkv = self.qkv_proj(x)  # [B, T, K, G + 2, H]
    qk = qkv[..., :-1, :]
    qk = apply_rope(qk.reshape(b, t, -1, qk.shape[-1]), *rope).reshape(qk.shape)
    q, k, v = qk[..., :-1, :], qk[..., -1, :], qkv[..., -1, :]
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, K, T, H]
    out = attend(q, k, v, attn_mask, past, self.platform)
    return self.o_proj(out.reshape(b, t, -1)), k, v


def attend(
  q: Float[Array, 'b t k g h'],
  k: Float[Array, 'b k t h'],
  v: Float[Array, 'b k t h'],
  attn_mask: Bool[Array, '#b t t'],
  past: tuple[Array, Array, Array] | None,
  platform: str = '',
) -> Float[Array, 'b t k g h']:
  """Softmax attention over filled slots and visible new tokens.

  Scores and softmax are float32. Dead slots have no effect, even if they hold
  NaN. Of a large cache only the first quarter or half is read, if all filled
  slots lie in it.

  Args:
    platform: `cpu`, `gpu` or `tpu`, for which it is traced; empty: JAX's own.
  """
  b, t, kv_heads, group, h = q.shape
  # One matrix of T * G queries for each key/value head: with more axes XLA on
  # CPU is slower.
  rows = q.swapaxes(1, 2).reshape(b, kv_heads, t * group, h)
  attn_mask = jnp.repeat(attn_mask, group, axis=1)[:, None]  # [B, 1, T G, T]
  new = jnp.where(attn_mask, _scores(rows, k), -jnp.inf)
  if past is None:
    out = jax.nn.softmax(new, axis=-1).astype(v.dtype) @ v
  else:
    past_k, past_v, length = past

    def over_first(slots: int) -> Array:
      prefix = past_k[:, :, :slots], past_v[:, :, :slots]
      return _over_both(rows, new, v, *prefix, length)

    sizes = _prefix_sizes(past_k.shape[2], platform)
    chosen = jnp.searchsorted(jnp.asarray(sizes), length.max(), side='left')
    out = jax.lax.switch(chosen, [lambda n=n: over_first(n) for n in sizes])
  return out.reshape(b, kv_heads, t, group, h).swapaxes(1, 2)


def _prefix_sizes(slots: int, platform: str = '') -> list[int]:
  """How many slots a pass may read: few sizes, since each is a branch."""
  is_large = slots >= _LARGE_CACHE
  # A GPU asks the host at each branch, which costs more than a branch saves.
  if not is_large or (platform or jax.default_backend()) == 'gpu':
    return [slots]
  return [slots // 4, slots // 2, slots]


def _scores(
  rows: Float[Array, 'b k r h'], keys: Float[Array, 'b k s h']
) -> Float[Array, 'b k r s']:
  """Scaled scores of queries against keys, float32."""
  scores = jnp.einsum(
    'bkrh,bksh->bkrs', rows, keys, preferred_element_type=jnp.float32
  )
  return scores * rows.shape[-1] ** -0.5


def _over_both(
  rows: Float[Array, 'b k r h'],
  new: Float[Array, 'b k r t'],
  v: Float[Array, 'b k t h'],
  past_k: Float[Array, 'b k s h'],
  past_v: Float[Array, 'b k s h'],
  length: Int[Array, ' b'],
) -> Float[Array, 'b k r h']:
  """One softmax over cached slots and new tokens, without concatenating them.

  Args:
    new: scores of the new tokens.
  """
  filled = jnp.arange(past_k.shape[2]) < length[:, None]  # [B, S]
  past = jnp.where(filled[:, None, None], _scores(rows, past_k), -jnp.inf)
  # A weight of 0 is not enough: 0 * NaN is NaN.
  past_v = jnp.where(filled[:, None, :, None], past_v, 0)
  highest = jnp.maximum(past.max(-1, keepdims=True), new.max(-1, keepdims=True))
  past, new = jnp.exp(past - highest), jnp.exp(new - highest)
  total = past.sum(-1, keepdims=True) + new.sum(-1, keepdims=True)

  def weighed(weights: Array, values: Array) -> Array:
    return jnp.matmul(
      weights.astype(values.dtype), values, preferred_element_type=jnp.float32
    )

  out = (weighed(past, past_v) + weighed(new, v)) / total
  return out.astype(v.dtype)


class MLP(nnx.Module):
  """The gated MLP: down(act(gate(x)) * up(x))."""

  def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
    width, inner, bias = cfg.hidden_size, cfg.intermediate_size, cfg.mlp_bias
    self.gate_up_proj = _linear(cfg, width, (2, inner), bias, rngs)
    self.down_proj = _linear(cfg, inner, width, bias, rngs)
    self.act = cfg.hidden_act

  def __call__(self, x: Float[Array, 'b t d']) -> Float[Array, 'b t d']:
    gate_up = self.gate_up_proj(x)  # [B, T, 2, F]
    gate, up = gate_up[..., 0, :], gate_up[..., 1, :]
    return self.down_proj(ACTIVATIONS[self.act](gate) * up)
