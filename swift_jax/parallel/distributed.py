"""Several processes, one on each host: they join, exchange values and leave."""

from __future__ import annotations

import importlib.util
import os
import time

import jax
import numpy as np

from swift_jax.config.checks import require
from swift_jax.errors import InputError

_PORTS = range(1, 2**16)
_LONGEST = 30 * 24 * 3600.0  # seconds: no run takes longer
_GRACE = 3.0  # seconds in which the other processes disconnect
# Environment variables by which a scheduler tells each process its number.
_CLUSTERS = {
  'Slurm': ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID'),
  'Open MPI': ('OMPI_MCA_orte_hnp_uri',),
  'Kubernetes': ('KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'),
}


def start(
  coordinator: str,
  num_processes: int | None,
  process_id: int | None,
  in_step: bool,
) -> None:
  """Joins the other processes; call it before any other use of JAX.

  Arguments that are given count. Without any, the cluster (TPU, Kubernetes, Slurm,
  Open MPI) says where the other processes are. A process that is alone on its
  machine has nothing to do.

  Args:
    coordinator: HOST:PORT of process 0; empty: the cluster knows it.
    num_processes, process_id: the number of processes, and this process's own.
    in_step: the processes share one mesh, so that all end if one dies. Otherwise
      a process that was killed may be started again while the others go on. Process
      0, where they meet, is the exception.

  Raises:
    InputError: arguments are wrong or incomplete, or no other process is found.
  """
  settings = (coordinator or None, num_processes, process_id)
  is_given = any(value is not None for value in settings)
  if is_given:
    _check(coordinator, num_processes, process_id)
  elif not is_cluster():
    return
  jax.config.update('jax_enable_recoverability', not in_step)
  if not in_step:
    # On CPUs, gloo would find the addresses of a killed process under the names of
    # the process that takes its place. Within one process gloo is not needed.
    jax.config.update('jax_cpu_collectives_implementation', None)
  try:
    jax.distributed.initialize(*settings if is_given else ())
  # JAX raises these if it has too few settings, or cannot connect or bind.
  except (RuntimeError, ValueError, OSError) as error:
    reason = ' '.join(str(error).split())
    raise InputError(
      f'--coordinator={coordinator}: the other processes are not to be found:'
      f' {reason:.200}'
    ) from error


def is_cluster() -> bool:
  """Whether the environment says that there are, or may be, other processes.

  `jax.distributed.initialize` alone is no such question. Without a cluster it raises
  an error. It takes every pod of Kubernetes for part of a job, and it warns or fails
  in a pod that is alone. It refuses a process that has used JAX before.
  """
  has_all = (
    all(name in os.environ for name in names) for names in _CLUSTERS.values()
  )
  return any(has_all) or _is_tpu_vm()


def _is_tpu_vm() -> bool:
  """Whether this machine has TPU chips: its metadata name the other hosts."""
  if os.environ.get('JAX_PLATFORMS', 'tpu') not in ('', 'tpu'):
    return False
  has_chips = any(map(os.path.exists, ('/dev/accel0', '/dev/vfio/0')))
  return has_chips and importlib.util.find_spec('libtpu') is not None


def _check(
  coordinator: str, num_processes: int | None, process_id: int | None
) -> None:
  host, _, port = coordinator.rpartition(':')
  is_address = host and port.isdecimal() and int(port) in _PORTS
  require(bool(is_address), '--coordinator', coordinator, 'HOST:PORT')
  ok = num_processes is not None and num_processes >= 1
  require(ok, '--num_processes', num_processes, 'an integer >= 1')
  ok = process_id is not None and 0 <= process_id < num_processes
  wanted = f'an integer in [0, {num_processes})'
  require(ok, '--process_id', process_id, wanted)


def is_alone() -> bool:
  """Whether there are no other processes."""
  return jax.process_count() == 1


def leave() -> None:
  """Waits until all processes have called this, and disconnects.

  Process 0, where all processes meet, disconnects last: without it the others would
  die. So it waits for processes that still work or are started again, however long.
  """
  if is_alone():
    return
  # There is no public name for a barrier that needs no device.
  from jax._src import distributed

  distributed.global_state.client.wait_at_barrier(
    'swift_jax: all is written', round(_LONGEST * 1000)
  )
  if jax.process_index() == 0:
    time.sleep(_GRACE)
  jax.distributed.shutdown()


def from_first_process(content: bytes) -> bytes:
  """The bytes that process 0 passes as `content`, on all processes in step."""
  from jax.experimental import multihost_utils

  size = multihost_utils.broadcast_one_to_all(np.int32(len(content)))
  buffer = np.zeros(int(size), np.uint8)
  if jax.process_index() == 0:
    buffer[:] = np.frombuffer(content, np.uint8)
  return multihost_utils.broadcast_one_to_all(buffer).tobytes()


def any_of(flags: np.ndarray) -> np.ndarray:
  """The union over all processes in step of their flags, bool[N]."""
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.process_allgather(flags)).any(0)
