"""How what holds tensors and long lists shows itself: by sizes in its ``repr``, as a small table in a notebook."""

import dataclasses
import html
import reprlib

import torch

_LONGEST = 100  # characters of what stands for a value
# in the cells themselves: a table stands in notebooks and pages of any style
_CELL = "text-align: left; vertical-align: top; padding: 0.15em 0.9em 0.15em 0"
_values = reprlib.Repr()
_values.maxstring = _values.maxother = _LONGEST


def short(value):
    """A value in a few words: ``float32 (16, 3)`` for a tensor, ``20 of str`` for a long list."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, torch.nn.Module):
        return f"{type(value).__name__} of {sum(p.numel() for p in value.parameters()):,} parameters"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return f"dict of {len(value):,}"
    if isinstance(value, list | tuple):
        opening, closing = "[]" if isinstance(value, list) else "()"
        text = opening + ", ".join(map(short, value[: _LONGEST // 2])) + closing
        if len(value) <= _LONGEST // 2 and len(text) <= _LONGEST:
            return text
        return f"{len(value):,} of {' and '.join(sorted({type(each).__name__ for each in value}))}"
    if type(value).__repr__ is object.__repr__:  # its place in memory says nothing
        return type(value).__name__ + (f" of {len(value):,}" if hasattr(value, "__len__") else "")
    return _values.repr(value)


class Brief:
    """A dataclass (made with ``repr=False``) whose ``repr`` is one line: each field by :func:`short`."""

    def __repr__(self):
        fields = ", ".join(f"{field.name}: {short(getattr(self, field.name))}" for field in dataclasses.fields(self))
        return f"{type(self).__name__}({fields})"


def html_table(head, rows, below=""):
    """Rows of texts as an HTML table, ``below`` a paragraph of several lines under it."""

    def line(cells, tag):
        cells = (f'<{tag} style="{_CELL}">{html.escape(cell)}</{tag}>' for cell in cells)
        return f"<tr>{''.join(cells)}</tr>"

    lines = [line(head, "th"), *(line(row, "td") for row in rows)]
    paragraph = html.escape(below).replace("\n", "<br>")
    return f"<table>{''.join(lines)}</table>" + (f"<p>{paragraph}</p>" if below else "")
