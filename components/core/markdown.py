"""Text in Markdown that stays text: names of classes and files come from deliveries."""

from __future__ import annotations

import re

_MARKUP = re.compile(r"[\\`*_\[\]!#~<>&|]|:(?=//)|@")


def plain(text: str) -> str:
    """Escape what Markdown, HTML in it, or a renderer that looks for addresses could take for more than text."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", text)
