"""Draft programs with the set built in: the same text, used where they are cheaper."""

import threading
import types

from compilations import Compilations
import jax
import jaxtyping
import numpy as np
import pytest
import tiny_model
from tiny_model import PROMPTS_OF_DIFFERENT_LENGTH as PROMPTS

from swift_jax.decoding import rounds
from swift_jax.model import skip_mask
from swift_jax.model.skip_mask import KnownMask
from swift_jax.pacing import costs, specialised

LAYERS = tiny_model.CFG.num_hidden_layers
MASK = skip_mask.from_lists([1, 3], [2], LAYERS)
GATED_S, STEP_S = 0.9, 0.5


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
  """`lower` makes trees of what is no array, which annotations would refuse."""
  made = costs.Bench.lowering

  def lowering(self, mask):
    lower = made(self, mask)

    def traced():
      jaxtyping.config.update('jaxtyping_disable', True)
      try:
        return lower()
      finally:
        jaxtyping.config.update('jaxtyping_disable', False)

    return traced

  monkeypatch.setattr(costs.Bench, 'lowering', lowering)


@pytest.fixture
def drafted_by(monkeypatch):
  """The masks that rounds of texts were drafted by, and the cost of a token."""
  seen = []
  real = rounds.speculative_rounds

  def spied(graphdef, params, state, mask, none_skipped, settings, *rest):
    seen.append((mask, float(settings.costs.draft)))
    assert isinstance(none_skipped, KnownMask)
    return real(graphdef, params, state, mask, none_skipped, settings, *rest)

  spied.lower = real.lower
  monkeypatch.setattr(rounds, 'speculative_rounds', spied)
  return seen


@pytest.fixture
def said(monkeypatch):
  """Warnings, whatever level other tests have left loggers at."""
  lines = []
  logger = types.SimpleNamespace(warning=lambda *line: lines.append(line))
  monkeypatch.setattr(specialised, '_LOGGER', logger)
  return lines


@pytest.fixture
def clock(monkeypatch):
  """Seconds that a round takes whose set is built in; others take GATED_S."""
  known = {'known': 0.2}
  monkeypatch.setattr(costs.Bench, 'plain', lambda _: STEP_S)
  monkeypatch.setattr(
    costs.Bench,
    'layers',
    lambda _, mask: known['known'] if isinstance(mask, KnownMask) else GATED_S,
  )
  monkeypatch.setattr(costs.Bench, 'round', lambda *_: 0.1)
  return known


def make_engine(mask=MASK, **changes):
  """On a device whose gates cost much, as a GPU's do."""
  engine = tiny_model.engine(mask, **changes)
  engine.model.keeps_costs = False
  engine.model.drafts_stay_gated = False
  engine.model.none_skipped = KnownMask.of(skip_mask.none_skipped(LAYERS))
  return engine


def test_a_known_mask_is_the_gated_one():
  tokens = np.array([[3, 1, 4], [1, 5, 9]])
  gated, updates = tiny_model.run(tokens, MASK)
  known, known_updates = tiny_model.run(tokens, KnownMask.of(MASK))
  np.testing.assert_allclose(known, gated, atol=1e-4)
  for one, two in zip(updates, known_updates, strict=True):
    np.testing.assert_allclose(one, two, atol=1e-4)
  with pytest.raises(AssertionError):
    other = KnownMask.of(skip_mask.from_lists([1], [2], LAYERS))
    np.testing.assert_allclose(tiny_model.run(tokens, other)[0], gated)


@pytest.mark.parametrize(
  ('adaptive', 'temperature'),
  [(False, 0.0), pytest.param(True, 0.8, marks=pytest.mark.nightly)],
)
def test_the_text_is_the_same(drafted_by, clock, adaptive, temperature):
  how = {'temperature': temperature, 'seed': 3}
  plain = tiny_model.engine(MASK).generate(
    PROMPTS, tiny_model.decode('plain', **how)
  )
  engine = make_engine(adaptive=adaptive)
  engine.warmup(tiny_model.decode(**how))
  drafted_by.clear()
  made = engine.generate(PROMPTS, tiny_model.decode(**how))
  assert [r.tokens for r in made] == [r.tokens for r in plain]
  assert {type(mask) for mask, _ in drafted_by} == {KnownMask}
  assert {mask for mask, _ in drafted_by} == {KnownMask.of(MASK)}


def test_the_policy_weighs_what_is_saved(drafted_by, clock):
  engine = make_engine(adaptive=True)
  engine.warmup(tiny_model.decode())
  drafted_by.clear()
  engine.generate(PROMPTS, tiny_model.decode())
  how = 3, engine.model.shapes, engine.resolve().config
  passes = engine.model.clock(*how).measured
  tokens = 7  # of the drafts that are timed, with a verify of 8
  saved = (GATED_S - 0.2) / tokens / STEP_S
  wanted = max(passes.draft(MASK.bits()) - saved, 0.001)
  assert drafted_by[0][1] == pytest.approx(wanted, rel=1e-5)


def test_gates_stay_where_they_are_quicker(drafted_by, clock):
  clock['known'] = 1.0
  engine = make_engine()
  engine.warmup(tiny_model.decode())
  drafted_by.clear()
  engine.generate(PROMPTS, tiny_model.decode())
  assert drafted_by
  assert not any(isinstance(mask, KnownMask) for mask, _ in drafted_by)


def test_the_text_does_not_wait_for_the_program(drafted_by, clock, monkeypatch):
  may_compile = threading.Event()
  made = costs.Bench.lowering

  def lowering(self, mask):
    lower = made(self, mask)
    return lambda: may_compile.wait(60) and lower()

  monkeypatch.setattr(costs.Bench, 'lowering', lowering)
  engine = make_engine()
  first = engine.generate(PROMPTS, tiny_model.decode())
  assert drafted_by
  assert not any(isinstance(mask, KnownMask) for mask, _ in drafted_by)
  may_compile.set()
  engine.model.specialised._compiler.shutdown()  # waits
  drafted_by.clear()
  compilations = Compilations()
  second = engine.generate(PROMPTS, tiny_model.decode())
  assert compilations.count == 0
  assert all(isinstance(mask, KnownMask) for mask, _ in drafted_by)
  assert [r.tokens for r in first] == [r.tokens for r in second]


def test_what_drafted_before_is_not_compiled_for(
  drafted_by, clock, monkeypatch
):
  """Nor kept: a job holds a cache while it runs, and nothing then."""
  may_compile = threading.Event()
  compiled = []

  def lowering(self, known):
    def lower():
      assert may_compile.wait(60)
      compiled.append(known)
      return jax.jit(lambda: 0).lower()

    return lower

  monkeypatch.setattr(costs.Bench, 'lowering', lowering)
  engine = make_engine()
  others = [skip_mask.from_lists([n], [2], LAYERS) for n in (1, 2, 3)]
  for mask in (MASK, *others):
    engine.set_skip_mask(mask)
    engine.searcher.rest()
    engine.generate(PROMPTS, tiny_model.decode(max_new_tokens=4))
  programs = engine.model.specialised
  (key,) = programs._jobs
  assert key.mask == KnownMask.of(others[-1])
  may_compile.set()
  programs._compiler.shutdown()  # waits
  assert compiled == [KnownMask.of(MASK), KnownMask.of(others[-1])]


def test_a_program_that_fails_is_said_and_done_without(
  drafted_by, clock, monkeypatch, said
):
  def fails(*_):
    raise RuntimeError('RESOURCE_EXHAUSTED')

  monkeypatch.setattr(costs.Bench, '__init__', fails)
  engine = make_engine()
  engine.warmup(tiny_model.decode())
  (result, *_) = engine.generate(PROMPTS, tiny_model.decode())
  assert result.tokens == tiny_model.reference(PROMPTS[0], 40)
  assert [str(line[1]) for line in said] == ['RESOURCE_EXHAUSTED']
  assert not any(isinstance(mask, KnownMask) for mask, _ in drafted_by)


def test_a_search_that_goes_on_drafts_behind_gates(drafted_by, clock):
  engine = make_engine(None)
  assert engine.searcher.active
  engine.generate(PROMPTS, tiny_model.decode(max_new_tokens=12))
  assert drafted_by
  assert not any(isinstance(mask, KnownMask) for mask, _ in drafted_by)


@pytest.mark.nightly
def test_real_programs_by_the_real_clock(said):
  """Compiled and timed; what fails would be a warning."""
  engine = make_engine(adaptive=True)
  engine.warmup(tiny_model.decode())
  model = engine.model
  how = 3, model.capacity, model.shapes, engine.resolve().config
  compilations = Compilations()
  saved = model.specialised.saved_seconds(MASK.bits(), *how, waits=True)
  assert compilations.count == 0  # it is there
  assert saved is None or 0 < saved < 1
  assert not said
