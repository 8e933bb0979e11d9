"""Types of Arrow columns: as they are read, what they can hold, and as a Delta table has them."""

from __future__ import annotations

import pyarrow as pa


def as_stored(column: pa.Array) -> pa.Array:
    """A column in its storage type: without extensions, dictionaries and views at any level."""
    return column if (type := storage_type(column.type)) == column.type else column.cast(type)


def storage_type(type: pa.DataType) -> pa.DataType:
    """The type that holds the same values without extensions, dictionaries and views."""
    if isinstance(type, pa.BaseExtensionType):
        return storage_type(type.storage_type)
    if pa.types.is_dictionary(type):
        return storage_type(type.value_type)
    if pa.types.is_binary_view(type) or pa.types.is_string_view(type):
        return pa.binary() if pa.types.is_binary_view(type) else pa.string()
    if pa.types.is_struct(type):
        return pa.struct([field.with_type(storage_type(field.type)) for field in type])
    if pa.types.is_map(type):
        return pa.map_(storage_type(type.key_type), storage_type(type.item_type))
    if pa.types.is_list(type) or pa.types.is_list_view(type):
        return pa.list_(type.value_field.with_type(storage_type(type.value_type)))
    if pa.types.is_large_list(type) or pa.types.is_large_list_view(type):
        return pa.large_list(type.value_field.with_type(storage_type(type.value_type)))
    if pa.types.is_fixed_size_list(type):
        value = type.value_field.with_type(storage_type(type.value_type))
        return pa.list_(value, type.list_size)
    return type


def table_type(type: pa.DataType) -> pa.DataType:
    """The nearest type that a Delta table supports."""
    types = pa.types
    type = storage_type(type)
    if types.is_struct(type):
        return pa.struct([(field.name, table_type(field.type)) for field in type])
    if types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type):
        return pa.list_(table_type(type.value_type))
    if types.is_map(type):
        return pa.map_(table_type(type.key_type), table_type(type.item_type))
    if types.is_decimal32(type) or types.is_decimal64(type):
        return pa.decimal128(type.precision, type.scale)
    if types.is_unsigned_integer(type):
        return pa.int64()
    if types.is_float16(type):
        return pa.float32()
    if types.is_large_binary(type) or types.is_fixed_size_binary(type):
        return pa.binary()
    if types.is_timestamp(type):
        return pa.timestamp("us", type.tz and "UTC")
    if types.is_date64(type):
        return pa.date32()
    if types.is_null(type) or types.is_large_string(type) or types.is_time(type):
        return pa.string()
    return type


def is_of_tables(type: pa.DataType) -> bool:
    """Whether a Delta table can have a column of this type."""
    from deltalake import Schema

    try:
        Schema.from_arrow(pa.schema([("column", type)]))
    except Exception:  # which is what delta-rs raises for durations, unions, ...
        return False
    return True


def holds_sound(type: pa.DataType) -> bool:
    """Whether values can be encoded sound, or one of Hugging Face's structs."""
    type = storage_type(type)
    if pa.types.is_struct(type):
        names = {field.name: field.type for field in type}
        return (
            ("bytes" in names and holds_sound(names["bytes"]))
            or {"array", "sampling_rate"} <= names.keys()
            or (
                names.keys() in ({"path"}, {"path", "bytes"})
                and is_text(names["path"])
                and pa.types.is_null(names.get("bytes", pa.null()))  # none in any row
            )
        )
    return pa.types.is_binary(type) or pa.types.is_large_binary(type)


def is_text(type: pa.DataType) -> bool:
    """Whether values are text."""
    type = storage_type(type)
    return pa.types.is_string(type) or pa.types.is_large_string(type)
