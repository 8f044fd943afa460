"""The console script `wq`, the same as `python -m wq`: one subcommand for every file in `wq.commands`."""

import importlib
import sys
from pathlib import Path

USAGE = """wq measures what quantization does to Whisper speech recognition.

usage: wq COMMAND [key=value ...]

{commands}

`wq run` is `python -m wq.main`: one job, or with -m a grid. `wq COMMAND --help` says more,
and `wq --version` which this is."""


def commands() -> dict[str, str]:
    """Every subcommand and the first line of its module's docstring."""
    folder = Path(__file__).parent / "commands"
    names = sorted(path.stem for path in folder.glob("[a-z]*.py"))
    return {name: (load(name).__doc__ or "").splitlines()[0] for name in names}


def load(name: str):
    return importlib.import_module(f"wq.commands.{name}")


def main() -> None:
    from wq.console import did_you_mean, run_command, tell_version

    known = commands()
    width = max(map(len, known)) + 2
    lines = (f"  {name:<{width}}{summary}" for name, summary in known.items())
    usage = USAGE.format(commands="\n".join(lines))
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        run_command(lambda _: print(usage), usage)
        return
    if name == "--version":
        tell_version()
        return
    if name not in known:
        print(
            f"error: wq {name} is no command; {did_you_mean(name, known)}choose one of {', '.join(known)}",
            file=sys.stderr,
        )
        sys.exit(1)
    sys.argv = [f"wq {name}", *rest]
    load(name).main()


if __name__ == "__main__":
    main()
