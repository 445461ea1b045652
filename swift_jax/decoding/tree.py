"""The verification tree: a chain with leaves.

Nodes of a row stand in this order: the root (the newest committed token), the
drafted chain, then the leaves, the likeliest first; leaves of one depth keep
the draft's order. So an accepted path is a prefix of the nodes and at most one
leaf, and verify of any width takes the first nodes.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from swift_jax.decoding import policy
from swift_jax.decoding.drafting import Draft, DraftSettings, DraftShapes
from swift_jax.decoding.policy import Evidence
from swift_jax.typing import Array, Bool, Float, Int


@flax.struct.dataclass
class Tree:
  """Nodes to verify.

  Attributes:
    tokens: int32[B, W].
    ancestor: the last node of the chain on the way to a node; for root and
      chain the node itself, int32[B, W].
    depth: distance from the root, int32[B, W].
    num_chain: root and chain nodes of each row, int32[B].
    num_nodes: live nodes of each row; later nodes are padding, int32[B].
  """

  tokens: Int[Array, 'b w']
  ancestor: Int[Array, 'b w']
  depth: Int[Array, 'b w']
  num_chain: Int[Array, ' b']
  num_nodes: Int[Array, ' b']

  @property
  def is_leaf(self) -> Bool[Array, 'b w']:
    index = jnp.arange(self.tokens.shape[1])
    after_chain = index >= self.num_chain[:, None]
    return after_chain & (index < self.num_nodes[:, None])

  def attn_mask(self) -> Bool[Array, 'b w w']:
    """Which nodes see which: a node sees its ancestors and itself."""
    index = jnp.arange(self.tokens.shape[1])
    itself = index[:, None] == index
    return itself | (index <= self.ancestor[..., None])

  def first(self, width: int) -> Tree:
    """The tree of the first `width` nodes."""
    return self.replace(
      tokens=self.tokens[:, :width],
      ancestor=self.ancestor[:, :width],
      depth=self.depth[:, :width],
      num_nodes=jnp.minimum(self.num_nodes, width),
    )


def build(
  root: Int[Array, ' b'],
  draft: Draft,
  evidence: Evidence,
  settings: DraftSettings,
  shapes: DraftShapes,
  weight: Float[Array, ' b'],
) -> Tree:
  """The tree of a draft, at the largest width.

  Args:
    root: the newest committed token of each row.
    weight: of the rows; see `policy.weights`.
  """
  width = shapes.max_width
  index = jnp.arange(width)[None]  # [1, W]
  num_chain = draft.length + 1
  chain = jnp.concatenate([root[:, None], draft.tokens], axis=1)  # [B, W]
  in_chain = index < num_chain[:, None]
  if not shapes.num_leaves:
    return Tree(
      tokens=jnp.where(in_chain, chain, 0),
      ancestor=jnp.where(in_chain, index, 0),
      depth=jnp.where(in_chain, index, 0),
      num_chain=num_chain,
      num_nodes=num_chain,
    )
  leaf_tokens, leaf_depth, num_leaves, values = _leaves(
    draft, evidence, settings, shapes
  )
  if shapes.adaptive:
    width = policy.width(
      evidence, settings.costs, shapes.verify_widths, num_chain, values, weight
    )
  at = jnp.clip(index - num_chain[:, None], 0, leaf_tokens.shape[1] - 1)
  num_nodes = jnp.minimum(num_chain + num_leaves, width)
  is_leaf = ~in_chain & (index < num_nodes[:, None])
  depth = jnp.take_along_axis(leaf_depth, at, axis=1)
  depth = jnp.where(is_leaf, depth, 0)
  leaf = jnp.where(is_leaf, jnp.take_along_axis(leaf_tokens, at, axis=1), 0)
  return Tree(
    tokens=jnp.where(in_chain, chain, leaf),
    ancestor=jnp.where(in_chain, index, jnp.maximum(depth - 1, 0)),
    depth=jnp.where(in_chain, index, depth),
    num_chain=num_chain,
    num_nodes=num_nodes,
  )


def _leaves(
  draft: Draft,
  evidence: Evidence,
  settings: DraftSettings,
  shapes: DraftShapes,
) -> tuple[Array, Array, Array, Array]:
  """The likeliest leaves, at most M.

  At each depth the paper takes the top k, with k set by the confidence there:
  the chain's token and k - 1 leaves beside it. Leaves are ranked by the product
  of the confidences on the path to them and their own weight. The weight falls
  along a depth, so that the first leaves of each depth are kept. The policy
  takes as many leaves as pay; in place of a confidence it uses the share of
  tokens of such a confidence that was accepted.

  Returns:
    Tokens [B, M], depths [B, M], the number of leaves [B], and the chance of
    each leaf to be right [B, M].
  """
  max_leaves = shapes.max_width - 1
  depth = jnp.arange(draft.tokens.shape[1])
  live = depth < draft.length[:, None]  # [B, D]
  rank = jnp.arange(draft.leaf_tokens.shape[2]) + 1
  wanted = live[..., None] & (draft.leaf_weights > 0)
  if shapes.adaptive:
    sure = evidence.acceptance(draft.confidence)
  else:
    sure = draft.confidence
    k = settings.tree_widths[
      jnp.searchsorted(settings.tree_bounds, sure, side='left')
    ]
    wanted &= rank < k[..., None]
  log_path = jnp.cumsum(jnp.log(sure), axis=1)
  log_path = jnp.pad(log_path[:, :-1], ((0, 0), (1, 0)))
  score = log_path[..., None] + jnp.log(draft.leaf_weights)
  score = jnp.where(wanted, score, -jnp.inf)
  flat = score.reshape(score.shape[0], -1)
  best, picked = jax.lax.top_k(flat, min(max_leaves, flat.shape[1]))
  tokens = draft.leaf_tokens.reshape(flat.shape)
  tokens = jnp.take_along_axis(tokens, picked, axis=1)
  depths = picked // draft.leaf_tokens.shape[2] + 1
  count = jnp.minimum(wanted.sum((1, 2)), picked.shape[1])
  return tokens, depths, count, jnp.exp(best)
