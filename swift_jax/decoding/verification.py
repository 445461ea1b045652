"""Verification: one pass of the target over the tree, and its verdict.

Sampling is lossless if every number that decides about a token is independent of
all that was looked at before (`acceptance`). Two things see to that. A place in the
text is decided once, in the round in which verification reaches it: so its keys
(for acceptance, siblings, the target's own draw) need nothing but the place. A place
may be drafted again in a later round, after what was drafted there has moved the
end of the round before: it kept or dropped leaves at other places. So a draft's
keys also hold the place where its round begins, which no two rounds of a row share.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from swift_jax import sampling as samplings
from swift_jax.decoding.acceptance import (
  accept_probability,
  refuse,
)
from swift_jax.decoding.drafting import Draft, DraftShapes
from swift_jax.decoding.state import DecodeState
from swift_jax.decoding.tree import Tree
from swift_jax.kv_cache import Updates
from swift_jax.llama import Llama
from swift_jax.sampling import Context, Sampling
from swift_jax.skip_mask import SkipMask
from swift_jax.typing import Array, Bool, Float, Int, UInt


class Verified(NamedTuple):
  """The target's word on a tree.

  Attributes:
    block: the accepted tokens, then the target's own, int32[B, W + 1].
    target: the target's argmax at the place of each of them, int32[B, W + 1].
    block_length: how many of them count, int32[B].
    num_accepted: accepted chain tokens, int32[B].
    leaf_hit: a leaf follows the accepted chain tokens, bool[B].
    leaf: its node (or that of the chain that would stand there), int32[B].
    is_bonus: the whole path was accepted, so that the target's own token takes
      nobody's place, bool[B].
    finite: all logits of the row's live nodes are finite, bool[B].
  """

  block: Int[Array, 'b w1']
  target: Int[Array, 'b w1']
  block_length: Int[Array, ' b']
  num_accepted: Int[Array, ' b']
  leaf_hit: Bool[Array, ' b']
  leaf: Int[Array, ' b']
  is_bonus: Bool[Array, ' b']
  finite: Bool[Array, ' b']


class Path(NamedTuple):
  """What was accepted of a tree, and the target's own token behind it."""

  num_accepted: Int[Array, ' b']
  leaf_hit: Bool[Array, ' b']
  leaf: Int[Array, ' b']
  own: Int[Array, ' b']


def verify(
  model: Llama,
  tree: Tree,
  draft: Draft,
  state: DecodeState,
  full: SkipMask,
  sampling: Sampling,
  shapes: DraftShapes,
) -> tuple[Verified, Updates]:
  """The verdict on a tree, in the smallest width that holds all its nodes.

  A branch returns its keys and values padded to the largest width, not the
  cache: that would be copied through the switch.

  Args:
    full: the mask that skips nothing, traced (see DESIGN: a pass behind gates
      that all run is faster on CPU than one without gates).

  Returns:
    The verdict and the pass's keys and values [B, K, W, H].
  """
  widest = shapes.max_width

  def branch(width: int) -> tuple[Verified, Updates]:
    part = tree.first(width)
    hidden, updates = model(
      part.tokens,
      full,
      positions=state.cache.length[:, None] + part.depth,
      attn_mask=part.attn_mask(),
      cache=state.cache,
    )
    logits = model.logits(hidden)  # [B, w, V]
    live = jnp.arange(width) < part.num_nodes[:, None]
    finite = (jnp.isfinite(logits.max(-1)) | ~live).all(-1)
    context = _context(part, state)
    best, written = samplings.best(logits, context, sampling)
    if shapes.samples:
      processed = samplings.process(logits, context, sampling)
      probs = samplings.probabilities(processed, sampling)
      path = accept_draws(part, draft, probs, state.keys, state.length)
    else:
      path = accept_best(part, written)
    verified = _verdict(part, path, best, finite)
    pad = widest - width
    rows = ((0, 0), (0, pad))
    verified = verified._replace(
      block=jnp.pad(verified.block, rows),
      target=jnp.pad(verified.target, rows),
    )
    pads = ((0, 0), (0, 0), (0, pad), (0, 0))
    return verified, jax.tree.map(lambda u: jnp.pad(u, pads), updates)

  widths = jnp.asarray(shapes.verify_widths)
  chosen = jnp.searchsorted(widths, tree.num_nodes.max(), side='left')
  branches = [lambda w=w: branch(w) for w in shapes.verify_widths]
  return jax.lax.switch(chosen, branches)


def _context(tree: Tree, state: DecodeState) -> Context:
  """A node's next token comes after its ancestors and itself."""
  # The root is the committed text's newest token, and counting it again is no
  # harm.
  return Context(
    text=state.tokens,
    length=state.length,
    path=jnp.broadcast_to(tree.tokens[:, None], tree.attn_mask().shape),
    in_path=tree.attn_mask(),
    num_new=(state.length - state.prompt_length)[:, None] + tree.depth,
  )


def accept_best(tree: Tree, target: Int[Array, 'b w']) -> Path:
  """Greedy: the longest path on which every token is the target's own.

  Args:
    target: what the target writes after each node.
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


def accept_draws(
  tree: Tree,
  draft: Draft,
  target_probs: Float[Array, 'b w v'],
  keys: UInt[Array, 'b 2'],
  length: Int[Array, ' b'],
) -> Path:
  """Sampling: the rule of `acceptance`, along the chain and then on its leaves.

  Args:
    target_probs: the target's warped distribution after each node.
    keys: of the rows, uint32[B, 2].
    length: committed tokens, the place of the first drafted one.
  """
  width = tree.tokens.shape[1]
  chain = tree.tokens[:, 1:]  # a candidate and its parent at the same index
  accept = accept_probability(
    target_probs[:, :-1], draft.probs[:, : width - 1], chain
  )
  index = jnp.arange(width)
  place = length[:, None] + index[:-1]  # [B, W - 1]
  spread = jnp.broadcast_to(keys[:, None], (*place.shape, keys.shape[-1]))
  uniform = _uniform(samplings.noise_keys(spread, samplings.ACCEPT, place))
  ok = (uniform < accept) & (index[1:] < tree.num_chain[:, None])
  num_accepted = jnp.cumprod(ok, axis=1).sum(1)  # [B]
  is_refused = num_accepted + 1 < tree.num_chain
  rows = jnp.arange(len(keys))
  # Where all was accepted the draft has no word: nothing is refused there.
  target = target_probs[rows, num_accepted]
  rest = draft.probs[rows, jnp.minimum(num_accepted, draft.probs.shape[1] - 1)]
  token = _at(tree.tokens, jnp.minimum(num_accepted + 1, width - 1))
  refused = refuse(target, rest, token)
  target = jnp.where(is_refused[:, None], refused[0], target)
  hit, leaf, target = _accept_leaf(
    tree, num_accepted, target, refused[1], keys, length + num_accepted
  )
  after = jnp.where(hit[:, None], target_probs[rows, leaf], target)
  own = samplings.draw(keys, after, length + num_accepted + hit)
  return Path(num_accepted, hit, leaf, own)


def _accept_leaf(
  tree: Tree,
  num_accepted: Int[Array, ' b'],
  target: Float[Array, 'b v'],
  rest: Float[Array, 'b v'],
  keys: UInt[Array, 'b 2'],
  place: Int[Array, ' b'],
) -> tuple[Bool[Array, ' b'], Int[Array, ' b'], Float[Array, 'b v']]:
  """Tries the leaves beside the refused token, in the order of their draws.

  Returns:
    Whether one was accepted, its node, and the residual after all refused ones.
  """
  width = tree.tokens.shape[1]
  beside = tree.is_leaf & (tree.ancestor == num_accepted[:, None])  # [B, W]
  order = jnp.cumsum(beside, axis=1)  # of a leaf: 1, 2, ...
  count = order[:, -1]
  siblings = samplings.noise_keys(keys, samplings.SIBLING, place)

  def undecided(carry: tuple[Array, ...]) -> Array:
    rank, hit, *_ = carry
    return (~hit & (rank < count)).any()

  def try_next(carry: tuple[Array, ...]) -> tuple[Array, ...]:
    rank, hit, leaf, target, rest = carry
    node = jnp.argmax(beside & (order == rank + 1), axis=1)
    token = _at(tree.tokens, node)
    tried = ~hit & (rank < count)
    uniform = _uniform(jax.vmap(jax.random.fold_in, (0, None))(siblings, rank))
    ok = uniform < accept_probability(target, rest, token)
    refused = tried & ~ok
    after = refuse(target, rest, token)
    return (
      rank + 1,
      hit | (tried & ok),
      jnp.where(tried & ok, node, leaf),
      jnp.where(refused[:, None], after[0], target),
      jnp.where(refused[:, None], after[1], rest),
    )

  nothing = jnp.zeros_like(count, bool)
  leaf = jnp.minimum(num_accepted + 1, width - 1)
  first = (jnp.int32(0), nothing, leaf, target, rest)
  _, hit, leaf, target, _ = jax.lax.while_loop(undecided, try_next, first)
  return hit, leaf, target


def _uniform(keys: Array) -> Float[Array, '*n']:
  """A number in [0, 1) from each key."""
  flat = jax.vmap(jax.random.uniform)(keys.ravel())
  return flat.reshape(keys.shape)


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
    is_bonus=leaf_hit | (num_accepted + 1 == tree.num_chain),
    finite=finite,
  )


def _at(values: Int[Array, 'b w'], index: Int[Array, ' b']) -> Int[Array, ' b']:
  """One value of each row."""
  return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]


def place_leaf(updates: Updates, verified: Verified) -> Updates:
  """Moves the accepted leaf's key and value to the slot after the chain's.

  Done on the pass's own keys and values before they are written, so committing a
  path never moves a row of the cache.
  """

  def move(new: Array) -> Array:  # [B, K, W, H]
    node = verified.leaf[:, None, None, None]
    leaf = jnp.take_along_axis(new, node, axis=2)
    after = verified.num_accepted[:, None] + 1
    slot = jnp.arange(new.shape[2]) == after  # [B, W]
    return jnp.where(slot[:, None, :, None], leaf, new)

  return jax.tree.map(move, updates)
