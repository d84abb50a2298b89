"""The parquet files of these tests, as pyarrow writes them: python3 make.py (pyarrow 26)."""

import pyarrow
import pyarrow.parquet

QUESTIONS = [f"Question {i}, ünïcode?" for i in range(5)]
ANSWERS = ["A", "B", None, "D", "E"]


def pairs(compression):
    table = pyarrow.table({"question": QUESTIONS, "answer": ANSWERS, "level": pyarrow.array(range(5), "int8")})
    name = f"pairs-{(compression or 'none').lower()}.parquet"
    pyarrow.parquet.write_table(table, name, compression=compression or "NONE", row_group_size=2)


for compression in [None, "SNAPPY", "GZIP", "BROTLI", "LZ4", "ZSTD"]:
    pairs(compression)

conversations = [
    [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
    [{"role": "user", "content": "R"}, {"role": "assistant", "content": "B"}],
    [],
]
table = pyarrow.table({"id": ["x", "y", "z"], "messages": conversations})
pyarrow.parquet.write_table(table, "messages.parquet", compression="ZSTD")
