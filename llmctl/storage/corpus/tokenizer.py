"""Text <-> token ids: plain bytes, or a Hugging Face `tokenizer.json`.

`bytes` needs nothing but the standard library; the other one the `tokenizers` package. numpy is imported
only by `encode_documents`, which making shards uses: a host that trains may have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from llmctl.errors import ConfigError, IntegrityError
from llmctl.storage.files import Store, open_store
from llmctl.storage.hashing import verify
from llmctl.storage.uris import split
from llmctl.wire.manifests import ShardManifest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BYTES = "bytes"
"""Name of the tokenizer that maps each UTF-8 byte to itself; its end of text is 256."""

EOS_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
)
"""What tokenizer files call the end of a text, most telling first."""


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
        name: `bytes`, or the file that it came from.
        vocab_size: every id is below it.
        eos: id that ends a document.
    """

    name: str
    vocab_size: int
    eos: int

    def encode(self, text: str) -> list[int]:
        """Ids of one text, nothing added."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, nothing added."""

    def encode_documents(
        self, texts: Sequence[str], dtype: str, closed: Sequence[bool]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """All ids in a row as `dtype` (`<u2`, `<u4`), eos after each closed text, and each text's length."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, safe to print: bytes that are no UTF-8 become U+FFFD; eos is left out."""


class ByteTokenizer:
    """257 ids: the 256 bytes of UTF-8, and eos."""

    name = BYTES
    vocab_size = 257
    eos = 256

    def encode(self, text: str) -> list[int]:
        return list(utf8(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(utf8(text)) for text in texts]

    def encode_documents(
        self, texts: Sequence[str], dtype: str, closed: Sequence[bool]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        import numpy as np

        # One conversion for the whole batch: a placeholder byte keeps each eos's place.
        raw = [utf8(text) + b"\0" if end else utf8(text) for text, end in zip(texts, closed, strict=True)]
        lengths = np.fromiter(map(len, raw), dtype=np.int64, count=len(raw))
        ids = np.frombuffer(b"".join(raw), dtype=np.uint8).astype(dtype)
        ids[(np.cumsum(lengths) - 1)[np.asarray(closed, dtype=bool)]] = self.eos
        return ids, lengths

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Exactly the bytes that were encoded."""
        return bytes(token for token in ids if token < self.eos)


class FileTokenizer:
    """A Hugging Face `tokenizer.json`.

    Args:
        name: what to call it in messages.
        document: the file's bytes.
        eos: text or id of the end-of-text token; None: found among the special tokens.
    """

    def __init__(self, name: str, document: bytes, eos: str | int | None = None) -> None:
        self.name = name
        self.document = document
        self._tokenizer = _load(name, document)
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        # Ids may have gaps, so the largest one counts, not their number.
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.eos = _find_eos(name, vocabulary, eos)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        # The fast form leaves out the offsets, which nobody here reads.
        return [
            encoding.ids
            for encoding in self._tokenizer.encode_batch_fast(
                [scrubbed(text) for text in texts], add_special_tokens=False
            )
        ]

    def encode_documents(
        self, texts: Sequence[str], dtype: str, closed: Sequence[bool]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        import numpy as np

        flat: list[int] = []
        lengths = np.empty(len(texts), dtype=np.int64)
        for i, (ids, end) in enumerate(zip(self.encode_batch(texts), closed, strict=True)):
            flat += ids
            if end:
                flat.append(self.eos)
            lengths[i] = len(ids) + end
        return np.array(flat, dtype=dtype), lengths

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode([token for token in ids if token != self.eos])
        return text


def open_tokenizer(name_or_file: str, *, eos: str | int | None = None) -> Tokenizer:
    """The tokenizer `bytes`, or that of a `tokenizer.json` at a path or fsspec URL.

    Raises:
        ConfigError: not a tokenizer, no end-of-text token in it, or `tokenizers` is not installed.
        NotFoundError, TransferError: the file can't be read.
    """
    if name_or_file == BYTES:
        return ByteTokenizer()
    folder, name = split(name_or_file)
    return FileTokenizer(name, open_store(folder).read_bytes(name), eos)


def manifest_tokenizer(store: Store, manifest: ShardManifest) -> Tokenizer:
    """The tokenizer that a corpus (or anything that carries its manifest's entry) was made with.

    Raises:
        IntegrityError: the stored file is not the one that the manifest lists.
    """
    if manifest.tokenizer == BYTES:
        return ByteTokenizer()
    if manifest.tokenizer_file is None:
        raise IntegrityError(f"{store.uri}: the manifest lists no file for tokenizer {manifest.tokenizer}")
    verify(store, manifest.tokenizer_file)
    document = store.read_bytes(manifest.tokenizer_file.path)
    return FileTokenizer(manifest.tokenizer, document, manifest.eos)


def utf8(text: str) -> bytes:
    """UTF-8 of `text`; bytes that were undecodable on reading come back as they were."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return scrubbed(text).encode()


def scrubbed(text: str) -> str:
    """`text` as valid Unicode: surrogate pairs joined, lone surrogates (JSON can carry them) as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _load(name: str, document: bytes) -> Any:
    try:
        from tokenizers import Tokenizer as Backend
    except ImportError:
        raise ConfigError(
            f"{name} needs the `tokenizers` package", hint="pip install tokenizers, or use tokenizer `bytes`"
        ) from None
    try:
        backend = Backend.from_str(document.decode())
    # The binding raises a bare Exception for every document that it can't use.
    except Exception as error:  # noqa: BLE001
        raise ConfigError(f"{name} is not a Hugging Face tokenizer.json: {error}") from None
    # Settings of the file for batches of a model, not for a corpus: they would cut or pad documents.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _find_eos(name: str, vocabulary: dict[str, int], eos: str | int | None) -> int:
    if isinstance(eos, int):
        return eos
    for candidate in (eos,) if eos is not None else EOS_NAMES:
        if candidate in vocabulary:
            return vocabulary[candidate]
    what = f"no token {eos!r}" if eos is not None else "no known end-of-text token"
    raise ConfigError(f"{name} has {what}", hint="name the token that ends a document: --eos TOKEN")
