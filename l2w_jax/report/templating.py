"""The page's templates; values are escaped, unless one of the templates has rendered them."""

import functools
from typing import Any

import jinja2
from markupsafe import Markup


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("l2w_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> Markup:
    """The text of a template of the folder templates/ with these values."""
    return Markup(_environment().get_template(template).render(values))
