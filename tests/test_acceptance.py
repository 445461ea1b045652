"""The acceptance rule, enumerated: what comes out of a block is the target's law."""

import itertools
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swift_jax import sampling as samplings
from swift_jax.config import DraftConfig
from swift_jax.decoding import drafting, tree, verification
from swift_jax.decoding.acceptance import accept_probability, refuse
from swift_jax.decoding.drafting import Draft

V, DEPTH, LEAVES = 8, 3, 2
ROWS = (
  (V * (V - 1) * (V - 2)) * (V * (V - 1)) * V
)  # candidates of a 3, 2, 1 tree


def warped(rng, kind):
  """A distribution of the kind that settings make."""
  logits = rng.normal(0, 2, V)
  if kind == 'zeros':
    logits[rng.permutation(V)[: rng.integers(1, V)]] = -np.inf
  elif kind == 'near 0':
    logits = logits / 0.01
  elif kind == 'one':  # top-k 1, a tiny top-p
    logits[logits < logits.max()] = -np.inf
  probs = np.exp(logits - logits.max())
  return probs / probs.sum()


@st.composite
def laws(draw):
  """Target and draft distributions [8] after each text of 0 to 2 tokens."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  kinds = ['any', 'zeros', 'near 0', 'one']
  pairs = st.sampled_from([*itertools.product(kinds, kinds), 'same', 'apart'])
  target, draft = [], []
  for depth in range(DEPTH):
    pair = draw(pairs)
    for _ in range(V**depth):
      one, two = rng.permutation(V)[:4], np.arange(V)
      if pair == 'same':
        first = second = warped(rng, 'any')
      elif pair == 'apart':
        first, second = warped(rng, 'any'), warped(rng, 'any')
        first[one], second[np.setdiff1d(two, one)] = 0, 0
        first, second = first / first.sum(), second / second.sum()
      else:
        first, second = (warped(rng, kind) for kind in pair)
      target.append(first)
      draft.append(second)
  return np.array(target), np.array(draft)


def state_of(tokens):
  """Index of the law after a text of up to two tokens."""
  return {0: 0, 1: 1, 2: 1 + V}[len(tokens)] + sum(
    t * V ** (len(tokens) - 1 - i) for i, t in enumerate(tokens)
  )


def candidates(probs, count):
  """All draws of `count` tokens without replacement: (tokens, probability).

  Where the tokens run out, what follows is no token: -1.
  """
  if count == 0:
    return [((), 1.0)]
  if not probs.any():
    return [((-1,) * count, 1.0)]
  found = []
  for token in np.flatnonzero(probs):
    rest = probs.copy()
    rest[token] = 0
    mass = rest.sum()
    for more, prob in candidates(rest / mass if mass else rest, count - 1):
      found.append(((int(token), *more), probs[token] * prob))
  return found


class Drafts(NamedTuple):
  """Every draft that can be drawn, a row each, padded to ROWS with weight 0."""

  draft: Draft
  weight: np.ndarray
  laws: np.ndarray  # index of the law at each depth [B, DEPTH]


def all_drafts(draft_laws, threshold):
  """Three candidates at depth 1, two at depth 2, one at depth 3, in all ways."""
  rows = []

  def grow(chain, leaves, weight):
    depth = len(chain)
    if depth == DEPTH:
      rows.append((chain, leaves, weight))
      return
    probs = draft_laws[state_of(chain)]
    for tokens, prob in candidates(probs, DEPTH - depth):
      beside = (*tokens[1:], -1, -1)[:LEAVES]
      grow((*chain, tokens[0]), (*leaves, beside), weight * prob)

  grow((), (), 1.0)
  chain = np.zeros((ROWS, DEPTH), np.int32)
  leaf_tokens = np.full((ROWS, DEPTH, LEAVES), -1, np.int32)
  weight = np.zeros(ROWS)
  chain[: len(rows)] = [row[0] for row in rows]
  leaf_tokens[: len(rows)] = [row[1] for row in rows]
  weight[: len(rows)] = [row[2] for row in rows]
  which = np.stack(
    [0 * chain[:, 0], 1 + chain[:, 0], 1 + V + V * chain[:, 0] + chain[:, 1]],
    axis=1,
  )
  probs = draft_laws[which]  # [B, DEPTH, V]
  drawn = np.concatenate([chain[..., None], leaf_tokens], axis=-1)
  shares = np.take_along_axis(probs, np.maximum(drawn, 0), axis=-1)
  left = 1 - np.cumsum(np.where(drawn >= 0, shares, 0), axis=-1)[..., :-1]
  confidence = probs.max(-1)
  # As the loop: a draft ends after a token of low confidence.
  goes_on = np.cumprod(confidence[:, :-1] >= threshold, axis=1)
  draft = Draft(
    tokens=chain,
    confidence=confidence.astype(np.float32),
    leaf_tokens=np.maximum(leaf_tokens, 0),
    leaf_weights=np.where(leaf_tokens >= 0, np.maximum(left, 1e-30), 0).astype(
      np.float32
    ),
    probs=probs,
    length=(1 + goes_on.sum(1)).astype(np.int32),
  )
  return Drafts(draft, weight, which)


@jax.jit
def outcomes(nodes, draft, target_probs):
  """For each row: how a block ends, by the implemented rule.

  Returns:
    Probabilities: all accepted [B]; that the leaf of rank r at depth i was [B, D,
    R], and its token; and of each token as the residual's draw at depth i
    [B, D, V].
  """
  reached = jnp.ones(len(draft.tokens), draft.probs.dtype)
  leaf_probs, leaf_tokens, residuals = [], [], []
  for i in range(DEPTH):
    is_live = i + 1 < nodes.num_chain
    target, rest = target_probs[:, i], draft.probs[:, i]
    token = nodes.tokens[:, i + 1]
    accept = accept_probability(target, rest, token)
    open_mass = jnp.where(is_live, reached * (1 - accept), 0)
    target, rest = refuse(target, rest, token)
    beside = nodes.is_leaf & (nodes.ancestor == i)
    order = jnp.cumsum(beside, axis=1)
    ranks, tokens = [], []
    for rank in range(LEAVES):
      node = jnp.argmax(beside & (order == rank + 1), axis=1)
      exists = rank < order[:, -1]
      token = jnp.take_along_axis(nodes.tokens, node[:, None], axis=1)[:, 0]
      accept_leaf = accept_probability(target, rest, token) * exists
      ranks.append(open_mass * accept_leaf)
      tokens.append(token)
      after = refuse(target, rest, token)
      target = jnp.where(exists[:, None], after[0], target)
      rest = jnp.where(exists[:, None], after[1], rest)
      open_mass = open_mass * (1 - accept_leaf)
    leaf_probs.append(jnp.stack(ranks, 1))
    leaf_tokens.append(jnp.stack(tokens, 1))
    residuals.append(open_mass[:, None] * target)
    reached = jnp.where(is_live, reached * accept, reached)
  stack = [jnp.stack(x, 1) for x in (leaf_probs, leaf_tokens, residuals)]
  return reached, *stack


def block_law(drafts, target_laws, verify_widths, bounds):
  """Distribution of the first three tokens, blocks continued by the target."""
  cfg = DraftConfig(
    max_draft_length=DEPTH,
    verify_widths=verify_widths,
    tree_widths=(3, 2, 1),
    tree_bounds=bounds,
  )
  shapes, traced = drafting.split_config(cfg, V)
  # A narrow tree drops leaves; the chain always fits.
  draft = jax.tree.map(jnp.asarray, drafts.draft)
  width = shapes.max_width
  wide = jax.tree.map(
    lambda x: (
      jnp.pad(x, ((0, 0), (0, width - 1 - DEPTH)) + ((0, 0),) * (x.ndim - 2))
      if x.ndim > 1
      else x
    ),
    draft,
  )
  nodes = tree.build(jnp.zeros(ROWS, jnp.int32), wide, traced, shapes)
  result = outcomes(nodes, draft, jnp.asarray(target_laws[drafts.laws]))
  reached, leaf_probs, leaf_tokens, residuals = map(np.asarray, result)
  assert reached.dtype == np.float64
  chain, weight = drafts.draft.tokens, drafts.weight
  decided = [np.zeros(V**n) for n in range(DEPTH + 1)]

  def add(tokens, mass):  # [B, n], [B]
    index = np.zeros(len(tokens), int)
    for column in tokens.T:
      index = index * V + column
    decided[tokens.shape[1]] += np.bincount(index, mass, V ** tokens.shape[1])

  for length in range(1, DEPTH + 1):
    ends = drafts.draft.length == length
    add(chain[ends, :length], (weight * reached)[ends])
  for i in range(DEPTH):
    for rank in range(LEAVES):
      path = np.column_stack([chain[:, :i], leaf_tokens[:, i, rank]])
      add(path, weight * leaf_probs[:, i, rank])
    for token in range(V):
      path = np.column_stack([chain[:, :i], np.full(ROWS, token)])
      add(path, weight * residuals[:, i, token])
  total, starts = decided[0], [0, 1, 1 + V]
  for n in range(DEPTH):
    law = target_laws[starts[n] : starts[n] + V**n]
    total = (total[:, None] * law).ravel() + decided[n + 1]
  had_leaves = (weight * leaf_probs.sum((1, 2))).sum()
  return total, had_leaves


@settings(max_examples=25, deadline=None)
@given(
  pair=laws(),
  threshold=st.sampled_from([0.0, 0.3, 0.7]),
  bounds=st.sampled_from([(0.999998, 0.999999), (0.4, 0.8), (0.1, 0.2)]),
  widths=st.sampled_from([(4,), (5,), (4, 6), (8,)]),
)
def test_a_block_has_the_targets_law(pair, threshold, bounds, widths):
  """To 1e-12, for trees that confidence widens and that widths cut."""
  target_laws, draft_laws = pair
  with jax.enable_x64(True):
    drafts = all_drafts(draft_laws, threshold)
    assert abs(drafts.weight.sum() - 1) < 1e-12
    got, _ = block_law(drafts, target_laws, widths, bounds)
  wanted = target_laws[0]
  for n in range(1, DEPTH):
    start = {1: 1, 2: 1 + V}[n]
    wanted = (wanted[:, None] * target_laws[start : start + V**n]).ravel()
  assert np.abs(got - wanted).max() < 1e-12
  assert abs(got.sum() - 1) < 1e-12


def example(seed=0):
  rng = np.random.default_rng(seed)
  count = 1 + V + V**2
  return (np.array([warped(rng, 'any') for _ in range(count)]) for _ in '12')


def test_the_enumeration_sees_leaves_that_are_chosen_by_their_own_probability():
  """The error that `leaf_weights` is there to avoid, and that leaves do help."""
  target_laws, draft_laws = example()
  wanted = target_laws[0]
  with jax.enable_x64(True):
    drafts = all_drafts(draft_laws, 0.0)
    everything = (0.999998, 0.999999)
    got, helped = block_law(drafts, target_laws, (5,), everything)
    assert np.abs(got.reshape(V, -1).sum(1) - wanted).max() < 1e-12
    assert helped > 0.01
    leaves = drafts.draft.leaf_tokens
    own = np.take_along_axis(drafts.draft.probs, leaves, axis=-1)
    own = np.where(drafts.draft.leaf_weights > 0, own, 0).astype(np.float32)
    biased = drafts._replace(draft=drafts.draft.replace(leaf_weights=own))
    got, _ = block_law(biased, target_laws, (5,), everything)
  assert np.abs(got.reshape(V, -1).sum(1) - wanted).max() > 1e-3


@pytest.mark.parametrize('widths', [(4,), (5,), (8,)])
def test_the_walk_follows_the_rule(widths):
  """`accept_draws` against a walk in Python with the same uniforms."""
  target_laws, draft_laws = example(3)
  drafts = all_drafts(draft_laws, 0.35)
  rng = np.random.default_rng(0)
  picked = rng.choice(ROWS, 400, p=drafts.weight)
  cfg = DraftConfig(
    max_draft_length=DEPTH,
    verify_widths=widths,
    tree_widths=(3, 2, 1),
    tree_bounds=(0.5, 0.8),
  )
  shapes, traced = drafting.split_config(cfg, V)
  pad = shapes.max_width - 1 - DEPTH
  draft = jax.tree.map(
    lambda x: (
      np.pad(x[picked], ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
      if x.ndim > 1
      else x[picked]
    ),
    drafts.draft,
  )
  draft = draft.replace(probs=draft.probs.astype(np.float32))
  nodes = tree.build(jnp.zeros(400, jnp.int32), draft, traced, shapes)
  texts = [
    [
      tuple(nodes.tokens[b, 1 : 1 + int(nodes.ancestor[b, i])].tolist())
      + ((int(nodes.tokens[b, i]),) if bool(nodes.is_leaf[b, i]) else ())
      for i in range(shapes.max_width)
    ]
    for b in range(400)
  ]
  # After three tokens any law will do.
  more = rng.dirichlet(np.ones(V), V**3)
  laws_after = np.concatenate([target_laws, more])
  where = [
    [
      state_of(t)
      if len(t) < DEPTH
      else 1 + V + V**2 + t[0] * V**2 + t[1] * V + t[2]
      for t in row
    ]
    for row in texts
  ]
  probs = jnp.asarray(laws_after[np.array(where)], jnp.float32)
  keys = samplings.row_keys(jnp.uint32(7), jnp.arange(400, dtype=jnp.uint32))
  length = jnp.asarray(rng.integers(1, 50, 400), jnp.int32)
  path = verification.accept_draws(nodes, draft, probs, keys, length)

  def uniforms(purpose, place):
    return verification._uniform(
      samplings.noise_keys(keys, purpose, jnp.asarray(place))
    )

  chain_u = np.stack(
    [uniforms(samplings.ACCEPT, length + i) for i in range(DEPTH)], 1
  )
  leaf_keys = [
    samplings.noise_keys(keys, samplings.SIBLING, length + i)
    for i in range(DEPTH)
  ]
  after = np.zeros((400, V), np.float32)
  for b in range(400):
    n, hit, leaf = 0, False, None
    chain = int(nodes.num_chain[b])
    law = probs[b, 0]
    while n + 1 < chain:
      token = nodes.tokens[b, n + 1]
      rest = draft.probs[b, n]
      if chain_u[b, n] < float(accept_probability(law, rest, token)):
        n += 1
        law = probs[b, n]
        continue
      law, rest = refuse(law, rest, token)
      beside = [
        i
        for i in range(chain, int(nodes.num_nodes[b]))
        if int(nodes.ancestor[b, i]) == n
      ]
      for rank, i in enumerate(beside):
        key = jax.random.fold_in(leaf_keys[n][b], rank)
        token = nodes.tokens[b, i]
        if jax.random.uniform(key) < accept_probability(law, rest, token):
          hit, leaf, law = True, i, probs[b, i]
          break
        law, rest = refuse(law, rest, token)
      break
    assert int(path.num_accepted[b]) == n
    assert bool(path.leaf_hit[b]) == hit
    assert not hit or int(path.leaf[b]) == leaf
    after[b] = law
  place = length + path.num_accepted + path.leaf_hit
  wanted = samplings.draw(keys, jnp.asarray(after), place)
  assert path.own.tolist() == wanted.tolist()
  hits = int(path.leaf_hit.sum())
  assert widths == (4,) or 10 < hits < 390
  assert len(set(path.num_accepted.tolist())) == DEPTH + 1


def test_a_draft_without_a_distribution_takes_nothing_off_the_target():
  """Its logits overflowed: NaN everywhere, and the token is 0 by default."""
  target = jnp.array([[0.5, 0.3, 0.2]])
  nothing, token = jnp.full((1, 3), jnp.nan), jnp.zeros(1, jnp.int32)
  assert accept_probability(target, nothing, token).tolist() == [0.0]
  np.testing.assert_array_equal(refuse(target, nothing, token)[0], target)
