"""Syntax trees of source files."""

from __future__ import annotations

import ast
import gc


def parse_source(source: str) -> ast.Module:
    """Return the syntax tree of `source`, without a run of the garbage collector during the parse.

    A finalizer that warns makes `traceback` parse source too. Python 3.11 then fails with "AST constructor recursion
    depth mismatch", because both parses share one counter."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if was_enabled:
            gc.enable()
