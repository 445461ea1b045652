"""From logits to tokens, in one way for draft, verify and plain steps.

`process` applies the settings that depend on the text so far (repetition
penalty, minimum length). `probabilities` applies those that do not
(temperature, top-k, top-p, min-p). Both keep Hugging Face's order and meaning.
Nothing is sorted: top-k and top-p keep the tokens that reach a cut-off, and
bisection on the bits of the floats finds the cut-off. So of several tokens that
are tied at the cut-off of top-p all stay; Hugging Face keeps those that its
sort happens to put last.

A token is drawn as the argmax of log-probabilities plus Gumbel noise. The noise
depends only on the seed, the index of the prompt in the run, and the place in
the text. So the text is a function of the target and the seed, whoever drafts,
as a greedy text is. A draft adds the same noise to its own log-probabilities.
It is then right almost as often as any coupling allows (Daliri, Musco and
Suresh, 2408.07978: with a probability of at least (1 - d) / (1 + d) for a total
variation d, where the highest possible is 1 - d).
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from swift_jax.config.sampling import SamplingConfig
from swift_jax.typing import Array, Bool, Float, Int, UInt

_COMPARED = 64  # tokens that are compared with the vocabulary at once
_IMPL = 'threefry2x32'  # whatever JAX's default: a seed must mean one text
_MIN_TEMPERATURE = 1e-30  # float32 cannot divide by less
_FEW_EOS_IDS = 8  # every program has room for so many


@flax.struct.dataclass
class Sampling:
  """A `SamplingConfig` on the device; traced.

  New values compile nothing, unless the end-of-text tokens need a larger E.

  Attributes:
    temperature: float32[]; read only where tokens are drawn.
    top_k: int32[], 0: off.
    top_p: float32[].
    min_p: float32[].
    repetition_penalty: float32[].
    min_new_tokens: int32[].
    eos_token_ids: end-of-text tokens, int32[E], padded with -1; E is 8 or the
      next power of two.
  """

  temperature: Float[Array, '']
  top_k: Int[Array, '']
  top_p: Float[Array, '']
  min_p: Float[Array, '']
  repetition_penalty: Float[Array, '']
  min_new_tokens: Int[Array, '']
  eos_token_ids: Int[Array, ' e']


class Context(NamedTuple):
  """The tokens that stand before each of W next tokens of a row.

  Attributes:
    text: the committed text, int32[B, S].
    length: tokens of `text` that count, int32[B].
    prompt_length: tokens of `text` that are the prompt's, int32[B].
    keys: the rows' random keys, uint32[B, 2].
    path: tokens that may follow the text, int32[B, W, P].
    in_path: which tokens of `path` stand before the next token, bool[B, W, P].
    depth: number of tokens between the text and the next token, int32[B, W].
  """

  text: Int[Array, 'b s']
  length: Int[Array, ' b']
  prompt_length: Int[Array, ' b']
  keys: UInt[Array, 'b 2']
  path: Int[Array, 'b w p']
  in_path: Bool[Array, 'b w p']
  depth: Int[Array, 'b w']


def from_config(cfg: SamplingConfig, eos_token_ids: Sequence[int]) -> Sampling:
  """The settings as host arrays.

  Args:
    cfg: resolved. Its end-of-text tokens set E, so that a caller that ignores
      them, or that times passes, compiles no other program.
    eos_token_ids: the tokens among them that end a text.
  """
  room = max(_FEW_EOS_IDS, 1 << (len(cfg.eos_token_id) - 1).bit_length())
  ids = np.full(room, -1, np.int32)
  ids[: len(eos_token_ids)] = eos_token_ids
  return Sampling(
    temperature=np.asarray(max(cfg.temperature, _MIN_TEMPERATURE), np.float32),
    top_k=np.asarray(cfg.top_k, np.int32),
    top_p=np.asarray(cfg.top_p, np.float32),
    min_p=np.asarray(cfg.min_p, np.float32),
    repetition_penalty=np.asarray(cfg.repetition_penalty, np.float32),
    min_new_tokens=np.asarray(cfg.min_new_tokens, np.int32),
    eos_token_ids=ids,
  )


def _needed(sampling: Sampling) -> Bool[Array, '']:
  """Whether `process` changes anything."""
  return (sampling.repetition_penalty != 1) | (sampling.min_new_tokens > 0)


def process(
  logits: Float[Array, 'b w v'], context: Context, sampling: Sampling
) -> Float[Array, 'b w v']:
  """Logits after repetition penalty and minimum length, by each context."""
  return jax.lax.cond(
    _needed(sampling),
    lambda: _processed(logits, context, sampling),
    lambda: logits,
  )


def _processed(logits: Array, context: Context, sampling: Sampling) -> Array:
  """What `process` returns where there is something to change."""
  penalty = sampling.repetition_penalty
  # A penalty above 1 lowers logits of either sign.
  changed = jnp.where(logits < 0, logits * penalty, logits / penalty)
  out = jnp.where(_seen(context, logits.shape[-1]), changed, logits)
  is_eos = _among(sampling.eos_token_ids, logits.shape[-1])  # [V]
  generated = (context.length - context.prompt_length)[:, None] + context.depth
  is_early = generated < sampling.min_new_tokens  # [B, W]
  return jnp.where(is_early[..., None] & is_eos, -jnp.inf, out)


def argmax(values: Float[Array, '*n v']) -> Int[Array, '*n']:
  """The index of the first of the largest values, int32.

  It takes two plain reductions: `jnp.argmax`, which carries pairs, takes XLA on
  CPU three to seven times as long. Of a row with NaN it gives the last index.
  """
  size = values.shape[-1]
  is_best = values == values.max(-1, keepdims=True)
  first = jnp.where(is_best, jnp.arange(size), size).min(-1)
  return jnp.minimum(first, size - 1).astype(jnp.int32)


def scores(
  logits: Float[Array, 'b w v'],
  context: Context,
  sampling: Sampling,
  samples: bool,
) -> Float[Array, 'b w v']:
  """Scores of each next token; the token with the highest score is written.

  Greedy: the processed logits. If `samples`: log-probabilities plus the noise
  of the token's place.
  """
  processed = process(logits, context, sampling)
  if not samples:
    return processed
  noise = gumbel(context, logits.shape[-1])
  return jnp.log(probabilities(processed, sampling)) + noise


def choose(
  logits: Float[Array, 'b w v'],
  context: Context,
  sampling: Sampling,
  samples: bool,
) -> tuple[Int[Array, 'b w'], Int[Array, 'b w']]:
  """The target's argmax before any setting, and the token that it writes.

  In greedy decoding the two are equal, and computed once, unless `process`
  changes the logits.
  """
  raw = argmax(logits)
  if samples:
    return raw, argmax(scores(logits, context, sampling, samples))
  written = jax.lax.cond(
    _needed(sampling),
    lambda: argmax(_processed(logits, context, sampling)),
    lambda: raw,
  )
  return raw, written


def _among(ids: Int[Array, '*n i'], vocab_size: int) -> Bool[Array, '*n v']:
  """Which tokens of the vocabulary are in `ids`; other numbers do not count."""
  if not ids.shape[-1]:
    return jnp.zeros((*ids.shape[:-1], vocab_size), bool)
  # An index of -1 would mean the last token of the vocabulary.
  ids = jnp.where(ids < 0, vocab_size, ids)
  flat = ids.reshape(-1, ids.shape[-1])
  # A TPU's compiler takes a minute for the scatter of a wide pass.
  found = jax.lax.platform_dependent(
    flat,
    tpu=functools.partial(_among_by_comparing, vocab_size=vocab_size),
    default=functools.partial(_among_by_scatter, vocab_size=vocab_size),
  )
  return found.reshape(*ids.shape[:-1], vocab_size)


def _among_by_scatter(
  ids: Int[Array, 'n i'], vocab_size: int
) -> Bool[Array, 'n v']:
  rows = jnp.arange(len(ids))[:, None]
  found = jnp.zeros((len(ids), vocab_size), bool)
  return found.at[rows, ids].set(True, mode='drop')


def _among_by_comparing(
  ids: Int[Array, 'n i'], vocab_size: int
) -> Bool[Array, 'n v']:
  pad = [(0, 0), (0, -ids.shape[1] % _COMPARED)]
  ids = jnp.pad(ids, pad, constant_values=vocab_size)

  def compare(i: Array, found: Array) -> Array:
    some = jax.lax.dynamic_slice_in_dim(ids, i * _COMPARED, _COMPARED, axis=1)
    return found | (some[..., None] == jnp.arange(vocab_size)).any(1)

  found = jnp.zeros((len(ids), vocab_size), bool)
  return jax.lax.fori_loop(0, ids.shape[1] // _COMPARED, compare, found)


def _seen(context: Context, vocab_size: int) -> Bool[Array, 'b w v']:
  """Which tokens stand before each of the next tokens."""
  index = jnp.arange(context.text.shape[1])
  text = jnp.where(index < context.length[:, None], context.text, -1)
  path = jnp.where(context.in_path, context.path, -1)
  return _among(text, vocab_size)[:, None] | _among(path, vocab_size)


def probabilities(
  logits: Float[Array, '*n v'], sampling: Sampling
) -> Float[Array, '*n v']:
  """The distribution after temperature, top-k, top-p, min-p, in this order."""
  values = logits - logits.max(-1, keepdims=True)
  values = values / sampling.temperature
  keep_all = jnp.full_like(values[..., :1], -jnp.inf)

  def top_k_cut() -> Array:
    return _cut(values, jnp.ones_like(values), sampling.top_k)

  cut = jax.lax.cond(sampling.top_k > 0, top_k_cut, lambda: keep_all)
  weights = jnp.where(values >= cut, jnp.exp(values), 0)

  def top_p_cut() -> Array:
    need = sampling.top_p * weights.sum(-1, keepdims=True)
    return _cut(values, weights, need)

  cut = jax.lax.cond(sampling.top_p < 1, top_p_cut, lambda: keep_all)
  # The most likely token weighs 1, and min_p is relative to it.
  is_kept = (values >= cut) & (weights >= sampling.min_p)
  weights = jnp.where(is_kept, weights, 0)
  return weights / weights.sum(-1, keepdims=True)


def _cut(
  values: Float[Array, '*n v'],
  weights: Float[Array, '*n v'],
  need: Float[Array, '*n 1'] | Int[Array, ''],
) -> Float[Array, '*n 1']:
  """The largest x for which the weights of values >= x sum to `need` or more.

  It is -inf where there is no such x. Values are at most 0, so that their bits,
  as integers in the order of the floats, span less than 2**31. Bisection takes
  at most 31 steps, most often some 15: a row is finished when one value is left
  between the bounds.
  """
  ranks = _ordered(values)
  low = jnp.full_like(ranks[..., :1], _ordered(jnp.float32(-jnp.inf)))
  high = jnp.ones_like(low)  # above the rank of 0
  between = jnp.full_like(low, values.shape[-1])

  def unfinished(carry: tuple[Array, Array, Array]) -> Array:
    low, high, between = carry
    return ((between > 1) & (high - low > 1)).any()

  def halve(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    low, high, between = carry
    middle = low + (high - low) // 2
    is_above = ranks >= middle
    mass = jnp.where(is_above, weights, 0).sum(-1, keepdims=True)
    count = (is_above & (ranks < high)).sum(-1, keepdims=True)
    enough = mass >= need
    return (
      jnp.where(enough, middle, low),
      jnp.where(enough, high, middle),
      jnp.where(enough, count, between - count),
    )

  low, _, _ = jax.lax.while_loop(unfinished, halve, (low, high, between))
  return jax.lax.bitcast_convert_type(_flip(low), jnp.float32)


def _ordered(values: Float[Array, '*n']) -> Int[Array, '*n']:
  """The bits of float32 as integers in the same order."""
  return _flip(jax.lax.bitcast_convert_type(values, jnp.int32))


def _flip(bits: Int[Array, '*n']) -> Int[Array, '*n']:
  """Reverses the order of negative integers; it is its own inverse."""
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def row_keys(
  seed: UInt[Array, ''], index: UInt[Array, ' b']
) -> UInt[Array, 'b 2']:
  """The key data of each row, from the index of its prompt in the run."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(
    jax.random.key(seed, impl=_IMPL), index
  )
  return jax.random.key_data(keys)


def gumbel(context: Context, vocab_size: int) -> Float[Array, 'b w v']:
  """Gumbel noise: the argmax of log-probabilities plus noise is a draw.

  Each place in each row's text has noise of its own.
  """
  rows = jax.random.wrap_key_data(context.keys, impl=_IMPL)

  def at(row: Array, place: Array) -> Array:
    return jax.random.gumbel(jax.random.fold_in(row, place), (vocab_size,))

  place = context.length[:, None] + context.depth  # [B, W]
  return jax.vmap(jax.vmap(at, (None, 0)))(rows, place)
