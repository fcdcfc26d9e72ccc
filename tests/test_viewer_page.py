"""The page on the viewer speaks of what there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "viewer.md"
PLUGIN = ROOT / "spectromap" / "plugin"
MOST_BYTES = 120_000


def said_by_the_plugin():
    """Every text in the plugin, of which those on buttons and menus are some."""
    texts = set()
    for path in PLUGIN.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
    contributed = yaml.safe_load((PLUGIN / "napari.yaml").read_text(encoding="utf-8"))
    widgets = contributed["contributions"]["widgets"]
    return texts | {widget["display_name"] for widget in widgets}


def test_what_the_page_names_in_bold_is_in_the_window():
    quoted = re.findall(r"\*\*(.+?)\*\*", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    titles = [re.sub(r"^\d\. (.*)\.$", r"\1", " ".join(text.split())) for text in quoted]
    assert {"Run to here", "Profiles and models", "Replay result…", "Method"} <= set(titles)
    assert not set(titles) - said_by_the_plugin()


def test_every_picture_of_the_page_is_there_and_none_besides():
    shown = re.findall(r"!\[(.+?)\]\((.+?)\)", PAGE.read_text(encoding="utf-8"))
    paths = [PAGE.parent / path for _, path in shown]
    assert {path.name for path in paths} >= {f"{name}.png" for name in ("data", "save-light")}
    assert sorted(paths) == sorted((PAGE.parent / "viewer").iterdir())
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size <= MOST_BYTES, path
