"""What the layers of a model read on the calibration speech of a spec."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from wq.numerics.fake_quant import NonFiniteError
from wq.study.spec.spec import DECODING_VERSION, NUMERICS_VERSION, Spec
from wq.study.speech.audio import DataError
from wq.study.speech.datasets import Speech
from wq.whisper.calibration.cache import cached
from wq.whisper.calibration.calibration import Observed, observe
from wq.whisper.checkpoint.model import Whisper
from wq.whisper.checkpoint.window import windowed
from wq.whisper.decoding.decode import SAMPLING_RATE, NonFiniteUtterance
from wq.whisper.layers.treatment import Method, Treatment


@dataclass
class Statistics:
    """The statistics of calibration that methods ask for: heard once, and kept between processes.

    speech    the calibration speech; None where there is none
    seconds   that hearing it took so far; None where nothing had to be heard
    """

    whisper: Whisper
    spec: Spec
    speech: Speech | None
    batch_size: int = 32
    seconds: float | None = None

    def __call__(self, treatment: Treatment, applied: Sequence[Method] = ()) -> dict[str, Observed]:
        """What the layers read, by name, while the model, to which these methods of the treatment have been
        applied, transcribes the speech.

        Raises DataError where there is no speech, NonFiniteError that names the utterance.
        """
        speech, spec = self.speech, self.spec
        if speech is None:
            raise DataError(
                f"{spec.point} needs calibration and was given no speech; name a calibration split"
            )
        # An alpha that is searched follows from how everything will be rounded
        for_what = (treatment.plan, treatment.methods, treatment.activations) if treatment.is_searched else ()
        key = {
            "model": spec.model.content_hash,
            "speech": speech.content_hash,
            "language": spec.decoding_language,
            "max_new_tokens": spec.max_new_tokens,
            "methods": repr((tuple(applied), for_what)) if applied else None,
            "versions": [NUMERICS_VERSION, DECODING_VERSION],
        }
        if spec.window is not None:
            key["window"] = spec.window
        moments = treatment.gptq is not None
        if moments:
            key["moments"] = True

        def hear() -> dict[str, Observed]:
            started = time.perf_counter()
            found = self._hear(speech, moments)
            self.seconds = (self.seconds or 0.0) + time.perf_counter() - started
            return found

        return cached(key, hear)

    def _hear(self, speech: Speech, moments: bool) -> dict[str, Observed]:
        try:
            with windowed(self.whisper, self.spec.window) as whisper:
                return observe(
                    whisper,
                    lambda index: speech.read(index, SAMPLING_RATE),
                    len(speech.utterances),
                    batch_size=self.batch_size,
                    max_new_tokens=self.spec.max_new_tokens,
                    language=self.spec.decoding_language or self.spec.language,
                    moments=moments,
                )
        except NonFiniteUtterance as error:
            raise named(error, speech) from None


def named(error: NonFiniteUtterance, speech: Speech) -> NonFiniteError:
    """The error with the id of the utterance, in one line."""
    utterance = speech.utterances[error.index].id
    return NonFiniteError(
        f"utterance {utterance} of {speech.name} {speech.split}: {error}; "
        "check its audio, or quantize with more bits or another scale"
    )
