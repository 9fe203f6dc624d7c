"""One module per kind of source; each has `matches(source)`, which takes no damaged file, and `read(source)`.

Kinds of runs, by what they were read from:

run         a run folder of ours (plan.json)
combined    published records of all ranks (combined_data.json, and course teams' files with the same records)
durations   how long a run took, in a table apart from its records, of which none are there
statistics  averages over a run's records, of which none are there
array       how long a SLURM array took
endless     a record of a process that goes on and on, as a run of the data size that it had reached
results     the published results of one process on a single machine
log         what CloudWatch says of a run's invocations; of a run there are only those of one log stream
"""
