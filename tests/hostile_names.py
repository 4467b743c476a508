"""Names that a stranger may give to layers, classes, data and files, and what all of them must leave alone."""

import unicodedata
from dataclasses import replace

from bitcore.graph import Graph

HOSTILE = (
    "*/ int evil(void) { return 1; } /*",
    "*/ __attribute__((constructor)) static void evil(void) { __builtin_trap(); } /*",
    "/*",
    "//",
    "a\\\n",
    "a\\",
    "*\\\n/ #error evil\n/*",
    "??/\n#error evil",
    "*??/\n/",
    "\n#error evil\n",
    "\r#error evil\r",
    "\u2028#error evil",
    "$(rm -rf x)",
    "`rm x`",
    "$(shell touch evil)",
    "; touch evil #",
    "a\n\ttouch evil\n",
    "%s%n%n",
    "{0.__class__}",
    'quote"quote',
    "quote'quote",
    '"]; evil [label="',
    "\\N\\G\\\\",
    "&quot;",
    "\x00",
    "a\x00b",
    "\x1b[31mred\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\x08\x08\x7f",
    "[red]red[/]",
    "[/]",
    "[bold",
    ":bomb:",
    "\u202eevil\u2066",
    "zero\u200bwidth\ufeff",
    "x" * 10_000,
    "x" * 9_999 + "y",
    "日" * 5_000,
    " ",
    "\t",
    "٣٤",
    "²",
    "0",
    "_",
    "__init__",
    "💣",
    "e\u0301",
    "é",
    "\udc80",
    "..",
    ".",
    "../../evil",
    "/etc/passwd",
    "C:\\evil",
    "con",
    "nul.txt",
    "-rf",
    "@evil",
    "~",
    "a|b",
    "| - | - |",
    "``` code",
    "<script>alert(1)</script>",
    "<!-- results: end -->",
    "[link](javascript:alert(1))",
    "![picture](http://evil/x.png)",
    "# title",
    "--- \nkey: &a *a",
    "int",
    "main",
    "default",
    "memcpy",
    "INT32_MAX",
    "bit_requantize",
    "input",
    "output",
    "arena",
    "network",
    "network_run",
    "scratch of n0",
    "a.b",
    "a_b",
    "a b",
    "a_b_2",
    "A_b",
    "a",
    "a_weight",
    "a_weight_bytes",
    "a_order",
    "a_order_0",
    "weight",
    "a.weight",
    "graph",
    "node",
    "digraph",
)


def named(graph: Graph, names: list[str]) -> Graph:
    """The same graph, its nodes called otherwise, in order; one that would be taken for the input is left out."""
    new = {node.name: name for node, name in zip(graph.nodes, names, strict=False) if name != "input"}
    nodes = [
        replace(node, name=new.get(node.name, node.name), inputs=tuple(new.get(i, i) for i in node.inputs))
        for node in graph.nodes
    ]
    return replace(graph, nodes=tuple(nodes))


def obeyed(text: str) -> set[str]:
    """What a terminal would obey in a text, and what no terminal shows: all but letters, marks, blanks and newlines."""
    return {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")}
