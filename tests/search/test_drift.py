"""When a stream counts as changed: simulated blocks of known acceptance."""

import itertools

import numpy as np
import pytest

from swift_jax.search.drift import BLOCK, Drift

SIZE = 10**6  # drafted tokens of a block, so that its acceptance is any number


def blocks_until_it_fires(drift, acceptances) -> int | None:
  for number, acceptance in enumerate(acceptances, 1):
    if drift.add(SIZE, round(SIZE * acceptance)):
      return number
  return None


def normal(rng, mean, stddev, count):
  return np.clip(rng.normal(mean, stddev, count), 0, 1)


def test_false_alarms_are_as_rare_as_is_said():
  """Some 930 blocks: the mean of 100 runs, which has a deviation of some 93."""
  rng = np.random.default_rng(0)
  lengths = [
    blocks_until_it_fires(Drift(), rng.normal(0.6, 0.05, 20_000))
    for _ in range(100)
  ]
  assert 650 < np.mean(lengths) < 1300


@pytest.mark.parametrize('before', [4, 9])
def test_a_block_is_standard_normal_given_few_before_it(before):
  """So false alarms are no more frequent after few blocks than after many: of
  4000 draws 2.3 % lie below -2 (the deviation is 0.24 %)."""
  rng = np.random.default_rng(5)
  scores = []
  for acceptances in rng.normal(0.6, 0.1, (4000, before + 1)):
    drift = Drift()
    for acceptance in acceptances[:-1]:
      drift._learn(acceptance)
    scores.append(drift._score(acceptances[-1]))
  assert abs(np.mean(scores)) < 0.07 and abs(np.std(scores) - 1) < 0.05
  assert 0.013 < np.mean(np.array(scores) < -2) < 0.033


@pytest.mark.parametrize('stddev', [0.03, 0.1])
def test_a_lasting_fall_is_found_after_a_few_blocks(stddev):
  """A fall by two deviations, of any size, is found after some four blocks."""
  rng = np.random.default_rng(1)
  delays = []
  for _ in range(50):
    drift = Drift()
    before = normal(rng, 0.7, stddev, 60)
    if blocks_until_it_fires(drift, before) is None:
      after = normal(rng, 0.7 - 2 * stddev, stddev, 60)
      delays.append(blocks_until_it_fires(drift, after))
  assert len(delays) > 40 and None not in delays
  assert 3 < np.mean(delays) < 6


def test_what_an_uneven_stream_does_all_the_time_is_no_drift():
  """A fall that raises an alarm in an even stream is noise in an uneven one."""
  rng = np.random.default_rng(2)
  fired = {}
  for stddev in (0.03, 0.2):
    drift = Drift()
    assert blocks_until_it_fires(drift, normal(rng, 0.6, stddev, 60)) is None
    fired[stddev] = blocks_until_it_fires(drift, normal(rng, 0.5, stddev, 9))
  assert fired[0.03] and not fired[0.2]


@pytest.mark.parametrize('blocks', [4, 30, 1000])
@pytest.mark.parametrize('stddev', [0.0, 0.005, 0.05])
def test_one_bad_block_does_not_call(blocks, stddev):
  """However bad the block and even the stream; a second bad block does."""
  drift = Drift()
  before = 0.8 + stddev * np.resize([1, -1], blocks)
  assert blocks_until_it_fires(drift, before) is None
  assert not drift.add(SIZE, 0)
  assert blocks_until_it_fires(drift, np.full(20, 0.8)) is None
  drift = Drift()
  blocks_until_it_fires(drift, before)
  found = blocks_until_it_fires(drift, np.zeros(9))
  assert found == 2 if blocks > 4 else 2 <= found <= 6


def test_a_rise_and_a_steady_stream_never_call():
  assert blocks_until_it_fires(Drift(), np.linspace(0.2, 1, 300)) is None
  assert blocks_until_it_fires(Drift(), np.full(300, 0.4)) is None
  assert blocks_until_it_fires(Drift(), np.zeros(300)) is None


def test_rounds_add_up_to_blocks():
  """The portions in which tokens come make no difference; empty ones too."""
  whole, portions = Drift(), Drift()
  rng = np.random.default_rng(4)
  fired = []
  for mean in [0.8] * 20 + [0.2] * 9:
    hits = rng.random(BLOCK) < mean
    whole_fires = whole.add(BLOCK, int(hits.sum()))
    cuts = np.sort(rng.integers(0, BLOCK, 9))
    fires = [portions.add(0, 0)]
    for begin, end in itertools.pairwise([0, *cuts, BLOCK]):
      fires.append(portions.add(int(end - begin), int(hits[begin:end].sum())))
    assert fires[-1] == whole_fires and not any(fires[:-1])
    assert vars(portions) == vars(whole)
    fired.append(whole_fires)
  assert not any(fired[:20]) and any(fired)
