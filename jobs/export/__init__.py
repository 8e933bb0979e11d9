"""`earmark export`: a table's clips and labels in the formats that others train on.

command.py     the export from the arguments to the exit code
arguments.py   the arguments of the command line
request.py     what is asked for: arguments, table and config together
options.py     the options of an export, and what is wrong with them
select.py      the clips, or segments of them, by DuckDB: filtered, split, in a fixed order
places.py      rows of a table -> their sound, opened
sound.py       opened clips -> encoded sound, in a process that may die
shards.py      one shard of an export, written in a worker
work.py        all shards, on Ray, and the lists that name them
tally.py       how many clips are written, and why others are not
folder.py      the unfinished folder, which becomes the export when all of it is there
formats/       one file per format; its name is what `--as` calls it
"""
