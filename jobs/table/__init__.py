"""The output: a Delta Lake table over plain Parquet files. What is done is what is committed.

Workers write data files that nobody sees (`write`); the driver commits their names (`table`), one
run at a time (`lease`), in numbered transactions (`log`) that also take out rows (`rewrite`).
`schema` names the columns, `storage` is the folder that all of it lies in.

Importing this package imports nothing: workers that read import `schema` alone.
"""
