"""The short form of tests/stress/kill_and_resume.py."""

import importlib.util
import pathlib

import pytest


@pytest.mark.nightly
def test_nothing_is_lost_and_nothing_comes_twice(tmp_path):
  file = pathlib.Path(__file__).parents[1] / 'stress' / 'kill_and_resume.py'
  spec = importlib.util.spec_from_file_location('kill_and_resume', file)
  loop = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(loop)
  said = []
  killed, whole = loop.run(tmp_path, 3, 1, said.append)
  assert killed == whole and len(whole) == 64
  assert len(said) == 3
