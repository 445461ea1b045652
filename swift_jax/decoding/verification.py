"""Verification: one pass of the target over the tree, greedy acceptance."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from swift_jax.decoding.drafting import DraftShapes
from swift_jax.decoding.tree import Tree
from swift_jax.kv_cache import KVCache, Updates
from swift_jax.llama import Llama
from swift_jax.skip_mask import SkipMask
from swift_jax.typing import Array, Bool, Int


class Verified(NamedTuple):
  """The target's word on a tree.

  Attributes:
    block: the target's tokens along the accepted path, int32[B, W + 1].
    block_length: how many of them count: the accepted tokens and the target's
      own next token, int32[B].
    num_accepted: accepted chain tokens, int32[B].
    leaf_hit: a leaf follows the accepted chain tokens, bool[B].
  """

  block: Int[Array, 'b w1']
  block_length: Int[Array, ' b']
  num_accepted: Int[Array, ' b']
  leaf_hit: Bool[Array, ' b']


def target_tokens(
  model: Llama,
  tree: Tree,
  cache: KVCache,
  full: SkipMask,
  shapes: DraftShapes,
) -> tuple[Int[Array, 'b w'], Bool[Array, ' b'], Updates]:
  """The target's argmax after each node, in the smallest width that holds all.

  A branch returns its keys and values padded to the largest width, not the
  cache: that would be copied through the switch.

  Args:
    full: the mask that skips nothing, traced (see DESIGN: a pass behind gates
      that all run is faster on CPU than one without gates).

  Returns:
    Tokens, whether all logits of the row's live nodes are finite, and the new
    keys and values [B, K, W, H].
  """
  widest = shapes.max_width

  def verify(width: int) -> tuple[Array, Array, Updates]:
    part = tree.first(width)
    hidden, updates = model(
      part.tokens,
      full,
      positions=cache.length[:, None] + part.depth,
      attn_mask=part.attn_mask(),
      cache=cache,
    )
    logits = model.logits(hidden)
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    live = jnp.arange(width) < part.num_nodes[:, None]
    finite = (jnp.isfinite(logits.max(-1)) | ~live).all(-1)
    pad = ((0, 0), (0, 0), (0, widest - width), (0, 0))
    updates = jax.tree.map(lambda u: jnp.pad(u, pad), updates)
    return jnp.pad(best, ((0, 0), (0, widest - width))), finite, updates

  widths = jnp.asarray(shapes.verify_widths)
  chosen = jnp.searchsorted(widths, tree.num_nodes.max(), side='left')
  branches = [lambda w=w: verify(w) for w in shapes.verify_widths]
  return jax.lax.switch(chosen, branches)


def accept(tree: Tree, target: Int[Array, 'b w']) -> tuple[Verified, Array]:
  """The longest path on which every token is the target's own.

  Returns:
    The verdict, and the node of the accepted leaf (or of the chain node that
    would stand there), int32[B].
  """
  width = target.shape[1]
  index = jnp.arange(width)
  match = tree.tokens[:, 1:] == target[:, :-1]
  match &= index[1:] < tree.num_chain[:, None]
  num_accepted = jnp.cumprod(match, axis=1).sum(1)  # [B]
  after = jnp.take_along_axis(target, num_accepted[:, None], axis=1)
  beside = tree.is_leaf & (tree.ancestor == num_accepted[:, None])
  hits = beside & (tree.tokens == after)
  leaf_hit = hits.any(1)
  next_slot = jnp.minimum(num_accepted + 1, width - 1)
  node = jnp.where(leaf_hit, jnp.argmax(hits, axis=1), next_slot)
  bonus = jnp.take_along_axis(target, node[:, None], axis=1)
  # Along the chain the accepted tokens are the target's after each parent.
  block = jnp.pad(target, ((0, 0), (0, 1)))
  follows_leaf = jnp.arange(width + 1) == num_accepted[:, None] + 1
  block = jnp.where(follows_leaf, bonus, block)
  verified = Verified(
    block, num_accepted + 1 + leaf_hit, num_accepted, leaf_hit
  )
  return verified, node


def place_leaf(updates: Updates, node: Array, num_accepted: Array) -> Updates:
  """Moves the accepted leaf's key and value to the slot after the chain's.

  Done on the pass's own keys and values before they are written, so committing a
  path never moves a row of the cache.
  """

  def move(new: Array) -> Array:  # [B, K, W, H]
    leaf = jnp.take_along_axis(new, node[:, None, None, None], axis=2)
    slot = jnp.arange(new.shape[2]) == num_accepted[:, None] + 1  # [B, W]
    return jnp.where(slot[:, None, :, None], leaf, new)

  return jax.tree.map(move, updates)
