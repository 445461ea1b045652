"""Which flag launchers give XLA, and that XLA knows it."""

import importlib.metadata
import importlib.util

from cli import xla_flags
import jax
import pytest

OFF = '--xla_cpu_experimental_ynn_fusion_type='


@pytest.mark.parametrize(
  'given, wanted',
  [
    ({}, OFF),
    ({'XLA_FLAGS': '--other=1'}, f'--other=1 {OFF}'),
    ({'XLA_FLAGS': f'{OFF}dot'}, f'{OFF}dot'),
  ],
)
def test_what_is_said_of_it_stays(monkeypatch, given, wanted):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  xla_flags.set_for_cpu(given)
  assert given == {'XLA_FLAGS': wanted}


def test_it_is_for_one_version_and_for_cpus(monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(importlib.util, 'find_spec', lambda name: object())
    xla_flags.set_for_cpu(environ := {})
    assert not environ
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: '0.10.1')
  xla_flags.set_for_cpu(environ)
  assert not environ


def test_no_fusion_is_left_that_it_switches_off():
  """Tests run with what launchers have; a product of this size would have one."""
  numbers = jax.numpy.ones((512, 512))
  program = jax.jit(lambda x: (x @ x).sum(-1)).lower(numbers).compile()
  assert 'ynn' not in program.as_text()
