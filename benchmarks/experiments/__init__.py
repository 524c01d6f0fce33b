"""Each claim as an experiment: one file, one command, a table and a figure.

    python -m benchmarks.experiments                 # all of them, into runs/experiments
    python -m benchmarks.experiments adascale        # one of them
    python -m benchmarks.experiments --list          # what there is

A run that was made is kept, so that the same command goes on where it was stopped.
"""
