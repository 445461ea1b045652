"""Reads a compiled program: branches, collectives, copies of weights and cache.

A copy is found by following arrays, not by shapes. The program's arguments say in
their metadata what they are: `params[...]` are weights, `cache.k` and `cache.v` are
the cache. They are followed through tuples, loops, branches, calls and fusions.

Counted are the bytes that an instruction writes to the device's main memory, if what
it writes are values of a weight or of the cache that no product or sum has taken in:
`copy`, `transpose`, `convert`, `reshape`, `slice`, `concatenate`, and every other
operation that works element by element, alone or as the result of a fusion. So the
unpacked form of int8 weights counts, and a layer that is sliced out of a stack.

Not counted are products (a fusion writes what its product gives), reads of single
rows (`gather`), updates in place (`dynamic-update-slice`, `scatter`), moves to faster
memory of the chip from which a product then reads, collectives, which are counted on
their own, and results of less than `LEAST` bytes. Each instruction counts once: a
loop's body once, and each branch of a conditional.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import re
from typing import NamedTuple

LEAST = 2**16  # bytes; a row of the embedding or a norm's scale is smaller
WEIGHTS, CACHE = 'weights', 'cache'
COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_ARRAY = re.compile(r'(\w+)\[([\d,<= ]*)\](\{[^}]*\})?')
_SPACE = re.compile(r'S\((\d+)\)')
_LINE = re.compile(r'\s+(ROOT )?%?([\w.\-]+) = (.*)')
_HEAD = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_NAME = re.compile(r'%([\w.\-]+)')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_BITS = re.compile(r'\d+')
# The result is the operand's own buffer.
_SAME = ('bitcast', 'optimization-barrier', 'add-dependency', 'copy-done')
_IN_PLACE = ('dynamic-update-slice', 'scatter')
# How a TPU's program sees slices that it has fetched one by one as one array.
_JOINS = 'custom_call_target="ConcatBitcast"'
# Nothing of a weight is left in what these give.
_ENDS = {
  *(
    'dot',
    'convolution',
    'custom-call',
    'reduce',
    'reduce-window',
    'broadcast',
  ),
  *(
    'gather',
    'sort',
    'compare',
    'iota',
    'constant',
    'is-finite',
    'partition-id',
  ),
  *COLLECTIVES,
}


class Held(NamedTuple):
  """Values of a weight or of the cache.

  Attributes:
    kind: `WEIGHTS` or `CACHE`.
    is_moved: they are not in the operand's buffer any more.
  """

  kind: str
  is_moved: bool = False


# What an instruction's result holds: nothing of interest, or a tuple's parts.
Value = Held | list['Value'] | None


class Array(NamedTuple):
  """An array of an instruction's result.

  Attributes:
    nbytes: its size without padding.
    is_main: it lies in the device's main memory.
  """

  nbytes: int
  is_main: bool


class Instruction(NamedTuple):
  """A line of a program.

  Attributes:
    name, opcode: its name and what it does.
    shape: an array, or a list of a tuple's parts.
    operands: names of instructions of the same computation.
    rest: its attributes.
    is_root: it is the computation's result.
  """

  name: str
  opcode: str
  shape: Array | list
  operands: tuple[str, ...]
  rest: str
  is_root: bool


class Copy(NamedTuple):
  """A copy of a weight or of the cache."""

  kind: str
  nbytes: int
  in_loop: bool


@dataclasses.dataclass
class Contents:
  """What a compiled program has.

  Attributes:
    conditionals: branches that are chosen when it runs.
    copies: see the module's text, by the instruction's name, and the number of the
      part of its result where it has several.
    collectives: for each kind the number and the bytes that they give.
  """

  conditionals: int
  copies: dict[str, Copy]
  collectives: dict[str, tuple[int, int]]

  def copied(self, kind: str, only_in_loops: bool = False) -> int:
    """Bytes of all copies of a kind."""
    return sum(
      copy.nbytes
      for copy in self.copies.values()
      if copy.kind == kind and (copy.in_loop or not only_in_loops)
    )


def read(text: str, least: int = LEAST) -> Contents:
  """Reads `compiled.as_text()`.

  Args:
    least: bytes of the smallest copy that counts.
  """
  computations, entry = _parse(text)
  reader = _Reader(computations, least)
  reader.run(entry, [], in_loop=False, is_fused=False)
  every = [line for lines in computations.values() for line in lines]
  collectives: dict[str, tuple[int, int]] = {}
  for line in every:
    kind = line.opcode.removesuffix('-start')
    if kind in COLLECTIVES:
      count, nbytes = collectives.get(kind, (0, 0))
      collectives[kind] = count + 1, nbytes + _result_bytes(line)
  conditionals = sum(line.opcode == 'conditional' for line in every)
  return Contents(conditionals, reader.copies, collectives)


def _result_bytes(line: Instruction) -> int:
  """Bytes of a collective's result; the start of one may name its operand too."""
  arrays = list(_arrays(line.shape))
  has_operand = line.opcode in ('all-gather-start', 'collective-permute-start')
  return arrays[1].nbytes if has_operand else sum(a.nbytes for a in arrays)


def _arrays(shape: Array | list) -> Iterator[Array]:
  if isinstance(shape, Array):
    yield shape
  else:
    for part in shape:
      yield from _arrays(part)


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """The computations by name, and the entry's name."""
  computations: dict[str, list[Instruction]] = {}
  entry, lines = '', None
  for row in text.splitlines():
    head = _HEAD.match(row)
    if head:
      lines = computations.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
      continue
    found = _LINE.match(row)
    if found and lines is not None:
      lines.append(_instruction(found[2], found[3], bool(found[1])))
  return computations, entry


def _instruction(name: str, said: str, is_root: bool) -> Instruction:
  """`f32[2]{0} add(%a, %b), metadata=...` in its parts."""
  end = _closing(said, 0) + 1 if said.startswith('(') else said.index(' ')
  shape = _shape(said[:end])
  opcode, _, rest = said[end:].lstrip().partition('(')
  close = _closing('(' + rest, 0) - 1
  inside = rest[:close]
  operands = (inside,)  # of a parameter: its number
  if opcode not in ('parameter', 'constant'):
    operands = tuple(_NAME.findall(inside))
  return Instruction(name, opcode, shape, operands, rest[close:], is_root)


def _closing(text: str, at: int) -> int:
  """The index of the bracket that closes the one at `at`."""
  depth = 0
  for found in re.finditer(r'[()]', text[at:]):
    depth += 1 if found[0] == '(' else -1
    if not depth:
      return at + found.start()
  raise ValueError(f'a bracket is not closed: {text:.80}')


def _shape(text: str) -> Array | list:
  """An array, or a list of a tuple's parts."""
  if not text.startswith('('):
    return _array(_ARRAY.match(text))
  parts: list = []
  at = 1
  while at < len(text):
    if text[at] == '(':
      close = _closing(text, at)
      parts.append(_shape(text[at : close + 1]))
      at = close + 1
      continue
    found = _ARRAY.match(text, at)
    if found:
      parts.append(_array(found))
      at = found.end()
    else:
      at += 1
  return parts


def _array(found: re.Match[str] | None) -> Array:
  if found is None:  # a token, say
    return Array(0, False)
  kind, dims, layout = found.groups()
  size = 1
  for dim in _BITS.findall(dims):
    size *= int(dim)
  bits = int((_BITS.findall(kind) or ['8'])[0])  # pred
  space = _SPACE.search(layout or '')
  is_main = space is None or space[1] == '0'
  return Array(size * bits // 8, is_main)


class _Reader:
  """Follows weights and cache through a program."""

  def __init__(self, computations: dict[str, list[Instruction]], least: int):
    self._computations, self._least = computations, least
    self._known: dict[tuple, Value] = {}
    self.copies: dict[str, Copy] = {}

  def run(
    self, name: str, given: Sequence[Value], in_loop: bool, is_fused: bool
  ) -> Value:
    """What a computation gives; `given` are its parameters' values."""
    key = name, repr(given), in_loop, is_fused
    if key not in self._known:
      values: dict[str, Value] = {}
      root: Value = None
      for line in self._computations[name]:
        value = self._value(line, values, given, in_loop, is_fused)
        if not is_fused:
          value = self._settled(line.name, line.shape, value, in_loop)
        values[line.name] = value
        root = value if line.is_root else root
      self._known[key] = root
    return self._known[key]

  def _settled(
    self, name: str, shape: Array | list, value: Value, in_loop: bool
  ) -> Value:
    """Counts what has moved; from now on it is where it is."""
    if isinstance(value, list):
      shapes = shape if isinstance(shape, list) else [shape] * len(value)
      pairs = enumerate(zip(shapes, value, strict=False))
      return [
        self._settled(f'{name}[{i}]', *pair, in_loop) for i, pair in pairs
      ]
    if not isinstance(value, Held) or not value.is_moved:
      return value
    if isinstance(shape, Array) and shape.is_main:
      if shape.nbytes >= self._least:
        self.copies.setdefault(name, Copy(value.kind, shape.nbytes, in_loop))
    return Held(value.kind)

  def _value(
    self,
    line: Instruction,
    values: dict[str, Value],
    given: Sequence[Value],
    in_loop: bool,
    is_fused: bool,
  ) -> Value:
    """What an instruction gives."""
    op = line.opcode
    if op == 'parameter':
      number = int(line.operands[0])
      return given[number] if number < len(given) else _argument(line)
    operands = [values.get(name) for name in line.operands]
    if op == 'tuple':
      return operands
    if op == 'get-tuple-element':
      index = int(re.search(r'index=(\d+)', line.rest)[1])
      return _part(operands[0], index)
    if op == 'while':
      return self._loop(line, operands)
    if op == 'conditional':
      return self._branches(line, operands, in_loop)
    called = _CALLED.search(line.rest)
    if op == 'call':
      return self.run(called[1], operands, in_loop, is_fused)
    if op == 'fusion':
      return self.run(called[1], operands, in_loop, is_fused=True)
    if op.endswith('-start'):
      return self._start(line, operands, called, in_loop)
    if op.endswith(('-done', '-update')):
      return _part(operands[0], 0 if op == 'copy-done' else 1)
    if op in _SAME or op in _IN_PLACE or _JOINS in line.rest:
      return operands[0]
    held = next((v for v in operands if isinstance(v, Held)), None)
    if held is None or op in _ENDS:
      return None
    return Held(held.kind, is_moved=True)

  def _start(
    self,
    line: Instruction,
    operands: Sequence[Value],
    called: re.Match[str] | None,
    in_loop: bool,
  ) -> Value:
    """An operation that runs beside others: a copy, a slice, a computation."""
    kind = line.opcode.removesuffix('-start')
    held = next((v for v in operands if isinstance(v, Held)), None)
    if kind == 'async' and called is not None:
      return [None, self.run(called[1], operands, in_loop, is_fused=True), None]
    if held is None or kind in COLLECTIVES:
      return None
    moved = Held(held.kind, is_moved=True)
    return [moved, held, None] if kind == 'copy' else [None, moved, None]

  def _loop(self, line: Instruction, operands: Sequence[Value]) -> Value:
    carried = operands[0]
    body = re.search(r'body=%?([\w.\-]+)', line.rest)[1]
    for _ in range(2):  # what a pass has brought in, the next one carries
      given = carried
      carried = _merged(given, self.run(body, [given], True, False))
      if repr(carried) == repr(given):
        break
    return carried

  def _branches(
    self, line: Instruction, operands: Sequence[Value], in_loop: bool
  ) -> Value:
    found = _BRANCHES.search(line.rest)
    names = _NAME.findall(found[1]) if found else _CALLED.findall(line.rest)
    result: Value = None
    for name, operand in zip(names, operands[1:], strict=True):
      value = self.run(name, [operand], in_loop, is_fused=False)
      result = _merged(result, value)
    return result


def _argument(line: Instruction) -> Value:
  """What an argument of the program holds."""
  found = _OP_NAME.search(line.rest)
  name = found[1] if found else ''
  if name.startswith('params'):
    return Held(WEIGHTS)
  return Held(CACHE) if re.search(r'cache\.[kv]\b', name) else None


def _part(value: Value, index: int) -> Value:
  is_there = isinstance(value, list) and index < len(value)
  return value[index] if is_there else None


def _merged(one: Value, two: Value) -> Value:
  """What either may hold."""
  if isinstance(one, list) and isinstance(two, list):
    return [_merged(a, b) for a, b in zip(one, two, strict=False)]
  return two if one is None else one
