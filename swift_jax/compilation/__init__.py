"""What the compilers of absent TPUs and GPUs make of a run's programs.

Programs are lowered from shapes and compiled for a described target: no weights are
read and no device is started. It may import every floor below it but the
benchmark's suites.
"""
