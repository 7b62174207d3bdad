"""gem-tiny's tokenizer: byte-level BPE for English prose, identifiers and code.

Words are split at the boundaries of CamelCase and snake_case, digits stand alone so that numbers
and names are copied piece by piece, and a run of spaces is one token. `</s>` ends a text; there is
no token at its beginning.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gem_tiny.prompts import CHAT_TEMPLATE

SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
EOS_ID, PAD_ID = 1, 2
_WORD_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?\p{Lu}*\p{Ll}+"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, context_length: int
) -> PreTrainedTokenizerFast:
    """Train the tokenizer.

    Args:
        texts: The texts to train on.
        vocab_size: Size of the vocabulary.
        context_length: Context length of the model.

    Returns:
        The tokenizer, with the chat template.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
