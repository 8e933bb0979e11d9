"""The output: a Delta Lake table over plain Parquet files. Only committed rows are done.

Workers write data files, which stay invisible (`write`) until the driver commits their names
(`table`). One run at a time does so (`lease`), in numbered transactions (`log`), which also remove
rows (`rewrite`). `schema` names the columns, `outcome` is a clip's status, `rows` reads rows by their
numbers, `shards` keeps what was found in shards, `storage` is the table's folder.

Importing this package imports none of its files: workers that read need `schema` alone.
"""
