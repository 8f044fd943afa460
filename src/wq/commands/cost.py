"""What quantized models would cost on a device: a roofline estimate of time and bytes moved."""

from itertools import product

from wq.console import run_command

HELP = """usage: wq cost [hardware=NAME,...] [key=value ...]

An estimate, not a measurement: the time of the encoder and of a decoded token if every matrix product ran at
the device's peak rate or its memory's full bandwidth, whichever takes longer, and the bytes moved for an
utterance. A weight-only format runs at the rate of its activations, and what a device has no units for at the
next wider rate that it has. It needs no weights. It takes the settings of a job or a grid: python -m wq.main
--help.

  wq cost model=small format=int4,int8 activation=none,int8_token
  wq cost model=small format=nvfp4 activation=nvfp4 hardware=h100_sxm,b200 tokens=100

  hardware=NAME   {names}; or a file NAME.yaml
                  (all of them)
  tokens=N        of the transcript (half of the decoder's positions)
  seconds=S       of audio, for an engine that does not pad to the window (the whole window)
  csv=FILE        the same table

Bounds name what more of would help: compute or memory. Tbitops are 10^12 multiply-adds times the bits of both
operands. conf/hardware/ has the profiles and their sources,
docs/memory.md the rules."""

COLUMNS = (
    *("encoder_seconds", "encoder_bound", "token_seconds", "decoder_bound"),
    *("utterance_seconds", "moved_bytes", "bit_operations"),
)
HEADER = (
    "model",
    "point",
    "hardware",
    "encoder ms",
    "bound",
    "token ms",
    "bound",
    "utterance ms",
    "moved MB",
    "Tbitops",
)


def main() -> None:
    from wq.study.resources.hardware import hardware_names

    run_command(tell, HELP.format(names=", ".join(hardware_names())))


def tell(arguments: list[str]) -> None:
    from wq.study.resources.cost import estimate
    from wq.study.resources.footprint import workload
    from wq.study.resources.hardware import hardware_names, load_hardware
    from wq.study.resources.points import aligned, compose_points, leave_table, split_settings, table_file

    known = {"hardware": load_hardware, "tokens": int, "seconds": float, "csv": table_file}
    settings, overrides = split_settings(arguments, known)
    devices = settings.get("hardware") or [load_hardware(name) for name in hardware_names()]
    asked = devices, settings.get("tokens", [None]), settings.get("seconds", [None])
    table, rows = [], []
    for point in compose_points(overrides):
        for hardware, tokens, seconds in product(*asked):
            limit = point.spec.max_new_tokens if tokens is None else tokens
            work = workload(point.geometry, tokens=limit, seconds=seconds)
            cost = estimate(point.geometry, point.size, point.spec, work, hardware)
            bounds = cost.encoder.bound, cost.decoder.bound
            times = cost.encoder.seconds, cost.token_seconds, cost.seconds
            encoder, token, utterance = map(milliseconds, times)
            names = (*point.names, hardware.name)
            moved = f"{cost.moved_bytes / 1e6:.1f}"
            bits = f"{cost.bit_operations / 1e12:.2f}"
            table.append((*names, encoder, bounds[0], token, bounds[1], utterance, moved, bits))
            counts = cost.moved_bytes, cost.bit_operations
            rows.append((*names, work.tokens, times[0], bounds[0], times[1], bounds[1], times[2], *counts))
    print(aligned(HEADER, table))
    print("estimated by roofline, not measured")
    leave_table(settings, ("model", "point", "hardware", "tokens", *COLUMNS), rows)


def milliseconds(time: float) -> str:
    return f"{1e3 * time:.3f}" if time >= 1e-4 else f"{1e3 * time:.3g}"
