"""The search's rules, on masks whose worth is known."""

import copy
import json
import sys

import numpy as np
import pytest
import synthetic
from synthetic import BEST, COUNT, FREE, LAYERS, SKIPPED

from swift_jax.errors import InputError
from swift_jax.model import skip_mask as skip_masks
from swift_jax.search import searcher as searchers
from swift_jax.search.drift import BLOCK
from swift_jax.search.matchness import Scores

GIVEN = skip_masks.from_lists([3], [4], LAYERS).bits()


def started(**changes):
  """A searcher with the process, if `bayes_interval` asks for it."""
  search = synthetic.searcher(**changes)
  if search.wants_process:
    search.start_process()
  return search


def observe(search, *hits):
  """Makes a pass with these hits of 50 positions; other masks have none."""
  hits = [*hits, *[0] * (search.num_candidates - len(hits))]
  candidates = search.candidates()
  search.observe(candidates, synthetic.with_hits(*hits), 20)
  return candidates


# ---- what is scored


@pytest.mark.parametrize('layers', [4, LAYERS])
def test_the_incumbent_comes_first_then_distinct_masks_of_its_size(layers):
  """A model of 4 layers has only 4 such masks, which come again."""
  config = synthetic.searcher(num_candidates=4, skip_ratio=0.4).cfg
  search = searchers.Searcher(config, layers)
  skipped = skip_masks.num_to_skip(layers, 0.4)
  rng = np.random.default_rng(0)
  for _ in range(30):
    found = search.candidates()
    assert found.shape == (4, skip_masks.num_free(layers))
    assert (found[0] == search.incumbent).all()
    assert (found.sum(1) == skipped).all()
    assert len(np.unique(found, axis=0)) == 4
    logs = rng.normal(-1, 0.3, (4, 1, 50)).astype(np.float32)
    compared = np.ones((1, 50), bool)
    search.observe(found, Scores(logs > -1, logs, logs, compared), 20)
  assert search.iterations == 30 and search.evaluations == 120


def test_random_masks_and_neighbours_share_a_pass():
  search = synthetic.searcher()
  for _ in range(20):
    apart = (search.candidates() != search.incumbent).sum(1)
    assert apart[0] == 0
    assert (apart[1:4] % 2 == 0).all()
    assert apart[4:].tolist() == [2] * 4


def test_the_first_pass_begins_with_what_matters_least():
  search = synthetic.searcher()
  assert search.wants_importance
  search.take_importance(synthetic.COST)
  assert not search.wants_importance
  best = np.zeros(FREE, bool)
  best[np.argsort(synthetic.COST)[:SKIPPED]] = True
  records = []
  search.on_pass = records.append
  first, second = synthetic.run(search, 2)
  assert (first[1] == best).all()
  sources = [record.sources for record in records]
  assert sources[0][:6] == ('incumbent', *['sensitivity'] * 4, 'random')
  assert 'sensitivity' not in sources[1]
  assert (second[0] == best).all()
  assert search.source == 'sensitivity'


def test_the_process_proposes_every_so_often():
  search, records = started(bayes_interval=3, target_matchness=1.0), []
  search.on_pass = records.append
  synthetic.run(search, 7)
  turns = [record.number for record in records if 'gp' in record.sources]
  assert turns == [3, 6]
  assert set(records[2].sources[1:]) == {'gp'}


def test_the_incumbent_is_scored_again_in_every_pass():
  search = synthetic.searcher()
  before = search.incumbent
  for hits in (30, 20, 10):
    observe(search, hits, 0)
  assert search.incumbent is before and search.source == 'start'
  assert search._scored[searchers.digits(before)] == ['start', 10, 50]
  assert search.estimate.passes == 3
  positions = 50 * (1 + 0.8 + 0.64)
  assert search.matchness == pytest.approx((10 + 16 + 19.2) / positions)


# ---- who drafts


@pytest.mark.parametrize('changes', [{}, {'bayes_interval': 1}])
@pytest.mark.parametrize('seed', [0, 1])
def test_the_best_set_is_approached(changes, seed):
  """The best set is known; the same number of random masks gets less close."""
  search = started(seed=seed, target_matchness=1.0, **changes)
  start = synthetic.worth(search.incumbent)
  synthetic.run(search, 30, seed)
  search.rest()
  found = synthetic.worth(search.incumbent)
  rng = np.random.default_rng(seed)
  drawn = synthetic.random_bits(rng, 30 * (COUNT - 1))
  random_only = -(drawn @ synthetic.COST).min()
  assert start < random_only < found <= BEST
  assert BEST - found < 0.2 * (BEST - start)


@pytest.mark.parametrize('share, wins', [(0.99, True), (1.01, False)])
def test_a_challenger_must_be_better_than_by_chance(share, wins):
  """The error is that of the differences, position by position."""
  search = synthetic.searcher()
  candidates = search.candidates()
  rng = np.random.default_rng(0)
  log_probs = np.full((COUNT, 1, 50), -2.9, np.float32)
  text = rng.uniform(-2, -1.5, 50)  # hard and easy alike for both
  lead, signs = 0.05, np.resize([1, -1], 50)
  error = share * lead / searchers._MARGIN_ON_ONE_TEXT
  log_probs[0, 0] = text
  log_probs[3, 0] = text + lead + signs * error * 50**0.5
  hits = np.zeros(log_probs.shape, bool)
  hits[3, 0, :40] = True
  scores = Scores(hits, log_probs, log_probs, np.ones((1, 50), bool))
  search.observe(candidates, scores, 20)
  assert (search.incumbent == candidates[3 if wins else 0]).all()
  if wins:  # its estimate is now that of this window
    assert search.source == 'random'
    assert search.matchness == 40 / 50 and search.estimate.passes == 1


def test_a_draft_that_overflows_is_no_winner():
  search = synthetic.searcher()
  candidates, scores = search.candidates(), synthetic.with_hits(*[25] * COUNT)
  scores.log_probs[2] = np.nan
  search.observe(candidates, scores, 20)
  assert (search.incumbent == candidates[0]).all()
  json.dumps(search.state(), allow_nan=False)


def test_sensitivities_that_overflowed_are_not_believed():
  search = started(bayes_interval=1)
  importance = np.array(synthetic.COST)
  importance[3] = np.nan
  search.take_importance(importance)
  assert not search.wants_importance
  synthetic.run(search, 3)
  search.candidates()  # waits for it
  assert np.isfinite(search._surrogate.means[: search._surrogate.count]).all()
  json.dumps(search.state(), allow_nan=False)


def test_the_set_that_reached_the_target_stays():
  """Even if the process, which was running meanwhile, prefers another set."""

  class Process:
    """Prefers another mask in the end."""

    is_running = False

    def observe(self, *_):
      assert not self.is_running

    def start(self, incumbent):
      self.is_running, self.incumbent = True, incumbent

    def collect(self):
      self.is_running = False
      return []

    def best(self, *_):
      is_late = search.iterations > 2
      return GIVEN if is_late else self.incumbent

  for target, stays in ((0.5, True), (0.95, False)):
    search = synthetic.searcher(target_matchness=target, max_iterations=3)
    search._surrogate = Process()
    before = search.incumbent
    for _ in range(3):
      observe(search, 45)
    assert not search.active
    assert (search.incumbent == (before if stays else GIVEN)).all()


def test_the_process_names_the_incumbent_between_its_turns_too():
  search = started(bayes_interval=99, max_iterations=8)
  start = synthetic.worth(search.incumbent)
  synthetic.run(search, 99)
  assert search.iterations == 8  # the last pass was weighed too
  assert not search._surrogate.is_running
  assert synthetic.worth(search.incumbent) > start


def test_a_process_that_starts_late_is_told_what_was_scored():
  early, late = (
    started(bayes_interval=99),
    synthetic.searcher(bayes_interval=99),
  )
  importance = np.random.default_rng(1).normal(size=FREE)
  rng = np.random.default_rng(2)
  for search in (early, late):
    search.take_importance(importance)
  for _ in range(3):
    candidates = late.candidates()
    early.candidates()
    early._sources = late._sources
    scores = synthetic.scores(candidates, rng)
    for search in (early, late):
      search.observe(candidates, scores, 20)
  assert late.wants_process and not early.wants_process
  late.start_process()
  assert not late.wants_process
  one, two = (search._surrogate for search in (early, late))
  assert one.count == two.count == 3 * COUNT
  for name in ('_bits', '_scores', '_variances', '_times', '_importance'):
    assert (getattr(one, name) == getattr(two, name)).all()
  assert two.is_running  # so that the next pass has its suggestions


def test_texts_further_apart_are_further_apart_for_the_process():
  """In windows; another text, and a long one, count `_NEW_TEXT` windows."""
  search, times = started(bayes_interval=1), []
  other = searchers._NEW_TEXT
  for fresh in (10, 25, 100, 10_000):
    candidates = search.candidates()
    rng = np.random.default_rng(0)
    search.observe(candidates, synthetic.scores(candidates, rng), fresh)
    times.append(search._surrogate._now)
  search.new_text()
  synthetic.run(search, 1)
  times.append(search._surrogate._now)
  apart = np.diff(times, prepend=0).tolist()
  assert apart == [other, 0.5, 2, other, other]


def test_a_mask_that_only_the_process_remembers_may_draft(monkeypatch):
  monkeypatch.setattr(searchers, '_REMEMBERED', 1)
  search = started(bayes_interval=99, target_matchness=1.0)
  start = search.incumbent
  for _ in range(12):
    synthetic.run(search, 1)
    search.candidates()
    if (search.incumbent != start).any():
      break
  assert (search.incumbent != start).any()
  assert (search.source, search.matchness) == ('gp', None)
  synthetic.run(search, 1)
  assert search.matchness is not None


# ---- when it ends


def test_a_score_above_the_target_ends_it():
  """Less one deviation, and from the third window on."""
  search = synthetic.searcher(target_matchness=0.5)
  for number in range(3):
    assert search.active and search.iterations == number
    observe(search, 40)
  assert not search.active
  search = synthetic.searcher(target_matchness=0.5)
  for _ in range(20):
    observe(search, 26)
  assert search.estimate.mean > 0.5 > search.estimate.low and search.active


def test_a_challengers_winning_score_does_not_end_it():
  """The winning score is too good: the set is scored again first."""
  search = synthetic.searcher(target_matchness=0.5)
  for _ in range(2):
    observe(search, 20)
  observe(search, 20, 49)
  assert search.matchness == 49 / 50 and search.active
  for _ in range(2):
    assert search.active
    observe(search, 49)
  assert not search.active and search.estimate.passes == 3


def test_patience_counts_masks_without_a_better_one():
  search = synthetic.searcher(patience=3 * COUNT)
  for hits in ([20], [20], [20, 40], [40], [40], [40]):
    assert search.active
    observe(search, *hits)
  assert not search.active and search.iterations == 6


def test_searches_that_never_begin():
  for changes in (
    {'max_iterations': 0},
    {'enabled': False},
    {'skip_ratio': 0.0},  # no two masks to choose from
    {'skip_ratio': 1.0},
  ):
    search = synthetic.searcher(**changes)
    assert not search.active and not search.may_search
    assert not search.wants_importance and not search.wants_process
    search.start_from(search.incumbent, may_restart=True)
    fall(search)
    assert not search.active and not search.may_search


def test_nothing_is_counted_where_nothing_was_compared():
  search = synthetic.searcher()
  scores = synthetic.with_hits(*[0] * COUNT)
  nothing = scores._replace(compared=np.zeros((1, 50), bool))
  search.observe(search.candidates(), nothing, 20)
  assert search.iterations == 0 and search.matchness is None


def test_a_set_that_is_given_stays():
  """Also while a suggestion is computed; and nothing wakes the search again."""
  search = started(bayes_interval=1)
  candidates = search.candidates()
  scores = synthetic.scores(candidates, np.random.default_rng(0))
  search.observe(candidates, scores, 20)
  search.start_from(GIVEN)
  search.observe(candidates, scores, 20)
  search.rest()
  fall(search)
  assert (search.incumbent == GIVEN).all()
  assert search.iterations == 1 and search.restarts == 0
  assert not search.active and search.matchness is None


# ---- drift


def fall(search) -> None:
  """A stream in which drafts are accepted, then one in which they are not."""
  for number in range(30):
    search.watch(BLOCK, 60 - number % 3 if number < 20 else 20)


def test_a_lasting_fall_starts_it_once_more():
  search, records = synthetic.searcher(max_iterations=3), []
  search.on_pass = records.append
  search.take_importance(synthetic.COST)
  fall(search)  # during a search a fall of the acceptance is no drift
  assert search.restarts == 0
  synthetic.run(search, 99)
  assert not search.active and search.may_search
  best = search.incumbent
  for _ in range(20):
    search.watch(BLOCK, 58)
  assert not search.active
  fall(search)
  assert search.active and search.restarts == 1
  # The set drafts on, but scores on the old stream are no evidence.
  assert (search.incumbent == best).all() and search.matchness is None
  assert search.wants_importance
  synthetic.run(search, 99)  # caps count from there
  assert search.iterations == 6 and not search.active
  events = [record.event for record in records]
  assert events == ['start', None, 'stopped', 'restart', None, 'stopped']


def test_patience_begins_anew_after_a_restart():
  search = synthetic.searcher(patience=2 * COUNT)
  for _ in range(2):
    observe(search, 25)
  assert not search.active
  fall(search)
  observe(search, 25)
  assert search.active
  observe(search, 25)
  assert not search.active


def test_a_restart_empties_the_process():
  search = started(bayes_interval=1, max_iterations=2)
  synthetic.run(search, 99)
  process = search._surrogate
  assert process.count == 2 * COUNT
  fall(search)
  assert process.count == 0 and not process.is_running
  assert search._surrogate is process and not search.wants_process
  records = []
  search.on_pass = records.append
  synthetic.run(search, 1)
  assert process.count == COUNT
  assert 'gp' not in records[0].sources  # proposals were for the old stream


def test_a_process_that_starts_after_a_restart_is_told_of_the_new_stream():
  search = synthetic.searcher(bayes_interval=99, max_iterations=2)
  synthetic.run(search, 99)
  fall(search)
  synthetic.run(search, 1)
  search.start_process()
  assert search._surrogate.count == COUNT


def test_a_cached_start_may_search_once_the_stream_changes():
  search = synthetic.searcher()
  search.start_from(GIVEN, may_restart=True)
  assert not search.active and search.may_search
  fall(search)
  assert search.active and search.restarts == 1
  assert (search.incumbent == GIVEN).all()
  # All masks skip two sublayers as it does, whatever the ratio is.
  search.take_importance(synthetic.COST)
  sources = set()
  search.on_pass = lambda record: sources.update(record.sources)
  for found in synthetic.run(search, 4):
    assert (found.sum(1) == 2).all()
    assert len(np.unique(found, axis=0)) == COUNT
  assert sources == {'incumbent', 'sensitivity', 'random', 'neighbour'}
  other = synthetic.searcher()
  other.start_from(GIVEN, may_restart=True)
  other.restore(saved(search))
  assert saved(other) == saved(search)


def test_a_cached_start_knows_nothing_of_a_search_before_it():
  search, fresh = (
    started(bayes_interval=1),
    synthetic.searcher(bayes_interval=1),
  )
  synthetic.run(search, 3)
  for one in (search, fresh):
    one.start_from(GIVEN, may_restart=True)
    fall(one)
    assert one.wants_process and one.wants_importance
  for name in ('_history', '_suggested', '_scored', '_importance', 'estimate'):
    assert getattr(search, name) == getattr(fresh, name)


def test_a_long_rest_does_not_pay_for_the_search_after_it():
  search = synthetic.searcher(time_budget=0.1, max_iterations=1)
  synthetic.run(search, 99)
  search.governor.add(3600.0)
  assert search.governor.affords(300.0)
  fall(search)
  assert search.active and not search.governor.affords(0.1)
  search.governor.add(10.0)
  assert search.governor.affords(0.9) and not search.governor.affords(1.1)


@pytest.mark.parametrize('recipe', ['default', 'paper'])
def test_what_never_restarts(recipe):
  restart = recipe == 'paper'  # which knows no restart
  search = synthetic.searcher(max_iterations=1, restart=restart, recipe=recipe)
  synthetic.run(search, 99)
  assert not search.active and not search.may_search
  fall(search)
  assert not search.active
  search = synthetic.searcher(restart=restart, recipe=recipe)
  search.start_from(GIVEN, may_restart=True)
  fall(search)
  assert not search.active and search.restarts == 0


# ---- seeds and states


SETTINGS = {
  'random': {},
  'gp': {'bayes_interval': 1},
  'both': {'bayes_interval': 2},
  'paper': {'recipe': 'paper'},
}


@pytest.mark.parametrize('name', SETTINGS)
def test_same_seed_same_search(name):
  def run(seed):
    return synthetic.run(started(seed=seed, **SETTINGS[name]), 4)

  for one, two, other in zip(run(0), run(0), run(1), strict=True):
    assert (one == two).all()
    assert (one != other).any()


def saved(search):
  """A search's state, as it comes back from a file."""
  return json.loads(json.dumps(search.state(), allow_nan=False))


@pytest.mark.parametrize('name', SETTINGS)
@pytest.mark.parametrize('passes', [0, 1, 5])
def test_a_search_goes_on_from_its_state_as_if_it_had_not_ended(name, passes):
  settings = {**SETTINGS[name], 'patience': 60, 'target_matchness': 1.0}
  importance = np.random.default_rng(1).normal(size=FREE)
  unbroken, first = started(**settings), started(**settings)
  records = {True: [], False: []}
  for search in (unbroken, first):
    search.governor.add(7.0)
    search.take_importance(importance)
  unbroken.on_pass = records[False].append
  synthetic.run(unbroken, 12)
  first.on_pass = records[True].append
  synthetic.run(first, passes)
  second = synthetic.searcher(**settings)
  second.on_pass = records[True].append
  second.restore(saved(first))
  synthetic.run(second, 12 - passes)
  for search in (unbroken, second):  # blocks to compare the next with
    search.watch(BLOCK, 50)
  assert records[True] == records[False]
  assert saved(second) == saved(unbroken)


def test_a_search_at_rest_is_restored_with_what_it_watches():
  one, two = (synthetic.searcher(max_iterations=2) for _ in range(2))
  synthetic.run(one, 99)
  for _ in range(20):
    one.watch(BLOCK, 60)
  two.restore(saved(one))
  assert not two.active and two.restarts == 0
  for _ in range(9):
    two.watch(BLOCK, 20)
  assert two.active and two.restarts == 1


def test_a_state_keeps_its_budget_and_takes_the_share_of_the_settings():
  one = synthetic.searcher(time_budget=0.5)
  one.governor.add(3.0)
  one.governor.pay(2.0, is_pass=True)
  two = synthetic.searcher(time_budget=0.25)
  governor = two.governor  # a batch that is being written has it
  two.restore(saved(one))
  assert two.governor is governor
  assert governor.account() == {**one.governor.account(), 'share': 0.25}


def test_the_settings_count_that_a_state_is_restored_with():
  resting, searching = (synthetic.searcher(max_iterations=2) for _ in range(2))
  synthetic.run(resting, 99)
  synthetic.run(searching, 1)
  assert resting.may_search and searching.active
  for changes in ({'enabled': False}, {'max_iterations': 0}):
    for state in (saved(resting), saved(searching)):
      search = synthetic.searcher(**changes)
      search.restore(state)
      assert not search.may_search
  search = synthetic.searcher(restart=False)
  search.restore(saved(resting))
  fall(search)
  assert not search.active


def test_without_the_process_its_state_is_left_out():
  one = started(bayes_interval=1)
  synthetic.run(one, 2)
  two = synthetic.searcher()
  two.restore(saved(one))
  assert two._surrogate is None and two.iterations == 2
  synthetic.run(two, 2)
  assert two.iterations == 4


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'skip_ratio': 0.3}, 'num_skipped=9, here 6'),
    ({'num_candidates': 5}, 'num_candidates=8, here 5'),
    ({'recipe': 'paper'}, "num_candidates=8, here 1|recipe='default'"),
  ],
)
def test_a_state_of_other_sizes_is_named(changes, said):
  search = synthetic.searcher()
  synthetic.run(search, 1)
  with pytest.raises(InputError, match=f'search state: {said}'):
    synthetic.searcher(**changes).restore(saved(search))
  deeper = searchers.Searcher(search.cfg, LAYERS + 1)
  with pytest.raises(InputError, match='num_layers=12, here 13'):
    deeper.restore(saved(search))


def places(value, path=()):
  """Paths to all values in a state; of long lists only to the first ones."""
  if isinstance(value, (dict, list)):
    keys = value if isinstance(value, dict) else range(min(len(value), 2))
    for key in keys:
      yield (*path, key)
      yield from places(value[key], (*path, key))


def damaged(state, path, change):
  """The state with one thing dropped or put in place of another."""
  state = copy.deepcopy(state)
  inner = state
  for key in path[:-1]:
    inner = inner[key]
  if change == 'drop':
    del inner[path[-1]]
  else:
    inner[path[-1]] = change
  return state


CHANGES = [
  'drop',
  None,
  'x',
  -1,
  2**70,
  True,
  [],
  {},
  float('nan'),
  float('inf'),
  {'array': [1, 2], 'shape': [2], 'dtype': 'float32'},
  {'array': ['x'], 'shape': [1], 'dtype': 'float32'},
]


@pytest.mark.parametrize('recipe', ['default', 'paper'])
def test_a_damaged_state_is_refused_or_harmless(recipe):
  """A value that is missing or of another kind is refused, and the search does
  not change. A value that could have been written, such as another number,
  works."""
  search = synthetic.searcher(recipe=recipe)
  search.take_importance(np.random.default_rng(1).normal(size=FREE))
  synthetic.run(search, 2)
  state, refused, tried = saved(search), 0, 0
  other = synthetic.searcher(recipe=recipe)
  before = other.state()
  for path in places(state):
    for change in CHANGES:
      broken = damaged(state, path, change)
      tried += 1
      try:
        other.restore(broken)
      except InputError as error:
        assert '\n' not in str(error)
        refused += 1
        continue
      may_lack = path[:2] == ('learnt', '_scored') or isinstance(path[-1], int)
      assert change != 'drop' or may_lack, path
      synthetic.run(other, 2)
      json.dumps(other.state(), allow_nan=False)
      other = synthetic.searcher(recipe=recipe)
    assert other.state() == before, path
  assert refused > 0.7 * tried


@pytest.mark.parametrize('state', [None, 3, 'x', [], {}, {'sizes': 1}])
def test_what_is_no_state_is_refused(state):
  with pytest.raises(InputError, match='search state: damaged: '):
    synthetic.searcher().restore(state)


def test_a_damaged_process_is_refused():
  search = started(bayes_interval=1)
  synthetic.run(search, 1)
  state, other = saved(search), synthetic.searcher(bayes_interval=1)
  before = other.state()
  for name in state['surrogate']:
    for change in ('drop', None, 'x', [], {'array': 1}, -1, 10**6):
      with pytest.raises(InputError, match='search state: damaged: '):
        other.restore(damaged(state, ('surrogate', name), change))
      if name == '_now' and change == 'x':
        break  # any number will do
  assert other.state() == before and other.wants_process


# ---- without gpjax


@pytest.fixture
def no_gpjax(monkeypatch):
  for name in ('surrogate', 'gaussian_process', 'paper.process'):
    name = f'swift_jax.search.{name}'
    monkeypatch.delitem(sys.modules, name, raising=False)
  monkeypatch.setitem(sys.modules, 'gpjax', None)


@pytest.mark.parametrize('recipe', ['default', 'paper'])
def test_without_gpjax_the_setting_is_named(no_gpjax, recipe):
  """At once, not when the budget would allow the process."""
  with pytest.raises(InputError) as error:
    synthetic.searcher(bayes_interval=2, recipe=recipe)
  said = 'search.bayes_interval=2: needs gpjax (it is not installed); 0 searche'
  assert str(error.value).startswith(said) and '\n' not in str(error.value)
  search = synthetic.searcher(recipe=recipe)
  synthetic.run(search, 3)
  assert search.iterations == 3
  # A search that is off needs nothing.
  assert not synthetic.searcher(bayes_interval=2, enabled=False).active


@pytest.mark.parametrize('recipe', ['default', 'paper'])
def test_a_gpjax_that_does_not_import_is_named(monkeypatch, recipe, request):
  search = synthetic.searcher(bayes_interval=2, recipe=recipe)
  request.getfixturevalue('no_gpjax')
  with pytest.raises(InputError, match='needs gpjax .*gpjax'):
    search.start_process()


def test_it_keeps_a_reserve_once_the_process_has_enough_to_be_told():
  search = synthetic.searcher(bayes_interval=1)
  for number in range(20):
    assert search.keeps_reserve == (number >= 16)
    observe(search, 25)
  search.start_process()
  assert not search.keeps_reserve
  without = synthetic.searcher(bayes_interval=0)
  for _ in range(20):
    observe(without, 25)
  assert not without.keeps_reserve
