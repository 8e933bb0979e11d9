"""What a run has to do, before Ray starts: the clips that are found minus the labels that are there.

find.py       lists the input and makes the plan
plan.py       the plan of an input whose clips are known
shards.py     the plan of an input whose shards have to be read to know their clips
committed.py  the table's rows, read a stretch at a time
due.py        which tasks are due on a row, and why
refusal.py    refuses a run that would replace labels
"""
