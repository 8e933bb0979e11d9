"""Code that runs away from the driver: workers that read and decode, actors that hold a model.

read.py          a block of the plan -> tables of prepared clips
reopen.py        rows of a table -> their sound again, for exports and reports
kept.py          labels of the old row that a clip's new row keeps
sandbox.py       the process in which clips are decoded, which may die in place of the worker
lanes.py         how many long recordings a node decodes at once
model_actor.py   one task's model: labels tables of clips; the last task's actors write them
crash_ledger.py  which clip killed which process
metrics.py       Prometheus counters
"""
