"""How much of the model's window a test set needs: `window=full`, `auto`, or a number of seconds."""

import math

from wq.study.spec.config import ConfigurationError

# Whole seconds, each at most half as long again as the one before: few, so that test sets share them
LENGTHS = (6, 8, 12, 16, 24)
# Seconds of silence behind the longest utterance, at least: with less, formats of four bits loop
# (docs/first_look.md)
MARGIN = 5.0


def resolve_window(setting: str, longest: float, own: float) -> int | None:
    """The window in seconds for utterances of at most `longest` seconds; None is all of the model's own.

    `auto` is the first of LENGTHS that holds the longest utterance and the margin, and is less than the
    model's own. A number must hold the longest utterance, and be no longer than the model's own window.

    Raises ConfigurationError where it is not.
    """
    if setting == "full":
        return None
    if setting == "auto":
        return next((length for length in LENGTHS if longest + MARGIN <= length < own), None)
    seconds = int(setting)
    if seconds > own:
        raise ConfigurationError(
            f"window={seconds} is longer than the model's own {own:g} s; give less, or full"
        )
    if seconds < longest:
        fitting = math.ceil(longest)
        remedy = f"at least {fitting}, or auto" if fitting <= own else "full"
        raise ConfigurationError(
            f"window={seconds} does not hold the longest utterance, {longest:g} s, of the test set or the "
            f"calibration split; give {remedy}"
        )
    return seconds if seconds < own else None
