"""The Cloud TPU launchers: what they run, and what they do when it fails.

No test needs a network: `gcloud` is a stand-in that writes down what it is
asked and fails as planned.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import stat
import subprocess
import sys

import evaluate
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch' / 'cloud'
EXPECTED = ROOT / 'tests' / 'expected'
STEPS = ['create', 'install', 'run', 'cp answers*.jsonl', 'cp run.json']

SLICE = ('--name=eval', '--zone=us-west4-a', '--accelerator_type=v5litepod-16')
CODE = ('--repository=https://example.org/swift_jax.git', '--commit=v1.0')
BUCKET = '--workdir=gs://bucket/runs/1'
# Quotes, spaces and wildcards have two shells to survive.
ARGUMENTS = (
  '--config=configs/llama.py:llama3_1_8b',
  "--config.sampling.stop_strings=('a b', '*')",
)

GCLOUD = """#!{python}
import json, os, pathlib, signal, subprocess, sys

here = pathlib.Path(__file__).parent
arguments = sys.argv[1:]
said = dict(a[2:].split('=', 1) for a in arguments if '=' in a)
step = arguments[3]
if arguments[0] == 'storage':
  step = 'cp ' + arguments[2].rpartition('/')[2]
elif step == 'ssh':
  step = 'run' if 'evaluate.py' in said['command'] else 'install'
elif step == 'describe':
  step = 'state' if said['format'] == 'value(state)' else 'hosts'
elif step == 'scp':
  step = ' '.join(['scp', said['worker'], arguments[4].rpartition('/')[2]])
with open(here / 'calls', 'a') as calls:
  calls.write(json.dumps([step, arguments]) + chr(10))
plan = json.loads((here / 'plan').read_text())
todo = plan.get(step, [])
answer = todo.pop(0) if todo else 0
(here / 'plan').write_text(json.dumps(plan))
if answer in ('SIGINT', 'SIGHUP'):
  # From a terminal it reaches both of us.
  number = signal.Signals[answer]
  os.kill(os.getppid(), number)
  signal.signal(number, signal.SIG_DFL)
  os.kill(os.getpid(), number)
elif answer == 'worker':  # runs it where we are
  answer = subprocess.run(['bash', '-c', said['command']]).returncode
elif isinstance(answer, str):
  print(answer)
  answer = 0
sys.exit(answer)
"""


def launch(script, *flags, cwd=ROOT, **env):
  """Runs a launcher."""
  return subprocess.run(
    [shutil.which('bash'), script, *flags],
    cwd=cwd,
    env={**os.environ, **env},
    capture_output=True,
    text=True,
    timeout=60,
  )


def tpu_vm(*flags, **options):
  return launch(LAUNCH / 'tpu_vm.sh', *flags, **options)


def xpk(*flags, **options):
  return launch(LAUNCH / 'xpk.sh', *flags, **options)


class Cloud:
  """A `gcloud` that is found first; its calls by the step they belong to."""

  def __init__(self, folder):
    self.folder = folder / 'bin'
    self.output = folder / 'collected'
    self.folder.mkdir()
    write_program(self.folder / 'gcloud', GCLOUD.format(python=sys.executable))

  def run(self, *flags, plan=None, cwd=ROOT, **env):
    """A run with the usual flags; `plan` has statuses or text for each step."""
    (self.folder / 'plan').write_text(json.dumps(plan or {}))
    path = f'{self.folder}{os.pathsep}{os.environ["PATH"]}'
    output = f'--output={self.output}'
    flags = (*SLICE, *CODE, BUCKET, output, *flags)
    return tpu_vm(*flags, cwd=cwd, PATH=path, **env)

  def calls(self):
    """Pairs of step and arguments."""
    file = self.folder / 'calls'
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]

  def steps(self):
    return [step for step, _ in self.calls()]


@pytest.fixture
def cloud(tmp_path):
  return Cloud(tmp_path)


def write_program(path, text):
  path.write_text(text)
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def checkout(tmp_path):
  """A folder with the launchers alone, no git repository."""
  (tmp_path / 'code' / 'launch' / 'cloud').mkdir(parents=True)
  for name in ('tpu_vm.sh', 'common.sh'):
    shutil.copy(LAUNCH / name, tmp_path / 'code' / 'launch' / 'cloud')
  return tmp_path / 'code'


def git(folder, *arguments):
  """What git says of a repository; its author's settings do not matter."""
  author = ['-c', 'user.name=T', '-c', 'user.email=t@example.org']
  done = subprocess.run(
    ['git', '-C', folder, *author, *arguments],
    env={**os.environ, 'GIT_CONFIG_GLOBAL': os.devnull},
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.strip()


@pytest.mark.parametrize(
  'script',
  [*sorted((ROOT / 'launch').rglob('*.sh')), ROOT / '.ci' / 'run'],
  ids=lambda path: path.name,
)
def test_shellcheck(script):
  shellcheck = pathlib.Path(sys.executable).with_name('shellcheck')
  done = subprocess.run(
    [shellcheck, '--external-sources', script],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert (done.stdout, done.returncode) == ('', 0)


# What would be run.

DRY_RUNS = {
  'tpu_vm_bucket': (
    tpu_vm,
    [*SLICE, *CODE, f'{BUCKET}/', '--output=my answers', '--project=mine']
    + ['--spot', '--retries=3'],
  ),
  'tpu_vm_folder': (
    tpu_vm,
    [*SLICE, *CODE, '--workdir=runs/1', '--output=out', '--keep']
    + ['--runtime_version=nightly'],
  ),
  'xpk': (
    xpk,
    ['--cluster=big', '--workload=eval', '--tpu_type=v6e-16', f'{BUCKET}/']
    + ['--num_slices=2', '--zone=us-east5-b', '--project=mine'],
  ),
}


@pytest.mark.parametrize('name', DRY_RUNS)
def test_dry_run(name, tmp_path):
  run, flags = DRY_RUNS[name]
  options = {'cwd': tmp_path} if run is tpu_vm else {}
  done = run('--dry_run', *flags, '--', *ARGUMENTS, **options)
  assert (done.stderr, done.returncode) == ('', 0)
  assert done.stdout == (EXPECTED / f'{name}.txt').read_text()
  assert not list(tmp_path.iterdir())  # neither --output nor anything else


def test_a_dry_run_shows_what_a_run_does(cloud):
  flags = ('--spot', '--', *ARGUMENTS)
  shown = cloud.run('--dry_run', *flags)
  assert not cloud.calls()
  done = cloud.run(*flags)
  assert (done.stderr, done.returncode) == ('', 0)
  words = [shlex.split(line) for line in shown.stdout.splitlines()]
  words.remove(['mkdir', '-p', str(cloud.output)])
  assert [['gcloud', *arguments] for _, arguments in cloud.calls()] == words


@pytest.mark.parametrize(
  'accelerator_type, runtime',
  [
    ('v3-8', 'tpu-ubuntu2204-base'),
    ('v5litepod-4', 'v2-alpha-tpuv5-lite'),
    ('v5p-8', 'v2-alpha-tpuv5'),
    ('v6e-8', 'v2-alpha-tpuv6e'),
  ],
)
def test_each_accelerator_has_its_runtime(accelerator_type, runtime):
  flags = ['--dry_run', '--steps=create', '--name=a', '--zone', 'b']
  done = tpu_vm(*flags, '--accelerator_type', accelerator_type)
  assert done.stdout == (
    'gcloud compute tpus tpu-vm create a --zone=b'
    f' --accelerator-type={accelerator_type} --version={runtime}\n'
  )


@pytest.mark.skipif(not shutil.which('git'), reason='needs git')
def test_the_code_is_that_of_this_checkout(checkout):
  git(checkout, 'init', '--quiet')
  git(checkout, 'commit', '--quiet', '--allow-empty', '--message=one')
  git(checkout, 'remote', 'add', 'origin', 'https://example.org/mine.git')
  script = checkout / 'launch' / 'cloud' / 'tpu_vm.sh'
  flags = ['--dry_run', '--steps=install', '--name=a', '--zone=b']
  shown = launch(script, *flags, cwd='/').stdout
  assert ' https://example.org/mine.git swift_jax;' in shown
  assert f' git checkout --quiet {git(checkout, "rev-parse", "HEAD")};' in shown


@pytest.mark.parametrize('name', ['tpu_vm.sh', 'xpk.sh'])
def test_the_comment_names_the_flags(name):
  comment, code = (LAUNCH / name).read_text().split('set -euo', 1)
  groups = re.findall(r"""^(?:flags|switches)=['"](.*)['"]$""", code, re.M)
  known = set(' '.join(groups).split()) - {'$flags'} | {'dry_run'}
  assert set(re.findall(r'--(\w+)', comment)) == known


# What is refused.

BUCKETLESS = (*SLICE, *CODE, '--output=out')
FULL = (*BUCKETLESS, BUCKET)
WORKLOAD = ('--cluster=a', '--workload=b', '--tpu_type=v6e-8', BUCKET)
KNOWN_STEPS = '(there are create,install,run,collect,delete)'
NO_NUMBER = 'expected a whole number >= 0'
PLACES = 'expected gs://BUCKET/FOLDER or a folder of the workers'


@pytest.mark.parametrize(
  'flags, message',
  [
    ((), '--name: a value is needed'),
    (SLICE[:1], '--zone: a value is needed'),
    (
      (*SLICE[:2], *CODE, BUCKET, '--output=o'),
      '--accelerator_type: a value is needed',
    ),
    ((*SLICE, *CODE), '--workdir: a value is needed'),
    ((*SLICE, *CODE, BUCKET), '--output: a value is needed'),
    ((*FULL, '--name='), '--name: a value is needed'),
    ((*FULL, '--name'), '--name: a value is missing'),
    ((*FULL, '--nmae=x'), '--nmae=x: no such flag'),
    ((*FULL, '--flag=x'), '--flag=x: no such flag'),
    ((*FULL, '--name zone=x'), '--name zone=x: no such flag'),
    ((*FULL, '--keep=no'), '--keep=no: takes no value'),
    ((*FULL, '-keep'), "unexpected argument '-keep'"),
    ((*FULL, 'gsm8k'), "unexpected argument 'gsm8k'"),
    (
      (*FULL, '--steps=run,fly'),
      f"--steps=run,fly: no step 'fly' {KNOWN_STEPS}",
    ),
    ((*FULL, '--steps='), f"--steps=: no step '' {KNOWN_STEPS}"),
    ((*FULL, '--retries=x'), f'--retries=x: {NO_NUMBER}'),
    ((*FULL, '--retries=-1'), f'--retries=-1: {NO_NUMBER}'),
    ((*FULL, '--retries='), f'--retries=: {NO_NUMBER}'),
    (
      (*BUCKETLESS, '--workdir=runs', '--retries=08'),
      '--retries=8: --workdir=runs is no gs://...',
    ),
    ((*BUCKETLESS, '--workdir=s3://b/a'), f'--workdir=s3://b/a: {PLACES}'),
    ((*BUCKETLESS, '--workdir=gs://'), f'--workdir=gs://: {PLACES}'),
    ((*BUCKETLESS, '--workdir=~/a'), f'--workdir=~/a: {PLACES}'),
    (
      (*FULL, '--accelerator_type=tpu7x-16'),
      '--accelerator_type=tpu7x-16: not in the Cloud TPU API, see'
      ' launch/cloud/gke_jobset.yaml',
    ),
    (
      (*FULL, '--accelerator_type=v9-8'),
      '--runtime_version: a value is needed with --accelerator_type=v9-8',
    ),
  ],
)
def test_tpu_vm_refuses(flags, message):
  done = tpu_vm('--dry_run', *flags)
  refused = (f'tpu_vm.sh: {message}\n', '', 2)
  assert (done.stderr, done.stdout, done.returncode) == refused


@pytest.mark.parametrize(
  'flags, message',
  [
    ((), '--cluster: a value is needed'),
    (WORKLOAD[:1], '--workload: a value is needed'),
    (WORKLOAD[:2], '--tpu_type: a value is needed'),
    (WORKLOAD[:3], '--workdir: a value is needed'),
    ((*WORKLOAD, '--commit='), '--commit: a value is needed'),
    ((*WORKLOAD, '--spot'), '--spot: no such flag'),
    ((*WORKLOAD, '--workdir=a'), '--workdir=a: expected gs://BUCKET/FOLDER'),
    ((*WORKLOAD, '--num_slices=two'), f'--num_slices=two: {NO_NUMBER}'),
    ((*WORKLOAD, '--max_restarts=1.5'), f'--max_restarts=1.5: {NO_NUMBER}'),
    ((*WORKLOAD, 'gsm8k'), "unexpected argument 'gsm8k'"),
  ],
)
def test_xpk_refuses(flags, message):
  done = xpk('--dry_run', *flags)
  refused = (f'xpk.sh: {message}\n', '', 2)
  assert (done.stderr, done.stdout, done.returncode) == refused


@pytest.mark.parametrize(
  'flags, message',
  [
    (
      CODE[1:],
      '--repository: a value is needed, there is no git remote origin',
    ),
    (CODE[:1], '--commit: a value is needed, this is no git checkout'),
  ],
)
def test_without_git_the_code_has_to_be_named(checkout, flags, message):
  flags = ('--dry_run', '--steps=install', *SLICE, *flags)
  ceiling = {'GIT_CEILING_DIRECTORIES': str(checkout.parent)}
  done = launch(checkout / 'launch' / 'cloud' / 'tpu_vm.sh', *flags, **ceiling)
  assert done.stderr == f'tpu_vm.sh: {message}\n'
  assert (done.stdout, done.returncode) == ('', 2)


@pytest.mark.parametrize(
  'run, flags, tool', [(tpu_vm, FULL, 'gcloud'), (xpk, WORKLOAD, 'xpk')]
)
def test_what_runs_the_commands_has_to_be_there(run, flags, tool, tmp_path):
  (tmp_path / 'dirname').symlink_to(shutil.which('dirname'))
  done = run(*flags, PATH=str(tmp_path))
  script = 'tpu_vm.sh' if tool == 'gcloud' else 'xpk.sh'
  assert done.stderr == (
    f'{script}: {tool}: command not found (--dry_run shows what it would be'
    ' asked)\n'
  )
  assert (done.stdout, done.returncode) == ('', 2)


# What happens when a step fails.


def test_all_steps_in_their_order(cloud):
  assert cloud.run().returncode == 0
  assert cloud.steps() == [*STEPS, 'delete']
  assert cloud.output.is_dir()


@pytest.mark.parametrize(
  'answer, status', [(3, 3), ('SIGINT', 130), ('SIGHUP', 129)]
)
def test_a_failed_run_is_collected_and_deleted(cloud, answer, status):
  done = cloud.run(plan={'run': [answer]})
  assert done.returncode == status
  assert f'tpu_vm.sh: run failed with status {status}\n' in done.stderr
  assert cloud.steps() == [*STEPS, 'delete']


@pytest.mark.parametrize(
  'plan, status, steps',
  [
    ({'create': [4]}, 4, STEPS[:1]),
    ({'install': [5]}, 5, [*STEPS[:2], 'delete']),
    ({'cp answers*.jsonl': [6]}, 6, [*STEPS, 'delete']),
    ({'cp run.json': [7]}, 7, [*STEPS, 'delete']),
    ({'delete': [8]}, 8, [*STEPS, 'delete']),
    ({'run': [3], 'cp run.json': [7], 'delete': [8]}, 3, [*STEPS, 'delete']),
  ],
)
def test_a_failed_step_is_told_by_its_status(cloud, plan, status, steps):
  done = cloud.run(plan=plan)
  assert done.returncode == status
  assert f'failed with status {status}\n' in done.stderr
  assert cloud.steps() == steps


def test_what_was_not_created_is_not_deleted(cloud):
  assert cloud.run(plan={'create': [1]}).stderr == (
    'tpu_vm.sh: create failed with status 1\n'
    'tpu_vm.sh: nothing is deleted; if create left something: --steps=delete\n'
  )


def test_keep(cloud):
  assert cloud.run('--keep', plan={'run': [3]}).returncode == 3
  assert cloud.steps() == STEPS


def test_steps_are_chosen(cloud):
  assert cloud.run('--steps=delete,run').returncode == 0
  assert cloud.steps() == ['run', 'delete']


@pytest.mark.parametrize('state', ['PREEMPTED', 'TERMINATED'])
def test_a_preempted_run_begins_again(cloud, state):
  plan = {'run': [255], 'state': [state]}
  done = cloud.run('--retries=2', plan=plan)
  assert done.returncode == 0
  begin = ['create', 'install', 'run']
  once_more = ['state', 'delete', *begin]
  assert cloud.steps() == [*begin, *once_more, *STEPS[3:], 'delete']
  calls = [arguments for step, arguments in cloud.calls() if step == 'run']
  assert calls[0] == calls[1]


def test_a_slice_kept_at_the_end_is_still_made_anew(cloud):
  plan = {'run': [255], 'state': ['PREEMPTED']}
  done = cloud.run('--retries=1', '--keep', '--steps=run', plan=plan)
  assert done.returncode == 0
  assert cloud.steps() == ['run', 'state', 'delete', 'create', 'install', 'run']


@pytest.mark.parametrize(
  'plan, retries, status, runs',
  [
    ({'run': [9, 0], 'state': ['READY']}, 2, 9, 1),
    ({'run': [9, 0], 'state': [1]}, 2, 9, 1),
    ({'run': [9, 0], 'state': ['PREEMPTED']}, 0, 9, 1),
    ({'run': [9, 8, 7, 0], 'state': ['PREEMPTED'] * 4}, 2, 7, 3),
    ({'run': [9, 0], 'state': ['PREEMPTED'], 'create': [0, 6]}, 2, 6, 1),
  ],
)
def test_retries_end(cloud, plan, retries, status, runs):
  done = cloud.run(f'--retries={retries}', plan=plan)
  assert done.returncode == status
  assert cloud.steps().count('run') == runs


# A folder on the workers: one file a process, and run.json on one of them.


@pytest.mark.parametrize(
  'folder, there',
  [('runs/1', 'eval:swift_jax/runs/1/'), ('/data/1', 'eval:/data/1/')],
)
def test_every_worker_is_asked(cloud, folder, there):
  plan = {'hosts': ['3'], 'scp 1 answers*.jsonl': [1], 'scp 0 run.json': [1]}
  steps = '--steps=collect'
  done = cloud.run(f'--workdir={folder}', steps, plan=plan)
  assert done.returncode == 0
  assert cloud.steps() == [
    'hosts',
    *(f'scp {worker} answers*.jsonl' for worker in range(3)),
    *(f'scp {worker} run.json' for worker in range(2)),
  ]
  for _, arguments in cloud.calls()[1:]:
    assert arguments[4].startswith(there)
    assert arguments[5] == f'{cloud.output}/'


@pytest.mark.parametrize('missing', ['answers*.jsonl', 'run.json'])
def test_a_file_that_no_worker_has(cloud, missing):
  plan = {f'scp {worker} {missing}': [1] for worker in range(2)}
  plan['hosts'] = ['2']
  done = cloud.run('--workdir=runs', '--steps=collect', plan=plan)
  assert done.returncode == 1
  assert len(cloud.steps()) == (5 if missing == 'run.json' else 4)


# What the workers are told, told to a shell.

PYTHON3 = """#!/usr/bin/env bash
# If too old, it says so to -c; either way of making .venv makes this one.
echo "$*" >>"$LOG"
case "$*" in
  -c*) exit "$TOO_OLD" ;;
  *' .venv')
    mkdir -p .venv/bin
    echo 'PATH="$PWD/.venv/bin:$PATH"' >.venv/bin/activate
    ln -s "$WORKERS_PYTHON" .venv/bin/python
    ;;
esac
"""
WORKERS_PYTHON = """#!{python}
import json, os, sys
print(json.dumps([os.path.isfile('this_commit'), *sys.argv[1:]]))
"""


@pytest.mark.skipif(not shutil.which('git'), reason='needs git')
@pytest.mark.parametrize('too_old', [False, True])
def test_workers(cloud, tmp_path, too_old):
  published, worker = tmp_path / 'published', tmp_path / 'worker'
  published.mkdir()
  worker.mkdir()
  git(published, 'init', '--quiet')
  (published / 'this_commit').touch()
  git(published, 'add', '.')
  git(published, 'commit', '--quiet', '--message=one')
  commit = git(published, 'rev-parse', 'HEAD')
  git(published, 'rm', '--quiet', 'this_commit')
  git(published, 'commit', '--quiet', '--message=two')
  write_program(cloud.folder / 'python3', PYTHON3)
  python = cloud.folder / 'workers_python'
  write_program(python, WORKERS_PYTHON.format(python=sys.executable))

  flags = [f'--repository={published}', f'--commit={commit}']
  twice = {'install': ['worker'] * 2, 'run': ['worker'] * 2}
  env = {'LOG': str(tmp_path / 'log'), 'TOO_OLD': str(int(too_old))}
  env['WORKERS_PYTHON'] = str(python)
  for _ in range(2):  # the second time much is there
    done = cloud.run(*flags, '--', *ARGUMENTS, plan=twice, cwd=worker, **env)
    assert (done.stderr, done.returncode) == ('', 0)
    install, run = map(json.loads, done.stdout.splitlines())
    pip = '-m pip install --quiet --constraint constraints.txt --editable'
    assert install == [True, *pip.split(), '.[tpu,eval,gcs]']
    evaluate = 'launch/evaluate.py'
    assert run == [True, evaluate, *ARGUMENTS, BUCKET]
  made = (tmp_path / 'log').read_text().splitlines()[1:]
  by_uv = ['-m pip install --quiet --user uv']
  by_uv += ['-m uv venv --quiet --seed --python=3.11 .venv']
  assert made == (by_uv if too_old else ['-m venv .venv'])


def test_the_first_step_that_fails_on_a_worker_ends_it(cloud, tmp_path):
  flags = [f'--repository={tmp_path}/nowhere', '--steps=install']
  done = cloud.run(*flags, plan={'install': ['worker']}, cwd=tmp_path)
  assert done.returncode == 128
  assert not (tmp_path / 'swift_jax').exists()


# xpk.

XPK = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$(dirname "$0")/asked"
for argument in "$@"; do
  case "$argument" in
    --script-dir=*) ls -A "${argument#*=}" >"$(dirname "$0")/sent" ;;
  esac
done
exit "$STATUS"
"""


@pytest.mark.skipif(not shutil.which('git'), reason='needs git')
@pytest.mark.parametrize('status', [0, 3])
def test_xpk_gets_what_is_committed(checkout, tmp_path, status):
  shutil.copy(LAUNCH / 'xpk.sh', checkout / 'launch' / 'cloud')
  (checkout / 'README.md').touch()
  git(checkout, 'init', '--quiet')
  git(checkout, 'add', '.')
  git(checkout, 'commit', '--quiet', '--message=one')
  (checkout / '.venv').mkdir()
  (checkout / 'build' / 'xpk').mkdir(parents=True)
  (checkout / 'build' / 'xpk' / 'of_another_time').touch()
  write_program(tmp_path / 'xpk', XPK)
  path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
  done = launch(
    checkout / 'launch' / 'cloud' / 'xpk.sh',
    *WORKLOAD,
    PATH=path,
    STATUS=str(status),
  )
  assert (done.stdout, done.stderr, done.returncode) == ('', '', status)
  assert (tmp_path / 'sent').read_text().split() == ['README.md', 'launch']
  shown = launch(
    checkout / 'launch' / 'cloud' / 'xpk.sh', '--dry_run', *WORKLOAD
  )
  asked = (tmp_path / 'asked').read_text().splitlines()
  assert ['xpk', *asked] == shlex.split(shown.stdout.splitlines()[-1])


# GKE.


@pytest.fixture(scope='module')
def jobset():
  return yaml.safe_load((LAUNCH / 'gke_jobset.yaml').read_text())


@pytest.fixture(scope='module')
def job(jobset):
  (job,) = jobset['spec']['replicatedJobs']
  return job


@pytest.fixture(scope='module')
def pod(job):
  return job['template']['spec']['template']['spec']


@pytest.fixture(scope='module')
def container(pod):
  (container,) = pod['containers']
  return container


def test_the_hosts_have_all_chips_of_the_slice(job, pod, container):
  hosts = job['template']['spec']
  chips = container['resources']['limits']['google.com/tpu']
  selector = pod['nodeSelector']
  topology = selector['cloud.google.com/gke-tpu-topology']
  assert job['replicas'] == 1
  assert hosts['completions'] == hosts['parallelism']
  assert hosts['completions'] * chips == math.prod(
    int(side) for side in topology.split('x')
  )
  assert container['resources']['requests'] == {'google.com/tpu': chips}
  v5e = 'tpu-v5-lite-podslice'
  assert selector['cloud.google.com/gke-tpu-accelerator'] == v5e


def test_the_slice_begins_again_as_a_whole(jobset, job, pod):
  assert jobset['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  assert jobset['kind'] == 'JobSet'
  assert jobset['spec']['failurePolicy']['maxRestarts'] > 0
  assert job['template']['spec']['backoffLimit'] == 0
  assert pod['restartPolicy'] == 'Never'


def test_bad_input_does_not_begin_again(jobset, job, container):
  (rule,) = job['template']['spec']['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob'
  codes = rule['onExitCodes']
  assert codes['containerName'] == container['name']
  assert (codes['operator'], codes['values']) == ('In', [2])
  (rule,) = jobset['spec']['failurePolicy']['rules']
  assert rule['action'] == 'FailJobSet'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']


def test_hosts_find_each_other(jobset, job):
  network = {'enableDNSHostnames': True, 'publishNotReadyAddresses': True}
  assert jobset['spec']['network'] == network
  assert job['template']['spec']['completionMode'] == 'Indexed'
  pool = 'cloud.google.com/gke-nodepool'
  exclusive = 'alpha.jobset.sigs.k8s.io/exclusive-topology'
  assert jobset['metadata']['annotations'] == {exclusive: pool}


def test_what_the_pods_run(container):
  assert container['command'] == ['python', 'launch/evaluate.py']
  flags = dict(flag.split('=', 1) for flag in container['args'])
  assert flags['--workdir'].startswith('gs://BUCKET/')
  config, _, name = flags['--config'].partition(':')
  assert (ROOT / config).is_file() and name
  chips = container['resources']['limits']['google.com/tpu']
  assert flags['--config.mesh.tensor'] == str(chips)
  for flag in flags:
    if flag in ('--config', '--workdir'):
      continue
    section, field = re.fullmatch(r'--config\.(\w+)\.(\w+)', flag).groups()
    fields = dataclasses.fields(evaluate.SECTIONS[section])
    assert field in {known.name for known in fields}


def test_the_image_holds_what_the_pods_run():
  lines = (LAUNCH / 'Dockerfile').read_text().replace('\\\n', '')
  steps = [line.split() for line in lines.splitlines() if line[0] != '#']
  copied = [
    name for word, *names in steps if word == 'COPY' for name in names[:-1]
  ]
  assert all((ROOT / name).exists() for name in copied)
  needed = {'launch', 'configs', 'swift_jax', 'pyproject.toml'}
  assert needed | {'constraints.txt', 'README.md'} == set(copied)
  (install,) = [step for step in steps if step[0] == 'RUN']
  assert install[-2] == '--editable'
  # The same extras as everywhere.
  assert f'{install[-1]}\n' in (LAUNCH / 'common.sh').read_text()
