"""Fuzzing: whatever comes from outside is read and means one thing, or is refused with one error.

``python -m fuzz`` (with ``tests/`` on the path; ``make fuzz MINUTES=10``) feeds every target of `fuzz.targets` with
mutated files. What breaks one is written to ``tests/corpus/TARGET/``, and `make test` replays that folder.
"""
