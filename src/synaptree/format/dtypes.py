"""The kinds of numbers a tensor of a file may hold."""

__all__ = ["DTYPES", "FLOATS", "ITEM_BYTES"]

FLOATS = ("float32", "float16", "bfloat16", "float64")
DTYPES = (*FLOATS, "bool", "uint8", "int8", "int16", "int32", "int64")  # the place in this list is the number in a file
ITEM_BYTES = dict(zip(DTYPES, (4, 2, 2, 8, 1, 1, 1, 2, 4, 8), strict=True))
