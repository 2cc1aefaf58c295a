"""`encrypted_content`: the reasoning as text that a client keeps and sends back, where nothing is stored.

It is encoded, not encrypted. The same item shows the reasoning in the clear, as gpt-oss's is meant to be seen, so there
is nothing to hide; and who may write any conversation has nothing to forge (docs/decisions/062).
"""

import base64
import binascii
import zlib
from typing import Final

# Of the form below. Another one can follow without refusing this.
_PREFIX: Final = "chorus1."
# Characters; more than a context holds. Some small text can unpack to very much.
_MAX_LENGTH: Final = 4 * 2**20


class NotSealedHere(ValueError):
    """It was made by another server, or changed."""


def seal(text: str) -> str:
    packed = zlib.compress(text.encode())
    return _PREFIX + base64.urlsafe_b64encode(packed).decode()


def unseal(sealed: str) -> str:
    """Errors: NotSealedHere."""
    if not sealed.startswith(_PREFIX):
        raise NotSealedHere
    try:
        packed = base64.b64decode(sealed.removeprefix(_PREFIX), altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(packed, _MAX_LENGTH)
        if not unpacker.eof:
            raise NotSealedHere
        return text.decode()
    except (binascii.Error, zlib.error, UnicodeDecodeError):
        raise NotSealedHere from None
