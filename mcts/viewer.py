"""A page that shows trees: the picture, each step with its visits, value and prior, and the traces taken from them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment

from fgrpo.types import Sample, Trace
from mcts.tree import Tree

SHOWN = 12  # trees on the page: the first ones, enough to see what the teacher does

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Search trees</title><style>
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;color:#222;padding:0 1rem}
section{border-top:1px solid #ccc;padding:1rem 0;display:grid;grid-template-columns:13rem 1fr;gap:1.5rem}
img{width:12rem;image-rendering:pixelated;border:1px solid #ddd;margin-bottom:.4rem}
ul{list-style:none;padding-left:1.1rem;border-left:1px solid #ddd;margin:.1rem 0}
.n{font:12px ui-monospace,monospace;color:#666;white-space:nowrap}
.bar{display:inline-block;height:.6rem;background:#3b7dd8;vertical-align:middle;margin-right:.4rem}
.right{color:#176b2c}.wrong{color:#a33}.chain{font:13px/1.4 ui-monospace,monospace;white-space:pre-wrap;background:#f6f6f4;padding:.5rem;margin:.4rem 0}
</style></head><body><h1>Search trees</h1><p>N visits, Q mean value, P prior (Eq. 7). Green and red terminal steps are right and wrong answers.</p>
{% macro show(node) %}<li><span class="bar" style="width:{{ (node.q * 4) | round(2) }}rem"></span>
<span class="{{ ('right' if node.reward else 'wrong') if node.terminal else '' }}">{{ node.text or 'root' }}</span>
<span class="n">N {{ node.visits }} · Q {{ '%.2f' | format(node.q) }} · P {{ '%.2f' | format(node.prior) }}{% if node.playouts %} · {{ node.playouts | length }} playouts{% endif %}</span>
{% if node.children %}<ul>{% for child in node.children %}{{ show(child) }}{% endfor %}</ul>{% endif %}</li>{% endmacro %}
{% for sample, images, tree, traces in items %}<section><div>{% for src in images %}<img src="{{ src }}" alt="">{% endfor %}
<p>{{ sample.question }}</p><p class="n">{{ sample.id }} · gold: {{ sample.answer }}</p></div>
<div><ul>{{ show(tree.root) }}</ul>{% for trace in traces %}<div class="chain"><b>{{ trace.kind }}</b> {{ trace.text }}</div>{% endfor %}</div></section>{% endfor %}
</body></html>"""


def page(items: Sequence[tuple[Sample, Tree, Sequence[Trace]]]) -> str:
    """A self-contained HTML page of the first trees; all text is escaped."""
    template = Environment(autoescape=True).from_string(_PAGE)
    shown = [(sample, [_data_url(p) for p in sample.images], tree, traces) for sample, tree, traces in items[:SHOWN]]
    return template.render(items=shown)


def _data_url(path: str) -> str:
    kind = "jpeg" if Path(path).suffix.lower() in (".jpg", ".jpeg") else "png"
    try:
        data = Path(path).read_bytes()
    except OSError:  # the picture has gone since; the tree is still worth showing
        return ""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
