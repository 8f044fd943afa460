"""Write what ships with wq: the trained checkpoint and the test set.

    python recipes/nano/package.py WORK [ASSETS]

ASSETS/nano is a Whisper checkpoint that `from_pretrained` loads (float16 on disk); ASSETS/commands holds the
splits clean, other and calibration as Ogg Opus with manifests in JSON lines. ASSETS is src/wq/assets unless
given.
"""

import json
import shutil
import sys
from pathlib import Path

import soundfile
import torch
from model import build_model, build_tokenizer, feature_extractor
from train import Corpus

COUNTS = {"clean": 320, "other": 320, "calibration": 72}


def write_checkpoint(corpus: Corpus, state: dict, directory: Path) -> None:
    tokenizer = build_tokenizer([row["text"] for row in corpus.splits["train"]])
    model = build_model(tokenizer)
    for parameter, value in zip(model.parameters(), state["average"], strict=True):
        parameter.data = value
    model.config.dtype = None
    model.half().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    feature_extractor().save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)


def write_split(corpus: Corpus, split: str, directory: Path) -> None:
    (directory / split).mkdir(parents=True)
    rows = []
    for row in corpus.splits[split][: COUNTS[split]]:
        path = Path(split) / f"{row['id']}.opus"
        audio = corpus.read(row)
        soundfile.write(directory / path, audio, 16_000, format="OGG", subtype="OPUS", compression_level=0.85)
        rows.append(
            {
                "id": row["id"],
                "audio_filepath": str(path),
                "duration": round(len(audio) / 16_000, 3),
                "text": row["text"],
                "voice": row["voice"],
            }
        )
    (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(work: Path, assets: Path) -> None:
    corpus = Corpus(work)
    for name in ("nano", "commands"):
        shutil.rmtree(assets / name, ignore_errors=True)
    write_checkpoint(corpus, torch.load(work / "checkpoint.pt", weights_only=True), assets / "nano")
    for split in COUNTS:
        write_split(corpus, split, assets / "commands")
    for name in ("nano", "commands"):
        shutil.copy(Path(__file__).parent / f"{name}.md", assets / name / "README.md")


if __name__ == "__main__":
    default = Path(__file__).parents[2] / "src" / "wq" / "assets"
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else default)
