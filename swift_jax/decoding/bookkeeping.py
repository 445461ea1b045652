"""What a round records: counts, a line of the log, and evidence."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from swift_jax.decoding import policy
from swift_jax.decoding.drafting import Draft, DraftSettings, DraftShapes
from swift_jax.decoding.state import Counts, DecodeState
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


def count(
  state: DecodeState,
  drafted: Drafted,
  verified: Verified,
  kept: Int[Array, ' b'],
  active: Bool[Array, ' b'],
) -> DecodeState:
  """The state with a finished round counted and logged.

  Args:
    kept: tokens of the round that each row committed.
    active: rows that took part in the round.
  """
  before, length = state.counts, drafted.draft.length
  own_kept = active & (kept == verified.block_length)
  accepted = jnp.minimum(verified.num_accepted, kept)
  is_copy = drafted.source == policy.COPY
  counts = Counts(
    verify_passes=before.verify_passes + active,
    drafted=before.drafted + length,
    accepted=before.accepted + accepted,
    copied=before.copied + is_copy * length,
    copies_accepted=before.copies_accepted + is_copy * accepted,
    leaf_hits=before.leaf_hits
    + (verified.leaf_hit & (kept > verified.num_accepted)),
    bonus_tokens=before.bonus_tokens + (own_kept & verified.is_bonus),
    corrected_tokens=before.corrected_tokens + (own_kept & ~verified.is_bonus),
  )
  line = jnp.stack([length, accepted, kept], axis=-1)[:, None]  # [B, 1, 3]
  return state.replace(counts=counts, log=log(state, line, active))


def log(
  state: DecodeState, lines: Int[Array, 'b m 3'], num_new: Array
) -> Int[Array, 'b s 3']:
  """The log with the first `num_new` [B] of `lines` appended to each row."""
  number = jnp.arange(lines.shape[1])
  at = state.counts.verify_passes[:, None] + number  # [B, M]
  at = jnp.where(number < num_new[:, None], at, state.log.shape[1])
  rows = jnp.arange(len(at))[:, None]
  return state.log.at[rows, at].set(lines, mode='drop')


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
