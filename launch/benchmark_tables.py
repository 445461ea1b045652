"""What the benchmark prints: tables, and progress beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import sys
from typing import TYPE_CHECKING, Any

from cli import console

if TYPE_CHECKING:
  from swift_jax.benchmark.report import Table


def print_tables(tables: Iterable[Table]) -> None:
  """A blank line before each."""
  for table in tables:
    console.write(f'\n{table.text()}\n')


def print_figures(title: str, figures: Mapping[str, Any]) -> None:
  """A line a figure."""
  from swift_jax.benchmark.report import show

  lines = [f'  {name:<28} {show(value)}' for name, value in figures.items()]
  console.write('\n'.join(['', title, *lines, '']))


def say(what: str) -> None:
  """Progress, beside the tables."""
  print(f'... {what}', file=sys.stderr, flush=True)
