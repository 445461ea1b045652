"""Rounds on the device: draft, verify, commit, learn; and plain steps."""

from __future__ import annotations

from collections.abc import Callable
import functools

from flax import nnx
import jax
import jax.numpy as jnp

from swift_jax.decoding import (
  bookkeeping,
  drafting,
  lookup,
  policy,
  tree,
  verification,
)
from swift_jax.decoding import sampling as samplings
from swift_jax.decoding import state as states
from swift_jax.decoding.bookkeeping import Drafted
from swift_jax.decoding.drafting import DraftSettings, DraftShapes
from swift_jax.decoding.sampling import Sampling
from swift_jax.decoding.state import DecodeState, commit
from swift_jax.model.llama import GraphDef, Llama, Params
from swift_jax.model.skip_mask import Mask
from swift_jax.typing import Array, Int

start = jax.jit(
  states.start,
  static_argnames=('num_widths', 'mesh'),
  donate_argnames=('cache', 'prompts'),
)


@functools.partial(
  jax.jit, static_argnames=('graphdef', 'chunk'), donate_argnames=('state',)
)
def prefill(
  graphdef: GraphDef,
  params: Params,
  state: DecodeState,
  none_skipped: Mask,
  start: Int[Array, ''],
  chunk: int,
) -> DecodeState:
  """Puts tokens [start, start + chunk) of every prompt into the cache.

  A row whose prompt is shorter writes dead slots. The mask `none_skipped` skips
  nothing. Afterwards the cache's `length` is the prompt's length - 1: the last
  token of the prompt is the root of the first pass.
  """
  model = nnx.merge(graphdef, params)
  batch = state.tokens.shape[0]
  tokens = jax.lax.dynamic_slice_in_dim(state.tokens, start, chunk, axis=1)
  with jax.named_scope('prefill'):
    cache = state.cache.rollback(jnp.full(batch, start, jnp.int32))
    _, updates = model(tokens, none_skipped, cache=cache)
    cache = cache.write(updates).rollback(state.prompt_length - 1)
  return state.replace(cache=cache).in_place()


@functools.partial(
  jax.jit, static_argnames=('graphdef', 'samples'), donate_argnames=('state',)
)
def plain_steps(
  graphdef: GraphDef,
  params: Params,
  state: DecodeState,
  none_skipped: Mask,
  sampling: Sampling,
  num_steps: Int[Array, ''],
  samples: bool,
) -> DecodeState:
  """Up to `num_steps` plain steps: each row gets one token a pass.

  Tokens are drawn if `samples`; else the most likely tokens are taken. The mask
  `none_skipped` skips nothing.
  """
  model = nnx.merge(graphdef, params)
  step = functools.partial(_plain_step, model, none_skipped, sampling, samples)
  return _repeat(lambda state, _: (step(state), 1), state, num_steps).in_place()


def _plain_step(
  model: Llama,
  none_skipped: Mask,
  sampling: Sampling,
  samples: bool,
  state: DecodeState,
) -> DecodeState:
  """One pass of the target, by which each row that is not done gets a token."""
  hidden, updates = model(
    state.last_token[:, None], none_skipped, cache=state.cache
  )
  logits = model.logits(hidden)  # [B, 1, V]
  finite = jnp.isfinite(logits.max((-1, -2))) | state.done
  nothing = jnp.zeros((*logits.shape[:2], 0), jnp.int32)
  at_end = jnp.zeros(logits.shape[:2], jnp.int32)
  context = state.context(nothing, nothing.astype(bool), at_end)
  best, block = samplings.choose(logits, context, sampling, samples)
  state = state.replace(
    cache=state.cache.write(updates), finite=state.finite & finite.all()
  )
  one = jnp.ones_like(state.end)
  return commit(state, block, best, one, sampling.eos_token_ids)[0]


@functools.partial(
  jax.jit, static_argnames=('graphdef', 'shapes'), donate_argnames=('state',)
)
def speculative_rounds(
  graphdef: GraphDef,
  params: Params,
  state: DecodeState,
  skip_mask: Mask,
  none_skipped: Mask,
  settings: DraftSettings,
  sampling: Sampling,
  num_rounds: Int[Array, ''],
  shapes: DraftShapes,
) -> DecodeState:
  """Up to `num_rounds` rounds of draft, verify, commit.

  The mask `none_skipped` skips nothing. It is an argument, because XLA removes the
  gates where it knows the mask; without gates CPUs are slower and GPUs are
  quicker.
  """
  model = nnx.merge(graphdef, params)

  def one(state: DecodeState, left: Array) -> tuple[DecodeState, Array]:
    drafted, state = _draft(model, state, skip_mask, settings, sampling, shapes)
    # Where two rounds are left, a round of plain steps makes two stretches and
    # counts twice: then the rest of a round's work is done once for both.
    is_plain = drafted.source == policy.PLAIN
    if shapes.adaptive:
      is_plain &= ~drafted.short_stretch
    used = jnp.where(is_plain, jnp.minimum(left, 2), 1)
    state = _verify(
      model, state, drafted, none_skipped, settings, sampling, shapes, used
    )
    return state, used

  return _repeat(one, state, num_rounds).in_place()


@functools.partial(
  jax.jit, static_argnames=('graphdef', 'shapes'), donate_argnames=('state',)
)
def draft_half(
  graphdef: GraphDef,
  params: Params,
  state: DecodeState,
  skip_mask: Mask,
  settings: DraftSettings,
  sampling: Sampling,
  shapes: DraftShapes,
) -> tuple[Drafted, DecodeState]:
  """Only the draft of a round, so that its time can be measured."""
  model = nnx.merge(graphdef, params)
  drafted, state = _draft(model, state, skip_mask, settings, sampling, shapes)
  return drafted, state.in_place()


@functools.partial(
  jax.jit, static_argnames=('graphdef', 'shapes'), donate_argnames=('state',)
)
def verify_half(
  graphdef: GraphDef,
  params: Params,
  state: DecodeState,
  drafted: Drafted,
  none_skipped: Mask,
  settings: DraftSettings,
  sampling: Sampling,
  shapes: DraftShapes,
) -> DecodeState:
  """The rest of a round after `draft_half`: verify, commit, learn."""
  model = nnx.merge(graphdef, params)
  state = _verify(
    model, state, drafted, none_skipped, settings, sampling, shapes
  )
  return state.in_place()


def _draft(
  model: Llama,
  state: DecodeState,
  skip_mask: Mask,
  settings: DraftSettings,
  sampling: Sampling,
  shapes: DraftShapes,
) -> tuple[Drafted, DecodeState]:
  """Drafts; the state's cache holds keys and values of the kept sublayers."""
  with jax.named_scope('draft'):
    if shapes.lookup:
      found = lookup.draft(state, settings, shapes)
      return Drafted(jnp.int32(policy.COPY), found), state
    layers = functools.partial(
      drafting.draft, model, state, skip_mask, settings, sampling, shapes
    )
    if not shapes.adaptive:
      chain, cache = layers()
      drafted = Drafted(jnp.int32(policy.LAYERS), chain)
      return drafted, state.replace(cache=cache)
    start, matched = lookup.find(
      state.tokens, state.length, settings.lookup_ngram
    )
    matched = jnp.where(settings.copies, matched, 0)
    weight = policy.weights(state.end - state.length, ~state.done)
    source, copy_length, short_stretch = policy.choose(
      state.evidence,
      settings.costs,
      shapes.verify_widths,
      matched,
      state.end - state.length - 1,
      weight,
    )
    is_forced = settings.forced >= 0
    source = jnp.where(is_forced, settings.forced, source)
    copy_length = jnp.where(is_forced, settings.lookup_length, copy_length)
    short_stretch &= ~is_forced
    is_copy = source == policy.COPY
    matched = jnp.where(is_forced & is_copy, jnp.maximum(matched, 1), matched)
    copied = lookup.copy(state, start, matched, copy_length, shapes)
    chain, cache = layers(wanted=source == policy.LAYERS)
    chain = jax.tree.map(lambda a, b: jnp.where(is_copy, a, b), copied, chain)
    drafted = Drafted(source, chain, matched, copied.tokens, short_stretch)
    return drafted, state.replace(cache=cache)


def _verify(
  model: Llama,
  state: DecodeState,
  drafted: Drafted,
  none_skipped: Mask,
  settings: DraftSettings,
  sampling: Sampling,
  shapes: DraftShapes,
  rounds: Int[Array, ''] | int = 1,
) -> DecodeState:
  """Verify and commit: every row that is not done gets at least one token.

  Where the policy chose to draft nothing, rows get plain steps instead.

  Args:
    none_skipped: the mask that skips nothing.
    rounds: rounds that a stretch of plain steps counts for.
  """
  source, draft = drafted.source, drafted.draft
  start, wanted = state, True
  if shapes.adaptive:
    wanted = source != policy.PLAIN
    steps = jnp.where(
      drafted.short_stretch, policy.SHORT_STRETCH, policy.STRETCH * rounds
    )
    steps = jnp.where(wanted, 0, steps)
    plain = functools.partial(
      _plain_step, model, none_skipped, sampling, shapes.samples
    )
    state = _repeat(lambda state, _: (plain(state), 1), state, steps)
  with jax.named_scope('verify'):
    live = ~state.done
    weight = policy.weights(state.end - state.length, live)
    nodes = tree.build(
      state.last_token, draft, state.evidence, settings, shapes, weight
    )
    verified, updates = verification.verify(
      model, nodes, state, none_skipped, sampling, shapes, wanted
    )
    updates = verification.place_leaf(updates, verified)
  with jax.named_scope('commit'):
    active = live & wanted
    state = state.replace(
      cache=state.cache.write(updates),
      finite=state.finite & (verified.finite | ~active).all(),
    )
    before = state
    state, kept = commit(
      state,
      verified.block,
      verified.target,
      verified.block_length,
      sampling.eos_token_ids,
    )
    log = bookkeeping.record(before, drafted, verified, kept, active)
    state = state.replace(log=log)
    if shapes.adaptive:
      state = bookkeeping.learn(
        start, state, drafted, verified, nodes, settings, shapes
      )
  return state


def _repeat(
  one: Callable[[DecodeState, Array], tuple[DecodeState, Array | int]],
  state: DecodeState,
  limit: Array,
) -> DecodeState:
  """Applies `one` up to `limit` times, until every row is done.

  It also stops at a logit that is not finite.

  Args:
    one: takes the state and how many times are left. Returns the new state and
      how many times this call counts for.
  """

  def unfinished(carry: tuple[Array, DecodeState]) -> Array:
    count, state = carry
    return (count < limit) & ~state.done.all() & state.finite

  def body(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
    count, state = carry
    state, used = one(state, limit - count)
    return count + used, state

  return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]
