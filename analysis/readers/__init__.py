"""Readers of files that describe runs: one module per kind of source.

Each has `matches(source)`, which is false for damaged files, and `read(source)`. Kinds of runs, by their source:

run         a run folder of this project (plan.json)
combined    published records of all ranks (combined_data.json, and course teams' files with the same records)
durations   how long a run took, from a table without the records
statistics  averages over a run's records, without the records
platforms   a row of the published comparison of processors
array       how long a SLURM array took
endless     a record of an endless process, as a run of the data size that it had reached
results     the published results of one process on a single machine, or its accuracy alone
log         a run's invocations from a CloudWatch log, which holds only those of one log stream
"""
