"""Targets by their names, and one line for what cannot be compiled for."""

import dataclasses

import pytest

from swift_jax.compilation import gpus, targets
from swift_jax.errors import InputError


def test_the_list_names_all_that_can_be_found():
  text = '\n'.join(targets.listed())
  for name in (*targets.TPUS, *gpus.DESCRIPTIONS, 'cpu', 'FILE'):
    assert f'\n{name}' in f'\n{text}'


@pytest.mark.parametrize(
  ('name', 'said'),
  [
    ('v9', 'no such target; expected one of v2, v3'),
    ('v5e', 'expected a slice of chips, as in v5e:2x2'),
    ('v5e:2x2x1', 'expected a slice of chips, as in v5e:2x2'),
    ('v5p:2x2', 'expected a slice of chips, as in v5p:2x2x1'),
    ('v5e:4', 'expected a slice of chips'),
    ('h100:0', 'expected a number of devices, as in h100:8'),
    ('h100:many', 'expected a number of devices'),
    ('none.txtpb', 'cannot be read'),
  ],
)
def test_a_name_that_is_none(name, said):
  with pytest.raises(InputError) as error:
    targets.find(name)
  assert f'--target={name}' in str(error.value)
  assert said in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('name', 'extra'), [('v6e:2x4', 'compile-tpu'), ('h100:8', 'compile-gpu')]
)
def test_a_compiler_that_is_missing(name, extra, monkeypatch):
  monkeypatch.setattr(targets.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match=rf'install the \[{extra}\] extra'):
    targets.find(name)


def test_this_machine():
  machine = targets.find('cpu')
  assert machine.platform == 'cpu' and machine.bandwidth is None
  assert dataclasses.replace(machine, devices=()).memory > 2**28


def test_a_description_of_a_gpu_reads_the_same_in_one_line():
  text = gpus.DESCRIPTIONS['h100']
  gpu = gpus.read(text, 'h100')
  assert gpu.title == 'NVIDIA H100 80GB HBM3'
  assert gpus.read(' '.join(text.split()), 'h100') == gpu
  # What NVIDIA's data sheets say, with the clock that this description has.
  assert gpu.memory // 2**30 == 79 and round(gpu.bandwidth / 1e12, 2) == 3.35
  assert 0.9 < gpu.flops / 989e12 < 1.1


def test_a_description_that_lacks_a_field(tmp_path):
  file = tmp_path / 'own.txtpb'
  text = gpus.DESCRIPTIONS['h100'].replace('memory_bandwidth', 'bandwidth')
  file.write_text(text)
  with pytest.raises(InputError, match='has no memory_bandwidth'):
    targets.find(f'{file}:2')
