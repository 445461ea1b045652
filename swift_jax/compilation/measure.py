"""Compiles programs one after another, and takes down what became of each."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

from swift_jax.compilation import hlo
from swift_jax.compilation.programs import Program

_FULL = 'RESOURCE_EXHAUSTED'


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A program that was compiled; sizes are bytes on one device.

  Attributes:
    name: see `programs.NAMES`.
    seconds: of tracing and compiling.
    arguments, outputs, temporaries, code: what it needs beside each other.
    aliased: the part of `outputs` that lies where arguments lay.
    logits: the part of `temporaries` that logits must take.
    beside: what a run holds then beside the arguments.
    conditionals: branches that are chosen when it runs.
    copied_weights, copied_cache: see `hlo`.
    copied_in_loops: the part of both that is copied in each turn of a loop.
    collectives: for each kind the number and the bytes that they give.
    refused: what the compiler said where it found no room; then all other figures
      but `seconds` are 0.
  """

  name: str
  seconds: float
  arguments: int = 0
  outputs: int = 0
  temporaries: int = 0
  code: int = 0
  aliased: int = 0
  logits: int = 0
  beside: int = 0
  conditionals: int = 0
  copied_weights: int = 0
  copied_cache: int = 0
  copied_in_loops: int = 0
  collectives: dict[str, tuple[int, int]] = dataclasses.field(
    default_factory=dict
  )
  refused: str = ''

  @property
  def new(self) -> int:
    """Bytes that it needs beside its arguments and code."""
    return self.temporaries + self.outputs - self.aliased + self.beside


def compiled(program: Program, least: int = hlo.LEAST) -> Compiled:
  """Compiles a program.

  Args:
    least: bytes of the smallest copy that counts.
  """
  started = time.perf_counter()
  try:
    executable = program.lower().compile()
  except RuntimeError as error:  # as XLA's errors are
    if _FULL not in str(error):
      raise
    seconds = time.perf_counter() - started
    return Compiled(program.name, seconds, refused=_reason(error))
  seconds = time.perf_counter() - started
  memory: Any = executable.memory_analysis()
  found = hlo.read(executable.as_text(), least)
  both = hlo.WEIGHTS, hlo.CACHE
  return Compiled(
    program.name,
    seconds,
    arguments=memory.argument_size_in_bytes,
    outputs=memory.output_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes,
    aliased=memory.alias_size_in_bytes,
    logits=program.logits,
    beside=program.beside,
    conditionals=found.conditionals,
    copied_weights=found.copied(hlo.WEIGHTS),
    copied_cache=found.copied(hlo.CACHE),
    copied_in_loops=sum(found.copied(kind, True) for kind in both),
    collectives=found.collectives,
  )


def _reason(error: Exception) -> str:
  """The compiler's sentence about memory."""
  text = ' '.join(str(error).split()).partition(_FULL)[2].lstrip(': ')
  return re.split(r'(?<=[.)]) (?=[A-Z])', text)[0][:300]
