"""Rounds on the device: draft, verify, commit; and plain steps."""

from __future__ import annotations

from collections.abc import Callable
import functools

from flax import nnx
import jax
import jax.numpy as jnp

from swift_jax import sampling as samplings
from swift_jax.decoding import drafting, tree, verification
from swift_jax.decoding import state as states
from swift_jax.decoding.drafting import DraftSettings, DraftShapes
from swift_jax.decoding.state import DecodeState, commit
from swift_jax.llama import GraphDef, Llama, Params
from swift_jax.sampling import Context, Sampling
from swift_jax.skip_mask import SkipMask
from swift_jax.typing import Array, Float, Int

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
    block, best = _next_tokens(logits, state, sampling, samples)
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


def _next_tokens(
  logits: Float[Array, 'b 1 v'],
  state: DecodeState,
  sampling: Sampling,
  samples: bool,
) -> tuple[Int[Array, 'b 1'], Int[Array, 'b 1']]:
  """A token a row after the committed text, and the target's argmax there."""
  nothing = jnp.zeros((*logits.shape[:2], 0), jnp.int32)
  context = Context(
    text=state.tokens,
    length=state.length,
    path=nothing,
    in_path=nothing.astype(bool),
    num_new=(state.length - state.prompt_length)[:, None],
  )
  best, written = samplings.best(logits, context, sampling)
  if samples:
    processed = samplings.process(logits, context, sampling)[:, 0]
    probs = samplings.probabilities(processed, sampling)
    written = samplings.draw(state.keys, probs, state.length)[:, None]
  return written, best


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
    return swift_round(
      model, state, skip_mask, full, settings, sampling, shapes
    )

  return _repeat(one, state, num_rounds)


def swift_round(
  model: Llama,
  state: DecodeState,
  skip_mask: SkipMask,
  full: SkipMask,
  settings: DraftSettings,
  sampling: Sampling,
  shapes: DraftShapes,
) -> DecodeState:
  """One round: every row that is not done gets at least one token."""
  with jax.named_scope('draft'):
    draft, cache = drafting.draft(
      model, state, skip_mask, settings, sampling, shapes
    )
  with jax.named_scope('verify'):
    nodes = tree.build(state.last_token, draft, settings, shapes)
    verified, updates = verification.verify(
      model, nodes, draft, cache, state, full, sampling, shapes
    )
    updates = verification.place_leaf(updates, verified)
  with jax.named_scope('commit'):
    active = ~state.done
    state = state.replace(
      cache=cache.write(updates),
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
    counts = state.counts
    counts = counts.replace(
      verify_passes=counts.verify_passes + active,
      drafted=counts.drafted + draft.length,
      accepted=counts.accepted + jnp.minimum(verified.num_accepted, kept),
      leaf_hits=counts.leaf_hits
      + (verified.leaf_hit & (kept > verified.num_accepted)),
      bonus_tokens=counts.bonus_tokens + (own_kept & verified.is_bonus),
      corrected_tokens=counts.corrected_tokens
      + (own_kept & ~verified.is_bonus),
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
