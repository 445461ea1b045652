"""What a round records: a line of the log, and evidence."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from swift_jax.decoding import policy
from swift_jax.decoding.drafting import Draft, DraftSettings, DraftShapes
from swift_jax.decoding.state import LOG_DTYPE, DecodeState
from swift_jax.decoding.tree import Tree
from swift_jax.decoding.verification import Verified
from swift_jax.typing import Array, Bool, Int


class Drafted(NamedTuple):
  """A round's draft, and what the policy learns from it.

  The last three are None without the policy.

  Attributes:
    source: who drafted, by `policy`'s numbers.
    draft: the draft; empty where the source is `policy.PLAIN`.
    matched: how many of the newest tokens stood in the text before, int32[B].
    copied: the tokens that followed them there, int32[B, D].
    short_stretch: a stretch of plain steps is to be short, because a copy may
      pay soon.
  """

  source: Int[Array, '']
  draft: Draft
  matched: Int[Array, ' b'] | None = None
  copied: Int[Array, 'b d'] | None = None
  short_stretch: Bool[Array, ''] | None = None


def record(
  start: DecodeState,
  drafted: Drafted,
  verified: Verified,
  kept: Int[Array, ' b'],
  active: Bool[Array, ' b'],
) -> Int[Array, 'b 5 s']:
  """The log with a line for the round that began at `start`.

  All later figures of rounds are computed from these lines.

  Args:
    kept: tokens of the round that each row committed.
    active: rows that took part in the round.
  """
  accepted = jnp.minimum(verified.num_accepted, kept)
  has_leaf = verified.leaf_hit & (kept > verified.num_accepted)
  source = jnp.broadcast_to(drafted.source, kept.shape)
  line = drafted.draft.length, accepted, kept, has_leaf, source
  lines = jnp.stack([value.astype(LOG_DTYPE) for value in line], axis=1)
  at = jnp.where(active, start.length, start.log.shape[2])
  rows = jnp.arange(len(at))
  return start.log.at[rows, :, at].set(lines, mode='drop')


def learn(
  start: DecodeState,
  state: DecodeState,
  drafted: Drafted,
  verified: Verified,
  nodes: Tree,
  settings: DraftSettings,
  shapes: DraftShapes,
) -> DecodeState:
  """The state with what a round showed of its source, in tokens and in work.

  Args:
    start: the state before the round.
    state: the state after its commit.
  """
  source, draft, live = drafted.source, drafted.draft, ~start.done
  written = state.length - start.length
  by_layers = (source == policy.LAYERS) & live
  evidence = policy.learn_confidence(
    state.evidence,
    draft.confidence,
    jnp.where(by_layers, draft.length, 0),
    verified.num_accepted,
  )
  places = start.length[:, None] + jnp.arange(drafted.copied.shape[1])
  evidence = policy.learn_copies(
    evidence,
    jnp.where(live, drafted.matched, 0),
    drafted.copied,
    jnp.take_along_axis(state.tokens, places, axis=1, mode='clip'),
    written,
  )
  is_plain = source == policy.PLAIN
  widths = shapes.verify_widths
  at = policy.width_index(widths, nodes.num_nodes.max())
  by_width = ~is_plain & (jnp.arange(len(widths)) == at)
  num_drafted = (by_layers * draft.length).max()
  work = jnp.stack([is_plain * written.max(), num_drafted, *by_width])
  work = work.astype(jnp.int32)
  costs = settings.costs
  cost = work @ jnp.stack([1.0, costs.draft, *costs.verify])
  weight = policy.weights(start.end - start.length, live)
  tokens = policy.progress(written.astype(jnp.float32), weight)
  return state.replace(
    evidence=policy.learn_rate(evidence, source, tokens, cost),
    work=state.work + work,
  )
