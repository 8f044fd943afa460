"""The geometry, tokenizer and generation settings of the `nano` Whisper."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

WINDOW = 5  # seconds
WINDOW_SAMPLES = WINDOW * 16_000
# As in the English-only checkpoints: timestamps, where there are any, follow <|notimestamps|>, so it comes
# last.
SPECIALS = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]


def feature_extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW)


def build_tokenizer(texts: list[str]) -> WhisperTokenizer:
    """Byte-level BPE, so that any text can be written; every word of the corpus becomes one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4_000, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([" " + text for text in texts], trainer)
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return WhisperTokenizer(
        tokenizer_object=bpe,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=SPECIALS[1:],
    )


def build_model(tokenizer: WhisperTokenizer) -> WhisperForConditionalGeneration:

    def token(text: str) -> int:
        id = tokenizer.convert_tokens_to_ids(text)
        assert isinstance(id, int)
        return id

    end, start = token("<|endoftext|>"), token("<|startoftranscript|>")
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=80,
        d_model=256,
        encoder_layers=4,
        encoder_attention_heads=4,
        encoder_ffn_dim=768,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=768,
        max_source_positions=WINDOW * 50,
        max_target_positions=64,
        dropout=0.05,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
        suppress_tokens=[],
        begin_suppress_tokens=[token("Ġ"), end],
    )
    model = WhisperForConditionalGeneration._from_config(config, attn_implementation="eager")
    model.generation_config = GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
        begin_suppress_tokens=[token("Ġ"), end],
        suppress_tokens=[],
        no_timestamps_token_id=token("<|notimestamps|>"),
        prev_sot_token_id=token("<|startofprev|>"),
        is_multilingual=False,
        return_timestamps=False,
        max_length=64,
    )
    return model
