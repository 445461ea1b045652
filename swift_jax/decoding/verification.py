"""Verification: one pass of the target over the tree, and the verdict."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from swift_jax.decoding import sampling as samplings
from swift_jax.decoding.drafting import DraftShapes
from swift_jax.decoding.sampling import Sampling
from swift_jax.decoding.state import DecodeState
from swift_jax.decoding.tree import Tree
from swift_jax.model.kv_cache import Updates
from swift_jax.model.llama import Llama
from swift_jax.model.skip_mask import Mask
from swift_jax.typing import Array, Bool, Int


class Verified(NamedTuple):
  """The target's verdict on a tree.

  Attributes:
    block: the accepted tokens, then the target's own token, int32[B, W + 1].
    target: the target's argmax at the place of each token of the block,
      int32[B, W + 1].
    block_length: tokens of the block that count, int32[B].
    num_accepted: accepted chain tokens, int32[B].
    leaf_hit: whether an accepted leaf follows the accepted chain, bool[B].
    leaf: the node of that leaf; without one, the chain's node at that depth,
      int32[B].
    finite: all logits of the row's live nodes are finite, bool[B].
  """

  block: Int[Array, 'b w1']
  target: Int[Array, 'b w1']
  block_length: Int[Array, ' b']
  num_accepted: Int[Array, ' b']
  leaf_hit: Bool[Array, ' b']
  leaf: Int[Array, ' b']
  finite: Bool[Array, ' b']


class Path(NamedTuple):
  """The accepted path of a tree, and the target's own token after it."""

  num_accepted: Int[Array, ' b']
  leaf_hit: Bool[Array, ' b']
  leaf: Int[Array, ' b']
  own: Int[Array, ' b']


def verify(
  model: Llama,
  tree: Tree,
  state: DecodeState,
  none_skipped: Mask,
  sampling: Sampling,
  shapes: DraftShapes,
  wanted: Bool[Array, ''] | bool = True,
) -> tuple[Verified, Updates]:
  """Verifies a tree, in the smallest width that holds all its nodes.

  Where verifying is not `wanted`, no pass is run and all blocks are empty.

  A branch returns its keys and values padded to the largest width. It does not
  return the cache, which the switch would copy.

  Args:
    none_skipped: the mask that skips nothing.

  Returns:
    The verdict and the pass's keys and values [B, K, W, H].
  """
  widest = shapes.max_width

  def branch(width: int) -> tuple[Verified, Updates]:
    nodes = tree.first(width)
    hidden, updates = model(
      nodes.tokens,
      none_skipped,
      positions=state.cache.length[:, None] + nodes.depth,
      attn_mask=nodes.attn_mask(),
      cache=state.cache,
    )
    logits = model.logits(hidden)  # [B, w, V]
    live = jnp.arange(width) < nodes.num_nodes[:, None]
    finite = (jnp.isfinite(logits.max(-1)) | ~live).all(-1)
    # A node's next token comes after its ancestors and itself. The root is also
    # the newest token of the committed text; counting it twice does no harm.
    seen = nodes.attn_mask()
    path = jnp.broadcast_to(nodes.tokens[:, None], seen.shape)
    context = state.context(path, seen, nodes.depth)
    best, written = samplings.choose(logits, context, sampling, shapes.samples)
    verified = _verdict(nodes, follow(nodes, written), best, finite)
    pad = widest - width
    rows = ((0, 0), (0, pad))
    verified = verified._replace(
      block=jnp.pad(verified.block, rows),
      target=jnp.pad(verified.target, rows),
    )
    return verified, jax.tree.map(lambda u: _pad(u, pad), updates)

  widths = jnp.asarray(shapes.verify_widths)
  chosen = jnp.searchsorted(widths, tree.num_nodes.max(), side='left')
  branches = [lambda w=w: branch(w) for w in shapes.verify_widths]
  if wanted is True:
    return jax.lax.switch(chosen, branches)
  result = jax.eval_shape(branches[-1])
  branches.append(
    lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), result)
  )
  return jax.lax.switch(jnp.where(wanted, chosen, len(widths)), branches)


def _pad(new: Array, pad: int) -> Array:
  """New keys or values [..., w, H], zeros after them."""
  return jnp.pad(new, [(0, 0)] * (new.ndim - 2) + [(0, pad), (0, 0)])


def follow(tree: Tree, target: Int[Array, 'b w']) -> Path:
  """The longest path on which the target would write every token.

  Args:
    target: the token that the target writes after each node.
  """
  width = target.shape[1]
  index = jnp.arange(width)
  match = tree.tokens[:, 1:] == target[:, :-1]
  match &= index[1:] < tree.num_chain[:, None]
  num_accepted = jnp.cumprod(match, axis=1).sum(1)  # [B]
  after = _at(target, num_accepted)
  beside = tree.is_leaf & (tree.ancestor == num_accepted[:, None])
  hits = beside & (tree.tokens == after[:, None])
  leaf_hit = hits.any(1)
  next_slot = jnp.minimum(num_accepted + 1, width - 1)
  leaf = jnp.where(leaf_hit, jnp.argmax(hits, axis=1), next_slot)
  own = jnp.where(leaf_hit, _at(target, leaf), after)
  return Path(num_accepted, leaf_hit, leaf, own)


def _verdict(
  tree: Tree, path: Path, best: Int[Array, 'b w'], finite: Bool[Array, ' b']
) -> Verified:
  """The path's tokens and the target's argmax at each of them."""
  batch, width = best.shape
  num_accepted, leaf_hit, leaf, own = path
  index = jnp.arange(width + 1)
  at_leaf = index == num_accepted[:, None]
  at_own = index == (num_accepted + leaf_hit)[:, None]
  block = jnp.pad(tree.tokens[:, 1:], ((0, 0), (0, 2)))
  block = jnp.where(at_leaf, _at(tree.tokens, leaf)[:, None], block)
  block = jnp.where(at_own, own[:, None], block)
  target = jnp.pad(best, ((0, 0), (0, 1)))
  follows_leaf = leaf_hit[:, None] & (index == num_accepted[:, None] + 1)
  target = jnp.where(follows_leaf, _at(best, leaf)[:, None], target)
  return Verified(
    block=block,
    target=target,
    block_length=num_accepted + 1 + leaf_hit,
    num_accepted=num_accepted,
    leaf_hit=leaf_hit,
    leaf=leaf,
    finite=finite,
  )


def _at(values: Int[Array, 'b w'], index: Int[Array, ' b']) -> Int[Array, ' b']:
  """One value of each row."""
  return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]


def place_leaf(updates: Updates, verified: Verified) -> Updates:
  """Moves the accepted leaf's key and value to the slot after the chain's.

  This changes the pass's own keys and values before they are written. So a
  commit never moves a row of the cache.
  """

  def move(new: Array) -> Array:  # [B, K, W, H], or of all layers
    node = verified.leaf[:, None, None, None]
    node = node.reshape((1,) * (new.ndim - 4) + node.shape)
    leaf = jnp.take_along_axis(new, node, axis=-2)
    after = verified.num_accepted[:, None] + 1
    slot = jnp.arange(new.shape[-2]) == after  # [B, W]
    return jnp.where(slot[:, None, :, None], leaf, new)

  return jax.tree.map(move, updates)
