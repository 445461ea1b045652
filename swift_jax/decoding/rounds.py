"""Rounds on the device: draft, verify, commit; and plain steps."""

from __future__ import annotations

from collections.abc import Callable
import functools

from flax import nnx
import jax
import jax.numpy as jnp

from swift_jax import sampling as samplings
from swift_jax.decoding import drafting, lookup, tree, verification
from swift_jax.decoding import state as states
from swift_jax.decoding.drafting import Draft, DraftSettings, DraftShapes
from swift_jax.decoding.state import Counts, DecodeState, commit
from swift_jax.llama import GraphDef, Llama, Params
from swift_jax.sampling import Sampling
from swift_jax.skip_mask import SkipMask
from swift_jax.typing import Array, Int

start = jax.jit(states.start, donate_argnames=('cache', 'prompts'))


@functools.partial(
  jax.jit, static_argnames=('graphdef', 'chunk'), donate_argnames=('state',)
)
def prefill(
  graphdef: GraphDef,
  params: Params,
  state: DecodeState,
  full: SkipMask,
  start: Int[Array, ''],
  chunk: int,
) -> DecodeState:
  """Puts tokens [start, start + chunk) of every prompt into the cache.

  A row whose prompt is shorter writes dead slots. `full` skips nothing. The
  cache's `length` ends at the prompt's length - 1: the last token of the prompt
  is the first pass's root.
  """
  model = nnx.merge(graphdef, params)
  batch = state.tokens.shape[0]
  tokens = jax.lax.dynamic_slice_in_dim(state.tokens, start, chunk, axis=1)
  with jax.named_scope('prefill'):
    cache = state.cache.rollback(jnp.full(batch, start, jnp.int32))
    _, updates = model(tokens, full, cache=cache)
    cache = cache.write(updates).rollback(state.prompt_length - 1)
  return state.replace(cache=cache)


@functools.partial(
  jax.jit, static_argnames=('graphdef', 'samples'), donate_argnames=('state',)
)
def plain_steps(
  graphdef: GraphDef,
  params: Params,
  state: DecodeState,
  full: SkipMask,
  sampling: Sampling,
  num_steps: Int[Array, ''],
  samples: bool,
) -> DecodeState:
  """Up to `num_steps` tokens a row, one a pass of the whole model.

  They are drawn if it `samples`, else the most likely ones.
  """
  model = nnx.merge(graphdef, params)

  def step(state: DecodeState) -> DecodeState:
    hidden, updates = model(state.last_token[:, None], full, cache=state.cache)
    logits = model.logits(hidden)  # [B, 1, V]
    finite = jnp.isfinite(logits.max((-1, -2))) | state.done
    nothing = jnp.zeros((*logits.shape[:2], 0), jnp.int32)
    at_end = jnp.zeros(logits.shape[:2], jnp.int32)
    context = state.context(nothing, nothing.astype(bool), at_end)
    best, block = samplings.choose(logits, context, sampling, samples)
    counts = state.counts.replace(
      verify_passes=state.counts.verify_passes + ~state.done
    )
    state = state.replace(
      cache=state.cache.write(updates),
      finite=state.finite & finite.all(),
      counts=counts,
    )
    one = jnp.ones_like(state.end)
    return commit(state, block, best, one, sampling.eos_token_ids)[0]

  return _repeat(step, state, num_steps)


@functools.partial(
  jax.jit, static_argnames=('graphdef', 'shapes'), donate_argnames=('state',)
)
def speculative_rounds(
  graphdef: GraphDef,
  params: Params,
  state: DecodeState,
  skip_mask: SkipMask,
  full: SkipMask,
  settings: DraftSettings,
  sampling: Sampling,
  num_rounds: Int[Array, ''],
  shapes: DraftShapes,
) -> DecodeState:
  """Up to `num_rounds` rounds of draft, verify, commit.

  `full` skips nothing. It is an argument because a mask that XLA knows would let
  it remove the gates, and the ungated pass is slower on CPU.
  """
  model = nnx.merge(graphdef, params)

  def one(state: DecodeState) -> DecodeState:
    drafted, state = _draft(model, state, skip_mask, settings, sampling, shapes)
    return _verify(model, state, drafted, full, settings, sampling, shapes)

  return _repeat(one, state, num_rounds)


@functools.partial(
  jax.jit, static_argnames=('graphdef', 'shapes'), donate_argnames=('state',)
)
def draft_half(
  graphdef: GraphDef,
  params: Params,
  state: DecodeState,
  skip_mask: SkipMask,
  settings: DraftSettings,
  sampling: Sampling,
  shapes: DraftShapes,
) -> tuple[Draft, DecodeState]:
  """The draft of a round alone, so that its time can be taken."""
  model = nnx.merge(graphdef, params)
  return _draft(model, state, skip_mask, settings, sampling, shapes)


@functools.partial(
  jax.jit, static_argnames=('graphdef', 'shapes'), donate_argnames=('state',)
)
def verify_half(
  graphdef: GraphDef,
  params: Params,
  state: DecodeState,
  draft: Draft,
  full: SkipMask,
  settings: DraftSettings,
  sampling: Sampling,
  shapes: DraftShapes,
) -> DecodeState:
  """What is left of a round after `draft_half`."""
  model = nnx.merge(graphdef, params)
  return _verify(model, state, draft, full, settings, sampling, shapes)


def _draft(
  model: Llama,
  state: DecodeState,
  skip_mask: SkipMask,
  settings: DraftSettings,
  sampling: Sampling,
  shapes: DraftShapes,
) -> tuple[Draft, DecodeState]:
  """What verify is to look at; the cache holds the kept sublayers' part of it."""
  with jax.named_scope('draft'):
    if shapes.lookup:
      return lookup.draft(state, settings, shapes), state
    drafted, cache = drafting.draft(
      model, state, skip_mask, settings, sampling, shapes
    )
    return drafted, state.replace(cache=cache)


def _verify(
  model: Llama,
  state: DecodeState,
  draft: Draft,
  full: SkipMask,
  settings: DraftSettings,
  sampling: Sampling,
  shapes: DraftShapes,
) -> DecodeState:
  """Verify and commit: every row that is not done gets at least one token."""
  with jax.named_scope('verify'):
    nodes = tree.build(state.last_token, draft, settings, shapes)
    verified, updates = verification.verify(
      model, nodes, state, full, sampling, shapes
    )
    updates = verification.place_leaf(updates, verified)
  with jax.named_scope('commit'):
    before = state.counts
    active = ~state.done
    state = state.replace(
      cache=state.cache.write(updates),
      finite=state.finite & (verified.finite | state.done).all(),
    )
    state, kept = commit(
      state,
      verified.block,
      verified.target,
      verified.block_length,
      sampling.eos_token_ids,
    )
    own_kept = kept == verified.block_length  # never 0
    accepted = jnp.minimum(verified.num_accepted, kept)
    counts = Counts(
      verify_passes=before.verify_passes + active,
      drafted=before.drafted + draft.length,
      accepted=before.accepted + accepted,
      leaf_hits=before.leaf_hits
      + (verified.leaf_hit & (kept > verified.num_accepted)),
      bonus_tokens=before.bonus_tokens + (own_kept & verified.is_bonus),
      corrected_tokens=before.corrected_tokens
      + (own_kept & ~verified.is_bonus),
    )
    line = jnp.stack([draft.length, accepted, kept], axis=-1)  # [B, 3]
    at = jnp.where(active, before.verify_passes, state.log.shape[1])
    rows = jnp.arange(len(at))
    log = state.log.at[rows, at].set(line, mode='drop')
  return state.replace(counts=counts, log=log)


def _repeat(
  one: Callable[[DecodeState], DecodeState], state: DecodeState, most: Array
) -> DecodeState:
  """Applies `one` up to `most` times, until every row is done."""

  def unfinished(carry: tuple[Array, DecodeState]) -> Array:
    count, state = carry
    return (count < most) & ~state.done.all() & state.finite

  def body(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
    count, state = carry
    return count + 1, one(state)

  return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]
