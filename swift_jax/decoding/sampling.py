"""From logits to probabilities to tokens: one way for draft, verify and plain.

`process` applies what depends on the text so far (repetition penalty, minimum
length), `probabilities` what does not (temperature, top-k, top-p, min-p), both in
Hugging Face's order and meaning. Nothing is sorted: top-k and top-p keep what is
at least a cut-off, which is searched for by bisection on the bits of the floats.
So where several tokens are tied at the cut-off of top-p all of them stay, of which
Hugging Face keeps those that its sort happens to put last.

A token is drawn as the argmax of log-probabilities plus Gumbel noise, and the noise
is that of (seed, index of the prompt in the run, place in the text): of nothing
else. So the text is a function of the target and the seed, whoever drafts it or
does not, as a greedy text is. A draft that adds the same noise to its own
log-probabilities is as likely to be right as almost any coupling makes it (Daliri,
Musco and Suresh, 2408.07978: at least (1 - d) / (1 + d) for a total variation d,
where the most that is possible is 1 - d).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from swift_jax.config.sampling import SamplingConfig
from swift_jax.typing import Array, Bool, Float, Int, UInt

_IMPL = 'threefry2x32'  # whatever JAX's default is: a seed must mean one text
_MIN_TEMPERATURE = 1e-30  # below it float32 has no quotient
_FEW_EOS_IDS = 8  # room for as many in every program


@flax.struct.dataclass
class Sampling:
  """A `SamplingConfig` on the device; traced, so that new values compile nothing,
  but for more end-of-text tokens than there is room for.

  Attributes:
    temperature: float32[]; read only where tokens are drawn.
    top_k: int32[], 0: off.
    top_p: float32[].
    min_p: float32[].
    repetition_penalty: float32[].
    min_new_tokens: int32[].
    eos_token_ids: end-of-text tokens, int32[E], padded with -1; E is 8 or the next
      power of two.
  """

  temperature: Float[Array, '']
  top_k: Int[Array, '']
  top_p: Float[Array, '']
  min_p: Float[Array, '']
  repetition_penalty: Float[Array, '']
  min_new_tokens: Int[Array, '']
  eos_token_ids: Int[Array, ' e']


class Context(NamedTuple):
  """What stands before each of W next tokens of a row.

  Attributes:
    text: the committed text, int32[B, S].
    length: how much of it counts, int32[B].
    prompt_length: how much of it is prompt, int32[B].
    keys: of the rows, uint32[B, 2].
    path: tokens that may follow it, int32[B, W, P].
    in_path: which of them precede the token in question, bool[B, W, P].
    depth: tokens between the text and it, int32[B, W].
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
    cfg: resolved. Its end-of-text tokens say how much room there is, so that who
      ignores them, or times passes, compiles nothing else.
    eos_token_ids: those of them that end a text.
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
  """Logits after repetition penalty and minimum length, each token's own."""
  return jax.lax.cond(
    _needed(sampling),
    lambda: _processed(logits, context, sampling),
    lambda: logits,
  )


def _processed(logits: Array, context: Context, sampling: Sampling) -> Array:
  penalty = sampling.repetition_penalty
  # Both ways of the penalty lower a logit when it is above 1.
  changed = jnp.where(logits < 0, logits * penalty, logits / penalty)
  out = jnp.where(_seen(context, logits.shape[-1]), changed, logits)
  is_eos = _among(sampling.eos_token_ids, logits.shape[-1])  # [V]
  generated = (context.length - context.prompt_length)[:, None] + context.depth
  is_early = generated < sampling.min_new_tokens  # [B, W]
  return jnp.where(is_early[..., None] & is_eos, -jnp.inf, out)


def argmax(values: Float[Array, '*n v']) -> Int[Array, '*n']:
  """The first of the largest, int32.

  By two plain reductions: XLA on CPU runs `jnp.argmax`, which carries pairs, three
  to seven times as long. Of a row with NaN: the last one.
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
  """What each next token is the argmax of.

  Greedy: the processed logits. If it `samples`: log-probabilities and the noise of
  the token's place.
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
  """The target's argmax, and what it writes.

  For greedy decoding they are one and computed once unless a penalty has a say.
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


def _among(ids: Int[Array, ' e'], vocab_size: int) -> Bool[Array, ' v']:
  """Which tokens of the vocabulary are listed."""
  # A padding of -1 would be the last one.
  ids = jnp.where(ids < 0, vocab_size, ids)
  return jnp.zeros(vocab_size, bool).at[ids].set(True, mode='drop')


def _seen(context: Context, vocab_size: int) -> Bool[Array, 'b w v']:
  """Which tokens stand before each of the next ones."""
  batch, width, _ = context.path.shape
  rows = jnp.arange(batch)[:, None]
  index = jnp.arange(context.text.shape[1])
  # What does not count is written beyond the vocabulary, that is nowhere.
  text = jnp.where(index < context.length[:, None], context.text, vocab_size)
  seen = jnp.zeros((batch, vocab_size), bool)
  seen = seen.at[rows, text].set(True, mode='drop')
  seen = jnp.broadcast_to(seen[:, None], (batch, width, vocab_size))
  path = jnp.where(context.in_path, context.path, vocab_size)
  nodes = jnp.arange(width)[:, None]
  return seen.at[rows[..., None], nodes, path].set(True, mode='drop')


def probabilities(
  logits: Float[Array, '*n v'], sampling: Sampling
) -> Float[Array, '*n v']:
  """The warped distribution: temperature, top-k, top-p, min-p, in this order."""
  values = logits - logits.max(-1, keepdims=True)
  values = values / sampling.temperature
  everything = jnp.full_like(values[..., :1], -jnp.inf)

  def top_k_cut() -> Array:
    return _cut(values, jnp.ones_like(values), sampling.top_k)

  cut = jax.lax.cond(sampling.top_k > 0, top_k_cut, lambda: everything)
  weights = jnp.where(values >= cut, jnp.exp(values), 0)

  def top_p_cut() -> Array:
    need = sampling.top_p * weights.sum(-1, keepdims=True)
    return _cut(values, weights, need)

  cut = jax.lax.cond(sampling.top_p < 1, top_p_cut, lambda: everything)
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

  -inf where there is none. Values are at most 0, so that their bits, as integers
  in the order of the floats, span less than 2**31. At most 31 steps, most often
  some 15: a row is finished when one value is left between the bounds.
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
  """Turns the order of the negative ones round; its own inverse."""
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def row_keys(
  seed: UInt[Array, ''], index: UInt[Array, ' b']
) -> UInt[Array, 'b 2']:
  """Each row's key, by the index of its prompt in the run, as plain numbers."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(
    jax.random.key(seed, impl=_IMPL), index
  )
  return jax.random.key_data(keys)


def gumbel(context: Context, vocab_size: int) -> Float[Array, 'b w v']:
  """Noise whose largest sum with log-probabilities is a draw from them.

  Each place in each row's text has its own.
  """
  rows = jax.random.wrap_key_data(context.keys, impl=_IMPL)

  def at(row: Array, place: Array) -> Array:
    return jax.random.gumbel(jax.random.fold_in(row, place), (vocab_size,))

  place = context.length[:, None] + context.depth  # [B, W]
  return jax.vmap(jax.vmap(at, (None, 0)))(rows, place)
