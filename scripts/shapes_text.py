"""What the built-in models read their captions with: one token a word, and a small T5."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

T5_SIZES = {
    "d_model": 96,
    "d_kv": 32,
    "d_ff": 192,
    "num_layers": 2,
    "num_heads": 3,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
}


def words_of(captions: list[str]) -> list[str]:
    """Every word of the captions, sorted."""
    return sorted({word for caption in captions for word in caption.split()})


def build_t5_tokenizer(words: list[str], length: int) -> PreTrainedTokenizerFast:
    """One token a word, lower case, punctuation dropped."""
    specials = ("<pad>", "</s>", "<unk>")
    vocab = {token: i for i, token in enumerate([*specials, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("grey", "gray")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )
