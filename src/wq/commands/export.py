"""Write one quantized model as a packed checkpoint."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wq.console import refuse_passwords, run_command

if TYPE_CHECKING:
    from wq.study.job.job import Job
    from wq.study.spec.spec import Spec
    from wq.study.store.results import Row

HELP = """usage: wq export out=DIR [key=value ...]

Writes the weights of one point, packed to the bits that its size counts, with tokenizer, preprocessor and a
model card. It takes the settings of a job (see python -m wq.main --help).

  wq export format=int4 group=32 out=DIR    in compressed-tensors' layout, for transformers and vLLM
  wq export format=nf4 out=DIR              in wq's own: other engines have no place for it
  layout=compressed-tensors, wq             that layout, or an error (auto: the first where it fits)
  rest=fp32                                 what is not quantized, instead of at fp16 as the size counts it
  overwrite=true                            in place of an earlier export
  result=FILE                               the result.json that the card's WER is from, instead of the store

share_tensor_scale=true is for nvfp4 on engines that multiply q, k and v by one matrix, as vLLM does."""


def main() -> None:
    run_command(export, HELP)


def export(arguments: list[str]) -> None:
    from wq.outputs import refuse_inside
    from wq.study.job.job import prepare
    from wq.study.resources.points import split_settings
    from wq.study.spec.composition import compose
    from wq.study.spec.config import ConfigurationError
    from wq.study.spec.resolution import tell_ignored
    from wq.whisper.export.target import LAYOUTS, RESTS, check_target

    refuse_passwords(arguments)
    names = ("out", "layout", "rest", "overwrite", "result")
    given, overrides = split_settings(arguments, dict.fromkeys(names, str))
    settings: dict[str, Any] = {name: ",".join(values) for name, values in given.items()}
    overwrite = settings.pop("overwrite", "false")
    if overwrite not in ("true", "false"):
        raise ConfigurationError(f"overwrite={overwrite} is neither true nor false; give one of them")
    for name, choices in (("layout", LAYOUTS), ("rest", RESTS)):
        if settings.get(name, choices[0]) not in choices:
            raise ConfigurationError(
                f"{name}={settings[name]} is unknown; choose one of {', '.join(choices)}"
            )
    if "out" not in settings:
        raise ConfigurationError("out is missing; give out=DIR, the checkpoint's new directory")
    configs = compose(overrides)
    if len(configs) > 1:
        raise ConfigurationError(
            f"these settings make {len(configs)} points, and wq export writes one; give one value for each"
        )
    out = Path(settings.pop("out"))
    check_target(out, overwrite == "true")
    config = configs[0]
    refuse_inside(out, "out", config.sources)
    job = prepare(config, overrides, looks_only=True)
    tell_ignored(job.spec)
    write(job, out, overwrite=overwrite == "true", **settings)


def write(
    job: "Job",
    out: Path,
    *,
    layout: str = "auto",
    rest: str = "fp16",
    overwrite: bool = False,
    result: str | None = None,
) -> None:
    from wq.study.job.calibration import Statistics
    from wq.study.job.job import load_once
    from wq.study.report import card
    from wq.study.spec.config import ConfigurationError
    from wq.whisper.export import export
    from wq.whisper.layers.schemes import by_role
    from wq.whisper.methods.sequence import treated

    spec, config = job.spec, job.config
    if spec.treatment.smoothing and spec.treatment.smoothing.fc2:
        raise ConfigurationError(
            "smoothquant.fc2=true divides the input of fc2 at run time, which no layout has a place for; "
            "export without it"
        )
    assigned = (*spec.treatment.plan, *spec.treatment.activations)
    if any(":" in role for each in assigned for role in each.roles):
        raise ConfigurationError(
            "layers of single blocks (roles with a colon) have no place in a layout; export whole roles"
        )
    row = told_row(spec, Path(result)) if result else stored_row(job)
    whisper = load_once(job.checkpoint, config.device)
    statistics = Statistics(whisper, spec, job.calibration, config.batch_size)
    with treated(whisper, spec.treatment, statistics, codes_only=True) as state:
        contents = export.assemble(
            whisper,
            [(layer, state.codes[layer.name]) for layer, _ in state.plan],
            by_role(spec.treatment.activations),
            layout=layout,
            ranges=state.ranges,
            rest=rest,
            spec=card.described(spec),
        )
    facts = {
        "quantized weights": f"{contents.weight_bytes:,} bytes with their scales",
        "the layout's own": f"{contents.extra_bytes:,} bytes of shapes and padding",
        f"the rest, {rest}": f"{contents.rest_bytes:,} bytes, {contents.rounded:,} values rounded",
    }
    text = card.model_card(spec, config.model.path, contents.layout, out.name, facts, row, job.command)
    export.write(out, whisper, contents, text, overwrite)
    total = contents.weight_bytes + contents.extra_bytes + contents.rest_bytes
    print(f"{out}  {spec.model.name} {spec.point}  layout={contents.layout}  {total / 1e6:.2f} MB")
    print("".join(f"  {name}: {value}\n" for name, value in facts.items()), end="")
    print(f"  WER: {card.word_error_rate(spec, row, job.command).splitlines()[0]}")
    for notice in notices(spec, contents):
        print(f"{spec.point}: {notice}", file=sys.stderr)


def notices(spec: "Spec", contents: Any) -> list[str]:
    """What a user of the checkpoint should know."""
    found = []
    if spec.treatment.kv_cache:
        found.append(f"kv_cache={spec.kv_cache_name} is for the engine to do; the files hold weights")
    if spec.window is not None:
        found.append(f"window={spec.window} is for the engine to do; the files hold the whole model")
    if spec.treatment.activations and contents.layout == "wq":
        found.append(f"activation={spec.activation_name} is told in the file, and for its reader to do")
    if contents.rounded:
        found.append(
            f"{contents.rounded} values that are not quantized were rounded to fp16; rest=fp32 keeps them"
        )
    two_level = any(each.quantizer.format.has_tensor_scale for each in spec.treatment.plan)
    if contents.layout == "compressed-tensors" and two_level and not spec.treatment.share_tensor_scale:
        found.append("vLLM joins the tensor scales of q, k and v; share_tensor_scale=true makes them one")
    return found


def stored_row(job: "Job") -> "Row | None":
    """The store's finished run of this point. It only looks: where there is no store, there is no run."""
    from wq.study.store.reachability import StoreError
    from wq.study.store.tracking import finished

    try:
        runs = job.store.runs(finished(job.spec.fingerprint))
        return job.store.read_result(runs[0]) if runs else None
    except (StoreError, OSError):
        return None


def told_row(spec: "Spec", path: Path) -> "Row":
    """The row of a result.json. Raises ConfigurationError where it is another point's."""
    from wq.study.spec.config import ConfigurationError
    from wq.study.store.results import read_row

    try:
        row = read_row(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"result={path} cannot be read ({error}); give a result.json") from error
    if row.get("fingerprint") != spec.fingerprint:
        raise ConfigurationError(
            f"result={path} is of point {row.get('point')} ({row.get('fingerprint')}), not of {spec.point} "
            f"({spec.fingerprint}); give this point's result.json"
        )
    return row
