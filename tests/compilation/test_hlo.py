"""Copies of weights and cache are found in compiled programs, and nothing else is."""

import flax.struct
import jax
import jax.numpy as jnp
import pytest

from swift_jax.compilation import hlo

# As a TPU's compiler writes it, cut down to what is read.
PROGRAM = """HloModule jit_steps, is_scheduled=true, entry_computation_layout={}

%product (p0: bf16[7,512], p1: s8[512,512]) -> bf16[7,512] {
  %p0 = bf16[7,512]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s8[512,512]{1,0:T(8,128)} parameter(1)
  %unpacked = bf16[512,512]{1,0:T(8,128)(2,1)} convert(%p1)
  ROOT %out = bf16[7,512]{1,0:T(8,128)(2,1)} convolution(%p0, %unpacked), dim_labels=bf_io->bf
}

%unpack (p0.1: s8[512,512]) -> bf16[512,512] {
  %p0.1 = s8[512,512]{1,0:T(8,128)} parameter(0)
  ROOT %wide = bf16[512,512]{1,0:T(8,128)(2,1)} convert(%p0.1)
}

%both (p0.3: bf16[2,1024,128]) -> (bf16[2,1024,128], f32[2,1024], bf16[1,1024,128]) {
  %p0.3 = bf16[2,1024,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %masked = bf16[2,1024,128]{2,1,0:T(8,128)(2,1)} negate(%p0.3)
  %one = bf16[1,1024,128]{2,1,0:T(8,128)(2,1)} slice(%p0.3), slice={[0:1], [0:1024], [0:128]}
  %zero.1 = f32[]{:T(128)} constant(0)
  %total = f32[2,1024]{1,0:T(2,128)} reduce(%p0.3, %zero.1), dimensions={2}, to_apply=%add
  ROOT %parts = (bf16[2,1024,128]{2,1,0:T(8,128)(2,1)}, f32[2,1024]{1,0:T(2,128)}, bf16[1,1024,128]{2,1,0:T(8,128)(2,1)}) tuple(%masked, %total, %one)
}

%scores (p0.2: bf16[2,1024,128]) -> f32[2,1024] {
  %p0.2 = bf16[2,1024,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %wide.1 = f32[2,1024,128]{2,1,0:T(8,128)} convert(%p0.2)
  %zero = f32[]{:T(128)} constant(0)
  ROOT %sum = f32[2,1024]{1,0:T(2,128)} reduce(%wide.1, %zero), dimensions={2}, to_apply=%add
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %c = f32[]{:T(128)} add(%a, %b)
}

%skipped (t: (s8[512,512])) -> bf16[512,512] {
  %t = (s8[512,512]{1,0:T(8,128)}) parameter(0)
  %none = bf16[]{:T(128)} constant(0)
  ROOT %zeros = bf16[512,512]{1,0:T(8,128)(2,1)} broadcast(%none), dimensions={}
}

%kept (t.1: (s8[512,512])) -> bf16[512,512] {
  %t.1 = (s8[512,512]{1,0:T(8,128)}) parameter(0)
  %w = s8[512,512]{1,0:T(8,128)} get-tuple-element(%t.1), index=0
  ROOT %inner = bf16[512,512]{1,0:T(8,128)(2,1)} fusion(%w), kind=kLoop, calls=%unpack
}

%body (s: (bf16[2,1024,128], s8[512,512])) -> (bf16[2,1024,128], s8[512,512]) {
  %s = (bf16[2,1024,128]{2,1,0:T(8,128)(2,1)}, s8[512,512]{1,0:T(8,128)}) parameter(0)
  %k = bf16[2,1024,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%s), index=0
  %w.1 = s8[512,512]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %near = (s8[512,512]{1,0:T(8,128)S(1)}, s8[512,512]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%w.1)
  %near.1 = s8[512,512]{1,0:T(8,128)S(1)} copy-done(%near)
  %x = bf16[7,512]{1,0:T(8,128)(2,1)} constant({...})
  %y = bf16[7,512]{1,0:T(8,128)(2,1)} fusion(%x, %near.1), kind=kOutput, calls=%product
  %sums = f32[2,1024]{1,0:T(2,128)} fusion(%k), kind=kLoop, calls=%scores
  %all = f32[2,1024]{1,0:T(2,128)} all-reduce(%sums), to_apply=%add
  %copy.1 = bf16[2,1024,128]{1,2,0:T(8,128)(2,1)} copy(%k)
  %new = bf16[2,1,128]{2,1,0:T(2,128)(2,1)} constant({...})
  %at = s32[]{:T(128)} constant(3)
  %written = bf16[2,1024,128]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%k, %new, %at, %at, %at)
  ROOT %next = (bf16[2,1024,128]{2,1,0:T(8,128)(2,1)}, s8[512,512]{1,0:T(8,128)}) tuple(%written, %w.1)
}

%unfinished (s.1: (bf16[2,1024,128], s8[512,512])) -> pred[] {
  %s.1 = (bf16[2,1024,128]{2,1,0:T(8,128)(2,1)}, s8[512,512]{1,0:T(8,128)}) parameter(0)
  ROOT %go = pred[]{:T(512)} constant(true)
}

ENTRY %main (p.0: s8[512,512], p.1: bf16[2,1024,128], p.2: s32[], p.3: f32[512,512]) -> bf16[2,1024,128] {
  %p.0 = s8[512,512]{1,0:T(8,128)} parameter(0), metadata={op_name="params[\\'layers\\'][0][\\'mlp\\'][\\'kernel\\']"}
  %p.1 = bf16[2,1024,128]{2,1,0:T(8,128)(2,1)} parameter(1), metadata={op_name="state.cache.k[0]"}
  %p.2 = s32[]{:T(128)} parameter(2), metadata={op_name="num_steps"}
  %p.3 = f32[512,512]{1,0:T(8,128)} parameter(3), metadata={op_name="state.tokens"}
  %other = f32[512,512]{0,1:T(8,128)} copy(%p.3)
  %turned = s8[512,512]{0,1:T(8,128)} transpose(%p.0), dimensions={1,0}
  %several = (bf16[2,1024,128]{2,1,0:T(8,128)(2,1)}, f32[2,1024]{1,0:T(2,128)}, bf16[1,1024,128]{2,1,0:T(8,128)(2,1)}) fusion(%p.1), kind=kLoop, calls=%both
  %given = (s8[512,512]{1,0:T(8,128)}) tuple(%p.0)
  %chosen = bf16[512,512]{1,0:T(8,128)(2,1)} conditional(%p.2, %given, %given), branch_computations={%skipped, %kept}
  %init = (bf16[2,1024,128]{2,1,0:T(8,128)(2,1)}, s8[512,512]{1,0:T(8,128)}) tuple(%p.1, %p.0)
  %loop = (bf16[2,1024,128]{2,1,0:T(8,128)(2,1)}, s8[512,512]{1,0:T(8,128)}) while(%init), condition=%unfinished, body=%body
  %whole = (f32[64]{0:T(128)}, f32[128]{0:T(128)}) all-gather-start(%p.3), dimensions={0}
  ROOT %out.1 = bf16[2,1024,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=0
}
"""
N = 512 * 512
CACHE = 2 * 1024 * 128 * 2


def test_what_a_program_copies():
  found = hlo.read(PROGRAM)
  assert found.copies == {
    'turned': hlo.Copy('weights', N, False),
    'inner': hlo.Copy('weights', 2 * N, False),
    'several[0]': hlo.Copy('cache', CACHE, False),
    'several[2]': hlo.Copy('cache', CACHE // 2, False),
    'copy.1': hlo.Copy('cache', CACHE, True),
  }
  assert found.copied('weights') == 3 * N
  assert found.copied('weights', only_in_loops=True) == 0
  assert found.copied('cache', only_in_loops=True) == CACHE
  assert found.conditionals == 1
  assert found.collectives == {
    'all-reduce': (1, 2 * 1024 * 4),
    'all-gather': (1, 128 * 4),
  }


def test_small_pieces_do_not_count():
  assert not hlo.read(PROGRAM, least=2**21).copies


def compiled(function, *arguments, **how):
  return jax.jit(function, **how).lower(*arguments).compile().as_text()


W = jax.ShapeDtypeStruct((257, 131), jnp.float32)
X = jax.ShapeDtypeStruct((3, 257), jnp.float32)


@pytest.mark.parametrize('dtype', ['float32', 'int8'])
def test_a_real_program_that_only_multiplies_copies_nothing(dtype):
  weights = {'w': jax.ShapeDtypeStruct(W.shape, dtype)}

  def run(params, x):
    return (x * params['w'].astype(jnp.float32)[:, 0]).sum()

  assert not hlo.read(compiled(run, weights, X), least=1000).copies


def test_a_real_program_that_scales_a_weight():
  def run(params, x):
    return x + 1, params['w'] * 1.5

  found = hlo.read(compiled(run, {'w': W}, X), least=1000)
  assert found.copied('weights') == 257 * 131 * 4
  assert found.copied('cache') == 0


def test_a_real_program_that_unpacks_whole_numbers():
  def run(params, x):
    wide = jax.lax.optimization_barrier(params['w'].astype(jnp.float32))
    return x @ wide

  packed = {'w': jax.ShapeDtypeStruct(W.shape, jnp.int8)}
  found = hlo.read(compiled(run, packed, X), least=1000)
  assert found.copied('weights') == 257 * 131 * 4


def test_a_real_loop_that_writes_in_place_and_one_that_does_not():

  @flax.struct.dataclass
  class State:
    k: jax.Array

  def in_place(cache, count):
    def body(i, k):
      return jax.lax.dynamic_update_slice(k, jnp.ones((1, 131)), (i, 0))

    return State(jax.lax.fori_loop(0, count, body, cache.k))

  def anew(cache, count):
    def body(i, k):
      return jax.lax.optimization_barrier(jnp.roll(k, 1, axis=0) * 2)

    return State(jax.lax.fori_loop(0, count, body, cache.k))

  given = State(W), jax.ShapeDtypeStruct((), jnp.int32)
  how = {'donate_argnums': 0}
  assert not hlo.read(compiled(in_place, *given, **how), least=1000).copies
  found = hlo.read(compiled(anew, *given, **how), least=1000)
  assert found.copied('cache', only_in_loops=True) >= 257 * 131 * 4
