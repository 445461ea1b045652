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
from swift_jax.model.kv_cache import KVCache, Past
from swift_jax.model.layers import (
  MLP,
  Attention,
  RMSNorm,
  is_stacked,
)
from swift_jax.model.rope import rope_tables
from swift_jax.model.skip_mask import KnownMask, Mask
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
  """One layer: two sublayers and their norms."""

  def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, platform: str):
    norm = functools.partial(
      RMSNorm, cfg.hidden_size, cfg.rms_norm_eps, cfg.jax_dtype
    )
    self.input_layernorm = norm()
    self.self_attn = Attention(cfg, rngs, platform)
    self.post_attention_layernorm = norm()
    self.mlp = MLP(cfg, rngs, platform)


def _run_layer(
  read: Callable[[], DecoderLayer],
  x: Float[Array, 'b t d'],
  rope: tuple[Array, Array],
  attn_mask: Bool[Array, '#b t t'],
  past: Past | None,
  skip_attn: Flag,
  skip_mlp: Flag,
) -> tuple[Array, tuple[Array, Array]]:
  """Adds both sublayers, each behind its gate, to the residual stream.

  Args:
    read: the layer. It is called in the branch of each gate, so that a skipped
      sublayer's weights are not read.
  """

  def attn() -> tuple[Array, Array, Array]:
    layer = read()
    return layer.self_attn(layer.input_layernorm(x), rope, attn_mask, past)

  def mlp() -> Array:
    layer = read()
    return layer.mlp(layer.post_attention_layernorm(x))

  delta, k, v = gate(skip_attn, attn)
  x = x + delta
  x = x + gate(skip_mlp, mlp)
  return x, (k, v)


@functools.partial(jax.jit, static_argnames='graphdef')
def _run_alone(
  graphdef: nnx.GraphDef, params: nnx.State, *arguments: Any
) -> tuple[Array, tuple[Array, Array]]:
  """A layer with arrays of its own, jitted: it is traced once for all layers."""
  layer = nnx.merge(graphdef, params)
  return _run_layer(lambda: layer, *arguments)


class Llama(nnx.Module):
  """`LlamaForCausalLM`: embedding, layers, norm and head."""

  def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, platform: str):
    self.cfg = cfg
    init = nnx.initializers.normal(0.02)
    dtypes = {'dtype': cfg.jax_dtype, 'param_dtype': cfg.jax_dtype}
    rows = functools.partial(
      nnx.Embed,
      cfg.vocab_rows,
      cfg.hidden_size,
      embedding_init=init,
      rngs=rngs,
      **dtypes,
    )
    self.embed_tokens = rows()
    self.layers = _layers(cfg, rngs, platform)
    self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps, cfg.jax_dtype)
    if cfg.tie_word_embeddings:
      return
    if is_stacked(platform):  # as a stack's kernels, D last
      self.lm_head = rows()
    else:
      self.lm_head = nnx.Linear(
        cfg.hidden_size,
        cfg.vocab_rows,
        use_bias=False,
        kernel_init=init,
        rngs=rngs,
        **dtypes,
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
      Normed hidden states, and the new keys and values, see `kv_cache.Updates`.
    """
    t = tokens.shape[1]
    if positions is None:
      start = 0 if cache is None else cache.length[:, None]
      positions = start + jnp.arange(t, dtype=jnp.int32)[None]
    if attn_mask is None:
      attn_mask = jnp.tril(jnp.ones((1, t, t), bool))
    rope = rope_tables(self.cfg, positions)
    x = self.embed_tokens(tokens)
    given = rope, attn_mask
    # A known mask takes no gates, so that its layers differ. But a mask that
    # skips nothing fits a loop.
    is_known = isinstance(skip_mask, KnownMask)
    differ = is_known and any((*skip_mask.attn, *skip_mask.mlp))
    is_loop = not isinstance(self.layers, nnx.List) and not differ
    walk = self._in_a_loop if is_loop else self._one_by_one
    with exact_products(self.cfg.jax_dtype):
      x, updates = walk(x, given, cache, skip_mask)
    return self.norm(x), updates

  def _one_by_one(
    self,
    x: Array,
    given: tuple[tuple[Array, Array], Array],
    cache: KVCache | None,
    skip_mask: Mask,
  ) -> tuple[Array, kv_cache.Updates]:
    """Instructions for each layer, alone or out of a stack."""
    is_stack, updates = not isinstance(self.layers, nnx.List), []
    for i in range(self.cfg.num_hidden_layers):
      past = cache and cache.past(i)
      arguments = x, *given, past, skip_mask.attn[i], skip_mask.mlp[i]
      if is_stack:
        x, update = _run_layer(functools.partial(self._layer, i), *arguments)
      else:
        x, update = _run_alone(*nnx.split(self.layers[i]), *arguments)
      updates.append(update)
    if is_stack:
      return x, jax.tree.map(lambda *rows: jnp.stack(rows), *updates)
    if self.layers[0].self_attn.platform == 'gpu':
      # So a layer's cache is written after the next layer began, and in place.
      # Else XLA may plan the write before the read, and copies the cache for it.
      updates = jax.lax.optimization_barrier(updates)
    return x, tuple(updates)

  def _in_a_loop(
    self,
    x: Array,
    given: tuple[tuple[Array, Array], Array],
    cache: KVCache | None,
    skip_mask: Mask,
  ) -> tuple[Array, kv_cache.Updates]:
    """A stack of layers, the same instructions for all."""
    index = jnp.arange(self.cfg.num_hidden_layers)
    is_known = isinstance(skip_mask, KnownMask)
    flags = None if is_known else (skip_mask.attn, skip_mask.mlp)

    # For derivatives: of each layer only what comes in is kept.
    @jax.checkpoint
    def body(x: Array, at: Any) -> tuple[Array, tuple[Array, Array]]:
      i, flags = at
      past = cache and cache.past(i)
      skips = (False, False) if is_known else flags
      read = functools.partial(self._layer, i)
      return _run_layer(read, x, *given, past, *skips)

    return jax.lax.scan(body, x, (index, flags))

  def _layer(self, i: int | Array) -> DecoderLayer:
    """One layer of the stack."""
    graphdef, params = nnx.split(self.layers)
    read = functools.partial(
      jax.lax.dynamic_index_in_dim, index=i, keepdims=False
    )
    return nnx.merge(graphdef, jax.tree.map(read, params))

  def logits(self, hidden: Float[Array, '*t d']) -> Float[Array, '*t v']:
    """The head's logits, accumulated and returned in float32.

    Those of padding behind the vocabulary are -inf.
    """
    head = self.embed_tokens if self.cfg.tie_word_embeddings else self.lm_head
    if isinstance(head, nnx.Embed):
      kernel, dims = head.embedding[...], 1
    else:
      kernel, dims = head.kernel[...], 0
    contract = (((hidden.ndim - 1,), (dims,)), ((), ()))
    with exact_products(self.cfg.jax_dtype):
      logits = jax.lax.dot_general(
        hidden, kernel, contract, preferred_element_type=jnp.float32
      )
    if self.cfg.vocab_padding:
      is_token = jnp.arange(self.cfg.vocab_rows) < self.cfg.vocab_size
      logits = jnp.where(is_token, logits, -jnp.inf)
    return logits


def _layers(
  cfg: ModelConfig, rngs: nnx.Rngs, platform: str
) -> nnx.List[DecoderLayer] | DecoderLayer:
  """The layers; as a stack one layer, whose arrays have an axis L in front."""
  if not is_stacked(platform):
    return nnx.List(
      DecoderLayer(cfg, rngs, platform) for _ in range(cfg.num_hidden_layers)
    )

  @nnx.split_rngs(splits=cfg.num_hidden_layers)
  @nnx.vmap
  def stack(rngs: nnx.Rngs) -> DecoderLayer:
    return DecoderLayer(cfg, rngs, platform)

  return stack(rngs)


def has_stack(params: Params) -> bool:
  """Whether these parameters have all layers as one stack."""
  return 'mlp' in params['layers']


def abstract_model(
  cfg: ModelConfig, platform: str = ''
) -> tuple[GraphDef, Params]:
  """(graphdef, parameters as shapes); it takes no memory, whatever the size.

  Args:
    platform: `cpu`, `gpu` or `tpu`, for which its passes are traced; empty: the
      one that JAX runs on.
  """
  platform = platform or jax.default_backend()
  model = nnx.eval_shape(lambda: Llama(cfg, nnx.Rngs(0), platform))
  graphdef, params = nnx.split(model)
  return GraphDef(graphdef), params


def init_model(
  cfg: ModelConfig, seed: int, platform: str = ''
) -> tuple[GraphDef, Params]:
  """(graphdef, random parameters); `platform` as for `abstract_model`."""
  platform = platform or jax.default_backend()

  @jax.jit
  def init(key: Array) -> Params:
    return nnx.split(Llama(cfg, nnx.Rngs(key), platform))[1]

  return abstract_model(cfg, platform)[0], init(jax.random.key(seed))
