"""The Llama transformer, each sublayer behind a gate."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from swift_jax.config.settings import ModelConfig
from swift_jax.model import kv_cache
from swift_jax.model.kv_cache import KVCache
from swift_jax.model.layers import MLP, Attention, RMSNorm, rope_tables
from swift_jax.model.skip_mask import Mask
from swift_jax.typing import Array, Bool, Float, Int

Params = nnx.State | dict[str, Any]
# np.bool_ is an element of a mask on the host, bool of a `KnownMask`.
Flag = Bool[Array, ''] | np.bool_ | bool | Float[Array, '']


@jax.tree_util.register_static
class GraphDef(nnx.GraphDef):
  """nnx's `GraphDef`, hashed only once.

  It is a static argument of every dispatch, and nnx walks the whole model for
  each hash, which takes half a millisecond for 16 layers.
  """

  def __init__(self, graphdef: nnx.GraphDef):
    super().__init__(graphdef.nodes, graphdef.attributes, graphdef.num_leaves)
    object.__setattr__(self, '_hash', hash(graphdef))

  def __hash__(self) -> int:
    return self._hash


def gate(skip: Flag, sublayer: Callable[[], object]) -> object:
  """`sublayer()`, or zeros of its shapes where `skip` holds.

  A sublayer returns only its output, never the cache. A cache passed through
  the branch would be copied, and then to skip half the sublayers would be
  slower than to skip none. Under vmap the branch becomes a select and both
  sides run.

  A float `skip` in [0, 1] skips a share: the sublayer runs, and its output is
  scaled by 1 - `skip`. No text is written in this way; the derivative shows how
  important the sublayer is.
  """
  shapes = jax.eval_shape(sublayer)
  # For derivatives only: a skipped branch must return zeros for every residual
  # of the other branch. So keep few residuals and recompute the rest.
  sublayer = jax.checkpoint(
    sublayer,
    policy=jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
  )
  if jnp.issubdtype(jnp.result_type(skip), jnp.floating):

    def share(d: Array) -> Array:
      # A skipped sublayer adds nothing, not even where its output overflows.
      return jnp.where(skip == 1, 0, (1 - skip).astype(d.dtype) * d)

    return jax.tree.map(share, sublayer())

  def zeros() -> object:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  return jax.lax.cond(skip, zeros, sublayer)


def exact_products(dtype: jnp.dtype) -> contextlib.AbstractContextManager:
  """Traces float32 matrix products as float32 on every backend.

  By default GPUs and TPUs round the factors to fewer bits, and differently for
  each width of a pass. Then SWIFT's and plain decoding's texts would differ
  also where the two best logits are not nearly equal.
  """
  if dtype == jnp.float32:
    return jax.default_matmul_precision('highest')
  return contextlib.nullcontext()


class DecoderLayer(nnx.Module):
  """One layer: two gated sublayers with norms, added to the residual stream."""

  def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, platform: str = ''):
    norm = functools.partial(
      RMSNorm, cfg.hidden_size, cfg.rms_norm_eps, cfg.jax_dtype
    )
    self.input_layernorm = norm()
    self.self_attn = Attention(cfg, rngs, platform)
    self.post_attention_layernorm = norm()
    self.mlp = MLP(cfg, rngs)

  def __call__(
    self,
    x: Float[Array, 'b t d'],
    rope: tuple[Array, Array],
    attn_mask: Bool[Array, '#b t t'],
    past: tuple[Array, Array, Array] | None,
    skip_attn: Flag,
    skip_mlp: Flag,
  ) -> tuple[Array, tuple[Array, Array]]:
    def attn() -> tuple[Array, Array, Array]:
      return self.self_attn(self.input_layernorm(x), rope, attn_mask, past)

    def mlp() -> Array:
      return self.mlp(self.post_attention_layernorm(x))

    delta, k, v = gate(skip_attn, attn)
    x = x + delta
    x = x + gate(skip_mlp, mlp)
    return x, (k, v)


@functools.partial(jax.jit, static_argnames='graphdef')
def _run_layer(
  graphdef: nnx.GraphDef, params: nnx.State, *arguments: Any
) -> tuple[Array, tuple[Array, Array]]:
  """One layer as a jitted function: it is traced once and serves all layers."""
  return nnx.merge(graphdef, params)(*arguments)


class Llama(nnx.Module):
  """`LlamaForCausalLM`: embedding, layers, norm and head."""

  def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, platform: str = ''):
    self.cfg = cfg
    self.embed_tokens = nnx.Embed(
      cfg.vocab_size,
      cfg.hidden_size,
      dtype=cfg.jax_dtype,
      param_dtype=cfg.jax_dtype,
      embedding_init=nnx.initializers.normal(0.02),
      rngs=rngs,
    )
    self.layers = nnx.List(
      DecoderLayer(cfg, rngs, platform) for _ in range(cfg.num_hidden_layers)
    )
    self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps, cfg.jax_dtype)
    if not cfg.tie_word_embeddings:
      self.lm_head = nnx.Linear(
        cfg.hidden_size,
        cfg.vocab_size,
        use_bias=False,
        dtype=cfg.jax_dtype,
        param_dtype=cfg.jax_dtype,
        kernel_init=nnx.initializers.normal(0.02),
        rngs=rngs,
      )

  def __call__(
    self,
    tokens: Int[Array, 'b t'],
    skip_mask: Mask,
    positions: Int[Array, '#b t'] | None = None,
    attn_mask: Bool[Array, '#b t t'] | None = None,
    cache: KVCache | None = None,
  ) -> tuple[Float[Array, 'b t d'], kv_cache.Updates]:
    """Runs T new tokens on top of `cache`.

    Args:
      tokens: token ids.
      skip_mask: sublayers to skip; `none_skipped` is the full model.
      positions: the tokens' positions; after the filled slots if None.
      attn_mask: which new tokens each new token sees; causal if None.
      cache: it is only read; the caller writes it by `cache.write(updates)`.

    Returns:
      Normed hidden states, and each layer's new (k, v) [B, K, T, H].
    """
    t = tokens.shape[1]
    if positions is None:
      start = 0 if cache is None else cache.length[:, None]
      positions = start + jnp.arange(t, dtype=jnp.int32)[None]
    if attn_mask is None:
      attn_mask = jnp.tril(jnp.ones((1, t, t), bool))
    rope = rope_tables(self.cfg, positions)
    x = self.embed_tokens(tokens)
    updates = []
    with exact_products(self.cfg.jax_dtype):
      for i, layer in enumerate(self.layers):
        past = cache and (cache.k[i], cache.v[i], cache.length)
        skip_attn, skip_mlp = skip_mask.attn[i], skip_mask.mlp[i]
        x, update = _run_layer(
          *nnx.split(layer), x, rope, attn_mask, past, skip_attn, skip_mlp
        )
        updates.append(update)
    return self.norm(x), tuple(updates)

  def logits(self, hidden: Float[Array, '*t d']) -> Float[Array, '*t v']:
    """The head's logits, accumulated and returned in float32."""
    if self.cfg.tie_word_embeddings:
      kernel, dims = self.embed_tokens.embedding[...], 1
    else:
      kernel, dims = self.lm_head.kernel[...], 0
    contract = (((hidden.ndim - 1,), (dims,)), ((), ()))
    with exact_products(self.cfg.jax_dtype):
      return jax.lax.dot_general(
        hidden, kernel, contract, preferred_element_type=jnp.float32
      )


def abstract_model(
  cfg: ModelConfig, platform: str = ''
) -> tuple[GraphDef, Params]:
  """(graphdef, parameters as shapes); it takes no memory, whatever the size.

  Args:
    platform: `cpu`, `gpu` or `tpu`, for which its passes are traced; empty: the
      one that JAX runs on when they are traced.
  """
  model = nnx.eval_shape(lambda: Llama(cfg, nnx.Rngs(0), platform))
  graphdef, params = nnx.split(model)
  return GraphDef(graphdef), params


def init_model(cfg: ModelConfig, seed: int) -> tuple[GraphDef, Params]:
  """(graphdef, random parameters)."""

  @jax.jit
  def init(key: Array) -> Params:
    return nnx.split(Llama(cfg, nnx.Rngs(key)))[1]

  return abstract_model(cfg)[0], init(jax.random.key(seed))
