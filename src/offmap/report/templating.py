"""How pages are made: templates in which everything is escaped, and a policy that lets only the page's own style and script run."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from offmap.report.words import printable

GENERATOR = b'<meta name="generator" content="offmap'
"""By which a page of offmap is known."""


@cache
def environment() -> Environment:
    """Templates of ``report/templates``."""
    return Environment(
        loader=PackageLoader("offmap.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _visible(value: Any) -> Any:
    """Applied to everything that is put into the page."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def policy(*, styles: Sequence[str], scripts: Sequence[str] = ()) -> str:
    """Content-Security-Policy of a page whose one ``style`` and ``script`` hold these templates, one after another."""

    def sources(kind: str, names: Sequence[str]) -> str:
        if not names:
            return ""
        text = "".join(environment().get_template(name).render() for name in names)
        return f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'; "

    allowed = sources("style", styles) + sources("script", scripts) + "img-src data: 'self'"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
