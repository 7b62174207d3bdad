"""Text for terminals: documents must not be able to move the cursor, color or copy anything."""

from __future__ import annotations

import re

# C0 but for tabs and line ends, DEL, C1, and marks that reorder what is shown.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def escape_controls(text: str) -> str:
    """A text whose control characters are written as escapes, like \\x1b."""
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def escape_controls_in_json(text: str) -> str:
    """The same JSON, with every control character in its strings escaped."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def shorten(text: str, limit: int) -> str:
    """The beginning of a text, cut between words if there are some near the limit."""
    if len(text) <= limit:
        return text
    beginning = text[:limit]
    words = beginning.rsplit(None, 1)[0]
    return (words if len(words) > limit * 3 // 4 else beginning) + " ..."
