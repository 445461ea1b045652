"""Prompt lookup copies the right place, and the text stays plain decoding's."""

from compilations import Compilations
from drawn_text import FALSE_ALARM, SETTINGS, make_engine
from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_drawn_text import worst
import tiny_model
from tiny_model import PROMPTS_OF_DIFFERENT_LENGTH

from swift_jax.config.settings import MAX_NGRAM, DraftConfig
from swift_jax.decoding import drafting, lookup

SLOTS = 23
find = jax.jit(lookup.find)


def place(text, ngram):
  """The slot after the newest of the longest matches, by comparing slices."""
  for size in range(min(ngram, len(text) - 1), 0, -1):
    for start in range(len(text) - size - 1, -1, -1):
      if text[start : start + size] == text[-size:]:
        return start + size, size
  return None, 0


@given(
  texts=st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=SLOTS),
    min_size=3,
    max_size=3,
  ),
  ngram=st.integers(1, MAX_NGRAM),
)
def test_the_newest_of_the_longest_matches_is_found(texts, ngram):
  rows = np.ones((3, SLOTS), np.int32)  # dead slots look like text
  for row, text in zip(rows, texts, strict=True):
    row[: len(text)] = text
  lengths = jnp.asarray([len(text) for text in texts])
  starts, sizes = find(rows, lengths, jnp.int32(ngram))
  for text, start, size in zip(texts, starts, sizes, strict=True):
    wanted = place(text, ngram)
    assert int(size) == wanted[1]
    if wanted[1]:
      assert int(start) == wanted[0]


def drafted(text, end, **changes):
  """The tokens drafted after one text."""
  shapes, traced = drafting.split_config(DraftConfig(**changes), 101)
  shapes = drafting.for_lookup(shapes)
  engine = tiny_model.engine()
  state = engine.session([text], tiny_model.decode(batch_size=1)).state
  state = state.replace(end=jnp.asarray([end]))
  draft = lookup.draft(state, traced, shapes)
  return draft.tokens[0, : int(draft.length[0])].tolist()


def test_what_followed_is_drafted():
  text = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]
  assert drafted(text, 90, lookup_length=4) == [4, 5, 6, 7]
  # A loop goes on as it began.
  assert drafted(text, 90) == [4, 5, 6, 7, 8, 1, 2, 3, 4, 5]
  # The longer match wins over the newer one, up to `lookup_ngram` tokens.
  text = [1, 2, 3, 9, 7, 3, 8, 1, 2, 3]
  assert drafted(text, 90, lookup_length=2) == [9, 7]
  assert drafted(text, 90, lookup_length=2, lookup_ngram=1) == [8, 1]
  # Verify adds a token of its own: one place before the end stays free.
  assert drafted(text, len(text) + 3) == [9, 7]
  assert drafted(text, len(text) + 1) == []
  assert drafted([1, 2, 3, 4], 90) == []


@pytest.mark.parametrize('ngram', [1, 3])
@pytest.mark.parametrize('length', [1, 10, 40])
def test_greedy_text_is_plain_text(ngram, length):
  text = tiny_model.reference([5], 40)
  prompts = [*PROMPTS_OF_DIFFERENT_LENGTH, [5, *text[:20], 5]]
  wanted = [tiny_model.reference(prompt, 40) for prompt in prompts]
  engine = tiny_model.engine(lookup_ngram=ngram, lookup_length=length)
  results = engine.generate(prompts, tiny_model.decode('prompt_lookup'))
  assert [result.tokens for result in results] == wanted
  made = [result.metrics for result in results]
  assert sum(m.drafted for m in made) > sum(m.accepted for m in made) > 0
  assert {m.method for m in made} == {'prompt_lookup'}
  assert all(m.skip_ratio is m.matchness is None for m in made)
  assert all(m.search_s == m.leaf_hits == 0 for m in made)
  assert engine.searcher.iterations == 0


@pytest.mark.nightly
@pytest.mark.parametrize('name', ['temperature .6', 'all'])
def test_drawn_text_has_the_targets_distribution(name):
  engine = make_engine(False)
  p, found, _ = worst(engine, 'prompt_lookup', 5, 4_000, **SETTINGS[name])
  assert p > FALSE_ALARM
  assert {place for place, _ in found} >= {0, 1, 2}


def test_nothing_compiles_after_warm_up():
  decode = tiny_model.decode('prompt_lookup')
  engine = tiny_model.engine(lookup_ngram=2)
  compilations = Compilations()
  engine.warmup(decode, 20)
  warm = compilations.count
  for changes in ({'lookup_ngram': 5}, {'lookup_length': 2}):
    other = tiny_model.engine(**changes)
    with jax.transfer_guard('disallow'):
      other.generate(PROMPTS_OF_DIFFERENT_LENGTH, decode)
  assert compilations.count == warm
