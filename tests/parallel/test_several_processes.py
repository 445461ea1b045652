"""Real processes under jax.distributed write what one process writes."""

import signal

import evaluation_runs as er
import pytest

METHOD = '--config.decode.method=swift'
NIGHTLY = pytest.mark.nightly


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
  """Model and prompts."""
  folder = tmp_path_factory.mktemp('several')
  model = er.make_model(folder / 'model')
  return model, er.make_prompts(folder / 'prompts.jsonl', 24)


@pytest.fixture(scope='module')
def wanted(asked, tmp_path_factory):
  """What one process writes."""
  folder = tmp_path_factory.mktemp('one')
  status, _, err = er.finish(er.command(*asked, folder, METHOD))
  assert status == 0, err
  return er.texts(folder)


class Pair:
  """Two processes on one workdir."""

  def __init__(self, folder, model, prompts, *settings):
    self.workdir, self.logs = folder / 'run', folder
    port = er.free_port()
    self.command = er.command(
      model,
      prompts,
      self.workdir,
      METHOD,
      f'--coordinator=127.0.0.1:{port}',
      '--num_processes=2',
      *settings,
    )

  def start(self, process):
    command = [*self.command, f'--process_id={process}']
    return er.start(command, self.logs / f'{process}.log', devices=2)

  def answers(self, process):
    return self.workdir / f'answers-{process}.jsonl'

  def ends_well(self, process, running):
    log = self.logs / f'{process}.log'
    assert running.wait(timeout=600) == 0, log.read_text()[-3000:]


def test_two_write_what_one_writes(tmp_path, asked):
  """One mesh over both, plain decoding; the nightly run has the rest."""
  model, _ = asked
  prompts = er.make_prompts(tmp_path / 'prompts.jsonl', 4)
  plain = (
    '--config.decode.method=plain',
    '--config.decode.batch_size=2',
    '--config.sampling.max_new_tokens=8',
  )
  one = er.command(model, prompts, tmp_path / 'one', *plain)
  status, _, err = er.finish(one)
  assert status == 0, err
  across = '--config.mesh.across_processes=True'
  mesh = ('--config.mesh.tensor=2', '--config.mesh.data=2', across)
  pair = Pair(tmp_path, model, prompts, *mesh, *plain)
  both = [pair.start(0), pair.start(1)]
  try:
    for i, process in enumerate(both):
      pair.ends_well(i, process)
  finally:
    for process in both:
      process.kill()
  assert er.texts(pair.workdir) == er.texts(tmp_path / 'one')


@NIGHTLY
def test_one_is_killed_and_started_again_while_the_other_goes_on(
  tmp_path, asked, wanted
):
  pair = Pair(tmp_path, *asked, '--config.mesh.tensor=2')
  first, second = pair.start(0), pair.start(1)
  try:
    assert er.wait_for_lines(pair.answers(1), 2, second)
    second.send_signal(signal.SIGKILL)
    second.wait()
    before = er.lines(pair.answers(1))
    assert 2 <= before < 12
    second = pair.start(1)
    pair.ends_well(1, second)
    pair.ends_well(0, first)
  finally:
    first.kill()
    second.kill()
  assert [er.lines(pair.answers(i)) for i in (0, 1)] == [12, 12]
  assert er.texts(pair.workdir) == wanted
  said = (tmp_path / '1.log').read_text()
  assert f'12 questions answered, {before} of them before' in said


@NIGHTLY
def test_one_mesh_over_two_processes(tmp_path, asked, wanted):
  """Each writes its part of what both compute; both are killed once."""
  pair = Pair(
    tmp_path,
    *asked,
    '--config.mesh.data=2',
    '--config.mesh.tensor=2',
    '--config.mesh.across_processes=True',
    '--config.decode.batch_size=4',
    '--config.sampling.max_new_tokens=8',
    '--config.search.scoring=map',
    '--config.search.importance=False',
  )
  both = [pair.start(0), pair.start(1)]
  try:
    assert er.wait_for_lines(pair.answers(0), 4, both[0])
    for process in both:
      process.kill()
      process.wait()
    assert er.lines(pair.answers(0)) < 12
    both = [pair.start(0), pair.start(1)]
    for i, process in enumerate(both):
      pair.ends_well(i, process)
  finally:
    for process in both:
      process.kill()
  short = {index: [turn[:8] for turn in text] for index, text in wanted.items()}
  assert er.texts(pair.workdir) == short


@pytest.mark.parametrize(
  'flags, said',
  [
    (['--coordinator=here'], "--coordinator='here': expected HOST:PORT"),
    (['--coordinator=:1'], "--coordinator=':1': expected HOST:PORT"),
    (['--coordinator=a:0'], "--coordinator='a:0': expected HOST:PORT"),
    (['--num_processes=2'], "--coordinator='': expected HOST:PORT"),
    (['--coordinator=a:1'], '--num_processes=None: expected an integer >= 1'),
    (
      ['--coordinator=a:1', '--num_processes=2', '--process_id=2'],
      '--process_id=2: expected an integer in [0, 2)',
    ),
  ],
)
def test_wrong_flags_are_named(launch, tmp_path, asked, flags, said):
  import evaluate

  arguments = er.command(*asked, tmp_path / 'run', *flags)[2:]
  status, out, err = launch(
    *arguments, main=evaluate.main, sections=evaluate.SECTIONS
  )
  assert (status, out) == (2, '')
  assert err.startswith('generate.py: ') and said in err
  assert len(err.splitlines()) == 1
  assert not (tmp_path / 'run').exists()
