"""Train the tiny model's tokenizer and write its token files.

Reads only the documents of `tyr.data.stdlib`: the tokenizer and `train.bin` see the train split,
`search.bin` and `evaluation.bin` are held-out modules. Files are flat uint16 token streams, one
`<|endoftext|>` after every document.

    python experiments/train_tiny/prepare.py experiments/train_tiny/tokens
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tyr.data.stdlib import StdlibSplit, stdlib_documents

VOCABULARY_SIZE = 2048
CONTEXT = 512
END_OF_TEXT = "<|endoftext|>"
SPLITS: tuple[StdlibSplit, ...] = ("train", "search", "evaluation")


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the train split; every byte is a token, so any text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stdlib_documents("train"), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def write_split(
    split: StdlibSplit, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> dict[str, int]:
    """Tokenise one split into `<split>.bin`; returns its size in documents, bytes and tokens."""
    documents = list(stdlib_documents(split))
    encoded = tokenizer(
        documents, add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    stream = [token for ids in encoded["input_ids"] for token in (*ids, tokenizer.eos_token_id)]
    np.array(stream, dtype="<u2").tofile(folder / f"{split}.bin")
    num_bytes = sum(len(document.encode()) for document in documents)
    return {"documents": len(documents), "bytes": num_bytes, "tokens": len(stream)}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    facts: dict[str, object] = {split: write_split(split, tokenizer, folder) for split in SPLITS}
    facts["python"] = sys.version.split()[0]
    (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
