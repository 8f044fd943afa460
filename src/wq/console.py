"""What a command says to whoever runs it: errors in one line, exit codes, and what a signal to stop does."""

import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches

FULL_ERROR = "HYDRA_FULL_ERROR"


@dataclass
class Ending:
    """What decides how this process ends: the errors that it has reported, and the signals to stop that have
    come, in their order."""

    errors: list[Exception] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)

    @property
    def code(self) -> int:
        """The exit code of a process that was not interrupted."""
        return 1 if self.errors else 0


ending = Ending()


@contextmanager
def report_errors(keep: Callable[[Exception], object] | None = None) -> Iterator[None]:
    """Say an error in one line, and go on: the other jobs of a grid must run, and the end of the process
    tells of it. Hydra would print it over several lines, and drop what follows a grid.

    keep   what else is done with the error, such as leaving it in the job's directory
    """
    try:
        yield
        say()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and keep is None:
            say()
            return
        ending.errors.append(error)
        print(f"error: {one_line(error)}", file=sys.stderr)
        if keep:
            keep(error)


def say(*texts: str) -> None:
    """Print at once. Where who read the output has gone, it is for nobody, and the work goes on."""
    try:
        print(*texts, sep="\n", end="\n" if texts else "", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line(error: BaseException) -> str:
    """An error as one line. Ours explain themselves; Hydra's need their cause beside them; others are named
    by their type."""
    origin = type(error).__module__.partition(".")[0]
    told = [error, error.__cause__] if origin in ("hydra", "omegaconf") and error.__cause__ else [error]
    text = without_password(" ".join(" ".join(str(part) for part in told).split()))
    text = re.sub(r" full_key: \S*( reference_type=\S+)? object_type=\S+", "", text)  # omegaconf's own notes
    explained = isinstance(error, ValueError | OSError) or origin in ("wq", "hydra", "omegaconf")
    return text if explained and text else f"{type(error).__name__}: {text}"


def nearest(text: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """The choices most like a text, case aside: the one that is the same, those that begin with it, or else
    those that are spelt alike, the best first."""
    plain = {choice.casefold(): choice for choice in choices}
    meant = text.casefold()
    longer = [name for name in plain if len(meant) > 1 and name.startswith(meant)]
    found = [meant] if meant in plain else longer or get_close_matches(meant, plain, count)
    return [plain[name] for name in found[:count]]


def did_you_mean(text: str, choices: Iterable[str]) -> str:
    """The question that an error asks, with a space behind it; empty where nothing is like the text."""
    near = nearest(text, choices, 2)
    begin = [name for name in near if name.casefold().startswith(text.casefold())]
    near = begin or near[:1]
    return f"did you mean {' or '.join(near)}? " if near else ""


def without_password(text: str) -> str:
    """A URI, or a text with some in it, as messages may show it: all between the first colon and the last @
    of a place is the password, and so is what a parameter of that name holds."""
    shown = re.sub(r"(://[^/:@\s]*):[^/\s]*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s]+", r"\1***", shown)


def refuse_passwords(arguments: list[str]) -> None:
    """Hydra keeps the command line in files, and so does every result."""
    for text in arguments:
        if without_password(text) != text:
            raise ValueError(
                f"{without_password(text)} holds a password, which would be kept with every result; set "
                "MLFLOW_TRACKING_URI to the address instead"
            )


def _interrupt(number: int, frame: object) -> None:
    """A job that is stopped from outside ends as one that is interrupted: its run is closed, its files are
    whole."""
    ending.signals.append(number)
    raise KeyboardInterrupt


def raise_if_interrupted() -> None:
    """Python drops an interrupt that comes while an object is collected: then it is raised here."""
    if ending.signals:
        raise KeyboardInterrupt


def print_anything() -> None:
    """What a narrow encoding has no characters for is replaced, and ends nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")


def listen() -> None:
    """Take signals to stop as interrupts."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background it is ignored
        signal.signal(signal.SIGINT, _interrupt)


def tell_version() -> None:
    from importlib.metadata import version

    say(f"wq {version('wq')}")


def run_command(command: Callable[[list[str]], None], usage: str) -> None:
    """Run a subcommand on its arguments, or say how it is used. Errors are one line and exit code 1."""
    arguments = sys.argv[1:]
    print_anything()
    listen()
    try:
        with report_errors():
            if {"-h", "--help"} & set(arguments):
                print(usage)
            else:
                command(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    leave(FULL_ERROR in os.environ, ending.code)


def leave(wants_traceback: bool, code: int) -> None:
    """End the process with this exit code, or with the first error itself."""
    if ending.errors and wants_traceback:
        raise ending.errors[0]
    if code:
        sys.exit(code)
