"""The only code that touches bulk bytes: stores (disk, memory, any fsspec URL) and the token corpus.

Runs on both sides. Reading a corpus needs the standard library alone where it lies on a local disk, and
fsspec for a URL; numpy, tokenizers, zstandard and pyarrow are imported only by what makes a corpus.
"""
