"""The one error a user's input can cause."""


class InputError(ValueError):
  """Something that came in is wrong; the message names it and its value.

  Launchers print the message as one line and exit with status 2; any other
  exception is a bug and keeps its traceback.
  """
