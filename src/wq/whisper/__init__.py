"""How is a Whisper model loaded, calibrated, smoothed, quantized, run and exported?"""

import logging

# transformers imports torchao where that is installed, and both tell of what is nothing to us
for _chatty in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_chatty).setLevel(logging.ERROR)
