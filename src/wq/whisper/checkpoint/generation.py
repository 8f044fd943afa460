"""What a checkpoint says about decoding: completed, held against its tokenizer; what is not followed."""

from pathlib import Path
from typing import Any

from wq.whisper.checkpoint.files import ModelError, prompt_length
from wq.whisper.checkpoint.languages import LANGUAGES

# Entries of a generation config that greedy decoding follows
HEEDED = {
    *("decoder_start_token_id", "eos_token_id", "no_timestamps_token_id", "is_multilingual"),
    *("lang_to_id", "task_to_id", "suppress_tokens", "begin_suppress_tokens"),
}
# And those that change no token of it: of sampling and beams (do_sample and num_beams are told themselves),
# of drafts, which are only accepted where they are right, of memory, and of what is returned besides
IRRELEVANT = {
    *("pad_token_id", "bos_token_id", "transformers_version", "_from_model_config"),
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("renormalize_logits", "remove_invalid_values", "early_stopping", "length_penalty", "low_memory"),
    *("num_return_sequences", "num_beam_groups", "diversity_penalty", "constraints", "force_words_ids"),
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_ensemble_weight"),
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "speculation_type", "use_mtp"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size"),
    *("compile_config", "disable_compile", "continuous_batching_config", "return_dict_in_generate"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
}
# Whisper's own, with what changes nothing; and the limit, which has no default of its own there
WHISPERS = {
    "max_length": None,
    "return_timestamps": False,
    "task": "transcribe",
    "no_speech_threshold": None,
    "logprob_threshold": None,
    "compression_ratio_threshold": None,
}


def complete(directory: Path, model: Any, tokenizer: Any, multilingual: bool) -> None:
    """Add what `generate` needs and a bare checkpoint lacks; drop forced tokens, the prompt's old form.

    Raises ModelError where <|notimestamps|> is unknown.
    """
    from transformers.models.whisper.tokenization_whisper import TASK_IDS

    settings: Any = model.generation_config
    for name in ("decoder_start_token_id", "eos_token_id", "bos_token_id", "pad_token_id"):
        if getattr(settings, name, None) is None:
            setattr(settings, name, getattr(model.config, name))
    settings.is_multilingual = multilingual
    # Checkpoints fine-tuned with early releases of transformers name no languages
    known = tokenizer.get_added_vocab()
    if multilingual and not getattr(settings, "lang_to_id", None):
        settings.lang_to_id = {
            token: id for token, id in known.items() if token[2:-2] in LANGUAGES and token.startswith("<|")
        }
    if multilingual and not getattr(settings, "task_to_id", None):
        settings.task_to_id = {task: known[f"<|{task}|>"] for task in TASK_IDS if f"<|{task}|>" in known}
    if getattr(settings, "no_timestamps_token_id", None) is None:
        if "<|notimestamps|>" not in known:
            raise ModelError(
                f"{directory}: neither generation_config.json (no_timestamps_token_id) nor the tokenizer "
                "knows <|notimestamps|>; copy the generation_config.json that belongs to this checkpoint"
            )
        settings.no_timestamps_token_id = known["<|notimestamps|>"]
    settings.forced_decoder_ids = None
    model.config.forced_decoder_ids = None


def ends_of(settings: Any) -> tuple[int, ...]:
    """The tokens that end a text: a generation config names one, or a list."""
    ends = settings.eos_token_id
    return tuple(ends) if isinstance(ends, list | tuple) else (ends,)


def check_tokens(directory: Path, model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that is another model's: whose tokens the decoder has not, or knows by other ids.

    Raises ModelError.
    """
    settings, size = model.generation_config, model.config.vocab_size
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    most = max(vocabulary.values()) + 1
    if most > size:
        raise ModelError(
            f"{directory}: the tokenizer has {most} tokens, the decoder {size}; copy the tokenizer that "
            "belongs to this checkpoint, or resize its embeddings before it is saved"
        )
    named = {id: token for token, id in vocabulary.items()}
    ends, end = ends_of(settings), vocabulary.get("<|endoftext|>")
    meant = [
        ("<|startoftranscript|>", "decoder_start_token_id", settings.decoder_start_token_id),
        ("<|endoftext|>", "eos_token_id", end if end in ends else ends[0] if ends else None),
        ("<|notimestamps|>", "no_timestamps_token_id", settings.no_timestamps_token_id),
    ]
    if settings.is_multilingual:
        meant += [(token, "lang_to_id", id) for token, id in settings.lang_to_id.items()]
        meant += [(f"<|{task}|>", "task_to_id", id) for task, id in settings.task_to_id.items()]
    for token, entry, id in meant:
        known = vocabulary.get(token)
        if id is None or id >= size:
            raise ModelError(
                f"{directory}: {entry} gives {token} the id {id}, and the decoder has {size} tokens; "
                "copy the generation_config.json that belongs to this checkpoint"
            )
        if known != id and (known is not None or id in named):
            instead = f"token {known}" if known is not None else "no token"
            raise ModelError(
                f"{directory}: {token} is {instead} of the tokenizer and token {id} of the decoder "
                f"({entry}), which the tokenizer has as {named.get(id)}; copy the tokenizer and the "
                "generation_config.json that belong to this checkpoint"
            )


def unheeded(model: Any) -> list[str]:
    """The entries of a generation config that change what greedy decoding writes, and that wq does not heed.
    Any entry that transformers knows and that is not known to change nothing is told."""
    from transformers import GenerationConfig

    settings: dict[str, Any] = model.generation_config.to_dict()
    # What an entry is where it is None, which to_dict has as its default
    defaults = GenerationConfig().to_dict() | GenerationConfig._get_default_generation_params() | WHISPERS
    positions = model.config.max_target_positions
    enough = {  # the limit is wq's own (`decode.token_limit`), unless theirs comes first
        "max_new_tokens": positions // 2,
        "max_length": positions // 2 + prompt_length(settings["is_multilingual"]),
    }
    return [
        f"{name}={settings[name]}"
        for name, default in defaults.items()
        if name not in HEEDED | IRRELEVANT
        and settings.get(name) not in (None, default)
        and not (name in enough and settings[name] >= enough[name])
    ]
