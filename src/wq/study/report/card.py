"""The model card of an exported checkpoint: what it is, how well it recognises, how it is loaded."""

import json
from collections.abc import Mapping
from typing import Any

from wq.study.spec.names import activation_name, weight_name
from wq.study.spec.spec import Spec
from wq.study.store.results import Row

LOADING = {
    "compressed-tensors": """\
With compressed-tensors installed, transformers loads it as any checkpoint, on CPUs too:

```python
from transformers import WhisperForConditionalGeneration
model = WhisperForConditionalGeneration.from_pretrained("{directory}")
model.hf_quantizer.compressor.decompress_model(model)  # before `generate`, which runs the encoder by itself
```

vLLM reads the same files where it has kernels for the format. wq's docs/export.md says how exact the reloaded
values are.""",
    "wq": """\
The weights are in wq's own layout, which its loader dequantizes to the exact values:

```python
from pathlib import Path
from wq.whisper.checkpoint import packed
model = packed.load(Path("{directory}"))
```

`python -m wq.main model.path={directory} format=fp32` transcribes with it. wq's docs/export.md describes the
file.""",
}


def model_card(
    spec: Spec,
    source: str,
    layout: str,
    directory: str,
    facts: Mapping[str, str],
    row: Row | None,
    measured_by: str,
) -> str:
    """Markdown with Hugging Face's front matter.

    source        where the original checkpoint is from
    facts         more to tell of the checkpoint, by name
    row           a finished run of this spec; None where there is none
    measured_by   the command whose run that is, or would be
    """
    treatment = spec.treatment
    table = {
        "original": f"{source}, SHA-256 {spec.model.content_hash[:16]}",
        "weights": _assigned({weight_name(each): roles for each, roles in treatment.plan}),
        "activations": _assigned({activation_name(each): roles for each, roles in treatment.activations}),
        "keys and values": spec.kv_cache_name,
        "algorithm": spec.algorithm_name,
        "SmoothQuant": spec.smoothquant_name,
        "layout": layout,
        **facts,
    }
    is_on_the_hub = source.count("/") == 1 and not source.startswith((".", "/", "~", "wq:"))
    front = ["library_name: transformers", "pipeline_tag: automatic-speech-recognition"]
    front += [f"base_model: {source}"] if is_on_the_hub else []
    return "\n".join(
        (
            "---",
            *front,
            "---",
            f"# {spec.model.name} {spec.point}",
            "",
            "A Whisper checkpoint, quantized by wq.",
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {name} | {value} |" for name, value in table.items()),
            "",
            "## Word error rate",
            "",
            word_error_rate(spec, row, measured_by),
            "",
            "## Loading",
            "",
            LOADING[layout].format(directory=directory),
            "",
            "## Specification",
            "",
            "```json",
            json.dumps(described(spec), indent=2),
            "```",
            "",
        )
    )


def word_error_rate(spec: Spec, row: Row | None, measured_by: str) -> str:
    """What a finished run has measured, or what would measure it."""
    if row is None:
        return f"Not measured. `{measured_by}` measures it."
    low, high = row["wer_ci_low"], row["wer_ci_high"]
    text = (
        f"{row['wer']:.2%} on {row['utterances']} utterances of {spec.dataset.name}, split {spec.split}; "
        f"95 % bootstrap interval [{low:.2%}, {high:.2%}]."
    )
    if row.get("wer_delta") is not None:
        change, low, high = (100 * row[f"wer_delta{end}"] for end in ("", "_ci_low", "_ci_high"))
        text += f" The change from the original at fp32: {change:+.2f} points, [{low:+.2f}, {high:+.2f}]."
    return (
        f"{text}\n\nMeasured with `{measured_by}`: the values of these weights, computed with in float32. "
        "An engine's arithmetic adds rounding of its own."
    )


def described(spec: Spec) -> Row:
    """The spec as JSON, without settings that are not there."""
    return {"point": spec.point, "fingerprint": spec.fingerprint} | _present(spec.settings)


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _present(each) for name, each in value.items() if each not in (None, (), "none")}
    return [_present(each) for each in value] if isinstance(value, list | tuple) else value


def _assigned(roles_by_name: Mapping[str, tuple[str, ...]]) -> str:
    return "; ".join(f"{name} in {', '.join(roles)}" for name, roles in roles_by_name.items()) or "none"
