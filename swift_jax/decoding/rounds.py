"""Rounds on the device: draft, verify, commit; and plain steps."""

from __future__ import annotations

from collections.abc import Callable
import functools

from flax import nnx
import jax
import jax.numpy as jnp

from swift_jax.decoding import drafting, tree, verification
from swift_jax.decoding import state as states
from swift_jax.decoding.drafting import DraftSettings, DraftShapes
from swift_jax.decoding.state import DecodeState, StopRules, commit
from swift_jax.llama import GraphDef, Llama, Params
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
  jax.jit, static_argnames=('graphdef',), donate_argnames=('state',)
)
def plain_steps(
  graphdef: GraphDef,
  params: Params,
  state: DecodeState,
  full: SkipMask,
  stops: StopRules,
  num_steps: Int[Array, ''],
) -> DecodeState:
  """Up to `num_steps` tokens a row, one a pass of the whole model."""
  model = nnx.merge(graphdef, params)

  def step(state: DecodeState) -> DecodeState:
    hidden, updates = model(state.last_token[:, None], full, cache=state.cache)
    logits = model.logits(hidden)  # [B, 1, V]
    finite = jnp.isfinite(logits.max((-1, -2))) | state.done
    block = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    counts = state.counts.replace(
      verify_passes=state.counts.verify_passes + ~state.done
    )
    state = state.replace(
      cache=state.cache.write(updates),
      finite=state.finite & finite.all(),
      counts=counts,
    )
    return commit(state, block, block, jnp.ones_like(state.end), stops)[0]

  return _repeat(step, state, num_steps)


@functools.partial(
  jax.jit, static_argnames=('graphdef', 'shapes'), donate_argnames=('state',)
)
def swift_rounds(
  graphdef: GraphDef,
  params: Params,
  state: DecodeState,
  skip_mask: SkipMask,
  full: SkipMask,
  settings: DraftSettings,
  stops: StopRules,
  num_rounds: Int[Array, ''],
  shapes: DraftShapes,
) -> DecodeState:
  """Up to `num_rounds` rounds of draft, verify, commit.

  `full` skips nothing. It is an argument because a mask that XLA knows would let
  it remove the gates, and the ungated pass is slower on CPU.
  """
  model = nnx.merge(graphdef, params)

  def one(state: DecodeState) -> DecodeState:
    return swift_round(model, state, skip_mask, full, settings, stops, shapes)

  return _repeat(one, state, num_rounds)


def swift_round(
  model: Llama,
  state: DecodeState,
  skip_mask: SkipMask,
  full: SkipMask,
  settings: DraftSettings,
  stops: StopRules,
  shapes: DraftShapes,
) -> DecodeState:
  """One round: every row that is not done gets at least one token."""
  with jax.named_scope('draft'):
    draft, cache = drafting.draft(model, state, skip_mask, settings, shapes)
  with jax.named_scope('verify'):
    nodes = tree.build(state.last_token, draft, settings, shapes)
    target, finite, updates = verification.target_tokens(
      model, nodes, cache, full, shapes
    )
    verified, leaf = verification.accept(nodes, target)
    updates = verification.place_leaf(updates, leaf, verified.num_accepted)
  with jax.named_scope('commit'):
    active = ~state.done
    state = state.replace(
      cache=cache.write(updates),
      finite=state.finite & (finite | state.done).all(),
    )
    block = verified.block  # greedy: the target's argmax
    state, kept = commit(state, block, block, verified.block_length, stops)
    accepted = jnp.minimum(verified.num_accepted, kept)
    leaf_hit = verified.leaf_hit & (kept > verified.num_accepted)
    counts = state.counts
    counts = counts.replace(
      verify_passes=counts.verify_passes + active,
      drafted=counts.drafted + draft.length,
      accepted=counts.accepted + accepted,
      leaf_hits=counts.leaf_hits + leaf_hit,
    )
  return state.replace(counts=counts)


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
