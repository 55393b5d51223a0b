"""Which formats of strings can be enforced, and what is added to the compiler's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMATS = frozenset(
    {
        "date-time",
        "time",
        "date",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uuid",
        "uri",
    }
)
# What llguidance's formats let through: year 0, the 29th of February in any year, leap
# seconds, long names.
_LEAP = "0[48]|[2468][048]|[13579][26]"
_DATE = (
    "^(?:(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
    "-(?:02-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01]))"
    f"|(?:[0-9]{{2}}(?:{_LEAP})|(?:{_LEAP})00)-02-29)"
)
FORMAT_LIMITS: Mapping[str, Mapping[str, Any]] = {
    "date": {"pattern": f"{_DATE}$"},
    "date-time": {"pattern": f"{_DATE}[Tt][0-9]{{2}}:[0-9]{{2}}:[0-5]"},
    "time": {"pattern": "^[0-9]{2}:[0-9]{2}:[0-5]"},
    "hostname": {"maxLength": 253},
}
