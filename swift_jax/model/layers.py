"""The parts of a Llama layer: RMSNorm, attention, MLP (nnx)."""

from __future__ import annotations

from collections.abc import Callable
import functools

from flax import nnx
import jax
import jax.numpy as jnp

from swift_jax.config.settings import ModelConfig
from swift_jax.model.kv_cache import Past
from swift_jax.model.rope import apply_rope
from swift_jax.typing import Array, Bool, Float, Int

_LARGE_CACHE = 512  # slots from which a CPU's pass may read only a prefix
_BLOCK = 1024  # slots that a TPU's pass reads at once

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'silu': jax.nn.silu,
  'swish': jax.nn.silu,
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
  'gelu_new': functools.partial(jax.nn.gelu, approximate=True),
  'gelu_pytorch_tanh': functools.partial(jax.nn.gelu, approximate=True),
  'relu': jax.nn.relu,
}


def is_stacked(platform: str) -> bool:
  """Whether the weights of all layers are one stack, over which a pass loops.

  A TPU's compiler reads a layer's part of a stack where it lies. The others
  copy it first. For them each layer has arrays and instructions of its own.

  Args:
    platform: `cpu`, `gpu` or `tpu`, for which passes are traced.
  """
  return platform == 'tpu'


class RMSNorm(nnx.Module):
  """Root mean square norm; statistics in float32 (Hugging Face's order)."""

  def __init__(self, width: int, eps: float, dtype: jnp.dtype):
    self.scale = nnx.Param(jnp.ones((width,), dtype))
    self.eps = eps

  def __call__(self, x: Float[Array, 'b t d']) -> Float[Array, 'b t d']:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    return self.scale[...] * y.astype(x.dtype)


class Linear(nnx.Module):
  """A projection. Int8 weights have a scale for each output.

  Attributes:
    kernel: [in, *out]; or [out, in] if `out_first`.
  """

  def __init__(
    self,
    cfg: ModelConfig,
    n_in: int,
    n_out: int | tuple[int, ...],
    bias: bool,
    rngs: nnx.Rngs,
    out_first: bool = False,
  ):
    outputs = (n_out,) if isinstance(n_out, int) else n_out
    shape = (*outputs, n_in) if out_first else (n_in, *outputs)
    self.out_first = out_first
    if cfg.weights == 'int8':
      self.kernel = nnx.Param(jnp.zeros(shape, jnp.int8))
      self.scale = nnx.Param(jnp.ones(outputs, jnp.float32))
    else:
      init = nnx.initializers.normal(0.02)
      self.kernel = nnx.Param(init(rngs.params(), shape, cfg.jax_dtype))
    if bias:
      self.bias = nnx.Param(jnp.zeros(outputs, cfg.jax_dtype))

  def __call__(self, x: Float[Array, 'b t i']) -> Float[Array, 'b t *o']:
    kernel = self.kernel[...]
    axis = kernel.ndim - 1 if self.out_first else 0
    contract = (((x.ndim - 1,), (axis,)), ((), ()))
    if hasattr(self, 'scale'):
      # Integers up to 127 are exact in each dtype that activations may have.
      y = jax.lax.dot_general(
        x,
        kernel.astype(x.dtype),
        contract,
        preferred_element_type=jnp.float32,
      )
      y = (y * self.scale[...]).astype(x.dtype)
    else:
      y = jax.lax.dot_general(x, kernel, contract)
    return y + self.bias[...] if hasattr(self, 'bias') else y


class Attention(nnx.Module):
  """Grouped-query attention over cached slots and the new tokens."""

  def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, platform: str):
    heads, kv_heads = cfg.num_attention_heads, cfg.kv_heads
    width, h, bias = cfg.hidden_size, cfg.head_dim, cfg.attention_bias
    self.platform = platform
    self.heads = kv_heads, heads // kv_heads, h  # K, G, H
    linear = functools.partial(Linear, cfg, width, bias=bias, rngs=rngs)
    if is_stacked(platform):
      self.q_proj = linear(heads * h, out_first=True)
      self.k_proj = linear(kv_heads * h, out_first=True)
      self.v_proj = linear(kv_heads * h, out_first=True)
    else:
      self.qkv_proj = linear((kv_heads, heads // kv_heads + 2, h))
    self.o_proj = Linear(cfg, heads * h, width, bias, rngs)

  def __call__(
    self,
    x: Float[Array, 'b t d'],
    rope: tuple[Array, Array],
    attn_mask: Bool[Array, '#b t t'],
    past: Past | None,
  ) -> tuple[Array, Array, Array]:
    """Attends from T new tokens.

    Args:
      x: normed hidden states.
      rope: cos and sin of the new tokens' positions.
      attn_mask: which new token (axis 2) each new token (axis 1) sees.
      past: the layer's cached keys and values; None where there is no cache.

    Returns:
      The sublayer's output [B, T, D], and the new keys and values [B, K, T, H].
    """
    b, t, _ = x.shape
    q, k, v = self._project(x, rope)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, K, T, H]
    out = attend(q, k, v, attn_mask, past, self.platform)
    return self.o_proj(out.reshape(b, t, -1)), k, v

  def _project(
    self, x: Float[Array, 'b t d'], rope: tuple[Array, Array]
  ) -> tuple[Array, Array, Array]:
    """Queries [B, T, K, G, H], keys and values [B, T, K, H], after RoPE."""
    b, t, _ = x.shape
    kv_heads, group, h = self.heads
    if hasattr(self, 'q_proj'):
      q = apply_rope(self.q_proj(x).reshape(b, t, -1, h), *rope)
      k = apply_rope(self.k_proj(x).reshape(b, t, -1, h), *rope)
      v = self.v_proj(x).reshape(b, t, -1, h)
      return q.reshape(b, t, kv_heads, group, h), k, v
    qkv = self.qkv_proj(x)  # [B, T, K, G + 2, H]
    qk = qkv[..., :-1, :]
    qk = apply_rope(qk.reshape(b, t, -1, h), *rope).reshape(qk.shape)
    return qk[..., :-1, :], qk[..., -1, :], qkv[..., -1, :]


def attend(
  q: Float[Array, 'b t k g h'],
  k: Float[Array, 'b k t h'],
  v: Float[Array, 'b k t h'],
  attn_mask: Bool[Array, '#b t t'],
  past: Past | None,
  platform: str,
) -> Float[Array, 'b t k g h']:
  """Softmax attention over filled slots and visible new tokens.

  Scores and softmax are float32. Dead slots have no effect, whatever keys and
  finite values they hold. Of a large cache a CPU reads only the first quarter or half, if all filled
  slots lie in it, and a TPU block after block as far as they go.

  Args:
    platform: `cpu`, `gpu` or `tpu`, for which it is traced.
  """
  b, t, kv_heads, group, h = q.shape
  # One matrix of T * G queries for each key/value head: with more axes XLA on
  # CPU is slower.
  rows = q.swapaxes(1, 2).reshape(b, kv_heads, t * group, h)
  attn_mask = jnp.repeat(attn_mask, group, axis=1)[:, None]  # [B, 1, T G, T]
  new = jnp.where(attn_mask, _scores(rows, k), -jnp.inf)
  if past is None:
    out = jax.nn.softmax(new, axis=-1).astype(v.dtype) @ v
  elif platform == 'tpu' and past.capacity > _BLOCK:
    out = _by_blocks(rows, new, v, past)
  else:
    longest = past.length.max()
    sizes = jnp.asarray(_prefix_sizes(past.capacity, platform))
    chosen = jnp.searchsorted(sizes, longest, side='left')
    out = jax.lax.switch(
      chosen,
      [
        lambda n=n: _over_both(rows, new, v, *past.slots(0, n), past.length)
        for n in _prefix_sizes(past.capacity, platform)
      ],
    )
  return out.reshape(b, kv_heads, t, group, h).swapaxes(1, 2)


def _prefix_sizes(slots: int, platform: str) -> list[int]:
  """How many slots a pass may read: few sizes, since each is a branch."""
  # A GPU asks the host at each branch, which costs more than a branch saves.
  if slots < _LARGE_CACHE or platform == 'gpu':
    return [slots]
  return [slots // 4, slots // 2, slots]


def _by_blocks(
  rows: Float[Array, 'b k r h'],
  new: Float[Array, 'b k r t'],
  v: Float[Array, 'b k t h'],
  past: Past,
) -> Float[Array, 'b k r h']:
  """One softmax over new tokens and cached slots, a block of slots at a time.

  So scores take little memory. The sums of exponentials are rescaled whenever a
  block has a higher score (Milakov and Gimelshein, 1805.02867).

  Args:
    new: scores of the new tokens.
  """
  count = -(-past.capacity // _BLOCK)
  while past.capacity % count:  # capacities have small factors
    count += 1
  size = past.capacity // count
  longest = past.length.max()

  def add(carry: tuple[Array, ...], start: Array) -> tuple[Array, ...]:
    out, total, highest = carry
    keys, values = past.slots(start, size)
    filled = start + jnp.arange(size) < past.length[:, None]
    scores = jnp.where(filled[:, None, None], _scores(rows, keys), -jnp.inf)
    higher = jnp.maximum(highest, scores.max(-1, keepdims=True))
    scale, weights = jnp.exp(highest - higher), jnp.exp(scores - higher)
    out = out * scale + _weighed(weights, values)
    return out, total * scale + weights.sum(-1, keepdims=True), higher

  # For derivatives: else the branch would keep the cache once for each block.
  @jax.checkpoint
  def block(
    carry: tuple[Array, ...], start: Array
  ) -> tuple[tuple[Array, ...], None]:
    is_filled = start < longest
    return jax.lax.cond(is_filled, add, lambda c, _: c, carry, start), None

  highest = new.max(-1, keepdims=True)
  weights = jnp.exp(new - highest)
  carry = _weighed(weights, v), weights.sum(-1, keepdims=True), highest
  starts = jnp.arange(0, past.capacity, size)
  (out, total, _), _ = jax.lax.scan(block, carry, starts)
  return (out / total).astype(v.dtype)


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
  highest = jnp.maximum(past.max(-1, keepdims=True), new.max(-1, keepdims=True))
  past, new = jnp.exp(past - highest), jnp.exp(new - highest)
  total = past.sum(-1, keepdims=True) + new.sum(-1, keepdims=True)
  out = (_weighed(past, past_v) + _weighed(new, v)) / total
  return out.astype(v.dtype)


def _weighed(
  weights: Float[Array, 'b k r s'], values: Float[Array, 'b k s h']
) -> Float[Array, 'b k r h']:
  """Sums of values, float32."""
  return jnp.matmul(
    weights.astype(values.dtype), values, preferred_element_type=jnp.float32
  )


class MLP(nnx.Module):
  """The gated MLP: down(act(gate(x)) * up(x))."""

  def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, platform: str):
    width, inner, bias = cfg.hidden_size, cfg.intermediate_size, cfg.mlp_bias
    linear = functools.partial(Linear, cfg, width, bias=bias, rngs=rngs)
    if is_stacked(platform):
      self.gate_proj = linear(inner, out_first=True)
      self.up_proj = linear(inner, out_first=True)
    else:
      self.gate_up_proj = linear((2, inner))
    self.down_proj = Linear(cfg, inner, width, bias, rngs)
    self.act = cfg.hidden_act

  def __call__(self, x: Float[Array, 'b t d']) -> Float[Array, 'b t d']:
    if hasattr(self, 'gate_proj'):
      gate, up = self.gate_proj(x), self.up_proj(x)
    else:
      gate_up = self.gate_up_proj(x)  # [B, T, 2, F]
      gate, up = gate_up[..., 0, :], gate_up[..., 1, :]
    return self.down_proj(ACTIVATIONS[self.act](gate) * up)
