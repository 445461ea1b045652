"""The figures of a compilation: lines, tables, a summary, and what to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

from swift_jax.benchmark.report import Table
from swift_jax.compilation import estimate
from swift_jax.compilation.measure import Compiled
from swift_jax.compilation.programs import Shapes
from swift_jax.compilation.targets import GIB
from swift_jax.model import skip_mask as skip_masks
from swift_jax.pacing.costs import PassCosts

_MIB = 2**20


def size(nbytes: float) -> str:
  """Bytes as MiB, or as GiB from 1 GiB on."""
  if abs(nbytes) >= GIB:
    return f'{nbytes / GIB:.2f} GiB'
  digits = 0 if abs(nbytes) >= 10 * _MIB or not nbytes else 1
  return f'{nbytes / _MIB:.{digits}f} MiB'


def heading(shapes: Shapes) -> str:
  """What is compiled for what."""
  run, cfg = shapes.run, shapes.run.cfg
  kind = cfg.weights or cfg.dtype
  return (
    f'{cfg.num_hidden_layers} layers of {cfg.hidden_size}, {kind}, on'
    f' {run.machine.name} ({len(run.machine.devices)} x {run.machine.kind}),'
    f' mesh data {run.mesh.data} tensor {run.mesh.tensor}, batch'
    f' {run.decode.batch_size}, context {run.context}, cache of'
    f' {shapes.target.capacity} slots a row'
  )


def line(one: Compiled) -> str:
  """What became of a program, in short."""
  if one.refused:
    return f'{one.name} is refused: {one.refused}'
  return (
    f'{one.name} took {one.seconds:.0f} s: arguments {size(one.arguments)},'
    f' temporaries {size(one.temporaries)}'
  )


def programs_table(programs: Sequence[Compiled]) -> Table:
  """A line for each program."""
  rows = [
    {
      'program': one.name,
      'compiles in': f'{one.seconds:.0f} s',
      'arguments': size(one.arguments),
      'temporaries': size(one.temporaries),
      'code': size(one.code),
      'conditionals': one.conditionals,
      'weights copied': size(one.copied_weights),
      'cache copied': size(one.copied_cache),
      'in loops': size(one.copied_in_loops),
      'collectives': _collectives(one.collectives),
    }
    if not one.refused
    else {'program': one.name, 'compiles in': f'{one.seconds:.0f} s'}
    for one in programs
  ]
  heads = max(rows, key=len) if rows else {}
  full = [{head: row.get(head, 'no room') for head in heads} for row in rows]
  return Table.of('programs, sizes on one device', full)


def _collectives(found: Mapping[str, tuple[int, int]]) -> str:
  parts = [
    f'{count} {kind} {size(nbytes)}'
    for kind, (count, nbytes) in sorted(found.items())
  ]
  return ', '.join(parts) or 'none'


@dataclasses.dataclass(frozen=True)
class Memory:
  """A device's memory at its fullest; bytes.

  Attributes:
    there: what programs may use.
    weights, cache: without padding.
    other: other arguments, and what padding adds.
    new: what the program that needs most needs beside its arguments.
    program: that program's name.
    code: of all programs together: they stay on the device.
    refused: programs that the compiler refused.
  """

  there: int
  weights: int
  cache: int
  other: int
  new: int
  program: str
  code: int
  refused: tuple[str, ...]

  @property
  def peak(self) -> int:
    """The sum of all parts."""
    return self.weights + self.cache + self.other + self.new + self.code

  @property
  def fits(self) -> bool:
    """Whether the peak does, and every program was compiled."""
    return not self.refused and self.peak <= self.there


def memory(shapes: Shapes, programs: Sequence[Compiled]) -> Memory:
  """The memory that a run of these programs needs on each device."""
  there, parts = shapes.run.machine.memory, shapes.parts
  fullest = max(programs, key=lambda one: one.new)
  arguments = max(one.arguments for one in programs)
  return Memory(
    there=there,
    **parts,
    other=max(arguments - sum(parts.values()), 0),
    new=fullest.new,
    program=fullest.name,
    code=sum(one.code for one in programs),
    refused=tuple(one.name for one in programs if one.refused),
  )


def memory_table(found: Memory) -> Table:
  """The parts of the peak."""
  parts = {
    'weights': found.weights,
    'cache': found.cache,
    'other arguments and padding': found.other,
    f'beside them, for {found.program}': found.new,
    'code of all programs': found.code,
    'peak': found.peak,
    "the device's": found.there,
  }
  rows = [{'part': name, 'size': size(n)} for name, n in parts.items()]
  return Table.of('memory of one device at its fullest', rows)


def verdict(shapes: Shapes, found: Memory, programs: Sequence[Compiled]) -> str:
  """Whether it fits, by how much, and what to change if it does not."""
  if found.fits:
    return f'It fits: {size(found.there - found.peak)} of each device are left.'
  over = found.peak - found.there
  said = f'It does not fit: {size(over)} too much on each device.'
  if found.refused:
    reasons = [f'{p.name}: {p.refused}' for p in programs if p.refused]
    said = f'It does not fit. The compiler refuses {"; ".join(reasons)}'
  return f'{said} {_advice(shapes, found, max(over, 0))}'


def _advice(shapes: Shapes, found: Memory, over: int) -> str:
  """Settings that need less memory."""
  run = shapes.run
  wanted = []
  rows = run.decode.batch_size // run.mesh.data
  needed = found.there - (found.peak - found.cache - found.new)
  # What grows with the rows is taken to shrink with them.
  fitting = math.floor(rows * needed / (found.cache + found.new))
  if over and 0 < fitting < rows:
    wanted.append(f'--config.decode.batch_size={fitting * run.mesh.data}')
  if over and 0 < over < found.cache:
    context = int(run.context * (1 - over / found.cache))
    wanted.append(f'--context={context}')
  devices = run.mesh.data * run.mesh.tensor
  wanted.append(
    f'--config.mesh.tensor={2 * run.mesh.tensor} on {2 * devices} devices'
  )
  if devices == 1 and not run.cfg.weights:
    wanted.append('--config.model.weights=int8')
  return f'Change one of these: {", ".join(wanted)}.'


def bytes_of_passes(shapes: Shapes) -> dict[str, float]:
  """Bytes that passes move on a device, with a full cache; see `estimate`."""
  layers = shapes.run.cfg.num_hidden_layers
  none_skipped = skip_masks.none_skipped(layers)
  one = estimate.moved(shapes, 1)
  found = {'plain step': one.of(none_skipped)}
  for ratio in estimate.RATIOS:
    mask = skip_masks.uniform(layers, ratio)
    found[f'token drafted, {ratio} skipped'] = one.of(mask)
  for width in estimate.WIDTHS:
    found[f'verify of {width}'] = estimate.moved(shapes, width).of(none_skipped)
  return found


def passes_table(found: Mapping[str, float]) -> Table:
  """Bytes of passes, and their shares of a plain step's."""
  step = found['plain step']
  rows = [
    {'pass': name, 'moves': size(n), 'of a plain step': n / step}
    for name, n in found.items()
  ]
  return Table.of('bytes that a pass moves on one device', rows)


def speeds(shapes: Shapes, costs: PassCosts) -> dict[str, Any]:
  """What an estimate of costs says of plain decoding and of SWIFT.

  Returns:
    Values of JSON: seconds and tokens a second of plain steps, costs in plain steps,
    and for each ratio and acceptance the speedup and the draft length.
  """
  layers = shapes.run.cfg.num_hidden_layers
  longest = shapes.run.draft.max_draft_length
  drafts, gains = {}, {}
  for ratio in estimate.RATIOS:
    cost = costs.draft(skip_masks.uniform(layers, ratio).bits())
    drafts[str(ratio)] = cost
    gains[str(ratio)] = {
      str(acceptance): estimate.gain(
        cost, costs.verify, estimate.WIDTHS, longest, acceptance
      )._asdict()
      for acceptance in estimate.ACCEPTANCES
    }
  return {
    'plain_step_s': costs.step_s,
    'tokens_per_second': shapes.run.decode.batch_size / costs.step_s,
    'draft': drafts,
    'verify': dict(zip(map(str, estimate.WIDTHS), costs.verify, strict=True)),
    'gain': gains,
  }


def speeds_table(way: str, found: Mapping[str, Any]) -> Table:
  """SWIFT's speedup by skipped share and acceptance."""
  rows = [
    {
      'skipped': ratio,
      'a drafted token': found['draft'][ratio],
      **{f'at {a}': f'{one["speedup"]:.2f}' for a, one in gains.items()},
    }
    for ratio, gains in found['gain'].items()
  ]
  verify = ', '.join(
    f'{cost:.3g} of {width} tokens' for width, cost in found['verify'].items()
  )
  return Table.of(
    f'an ESTIMATE by {way}: a plain step takes {1e3 * found["plain_step_s"]:.2f} ms'
    f' ({found["tokens_per_second"]:.4g} tokens/s); verify costs {verify} (in plain'
    " steps); SWIFT's speedup by acceptance",
    rows,
  )


def summary(programs: Sequence[Compiled], found: Memory) -> dict[str, Any]:
  """The headline figures."""
  there = [one for one in programs if not one.refused]

  def largest(nbytes: Any) -> float:
    shares = [nbytes(one) / one.arguments for one in there if one.arguments]
    return max(shares, default=0.0)

  return {
    'compile_s': sum(one.seconds for one in programs),
    'temp_over_arguments': largest(lambda one: one.temporaries),
    'temp_beyond_logits': largest(
      lambda one: max(one.temporaries - one.logits, 0)
    ),
    'copied_bytes': sum(one.copied_weights + one.copied_cache for one in there),
    'copied_weights': sum(one.copied_weights for one in there),
    'copied_cache': sum(one.copied_cache for one in there),
    'copied_in_loops': sum(one.copied_in_loops for one in there),
    'peak_over_memory': found.peak / found.there,
    'fits': found.fits,
  }
