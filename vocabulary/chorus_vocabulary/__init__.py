"""The harmony vocabulary (o200k_harmony), shipped in the package: nothing is downloaded, ever.

Ordinary tokens are ranks of the o200k_base table; the special ones below follow openai-harmony 0.0.8. Ids from
`NUM_TEXT_TOKENS` on are special or reserved and have no text; `VOCABULARY_SIZE` is what gpt-oss embeds.
"""

import gzip
import hashlib
import importlib.resources
from typing import Final

NUM_TEXT_TOKENS: Final = 199_998
VOCABULARY_SIZE: Final = 201_088

START_OF_TEXT: Final = 199_998
ENDOFTEXT: Final = 199_999
RETURN: Final = 200_002
CONSTRAIN: Final = 200_003
CHANNEL: Final = 200_005
START: Final = 200_006
END: Final = 200_007
MESSAGE: Final = 200_008
CALL: Final = 200_012

STOP_TOKEN_IDS: Final = (RETURN, ENDOFTEXT, CALL)
"""What ends a generation, in the order of gpt-oss's generation_config.json (`eos_token_id`)."""

TABLE_SHA256: Final = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
TABLE_NAME: Final = "o200k_base.tiktoken"


class VocabularyError(RuntimeError):
    """The shipped vocabulary is damaged, or no folder could be found to unpack it to."""


def read_table() -> bytes:
    """Return the unpacked o200k_base table: lines of `base64(token bytes) SP rank`, 3.6 MB.

    Raises:
        VocabularyError: the file in the package is not the one that was shipped.
    """
    packed = importlib.resources.files(__name__).joinpath("data", f"{TABLE_NAME}.gz").read_bytes()
    table = gzip.decompress(packed)
    if hashlib.sha256(table).hexdigest() != TABLE_SHA256:
        raise VocabularyError(f"the packaged {TABLE_NAME}.gz is damaged: reinstall chorus-serve")
    return table
