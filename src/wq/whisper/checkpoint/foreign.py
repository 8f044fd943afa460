"""Whisper models in forms that wq does not read: told by their files' names, with the way to one it does."""

from collections.abc import Iterable
from fnmatch import fnmatch

ORIGINAL = "give the checkpoint that it was made from, in transformers' format"

QUANTIZED = ("quantize_config.json", "quant_config.json")

# Names of files, what these are, and the remedy. The first that matches tells, so that names which may stand
# beside others come later
FORMS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("adapter_config.json", "adapter_model.*"),
        "an adapter's (LoRA), which is no whole model",
        "merge it into its base model with peft's `merge_and_unload`, and save that with `save_pretrained`",
    ),
    (QUANTIZED, "a quantized model's (GPTQ, AWQ)", ORIGINAL),
    (("weights.npz", "weights.safetensors"), "MLX's", ORIGINAL),
    (("*.gguf", "ggml*.bin"), "whisper.cpp's (ggml)", ORIGINAL),
    (("openvino_*",), "OpenVINO's", ORIGINAL),
    (("*.mlmodelc", "*.mlpackage", "*.mlmodel"), "Core ML's (WhisperKit)", ORIGINAL),
    (("*.engine", "*.plan"), "TensorRT's", ORIGINAL),
    (("*.nemo",), "NeMo's", ORIGINAL),
    (
        ("*.safetensors",),
        "safetensors by another name",
        "rename it to model.safetensors, or save the model anew with `save_pretrained`, if it is in parts",
    ),
    (
        ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"),
        "a pickle, and wq loads no pickles",
        "convert the checkpoint with `save_pretrained`, which writes safetensors",
    ),
    (("*.onnx", "*.ort"), "ONNX's", ORIGINAL),
    (("*.tflite",), "TensorFlow Lite's", ORIGINAL),
    (
        ("flax_model*.msgpack", "tf_model*.h5"),
        "Flax's or TensorFlow's",
        "load it with transformers 4 (`from_flax=True`, `from_tf=True`) and save that with `save_pretrained`",
    ),
    (("model.bin",), "CTranslate2's (faster-whisper)", ORIGINAL),
)


def describe(names: Iterable[str]) -> str | None:
    """What the files of these names are, and what to do; None where none of them is of a known form."""
    names = sorted(names)
    for patterns, what, remedy in FORMS:
        found = next((name for name in names if any(fnmatch(name, each) for each in patterns)), None)
        if found:
            return f"{found} is {what}: {remedy}"
    return None
