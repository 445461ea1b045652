"""The official SWIFT beside ours: the same weights, prompts and cores, in turns.

  git clone https://github.com/hemingkx/SWIFT OFFICIAL
  python -m venv VENV && VENV/bin/pip install torch==2.13.0 transformers==4.37.1 \\
    'numpy<2' bayesian-optimization==1.4.3
  python tests/stress/official_swift.py --repository=OFFICIAL --python=VENV/bin/python

Greedy, float32, batch 1, the demo model and the held-out prompts of the suite
`decode`; both search while they write, the official code with the settings of its
eval_llama.sh. It runs in a process of its own, and only one of the two computes at
a time. Compiling is not timed, nor is the first call of torch. It may write a few
tokens more than it was asked for, which count as they do in its own evaluation;
equal texts are those whose first tokens are those of our plain decoding.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
OURS, THEIRS = ('plain', 'SWIFT'), ('plain (official)', 'SWIFT (official)')
# Those of its earlier eval_llama.sh; a later one has a max_score of .93 and a
# window of 50.
SETTINGS = {
  'opt_interval': 1,
  'bayes_interval': 25,
  'max_opt_iter': 1000,
  'max_tolerance_iter': 300,
  'max_score': 0.9,
  'context_window': 32,
  'skip_ratio': 0.45,
  'optimization': True,
  'bayes': True,
}
SEED = 2024
NO_TOKEN = -1  # both write on past the end of a text

Write = Callable[[Sequence[int]], list[int]]


# In the other environment.


def serve(folder: str, new_tokens: int, threads: int) -> None:
  """A line of JSON on standard output for each on standard input."""
  replies, sys.stdout = sys.stdout, sys.stderr  # it prints
  sys.path.insert(0, os.getcwd())
  # What only its own data sets need.
  for name in ('fastchat', 'fastchat.utils', 'evaluation_llama.eval'):
    sys.modules[name] = mock.MagicMock()
  import torch

  torch.set_num_threads(threads)
  statistics = {**SETTINGS, 'origin_score': 0, 'opt_iter': 0}
  statistics |= {'tolerance_iter': 0, 'acceptance_rate_list': []}
  writers = {
    THEIRS[0]: plain(folder, new_tokens),
    THEIRS[1]: swift(folder, new_tokens, statistics),
  }
  for line in sys.stdin:
    name, prompt = json.loads(line)
    searches = statistics['optimization']
    with torch.inference_mode():
      started = time.perf_counter()
      tokens = writers[name](torch.tensor([prompt]))
      seconds = time.perf_counter() - started
    reply = {'tokens': tokens, 'seconds': seconds, 'searches': searches}
    print(json.dumps(reply), file=replies, flush=True)


def plain(folder: str, new_tokens: int) -> Callable[[Any], list[int]]:
  """Its baseline: `generate` of transformers."""
  from evaluation_llama.inference_baseline import baseline_forward
  import torch
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, torch_dtype=torch.float32
  ).eval()
  tokenizer = mock.Mock(eos_token_id=0)  # what `generate` pads with
  model.generation_config = transformers.GenerationConfig()

  def write(prompt: Any) -> list[int]:
    written, *_ = baseline_forward(prompt, model, tokenizer, new_tokens)
    return written[0, prompt.shape[1] :].tolist()

  return write


def swift(
  folder: str, new_tokens: int, statistics: dict[str, Any]
) -> Callable[[Any], list[int]]:
  """As its inference_swift.py sets it up."""
  import bayes_opt
  from evaluation_llama.inference_swift import swift_forward
  from model.swift.modeling_llama import LlamaForCausalLM
  import numpy as np
  import torch

  np.random.seed(SEED)
  torch.manual_seed(SEED)
  model = LlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
  model.eval()
  layers = model.config.num_hidden_layers
  model.set_skip_layers(
    np.arange(1, layers - 1, 2), np.arange(1, layers - 1, 2)
  )
  optimizer = bayes_opt.BayesianOptimization(
    f=None,
    pbounds={f'x{i}': (0, 1) for i in range(2 * (layers - 2))},
    random_state=1,
    verbose=1,
    allow_duplicate_points=True,
  )
  optimizer.set_gp_params(alpha=1e-2)
  utility = bayes_opt.UtilityFunction(kind='ucb', kappa=2.5, xi=0.0)
  tokenizer = mock.Mock(eos_token_id=NO_TOKEN)

  def write(prompt: Any) -> list[int]:
    written, *_ = swift_forward(
      prompt, model, tokenizer, new_tokens, statistics, optimizer, utility
    )
    return written[0, prompt.shape[1] :].tolist()

  return write


# In ours.


def old_form(folder: pathlib.Path, target: pathlib.Path) -> None:
  """The checkpoint with a config that transformers 4.37 reads.

  Raises:
    ValueError: the official code does not know such a model.
  """
  config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
  rope = config.pop('rope_parameters')
  size = config['hidden_size'] // config['num_attention_heads']
  if rope['rope_type'] != 'default' or config['head_dim'] != size:
    raise ValueError(f'{folder}: rope {rope}, head_dim={config["head_dim"]}')
  config |= {'rope_theta': rope['rope_theta'], 'torch_dtype': 'float32'}
  (target / 'config.json').write_text(json.dumps(config), encoding='utf-8')
  for file in folder.glob('*.safetensors*'):
    (target / file.name).symlink_to(file)


@contextlib.contextmanager
def official(args: argparse.Namespace, folder: pathlib.Path):
  """A function (method, prompt) -> reply of a process that `serve`s."""
  script = pathlib.Path(__file__).resolve()
  command = [args.python, '-W', 'ignore', str(script), f'--serve={folder}']
  command += [f'--new_tokens={args.new_tokens}', f'--threads={args.threads}']
  with subprocess.Popen(
    command,
    cwd=args.repository,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=None if args.verbose else subprocess.DEVNULL,
    text=True,
  ) as process:

    def ask(name: str, prompt: Sequence[int]) -> dict[str, Any]:
      print(json.dumps([name, prompt]), file=process.stdin, flush=True)
      line = process.stdout.readline()
      if not line:
        raise RuntimeError('the official code ended; --verbose says why')
      return json.loads(line)

    yield ask
    process.stdin.close()


def compare(args: argparse.Namespace) -> dict[str, Any]:
  """Every prompt by all four in turns; what each wrote and in what time."""
  sys.path.insert(0, str(ROOT / 'launch'))
  import benchmark_suites
  from cli import common

  from swift_jax.benchmark import measuring
  from swift_jax.checkpoint import hub

  config = common.read_config(str(ROOT / 'configs' / 'demo.py'))
  sizes = benchmark_suites.Sizes(
    repeats=1,
    prompts=args.prompts,
    new_tokens=args.new_tokens,
    batches=(),
    layers=(),
    weights_mib=0,
    seeds=0,
  )
  bench = benchmark_suites.make_bench(
    common.merge(config, common.SECTIONS), sizes
  )
  engines = {OURS[0]: bench.engine, OURS[1]: bench.fresh()}
  calls = {name: bench.call(name.lower(), 1, 0.0) for name in OURS}
  longest = max(map(len, bench.timed))
  for name in OURS:
    engines[name].warmup(calls[name], longest)

  def ours(name: str, prompt: Sequence[int]) -> dict[str, Any]:
    started = time.perf_counter()
    tokens = engines[name].generate([prompt], calls[name])[0].tokens
    return {'tokens': tokens, 'seconds': time.perf_counter() - started}

  found = {name: [] for name in (*OURS, *THEIRS)}
  with tempfile.TemporaryDirectory() as scratch:
    old_form(pathlib.Path(hub.DEMO_MODEL), pathlib.Path(scratch))
    with official(args, pathlib.Path(scratch)) as theirs:
      theirs(THEIRS[0], bench.timed[0])  # the first call is slow
      for number, prompt in enumerate(bench.timed):
        for name in measuring.in_turn(list(found), number):
          write = ours if name in OURS else theirs
          found[name].append(write(name, prompt))
        print(f'prompt {number + 1}', file=sys.stderr)
  return found


def report(found: dict[str, Any], new_tokens: int) -> None:
  """Tokens a second, their ratio to the official SWIFT's, and equal texts."""
  rested = [not reply['searches'] for reply in found[THEIRS[1]]]
  rows = {'all prompts': [True] * len(rested)}
  if any(rested):
    rows[f'the {sum(rested)} prompts after the official search'] = rested
  for title, chosen in rows.items():
    print(f'\n{title}: tokens/s, over the official SWIFT, texts as our plain')
    kept = {
      name: [r for r, is_in in zip(replies, chosen, strict=True) if is_in]
      for name, replies in found.items()
    }
    base = [reply['tokens'][:new_tokens] for reply in kept[OURS[0]]]
    for name, replies in kept.items():
      texts = [reply['tokens'][:new_tokens] for reply in replies]
      equal = sum(a == b for a, b in zip(texts, base, strict=True))
      ratio = speed(replies) / speed(kept[THEIRS[1]])
      print(
        f'{name:<18}{speed(replies):8.1f}{ratio:8.2f}{equal:6} of {len(base)}'
      )


def speed(replies: Sequence[dict[str, Any]]) -> float:
  tokens = sum(len(reply['tokens']) for reply in replies)
  return tokens / sum(reply['seconds'] for reply in replies)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--repository', help="the official code's folder")
  parser.add_argument('--python', help='of the environment that it runs in')
  parser.add_argument('--prompts', type=int, default=20)
  parser.add_argument('--new_tokens', type=int, default=128)
  parser.add_argument('--threads', type=int, default=os.cpu_count())
  parser.add_argument('--output', help='a JSON file with every text and time')
  parser.add_argument('--verbose', action='store_true', help='what it prints')
  parser.add_argument('--serve', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    serve(args.serve, args.new_tokens, args.threads)
    return
  if not (args.repository and args.python):
    parser.error('--repository and --python are needed')
  found = compare(args)
  report(found, args.new_tokens)
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(found), encoding='utf-8')


if __name__ == '__main__':
  main()
