"""JSON Web Tokens that API keys are exchanged for (wire sections 2.5 and 13.1).

Clients send the key itself only to get a token, and the token everywhere else. A token names the
key it was made for and is worth no more than that key: once the key is no longer the gateway's,
neither is the token good.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import jwt

from tinkergate.errors import GatewayError
from tinkergate.ingress.keys import refused

ALGORITHM = "HS256"
ISSUER = "tinkergate"


@dataclass(frozen=True)
class Tokens:
    """Signs tokens and checks them."""

    secret: bytes
    """The key of the signature, 32 bytes."""
    lifetime: float = 3600.0
    """How long a token is good for, in seconds."""

    def issue(self, key_id: str) -> str:
        """A token for the key of that id. Official clients ask for `exp` and `iat`, and show `sub`
        and `org_id` as who they are."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": f"{ISSUER}:key:{key_id}",
            "org_id": ISSUER,
            "email": "",
            "key_id": key_id,
            "iat": now,
            "exp": now + int(self.lifetime),
        }
        return jwt.encode(claims, self.secret, algorithm=ALGORITHM)

    def key_id(self, token: str) -> str:
        """The id of the key that a token was made for. Raises GatewayError (UNAUTHENTICATED)."""
        try:
            claims = jwt.decode(
                token,
                self.secret,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                options={"require": ["exp", "iat", "iss", "key_id"]},
            )
        except jwt.ExpiredSignatureError:
            raise invalid_token("the token has expired; exchange the API key anew") from None
        except jwt.InvalidTokenError:
            raise invalid_token("the token is none of this gateway's") from None
        return str(claims["key_id"])


def invalid_token(message: str) -> GatewayError:
    """A token that is not good, which a client may answer by asking for another."""
    error = refused(message)
    error.metadata = {"token": "invalid"}
    return error
