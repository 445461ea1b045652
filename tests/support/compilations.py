"""How often XLA compiles."""

import jax


class Compilations:
  """Counts XLA compilations in this process from now on."""

  def __init__(self):
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self._on_event)

  def _on_event(self, name, *_, **__):
    self.count += name == '/jax/core/compile/backend_compile_duration'
