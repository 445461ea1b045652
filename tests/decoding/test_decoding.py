"""The parts of a round, each against a second way of computing it."""

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from tiny_model import CFG, PROMPTS_OF_DIFFERENT_LENGTH

from swift_jax.config.settings import DraftConfig
from swift_jax.decoding import drafting, policy, tree, verification
from swift_jax.decoding.drafting import Draft
from swift_jax.errors import InputError
from swift_jax.model import llama
from swift_jax.model import skip_mask as skip_masks

DEPTH, ALTERNATIVES = 7, 9
CONFIG = DraftConfig(verify_widths=(4, 8), max_draft_length=7, adaptive=False)
EVIDENCE, EVEN = policy.start(), np.full(2, 0.5, np.float32)


@st.composite
def drafts(draw):
  """A batch of two drafts over a vocabulary of 40, runners-up distinct."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  tokens = rng.permuted(np.tile(np.arange(40), (2, DEPTH, 1)), axis=-1)
  probs = -np.sort(-rng.dirichlet(np.full(10, 0.2), (2, DEPTH)), axis=-1)
  lengths = draw(st.lists(st.integers(0, DEPTH), min_size=2, max_size=2))
  return Draft(
    tokens=jnp.asarray(tokens[..., 0], jnp.int32),
    confidence=jnp.asarray(probs[..., 0], jnp.float32),
    leaf_tokens=jnp.asarray(tokens[..., 1:10], jnp.int32),
    leaf_weights=jnp.asarray(probs[..., 1:10], jnp.float32),
    length=jnp.asarray(lengths, jnp.int32),
  )


def wanted_leaves(draft: Draft, row: int) -> list[tuple[float, int, int]]:
  """(path probability, depth, token) by the paper's table, best first."""
  leaves, path = [], 1.0
  for t in range(int(draft.length[row])):
    confidence = float(draft.confidence[row, t])
    bounds, widths = CONFIG.tree_bounds, CONFIG.tree_widths
    k = widths[sum(confidence > bound for bound in bounds)]
    for rank in range(k - 1):
      prob = path * float(draft.leaf_weights[row, t, rank])
      if not draft.leaf_weights[row, t, rank]:
        continue
      leaves.append((prob, t + 1, int(draft.leaf_tokens[row, t, rank])))
    path *= confidence
  return sorted(leaves, reverse=True)


@given(draft=drafts(), root=st.integers(0, 39))
def test_tree_is_the_papers(draft, root):
  shapes, traced = drafting.split_config(CONFIG, 40)
  roots = jnp.full(2, root, jnp.int32)
  built = tree.build(roots, draft, EVIDENCE, traced, shapes, EVEN)
  seen = np.asarray(built.attn_mask())
  for row in range(2):
    d = int(draft.length[row])
    nodes = [root, *draft.tokens[row, :d].tolist()]
    assert built.tokens[row, : d + 1].tolist() == nodes
    assert built.depth[row, : d + 1].tolist() == list(range(d + 1))
    leaves = wanted_leaves(draft, row)[: shapes.max_width - d - 1]
    assert int(built.num_nodes[row]) == d + 1 + len(leaves)
    for i, (prob, depth, token) in enumerate(leaves, d + 1):
      assert int(built.tokens[row, i]) == token or prob < 1e-9
      assert int(built.depth[row, i]) == depth or prob < 1e-9
      ancestors = {*range(int(built.depth[row, i])), i}
      assert set(np.flatnonzero(seen[row, i])) == ancestors
    for i in range(d + 1):
      assert set(np.flatnonzero(seen[row, i])) == set(range(i + 1))


@given(draft=drafts(), data=st.data())
def test_acceptance_walks_the_targets_path(draft, data):
  """Against a walk in Python: follow the target until no node has its token."""
  shapes, traced = drafting.split_config(CONFIG, 40)
  roots = jnp.zeros(2, jnp.int32)
  built = tree.build(roots, draft, EVIDENCE, traced, shapes, EVEN)
  width = shapes.max_width
  target = np.zeros((2, width), np.int64)
  for row in range(2):
    for node in range(width):  # often the right token, sometimes a leaf's
      choices = built.tokens[row].tolist()
      follows = int(built.tokens[row, min(node + 1, width - 1)])
      target[row, node] = data.draw(st.sampled_from([follows, *choices]))
  target = jnp.asarray(target, jnp.int32)
  path = verification.follow(built, target)
  finite = jnp.ones(2, bool)
  verified = verification._verdict(built, path, target, finite)
  for row in range(2):
    chain, total = int(built.num_chain[row]), int(built.num_nodes[row])
    node, block = 0, [int(target[row, 0])]
    while node + 1 < chain and int(built.tokens[row, node + 1]) == block[-1]:
      node += 1
      block.append(int(target[row, node]))
    beside = [
      i
      for i in range(chain, total)
      if int(built.depth[row, i]) == node + 1
      and int(built.tokens[row, i]) == block[-1]
    ]
    if beside:
      assert int(verified.leaf[row]) == beside[0]
      block.append(int(target[row, beside[0]]))
    assert int(verified.num_accepted[row]) == node
    assert bool(verified.leaf_hit[row]) == bool(beside)
    assert int(verified.block_length[row]) == len(block)
    assert verified.block[row, : len(block)].tolist() == block
    assert verified.target[row, : len(block)].tolist() == block


def test_left_over_cache_content_never_matters():
  """Every dead slot holds NaN, as its value a large number; nothing changes."""
  mask = skip_masks.uniform(CFG.num_hidden_layers, 0.5)
  decode = tiny_model.decode()

  def run(poison):
    engine = tiny_model.engine(mask, confidence_threshold=0.2)
    empty = engine.model.empty_cache

    def poisoned(batch, capacity):
      cache = empty(batch, capacity)
      k = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), cache.k)
      v = jax.tree.map(lambda a: jnp.full_like(a, 1e30), cache.v)
      return cache.replace(k=k, v=v)

    if poison:
      engine.model.empty_cache = poisoned
    results = engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, decode)
    counts = ('drafted', 'accepted', 'leaf_hits', 'verify_passes')
    return [
      (r.tokens, [getattr(r.metrics, name) for name in counts]) for r in results
    ]

  assert run(poison=True) == run(poison=False)


@pytest.mark.parametrize('method', ['plain', 'swift'])
def test_the_target_of_a_greedy_text_is_the_text(method):
  """`DecodeState.target` by each method, also where blocks were cut."""
  eos = tiny_model.reference([9, 8, 7, 6, 5, 4, 3], 40)[9:10]
  engine = tiny_model.engine(
    skip_masks.uniform(CFG.num_hidden_layers, 0.5),
    eos,
    confidence_threshold=0.0,
  )
  session = engine.session(
    PROMPTS_OF_DIFFERENT_LENGTH, tiny_model.decode(method)
  )
  list(session.run())
  state = jax.device_get(session.state)
  written = 0
  for row, prompt in enumerate(PROMPTS_OF_DIFFERENT_LENGTH):
    places = slice(len(prompt), int(state.length[row]))
    wanted = tiny_model.reference(prompt, 40, eos)
    assert state.tokens[row, places].tolist() == wanted
    assert state.target[row, places].tolist() == wanted
    written += len(wanted)
  assert 40 < written < 120  # one row ended early


def test_what_a_skipped_sublayer_leaves_is_never_read(monkeypatch):
  """A skipped sublayer gives NaN here instead of zeros."""

  def poisoned(skip, sublayer):
    given = gate(skip, sublayer)
    if not isinstance(given, tuple):
      return given
    delta, *cached = given
    return delta, *(jnp.where(skip, jnp.nan, part) for part in cached)

  def run():
    jax.clear_caches()
    engine = tiny_model.engine(
      skip_masks.uniform(CFG.num_hidden_layers, 0.5), confidence_threshold=0.2
    )
    results = engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, tiny_model.decode())
    return [(r.tokens, r.metrics.drafted, r.metrics.accepted) for r in results]

  clean, gate = run(), llama.gate
  monkeypatch.setattr(llama, 'gate', poisoned)
  assert run() == clean
  assert sum(accepted for *_, accepted in clean) > 0
  monkeypatch.undo()
  jax.clear_caches()


def test_padding_rows_never_matter():
  engine = tiny_model.engine(skip_masks.uniform(5, 0.5))
  alone = [
    engine.generate([prompt], tiny_model.decode())[0].tokens
    for prompt in PROMPTS_OF_DIFFERENT_LENGTH
  ]
  together = engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, tiny_model.decode())
  assert [result.tokens for result in together] == alone


def test_nan_logits_end_the_run():
  engine = tiny_model.engine(skip_masks.uniform(5, 0.5))
  params = engine.model.params
  broken = {**params, 'norm': {'scale': jnp.full(CFG.hidden_size, jnp.nan)}}
  engine.model.params = broken
  for method in ('plain', 'swift'):
    with pytest.raises(InputError, match='not finite'):
      engine.generate([[1, 2]], tiny_model.decode(method))
