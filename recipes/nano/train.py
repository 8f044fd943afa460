"""Train the `nano` Whisper from scratch on the synthesised corpus.

    python recipes/nano/train.py WORK            # starts, or resumes from WORK/checkpoint.pt

A small attention model learns the grammar of a small corpus long before it listens. Four things make it
listen: a character CTC head on the encoder (dropped afterwards), random word strings beside the sentences,
short utterances first, and a guided cross-attention loss that favours, for each token, the stretch of audio
where its letters should lie. Utterances are cut to the longest of their batch for speed; a tenth of the
batches, and all of the last fifth, fill the whole window, as the model is used. Watch the word error rates it
prints, not the losses.
"""

import argparse
import json
import math
import time
from pathlib import Path

import jiwer
import numpy as np
import torch
from model import WINDOW_SAMPLES, build_model, build_tokenizer, feature_extractor
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

LETTERS = " abcdefghijklmnopqrstuvwxyz"  # CTC classes 1..27; 0 is the blank
HOP = 160


class Corpus:
    """The int16 audio on disk, mapped, with its manifest."""

    def __init__(self, work: Path) -> None:
        self.audio = np.memmap(work / "audio.i16", dtype=np.int16, mode="r")
        rows = [json.loads(line) for line in (work / "corpus.jsonl").read_text().splitlines()]
        self.splits: dict[str, list[dict]] = {}
        for row in rows:
            self.splits.setdefault(row["split"], []).append(row)

    def read(self, row: dict) -> np.ndarray:
        return self.audio[row["offset"] : row["offset"] + row["length"]].astype(np.float32) / 32768


def augment(audio: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Speed and pitch by up to 12 %, level by 14 dB, coloured noise at 5 to 40 dB."""
    if rng.random() < 0.6 * strength:
        factor = rng.uniform(0.88, 1.14)
        audio = np.interp(np.arange(0, len(audio) - 1, factor), np.arange(len(audio)), audio)
    audio = audio * 10 ** (-rng.uniform(0, 14) * strength / 20)
    if rng.random() < 0.5 * strength:
        spectrum = np.fft.rfft(rng.standard_normal(len(audio)))
        spectrum[1:] /= np.arange(1, len(spectrum)) ** rng.uniform(0, 0.8)
        noise = np.fft.irfft(spectrum, len(audio))
        ratio = 10 ** (rng.uniform(5, 40) / 20)
        audio = audio + noise * (np.sqrt((audio**2).mean() / (noise**2).mean()) / ratio)
    return audio[:WINDOW_SAMPLES].astype(np.float32)


class LogMel:
    """The processor's log-mel features for a padded batch, [B, samples] -> [B, 80, frames]."""

    def __init__(self) -> None:
        self.filters = torch.tensor(feature_extractor().mel_filters, dtype=torch.float32).T
        self.window = torch.hann_window(400)

    def __call__(self, audio: Tensor) -> Tensor:
        power = torch.stft(audio, 400, HOP, window=self.window, return_complex=True)[..., :-1].abs() ** 2
        log = torch.clamp(self.filters @ power, min=1e-10).log10()
        log = torch.maximum(log, log.amax((1, 2), keepdim=True) - 8.0)
        return (log + 4.0) / 4.0


def mask(features: Tensor, rng: np.random.Generator) -> Tensor:
    """SpecAugment (Park et al. 2019), lightly: two bands and two stretches per utterance."""
    for row in features:
        for _ in range(2):
            width, start = rng.integers(0, 9), rng.integers(0, 71)
            row[start : start + width] = row.mean()
            width, start = rng.integers(0, 11), rng.integers(0, max(row.shape[1] - 10, 1))
            row[:, start : start + width] = row.mean()
    return features


def encode(model, features: Tensor) -> Tensor:
    """The Whisper encoder on a window of any length, [B, 80, 2T] -> [B, T, d]."""
    encoder = model.model.encoder
    hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(features)))).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    for layer in encoder.layers:
        output = layer(hidden, None)
        hidden = output[0] if isinstance(output, tuple) else output
    return encoder.layer_norm(hidden)


def guided_loss(attentions: tuple[Tensor, ...], centres: Tensor, valid: Tensor, width: float) -> Tensor:
    """-log of the attention mass near each token's expected place, half of the heads of every layer.

    attentions: per layer [B, H, L, T]; centres: [B, L] in frames; valid: [B, L]; width: frames.
    """
    frames = torch.arange(attentions[0].shape[-1])
    near = torch.exp(-((frames - centres[..., None]) ** 2) / (2 * width**2))
    losses = []
    for weights in attentions:
        half = weights[:, : weights.shape[1] // 2].float()
        mass = (half * near[:, None]).sum(-1).clamp_min(1e-4)
        losses.append(-(mass.log() * valid[:, None]).sum() / (valid.sum() * half.shape[1]))
    return torch.stack(losses).mean()


class Batches:
    """Endless batches of similar length: (features, letters, decoder tokens, token centres in frames)."""

    def __init__(self, corpus: Corpus, tokenizer, size: int, seed: int) -> None:
        self.corpus, self.tokenizer, self.size = corpus, tokenizer, size
        self.rng = np.random.default_rng(seed)
        self.rows = sorted(corpus.splits["train"], key=lambda row: row["length"])
        self.mel = LogMel()

    def make(self, seen: int, progress: float):
        rng, longest = self.rng, len(self.rows)
        if seen < 15_000:  # short utterances first
            longest = int(longest * (0.25 + 0.75 * seen / 15_000))
        start = int(rng.integers(0, longest - self.size * 4))
        rows = [self.rows[i] for i in rng.choice(np.arange(start, start + self.size * 4), self.size, False)]
        strength = min(1.0, max(0.0, (seen - 8_000) / 40_000))
        audios = [augment(self.corpus.read(row), rng, strength) for row in rows]
        full = progress > 0.8 or rng.random() < 0.1
        length = max(len(audio) for audio in audios) + int(rng.integers(800, 8000))
        length = WINDOW_SAMPLES if full else min(-(-length // (2 * HOP)) * 2 * HOP, WINDOW_SAMPLES)
        padded = np.zeros((len(audios), length), np.float32)
        for row, audio in zip(padded, audios, strict=True):
            row[: len(audio)] = audio
        features = self.mel(torch.from_numpy(padded))
        if seen > 24_000:
            features = mask(features, rng)
        letters, tokens, centres = [], [], []
        for row, audio in zip(rows, audios, strict=True):
            text = row["text"]
            letters.append(torch.tensor([LETTERS.index(c) + 1 for c in text]))
            coded = self.tokenizer.backend_tokenizer.encode(" " + text, add_special_tokens=False)
            tokens.append(torch.tensor(coded.ids))
            margin, span = 0.12 * 50, len(audio) / (2 * HOP) - 0.24 * 50
            middle = [(a + b) / 2 / (len(text) + 1) for a, b in coded.offsets] + [1.0]
            centres.append(margin + span * torch.tensor(middle))
        return features, letters, tokens, centres


@torch.no_grad()
def evaluate(model, corpus: Corpus, tokenizer, split: str, count: int = 96) -> float:
    """Word error rate of greedy decoding on the first utterances of a split, whole windows."""
    model.eval()
    step = max(len(corpus.splits[split]) // count, 1)
    rows, hypotheses, mel = corpus.splits[split][::step][:count], [], LogMel()
    for first in range(0, len(rows), 32):
        batch = np.zeros((len(rows[first : first + 32]), WINDOW_SAMPLES), np.float32)
        for line, row in zip(batch, rows[first : first + 32], strict=True):
            line[: row["length"]] = corpus.read(row)
        ids = model.generate(mel(torch.from_numpy(batch)), do_sample=False, num_beams=1, max_new_tokens=24)
        hypotheses += tokenizer.batch_decode(ids, skip_special_tokens=True)
    model.train()
    if split == "clean":
        print("   ", rows[0]["text"], "|", hypotheses[0].strip(), flush=True)
    return jiwer.wer([row["text"] for row in rows], [h.strip() or "-" for h in hypotheses])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the nano Whisper from scratch.")
    parser.add_argument("work", type=Path)
    parser.add_argument("--presentations", type=int, default=80_000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument(
        "--stop", type=int, default=10**9, help="leave after so many presentations (to time a step)"
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    corpus = Corpus(args.work)
    tokenizer = build_tokenizer([row["text"] for row in corpus.splits["train"]])
    model = build_model(tokenizer).train()
    head = torch.nn.Linear(model.config.d_model, len(LETTERS) + 1)
    parameters = [p for p in [*model.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01)
    average = [p.detach().clone() for p in model.parameters()]
    seen, checkpoint = 0, args.work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        average, seen = state["average"], state["seen"]
    batches = Batches(corpus, tokenizer, args.batch, seed=seen)
    start, done, logged, totals = time.time(), 0, seen, np.zeros(3)
    config = model.config
    prompt = torch.tensor(
        [config.decoder_start_token_id, tokenizer.convert_tokens_to_ids("<|notimestamps|>")]
    )
    end = torch.tensor([config.eos_token_id])

    def save() -> None:
        state = {"model": model.state_dict(), "head": head.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state | {"average": average, "seen": seen}, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)

    while seen < args.presentations and done < args.stop:
        progress = seen / args.presentations
        rate = args.rate * min(1.0, (seen + 1) / 12_000, max(0.02, (1 - progress) / 0.35))
        for group in optimizer.param_groups:
            group["lr"] = rate
        features, letters, tokens, centres = batches.make(seen, progress)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = encode(model, features)
            frames = torch.full((len(letters),), hidden.shape[1])
            sizes = torch.tensor([len(line) for line in letters])
            inputs = pad_sequence([torch.cat([prompt, t]) for t in tokens], True)
            labels = pad_sequence([torch.cat([torch.tensor([-100]), t, end]) for t in tokens], True, -100)
            decoded = model.model.decoder(
                input_ids=inputs, encoder_hidden_states=hidden, use_cache=False, output_attentions=True
            )
            logits = model.proj_out(decoded.last_hidden_state).float()
        ctc = F.ctc_loss(
            head(hidden.float()).log_softmax(-1).transpose(0, 1),
            torch.cat(letters),
            frames,
            sizes,
            zero_infinity=True,
        )
        entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.05)
        places = pad_sequence([torch.cat([c.new_zeros(1), c]) for c in centres], True)
        guided = guided_loss(decoded.cross_attentions, places, (labels >= 0).float(), width=10.0)
        ctc_weight = 1.0 if seen < 36_000 else 0.5
        guide_weight = 0.5 if seen < 30_000 else 0.05
        loss = ctc_weight * ctc + min(1.0, 0.2 + seen / 30_000) * entropy + guide_weight * guided
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        seen, done = seen + len(letters), done + len(letters)
        decay = min(0.9995, (1 + seen) / (3_000 + seen))
        for value, parameter in zip(average, model.parameters(), strict=True):
            value.lerp_(parameter.detach(), 1 - decay)
        totals += np.array([ctc.item(), entropy.item(), guided.item()]) * len(letters)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss is {loss.item()} after {seen} presentations")
        if seen // 2_400 > (seen - len(letters)) // 2_400:
            means = totals / (seen - logged)
            logged, totals = seen, np.zeros(3)
            speed = done / (time.time() - start)
            print(
                f"{seen:7d} ctc {means[0]:.3f} ce {means[1]:.3f} guide {means[2]:.3f} {speed:.1f}/s",
                flush=True,
            )
        if seen // 12_000 > (seen - len(letters)) // 12_000 or seen >= args.presentations:
            save()
            current = [p.data for p in model.parameters()]
            for parameter, value in zip(model.parameters(), average, strict=True):
                parameter.data = value
            rates = {split: evaluate(model, corpus, tokenizer, split) for split in ("clean", "other")}
            for parameter, value in zip(model.parameters(), current, strict=True):
                parameter.data = value
            print(f"{seen:7d} WER clean {rates['clean']:.3f} other {rates['other']:.3f}", flush=True)


if __name__ == "__main__":
    main()
