"""Another process compiles, and its crash takes one program along."""

import pytest
from small_run import small_run

from swift_jax.compilation import child
from swift_jax.compilation.measure import Compiled

# It compiles `good` and everything behind `bad`, at which it crashes.
FAKE = """
import os, pickle, sys
sys.stdin.buffer.read()
for name in sys.argv[1:]:
  if name == 'bad':
    sys.stderr.write('W1 a.cc:1] noise\\nF1128 09:23 7 b.cc:2] Check failed: x\\n')
    sys.stderr.flush()
    os.abort()
  if name == 'bug':
    raise ValueError('of ours')
  pickle.dump(name, sys.stdout.buffer)
  sys.stdout.buffer.flush()
"""


def fake(monkeypatch):
  monkeypatch.setattr(child, '_COMMAND', ('-c', FAKE))


def test_a_crash_is_a_result(monkeypatch):
  fake(monkeypatch)
  found = list(child.results(small_run(), ['one', 'bad', 'two', 'bad']))
  assert found[0::2] == ['one', 'two']
  for crashed in found[1::2]:
    assert isinstance(crashed, Compiled) and crashed.name == 'bad'
    assert crashed.refused == 'the compiler crashes: Check failed: x'


def test_an_error_of_ours_is_none_of_the_compiler(monkeypatch):
  fake(monkeypatch)
  results = child.results(small_run(), ['one', 'bug', 'two'])
  assert next(results) == 'one'
  with pytest.raises(RuntimeError, match='ValueError: of ours'):
    next(results)


def test_it_compiles_and_estimates():
  names = ['start', 'prefill', child.COSTS]
  start, prefill, costs = child.results(small_run(), names)
  assert (start.name, prefill.name, costs) == ('start', 'prefill', {})
  assert not prefill.refused and prefill.seconds > 0
  # Gates on a CPU. Nobody reads the last MLP: prefill wants keys and values.
  assert prefill.conditionals == 2 * small_run().cfg.num_hidden_layers - 1
