"""A mesh changes where arrays lie and nothing else."""

import json
import subprocess
import sys

import jax
import numpy as np
import on_eight_devices
import pytest
from test_checkpoint import random_params

from swift_jax import checkpoint, sharding
from swift_jax.config import ModelConfig
from swift_jax.errors import InputError

# Every head count divides by 8, no two axes are alike.
CFG = ModelConfig(
  vocab_size=104,
  hidden_size=48,
  intermediate_size=56,
  num_hidden_layers=4,
  num_attention_heads=16,
  num_key_value_heads=8,
  head_dim=6,
  attention_bias=True,
  mlp_bias=True,
)
LLAMA_70B = ModelConfig(
  vocab_size=32000,
  hidden_size=8192,
  intermediate_size=28672,
  num_hidden_layers=80,
  num_attention_heads=64,
  num_key_value_heads=8,
  head_dim=128,
  dtype='bfloat16',
)


@pytest.fixture(scope='module')
def reports(tmp_path_factory):
  """What `on_eight_devices` says; devices must be set before jax starts."""
  folder = tmp_path_factory.mktemp('sharding') / 'model'
  params = jax.tree.map(lambda p: p * 0.6, random_params(CFG))
  checkpoint.export_hf(folder, CFG, params)
  done = subprocess.run(
    [sys.executable, on_eight_devices.__file__, str(folder)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.parametrize('data, tensor', on_eight_devices.MESHES)
def test_eight_devices_write_what_one_writes(reports, data, tensor):
  one, eight = reports['one'], reports[f'{data}x{tensor}']
  assert one['plain'] == one['swift'] == eight['plain'] == eight['swift']
  assert one['passes_scored'] == eight['passes_scored'] > 0
  # The text must have something to get wrong.
  assert all(len(set(row)) > 8 for row in one['plain'])
  assert (one['devices'], eight['devices']) == (1, 8)
  assert one['exports_the_same'] and eight['exports_the_same']


@pytest.mark.parametrize('data, tensor', on_eight_devices.MESHES)
def test_each_device_holds_its_part_only(reports, data, tensor):
  one, eight = reports['one'], reports[f'{data}x{tensor}']
  assert one['bytes_on_one'] == one['bytes'] == eight['bytes']
  # Norms and the biases of o and down lie everywhere.
  whole = (4 * CFG.num_hidden_layers + 1) * CFG.hidden_size * 4
  split = eight['bytes'] - whole
  assert eight['bytes_on_one'] == split // tensor + whole
  assert one['cache_on_one'] == [4, 8, 128, 6]
  assert eight['cache_on_one'] == [4 // data, 8 // tensor, 128, 6]


def test_a_model_of_70b_splits_by_eight():
  """By shapes alone: nothing of it is allocated."""
  _, abstract = checkpoint._flat_abstract(LLAMA_70B)
  total = part = 0
  for path, leaf in abstract.items():
    spec = sharding.param_spec(path)
    assert len(spec) <= leaf.ndim
    size = leaf.size * leaf.dtype.itemsize
    parts = 1
    for length, axis in zip(leaf.shape, spec, strict=False):
      assert axis in (None, 'tensor')
      if axis:
        assert length % 8 == 0
        parts = 8
    total, part = total + size, part + size // parts
  assert 137e9 < total < 139e9
  assert part < total / 8 * 1.001


def test_meshes_that_do_not_fit_are_named():
  with pytest.raises(InputError, match=r'mesh\.data=0: expected'):
    sharding.make_mesh(0, 1)
  with pytest.raises(InputError, match='mesh.data=64, mesh.tensor=64: 4096'):
    sharding.make_mesh(64, 64)
  devices = np.array(jax.devices()[:1])
  other = jax.sharding.Mesh(devices, ('model',))
  with pytest.raises(InputError, match=r"mesh axes \('model',\)"):
    sharding.check_mesh(CFG, other)
  explicit = jax.make_mesh((1, 1), sharding.AXES)
  with pytest.raises(InputError, match='axis_types .*Explicit.*make_mesh'):
    sharding.check_mesh(CFG, explicit)
  abstract = jax.sharding.AbstractMesh((1, 3), sharding.AXES)
  said = r'mesh\.tensor=3 .*num_attention_heads=16.*vocab_size=104'
  with pytest.raises(InputError, match=said):
    sharding.check_mesh(CFG, abstract)
