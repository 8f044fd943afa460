"""An evaluation as a researcher would write it, timed beside a grid: SPLIT LIMIT FORMAT GROUP PART...

Loads the shipped model, quantizes the linear layers of its encoder, its decoder, or both, transcribes in
batches of 32 with `generate`, and scores after Whisper's normaliser. Prints the word error rate, and the
seconds after the imports.
"""

import json
import sys
import time

import jiwer
import soundfile
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from whisper_normalizer.english import EnglishTextNormalizer

import wq
from wq.whisper.checkpoint.files import locate


def main() -> None:
    started = time.perf_counter()
    split, limit, format, group = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    path = locate("wq:nano")
    processor = WhisperProcessor.from_pretrained(path)
    model = WhisperForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    for part in sys.argv[5:]:
        for module in model.get_submodule(f"model.{part}.layers").modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = wq.fake_quantize(module.weight.data, format, group=group)

    data = path.parent / "commands"
    rows = [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]
    rows = rows[: limit or None]
    texts = []
    with torch.inference_mode():
        for first in range(0, len(rows), 32):
            audios = [soundfile.read(data / row["audio_filepath"])[0] for row in rows[first : first + 32]]
            inputs = processor(audios, sampling_rate=16_000, return_tensors="pt")
            ids = model.generate(
                inputs.input_features,
                do_sample=False,
                num_beams=1,
                max_new_tokens=32,
                return_timestamps=False,
            )
            texts += processor.batch_decode(ids, skip_special_tokens=True)

    normalise = EnglishTextNormalizer()
    rate = jiwer.wer([normalise(row["text"]) for row in rows], [normalise(text) for text in texts])
    print(json.dumps({"wer": rate, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
