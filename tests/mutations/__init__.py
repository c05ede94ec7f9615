"""Faults put back one at a time: what the tests are worth.

    python -m tests.mutations                  # every list, hours of one core
    python -m tests.mutations cuda_path A1 B   # of one list, those whose finding begins so

A mutation takes one fix out, or breaks one line, in a copy of the tree; the test that is named beside it must fail
there. `tests/unit/test_mutations.py` keeps the lists applicable.
"""
