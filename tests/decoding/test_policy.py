"""The policy against loops; and the text, which it never changes."""

import dataclasses
import itertools
import json
import types

from compilations import Compilations
from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from tiny_model import CFG, PROMPTS_OF_DIFFERENT_LENGTH

from swift_jax.checkpoint import hub
from swift_jax.config.settings import MAX_NGRAM
from swift_jax.decoding import policy
from swift_jax.decoding.policy import COPY, LAYERS, PLAIN, Costs
from swift_jax.model import skip_mask as skip_masks
from swift_jax.pacing import costs as costs_module
from swift_jax.pacing.clock import Clock
from swift_jax.pacing.costs import PassCosts

WIDTHS = (4, 8, 32)
CHOOSE, GOES_ON, WIDTH = (
  jax.jit(f, static_argnums=2)
  for f in (policy.choose, policy.goes_on, policy.width)
)
BINS = len(policy.start().sure_hits)
HALF = skip_masks.uniform(CFG.num_hidden_layers, 0.5)
EVERYTHING = skip_masks.uniform(CFG.num_hidden_layers, 1.0)
CHEAP = PassCosts(1e-3, 0.1, 0.0, 0.0, (1.0, 1.0, 1.0))
DEAR = PassCosts(1e-3, 9.0, 0.0, 0.0, (9.0, 9.0, 9.0))


def evidence(rng):
  """Evidence of some rounds."""
  sizes = BINS, MAX_NGRAM + 1, MAX_NGRAM + 1
  trials = [rng.uniform(0, 30, size) for size in sizes]
  hits = [rng.uniform(0, 1, t.shape) * t for t in trials]
  values = zip(hits, trials, strict=True)
  arrays = [np.asarray(v, np.float32) for pair in values for v in pair]
  cost = np.asarray(rng.uniform(0, 40), np.float32)
  tokens = np.asarray(cost * rng.uniform(0.3, 3), np.float32)
  return policy.Evidence(*arrays, tokens, cost)


def costs(rng):
  verify = np.sort(rng.uniform(1, 4, 3)).astype(np.float32)
  return Costs(np.asarray(rng.uniform(0.05, 1), np.float32), verify)


def even(live):
  """Weights of rows that have equally much left to write."""
  return policy.weights(jnp.zeros(len(live), jnp.int32), jnp.asarray(live))


def right(seen, length, number):
  """The chance that `number` tokens copied after such a match are right."""
  first = (seen.copy_hits[length] + 1) / (seen.copy_trials[length] + 2)
  more = (seen.more_hits[length] + 1.4) / (seen.more_trials[length] + 2)
  return float(first * more ** (number - 1))


def layers_rate(seen, price, rows):
  """The rate by a loop over draft lengths; `rows` rows have equal weights."""
  mean = (seen.sure_hits.sum() + 2.8) / (seen.sure_trials.sum() + 4)
  mean **= rows
  hoped = 1.12
  for drafted in range(1, WIDTHS[-1]):
    tokens = sum(mean**i for i in range(drafted + 1))
    cost = drafted * price.draft + verify_cost(price, drafted + 1)
    hoped = max(hoped, float(tokens / cost))
  return float((seen.tokens + 8 * hoped) / (seen.cost + 8))


def verify_cost(price, nodes):
  return price.verify[[w >= nodes for w in WIDTHS].index(True)]


@pytest.mark.parametrize('seed', range(30))
def test_the_source_that_brings_most_a_cost(seed):
  """By a loop over sources, widths, rows and tokens."""
  rng = np.random.default_rng(seed)
  seen, price, live = evidence(rng), costs(rng), rng.random(4) < 0.7
  live[0] = True
  matched = rng.integers(0, MAX_NGRAM + 1, 4) * (rng.random(4) < 0.7)
  room = rng.integers(0, 40, 4)
  rates = {PLAIN: 1.08, LAYERS: 0.0, COPY: 0.0}
  if room[live].any():
    rates[LAYERS] = layers_rate(seen, price, live.sum())
  lengths = {}
  for w, cost in zip(WIDTHS, price.verify, strict=True):
    left = []
    for b in np.flatnonzero(live):
      most = min(w - 1, room[b]) if matched[b] else 0
      gain = sum(right(seen, matched[b], i) for i in range(1, most + 1))
      left.append(np.exp(-gain / 2))
    lengths[w - 1] = (1 - 2 * np.log(np.mean(left))) / float(cost)
  if matched[live].any():
    rates[COPY] = max(lengths.values())
  source, most, _ = CHOOSE(
    seen, price, WIDTHS, jnp.asarray(matched), jnp.asarray(room), even(live)
  )
  assert rates[int(source)] == pytest.approx(max(rates.values()), rel=1e-5)
  if int(source) == COPY:
    assert lengths[int(most)] == pytest.approx(rates[COPY], rel=1e-5)


@pytest.mark.parametrize('seed', range(20))
def test_more_tokens_must_earn_what_they_cost(seed):
  """One token or several: a wider verify may pay only for several."""
  rng = np.random.default_rng(seed)
  seen, price, live = evidence(rng), costs(rng), np.array([True, False, True])
  rate = max(layers_rate(seen, price, 2), 1.0)
  mean = (seen.sure_hits.sum() + 2.8) / (seen.sure_trials.sum() + 4)
  for drafted in (1, 2, 3, 4, 7, 8, 30, 31):
    survival = rng.uniform(0, 1, 3).astype(np.float32)
    now, earned, chance = verify_cost(price, drafted + 1), [-1.0], 0.0
    for more in range(1, WIDTHS[-1] - drafted):
      chance += mean**more
      gain = float(chance * survival[[0, 2]].mean())
      then = verify_cost(price, drafted + 1 + more)
      earned.append(gain - rate * float(more * price.draft + then - now))
    best = max(earned)
    got = GOES_ON(seen, price, WIDTHS, survival, jnp.int32(drafted), even(live))
    assert bool(got) == (best > 0) or abs(best) < 1e-5


@pytest.mark.parametrize('seed', range(20))
def test_leaves_are_verified_as_far_as_they_pay(seed):
  rng = np.random.default_rng(seed)
  seen, price, live = evidence(rng), costs(rng), np.array([True, True, False])
  chain = rng.integers(1, 10, 3)
  values = -np.sort(-rng.uniform(0, 0.5, (3, 6)).astype(np.float32), axis=1)
  rate = max(layers_rate(seen, price, 2), 1.0)
  worth = {}
  for w, cost in zip(WIDTHS, price.verify, strict=True):
    if w >= chain.max():
      gain = [values[b, : w - chain[b]].sum() for b in (0, 1)]
      worth[w] = float(np.mean(gain) - rate * cost)
  got = int(WIDTH(seen, price, WIDTHS, jnp.asarray(chain), values, even(live)))
  assert worth[got] == pytest.approx(max(worth.values()), abs=1e-5)


def test_what_was_reached_is_learnt_by_confidence():
  """The verdict on two chains and on a row that drafted nothing."""
  confidence = np.array([[0.99, 0.6, 0.1], [0.96, 0.96, 0.96], [0.5] * 3])
  seen = policy.learn_confidence(
    policy.start(),
    confidence.astype(np.float32),
    jnp.asarray([3, 2, 0]),
    jnp.asarray([1, 2, 0]),
  )
  # Row 0: .99 right, .6 wrong, .1 not reached; row 1: two right, the rest dead.
  hits, trials = np.zeros(BINS), np.zeros(BINS)
  hits[[7, 6]] = 1, 2
  trials[[7, 2, 6]] = 1, 1, 2
  np.testing.assert_array_equal(seen.sure_hits, hits)
  np.testing.assert_array_equal(seen.sure_trials, trials)
  low = float(seen.acceptance(jnp.float32(0.6)))
  assert low < float(policy.start().acceptance(jnp.float32(0.6)))


def test_copies_are_judged_whoever_wrote_the_text():
  copied = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [9, 9, 9]])
  written = np.array([[1, 2, 7], [1, 2, 3], [1, 2, 3], [9, 8, 9]])
  seen = policy.learn_copies(
    policy.start(),
    jnp.asarray([2, 3, 3, 0]),
    *map(jnp.asarray, (copied, written)),
    jnp.asarray([3, 3, 2, 1]),
  )
  # Row 2 wrote two tokens: its third is no evidence. Row 3 matched nothing.
  assert seen.copy_hits[:4].tolist() == [1, 0, 1, 2]
  assert seen.copy_trials[:4].tolist() == [1, 0, 1, 2]
  assert seen.more_hits[:4].tolist() == [0, 0, 1, 3]
  assert seen.more_trials[:4].tolist() == [0, 0, 2, 3]


def test_evidence_fades_with_time_and_a_source_is_tried_again():
  price = Costs(np.asarray(0.5, np.float32), np.full(3, 2, np.float32))
  seen = policy.learn_rate(
    policy.start(), jnp.int32(LAYERS), jnp.float32(2), jnp.float32(8)
  )
  assert 0 < float(seen.layers_rate(price, WIDTHS, jnp.ones(1))) < 0.8
  again = seen
  steps = 0
  while float(again.layers_rate(price, WIDTHS, jnp.ones(1))) <= 1.08:
    again = policy.learn_rate(
      again, jnp.int32(PLAIN), jnp.float32(8), jnp.float32(8)
    )
    steps += 8
  assert 100 < steps < 1000
  # The tokens of plain steps are no evidence of drafting.
  assert float(again.tokens) < float(seen.tokens)


class Still(Clock):
  """Costs that stay fixed, whatever the clock measures."""

  def observe(self, *_):
    return 0.0


def adaptive(price=None, mask=HALF, **draft):
  """An engine with given costs."""
  engine = tiny_model.engine(mask, adaptive=True, **draft)
  if price is not None:
    engine.model.clock = lambda *_: Still(price)
  return engine


def totals(results):
  names = ('verify_passes', 'drafted', 'accepted', 'copied', 'copies_accepted')
  return {n: sum(getattr(r.metrics, n) for r in results) for n in names}


@pytest.mark.parametrize(
  'has_tree, temperature',
  [
    (True, 0.7),
    pytest.param(False, 0.7, marks=pytest.mark.nightly),
    pytest.param(True, 0.0, marks=pytest.mark.nightly),
    pytest.param(False, 0.0, marks=pytest.mark.nightly),
  ],
)
@given(
  seed=st.integers(0, 2**32 - 1),
  bits=st.lists(st.booleans(), min_size=6, max_size=6),
  prompts=st.lists(
    st.lists(st.integers(0, 5), min_size=1, max_size=25),
    min_size=1,
    max_size=3,
  ),
  limit=st.integers(0, 45),
  eos=st.lists(st.integers(0, CFG.vocab_size - 1), max_size=8),
)
def test_any_policy_writes_plain_decodings_text(
  seed, bits, prompts, limit, eos, has_tree, temperature
):
  rng = np.random.default_rng(seed)
  price = PassCosts(
    1e-3,
    *rng.uniform(0, 0.2, 3).tolist(),
    np.sort(rng.uniform(0.5, 3, 3)).tolist(),
  )
  mask = skip_masks.from_bits(np.array(bits))
  engine = tiny_model.engine(mask, eos, adaptive=True, tree=has_tree)
  engine.model.clock = lambda *_: Still(price)
  engine.model.evidence = evidence(rng)
  how = {'max_new_tokens': limit, 'temperature': temperature}
  results = engine.generate(prompts, tiny_model.decode(**how))
  plain = engine.generate(prompts, tiny_model.decode('plain', **how))
  assert [r.tokens for r in results] == [r.tokens for r in plain]
  for result in results:
    m = result.metrics
    own = m.bonus_tokens + m.corrected_tokens
    assert m.accepted + m.leaf_hits + own == m.new_tokens
    assert m.copies_accepted <= m.copied <= m.drafted
    assert sum(r.returned for r in result.rounds) == m.new_tokens
    assert len(result.rounds) == m.verify_passes


LOOP = [7, 8, 9] * 6
SETTINGS = tiny_model.engine().resolve(tiny_model.decode().sampling).config


def test_every_source_is_used_where_it_pays():
  """And a source that is too dear is hardly tried."""
  limit = tiny_model.decode(max_new_tokens=70, batch_size=1)
  whole = skip_masks.none_skipped(CFG.num_hidden_layers)
  prompts = [[5], LOOP]
  cheap = totals(adaptive(CHEAP, whole).generate(prompts, limit))
  layers = cheap['drafted'] - cheap['copied']
  # The whole model drafts, so that all drafted tokens are right.
  assert cheap['accepted'] - cheap['copies_accepted'] == layers > 20
  assert cheap['verify_passes'] < 50
  alone = totals(adaptive(CHEAP, whole, copy=False).generate(prompts, limit))
  assert alone['copied'] == 0 < alone['accepted'] == alone['drafted']
  free = PassCosts(1e-3, 9.0, 0.0, 0.0, (1.0, 1.0, 1.0))
  engine, watched = adaptive(free), []
  engine.searcher.watch = lambda *tokens: watched.append(tokens)
  copies = totals(engine.generate(prompts, limit))
  assert copies['copied'] > copies['copies_accepted'] > 0
  assert copies['drafted'] - copies['copied'] < 10
  # A change of the stream shows in the drafts by layers alone.
  drafted, accepted = np.sum(watched, axis=0).tolist()
  assert drafted == copies['drafted'] - copies['copied']
  assert accepted == copies['accepted'] - copies['copies_accepted']
  dear = totals(adaptive(DEAR).generate(prompts, limit))
  assert dear['verify_passes'] > 130
  assert dear['drafted'] < 10


@pytest.mark.parametrize('price', [CHEAP, DEAR], ids=['cheap', 'dear'])
@pytest.mark.parametrize(
  'phases', [0, pytest.param(2, marks=pytest.mark.nightly)]
)
def test_stop_strings_cut_plain_stretches_too(price, phases):
  """Text, tokens and counts are cut, also where rounds run in halves."""
  letters = tiny_model.Letters()
  engine = tiny_model.engine(HALF, (), letters, adaptive=True)
  engine.model.clock = lambda *_: Still(price)
  prompts = [*PROMPTS_OF_DIFFERENT_LENGTH, LOOP]
  whole = engine.generate(prompts, tiny_model.decode('plain'))
  stops = [whole[0].text[7:9], whole[3].text[30:32]]
  how = {'stop_strings': stops, 'phase_interval': phases}
  for method in ('swift', 'plain'):
    results = engine.generate(prompts, tiny_model.decode(method, **how))
    for one, two in zip(whole, results, strict=True):
      found = [one.text.find(stop) for stop in stops if stop in one.text]
      assert two.text == (one.text[: min(found)] if found else one.text)
      m = two.metrics
      own = m.bonus_tokens + m.corrected_tokens
      made = m.accepted + m.leaf_hits + own
      assert made == (m.new_tokens if method == 'swift' else 0)
      assert len(two.rounds) == m.verify_passes
      assert sum(r.returned for r in two.rounds) == m.new_tokens


def test_nothing_compiles_after_warm_up():
  jax.clear_caches()  # other tests may have compiled the same
  engine = adaptive()
  compilations = Compilations()
  engine.warmup(tiny_model.decode(), 20)
  assert compilations.count
  warm = compilations.count
  for price, mask in itertools.product((CHEAP, DEAR), (HALF, EVERYTHING)):
    other = adaptive(price, mask)
    with jax.transfer_guard('disallow'):
      other.generate(PROMPTS_OF_DIFFERENT_LENGTH, tiny_model.decode())
  assert compilations.count == warm


def test_what_warm_up_drafts_is_no_evidence():
  engine = adaptive(CHEAP)
  engine.warmup(tiny_model.decode(), 20)
  assert float(engine.model.evidence.cost) == 0
  engine.generate([[5]], tiny_model.decode())
  assert float(engine.model.evidence.cost) > 0


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setattr(hub, 'cache_folder', lambda: tmp_path / 'cache')
  return tmp_path / 'cache' / 'costs'


def test_costs_are_measured_once_a_machine_and_model(cache, monkeypatch):
  made = []
  measure = costs_module.measure
  monkeypatch.setattr(
    costs_module, 'measure', lambda *a: made.append(a) or measure(*a)
  )
  decode = tiny_model.decode()
  engine = adaptive()
  engine.generate([[5]], decode)
  (file,) = cache.iterdir()
  found = PassCosts(**json.loads(file.read_text()))
  clock = engine.model.clock(3, engine.model.shapes, SETTINGS)
  assert clock.measured == found
  assert len(found.verify) == 3 and list(found.verify) == sorted(found.verify)
  assert found.step_s > 0 and found.head > 0
  half = HALF.bits()
  whole = found.head + CFG.num_hidden_layers * (found.attn + found.mlp)
  assert found.draft(np.zeros_like(half)) == pytest.approx(whole)
  skipped = HALF.attn.sum() * found.attn + HALF.mlp.sum() * found.mlp
  assert found.draft(half) == pytest.approx(whole - skipped)
  adaptive().generate([[5]], decode)
  assert len(made) == 1
  # A damaged file and another batch size are measured anew.
  file.write_text('{"step_s": -1}')
  adaptive().generate([[5]], decode)
  assert len(made) == 2 and '"mlp"' in file.read_text()
  adaptive().generate([[5]], tiny_model.decode(batch_size=1))
  assert len(made) == 3 and len(list(cache.iterdir())) == 2


@pytest.mark.parametrize('step_s, repeats', [(1e-3, 7), (1.0, 1)])
def test_slow_passes_are_timed_less_often(monkeypatch, step_s, repeats):
  now, begun = [0.0], []

  class Bench:
    draft_length = 7

    def __init__(self, *_):
      pass

    def plain(self):
      begun.append(now[0])
      now[0] += 8 * step_s
      return step_s

    def round(self, source, length, mask=None):
      passes = 1.5
      if source == LAYERS:
        runs = (~mask.attn).sum() * 0.02 + (~mask.mlp).sum() * 0.05
        passes += length * (0.1 + runs)
      now[0] += passes * step_s
      return passes * step_s

    def layers(self, mask):
      return self.round(LAYERS, 7, mask)

  monkeypatch.setattr(costs_module, 'Bench', Bench)
  clock = types.SimpleNamespace(perf_counter=lambda: now[0])
  monkeypatch.setattr(costs_module, 'time', clock)
  model = types.SimpleNamespace(cfg=CFG, mesh=None, put=lambda mask: mask)
  shapes = types.SimpleNamespace(verify_widths=WIDTHS)
  found = costs_module.measure(model, None, 1, shapes, SETTINGS)
  assert len(begun) == 1 + repeats  # the first compiles
  wanted = PassCosts(step_s, 0.1, 0.02, 0.05, (1.5, 1.5, 1.5))
  for name, value in dataclasses.asdict(wanted).items():
    assert getattr(found, name) == pytest.approx(value), name


def test_a_folder_that_cannot_be_written_stops_nothing(cache):
  cache.parent.write_text('a file')
  results = adaptive().generate([[5]], tiny_model.decode())
  assert results[0].tokens == tiny_model.reference([5], 40)


def test_without_a_home_costs_are_measured_each_time(monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', '~no-such-user/cache')
  made = []
  monkeypatch.setattr(
    costs_module, 'measure', lambda *a: made.append(a) or DEAR
  )
  model = adaptive().model
  for _ in range(2):
    found = costs_module.of_model(
      model, model.settings, 1, model.shapes, SETTINGS
    )
    assert found == DEAR
  assert len(made) == 2


def test_a_batch_is_done_when_its_last_row_is():
  remaining, live = np.array([40, 8, 40, 90]), np.array([1, 1, 1, 0], bool)
  weight = policy.weights(jnp.asarray(remaining), jnp.asarray(live))
  assert float(weight.sum()) == pytest.approx(1)
  assert weight[0] == weight[2] == pytest.approx(float(weight[1]) * np.e**16)
  assert weight[3] == 0
  # Progress adds up to that of the smooth minimum, whoever got the tokens.
  rng, have, total = np.random.default_rng(0), np.zeros(4), 0.0
  smooth = lambda tokens: -2 * np.log(np.exp(-tokens / 2).sum())  # noqa: E731
  start = smooth(have)
  for _ in range(20):
    got = rng.integers(0, 5, 4).astype(np.float32)
    weight = policy.weights(jnp.asarray(90 - have, int), jnp.ones(4, bool))
    total += float(policy.progress(jnp.asarray(got), weight))
    have += got
  assert total == pytest.approx(smooth(have) - start, rel=1e-4)
  alone = policy.progress(jnp.asarray([7.0]), jnp.ones(1))
  assert float(alone) == pytest.approx(7)
  nobody = policy.weights(jnp.asarray(remaining), jnp.zeros(4, bool))
  assert nobody.tolist() == [0] * 4
