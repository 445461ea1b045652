"""A mesh changes where arrays lie and nothing else."""

import json
import pathlib
import subprocess
import sys

from checkpoints import random_params
import jax
import layout_70b
import numpy as np
import on_eight_devices
import pytest

from swift_jax.checkpoint import export
from swift_jax.config.settings import ModelConfig
from swift_jax.errors import InputError
from swift_jax.parallel import sharding

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


ON_MESHES = pytest.mark.parametrize(
  'data, tensor',
  [
    *on_eight_devices.MESHES,
    *(
      pytest.param(*mesh, marks=pytest.mark.nightly)
      for mesh in on_eight_devices.MORE_MESHES
    ),
  ],
)


@pytest.fixture(scope='module')
def reports(tmp_path_factory, nightly):
  """What `on_eight_devices` says; devices must be set before jax starts."""
  folder = tmp_path_factory.mktemp('sharding') / 'model'
  params = jax.tree.map(lambda p: p * 0.6, random_params(CFG))
  export.export_hf(folder, CFG, params)
  more = ['all'] if nightly else []
  done = subprocess.run(
    [sys.executable, on_eight_devices.__file__, str(folder), *more],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@ON_MESHES
def test_eight_devices_write_what_one_writes(reports, data, tensor):
  one, eight = reports['one'], reports[f'{data}x{tensor}']
  assert one['plain'] == one['swift'] == eight['plain'] == eight['swift']
  assert one['drawn'] == eight['drawn'] != one['plain']
  searches = (data, tensor) == on_eight_devices.SEARCHED
  assert eight['passes_scored'] == one['passes_scored'] * searches
  # What the policy chooses, on one device in the nightly run alone.
  for found in (one, eight):
    assert found.get('chosen', one['drawn']) == one['drawn']
  assert ('chosen' in eight) == searches
  assert one['passes_scored'] > 0
  # The text must have something to get wrong.
  assert all(len(set(row)) > 8 for row in one['plain'])
  assert (one['devices'], eight['devices']) == (1, data * tensor)
  assert one['exports_the_same'] and eight['exports_the_same']


def test_eight_devices_give_the_log_probabilities_of_one(reports):
  data, tensor = on_eight_devices.SEARCHED
  one, eight = (reports[name]['logs'] for name in ('one', f'{data}x{tensor}'))
  assert one['plain'] == one['swift'] and eight['plain'] == eight['swift']
  assert one['drawn'] == eight['drawn'] == [None] * 3  # not asked for
  for mine, theirs in zip(one['plain'], eight['plain'], strict=True):
    assert len(mine['chosen']) == len(mine['top']) == 30
    np.testing.assert_allclose(mine['chosen'], theirs['chosen'], atol=1e-4)
    ids, best = np.moveaxis(np.array(mine['top']), -1, 0)
    other_ids, other_best = np.moveaxis(np.array(theirs['top']), -1, 0)
    np.testing.assert_allclose(best, other_best, atol=1e-4)
    np.testing.assert_allclose(best[:, 0], mine['chosen'])  # greedy
    # Where two are nearly tied, they may change places.
    is_clear = np.abs(np.diff(best))[:, 0] > 1e-3
    assert (ids == other_ids)[is_clear, 0].all() and is_clear.sum() > 20


@ON_MESHES
def test_a_mesh_compiles_no_more_than_a_device(reports, data, tensor):
  """What one program leaves lies where the next one wants it."""
  searches = (data, tensor) == on_eight_devices.SEARCHED
  # Greedy ones and those that draw; rounds draw where the policy is tried.
  wanted = {'prefill': 1, 'plain_steps': 2, 'speculative_rounds': 1 + searches}
  # Of log-probabilities one, whichever method they follow.
  wanted['force'] = int(searches)
  assert reports[f'{data}x{tensor}']['programs'] == wanted
  rounds = 1 + ('chosen' in reports['one'])
  one = {**wanted, 'speculative_rounds': rounds, 'force': 1}
  assert reports['one']['programs'] == one


@ON_MESHES
def test_each_device_holds_its_part_only(reports, data, tensor):
  one, eight = reports['one'], reports[f'{data}x{tensor}']
  assert one['bytes_on_one'] == one['bytes'] == eight['bytes']
  # Norms and the biases of o and down lie everywhere.
  whole = (4 * CFG.num_hidden_layers + 1) * CFG.hidden_size * 4
  split = eight['bytes'] - whole
  assert eight['bytes_on_one'] == split // tensor + whole
  assert one['cache_on_one'] == [4, 8, 128, 6]
  assert eight['cache_on_one'] == [4 // data, 8 // tensor, 128, 6]


@pytest.mark.parametrize('name', ['tiny', '70b'])
def test_no_weight_is_gathered_when_it_is_put_in_place(reports, name):
  """Each device works on its eighth, and on nothing of the others'."""
  found = reports[f'loading {name}']
  assert found['programs'] > 7
  assert found['collectives'] == found['extra'] == 0
  if name == '70b':  # the eighth of the gate's and the up projection's numbers
    assert found['most'] < 28672 * 8192 * 2 * 2


@pytest.mark.nightly
def test_a_model_of_70b_splits_by_eight():
  """By shapes alone, and as BUILD.md prints it."""
  one, four = (layout_70b.layout(layout_70b.CFG, d, 8) for d in (1, 4))
  assert 137e9 < one.weights < 139e9
  # Norms alone lie everywhere.
  norms = (2 * 80 + 1) * 8192 * 2
  assert one.weights_on_one == (one.weights - norms) // 8 + norms
  assert four.weights_on_one == one.weights_on_one
  # Keys and values of 80 layers, 8 rows, 4096 slots, 8 heads of 128.
  assert one.cache == four.cache == 2 * 80 * 8 * 4096 * 8 * 128 * 2
  assert (one.cache_on_one, four.cache_on_one) == (
    one.cache // 8,
    one.cache // 32,
  )


def test_build_md_has_the_layout_that_is_printed(capsys):
  layout_70b.main()
  text = (pathlib.Path(__file__).parents[2] / 'BUILD.md').read_text()
  assert capsys.readouterr().out in text


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
